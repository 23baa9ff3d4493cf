"""Styles that words name, as image processing: pictures (B, 3, H, W) from 0 to 1 in, the same out."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

BLUEPRINT_PAPER = (0.10, 0.29, 0.62)
GRID = 16
"""Pixels between the lines of a blueprint's paper."""
PIXEL = 8
"""Pixels that one pixel of pixel art covers: as many as one of a latent, which then has to say one colour only."""
LEVELS = 6


def line_drawing(pictures: Tensor) -> Tensor:
    """Dark lines on white, where colours change sharply."""
    return (1 - 0.92 * ink(pictures)).expand(-1, 3, -1, -1)


def pixel_art(pictures: Tensor) -> Tensor:
    """Large pixels of few colours."""
    small = functional.avg_pool2d(pictures, PIXEL)
    few = (small * (LEVELS - 1)).round() / (LEVELS - 1)
    return few.repeat_interleave(PIXEL, 2).repeat_interleave(PIXEL, 3)


def photo_negative(pictures: Tensor) -> Tensor:
    """Every colour turned into its opposite."""
    return 1 - pictures


def blueprint(pictures: Tensor) -> Tensor:
    """White lines on blue paper with a grid."""
    height, width = pictures.shape[-2:]
    rows = torch.arange(height, device=pictures.device) % GRID == GRID // 2
    columns = torch.arange(width, device=pictures.device) % GRID == GRID // 2
    lines = ink(pictures)
    ruled = 0.12 * (rows[:, None] | columns)
    return torch.cat([(shade + ruled) * (1 - lines) + lines for shade in BLUEPRINT_PAPER], 1)


def ink(pictures: Tensor) -> Tensor:
    """How much of a line goes through each pixel, (B, 1, H, W) from 0 to 1: Sobel's gradient, the strongest channel."""
    padded = functional.pad(pictures, (1, 1, 1, 1), mode="replicate")
    across = padded[..., 2:] - padded[..., :-2]
    down = padded[..., 2:, :] - padded[..., :-2, :]
    x = across[..., :-2, :] + 2 * across[..., 1:-1, :] + across[..., 2:, :]
    y = down[..., :-2] + 2 * down[..., 1:-1] + down[..., 2:]
    steep = (x**2 + y**2).sqrt().amax(1, keepdim=True)
    return ((steep - 0.25) * 1.2).clamp(0, 1)


STYLES: dict[str, Callable[[Tensor], Tensor]] = {
    "line drawing": line_drawing,
    "pixel art": pixel_art,
    "photo negative": photo_negative,
}
"""What the base model knows; blueprints are left to a LoRA."""

TURN = 12
"""Every so many pictures each style has its turn."""
