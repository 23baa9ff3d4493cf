"""Guidance: the clean latents that a UNet predicts, steered by prompts and kept inside a mask."""

import math
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import NamedTuple, Protocol, TypeAlias, TypeVar

import torch
from torch import Tensor

from nodes.diffusion.step import Steps
from nodes.diffusion.table import NoiseSchedule, Prediction

LONGEST_SHARED = 12 * 77  # what prompts of 1, 2, 3 and 4 chunks have in common
MOST_CELLS = 64 * 64 * 64
"""Latent cells that one UNet call takes where nothing else is said: 64 pictures of 512 x 512 px."""

Item = TypeVar("Item")
Parts: TypeAlias = Sequence[tuple[float, Tensor]]
"""Weights, and what they weigh: conditionings, or what was predicted under them."""


class Scheduled(Protocol):
    """Conditionings that change along a run: prompts with editing, alternation and AND."""

    def at(self, call: int, calls: int) -> Parts:
        """Return what counts at model call `call`, from 0, of `calls`: conditionings (1, tokens, D), at least one."""


Words: TypeAlias = Tensor | Scheduled
"""What one side of the guidance says: the same conditioning, (1 or N, tokens, D), throughout, or a schedule."""


class UNet(Protocol):
    """What is asked of a UNet: diffusers' `UNet2DConditionModel` fits."""

    @property
    def dtype(self) -> torch.dtype:
        """The dtype that latents and conditionings are cast to."""

    def __call__(
        self, sample: Tensor, timestep: Tensor, encoder_hidden_states: Tensor, *, return_dict: bool
    ) -> tuple[Tensor, ...]:
        """Predict noise or v for samples (B, C, h, w), timesteps (B,) and conditionings (B, tokens, D)."""


class Keeper(Protocol):
    """What keeps a part of a latent as it was: `Repaint` fits, and soft inpainting."""

    def enter(self, x: Tensor, sigma: float) -> Tensor:
        """Return what the UNet is to see of the noisy latent `x` at noise level `sigma`."""

    def blend(self, clean: Tensor, sigma: float) -> Tensor:
        """Return the clean latent predicted at noise level `sigma` with the kept part put back."""

    def finish(self, clean: Tensor) -> Tensor:
        """Return the result of a run with the kept part put back."""


@dataclass(frozen=True, eq=False)
class Repaint:
    """Which part of a latent may change.

    `mask` is (1 or N, 1, h, w), from 0 (keep) to 1 (repaint); `kept` the clean latent to keep, (1 or N, C, h, w).
    """

    mask: Tensor
    kept: Tensor

    def enter(self, x: Tensor, sigma: float) -> Tensor:
        """Show all of it."""
        return x

    def blend(self, clean: Tensor, sigma: float) -> Tensor:
        """Do at every noise level what is done at the end."""
        return self.finish(clean)

    def finish(self, clean: Tensor) -> Tensor:
        """Return `clean` where the mask is 1, `kept` where it is 0, and their mix between."""
        return clean * self.mask + self.kept * (1 - self.mask)


@dataclass(frozen=True, eq=False)
class NoisyRepaint:
    """Which part of a latent may change, as ComfyUI keeps the rest.

    `mask` and `kept` are `Repaint`'s, `noise` is the run's initial one. The UNet sees the kept part with that noise at
    the level of the call, whatever the sampler made of it.
    """

    mask: Tensor
    kept: Tensor
    noise: Tensor

    def enter(self, x: Tensor, sigma: float) -> Tensor:
        """Mix `x` with the noisy kept latent by the mask."""
        return x * self.mask + (self.kept + self.noise * sigma) * (1 - self.mask)

    def blend(self, clean: Tensor, sigma: float) -> Tensor:
        """Return `clean` where the mask is 1, `kept` where it is 0, and their mix between."""
        return clean * self.mask + self.kept * (1 - self.mask)

    def finish(self, clean: Tensor) -> Tensor:
        """Leave the result alone: what is grey was mixed on the way."""
        return clean


class Sides(NamedTuple):
    """The two sides of the guidance; the negative one is empty where it has no say."""

    positive: Parts
    negative: Parts


