"""Guidance: the clean latents that a UNet predicts, steered by prompts and kept inside a mask."""

import math
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Protocol, TypeVar

import torch
from torch import Tensor

from nodes.diffusion.sampler import Steps
from nodes.diffusion.schedule import NoiseSchedule, Prediction

LONGEST_SHARED = 12 * 77  # what prompts of 1, 2, 3 and 4 chunks have in common
MOST_CELLS = 64 * 64 * 64
"""Latent cells that one UNet call takes where nothing else is said: 64 pictures of 512 x 512 px."""

Item = TypeVar("Item")


class UNet(Protocol):
    """What is asked of a UNet: diffusers' `UNet2DConditionModel` fits."""

    @property
    def dtype(self) -> torch.dtype:
        """The dtype that latents and conditionings are cast to."""

    def __call__(
        self, sample: Tensor, timestep: Tensor, encoder_hidden_states: Tensor, *, return_dict: bool
    ) -> tuple[Tensor, ...]:
        """Predict noise or v for samples (B, C, h, w), timesteps (B,) and conditionings (B, tokens, D)."""


@dataclass(frozen=True, eq=False)
class Repaint:
    """Which part of a latent may change.

    `mask` is (1 or N, 1, h, w), from 0 (keep) to 1 (repaint); `kept` the clean latent to keep, (1 or N, C, h, w).
    """

    mask: Tensor
    kept: Tensor

    def blend(self, clean: Tensor) -> Tensor:
        """Return `clean` where the mask is 1, `kept` where it is 0, and their mix between."""
        return clean * self.mask + self.kept * (1 - self.mask)


@dataclass(frozen=True, eq=False)
class Guidance:
    """What steers one run.

    `positive` and `negative` are conditionings (1 or N, tokens, D) for a run of N latents. The prediction is
    negative + cfg * (positive - negative), classifier-free guidance after Ho and Salimans 2022
    (https://arxiv.org/abs/2207.12598); at `cfg` 1 the negative has no say, is not computed, and may be None.
    """

    positive: Tensor
    negative: Tensor | None = None
    cfg: float = 1.0
    repaint: Repaint | None = None

    def __post_init__(self) -> None:
        """Refuse a cfg that nothing can be weighed against."""
        if self.cfg != 1 and self.negative is None:
            raise ValueError(
                f"negative: expected a conditioning, got None; only cfg 1 needs none, and cfg is {self.cfg}"
            )

    @property
    def conditionings(self) -> tuple[Tensor, ...]:
        """The conditionings that a prediction needs, the positive one first."""
        return (self.positive,) if self.cfg == 1 or self.negative is None else (self.positive, self.negative)

    def combine(self, positive: Tensor, negative: Tensor | None = None) -> Tensor:
        """Weigh the two predictions and keep what the mask keeps."""
        clean = positive if negative is None else negative + self.cfg * (positive - negative)
        return self.keep(clean)

    def keep(self, clean: Tensor) -> Tensor:
        """Put back the part of a clean latent that may not change."""
        return clean if self.repaint is None else self.repaint.blend(clean)


@dataclass(frozen=True, eq=False)
class Question:
    """Asks for the clean latents behind `x`, (N, C, h, w), at noise level `sigma` > 0, under one guidance."""

    x: Tensor
    sigma: float
    guidance: Guidance


def guided(steps: Steps, guidance: Guidance) -> Generator[Question, Tensor, Tensor]:
    """Put a sampler's questions under `guidance`; what the mask keeps is put back into its result once more."""
    with closing(steps):
        try:
            x, sigma = next(steps)
            while True:
                x, sigma = steps.send((yield Question(x, sigma, guidance)))
        except StopIteration as end:
            return guidance.keep(end.value)


@dataclass(frozen=True, eq=False)
class _Evaluation:
    """One side of a question: its latents under one conditioning."""

    x: Tensor
    sigma: float
    conditioning: Tensor

    @property
    def tokens(self) -> int:
        """The length of the conditioning."""
        return self.conditioning.shape[1]


