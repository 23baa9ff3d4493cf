"""One run: which step is next, what it is called with, what becomes of what it gave, and the report of it all."""

import copy
import heapq
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

from engine import errors
from engine.budget import Ledger
from engine.context import CancelToken, Context, Preview
from engine.digest import Digest
from engine.event import Event, NodeFinished, NodeMeasured, NodeProgress, Outcome, Trouble, Warned
from engine.host import Host
from engine.interim import Interim
from engine.models import ModelPool, ModelRef
from engine.node import NodeDef
from engine.param import Param
from engine.plan import Mark, Survey
from engine.program import Port, Source, Step
from engine.socket import Int, Socket
from engine.store import Store
from engine.trace import Record, Records, Trace, Traces

Listener = Callable[[Event], None]
Kind = tuple[str, tuple[Digest | None, ...]]
"""What steps have in common that are called together: the type of the node, and the models that it is given."""


@dataclass(frozen=True, slots=True)
class NodeReport:
    """What became of one node: the seconds that it ran, and those that were `saved` by finding what it gave before.

    `warnings` are what it said about what it gave, now or then. `resumed` is how many steps it recalled, and of how
    many, where it did not begin at the beginning.
    """

    type: str
    outcome: Outcome
    reason: str
    seconds: float
    needs: tuple[str, ...] = ()
    saved: float = 0.0
    warnings: tuple[str, ...] = ()
    resumed: tuple[int, int] = (0, 0)


class Bounds:
    """What calls may ask for and give; this one allows everything. A refusal is a ValueError, and fails the node."""

    def before(self, definition: NodeDef, arguments: Mapping[str, Any]) -> None:
        """Judge the arguments of a call."""

    def after(self, definition: NodeDef, outputs: Sequence[Socket]) -> None:
        """Judge what it gave."""


@dataclass(frozen=True)
class Resources:
    """What a run works with; one engine owns them."""

    device: Host
    store: Store
    traces: Traces
    models: ModelPool
    ledger: Ledger
    bounds: Bounds = field(default_factory=Bounds)
    lock: AbstractContextManager[object] = field(default_factory=threading.RLock)
    """Guards all of these while a node works."""


