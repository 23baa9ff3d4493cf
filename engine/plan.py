"""For every node: will it run, and why. The algorithm is specified in docs/engine.md.

A Survey walks the ancestors of the requested outputs. It *identifies*: key -> trace -> identities, where a missing
trace of a content-identified output means that the node must run before anything downstream can be keyed. And it
*demands*: a wanted identity that no tier has makes its producer run, and so on back, through missing values only.
Without running anything it is the plan; the loop in `run` feeds results back into it until nothing is left.
"""

import heapq
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from hashlib import sha256

from engine.digest import Digest, digest, encode
from engine.errors import FileError, GraphError, Problem
from engine.file import File, Files
from engine.program import Port, Program, Step
from engine.socket import Socket
from engine.store import Store
from engine.trace import Record, Records, Traces

Identities = tuple[Digest | None, ...]


class Verdict(StrEnum):
    """What a plan says of a node."""

    RUN = "run"
    MAY_RUN = "may run"
    HIT = "hit"
    UNNEEDED = "unneeded"


@dataclass(frozen=True, slots=True)
class Planned:
    """One node of a plan."""

    node: str
    type: str
    verdict: Verdict
    reason: str
    needs: tuple[str, ...] = ()


@dataclass(slots=True)
class Mark:
    """What a survey knows of one step."""

    key: Digest | None = None
    ids: Identities = ()
    traced: bool = False
    todo: bool = False
    done: bool = False
    missing: int = 0
    reason: str = ""
    files: Mapping[str, File] = field(default_factory=dict)

    @property
    def identified(self) -> bool:
        """Every output has its identity."""
        return bool(self.ids) and None not in self.ids


