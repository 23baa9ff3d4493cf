"""GroupNorm in tiles: with the statistics of a whole picture, where each tile would have its own.

GroupNorm (Wu and He 2018, arXiv 1803.08494) brings what it sees to mean 0 and variance 1. A tile of plain sky would be
stretched to the contrast of a busy one, and tiles would differ in colour. So the statistics are learnt once, on a
collage of small blocks from all over the picture that is as large as a tile, and then used for all tiles.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor, nn

from nodes.diffusion.lora import sharing

M = TypeVar("M", bound=nn.Module)

BLOCK = 3
"""Side of the blocks of a collage in cells: smaller ones lose the texture, larger ones miss more of the picture."""


class SteadyNorm(nn.Module):
    """A GroupNorm that keeps the statistics of the first thing that it sees."""

    def __init__(self, norm: nn.GroupNorm) -> None:
        super().__init__()
        self.norm = norm
        self.scale: Tensor | None = None
        self.shift: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        """Normalise, in float32 as torch does inside."""
        if self.scale is None or self.shift is None:
            self.scale, self.shift = self._learnt(x)
        shape = (1, -1, *[1] * (x.ndim - 2))
        return (x * self.scale.view(shape) + self.shift.view(shape)).to(x.dtype)

    def _learnt(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """What each channel is multiplied with, and what is added then."""
        groups, channels = self.norm.num_groups, self.norm.num_channels
        spread, mean = torch.var_mean(x[0].float().reshape(groups, -1), dim=1, correction=0)
        scale = (spread + self.norm.eps).rsqrt().repeat_interleave(channels // groups) * self.norm.weight.float()
        return scale, self.norm.bias.float() - mean.repeat_interleave(channels // groups) * scale


def steady(module: M, run: Callable[[M, Tensor], Tensor], data: Tensor, side: int, taken: int) -> M:
    """Make a copy of a module that shares its weights, but treats every tile of `data`, (1, C, H, W), alike.

    `side` is that of the tiles, in cells of `taken` px; `run` applies a module. The module itself stays as it is.
    """
    copy = sharing(module)
    for parent in list(copy.modules()):
        for name, child in parent.named_children():
            if isinstance(child, nn.GroupNorm):
                setattr(parent, name, SteadyNorm(child))
    run(copy, collage(data, side, taken))
    return copy


def collage(data: Tensor, side: int, taken: int) -> Tensor:
    """Blocks from all over the data, evenly spread, put together to at most `side` cells of `taken` px."""
    rows, columns = (_lines(length // taken, side, taken).to(data.device) for length in data.shape[2:])
    return data.index_select(2, rows).index_select(3, columns)


def _lines(length: int, side: int, taken: int) -> Tensor:
    """Which lines are taken, in px."""
    block = min(BLOCK, length, side)
    count = min(side, length) // block
    starts = [(length - block) * index // max(count - 1, 1) for index in range(count)]
    return torch.cat([torch.arange(start * taken, (start + block) * taken) for start in starts])