@dataclass
class Run:
    """One run of one survey. `strict` turns a value re-made differently into an error."""

    id: str
    survey: Survey
    wanted: Mapping[str, Port]
    resources: Resources
    exact: bool = False
    strict: bool = False
    listener: Listener = lambda _: None
    token: CancelToken = field(default_factory=CancelToken)
    last: Records = field(default_factory=Records)
    compiled: bool = False

    def __post_init__(self) -> None:
        """Nothing has happened yet."""
        self.values: dict[str, Socket] = {}
        self.postponed: dict[int, Kind] = {}
        """Steps that are ready, and wait to be called together with others of their kind."""
        self.flying: set[int] = set()
        """Steps that are being called."""
        self.shared: set[int] = set()
        self.ended: BaseException | None = None
        """Cancelled or FileChanged, where that ended the run."""
        self.failures: dict[str, BaseException] = {}
        self.reports: dict[str, NodeReport] = {}
        self.ran: dict[int, float] = {}
        self._alarmed: set[str] = set()
        self._warned: dict[int, tuple[str, ...]] = {}
        self._failed: dict[int, str] = {}
        self._resumed: dict[int, tuple[int, int]] = {}
        self._touched: set[Digest] = set()

    @property
    def idle(self) -> bool:
        """Nothing runs or can run at present: everything is done, or waits for something that failed."""
        return not self.survey.ready and not self.postponed and not self.flying

    def advance(self, *, company: bool) -> "Call | None":
        """The next call that has to run now; None where there is none, or what is left may be fused.

        In `company` other runs may have made a value meanwhile: it is taken instead. Raises Cancelled, FileChanged.
        """
        self.token.check()
        while self.survey.ready:
            position = -heapq.heappop(self.survey.ready)
            if company and self.take(position):
                continue
            if self._may_fuse(position):
                self.postponed[position] = self._kind(position)
            elif (call := self.call(position)) is not None:
                return call
        return None

    def collect(self) -> bool:
        """Fetch the wanted values; False where one is damaged or gone, and is made again."""
        for name, port in self.wanted.items():
            identity = self.survey.identity(port)
            if identity is None or name in self.values:
                continue
            value = self._value(identity)
            if value is not None:
                self.values[name] = value
            else:
                self.survey.want(identity)
                if not self.idle:
                    return False
        return True

    def conclude(self) -> None:
        """Settle the reports, and announce what did not have to run."""
        self.reports = self._reports()
        for node, report in self.reports.items():
            if report.outcome in (Outcome.HIT, Outcome.UNNEEDED):
                self._tell_warnings(node, report.warnings)
                self.listener(NodeFinished(self.id, node, report.type, report.outcome, report.reason))

    def _reports(self) -> dict[str, NodeReport]:
        """What became of every node, in topological order."""
        program, found = self.survey.program, dict[int, NodeReport]()
        for position in self.survey.order:
            step = program.steps[position]
            outcome, reason = self._outcome(position, step, found)
            seconds = self.ran.get(position, 0.0)
            trace = self._trace(position)
            saved = trace.seconds if trace and outcome is Outcome.HIT else 0.0
            warnings = self._warned.get(position, trace.warnings if trace else ())
            needs = program.needs(step)
            resumed = self._resumed.get(position, (0, 0))
            found[position] = NodeReport(
                step.definition.type, outcome, reason, seconds, needs, saved, warnings, resumed
            )
        reports = {program.steps[position].id: report for position, report in found.items()}
        for step in program.steps:
            if step.id not in reports:
                unneeded = (Outcome.UNNEEDED, "not asked for", 0.0)
                reports[step.id] = NodeReport(step.definition.type, *unneeded, program.needs(step))
        return reports

    def _trace(self, position: int) -> Trace | None:
        key = self.survey.marks[position].key
        return self.resources.traces.get(key) if key else None

    def _tell_warnings(self, node: str, warnings: Sequence[str]) -> None:
        for message in warnings:
            self.listener(Warned(self.id, node, message))

    def records(self) -> dict[str, Record]:
        """What the settled nodes are, where that is new, for the explanations of the next run."""
        found: dict[str, Record] = {}
        for position in self.survey.order:
            mark, node = self.survey.marks[position], self._step(position).id
            settled = mark.key is not None and mark.identified and (mark.done or not mark.todo)
            if not settled or position in self._failed or mark.key is None:
                continue
            last = self.last.get(node)
            if last is None or last.key != mark.key.hex():
                found[node] = self.survey.record(position)
        return found

    def _may_fuse(self, position: int) -> bool:
        return not self.exact and self._step(position).definition.many is not None

    def take(self, position: int) -> bool:
        """Settle a step with what another run has made of it, if so."""
        made = self.made(position)
        if made is not None:
            self.shared.add(position)
            self.survey.finish(position, made)
        return made is not None

    def made(self, position: int) -> tuple[Digest, ...] | None:
        """What a step that is ready gives, where that is there already."""
        trace = self.resources.traces.get(self.key(position))
        there = trace is not None and all(self.survey.available(identity) for identity in trace.outputs)
        return trace.outputs if trace is not None and there else None

    def key(self, position: int) -> Digest:
        """The key of a step that is ready."""
        key = self.survey.marks[position].key
        assert key is not None
        return key

    def models_ahead(self) -> Iterator[ModelRef[Any]]:
        """The models that are given to steps which have to run yet, as far as that is known."""
        for position, mark in self.survey.marks.items():
            if mark.todo and not mark.done:
                known = (self.survey.identity(port) for port in self._models(self._step(position)))
                values = (self.resources.store.get(identity) for identity in known if identity is not None)
                yield from (value for value in values if isinstance(value, ModelRef))

    def _kind(self, position: int) -> "Kind":
        """The type of the node, and the models that it is given."""
        step = self._step(position)
        return step.definition.type, tuple(self.survey.identity(port) for port in self._models(step))

    def _models(self, step: Step) -> Iterator[Port]:
        """The outputs that a step takes models from."""
        for source in step.sources:
            entry = step.definition.inputs.get(source.name)
            if entry is not None and issubclass(entry.socket, ModelRef):
                yield from source.ports

    def again(self, position: int) -> None:
        """A step that was taken up did not run; it is ready still."""
        self.postponed.pop(position, None)
        self.flying.discard(position)
        heapq.heappush(self.survey.ready, -position)

    def call(self, position: int) -> "Call | None":
        """Everything one call needs; None where a value has to be made again first, or a literal is refused."""
        self.postponed.pop(position, None)
        step = self._step(position)
        values: dict[Digest, Socket] = {}
        for identity in self.survey.sources(position):
            value = self._value(identity)
            if value is None:
                self.survey.lost(position, identity)
            else:
                values[identity] = value
        mark = self.survey.marks[position]
        if mark.missing:
            return None
        context = self._context(step)
        try:
            arguments = self._arguments(step, values, mark.files)
            self.resources.bounds.before(step.definition, arguments)
        except ValueError as error:
            self._fail(position, error)
            return None
        if step.definition.context:
            arguments[step.definition.context] = context
        inputs = {name: stamps for name in step.definition.inputs if (stamps := _stamps(arguments.get(name)))}
        self.flying.add(position)
        return Call(self, position, step, mark.reason, arguments, context, inputs)

    def _arguments(self, step: Step, values: Mapping[Digest, Socket], files: Mapping[str, Any]) -> dict[str, Any]:
        arguments: dict[str, Any] = {**copy.deepcopy(dict(step.values)), **files}
        for source in step.sources:
            linked = [values[self._identity_of(source, index)] for index in range(len(source.ports))]
            if source.param is not None:
                arguments[source.name] = _scalar(source.param, linked[0])
            else:
                arguments[source.name] = tuple(linked) if source.many else linked[0]
        return arguments

    def _identity_of(self, source: Source, index: int) -> Digest:
        identity = self.survey.identity(source.ports[index])
        assert identity is not None
        return identity

    def _value(self, identity: Digest) -> Socket | None:
        given = self.survey.given.get(identity)
        if given is not None:
            return given
        value = self.resources.store.get(identity)
        if value is not None and identity not in self._touched:
            self._touched.add(identity)
            self.resources.store.use(identity)
        return value

    def _context(self, step: Step) -> Context:
        def listen(done: int, total: int, preview: Preview | None) -> None:
            self.listener(NodeProgress(self.id, step.id, done, total, preview))

        def measure(name: str, value: float) -> None:
            self.listener(NodeMeasured(self.id, step.id, name, value))

        def alarm(message: str) -> None:
            if step.id not in self._alarmed:
                self._alarmed.add(step.id)
                self.listener(Trouble(self.id, step.id, message))

        return Context(
            device=self.resources.device.name,
            exact=self.exact,
            compiled=self.compiled,
            models=self.resources.models,
            listener=listen,
            meter=measure,
            alarm=alarm,
            token=self.token,
            interim=Interim.of(step.definition, self.survey.numerics, self.resources.store, self.resources.lock),
        )

    def settle(self, call: "Call", result: Any) -> None:
        """Take what a call gave, or the exception in its place. Raises Cancelled and FileChanged."""
        self.flying.discard(call.position)
        warnings = self._warned[call.position] = tuple(call.context.warnings)
        try:
            self._check_inputs(call)
            if isinstance(result, BaseException):
                raise result
            outputs = call.step.definition.unpack(result)
            self.resources.bounds.after(call.step.definition, outputs)
            ids = self._identities(call, outputs)
        except errors.FileChanged:
            raise
        except Exception as error:  # noqa: BLE001  of the node, whatever it is
            self._tell_warnings(call.step.id, warnings)
            self._fail(call.position, error, call.seconds)
            return
        mark = self.survey.marks[call.position]
        assert mark.key is not None
        cost = call.cost + call.context.spared
        self.resources.traces.put(mark.key, Trace(ids, cost, warnings))
        for identity, value in zip(ids, outputs, strict=True):
            self._touched.add(identity)
            self._keep(identity, value, cost)
        self.ran[call.position] = call.seconds
        self._resumed[call.position] = call.context.resumed
        self.survey.finish(call.position, ids)
        for identity in ids:
            self.resources.store.unpin(identity)
        self.resources.store.trim()
        step = call.step
        self._tell_warnings(step.id, warnings)
        reason = told(call.reason, call.context.resumed)
        self.listener(NodeFinished(self.id, step.id, step.definition.type, Outcome.RAN, reason, call.seconds))

    def _keep(self, identity: Digest, value: Socket, seconds: float) -> None:
        """On the device, and pinned until the survey has said who waits for it: it is not evicted in between."""
        self.resources.store.pin(identity)
        self.resources.store.put(identity, value.move(self.resources.device.name), seconds, trim=False)

    def _check_inputs(self, call: "Call") -> None:
        for name, stamps in call.stamps.items():
            if _stamps(call.arguments[name]) == stamps and not (self.strict and self._differs_from_promise(call, name)):
                continue
            source = next(source for source in call.step.sources if source.name == name)
            for index in range(len(source.ports)):
                self.resources.store.discard(self._identity_of(source, index))
            raise errors.InputMutated(f"it wrote into its input {name!r}; nodes must copy what they change")

    def _differs_from_promise(self, call: "Call", name: str) -> bool:
        """Whether an input's content is no longer what it is known as: finds the writes that leave no stamp."""
        source = next(source for source in call.step.sources if source.name == name)
        values = call.arguments[name] if source.many else (call.arguments[name],)
        return any(
            value.by_value and value.identity() != self._identity_of(source, index)
            for index, value in enumerate(values)
        )

    def _identities(self, call: "Call", outputs: Sequence[Socket]) -> tuple[Digest, ...]:
        promised = self.survey.marks[call.position].ids
        found: list[Digest] = []
        for (port, socket), promise, value in zip(call.step.definition.outputs.items(), promised, outputs, strict=True):
            actual = value.identity() if socket.by_value else promise
            assert actual is not None
            if promise is not None and actual != promise:
                self._differs(call, port)
            found.append(promise or actual)
        return tuple(found)

    def _differs(self, call: "Call", port: str) -> None:
        message = f"{port!r} differs from what the same call gave before; kept under its old identity"
        if self.strict and not call.context.scarce:
            raise errors.NotDeterministic(message)
        self.listener(Trouble(self.id, call.step.id, message))

    def _fail(self, position: int, error: Exception, seconds: float = 0.0) -> None:
        step = self._step(position)
        self.failures[step.id] = errors.NodeFailed(step.id, step.definition.type, error)
        for equal in (position, *self.survey.equals(position)):
            self._failed[equal] = f"{type(error).__name__}: {error}"
        self.ran[position] = seconds
        self.listener(
            NodeFinished(self.id, step.id, step.definition.type, Outcome.FAILED, self._failed[position], seconds)
        )

    def _outcome(self, position: int, step: Step, found: Mapping[int, NodeReport]) -> tuple[Outcome, str]:
        mark = self.survey.marks[position]
        if position in self._failed:
            return Outcome.FAILED, self._failed[position]
        if position in self.shared:
            return Outcome.HIT, "hit"
        if position in self.ran:
            return Outcome.RAN, mark.reason
        if mark.todo or not mark.identified:
            return self._not_run(position, step, found)
        changed = self._is_cutoff(step, mark, found)
        if all(self.survey.available(identity) for identity in mark.ids if identity is not None):
            return Outcome.HIT, "cutoff" if changed else "hit"
        return Outcome.UNNEEDED, "cutoff" if changed else "evicted"

    def _not_run(self, position: int, step: Step, found: Mapping[int, NodeReport]) -> tuple[Outcome, str]:
        """Why a step that had to run did not."""
        blocking = {*self.survey.producers(position), *(port.step for port in step.needs)}
        failed = [
            self._step(other).id
            for other in sorted(blocking)
            if other in self._failed or (other in found and found[other].outcome is Outcome.FAILED)
        ]
        return (Outcome.FAILED, f"input failed ({', '.join(failed)})") if failed else (Outcome.UNNEEDED, "cancelled")

    def _is_cutoff(self, step: Step, mark: Mark, found: Mapping[int, NodeReport]) -> bool:
        """Early cutoff: something that the step links to ran, and the step is what it was last time all the same."""
        if not self.ran:
            return False
        last = self.last.get(step.id)
        if mark.key is None or last is None or last.key != mark.key.hex():
            return False
        sources = [found[port.step] for port in step.needs]
        return any(
            source.reason == "cutoff" or (source.outcome is Outcome.RAN and source.reason != "evicted")
            for source in sources
        )

    def _step(self, position: int) -> Step:
        return self.survey.program.steps[position]


