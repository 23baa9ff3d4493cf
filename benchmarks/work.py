"""An evening's work under several policies of what is kept: the seconds of all nodes that had to run."""

from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

from benchmarks import evening, trace
from benchmarks.measure import Answer, Beside, Goal, Row
from benchmarks.replay import replay
from benchmarks.trace import Run, Trace
from engine.eviction import Gdsf

QUESTION = "How many seconds does an evening's work compute, by who decides what is kept?"
UNLIMITED = 1 << 60
NODE_CACHE_SIZE = 512
"""InvokeAI's default: how many nodes' outputs are kept."""
COMFY = "ComfyUI"
THIRD = 1 / 3
SMALL = 1024
"""Bytes up to which a value is taken for a number, a text or a reference, which everybody knows by content."""


@dataclass(frozen=True)
class Graph:
    """A run's calls in topological order, each with the calls that its inputs come from; and those asked for.

    `ways` are those of the inputs that no peer knows by content: pictures, masks, latents and conditionings.
    """

    links: Mapping[int, tuple[int, ...]]
    ways: Mapping[int, tuple[int, ...]]
    wanted: tuple[int, ...]

    @classmethod
    def of(cls, recorded: Trace, run: Run) -> "Graph":
        """The graph of a recorded run; of several calls that gave the same, the first counts as where it comes from."""
        makers: dict[int, int] = {}
        large: set[int] = set()
        links, ways = {}, {}
        for call in run.calls:
            inputs = recorded.calls[call].inputs
            links[call] = tuple(makers[identity] for identity in inputs)
            ways[call] = tuple(makers[identity] for identity in inputs if identity in large)
            for value in recorded.calls[call].outputs:
                makers.setdefault(value.identity, call)
                if value.size > SMALL:
                    large.add(value.identity)
        return cls(links, ways, tuple(makers[identity] for identity in run.wanted))


@dataclass
class Comfy:
    """ComfyUI's default: what the last graph gave is kept, by all that led to it, and forgotten with the next graph."""

    seconds: float = 0.0
    _kept: set[int] = field(default_factory=set)
    _numbers: dict[tuple[int, ...], int] = field(default_factory=dict)

    def run(self, recorded: Trace, graph: Graph) -> None:
        """Whatever an output needs and was not kept runs."""
        keys: dict[int, int] = {}
        for call, links in graph.ways.items():
            way = (call, *(keys[link] for link in links))
            keys[call] = self._numbers.setdefault(way, len(self._numbers))
        self._kept &= set(keys.values())
        pending = list(graph.wanted)
        while pending:
            call = pending.pop()
            if keys[call] not in self._kept:
                self._kept.add(keys[call])
                self.seconds += recorded.calls[call].seconds
                pending += graph.links[call]


@dataclass
class Invoke:
    """InvokeAI's: every node is looked up by its fields, in which inputs are names that each output got when made."""

    seconds: float = 0.0
    _kept: OrderedDict[tuple[int, ...], int] = field(default_factory=OrderedDict)
    _names: int = 0

    def run(self, recorded: Trace, graph: Graph) -> None:
        """All nodes of the graph, one after the other; the one that was not used for longest goes."""
        names: dict[int, int] = {}
        for call, links in graph.ways.items():
            key = (call, *(names[link] for link in links))
            if key not in self._kept:
                self._names += 1
                self._kept[key] = self._names
                self.seconds += recorded.calls[call].seconds
            self._kept.move_to_end(key)
            names[call] = self._kept[key]
            if len(self._kept) > NODE_CACHE_SIZE:
                self._kept.popitem(last=False)


@dataclass
class Forgetful:
    """Nothing is kept: every run computes its whole graph."""

    seconds: float = 0.0

    def run(self, recorded: Trace, graph: Graph) -> None:
        """All of it."""
        self.seconds += sum(recorded.calls[call].seconds for call in graph.links)


POLICIES: Mapping[str, Callable[[], Comfy | Invoke | Forgetful]] = {
    COMFY: Comfy,
    "InvokeAI": Invoke,
    "nothing is kept": Forgetful,
}
EVENINGS = {evening.NAME: "an evening", evening.COMPARING: "going back and forth"}


def answer() -> Answer:
    traces = {name: trace.load(name) for name in EVENINGS}
    rows = [row for name, recorded in traces.items() for row in _rows(EVENINGS[name], recorded)]
    return Answer(QUESTION, rows, notes=_notes(traces))


def _rows(what: str, recorded: Trace) -> Iterator[Row]:
    ours = round(replay(recorded, UNLIMITED, Gdsf).seconds, 9)
    yield Row(what, ours, Beside("every call once", round(recorded.compulsory(), 9)), Goal(1, of="ratio"))
    for name, policy in POLICIES.items():
        made = policy()
        for run in recorded.runs:
            made.run(recorded, Graph.of(recorded, run))
        yield Row(what, ours, Beside(name, made.seconds), Goal(THIRD, of="ratio") if name == COMFY else None)


def _notes(traces: Mapping[str, Trace]) -> tuple[str, ...]:
    evening_, comparing = traces.values()
    recorded = (
        f"The evening: {len(evening_.runs)} runs over two saved graphs, most of them of something new. Back and forth: "
        f"{len(comparing.runs)} runs of inpaint after img2img, between two values of each of four settings. Both stand "
        f"in `evening.py`, recorded on {comparing.about['recorded']}."
    )
    simulated = (
        "The same seconds per node under every policy, and memory without limit. Ours is the real engine. What nobody "
        "can do without is every call once: a peer's seconds beyond that could be saved. Where the recording does not "
        "tell which of two equal values a node took, the peers are given the better one."
    )
    comfy = (
        "ComfyUI keeps what the last prompt's nodes gave (`--cache-classic`, the default until 2026), so that a change "
        "that is taken back is computed again, and so is the other graph."
    )
    invoke = (
        f"InvokeAI keeps the outputs of {NODE_CACHE_SIZE} nodes (`node_cache_size`), more than these evenings have. "
        "Its outputs have names of their own, so that nodes after one that gave the same as before run again. Neither "
        "program keeps anything over a restart."
    )
    return recorded, simulated, comfy, invoke