class Survey:
    """One pass over a program, from requested outputs back to what has to run."""

    def __init__(
        self,
        program: Program,
        wanted: Sequence[Port],
        *,
        numerics: bytes,
        files: Files,
        traces: Traces,
        store: Store,
        records: Records,
    ) -> None:
        """Raises GraphError when a file parameter names nothing that can be read."""
        self.program = program
        self.wanted = wanted
        self.order = program.ancestors(wanted)
        self.marks = {position: Mark() for position in self.order}
        self.given: dict[Digest, Socket] = {}
        self.ready: list[int] = []
        self.numerics = numerics
        self._traces = traces
        self._store = store
        self._records = records
        self._owner: dict[Digest, int] = {}
        self._followers: dict[int, list[int]] = defaultdict(list)
        self._producer: dict[Digest, int] = {}
        self._waiters: dict[Digest, list[int]] = defaultdict(list)
        self._pinned: Counter[Digest] = Counter()
        self._ports: dict[int, list[int]] = defaultdict(list)
        self._consumers: list[list[int]] | None = None
        self._held: dict[int, int] = {}
        for port in wanted:
            self._ports[port.step].append(port.output)
        self._resolve_files(files)
        for position in self.order:
            self._identify(position)
        for position in self._before_unkeyed():
            self._hold(position)

    def close(self) -> None:
        """Let go of everything that was pinned."""
        for identity in self._pinned.elements():
            self._store.unpin(identity)
        self._pinned.clear()

    def available(self, identity: Digest) -> bool:
        """Whether the value can be had without running anything."""
        return identity in self.given or identity in self._store

    def sources(self, position: int) -> list[Digest]:
        """Identities of everything a keyed step links to, each once."""
        return list(dict.fromkeys(self._source(port) for port in self.program.steps[position].needs))

    def identity(self, port: Port) -> Digest | None:
        """The identity of an output, as far as it is known."""
        ids = self.marks[port.step].ids
        return ids[port.output] if ids else None

    def equals(self, position: int) -> list[int]:
        """Steps that wait for this one because they are the same call."""
        return list(self._followers.get(position, ()))

    def producers(self, position: int) -> list[int]:
        """The steps that make what a step links to; with equal nodes, not always those that it links to."""
        known = (self.identity(port) for port in self.program.steps[position].needs)
        return [self._producer[identity] for identity in known if identity in self._producer]

    def finish(self, position: int, ids: tuple[Digest, ...]) -> None:
        """A step has run and given these identities: whoever waited for it may go on."""
        mark = self.marks[position]
        mark.done = True
        for identity in ids:
            for waiter in self._waiters.pop(identity, ()):
                self._arrived(waiter)
        changed = [position, *self._followers.pop(position, ())]
        for known in changed:
            self.marks[known].ids = ids
            self._hold(known)
        for identity in self.sources(position):
            self._unpin(identity)
        self._spread(changed)

    def lost(self, position: int, identity: Digest) -> None:
        """A value that was thought to be there is not: make it again, then come back to this step."""
        mark = self.marks[position]
        mark.missing += 1
        self._waiters[identity].append(position)
        producer = self._producer[identity]
        self._again(producer)
        self.demand(producer)

    def demand(self, position: int) -> None:
        """Make a step run, and every step whose value it lacks."""
        stack = [position]
        while stack:
            position = stack.pop()
            mark = self.marks[position]
            if mark.todo:
                continue
            mark.todo = True
            mark.reason = mark.reason or self._explain(position)
            for identity in self.sources(position):
                self._pin(identity)
                if not self.available(identity):
                    mark.missing += 1
                    self._waiters[identity].append(position)
                    self._again(self._producer[identity])
                    stack.append(self._producer[identity])
            if not mark.missing:
                heapq.heappush(self.ready, -position)

    def want(self, identity: Digest) -> None:
        """A requested output is known by now: have it made unless some tier has it."""
        self._pin(identity)
        if not self.available(identity):
            self._again(self._producer[identity])
            self.demand(self._producer[identity])

    def planned(self) -> Iterator[Planned]:
        """The verdicts, in topological order; nodes that nothing asked for come last."""
        lacking = self._lacking()
        for position in self.order:
            step = self.program.steps[position]
            verdict = (Verdict.MAY_RUN, self._explain(position)) if position in lacking else self.verdict(position)
            yield Planned(step.id, step.definition.type, *verdict, needs=self.program.needs(step))
        for position, step in enumerate(self.program.steps):
            if position not in self.marks:
                needs = self.program.needs(step)
                yield Planned(step.id, step.definition.type, Verdict.UNNEEDED, "not asked for", needs)

    def _lacking(self) -> set[int]:
        """Steps whose values are known but not there, and would have to be made for something that may run."""
        found: set[int] = set()
        for position in reversed(self.order):
            mark = self.marks[position]
            if position not in found and (mark.key is not None or mark.done):
                continue
            known = [self.identity(port) for port in self.program.steps[position].needs]
            missing = {self._producer[each] for each in known if each is not None and not self.available(each)}
            found |= {producer for producer in missing if not self.marks[producer].todo}
        return found

    def verdict(self, position: int) -> tuple[Verdict, str]:
        """Whether a step will run, and why."""
        mark = self.marks[position]
        if mark.todo:
            return Verdict.RUN, mark.reason
        if not mark.identified:
            if mark.key is not None:
                return Verdict.HIT, "hit"
            return Verdict.MAY_RUN, f"input may change ({', '.join(self._unknown(position))})"
        if all(self.available(identity) for identity in mark.ids if identity is not None):
            return Verdict.HIT, "hit"
        return Verdict.UNNEEDED, "evicted"

    def record(self, position: int) -> Record:
        """What this step is now, for later explanations."""
        step, mark = self.program.steps[position], self.marks[position]
        assert mark.key is not None
        inputs = {source.name: b"".join(self._source(port) for port in source.ports).hex() for source in step.sources}
        files = {name: file.digest.hex() for name, file in mark.files.items()}
        canonical = dict(step.canonical)
        return Record(step.definition.type, step.definition.version, mark.key.hex(), canonical, files, inputs)

    def _resolve_files(self, files: Files) -> None:
        problems: list[Problem] = []
        known: dict[tuple[type[File], str], File] = {}
        for position in self.order:
            step = self.program.steps[position]
            if not step.files:
                continue
            found: dict[str, File] = {}
            for name, named in step.files.items():
                try:
                    found[name] = known[named] = known.get(named) or files.resolve(*named)
                except FileError as error:
                    problems.append(Problem(f"nodes.{step.id}.params.{name}", str(error), "file"))
            self.marks[position].files = found
        if problems:
            raise GraphError(problems)

    def _source(self, port: Port) -> Digest:
        identity = self.marks[port.step].ids[port.output]
        assert identity is not None
        return identity

    def _identify(self, position: int) -> None:
        step, mark = self.program.steps[position], self.marks[position]
        if step.argument is not None:
            self._give(step.argument.move(self._store.place), mark, position)
        else:
            mark.key = self._key(step, mark)
            if mark.key is None:
                return
            self._recall(position, step, mark)
            self._unhold(step)
        for identity in mark.ids:
            if identity is not None:
                self._producer.setdefault(identity, position)
        if position in self._ports:
            self._want_outputs(position)

    def _give(self, value: Socket, mark: Mark, position: int) -> None:
        identity = value.identity()
        self.given[identity] = value
        mark.ids, mark.done = (identity,), True
        self._producer.setdefault(identity, position)

    def _key(self, step: Step, mark: Mark) -> Digest | None:
        state = sha256(self.numerics + step.head)
        if mark.files:
            state.update(encode({name: file.digest for name, file in mark.files.items()}))
        marks = self.marks
        for source in step.sources:
            state.update(source.prefix)
            for port in source.ports:
                ids = marks[port.step].ids
                if not ids or (identity := ids[port.output]) is None:
                    return None
                state.update(identity)
        return state.digest()

    def _recall(self, position: int, step: Step, mark: Mark) -> None:
        """Identities from the trace; from the recipe where there is none; by running where that is not enough."""
        assert mark.key is not None
        owner = self._owner.setdefault(mark.key, position)
        if (trace := self._traces.get(mark.key)) is not None:
            mark.ids, mark.traced = trace.outputs, True
            return
        mark.ids = recipe_identities(step, mark.key)
        if None not in mark.ids:
            return
        if owner == position:
            self.demand(position)
        elif self.marks[owner].identified:
            mark.ids = self.marks[owner].ids
        else:
            self._followers[owner].append(position)

    def _again(self, producer: int) -> None:
        """A value that was made in this run, and is gone already, can be made once more."""
        mark = self.marks[producer]
        if mark.done:
            mark.todo = mark.done = False

    def _hold(self, position: int) -> None:
        """Keep what a step gave until everything that links to it is keyed: only then is it known who needs it."""
        linking = (self.marks.get(consumer) for consumer in self._linking(position))
        waiting = sum(mark is not None and mark.key is None for mark in linking)
        if waiting and position not in self._held:
            self._held[position] = waiting
            for identity in self.marks[position].ids:
                if identity is not None:
                    self._pin(identity)

    def _before_unkeyed(self) -> set[int]:
        """Identified steps that something links to which cannot be keyed yet."""
        unkeyed = (position for position, mark in self.marks.items() if mark.key is None and not mark.done)
        sources = {port.step for position in unkeyed for port in self.program.steps[position].needs}
        return {position for position in sources if self.marks[position].identified}

    def _unhold(self, step: Step) -> None:
        for position in {port.step for port in step.needs} & self._held.keys():
            self._held[position] -= 1
            if not self._held[position]:
                del self._held[position]
                for identity in self.marks[position].ids:
                    if identity is not None:
                        self._unpin(identity)

    def _linking(self, position: int) -> list[int]:
        if self._consumers is None:
            self._consumers = self.program.consumers
        return self._consumers[position]

    def _want_outputs(self, position: int) -> None:
        mark = self.marks[position]
        for output in self._ports[position]:
            identity = mark.ids[output]
            if identity is not None:
                self.want(identity)

    def _spread(self, changed: Iterable[int]) -> None:
        """Identify what can be identified now, downstream of `changed`, in topological order."""
        heap: list[int] = []
        for position in changed:
            self._settle(position)
            heap += self._linking(position)
        heapq.heapify(heap)
        while heap:
            position = heapq.heappop(heap)
            if position not in self.marks or self.marks[position].key is not None:
                continue
            self._identify(position)
            if self.marks[position].key is not None:
                for consumer in self._linking(position):
                    heapq.heappush(heap, consumer)

    def _settle(self, position: int) -> None:
        for identity in self.marks[position].ids:
            if identity is not None:
                self._producer.setdefault(identity, position)
        if position in self._ports:
            self._want_outputs(position)

    def _arrived(self, waiter: int) -> None:
        mark = self.marks[waiter]
        mark.missing -= 1
        if mark.missing == 0 and not mark.done:
            heapq.heappush(self.ready, -waiter)

    def _pin(self, identity: Digest) -> None:
        self._pinned[identity] += 1
        self._store.pin(identity)

    def _unpin(self, identity: Digest) -> None:
        if self._pinned[identity] > 0:
            self._pinned[identity] -= 1
            self._store.unpin(identity)

    def _unknown(self, position: int) -> list[str]:
        step = self.program.steps[position]
        return [source.name for source in step.sources if any(self.identity(port) is None for port in source.ports)]

    def _explain(self, position: int) -> str:
        mark = self.marks[position]
        if mark.traced:
            return "evicted"
        last = self._records.get(self.program.steps[position].id)
        return explain(last, self.record(position))