@dataclass(slots=True, eq=False)
class Call:
    """One call of a node: the run that it belongs to, its step, and everything that the function takes."""

    run: Run
    position: int
    step: Step
    reason: str
    arguments: dict[str, Any]
    context: Context
    stamps: Mapping[str, tuple[Any, ...]]
    seconds: float = 0.0
    """What it took so far."""
    cost: float = 0.0
    """What this attempt took of them, but for loading models."""

    def again(self, *, scarce: bool) -> None:
        """Memory ran out: it is made once more."""
        self.context.again(scarce=scarce)
        self.cost = 0.0


def told(reason: str, resumed: tuple[int, int]) -> str:
    """The reason why a node ran, and how much of it was recalled."""
    done, total = resumed
    return f"{reason}; {done} of {total} steps recalled" if done else reason


def _stamps(value: object) -> tuple[Any, ...]:
    """Stamps of an input's values; nothing where none of them can be written into."""
    values = value if isinstance(value, tuple) else (value,)
    stamps = tuple(item.stamp() for item in values if isinstance(item, Socket))
    return stamps if any(stamp is not None for stamp in stamps) else ()


def _scalar(param: Param, linked: Socket) -> Any:
    """The literal that a linked value stands for, judged as if it had been written."""
    raw = getattr(linked, "value", None)
    if param.fresh is not None and raw == param.fresh.when:
        raise ValueError(f"parameter {param.name!r}: {raw} draws a number only where it is a literal, not where linked")
    if param.scalar is Int and isinstance(raw, float) and raw.is_integer():
        raw = int(raw)
    try:
        return param.parse(raw).value
    except ValueError as error:
        raise ValueError(f"parameter {param.name!r} from its link: {error}") from error
