"""The denoiser: questions of many runs, answered by few UNet calls."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, TypeAlias, TypeVar

import torch
from torch import Tensor

from nodes.diffusion.attention import MEASURED, Kernels
from nodes.diffusion.control import Control, Inputs, residuals
from nodes.diffusion.guidance import Answer, Clause, Question
from nodes.diffusion.moments import Embeddings, Moments
from nodes.diffusion.precision import number_format
from nodes.diffusion.room import CPU_CELLS, MOST_CELLS, Room, gauge
from nodes.diffusion.said import Conversation, memory
from nodes.diffusion.step import Predicted
from nodes.diffusion.table import NoiseSchedule, Prediction

LONGEST_SHARED = 12 * 77  # what prompts of 1, 2, 3 and 4 chunks have in common
Item = TypeVar("Item")


class UNet(Protocol):
    """What is asked of a UNet: diffusers' `UNet2DConditionModel` fits."""

    @property
    def dtype(self) -> torch.dtype:
        """The dtype that latents and conditionings are cast to."""

    def __call__(
        self, sample: Tensor, timestep: Tensor, encoder_hidden_states: Tensor, *, return_dict: bool, **more: Any
    ) -> tuple[Tensor, ...]:
        """Predict noise or v for samples (B, C, h, w), timesteps (B,) and conditionings (B, tokens, D)."""


@dataclass(eq=False)
class Denoiser:
    """Answers questions of many runs by few UNet calls; one serves a batch of runs from the first round to the last.

    Positive and negative conditionings of all questions whose latents have one shape go through the UNet together, each
    latent at its own noise level and with its own concatenated channels and ControlNets; what one question asks twice
    (the same memory) is computed once. Conditionings of different lengths are repeated to their least common multiple:
    attention weighs copies of a token like the token alone, so this is exact, and one call for all is cheaper than one
    per length. Past 12 chunks of 77 tokens it no longer is, and each length has its own call.

    Noise levels and results are float32 whatever the UNet's dtype. What cross-attentions make of a conditioning is kept
    from round to round, and what becomes of a timestep. A UNet call takes as many latents as memory holds, going by
    what earlier calls took, and half as many once it ran out; the others have calls of their own, which changes nothing
    but speed. `batch` is the most that it takes anyway. `steady` calls take numbers that do not depend on memory, so
    that results are the same bit for bit, and torch's own choice of `kernels` for attention, not the fastest. `called`
    hears of every UNet call how many latents it took.
    """

    unet: UNet
    table: NoiseSchedule
    batch: int | None = None
    called: Callable[[int], None] = lambda _: None
    steady: bool = False
    kernels: Kernels = MEASURED
    _conversation: Conversation = field(default_factory=Conversation, init=False, repr=False)
    _embeddings: Embeddings = field(default_factory=Embeddings, init=False, repr=False)
    _room: Room | None = field(default=None, init=False, repr=False)

    def __call__(self, questions: Sequence[Question]) -> list[Predicted]:
        """Return the clean latents, float32, in the order of the questions."""
        self._conversation.begin()
        asked: dict[_Place, _Evaluation] = {}
        sides = [q.guidance.sides(q.call, q.calls, q.sigma) for q in questions]
        for number, (q, side) in enumerate(zip(questions, sides, strict=True)):
            timestep = self._timestep(q)
            for clause in (*side.positive, *side.negative):
                asked.setdefault(_place(number, clause), _evaluation(q, timestep, clause))
        clean = dict(zip(asked, self._answers(list(asked.values())), strict=True))

        def answers(number: int, clauses: Sequence[Clause]) -> list[Answer]:
            return [(clause, clean[_place(number, clause)]) for clause in clauses]

        return [
            q.guidance.combine(
                answers(number, side.positive), answers(number, side.negative), q.x, q.sigma, spared=side.spared
            )
            for number, (q, side) in enumerate(zip(questions, sides, strict=True))
        ]

    def predict(self, rows: "Sequence[_Evaluation]") -> Tensor:
        """Return the clean latents (B, C, h, w) of evaluations of one latent each and of one shape."""
        x = torch.cat([row.x for row in rows]).float()
        sigma = _column([row.sigma for row in rows], x.device)[:, None, None, None]
        scaled = x / (sigma**2 + 1).sqrt()
        tokens = [row.clause.tokens for row in rows]
        said = self._conversation.said(tokens, math.lcm(*(each.shape[1] for each in tokens)))
        moments = Moments([row.timestep for row in rows], x.device, self._embeddings)
        inputs = Inputs(scaled, moments, said, _added(rows))
        beside = [row.concat for row in rows if row.concat is not None]
        seen = torch.cat([scaled, torch.cat(beside).float()], dim=1) if beside else scaled
        more = {} if inputs.added is None else {"added_cond_kwargs": inputs.added}
        dtype = number_format(self.unet)
        fastest = self.kernels.chosen(self.unet, x, said.tokens.shape[1], dtype, steady=self.steady)
        with torch.no_grad(), fastest:
            more |= _cast(residuals(inputs, [row.controls for row in rows]), dtype)
            with said.to(self.unet) as told, moments.to(self.unet) as timesteps:
                output = self.unet(seen.to(dtype), timesteps, told, return_dict=False, **more)[0]
        self.called(len(x))
        return _clean(self.table.prediction, x, output.float(), sigma)

    def _timestep(self, question: Question) -> float:
        """Return the timestep that the UNet is told."""
        read = self.table.nearest if question.guidance.whole_timesteps else self.table.timestep
        return float(read(question.sigma))

    def _answers(self, asked: Sequence["_Evaluation"]) -> list[Tensor]:
        """Predict for evaluations of any shapes, by as few UNet calls as there can be."""
        predicted: dict[int, Tensor] = {}
        for group in _groups(asked):
            predicted.update(zip(group, self._together([asked[position] for position in group]), strict=True))
        return [predicted[position] for position in range(len(asked))]

    def _together(self, evaluations: Sequence["_Evaluation"]) -> list[Tensor]:
        """Predict for evaluations of one latent shape, as many latents at a time as a UNet call takes."""
        rows = [row for each in evaluations for row in each.rows()]
        room = self._room = self._room or self._measured(rows[0].x.device)
        parts: list[Tensor] = []
        done = 0
        while done < len(rows):
            calls = math.ceil((len(rows) - done) / room.most(rows[0].shape, rows[0].x[0, 0].numel()))
            part = rows[done : done + math.ceil((len(rows) - done) / calls)]
            predicted = self._fitting(part, room)
            if predicted is None:
                room.halve(len(part))
            else:
                parts.append(predicted)
                done += len(part)
        return list(torch.split(torch.cat(parts), [len(each.x) for each in evaluations]))

    def _fitting(self, rows: "Sequence[_Evaluation]", room: Room) -> Tensor | None:
        """Predict; None where memory ran out and there is more than one latent to do without."""
        room.begin()
        try:
            predicted = self.predict(rows)
        except torch.OutOfMemoryError:
            if len(rows) == 1:
                raise
            return None
        room.end(rows[0].shape, len(rows))
        return predicted

    def _measured(self, device: torch.device) -> Room:
        measure = None if self.steady else gauge(device)
        return Room(self.unet, CPU_CELLS if device.type == "cpu" else MOST_CELLS, measure, self.batch)


