"""Noise: one generator per image, so that a picture does not depend on the batch it was made in.

All noise is drawn as float32 on the CPU and moved, since only there the same seed means the same noise everywhere. The
order of the draws is A1111's: the initial noise first, then the steps' noises, all from the image's own generator.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

NEARLY_PARALLEL = 0.9995
SMALLEST_SINE = 1e-6


@dataclass(frozen=True)
class Variation:
    """Other noise mixed into the initial noise: one seed per image, `strength` from 0 (none of it) to 1 (only it)."""

    seeds: tuple[int, ...]
    strength: float

    def __post_init__(self) -> None:
        """Refuse a strength that is no share."""
        if not 0 <= self.strength <= 1:
            raise ValueError(f"variation strength: expected a number from 0 to 1, got {self.strength}")


@dataclass(frozen=True, eq=False)
class Streams:
    """The noise of one run: `initial`, (N, C, h, w), and with every call the next step's, of the same shape.

    The generators remember how much was drawn: open new streams for every run, also when one is tried again.
    """

    initial: Tensor
    generators: tuple[torch.Generator, ...]

    @classmethod
    def open(
        cls,
        seeds: Sequence[int],
        shape: Sequence[int],
        *,
        variation: Variation | None = None,
        device: torch.device | str = "cpu",
    ) -> Self:
        """Seed a generator per image and draw the initial noise; `shape` is one image's, (C, h, w)."""
        generators = tuple(_generator(seed) for seed in seeds)
        initial = [_normal(generator, shape) for generator in generators]
        if variation is not None and variation.strength > 0:
            initial = _varied(initial, variation)
        return cls(torch.stack(initial).to(device, non_blocking=True), generators)

    def __call__(self) -> Tensor:
        """Draw the next step's noise for all images; a variation has no part in it."""
        shape = self.initial.shape[1:]
        noise = torch.stack([_normal(generator, shape) for generator in self.generators])
        return noise.to(self.initial.device, non_blocking=True)


def draw(
    seeds: Sequence[int],
    shape: Sequence[int],
    *,
    variation: Variation | None = None,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Return the initial noise of each seed, (N, C, h, w), for images of `shape` (C, h, w)."""
    return Streams.open(seeds, shape, variation=variation, device=device).initial


def slerp(start: Tensor, end: Tensor, amount: float) -> Tensor:
    """Turn `start` towards `end` by `amount` of their angle: spherical interpolation, which keeps the noise's length.

    For tensors (C, h, w) the angle is taken per channel and column, along the height, as A1111 does. Tensors that are
    parallel but for a mean cosine above 0.9995 are interpolated linearly, and with the ends exchanged: A1111's noise
    depends on it. A column that has no angle, in a latent one row high, is interpolated linearly the right way round.
    """
    cosine = (_unit(start) * _unit(end)).sum(dim=1, keepdim=True)
    if cosine.mean() > NEARLY_PARALLEL:
        return start * amount + end * (1 - amount)
    angle = cosine.clamp(-1, 1).acos()
    sine = angle.sin()
    spherical = start * (((1 - amount) * angle).sin() / sine) + end * ((amount * angle).sin() / sine)
    return torch.where(sine > SMALLEST_SINE, spherical, start.lerp(end, amount))


def _varied(initial: Sequence[Tensor], variation: Variation) -> list[Tensor]:
    """Mix the variation's noise into each image's."""
    if len(variation.seeds) != len(initial):
        raise ValueError(f"variation seeds: expected one per image, {len(initial)}, got {len(variation.seeds)}")
    others = (_normal(_generator(seed), noise.shape) for seed, noise in zip(variation.seeds, initial, strict=True))
    return [slerp(noise, other, variation.strength) for noise, other in zip(initial, others, strict=True)]


def _generator(seed: int) -> torch.Generator:
    """Return a CPU generator at `seed`, from 0 to 2**64 - 1."""
    if not 0 <= seed < 2**64:
        raise ValueError(f"seed: expected an integer from 0 to 2**64 - 1, got {seed}")
    return torch.Generator().manual_seed(seed)


def _normal(generator: torch.Generator, shape: Sequence[int]) -> Tensor:
    """Draw standard normal float32 noise."""
    return torch.randn(*shape, generator=generator, dtype=torch.float32)


def _unit(noise: Tensor) -> Tensor:
    """Return noise of length 1 along the height."""
    return torch.nn.functional.normalize(noise, dim=1)
