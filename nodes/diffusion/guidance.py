"""Guidance: the clean latents that a UNet predicts, steered by prompts and kept inside a mask."""

from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, TypeAlias

import torch
from torch import Tensor

from nodes.diffusion.control import Control
from nodes.diffusion.keep import Keeper
from nodes.diffusion.scope import Box
from nodes.diffusion.sparing import THROUGHOUT, Sparing
from nodes.diffusion.step import AnySteps, Predicted

NOTHING = 1e-37
"""What the weights of all prompts together are at least, where prompts have places and one has none."""


@dataclass(frozen=True, eq=False)
class Clause:
    """What one prompt says at one model call.

    `tokens` is (1 or N, tokens, D). `pooled`, (1 or N, P), and `sizes`, 5 or 6 numbers, are what SDXL takes beside. A
    `relative` one counts by its share of the weights of all that count with it: in its `box` of the latent, where there
    is one, and there by its weight times `share`, (1 or N, 1, height, width). Where one is relative, all are.
    """

    tokens: Tensor
    weight: float = 1.0
    pooled: Tensor | None = None
    sizes: tuple[float, ...] = ()
    box: Box | None = None
    share: Tensor | None = None
    relative: bool = False


Clauses: TypeAlias = Sequence[Clause]


class Scheduled(Protocol):
    """Prompts that change along a run: with editing, alternation and AND, and with spans in which they count."""

    def at(self, call: int, calls: int, sigma: float | None) -> Clauses:
        """Return what counts at model call `call`, from 0, of `calls`, at noise level `sigma`; None is any level."""


Words: TypeAlias = Tensor | Scheduled
"""What one side of the guidance says: the same conditioning, (1 or N, tokens, D), throughout, or a schedule."""


class Sides(NamedTuple):
    """The two sides of the guidance; the negative one is empty where it has no say, or was `spared`."""

    positive: Clauses
    negative: Clauses
    spared: bool = False


Answer: TypeAlias = tuple[Clause, Tensor]
"""A clause, and the clean latents, of its box alone, that were predicted under it."""


@dataclass(frozen=True, eq=False)
class Guidance:
    """What steers one run.

    The prediction for N latents is negative + the sum of weight * cfg * (positive - negative) over the positive parts:
    classifier-free guidance after Ho and Salimans 2022 (https://arxiv.org/abs/2207.12598), of several prompts after Liu
    et al. 2022 (https://arxiv.org/abs/2206.01714). Negative parts count as their weighted mean, and so do positive
    ones that are relative, cell by cell. Where weight * cfg of a lone part is 1 the negative has
    no say, is not computed, and may be None. At a level where no negative part counts there is nothing to lead away
    from, and the result is the mean of the positive parts.

    `rescale` takes back so much of what a high cfg does to the deviation of the prediction: Lin et al. 2023, section
    3.4 (https://arxiv.org/abs/2305.08891), on the velocity. `concat`, (1 or N, channels, h, w), is what an inpainting
    UNet takes beside the latents, after their channels; `controls` are the ControlNets at work. With `whole_timesteps`
    the UNet is told the nearest timestep that it was trained on, not one between two; with `unguided` the negative is
    computed whatever the cfg, for samplers that ask for it.

    Where the negative is left out by `sparing`, what is predicted under the first positive part stands for it, also for
    those samplers: that part alone is the result then, and others lead away from it. Of relative parts the mean does.
    """

    positive: Words
    negative: Words | None = None
    cfg: float = 1.0
    repaint: Keeper | None = None
    concat: Tensor | None = None
    whole_timesteps: bool = False
    controls: tuple[Control, ...] = ()
    rescale: float = 0.0
    unguided: bool = False
    sparing: Sparing = THROUGHOUT

    def __post_init__(self) -> None:
        """Refuse what nothing can be weighed against."""
        positive = _clauses(self.positive, 0, 1)
        if self.negative is None and (self.unguided or not self._alone(positive)):
            weights = [clause.weight for clause in positive]
            given = f"cfg is {self.cfg}" if weights == [1] else f"the positive has the weights {weights}"
            told = "the sampler asks for it" if self.unguided else f"only cfg 1 needs none, and {given}"
            raise ValueError(f"negative: expected a conditioning, got None; {told}")
        if self.negative is not None and sum(clause.weight for clause in _clauses(self.negative, 0, 1)) == 0:
            raise ValueError(
                "negative: expected weights whose sum is not 0, since its parts count by their share of it"
            )

    def sides(self, call: int, calls: int, sigma: float) -> Sides:
        """Return what counts at model call `call` of `calls`, at noise level `sigma`."""
        positive = _clauses(self.positive, call, calls, sigma)
        if self.negative is None or (self._alone(positive) and not self.unguided):
            return Sides(positive, ())
        if self.sparing.leaves_out(call, sigma):
            return Sides(positive, (), spared=True)
        return Sides(positive, _clauses(self.negative, call, calls, sigma))

    def enter(self, x: Tensor, sigma: float) -> Tensor:
        """Return what the UNet is to see of `x`, (N, C, h, w), at noise level `sigma`."""
        return x if self.repaint is None else self.repaint.enter(x, sigma)

    def combine(
        self, positive: Sequence[Answer], negative: Sequence[Answer], x: Tensor, sigma: float, *, spared: bool = False
    ) -> Predicted:
        """Weigh what was predicted of `x` at noise level `sigma`, and keep what is to be kept."""
        base = _mean(negative, x) if negative else _instead(positive, x) if spared else None
        clean = self._guided(positive, base, x, sigma)
        kept = clean if self.repaint is None else self.repaint.blend(clean, sigma)
        return Predicted(kept, clean if base is None else base)

    def finish(self, clean: Tensor) -> Tensor:
        """Put back the part of a result that may not change."""
        return clean if self.repaint is None else self.repaint.finish(clean)

    def _guided(self, positive: Sequence[Answer], negative: Tensor | None, x: Tensor, sigma: float) -> Tensor:
        if any(clause.relative for clause, _ in positive):
            positive = [(Clause(positive[0][0].tokens), _mean(positive, x))]
        if negative is None:
            return _mean([part for part in positive if part[0].weight > 0] or positive[:1], x)
        clean = negative
        for clause, predicted in positive:
            clean = clean + clause.weight * self.cfg * (predicted - negative)
        return _rescaled(clean, _sum(positive, negative), x, sigma, self.rescale) if self.rescale else clean

    def _alone(self, positive: Clauses) -> bool:
        """Whether the negative has no say."""
        if any(clause.relative for clause in positive):
            return self.cfg == 1
        return len(positive) == 1 and positive[0].weight * self.cfg == 1


