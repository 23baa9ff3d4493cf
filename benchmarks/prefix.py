"""A prompt that changes on the way: what comes after the change is edited."""

from collections.abc import Iterator
from functools import partial
from itertools import count

from benchmarks.measure import Answer, Beside, Goal, Row, medians
from benchmarks.subject import Subject

QUESTION = "What a prompt says from step k on was changed: how long is the re-run, beside one from the first step?"
ROUNDS = {"pocket": 7, "sd15": 2, "sdxl": 2}
SHARES = (0.25, 0.5, 0.75)
"""Where the prompt changes, as shares of the steps."""
SPARE = 0.05
PROMPT = "[smiling face:{after}:{step}], blue background"


def answer(subject: Subject) -> Answer:
    return Answer(QUESTION, list(_rows(Edited(subject))), notes=_notes(subject))


class Edited:
    """A saved graph whose prompt says something else from step k on; each edit has words of its own."""

    def __init__(self, subject: Subject) -> None:
        self.subject = subject
        self._engine = subject.engine()
        self._graph = subject.graph("text2img")
        self._words = (f"crying face {number}" for number in count())

    def again(self, step: int) -> float:
        """Seconds of a re-run after an edit."""
        self._run(step)
        return self.subject.timed(lambda: self._run(step))

    def anew(self, step: int) -> float:
        """Seconds of the same on an engine that knows nothing but its models."""
        self._engine.clear()
        return self.subject.timed(lambda: self._run(step))

    def _run(self, step: int) -> None:
        self._engine.run(self._graph.set(prompt=PROMPT.format(after=next(self._words), step=step)))


def _rows(edited: Edited) -> Iterator[Row]:
    steps = edited.subject.steps
    edited.anew(1)
    for share in SHARES:
        step = round(share * steps)
        costs = medians(
            {"again": partial(edited.again, step), "anew": partial(edited.anew, step)},
            ROUNDS[edited.subject.model],
        )
        goal = Goal((steps - step) / steps + SPARE, of="ratio")
        yield Row(f"changed from step {step} of {steps} on", costs["again"], Beside("all steps", costs["anew"]), goal)


def _notes(subject: Subject) -> tuple[str, ...]:
    return (
        f"{subject}; DPM++ 2M Karras, the prompt `{PROMPT.format(after='...', step='k')}`.",
        "Whole runs, prompt and VAE included; the goal is the share of the steps that must run, and 5 % of all.",
    )
