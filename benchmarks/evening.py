"""`python -m benchmarks.evening [NAME ...]`: do an evening's work on the embedded model, and record it as a trace.

In `evening` two saved graphs are used in turn, as people do: a prompt is tried and taken back, a strength compared, a
mask moved, a sweep looked at and one of its cells kept, the other graph opened again. In `comparing` somebody goes back
and forth between two values of each of four settings of one graph, forty times, one setting at a time.
"""

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from random import Random
from typing import Any

from benchmarks import pipeline, trace
from benchmarks.measure import machine, steady
from benchmarks.trace import Call, Trace, Value
from calotype.front import Engine
from calotype.library import find
from engine.digest import Digest
from engine.engine import Result
from engine.graph import Graph
from engine.trace import SIZE, Record

NAME, COMPARING = "evening", "comparing"
CHAINED, PAINTED = pipeline.CHAINED, pipeline.PAINTED
Settings = Mapping[str, Any]


@dataclass(frozen=True)
class Edit:
    """What is set in a graph, and stays set; or, with `sweep`, axes over what is set, gone after the run."""

    graph: str
    settings: Settings = field(default_factory=dict)
    sweep: Mapping[str, Settings] | None = None

    def __str__(self) -> str:
        """What a person would say that they did."""
        done = self.sweep or self.settings
        return f"{self.graph}: {'sweep ' if self.sweep else ''}{done or 'opened'}"


def chained(**settings: Any) -> Edit:
    return Edit(CHAINED, settings)


def painted(**settings: Any) -> Edit:
    return Edit(PAINTED, settings)


EVENING = (
    chained(),
    chained(prompt="neutral face, blue background"),
    chained(prompt="smiling face, green background"),
    chained(prompt="smiling face, blue background"),
    chained(strength=0.5),
    chained(strength=0.7),
    chained(strength=0.6),
    chained(inpaint_prompt="angry face, blue background"),
    chained(inpaint_prompt="surprised face, blue background"),
    chained(inpaint_prompt="crying face, blue background"),
    chained(inpaint_strength=0.6),
    chained(inpaint_strength=0.9),
    chained(inpaint_strength=0.8),
    painted(source="fox.png", prompt="fox, green background"),
    painted(strength=0.5),
    painted(strength=0.6),
    painted(prompt="fox, red background"),
    painted(prompt="fox, green background"),
    chained(mask_y=60),
    chained(mask_h=50),
    chained(mask_h=40, mask_y=66),
    Edit(CHAINED, sweep={"x": {"inpaint_strength": [0.4, 0.6, 0.8, 1.0]}, "y": {"inpaint_seed": [7, 8, 9, 10]}}),
    chained(inpaint_strength=0.6, inpaint_seed=9),
    chained(inpaint_cfg=3.0),
    chained(inpaint_cfg=7.0),
    chained(inpaint_cfg=5.0),
    chained(inpaint_prompt="angry face, blue background"),
    chained(inpaint_prompt="crying face, blue background"),
    painted(),
    painted(seed=2),
    painted(seed=3),
    painted(seed=1),
    Edit(PAINTED, sweep={"x": {"strength": [0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0]}, "y": {"cfg": [3.0, 5.0]}}),
    painted(strength=0.7, cfg=3.0),
    painted(prompt="fox, blue background"),
    painted(prompt="fox, green background"),
    chained(),
    chained(seed=2),
    chained(seed=3),
    chained(seed=1),
    chained(strength=0.7),
    chained(strength=0.6),
    chained(inpaint_seed=7, inpaint_strength=0.8),
    chained(inpaint_seed=9, inpaint_strength=0.6),
    Edit(
        CHAINED,
        sweep={
            "x": {"prompt": ["smiling face, blue background", "neutral face, blue background"]},
            "y": {"inpaint_seed": [7, 8, 9, 10, 11, 12]},
        },
    ),
    chained(inpaint_seed=11),
    chained(mask_x=30, mask_w=68),
    chained(mask_x=34, mask_w=60),
    painted(),
    painted(strength=0.6),
    painted(strength=0.7),
    painted(prompt="fox, red background"),
    chained(inpaint_prompt="surprised face, blue background"),
    chained(inpaint_prompt="crying face, blue background"),
    chained(source="fox.png"),
    chained(source="face.png"),
    painted(source="face.png", prompt="smiling face, blue background"),
    painted(source="fox.png", prompt="fox, green background"),
    chained(inpaint_seed=9),
    chained(inpaint_seed=11),
    painted(seed=2),
    painted(seed=1),
    chained(inpaint_strength=0.7),
    chained(inpaint_strength=0.6),
    chained(),
)


