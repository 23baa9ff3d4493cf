"""Noise: one generator per image, so that a picture does not depend on the batch it was made in.

All noise is drawn as float32 on the CPU and moved, since only there the same seed means the same noise everywhere. The
order of the draws is A1111's: the initial noise first, then the steps' noises, all from the image's own generator.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Literal, Self, TypeAlias

import torch
from torch import Tensor

from nodes.diffusion.brownian import Brownian
from nodes.diffusion.philox import Philox

Source: TypeAlias = Literal["cpu", "nv"]
"""Where numbers come from: torch's generator on the CPU, or a CUDA device's, imitated."""
Generator: TypeAlias = Callable[[Sequence[int]], Tensor]
"""Draws standard normal float32 noise of a shape, with every call the next."""

NEARLY_PARALLEL = 0.9995
SMALLEST_SINE = 1e-6
ALONE = (0, 1)
"""The place of an image that shares its generator with no other."""


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
    generators: tuple[Generator, ...]

    @classmethod
    def open(
        cls,
        seeds: Sequence[int],
        shape: Sequence[int],
        *,
        variation: Variation | None = None,
        source: Source = "cpu",
        resized_from: tuple[int, int] | None = None,
        seed_delta: int | None = None,
        places: Sequence[tuple[int, int]] = (),
        device: torch.device | str = "cpu",
    ) -> Self:
        """Seed a generator per image and draw the initial noise; `shape` is one image's, (C, h, w).

        With `resized_from`, (h, w) of another latent, its noise stands in the middle of this one's (`centred`), so that
        the picture keeps its composition. With a `seed_delta` the steps draw from the seeds that many further on.
        `places` says where each image stands among those that share its generator; see `among`.
        """
        generators = _generators(seeds, source, places)
        initial = [draw(shape) for draw in generators]
        if resized_from in (None, tuple(shape[1:])):
            initial = _varied(initial, variation, source)
        else:
            small = [draw((shape[0], *resized_from)) for draw in _generators(seeds, source, places)]
            small = _varied(small, variation, source)
            initial = [centred(noise, over) for noise, over in zip(initial, small, strict=True)]
        if seed_delta is not None:
            generators = _generators([(seed + seed_delta) % 2**64 for seed in seeds], source, places)
        return cls(torch.stack(initial).to(device, non_blocking=True), generators)

    def __call__(self, *_levels: float) -> Tensor:
        """Draw the next step's noise for all images, whatever its levels; a variation has no part in it."""
        shape = self.initial.shape[1:]
        noise = torch.stack([draw(shape) for draw in self.generators])
        return noise.to(self.initial.device, non_blocking=True)


def draw(
    seeds: Sequence[int],
    shape: Sequence[int],
    *,
    variation: Variation | None = None,
    source: Source = "cpu",
    device: torch.device | str = "cpu",
) -> Tensor:
    """Return the initial noise of each seed, (N, C, h, w), for images of `shape` (C, h, w)."""
    return Streams.open(seeds, shape, variation=variation, source=source, device=device).initial


def brownian(
    seeds: Sequence[int],
    shape: Sequence[int],
    low: float,
    high: float,
    *,
    source: Source = "cpu",
    places: Sequence[tuple[int, int]] = (),
    device: torch.device | str = "cpu",
) -> Brownian:
    """Return Brownian noise over levels from `low` to `high` for images of `shape` (C, h, w), one path per seed.

    Images that share a generator, by their `places`, have paths of their own; see `among`.
    """
    draws = [partial(_drawn, source=source, place=place, shape=shape) for place in places or [ALONE] * len(seeds)]
    return Brownian(draws, tuple(seeds), low, high, device)


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


def centred(under: Tensor, over: Tensor) -> Tensor:
    """Put the middle of `over` on the middle of `under`, both (C, h, w): A1111's "resize seed from".

    Where `over` is larger by an odd number, one row or column of `under` stays, as it does there.
    """
    result = under.clone()
    window, cut = zip(*map(_overlap, under.shape[1:], over.shape[1:]), strict=True)
    result[:, window[0], window[1]] = over[:, cut[0], cut[1]]
    return result


def _overlap(under: int, over: int) -> tuple[slice, slice]:
    """Return where `over` cells go on `under`, and which of them do."""
    margin = (under - over) // 2
    length = over + 2 * min(margin, 0)
    begin, skipped = max(margin, 0), max(-margin, 0)
    return slice(begin, begin + length), slice(skipped, skipped + length)


def _varied(initial: list[Tensor], variation: Variation | None, source: Source) -> list[Tensor]:
    """Mix the variation's noise into each image's."""
    if variation is None or variation.strength == 0:
        return initial
    if len(variation.seeds) != len(initial):
        raise ValueError(f"variation seeds: expected one per image, {len(initial)}, got {len(variation.seeds)}")
    others = [generator(seed, source)(noise.shape) for seed, noise in zip(variation.seeds, initial, strict=True)]
    return [slerp(noise, other, variation.strength) for noise, other in zip(initial, others, strict=True)]


def generator(seed: int, source: Source = "cpu") -> Generator:
    """Return what draws noise from `seed`, from 0 to 2**64 - 1."""
    if not 0 <= seed < 2**64:
        raise ValueError(f"seed: expected an integer from 0 to 2**64 - 1, got {seed}")
    return GENERATORS[source](seed)


def among(draw: Generator, place: int, count: int) -> Generator:
    """Let `count` images share a generator, as in ComfyUI: each draw is of all of them, and one is at `place`."""

    def own(shape: Sequence[int]) -> Tensor:
        return [draw(shape) for _ in range(count)][place]

    return own


def _generators(seeds: Sequence[int], source: Source, places: Sequence[tuple[int, int]]) -> tuple[Generator, ...]:
    """Return what draws for each image."""
    opened = zip(seeds, places or [ALONE] * len(seeds), strict=True)
    return tuple(among(generator(seed, source), *place) for seed, place in opened)


def _drawn(seed: int, *, source: Source, place: tuple[int, int], shape: Sequence[int]) -> Tensor:
    """Draw once from a seed."""
    return among(generator(seed, source), *place)(shape)


def _torch(seed: int) -> Generator:
    """Draw with torch's generator on the CPU."""
    own = torch.Generator().manual_seed(seed)
    return lambda shape: torch.randn(*shape, generator=own, dtype=torch.float32)


def _unit(noise: Tensor) -> Tensor:
    """Return noise of length 1 along the height."""
    return torch.nn.functional.normalize(noise, dim=1)


GENERATORS: Mapping[Source, Callable[[int], Generator]] = MappingProxyType(
    {"cpu": _torch, "nv": lambda seed: Philox(seed).normal},
)
