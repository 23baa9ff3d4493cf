"""Composing pictures from sprites: matrix products, so that thousands a second come out of a GPU."""

import torch
from torch import Tensor

from pocket.training.scene import Scenes
from pocket.training.style import STYLES, TURN

MARGIN = 8
"""Transparent pixels around a sprite that the filter may reach into."""


def compose(scenes: Scenes, sprites: Tensor) -> Tensor:
    """Paint the scenes without styles, (B, 3, H, W) from 0 to 1. `sprites` are uint8 (N, 4, S, S), premultiplied."""
    pictures = backgrounds(scenes)
    for number, start in enumerate(scenes.starts):
        shown = slice(start, None)
        layer = placed(
            sprites[scenes.concepts[shown, number]].float() / 255,
            scenes.centres[shown, number],
            scenes.sizes[shown, number],
            scenes.flipped[shown, number],
            (scenes.canvas.height, scenes.canvas.width),
        )
        pictures[shown] = pictures[shown] * (1 - layer[:, 3:]) + layer[:, :3]
    return pictures.clamp(0, 1)


def stylise(pictures: Tensor, turn: int = TURN) -> Tensor:
    """Give each picture the style whose turn it is, in place; `Scenes.styles` says which."""
    for number, style in enumerate(STYLES.values()):
        pictures[number::turn] = style(pictures[number::turn])
    return pictures


def backgrounds(scenes: Scenes) -> Tensor:
    """Plain colours and gradients."""
    width, height = scenes.canvas.width, scenes.canvas.height
    across = torch.linspace(0, 1, width, device=scenes.shades.device).expand(height, width)
    down = torch.linspace(0, 1, height, device=scenes.shades.device)[:, None].expand(height, width)
    ways = torch.stack([down, across, (down + across) / 2])[scenes.slopes][:, None]
    first, last = scenes.shades[:, :, :, None, None].unbind(1)
    return first * (1 - ways) + last * ways


def placed(sprites: Tensor, centres: Tensor, sizes: Tensor, flipped: Tensor, shape: tuple[int, int]) -> Tensor:
    """Resample sprites (B, C, S, S) to squares of `sizes` around `centres` (B, 2) on canvases of `shape`."""
    side = sprites.shape[-1]
    rows = resampling(centres[:, 1], sizes, shape[0], side)
    columns = resampling(centres[:, 0], sizes, shape[1], side)
    columns = torch.where(flipped[:, None, None], columns.flip(-1), columns)
    return rows[:, None] @ sprites @ columns.mT[:, None]


def resampling(centres: Tensor, sizes: Tensor, length: int, side: int) -> Tensor:
    """Weights (B, length, side) that resample a line of `side` pixels to `sizes` pixels around `centres`.

    A triangle filter, widened where it shrinks, so that nothing is aliased; what is off the line is transparent.
    """
    pixels = torch.arange(length, device=sizes.device) + 0.5
    positions = ((pixels - centres[:, None]) / sizes[:, None] + 0.5) * side - 0.5
    lattice = torch.arange(-MARGIN, side + MARGIN, device=sizes.device)
    radius = (side / sizes).clamp(min=1)[:, None, None]
    weights = (1 - (positions[..., None] - lattice).abs() / radius).clamp(min=0)
    return (weights / weights.sum(-1, keepdim=True).clamp(min=1e-6))[..., MARGIN:-MARGIN]