def _clauses(words: Words, call: int, calls: int, sigma: float | None = None) -> Clauses:
    return (Clause(words),) if isinstance(words, Tensor) else words.at(call, calls, sigma)


def _instead(positive: Sequence[Answer], x: Tensor) -> Tensor:
    """Return what stands for the negative where it is left out."""
    return _mean(positive, x) if any(clause.relative for clause, _ in positive) else positive[0][1]


def _sum(positive: Sequence[Answer], negative: Tensor) -> Tensor:
    """Return what is predicted without guidance: the weighted positive parts at cfg 1."""
    clean = negative
    for clause, predicted in positive:
        clean = clean + clause.weight * (predicted - negative)
    return clean


def _rescaled(clean: Tensor, plain: Tensor, x: Tensor, sigma: float, share: float) -> Tensor:
    """Give the velocity of `clean` the deviation, picture by picture, of that of `plain`, to a share."""
    around, scale = x / (sigma**2 + 1), sigma / (sigma**2 + 1) ** 0.5
    guided, unguided = ((around - predicted) / scale for predicted in (clean, plain))
    deviations = [velocity.std(dim=(1, 2, 3), keepdim=True) for velocity in (unguided, guided)]
    clean_again: Tensor = around - guided * (share * deviations[0] / deviations[1] + 1 - share) * scale
    return clean_again


def _mean(parts: Sequence[Answer], x: Tensor) -> Tensor:
    """Return the weighted mean of what was predicted, cell by cell where prompts have places; 0 where none has one."""
    if any(clause.relative for clause, _ in parts):
        return _placed_mean(parts, x)
    if len(parts) == 1:
        return parts[0][1]
    total = sum(clause.weight for clause, _ in parts)
    return torch.stack([clause.weight / total * predicted for clause, predicted in parts]).sum(0)


def _placed_mean(parts: Sequence[Answer], x: Tensor) -> Tensor:
    total, weights = torch.zeros_like(x, dtype=torch.float32), x.new_full(x[:, :1].shape, NOTHING, dtype=torch.float32)
    for clause, predicted in parts:
        share = clause.weight if clause.share is None else clause.weight * clause.share
        box = clause.box or Box(0, 0, x.shape[3], x.shape[2])
        box.cut(total).add_(predicted * share)
        box.cut(weights).add_(share)
    return total / weights


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
    steps: AnySteps, guidance: Guidance, calls: int = 1, first: int = 0, *, finished: bool = True
) -> Generator[Question, Predicted, Tensor]:
    """Put a sampler's questions under `guidance`; what the mask keeps is put back into a `finished` result once more.

    Scheduled prompts are told the number of each question, from `first` on, out of `calls`: they alone need to know it.
    """
    told: Callable[[Predicted], Any] = (lambda answer: answer) if guidance.unguided else (lambda answer: answer.guided)
    with closing(steps):
        try:
            x, sigma = next(steps)
            call = first
            while True:
                shown = guidance.enter(x, sigma)
                x, sigma = steps.send(told((yield Question(shown, sigma, guidance, call, calls))))
                call += 1
        except StopIteration as end:
            result: Tensor = end.value
            return guidance.finish(result) if finished else result
