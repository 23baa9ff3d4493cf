"""A recorded trace done once more by the real engine, on a clock of its own, with less memory and any eviction policy.

Nodes do nothing but advance the clock by the seconds that were recorded, and their values claim the recorded bytes.
Whatever the engine does (pins, cutoffs, making again what an evicted value was made from) is done as in earnest.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol
from unittest.mock import patch

from benchmarks.trace import Call, Run, Trace
from engine.digest import Digest
from engine.engine import Engine
from engine.eviction import Ageing, Entry
from engine.graph import Graph
from engine.node import node
from engine.registry import Registry
from engine.socket import Socket


class Policy(Protocol):
    """What the store asks of a policy; `engine.eviction.Gdsf` is the one that ships."""

    def admit(self, key: Digest, size: int, seconds: float, uses: int = 0) -> None:
        """A value came."""

    def use(self, key: Digest) -> None:
        """A value was used again."""

    def remove(self, key: Digest) -> Entry | None:
        """A value went."""

    def victim(self, spared: Callable[[Digest], bool]) -> Digest | None:
        """The value to give up first."""

    def priority(self, key: Digest) -> float:
        """How much a value is worth keeping."""

    def evict(self, key: Digest) -> Entry:
        """Take a victim out."""


Policies = Callable[[Callable[[], float], Ageing], Policy]
"""Makes a policy for a capacity and an inflation, as the store does."""


@dataclass(frozen=True)
class Value(Socket):
    """Stands for a recorded value."""

    identity_: int
    size: int

    def nbytes(self) -> int:
        """The bytes that were recorded."""
        return self.size


class Exact(Value):
    """A value that was known by content."""


class Promised(Value):
    """A value that was known by recipe."""

    by_value = False


class Clock:
    """Seconds that pass only when a node says so."""

    def __init__(self) -> None:
        self.now = 0.0

    def perf_counter(self) -> float:
        """In place of `time.perf_counter`, which all of the engine goes by."""
        return self.now


@dataclass(frozen=True)
class Replayed:
    """What a replay came to."""

    seconds: float
    """Of all nodes that ran."""
    peak: int
    """The most bytes held after a run."""


def replay(trace: Trace, capacity: int, policies: Policies, before: Callable[[int], None] = lambda _: None) -> Replayed:
    """Do all runs of a trace with `capacity` bytes of memory. `before` is told the number of each run that begins."""
    clock = Clock()
    registry = Registry([_node(shape, trace, clock) for shape in sorted({_shape(call) for call in trace.calls})])
    peak = 0
    with patch("time.perf_counter", clock.perf_counter), patch("engine.store.Gdsf", policies):
        engine = Engine(registry, memory=capacity)
        for number, run in enumerate(trace.runs):
            before(number)
            engine.run(_graph(trace, run))
            peak = max(peak, engine.store.statement()["device"])
    return Replayed(clock.now, peak)


def _shape(call: Call) -> tuple[bool, ...]:
    """Whether a call has inputs, then for each output whether it is exact; one node type serves all of a shape."""
    return bool(call.inputs), *(value.exact for value in call.outputs)


def _type(shape: Sequence[bool]) -> str:
    linked, *kinds = shape
    return ".".join(["linked" if linked else "leaf", *("exact" if exact else "promised" for exact in kinds)])


def _node(shape: Sequence[bool], trace: Trace, clock: Clock) -> Callable[..., Any]:
    linked, *kinds = shape
    sockets = [Exact if exact else Promised for exact in kinds]
    outputs: Any = NamedTuple("outputs", [(f"o{port}", socket) for port, socket in enumerate(sockets)])  # type: ignore[misc]

    def made(call: int) -> Any:
        """Take the recorded time, and give what stands for the recorded values."""
        clock.now += trace.calls[call].seconds
        values = trace.calls[call].outputs
        return outputs(*(socket(value.identity, value.size) for socket, value in zip(sockets, values, strict=True)))

    def made_from(call: int, of: tuple[Value, ...]) -> Any:  # noqa: ARG001  only its identities count
        """Do the same, once the inputs are there."""
        return made(call)

    function = made_from if linked else made
    function.__annotations__["return"] = outputs
    return node(_type(shape), version=1)(function)


def _graph(trace: Trace, run: Run) -> Graph:
    makers: dict[int, str] = {}
    nodes: dict[str, Any] = {}
    for number in run.calls:
        call = trace.calls[number]
        inputs = {"of": [makers[identity] for identity in call.inputs]} if call.inputs else {}
        nodes[f"c{number}"] = {"type": _type(_shape(call)), "params": {"call": number}, "inputs": inputs}
        for port, value in enumerate(call.outputs):
            makers[value.identity] = f"c{number}.o{port}"
    outputs = {f"w{identity}": makers[identity] for identity in run.wanted}
    return Graph.parse({"format": "calotype/1", "nodes": nodes, "outputs": outputs})
