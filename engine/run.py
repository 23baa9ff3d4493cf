"""The loop: take a step that is ready, run it, feed what it gave back into the survey, until nothing is left."""

import copy
import heapq
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from engine import errors
from engine.budget import Ledger
from engine.context import CancelToken, Context
from engine.digest import Digest
from engine.event import Event, NodeFinished, NodeProgress, NodeStarted, Outcome, Trouble
from engine.host import Host
from engine.models import ModelPool
from engine.param import Param
from engine.plan import Mark, Survey
from engine.program import Source, Step
from engine.socket import Int, Socket
from engine.store import Store
from engine.trace import Record, Records, Trace, Traces

Listener = Callable[[Event], None]


@dataclass(frozen=True, slots=True)
class NodeReport:
    """What became of one node."""

    type: str
    outcome: Outcome
    reason: str
    seconds: float
    needs: tuple[str, ...] = ()


@dataclass(frozen=True)
class Resources:
    """What a run works with; one engine owns them."""

    device: Host
    store: Store
    traces: Traces
    models: ModelPool
    ledger: Ledger


@dataclass
class Run:
    """One run of one survey. `strict` turns a value re-made differently into an error."""

    id: str
    survey: Survey
    resources: Resources
    exact: bool = False
    strict: bool = False
    listener: Listener = lambda _: None
    token: CancelToken = field(default_factory=CancelToken)
    last: Records = field(default_factory=Records)

    def __post_init__(self) -> None:
        """Nothing has happened yet."""
        self.failures: dict[str, BaseException] = {}
        self.reports: dict[str, NodeReport] = {}
        self.ran: dict[int, float] = {}
        self._failed: dict[int, str] = {}
        self._touched: set[Digest] = set()

    def loop(self) -> None:
        """Run everything that has to. Raises Cancelled, FileChanged; what a node raises becomes a failure."""
        ready = self.survey.ready
        postponed: list[int] = []
        while ready or postponed:
            if ready:
                position = -heapq.heappop(ready)
                if self._may_fuse(position):
                    postponed.append(position)
                else:
                    self._run([position])
            else:
                self._run(self._group(postponed))

    def values(self, wanted: Mapping[str, Digest]) -> dict[str, Socket]:
        """The wanted values; a damaged one is made again."""
        found: dict[str, Socket] = {}
        for name, identity in wanted.items():
            value = self._value(identity)
            if value is None:
                self.survey.want(identity)
                self.loop()
                value = self._value(identity)
            if value is not None:
                found[name] = value
        return found

    def conclude(self) -> None:
        """Settle the reports, and announce what did not have to run."""
        self.reports = self._reports()
        for node, report in self.reports.items():
            if report.outcome in (Outcome.HIT, Outcome.UNNEEDED):
                self.listener(NodeFinished(self.id, node, report.type, report.outcome, report.reason))

    def _reports(self) -> dict[str, NodeReport]:
        """What became of every node, in topological order."""
        program, found = self.survey.program, dict[int, NodeReport]()
        for position in self.survey.order:
            step = program.steps[position]
            outcome, reason = self._outcome(position, step, found)
            seconds = self.ran.get(position, 0.0)
            found[position] = NodeReport(step.definition.type, outcome, reason, seconds, program.needs(step))
        reports = {program.steps[position].id: report for position, report in found.items()}
        for step in program.steps:
            if step.id not in reports:
                unneeded = (Outcome.UNNEEDED, "not asked for", 0.0)
                reports[step.id] = NodeReport(step.definition.type, *unneeded, program.needs(step))
        return reports

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

    def _group(self, postponed: list[int]) -> list[int]:
        """All the calls of one node type that are ready, in topological order."""
        type_ = self._step(postponed[0]).definition.type
        group = sorted(position for position in postponed if self._step(position).definition.type == type_)
        postponed[:] = [position for position in postponed if position not in group]
        return group

    def _run(self, positions: Sequence[int]) -> None:
        calls = [call for position in positions if (call := self._call(position)) is not None]
        if not calls:
            return
        self.token.check()
        for call in calls:
            self.listener(NodeStarted(self.id, call.step.id, call.step.definition.type, call.reason))
        began = time.perf_counter()
        try:
            returned = self._attempt(calls)
        finally:
            for call in calls:
                call.context.release()
        seconds = (time.perf_counter() - began) / len(calls)
        for call, result in zip(calls, returned, strict=True):
            self._settle(call, result, seconds)

    def _call(self, position: int) -> "_Call | None":
        """Everything one call needs; None where a value has to be made again first, or a literal is refused."""
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
        except ValueError as error:
            self._fail(position, error)
            return None
        if step.definition.context:
            arguments[step.definition.context] = context
        inputs = {name: stamps for name in step.definition.inputs if (stamps := _stamps(arguments.get(name)))}
        return _Call(position, step, mark.reason, arguments, context, inputs)

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
        def listen(done: int, total: int, preview: object) -> None:
            self.listener(NodeProgress(self.id, step.id, done, total, preview))

        return Context(
            device=self.resources.device.name,
            exact=self.exact,
            models=self.resources.models,
            listener=listen,
            token=self.token,
        )

    def _attempt(self, calls: "Sequence[_Call]") -> list[Any]:
        """The out-of-memory ladder: free everything unpinned and try again, then smaller groups, then give up."""
        outcome = self._invoke(calls)
        if not self._ran_out(outcome):
            return outcome
        freed = self.resources.ledger.free_everything()
        self.resources.device.trim()
        outcome = self._invoke(calls)
        if not self._ran_out(outcome):
            return outcome
        if len(calls) > 1:
            half = len(calls) // 2
            return [*self._attempt(calls[:half]), *self._attempt(calls[half:])]
        held = ", ".join(f"{name} {size}" for name, size in self.resources.ledger.statement().items())
        return [
            errors.OutOfMemory(
                f"out of memory on {self.resources.device.name} after freeing {freed} bytes (bytes held: {held}); "
                "use a smaller size, a smaller batch or a smaller model"
            )
        ]

    def _ran_out(self, outcome: Sequence[Any]) -> bool:
        return any(isinstance(item, Exception) and self.resources.device.out_of_memory(item) for item in outcome)

    def _invoke(self, calls: "Sequence[_Call]") -> list[Any]:
        """Run the calls; an exception stands where a result would. Cancelled and FileChanged pass through."""
        definition = calls[0].step.definition
        try:
            with self.resources.device:
                if len(calls) > 1 and definition.many is not None:
                    outcome = list(definition.many([call.arguments for call in calls]))
                else:
                    outcome = [definition.function(**calls[0].arguments)]
                self.resources.device.sync()
        except errors.FileChanged:
            raise
        except Exception as error:  # noqa: BLE001  nodes may raise anything
            return [error] * len(calls)
        if len(outcome) != len(calls):
            wrong = errors.OutputRefused(f"{definition.type}: many gave {len(outcome)} results for {len(calls)} calls")
            return [wrong] * len(calls)
        return outcome

    def _settle(self, call: "_Call", result: Any, seconds: float) -> None:
        try:
            self._check_inputs(call)
            if isinstance(result, Exception):
                raise result
            outputs = call.step.definition.unpack(result)
            ids = self._identities(call, outputs)
        except Exception as error:  # noqa: BLE001  of the node, whatever it is
            self._fail(call.position, error, seconds)
            return
        mark = self.survey.marks[call.position]
        assert mark.key is not None
        cost = max(seconds - call.context.loading, 0.0)
        self.resources.traces.put(mark.key, Trace(ids, cost))
        for identity, value in zip(ids, outputs, strict=True):
            self._touched.add(identity)
            self._keep(identity, value, cost)
        self.ran[call.position] = seconds
        self.survey.finish(call.position, ids)
        for identity in ids:
            self.resources.store.unpin(identity)
        self.resources.store.trim()
        step = call.step
        self.listener(NodeFinished(self.id, step.id, step.definition.type, Outcome.RAN, call.reason, seconds))

    def _keep(self, identity: Digest, value: Socket, seconds: float) -> None:
        """On the device, and pinned until the survey has said who waits for it: it is not evicted in between."""
        self.resources.store.pin(identity)
        self.resources.store.put(identity, value.move(self.resources.device.name), seconds, trim=False)

    def _check_inputs(self, call: "_Call") -> None:
        for name, stamps in call.stamps.items():
            if _stamps(call.arguments[name]) == stamps and not (self.strict and self._differs_from_promise(call, name)):
                continue
            source = next(source for source in call.step.sources if source.name == name)
            for index in range(len(source.ports)):
                self.resources.store.discard(self._identity_of(source, index))
            raise errors.InputMutated(f"it wrote into its input {name!r}; nodes must copy what they change")

    def _differs_from_promise(self, call: "_Call", name: str) -> bool:
        """Whether an input's content is no longer what it is known as: finds the writes that leave no stamp."""
        source = next(source for source in call.step.sources if source.name == name)
        values = call.arguments[name] if source.many else (call.arguments[name],)
        return any(
            value.by_value and value.identity() != self._identity_of(source, index)
            for index, value in enumerate(values)
        )

    def _identities(self, call: "_Call", outputs: Sequence[Socket]) -> tuple[Digest, ...]:
        promised = self.survey.marks[call.position].ids
        found: list[Digest] = []
        for (port, socket), promise, value in zip(call.step.definition.outputs.items(), promised, outputs, strict=True):
            actual = value.identity() if socket.by_value else promise
            assert actual is not None
            if promise is not None and actual != promise:
                self._differs(call.step, port)
            found.append(promise or actual)
        return tuple(found)

    def _differs(self, step: Step, port: str) -> None:
        message = f"{port!r} differs from what the same call gave before; kept under its old identity"
        if self.strict:
            raise errors.NotDeterministic(message)
        self.listener(Trouble(self.id, step.id, message))

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


@dataclass(frozen=True, slots=True)
class _Call:
    position: int
    step: Step
    reason: str
    arguments: dict[str, Any]
    context: Context
    stamps: Mapping[str, tuple[Any, ...]]


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