@dataclass(frozen=True, eq=False)
class Denoiser:
    """Answers questions of many runs by few UNet calls.

    Positive and negative conditionings of all questions whose latents have one shape go through the UNet together, each
    latent at its own noise level. Conditionings of different lengths are repeated to their least common multiple:
    attention weighs copies of a token like the token alone, so this is exact, and one call for all is cheaper than one
    per length. Past 12 chunks of 77 tokens it no longer is, and each length has its own call.

    Noise levels and results are float32 whatever the UNet's dtype. `batch` is the most latents that a UNet call takes,
    by default as many as have `MOST_CELLS` cells, so that many large pictures do not ask for all memory at once. More
    are split, which changes nothing but speed. `called` hears of every UNet call how many latents it took.
    """

    unet: UNet
    table: NoiseSchedule
    batch: int | None = None
    called: Callable[[int], None] = lambda _: None

    def __call__(self, questions: Sequence[Question]) -> list[Tensor]:
        """Return the clean latents, float32, in the order of the questions."""
        asked = [_Evaluation(q.x, q.sigma, tokens) for q in questions for tokens in q.guidance.conditionings]
        predicted: dict[int, Tensor] = {}
        for group in _groups(asked):
            predicted.update(zip(group, self._together([asked[position] for position in group]), strict=True))
        clean = iter([predicted[position] for position in range(len(asked))])
        return [q.guidance.combine(*(next(clean) for _ in q.guidance.conditionings)) for q in questions]

    def predict(self, x: Tensor, sigmas: Sequence[float], conditioning: Tensor) -> Tensor:
        """Return the clean latents behind `x` (B, C, h, w), each at its own sigma, for conditionings (B, tokens, D)."""
        timesteps = _column([self.table.timestep(sigma) for sigma in sigmas], x.device)
        sigma = _column(sigmas, x.device)[:, None, None, None]
        scaled = x.float() / (sigma**2 + 1).sqrt()
        dtype = self.unet.dtype
        with torch.no_grad():
            output = self.unet(scaled.to(dtype), timesteps, conditioning.to(dtype), return_dict=False)[0]
        self.called(len(x))
        return _clean(self.table.prediction, x.float(), output.float(), sigma)

    def _together(self, evaluations: Sequence[_Evaluation]) -> list[Tensor]:
        """Predict for evaluations of one latent shape, as many latents at a time as a UNet call takes."""
        x = torch.cat([each.x for each in evaluations])
        sigmas = [each.sigma for each in evaluations for _ in each.x]
        conditioning = _stacked(evaluations)
        most = self.batch or max(1, MOST_CELLS // x[0, 0].numel())
        parts = [slice(start, start + most) for start in range(0, len(x), most)]
        clean = torch.cat([self.predict(x[part], sigmas[part], conditioning[part]) for part in parts])
        return list(torch.split(clean, [len(each.x) for each in evaluations]))


def _groups(evaluations: Sequence[_Evaluation]) -> Iterator[list[int]]:
    """Group positions of evaluations that one UNet call can answer."""
    for alike in grouped(range(len(evaluations)), lambda position: evaluations[position].x.shape[1:]):
        if math.lcm(*(evaluations[position].tokens for position in alike)) <= LONGEST_SHARED:
            yield alike
        else:
            yield from grouped(alike, lambda position: evaluations[position].tokens)


def grouped(items: Iterable[Item], key: Callable[[Item], object]) -> Iterable[list[Item]]:
    """Group items of equal keys, in order of first appearance."""
    groups: dict[object, list[Item]] = {}
    for item in items:
        groups.setdefault(key(item), []).append(item)
    return groups.values()


def _stacked(evaluations: Sequence[_Evaluation]) -> Tensor:
    """Return one conditioning per latent, (B, tokens, D), all repeated to a length that they share."""
    tokens = math.lcm(*(each.tokens for each in evaluations))
    repeated = (each.conditioning.repeat(1, tokens // each.tokens, 1) for each in evaluations)
    return torch.cat([part.expand(len(each.x), -1, -1) for part, each in zip(repeated, evaluations, strict=True)])


def _column(values: Sequence[float], device: torch.device) -> Tensor:
    """Return float32 values on the device without waiting for it."""
    return torch.tensor(values, dtype=torch.float32).to(device, non_blocking=True)


def _clean(prediction: Prediction, x: Tensor, output: Tensor, sigma: Tensor) -> Tensor:
    """Turn a UNet's output into the clean latent, in the coordinates of x = clean + sigma * noise."""
    if prediction == "v_prediction":
        return x / (sigma**2 + 1) - output * sigma / (sigma**2 + 1).sqrt()
    return x - output * sigma