def recipe_identities(step: Step, key: Digest) -> Identities:
    """Identities that are known without running; None where the content decides."""
    return tuple(
        None if socket.by_value else digest("recipe", key, port) for port, socket in step.definition.outputs.items()
    )


def explain(last: Record | None, now: Record) -> str:
    """Why a node that has no trace runs, by comparison with what it was last."""
    if last is None or last.type != now.type:
        return "first run"
    if last.version != now.version:
        return f"version changed ({last.version} → {now.version})"
    reasons = []
    if params := _differences(last.params, now.params):
        listed = ", ".join(f"{name}: {_short(last.params, name)} → {_short(now.params, name)}" for name in params)
        reasons.append(f"parameter changed ({listed})")
    if files := _differences(last.files, now.files):
        reasons.append(f"file changed ({', '.join(files)})")
    if inputs := _differences(last.inputs, now.inputs):
        reasons.append(f"input changed ({', '.join(inputs)})")
    return "; ".join(reasons) or ("evicted" if last.key == now.key else "settings changed")


def _differences(last: Mapping[str, object], now: Mapping[str, object]) -> list[str]:
    absent = object()
    return [name for name in sorted({*last, *now}) if last.get(name, absent) != now.get(name, absent)]


def _short(values: Mapping[str, object], name: str) -> str:
    if name not in values:
        return "linked"
    text = str(values[name])
    return text if len(text) <= 40 else text[:37] + "..."
