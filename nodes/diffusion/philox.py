"""Normal numbers as a CUDA device draws them, made with numpy: the WebUI's random number source NV.

Philox 4x32 of ten rounds, Salmon et al. 2011 (https://www.thesalmons.org/john/random123/), as ATen uses it. A device
draws just these as long as a tensor has few enough elements for one grid of its threads: 43,000 on a small one, 221,000
on a large one.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod, tau

import numpy as np
import torch
from torch import Tensor

ROUNDS = 10
MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
WEYL = (0x9E3779B9, 0xBB67AE85)
LOW = np.uint64(0xFFFFFFFF)
UNIT, CIRCLE = 2.0**-32, float(np.float32(tau)) * 2.0**-32  # the circle in the device's single precision


@dataclass
class Philox:
    """A generator at `seed`, from 0 to 2**64 - 1, that knows how often it was asked."""

    seed: int
    calls: int = 0

    def normal(self, shape: Sequence[int]) -> Tensor:
        """Draw standard normal float32 numbers: each element from its own counter, each call from the next offset."""
        words = philox(self.seed, self.calls, prod(shape))
        self.calls += 1
        radius = np.sqrt(-2 * np.log((words[0] + 0.5) * UNIT))
        drawn = radius * np.sin((words[1] + 0.5) * CIRCLE)
        return torch.from_numpy(drawn.astype(np.float32)).reshape(tuple(shape))


def philox(seed: int, call: int, count: int) -> np.ndarray:
    """Return the four words of `count` counters (call, 0, element, 0) under the key `seed`: (4, count), uint64."""
    counter = np.zeros((4, count), dtype=np.uint64)
    counter[0], counter[2] = call & 0xFFFFFFFF, np.arange(count, dtype=np.uint64)
    key = [seed & 0xFFFFFFFF, seed >> 32]
    for _ in range(ROUNDS):
        first, second = (counter[row] * np.uint64(by) for row, by in zip((0, 2), MULTIPLIERS, strict=True))
        counter = np.stack(
            [
                (second >> np.uint64(32)) ^ counter[1] ^ np.uint64(key[0]),
                second & LOW,
                (first >> np.uint64(32)) ^ counter[3] ^ np.uint64(key[1]),
                first & LOW,
            ],
        )
        key = [(part + step) & 0xFFFFFFFF for part, step in zip(key, WEYL, strict=True)]
    return counter
