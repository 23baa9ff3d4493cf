"""The driver: many samplers in lockstep, all their questions answered together."""

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import ExitStack
from typing import TypeAlias, TypeVar

from nodes.diffusion.step import Predicted

Question = TypeVar("Question")
Result = TypeVar("Result")
Run: TypeAlias = Generator[Question, Predicted, Result]


def drive(
    runs: Sequence[Run[Question, Result]],
    answer: Callable[[list[Question]], list[Predicted]],
) -> list[Result]:
    """Advance `runs` to their ends, one question each a round, and return their results in order.

    `answer` takes the questions of all unfinished runs at once and returns as many denoised latents, in the same order.
    Runs may ask different numbers of questions; one that asks none is finished before the first round.
    Whatever `answer` or a run raises closes all runs and passes through. A run that is to fail or to be cancelled alone
    therefore returns what it met, and a run that is to be watched is put into a generator that watches it.
    """
    results: dict[int, Result] = {}
    with ExitStack() as opened:
        for run in runs:
            opened.callback(run.close)
        questions = _advance(runs, dict.fromkeys(range(len(runs))), results)
        while questions:
            denoised = answer(list(questions.values()))
            questions = _advance(runs, dict(zip(questions, denoised, strict=True)), results)
    return [results[position] for position in range(len(runs))]


def _advance(
    runs: Sequence[Run[Question, Result]],
    answers: Mapping[int, Predicted | None],
    results: dict[int, Result],
) -> dict[int, Question]:
    """Hand each answered run its answer; return the next questions and note the results of runs that ended."""
    questions = {}
    for position, denoised in answers.items():
        try:
            questions[position] = next(runs[position]) if denoised is None else runs[position].send(denoised)
        except StopIteration as end:
            results[position] = end.value
    return questions
