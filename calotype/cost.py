"""What a run would cost, read off its plan: samples, UNet evaluations, and UNet calls when samples share them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache

from calotype.reader import Reader
from engine.engine import Engine
from engine.graph import Graph
from engine.loop import FUSED
from engine.plan import Planned, Verdict
from engine.program import Port, Program, Step
from nodes.diffusion.prompt import joined
from nodes.diffusion.sampler import SAMPLERS, evaluations
from nodes.diffusion.schedule import executed


@dataclass(frozen=True)
class Sampling:
    """One sample node that would run: its pictures, how often each asks, and UNet evaluations for each question.

    `questions` is None where only the run itself knows; `round` is how many samples in a row end with this one.
    """

    unet: Port | None
    pictures: int
    questions: int | None
    sides: int
    round: int

    @property
    def least(self) -> int:
        """How often it asks for certain."""
        return 1 if self.questions is None else self.questions


@dataclass(frozen=True)
class Cost:
    """What would run; `nodes` is the most it can be where `certain` is false."""

    cells: int
    nodes: int
    certain: bool
    samplings: Sequence[Sampling]
    exact: bool = False

    @property
    def pictures(self) -> int:
        """Pictures that are sampled."""
        return sum(each.pictures for each in self.samplings)

    @property
    def evaluations(self) -> int:
        """Latents that go through a UNet, one by one; those of a picture with a negative prompt count twice."""
        return sum(each.pictures * each.sides * each.least for each in self.samplings)

    @property
    def calls(self) -> int:
        """UNet calls where samples of one model share them; very large pictures take more."""
        alone = [each.least for each in self.samplings]
        return sum(alone) if self.exact else sum(max(group) for group in self._groups())

    def _groups(self) -> Iterator[list[int]]:
        for together in dict.fromkeys((each.unet, each.round) for each in self.samplings):
            alike = [each.least for each in self.samplings if (each.unet, each.round) == together]
            yield from (alike[start : start + FUSED] for start in range(0, len(alike), FUSED))

    def __str__(self) -> str:
        """One line."""
        least = "at least " if any(each.questions is None for each in self.samplings) else ""
        sampled = f"{least}{_count(self.evaluations, 'UNet evaluation')} in about {_count(self.calls, 'call')}"
        return "; ".join(
            [
                *([_count(self.cells, "cell")] if self.cells else []),
                f"{'' if self.certain or not self.nodes else 'at most '}{_count(self.nodes, 'node')} to run",
                f"{_count(self.pictures, 'picture')} to sample" + (f", {sampled}" if self.samplings else ""),
            ]
        )


def cost(engine: Engine, graph: Graph, outputs: Sequence[str] | None, plan: Sequence[Planned]) -> Cost:
    """What a run of these outputs would cost by its plan. Raises GraphError."""
    program = engine.program(graph)
    names = program.swept if outputs is None else [name for name in outputs if name in program.swept]
    cells = {cell.link for name in names for cell in program.swept[name].cells}
    running = [item for item in plan if item.verdict in (Verdict.RUN, Verdict.MAY_RUN)]
    steps = [program.steps[program.index[item.node]] for item in running if item.type == "sample"]
    certain = all(item.verdict is Verdict.RUN for item in running)
    rounds = _rounds(program)
    samplings = [_sampling(program, step, rounds[program.index[step.id]]) for step in steps]
    return Cost(len(cells), len(running), certain, samplings, engine.exact)


def _rounds(program: Program) -> list[int]:
    """For each step, how many samples in a row lead to it, itself included: those of one row cannot share calls."""
    found: list[int] = []
    for step in program.steps:
        before = max((found[port.step] for port in step.needs), default=0)
        found.append(before + (step.definition.type == "sample"))
    return found


def _sampling(program: Program, step: Step, number: int) -> Sampling:
    reader = Reader(program, {})
    cfg, sampler = reader.known(step, "cfg"), reader.known(step, "sampler")
    pictures = reader.known(reader.source(step, "noise"), "count")
    wanted = cfg != 1 or (sampler in SAMPLERS and SAMPLERS[sampler].unguided)
    sides = len(joined(reader.prompt(step, "positive"))) + (wanted and reader.link(step, "negative") is not None)
    questions = _questions(reader, step) if pictures else None
    return Sampling(reader.link(step, "unet"), pictures or 1, questions, sides, number)


def _questions(reader: Reader, step: Step) -> int | None:
    """How often a picture asks the model; None where that is unknown."""
    values = {name: reader.known(step, name) for name in ("steps", "denoise", "sampler", "convention")}
    if None in values.values():
        return None
    first, last = reader.known(step, "first") or 0, reader.known(step, "last")
    try:
        run = executed(values["steps"], values["denoise"], values["convention"])
        return _asked(values["sampler"], max(0, (run if last is None else min(run, last)) - first))
    except ValueError:
        return None  # the run says what is wrong


@cache
def _asked(sampler: str, steps: int) -> int | None:
    levels = [14.6 * (0.03 / 14.6) ** (index / max(1, steps - 1)) for index in range(steps)]
    return evaluations(sampler, [*levels, 0.0]) if steps else 0


def _count(number: int, word: str) -> str:
    return f"{number:,} {word}{'' if number == 1 else 's'}"