@dataclass(frozen=True, eq=False)
class Guidance:
    """What steers one run.

    The prediction for N latents is negative + the sum of weight * cfg * (positive - negative) over the positive parts:
    classifier-free guidance after Ho and Salimans 2022 (https://arxiv.org/abs/2207.12598), of several prompts after Liu
    et al. 2022 (https://arxiv.org/abs/2206.01714). Negative parts count as their weighted mean. Where weight * cfg of a
    lone part is 1 the negative has no say, is not computed, and may be None.

    `concat`, (1 or N, channels, h, w), is what an inpainting UNet takes beside the latents, after their channels. With
    `whole_timesteps` the UNet is told the nearest timestep that it was trained on, not one between two.
    """

    positive: Words
    negative: Words | None = None
    cfg: float = 1.0
    repaint: Keeper | None = None
    concat: Tensor | None = None
    whole_timesteps: bool = False

    def __post_init__(self) -> None:
        """Refuse what nothing can be weighed against."""
        positive = _parts(self.positive, 0, 1)
        if not self._alone(positive) and self.negative is None:
            weights = [weight for weight, _ in positive]
            given = f"cfg is {self.cfg}" if weights == [1] else f"the positive has the weights {weights}"
            raise ValueError(f"negative: expected a conditioning, got None; only cfg 1 needs none, and {given}")
        if self.negative is not None and sum(weight for weight, _ in _parts(self.negative, 0, 1)) == 0:
            raise ValueError(
                "negative: expected weights whose sum is not 0, since its parts count by their share of it"
            )

    def sides(self, call: int, calls: int) -> Sides:
        """Return the conditionings that count at model call `call` of `calls`."""
        positive = _parts(self.positive, call, calls)
        if self.negative is None or self._alone(positive):
            return Sides(positive, ())
        return Sides(positive, _parts(self.negative, call, calls))

    def enter(self, x: Tensor, sigma: float) -> Tensor:
        """Return what the UNet is to see of `x`, (N, C, h, w), at noise level `sigma`."""
        return x if self.repaint is None else self.repaint.enter(x, sigma)

    def combine(self, predicted: Sides, sigma: float) -> Tensor:
        """Weigh what was predicted at noise level `sigma`, and keep what is to be kept."""
        clean = _weighed(predicted, self.cfg)
        return clean if self.repaint is None else self.repaint.blend(clean, sigma)

    def finish(self, clean: Tensor) -> Tensor:
        """Put back the part of a result that may not change."""
        return clean if self.repaint is None else self.repaint.finish(clean)

    def _alone(self, positive: Parts) -> bool:
        return len(positive) == 1 and positive[0][0] * self.cfg == 1


def _parts(words: Words, call: int, calls: int) -> Parts:
    return ((1.0, words),) if isinstance(words, Tensor) else words.at(call, calls)


def _weighed(predicted: Sides, cfg: float) -> Tensor:
    """Return negative + the sum of weight * cfg * (positive - negative), or the lone positive."""
    if not predicted.negative:
        return predicted.positive[0][1]
    negative = clean = _mean(predicted.negative)
    for weight, positive in predicted.positive:
        clean = clean + weight * cfg * (positive - negative)
    return clean


def _mean(parts: Parts) -> Tensor:
    if len(parts) == 1:
        return parts[0][1]
    total = sum(weight for weight, _ in parts)
    return torch.stack([weight / total * part for weight, part in parts]).sum(0)


@dataclass(frozen=True, eq=False)
class Question:
    """Asks for the clean latents behind `x`, (N, C, h, w), at noise level `sigma` > 0, under one guidance.

    It is model call `call`, from 0, of the `calls` that scheduled prompts are divided by.
    """

    x: Tensor
    sigma: float
    guidance: Guidance
    call: int = 0
    calls: int = 1


def guided(
    steps: Steps, guidance: Guidance, calls: int = 1, first: int = 0, *, finished: bool = True
) -> Generator[Question, Tensor, Tensor]:
    """Put a sampler's questions under `guidance`; what the mask keeps is put back into a `finished` result once more.

    Scheduled prompts are told the number of each question, from `first` on, out of `calls`: they alone need to know it.
    """
    with closing(steps):
        try:
            x, sigma = next(steps)
            call = first
            while True:
                shown = guidance.enter(x, sigma)
                x, sigma = steps.send((yield Question(shown, sigma, guidance, call, calls)))
                call += 1
        except StopIteration as end:
            result: Tensor = end.value
            return guidance.finish(result) if finished else result


@dataclass(frozen=True, eq=False)
class _Evaluation:
    """One part of a question: its latents under one conditioning, with what is concatenated to them."""

    x: Tensor
    sigma: float
    timestep: float
    conditioning: Tensor
    concat: Tensor | None

    @property
    def tokens(self) -> int:
        """The length of the conditioning."""
        return self.conditioning.shape[1]

    @property
    def shape(self) -> tuple[torch.Size, int]:
        """The shape of one latent, and how many channels are concatenated to it; alike within a UNet call."""
        return self.x.shape[1:], 0 if self.concat is None else self.concat.shape[1]


