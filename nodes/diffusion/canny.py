"""Edges after Canny (1986, "A computational approach to edge detection"), as the two programs' libraries find them.

Gradient by Sobel's 3 x 3 kernels, not normalised, so that a step of one level counts 4 and all thresholds are in these
levels; only what is a maximum across the edge is kept; of that, what is above the higher threshold, and what is above
the lower one and joined to it.
"""

from __future__ import annotations

from typing import Literal, TypeAlias

import torch
from torch import Tensor
from torch.nn import functional

Convention: TypeAlias = Literal["a1111", "comfy"]
"""How the gradient is taken, as by OpenCV or as by kornia; `edges` says what differs."""

LUMA = (0.299, 0.587, 0.114)
"""Shares of red, green and blue in brightness, ITU-R BT.601."""
_SOBEL = torch.tensor([[-1.0, 0.0, 1.0], [-2.0, 0.0, 2.0], [-1.0, 0.0, 1.0]])
_TAN = 13573 / 2**15
"""The tangent of 22.5 degrees, in the 15 bits that OpenCV has."""


def edges(images: Tensor, low: float, high: float, convention: Convention = "a1111") -> Tensor:
    """Find edges in images, uint8 (N, 3, H, W): bool (N, 1, H, W).

    `a1111`: of each pixel the channel that changes most, |dx| + |dy|, as OpenCV does by default. `comfy`: brightness,
    blurred by a Gaussian of 5 x 5 px and standard deviation 1, and the length of (dx, dy), as kornia does; ComfyUI's
    thresholds are ours divided by 255.
    """
    across, down = _strongest(images) if convention == "a1111" else _blurred(images)
    length = across.abs() + down.abs() if convention == "a1111" else torch.hypot(across, down)
    kept = (_maxima(across, down, length) & (length > low)).cpu()
    strong = (length > high).cpu()
    found = [_joined(*pair) for pair in zip(kept[:, 0], strong[:, 0], strict=True)]
    return torch.stack(found).unsqueeze(1).to(images.device)


def _strongest(images: Tensor) -> tuple[Tensor, Tensor]:
    """Gradient of the channel that changes most, the first of equals; whole numbers."""
    across, down = _gradient(images.float())
    most = (across.abs() + down.abs()).argmax(1, keepdim=True)
    return across.gather(1, most), down.gather(1, most)


def _blurred(images: Tensor) -> tuple[Tensor, Tensor]:
    """Gradient of the blurred brightness, which is rounded to 1/1024 level so that equal slopes are equal."""
    shares = torch.tensor(LUMA, device=images.device)
    grey = (images.float() * shares[:, None, None]).sum(1, keepdim=True)
    bell = torch.exp(-(torch.arange(-2.0, 3.0, device=images.device) ** 2) / 2)
    bell /= bell.sum()
    mirrored = functional.pad(grey, (2, 2, 2, 2), "reflect" if min(images.shape[2:]) > 2 else "replicate")
    blurred = functional.conv2d(functional.conv2d(mirrored, bell.view(1, 1, 1, 5)), bell.view(1, 1, 5, 1))
    return _gradient((blurred * 1024).round() / 1024)


def _gradient(levels: Tensor) -> tuple[Tensor, Tensor]:
    """Sobel's gradient of every channel, rightwards and downwards; the border is repeated."""
    count, channels, height, width = levels.shape
    kernels = torch.stack([_SOBEL, _SOBEL.T]).unsqueeze(1).to(levels.device)
    edged = functional.pad(levels.reshape(-1, 1, height, width), (1, 1, 1, 1), "replicate")
    both = functional.conv2d(edged, kernels).view(count, channels, 2, height, width)
    return both[:, :, 0], both[:, :, 1]


def _maxima(across: Tensor, down: Tensor, length: Tensor) -> Tensor:
    """Whether a pixel is the largest of three in the direction of its gradient, rounded to 45 degrees.

    Of two equal ones the left or upper is kept; along a diagonal, none.
    """
    height, width = length.shape[2:]
    around = functional.pad(length, (1, 1, 1, 1))

    def beside(y: int, x: int) -> Tensor:
        return around[..., 1 + y : 1 + y + height, 1 + x : 1 + x + width]

    wide, tall = across.abs().double(), down.abs().double()
    level, upright = tall < wide * _TAN, tall > wide * (_TAN + 2)
    falling = (length > beside(-1, -1)) & (length > beside(1, 1))
    rising = (length > beside(-1, 1)) & (length > beside(1, -1))
    diagonal = torch.where((across < 0) == (down < 0), falling, rising)
    vertical = (length > beside(-1, 0)) & (length >= beside(1, 0))
    horizontal = (length > beside(0, -1)) & (length >= beside(0, 1))
    return torch.where(level, horizontal, torch.where(upright, vertical, diagonal))


def _joined(kept: Tensor, strong: Tensor) -> Tensor:
    """The strong ones of what was kept, and what touches them, at a side or a corner, over any number of steps."""
    left, found = functional.pad(kept, (1, 1, 1, 1)).flatten(), functional.pad(kept & strong, (1, 1, 1, 1)).flatten()
    stride = kept.shape[1] + 2
    steps = torch.tensor([y * stride + x for y in (-1, 0, 1) for x in (-1, 0, 1)])
    front = found.nonzero()[:, 0]
    left[front] = False
    while len(front):
        near = (front[:, None] + steps).flatten()
        front = torch.unique(near[left[near]])
        left[front] = False
        found[front] = True
    return found.view(-1, stride)[1:-1, 1:-1]
