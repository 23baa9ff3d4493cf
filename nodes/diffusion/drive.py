"""The driver: many samplers in lockstep, all their questions answered together."""

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Generic, TypeAlias, TypeVar

from torch import Tensor

Question = TypeVar("Question")
Run: TypeAlias = Generator[Question, Tensor, Tensor]


@dataclass(frozen=True, eq=False)
class Round(Generic[Question]):
    """One round, `number` from 0: what the unfinished runs asked and were answered, by position among the runs."""

    number: int
    questions: Mapping[int, Question]
    denoised: Mapping[int, Tensor]


def drive(
    runs: Sequence[Run[Question]],
    answer: Callable[[list[Question]], list[Tensor]],
    *,
    progress: Callable[[Round[Question]], None] | None = None,
) -> list[Tensor]:
    """Advance `runs` to their ends, one question each a round, and return their results in order.

    `answer` takes the questions of all unfinished runs at once and returns as many denoised latents, in the same order.
    Runs may ask different numbers of questions; one that asks none is finished before the first round.
    `progress` is called after every round, before the runs see the answers. Whatever it or `answer` raises, a
    cancellation included, closes all runs and passes through.
    """
    results: dict[int, Tensor] = {}
    with ExitStack() as opened:
        for run in runs:
            opened.callback(run.close)
        questions = _advance(runs, dict.fromkeys(range(len(runs))), results)
        number = 0
        while questions:
            denoised = dict(zip(questions, answer(list(questions.values())), strict=True))
            if progress is not None:
                progress(Round(number, questions, denoised))
            questions = _advance(runs, denoised, results)
            number += 1
    return [results[position] for position in range(len(runs))]


def _advance(
    runs: Sequence[Run[Question]],
    answers: Mapping[int, Tensor | None],
    results: dict[int, Tensor],
) -> dict[int, Question]:
    """Hand each answered run its answer; return the next questions and note the results of runs that ended."""
    questions = {}
    for position, denoised in answers.items():
        try:
            questions[position] = next(runs[position]) if denoised is None else runs[position].send(denoised)
        except StopIteration as end:
            results[position] = end.value
    return questions