TURNS = 40
COMPARED: Mapping[str, tuple[Any, Any]] = {
    "prompt": ("smiling face, blue background", "neutral face, blue background"),
    "strength": (0.6, 0.75),
    "mask_y": (66, 60),
    "inpaint_prompt": ("crying face, blue background", "angry face, blue background"),
}


def turns() -> Iterator[Edit]:
    """One setting after the other changes to its other value, whichever comes to mind."""
    random, places = Random(0), dict.fromkeys(COMPARED, 0)
    yield chained(**{name: values[0] for name, values in COMPARED.items()})
    for _ in range(TURNS):
        name = random.choice(list(COMPARED))
        places[name] = 1 - places[name]
        yield chained(**{name: COMPARED[name][places[name]]})


EVENINGS: Mapping[str, Sequence[Edit]] = {NAME: EVENING, COMPARING: tuple(turns())}


class Recorder:
    """Runs edits on one engine, and writes down what an engine that forgets nothing did."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._state: dict[str, Graph] = {}
        self._numbers: dict[Digest, int] = {}
        self._fresh = count()
        self._known: dict[str, int] = {}
        self.calls: list[Call] = []
        self.runs: list[trace.Run] = []

    def do(self, edit: Edit) -> None:
        """Run an edit and record it."""
        graph = self._state.get(edit.graph) or find(edit.graph)
        self._state[edit.graph] = graph = graph.set(edit.settings) if edit.settings else graph
        result = self.engine.run(graph.replace(sweep=edit.sweep) if edit.sweep else graph)
        calls = dict.fromkeys(self._call(node) for node in _asked_for(result))
        self.runs.append(trace.Run(str(edit), tuple(calls), tuple(self._wanted(result))))

    def _call(self, node: str) -> int:
        record, found = pipeline.settled(self.engine, node)
        if record.key not in self._known:
            self._known[record.key] = len(self.calls)
            inputs = tuple(dict.fromkeys(map(self._number, _inputs(record))))
            outputs = tuple(map(self._value, found.outputs))
            self.calls.append(Call(record.type, found.seconds, inputs, outputs))
        return self._known[record.key]

    def _value(self, identity: Digest) -> Value:
        value = self.engine.store.get(identity)
        assert value is not None
        return Value(self._number(identity), value.nbytes(), value.by_value)

    def _wanted(self, result: Result) -> Iterator[int]:
        program = self.engine.program(result.graph)
        for port in program.outputs.values():
            _, found = pipeline.settled(self.engine, program.steps[port.step].id)
            yield self._number(found.outputs[port.output])

    def _number(self, identity: Digest) -> int:
        if identity not in self._numbers:
            self._numbers[identity] = next(self._fresh)
        return self._numbers[identity]


def _asked_for(result: Result) -> Iterator[str]:
    return (node for node, report in result.nodes.items() if report.reason != "not asked for")


def _inputs(record: Record) -> Iterator[Digest]:
    """The identities that a record names; each list of links is one text."""
    for joined in map(bytes.fromhex, record.inputs.values()):
        yield from (joined[start : start + SIZE] for start in range(0, len(joined), SIZE))


def recorded(edits: Sequence[Edit]) -> Trace:
    """An evening on an engine that has loaded its models before, so that seconds are those of the nodes alone."""
    steady()
    engine = pipeline.engine()
    engine.run(pipeline.brief(1))
    engine.clear()
    recorder = Recorder(engine)
    for edit in edits:
        recorder.do(edit)
        sys.stderr.write(f"{edit}\n")
    return Trace({"recorded": machine()}, recorder.calls, recorder.runs)


if __name__ == "__main__":
    for name in sys.argv[1:] or EVENINGS:
        print(trace.save(name, recorded(EVENINGS[name])))
