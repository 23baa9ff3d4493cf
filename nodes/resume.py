"""Resuming: a run is answered from memory as far as an earlier one went the same way, and is computed from there on.

A sampler is a generator, so its state needs no format of its own: it is started anew and given the answers that it was
given before. Every question of a run is kept with its answer, under a key that is a chain: the key of the question
before it, its noise level, and what is active at it. What is not active yet, or no more, is not in the key: a change
of it leaves all keys before intact.

The keys say where to look, they do not decide. An answer is a function of the latents that are asked about, of the
noise level, of the model and of what is active; the last three are in the key, by content, and the latents are compared
bit by bit. So whatever a sampler does or draws, an answer is never given to another question than the one it was for.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from hashlib import sha256

import torch

from engine.context import Context
from engine.device import TensorSocket
from engine.digest import Digest, digest
from nodes.diffusion.control import Control
from nodes.diffusion.guidance import Clause, Guidance, Question
from nodes.diffusion.step import Predicted

CHANGING = frozenset({"positive", "negative", "controls", "sparing"})
"""What of a guidance may be active at one noise level and not at another; all the rest is always."""
WHERE = frozenset({"net", "low", "high"})
"""What of a ControlNet says where it counts, which is asked; its module is known by its reference."""


@dataclass(frozen=True, eq=False)
class Answered(TensorSocket):
    """Noisy latents, and what was predicted of them; `negative` is empty where no sampler asked for it."""

    by_value = False

    x: torch.Tensor
    guided: torch.Tensor
    negative: torch.Tensor

    @classmethod
    def of(cls, question: Question, answer: Predicted) -> "Answered":
        """A question and its answer, without the memory of others that were answered with it."""
        negative = answer.negative if question.guidance.unguided else answer.negative.new_empty(0)
        return cls(*map(_own, (question.x, answer.guided, negative)))

    def fits(self, question: Question) -> bool:
        """Whether it is this very question that was answered, bit by bit."""
        return _alike(self.x, question.x)

    def answer(self) -> Predicted:
        """What was answered."""
        return Predicted(self.guided, self.negative if self.negative.numel() else self.guided)


class Trail:
    """The way of one run through its questions; of each it is asked whether its answer is known.

    `origin` is what decides the way beside the answers: the model, the sampler and its noise. `nets` are what the
    modules of the guidance's ControlNets are known by. Contents are hashed once, when the first question comes.
    """

    def __init__(self, context: Context, origin: Sequence[object], guidance: Guidance, nets: Sequence[Digest]) -> None:
        self._context = context
        self._origin = origin
        self._guidance = guidance
        self._nets = nets
        self._key: Digest | None = None
        self._clauses: dict[int, tuple[Clause, Digest]] = {}
        self._controls: list[Digest] = []
        self._strayed = False
        self._asked = self._recalled = 0

    def recall(self, question: Question) -> Predicted | None:
        """The answer to the next question of the run, where it is known."""
        if not self._context.remembers:
            return None
        self._asked += 1
        self._key = digest(self._key or self._root(question), content(question.sigma), self._active(question))
        found = None if self._strayed else self._context.recall(self._key)
        if not isinstance(found, Answered):
            return None
        if not found.fits(question):
            self._strayed = True  # it went another way, as it may where bits are left open: nothing more will fit
            return None
        self._recalled += 1
        return found.answer()

    @property
    def place(self) -> Digest | None:
        """What the question that was asked last is known by; None where nothing is remembered."""
        return self._key

    def keep(self, question: Question, answer: Predicted, seconds: float) -> None:
        """Keep the answer to the question that was asked last, which took so many seconds."""
        if self._key is not None:
            self._context.keep(self._key, Answered.of(question, answer), seconds)

    def close(self) -> None:
        """Say how much of the way was known."""
        self._context.resume(self._recalled, self._asked)

    def _root(self, first: Question) -> Digest:
        guidance = self._guidance
        self._controls = [
            digest(net, _said(control, without=WHERE))
            for net, control in zip(self._nets, guidance.controls, strict=True)
        ]
        for words in (guidance.positive, guidance.negative):
            for clause in getattr(words, "clauses", {}).values():
                self._clause(clause)
        return digest(content(self._origin), _said(guidance, without=CHANGING), content(first.x))

    def _active(self, question: Question) -> list[object]:
        sides = self._guidance.sides(question.call, question.calls, question.sigma)
        controls = zip(self._guidance.controls, self._controls, strict=True)
        return [
            [self._clause(clause) for clause in sides.positive],
            [self._clause(clause) for clause in sides.negative],
            sides.spared,
            [known for control, known in controls if control.counts(question.sigma)],
        ]

    def _clause(self, clause: Clause) -> Digest:
        """What a clause is known by, hashed once; it is held, so that no other can have its id."""
        if id(clause) not in self._clauses:
            self._clauses[id(clause)] = clause, digest(content(clause))
        return self._clauses[id(clause)][1]


def firsts(questions: Sequence[tuple[Digest | None, Question]]) -> list[int]:
    """For each of many questions with their places the number of the first that is the very same, bit by bit.

    Cells of a sweep that part late ask the same at first.
    """
    known: dict[Digest, list[int]] = {}
    found = []
    for number, (place, question) in enumerate(questions):
        others = [] if place is None else known.setdefault(place, [])
        same = next((other for other in others if _alike(questions[other][1].x, question.x)), number)
        if same == number:
            others.append(number)
        found.append(same)
    return found


def content(value: object) -> object:
    """What a value says, as something that has a digest: tensors by their bytes, dataclasses by their fields.

    Raises TypeError where that cannot be told.
    """
    match value:
        case None | bool() | int() | str() | bytes():
            return value
        case float():
            return ["float", value.hex()]
        case torch.Tensor():
            data = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
            return ["tensor", str(value.dtype), list(value.shape), sha256(data.numpy().data).digest()]
        case Mapping():
            return {str(name): content(entry) for name, entry in value.items()}
        case tuple() | list():
            return ["list", *map(content, value)]
    if not is_dataclass(value) or isinstance(value, type):
        raise TypeError(f"{type(value).__name__}: expected tensors, numbers, text or a dataclass of them")
    return _said(value)


def _said(value: Guidance | Control | object, without: frozenset[str] = frozenset()) -> list[object]:
    """The fields of a dataclass, and its type."""
    entries = {entry.name: content(getattr(value, entry.name)) for entry in fields(value) if entry.name not in without}  # type: ignore[arg-type]
    return [type(value).__qualname__, entries]


def _own(data: torch.Tensor) -> torch.Tensor:
    return data if data.untyped_storage().nbytes() == data.nbytes else data.clone()


def _alike(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether two tensors have the same bits, laid out alike: what is computed of them is the same then, to the bit."""
    described = [(each.dtype, each.device, each.shape, each.stride()) for each in (one, other)]
    return described[0] == described[1] and torch.equal(_bits(one), _bits(other))


def _bits(data: torch.Tensor) -> torch.Tensor:
    return data.contiguous().view(torch.uint8)
