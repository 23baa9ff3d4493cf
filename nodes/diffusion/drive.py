"""The driver: many samplers in lockstep, all their questions answered together; others may join on the way."""

from collections.abc import Callable, Generator, Mapping, Sequence
from itertools import count
from typing import TypeAlias, TypeVar

from nodes.diffusion.step import Predicted

Question = TypeVar("Question")
Result = TypeVar("Result")
Newcomer = TypeVar("Newcomer")
Run: TypeAlias = Generator[Question, Predicted, Result]


def drive(
    runs: Sequence[Run[Question, Result]],
    answer: Callable[[list[Question]], list[Predicted]],
) -> list[Result]:
    """Advance `runs` to their ends in lockstep, and return their results in order."""
    results: dict[int, Result] = {}
    for finished in lockstep(runs, answer, lambda run: run):
        results.update(finished)
    return [results[number] for number in range(len(runs))]


def lockstep(
    newcomers: Sequence[Newcomer],
    answer: Callable[[list[Question]], list[Predicted]],
    start: Callable[[Newcomer], Run[Question, Result]],
) -> Generator[dict[int, Result], Sequence[Newcomer], None]:
    """Advance many runs to their ends, one question each a round; yield the results of those that a round has ended.

    A run is what `start` makes of a newcomer, and is numbered in the order in which they come. Those that are sent
    after a round take part in the next. `answer` takes the questions of all unfinished runs at once and returns as many
    denoised latents, in the same order. Runs may ask different numbers of questions; one that asks none is finished in
    its first round. After the last one has ended there are no rounds any more.

    Whatever `answer` or a run raises closes all runs and passes through. A run that is to fail or to be cancelled alone
    therefore returns what it met, and a run that is to be watched is put into a generator that watches it.
    """
    runs: dict[int, Run[Question, Result]] = {}
    numbers = count()
    questions: dict[int, Question] = {}
    try:
        while newcomers or questions:
            fresh = {next(numbers): start(each) for each in newcomers}
            runs.update(fresh)
            first, results = _advance(runs, dict.fromkeys(fresh))
            questions |= first
            if questions:
                denoised = answer(list(questions.values()))
                questions, ended = _advance(runs, dict(zip(questions, denoised, strict=True)))
                results |= ended
            newcomers = (yield results) or ()
    finally:
        for run in runs.values():
            run.close()


def _advance(
    runs: dict[int, Run[Question, Result]], answers: Mapping[int, Predicted | None]
) -> tuple[dict[int, Question], dict[int, Result]]:
    """Hand each run its answer, None to begin with; return the next questions, and the results of runs that ended."""
    questions, results = {}, {}
    for number, denoised in answers.items():
        try:
            questions[number] = next(runs[number]) if denoised is None else runs[number].send(denoised)
        except StopIteration as end:
            results[number] = end.value
            del runs[number]
    return questions, results