@dataclass(frozen=True, eq=False)
class _Evaluation:
    """One part of a question: its latents under one clause, with what is concatenated to them and who else steers."""

    x: Tensor
    sigma: float
    timestep: float
    clause: Clause
    concat: Tensor | None
    controls: tuple[Control, ...] = ()

    @property
    def tokens(self) -> int:
        """The length of the conditioning."""
        return self.clause.tokens.shape[1]

    @property
    def shape(self) -> tuple[object, ...]:
        """What is alike within a UNet call: the latent's shape, how much is concatenated to it and said beside."""
        channels = 0 if self.concat is None else self.concat.shape[1]
        pooled = None if self.clause.pooled is None else self.clause.pooled.shape[1]
        return self.x.shape[1:], channels, pooled, len(self.clause.sizes)

    def rows(self) -> "Iterator[_Evaluation]":
        """The same for each of its latents alone."""
        if len(self.x) == 1:
            yield self
            return
        for index in range(len(self.x)):
            clause = replace(
                self.clause, tokens=_row(self.clause.tokens, index), pooled=_optional_row(self.clause.pooled, index)
            )
            controls = tuple(replace(control, hint=_row(control.hint, index)) for control in self.controls)
            yield replace(
                self,
                x=self.x[index : index + 1],
                clause=clause,
                concat=_optional_row(self.concat, index),
                controls=controls,
            )


def _evaluation(question: Question, timestep: float, clause: Clause) -> _Evaluation:
    """What a question asks under one clause: of its box alone, where it has one."""
    guidance, box = question.guidance, clause.box
    controls = tuple(control for control in guidance.controls if control.counts(question.sigma))
    x, concat = question.x, guidance.concat
    if box is not None and box.within((x.shape[2], x.shape[3])):
        scales = [control.hint.shape[2] // x.shape[2] for control in controls]
        controls = tuple(
            replace(control, hint=box.cut(control.hint, scale)) for control, scale in zip(controls, scales, strict=True)
        )
        x, concat = box.cut(x), None if concat is None else box.cut(concat)
    return _Evaluation(x, question.sigma, timestep, clause, concat, controls)


def _row(data: Tensor, index: int) -> Tensor:
    return data if len(data) == 1 else data[index : index + 1]


def _optional_row(data: Tensor | None, index: int) -> Tensor | None:
    return None if data is None else _row(data, index)


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


def _added(rows: Sequence[_Evaluation]) -> dict[str, Tensor] | None:
    """What SDXL's UNets take beside the conditionings: pooled states (B, P) and sizes (B, 5 or 6)."""
    pooled = [row.clause.pooled for row in rows if row.clause.pooled is not None]
    if not pooled:
        return None
    sizes = torch.tensor([row.clause.sizes for row in rows]).to(pooled[0].device, non_blocking=True)
    return {"text_embeds": torch.cat(pooled), "time_ids": sizes}


def _cast(states: dict[str, Any], dtype: torch.dtype) -> dict[str, Any]:
    """The residuals of ControlNets in the UNet's dtype."""
    return {
        name: tuple(state.to(dtype) for state in value) if isinstance(value, tuple) else value.to(dtype)
        for name, value in states.items()
    }


_Place: TypeAlias = tuple[object, ...]


def _place(number: int, clause: Clause) -> _Place:
    """Say which conditioning of question `number` this is: one memory, one conditioning."""
    memories = [None if data is None else memory(data) for data in (clause.tokens, clause.pooled)]
    return number, *memories, clause.sizes, clause.box


def _column(values: Sequence[float], device: torch.device) -> Tensor:
    """Return float32 values on the device without waiting for it."""
    return torch.tensor(values, dtype=torch.float32).to(device, non_blocking=True)


def _clean(prediction: Prediction, x: Tensor, output: Tensor, sigma: Tensor) -> Tensor:
    """Turn a UNet's output into the clean latent, in the coordinates of x = clean + sigma * noise."""
    if prediction == "v_prediction":
        return x / (sigma**2 + 1) - output * sigma / (sigma**2 + 1).sqrt()
    return x - output * sigma
