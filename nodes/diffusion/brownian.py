"""Brownian motion over noise levels: noise that belongs to an interval, not to a call.

Every picture has its own path W, fixed by its seed alone: W(a, c) = W(a, b) + W(b, c), whatever was asked before, by
whichever sampler, beside whichever pictures. What a sampler gets of an interval is W(a, b) / sqrt(|a - b|), which is
standard normal.

The path is a binary tree of bridges: halfway through an interval it is off the straight line by a normal number of its
own, seeded by the node. Levels are rounded to a 2 ** 24th of the range. k-diffusion takes torchsde's tree for the same
purpose; it splits elsewhere, so pictures made with it are different, if no less likely.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import sqrt
from typing import TypeAlias

import torch
from torch import Tensor

SPLIT = 2**24
"""Positions in the range."""
REMEMBERED = 4
"""Positions whose value is kept: a sampler asks of each at most three times in a row."""

Draw: TypeAlias = Callable[[int], Tensor]


@dataclass(frozen=True, eq=False)
class Brownian:
    """Brownian noise of a batch over levels from `low` to `high`.

    `draws` make standard normal noise (C, h, w) of a seed; they and `seeds` have one for each picture.
    """

    draws: Sequence[Draw]
    seeds: Sequence[int]
    low: float
    high: float
    device: torch.device | str = "cpu"
    _values: dict[int, Tensor] = field(default_factory=dict, init=False, repr=False)

    def __call__(self, sigma: float, following: float) -> Tensor:
        """Return the noise of the way between two different levels, (N, C, h, w), standard normal."""
        begin, end = self._position(sigma), self._position(following)
        if begin == end:
            raise ValueError(f"noise between {sigma:g} and {following:g}: these levels are one; take fewer steps")
        noise = (self._value(end) - self._value(begin)) / sqrt(abs(end - begin))
        return noise.float().to(self.device, non_blocking=True)

    def _position(self, sigma: float) -> int:
        share = (sigma - self.low) / (self.high - self.low)
        return round(min(max(share, 0.0), 1.0) * SPLIT)

    def _value(self, position: int) -> Tensor:
        """W at a position, with as many units of variance as positions before it."""
        if position not in self._values:
            if len(self._values) == REMEMBERED:
                del self._values[next(iter(self._values))]
            paths = zip(self.draws, self.seeds, strict=True)
            self._values[position] = torch.stack([self._path(draw, seed, position) for draw, seed in paths])
        return self._values[position]

    def _path(self, draw: Draw, seed: int, position: int) -> Tensor:
        """Follow one picture's bridges down to a position."""
        end = draw(node_seed(seed, 0)).double() * sqrt(SPLIT)
        begin = torch.zeros_like(end)
        left, width, node = 0, SPLIT, 1
        while left < position < left + width:
            middle = (begin + end) / 2 + draw(node_seed(seed, node)) * (sqrt(width) / 2)
            width //= 2
            if position < left + width:
                end, node = middle, 2 * node
            else:
                begin, left, node = middle, left + width, 2 * node + 1
        return begin if position == left else end


def node_seed(seed: int, node: int) -> int:
    """Mix a picture's seed and a node of its tree: SplitMix64, Steele et al. 2014, so that neighbours are unlike."""
    mixed = (seed + (node + 1) * 0x9E3779B97F4A7C15) % 2**64
    mixed = (mixed ^ mixed >> 30) * 0xBF58476D1CE4E5B9 % 2**64
    mixed = (mixed ^ mixed >> 27) * 0x94D049BB133111EB % 2**64
    return mixed ^ mixed >> 31
