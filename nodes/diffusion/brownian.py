"""Brownian motion over noise levels: noise that belongs to an interval, not to a call.

Every picture has its own path W, fixed by its seed and its range alone: W(a, c) = W(a, b) + W(b, c), whatever was asked
before, by whichever sampler, beside whichever pictures. What a sampler gets of an interval is W(a, b) / sqrt(|a - b|),
which is standard normal.

The path is a binary tree of bridges: halfway through an interval it is off the straight line by a normal number of its
own, seeded by the node, down to levels of six decimals. Seeds and halves are those of torchsde's BrownianTree, which
k-diffusion, the WebUI and ComfyUI draw from, so their pictures can be made again.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import sqrt
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor

DECIMALS = 6
"""Decimals that a level is rounded to."""
POOL = 24
"""Words of entropy that a seed is spread over."""
REMEMBERED = 4
"""Levels whose value is kept: a sampler asks of each at most three times in a row."""

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
    _values: dict[float, Tensor] = field(default_factory=dict, init=False, repr=False)

    def __call__(self, sigma: float, following: float) -> Tensor:
        """Return the noise of the way between two different levels, (N, C, h, w), standard normal."""
        begin, end = self._level(sigma), self._level(following)
        if begin == end:
            raise ValueError(f"noise between {sigma:g} and {following:g}: these levels are one; take fewer steps")
        noise = (self._value(end) - self._value(begin)) / sqrt(abs(end - begin))
        return noise.float().to(self.device, non_blocking=True)

    def _level(self, sigma: float) -> float:
        return _rounded(min(max(sigma, self.low), self.high))

    def _value(self, level: float) -> Tensor:
        """W at a level, with a variance of the way from `low`."""
        if level not in self._values:
            if len(self._values) == REMEMBERED:
                del self._values[next(iter(self._values))]
            paths = zip(self.draws, self.seeds, strict=True)
            self._values[level] = torch.stack([self._path(draw, seed, level) for draw, seed in paths])
        return self._values[level]

    def _path(self, draw: Draw, seed: int, level: float) -> Tensor:
        """Follow one picture's bridges down to a level."""
        end = draw(node_seed(seed)).double() * sqrt(self.high - self.low)
        begin = torch.zeros_like(end)
        left, right, node, depth = _rounded(self.low), _rounded(self.high), 0, 0
        while left < level < right:
            half = round((left + right) / 2, DECIMALS)
            before, after, whole = half - left, right - half, right - left
            bend = draw(node_seed(seed, node, depth)).double() * sqrt(before * after / whole)
            middle = begin + (end - begin) * (before / whole) + bend
            depth += 1
            if level <= half:
                right, end, node = half, middle, 2 * node
            else:
                left, begin, node = half, middle, 2 * node + 1
        return begin if level <= left else end


def node_seed(seed: int, *place: int) -> int:
    """Return the seed of a node of a path's tree, at its `place` (number from the left, depth), or of all of it."""
    return int(np.random.SeedSequence(seed, spawn_key=place, pool_size=POOL).generate_state(1)[0])


def _rounded(level: float) -> float:
    """Round a level, as the float32 number that it is elsewhere."""
    return round(float(np.float32(level)), DECIMALS)