@dataclass(frozen=True, eq=False)
class Denoiser:
    """Answers questions of many runs by few UNet calls.

    Positive and negative conditionings of all questions whose latents have one shape go through the UNet together, each
    latent at its own noise level and with its own concatenated channels; what one question asks twice (the same memory)
    is computed once. Conditionings of different lengths are repeated to their least common multiple:
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
        asked: dict[_Place, _Evaluation] = {}
        sides = [q.guidance.sides(q.call, q.calls) for q in questions]
        for number, (q, side) in enumerate(zip(questions, sides, strict=True)):
            timestep = self._timestep(q)
            for _, tokens in (*side.positive, *side.negative):
                asked.setdefault(_place(number, tokens), _Evaluation(q.x, q.sigma, timestep, tokens, q.guidance.concat))
        clean = dict(zip(asked, self._answers(list(asked.values())), strict=True))
        predicted = [
            Sides(*([(weight, clean[_place(number, tokens)]) for weight, tokens in parts] for parts in side))
            for number, side in enumerate(sides)
        ]
        return [q.guidance.combine(side, q.sigma) for q, side in zip(questions, predicted, strict=True)]

    def predict(
        self,
        x: Tensor,
        sigmas: Sequence[float],
        conditioning: Tensor,
        concat: Tensor | None = None,
        *,
        timesteps: Sequence[float] | None = None,
    ) -> Tensor:
        """Return the clean latents behind `x` (B, C, h, w), each at its own sigma, for conditionings (B, tokens, D).

        `concat`, (B, channels, h, w), goes to the UNet as it is, after the scaled latents. It is told `timesteps`, by
        default those of the sigmas.
        """
        told = _column(timesteps or [self.table.timestep(sigma) for sigma in sigmas], x.device)
        sigma = _column(sigmas, x.device)[:, None, None, None]
        scaled = x.float() / (sigma**2 + 1).sqrt()
        if concat is not None:
            scaled = torch.cat([scaled, concat.float()], dim=1)
        dtype = self.unet.dtype
        with torch.no_grad():
            output = self.unet(scaled.to(dtype), told, conditioning.to(dtype), return_dict=False)[0]
        self.called(len(x))
        return _clean(self.table.prediction, x.float(), output.float(), sigma)

    def _timestep(self, question: Question) -> float:
        """Return the timestep that the UNet is told."""
        read = self.table.nearest if question.guidance.whole_timesteps else self.table.timestep
        return float(read(question.sigma))

    def _answers(self, asked: Sequence[_Evaluation]) -> list[Tensor]:
        """Predict for evaluations of any shapes, by as few UNet calls as there can be."""
        predicted: dict[int, Tensor] = {}
        for group in _groups(asked):
            predicted.update(zip(group, self._together([asked[position] for position in group]), strict=True))
        return [predicted[position] for position in range(len(asked))]

    def _together(self, evaluations: Sequence[_Evaluation]) -> list[Tensor]:
        """Predict for evaluations of one latent shape, as many latents at a time as a UNet call takes."""
        x = torch.cat([each.x for each in evaluations])
        levels = [(each.sigma, each.timestep) for each in evaluations for _ in each.x]
        sigmas, timesteps = zip(*levels, strict=True)
        conditioning, concat = _stacked(evaluations), _concatenated(evaluations)
        most = self.batch or max(1, MOST_CELLS // x[0, 0].numel())
        parts = [slice(start, start + most) for start in range(0, len(x), most)]
        beside = [None if concat is None else concat[part] for part in parts]
        clean = torch.cat(
            [
                self.predict(x[part], sigmas[part], conditioning[part], other, timesteps=timesteps[part])
                for part, other in zip(parts, beside, strict=True)
            ]
        )
        return list(torch.split(clean, [len(each.x) for each in evaluations]))


def _groups(evaluations: Sequence[_Evaluation]) -> Iterator[list[int]]:
    """Group positions of evaluations that one UNet call can answer."""
    for alike in grouped(range(len(evaluations)), lambda position: evaluations[position].shape):
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


def _concatenated(evaluations: Sequence[_Evaluation]) -> Tensor | None:
    """Return what is concatenated to each latent, (B, channels, h, w)."""
    parts = [each.concat.expand(len(each.x), -1, -1, -1) for each in evaluations if each.concat is not None]
    return torch.cat(parts) if parts else None


_Place: TypeAlias = tuple[int, int, torch.Size, tuple[int, ...]]


def _place(number: int, tokens: Tensor) -> _Place:
    """Say which conditioning of question `number` this is: one memory, one conditioning."""
    return number, tokens.data_ptr(), tokens.shape, tokens.stride()


def _column(values: Sequence[float], device: torch.device) -> Tensor:
    """Return float32 values on the device without waiting for it."""
    return torch.tensor(values, dtype=torch.float32).to(device, non_blocking=True)


def _clean(prediction: Prediction, x: Tensor, output: Tensor, sigma: Tensor) -> Tensor:
    """Turn a UNet's output into the clean latent, in the coordinates of x = clean + sigma * noise."""
    if prediction == "v_prediction":
        return x / (sigma**2 + 1) - output * sigma / (sigma**2 + 1).sqrt()
    return x - output * sigma
