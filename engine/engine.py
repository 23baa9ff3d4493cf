"""Engine: owns the device, the store, the traces and the models, and runs graphs one after the other."""

import random
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from engine import event
from engine.budget import Ledger
from engine.catalogue import Catalogue
from engine.context import CancelToken
from engine.digest import Digest, digest
from engine.disk import Disk
from engine.errors import CalotypeError, Cancelled, FileChanged, FileError, GraphError, RunFailed
from engine.event import RunFinished, RunStarted, Trouble
from engine.file import File, Files
from engine.graph import AXES, Graph
from engine.host import Host
from engine.loop import Loop
from engine.models import ModelPool
from engine.plan import Planned, Survey
from engine.program import Port, Program, compile_graph
from engine.recall import Recollection
from engine.registry import Registry
from engine.run import Bounds, Listener, NodeReport, Resources, Run, told
from engine.socket import Socket
from engine.store import Store
from engine.trace import CataloguedDigests, Records, Traces

REPLANS = 3
"""How often a run is planned again because a file changed under it."""
DISK_BUDGET = 16 << 30
"""Bytes of the disk tier, unless said otherwise."""


@dataclass(frozen=True)
class Result:
    """What a run gave: the values of the outputs by name, and what became of every node."""

    run: str
    graph: Graph
    seconds: float
    outputs: Mapping[str, Socket]
    nodes: Mapping[str, NodeReport]
    failures: Mapping[str, BaseException] = field(default_factory=dict)
    files: Mapping[str, File] = field(default_factory=dict)
    """`node.param` -> each file that the run planned with."""
    identities: Mapping[str, Digest] = field(default_factory=dict)
    """What the outputs are known by: equal identities, equal values."""

    def __getitem__(self, name: str) -> Socket:
        """One output. Raises the node's failure where it has none."""
        if name not in self.outputs and self.failures:
            raise RunFailed(self.failures)
        return self.outputs[name]

    def ran(self) -> list[str]:
        """The nodes that ran, in topological order."""
        return [node for node, report in self.nodes.items() if report.outcome is event.Outcome.RAN]

    def report(self, paths: Mapping[str, Sequence[str]] | None = None) -> dict[str, Any]:
        """The report as JSON values; `paths` are the files that the outputs were saved to."""
        nodes = {
            node: {
                "type": report.type,
                "outcome": str(report.outcome),
                "reason": told(report.reason, report.resumed),
                "seconds": round(report.seconds, 6),
                "needs": list(report.needs),
                "warnings": list(report.warnings),
            }
            for node, report in self.nodes.items()
        }
        outputs = {name: list(found) for name, found in (paths or {}).items()}
        return {"run": self.run, "seconds": round(self.seconds, 6), "nodes": nodes, "outputs": outputs}


@dataclass(frozen=True, eq=False)
class Order:
    """A graph to run, for which outputs (None: all), and who listens."""

    graph: Graph
    outputs: Sequence[str] | None = None
    arguments: Mapping[str, Socket] | None = None
    listener: Listener = lambda _: None
    token: CancelToken = field(default_factory=CancelToken)


Outcome = Result | CalotypeError | Cancelled
"""What becomes of an order."""


class Engine:
    """Runs graphs; whatever was computed once, here or by another process with the same `cache`, is found again.

    `memory` and `host_memory` are budgets in bytes for the device (values and models together) and, on an accelerator,
    for the host; the default is half of what is free. `cache` names the folder of the disk tier. `exact` never fuses
    calls; `compiled` lets nodes compile what they run again and again. `strict` makes a value that is re-made
    differently an error. `bounds` judges what nodes are called with and give. Safe to use from several threads: runs
    queue, while `plan` and `recall` answer in between.
    """

    def __init__(
        self,
        registry: Registry,
        *,
        device: Host | None = None,
        files: Files | None = None,
        cache: Path | None = None,
        memory: int | None = None,
        host_memory: int | None = None,
        disk: int = DISK_BUDGET,
        exact: bool = False,
        compiled: bool = False,
        strict: bool = False,
        numerics: Mapping[str, str] | None = None,
        bounds: Bounds | None = None,
    ) -> None:
        self.registry = registry
        self.device = device or Host()
        if exact and compiled:
            raise ValueError("exact, compiled: expected one of them at most; what is compiled differs in its last bits")
        self.exact = exact
        self.compiled = compiled
        self.strict = strict
        self._catalogue = Catalogue(cache) if cache else None
        self.files = files or Files()
        if self._catalogue:
            self.files.remember_in(CataloguedDigests(self._catalogue))
        self._disk = Disk(self._catalogue, registry.sockets, disk) if self._catalogue else None
        ledger = Ledger(self.device.name, self.device.memory() if memory is None else memory)
        host = self._host_ledger(host_memory)
        self.store = Store(ledger, host, self._disk)
        self.traces = Traces(self._catalogue)
        self.records = Records(self._catalogue)
        self._lock = threading.RLock()
        """Guards the books: store, traces, records, models. Free while a node works."""
        self._turn = threading.RLock()
        """Whose run it is."""
        self.files.aside = self._aside
        models = ModelPool(self.files, ledger, self._lock, device=self.device, host=host)
        self._resources = Resources(
            self.device, self.store, self.traces, models, ledger, bounds or Bounds(), self._lock
        )
        settings = {
            "device": self.device.kind,
            "mode": "exact" if exact else "compiled" if compiled else "fast",
            **(numerics or {}),
        }
        self._numerics = digest("numerics", settings)
        self._programs: weakref.WeakKeyDictionary[Graph, Program] = weakref.WeakKeyDictionary()
        self._recollections: weakref.WeakKeyDictionary[Graph, Recollection] = weakref.WeakKeyDictionary()
        self._epoch = 0
        """How often everything was forgotten."""
        self._shut = weakref.finalize(self, _shut, self._disk, self._catalogue)

    def run(
        self,
        graph: Graph,
        outputs: Sequence[str] | None = None,
        *,
        arguments: Mapping[str, Socket] | None = None,
        listener: Listener = lambda _: None,
        token: CancelToken | None = None,
        check: bool = True,
    ) -> Result:
        """Run what the outputs need (default: all of the graph's) and return their values.

        Raises GraphError where the graph is refused, Cancelled, and RunFailed where nodes failed; with `check=False`
        failures are in the result instead, beside whatever the other branches gave.
        """
        found: list[Outcome] = []
        order = Order(graph, outputs, arguments, listener, token or CancelToken())
        self.together([order], lambda _, outcome: found.append(outcome))
        (result,) = found
        if not isinstance(result, Result):
            raise result
        if check and result.failures:
            raise RunFailed(result.failures)
        return result

    def together(
        self,
        orders: Sequence[Order],
        done: Callable[[int, Outcome], None],
        more: Callable[[], Sequence[Order]] = lambda: (),
    ) -> None:
        """Run many graphs side by side: what several of them need runs once, and fusible nodes share their calls.

        `done` gets each order's index and result as soon as it is complete, in whatever order that is: a Result, which
        may have failures, or the GraphError, FileChanged or Cancelled that ended it. Every order keeps its own listener
        and token; one that fails or is cancelled leaves the others alone.

        `more` gives the orders that have come since, counted on from the last index, without waiting for any. It is
        asked before each round of fusible calls, which those of the late orders then join, but not while such calls of
        another kind wait: they are not to wait for ever.
        """
        with self._turn:
            Session(self, orders, done, more).run()

    def recall(self, graph: Graph, outputs: Sequence[str] | None = None, *, timeout: float = -1) -> Result | None:
        """The result of a graph of which nothing has to run, even while another one runs; None where something has to.

        Raises GraphError, and TimeoutError where the engine's books are not free within `timeout` seconds (-1: waits).
        """
        if not self._lock.acquire(timeout=timeout):
            raise TimeoutError("the engine is busy")
        try:
            program = self.program(graph)
            return None if program.unsettled else self._recalled(graph, program, program.wanted(outputs))
        finally:
            self._lock.release()

    def settle(self, graph: Graph) -> Graph:
        """The graph with its fresh values, such as seeds of -1, drawn and written into it. Raises GraphError."""
        with self._lock:
            return self._settled(graph, None)[0]

    def plan(
        self, graph: Graph, outputs: Sequence[str] | None = None, *, arguments: Mapping[str, Socket] | None = None
    ) -> list[Planned]:
        """What a run would do, and why, without running anything. Raises GraphError."""
        with self._lock:
            program = self.program(graph, arguments)
            survey = self._survey(program, list(program.wanted(outputs).values()))
            try:
                return list(survey.planned())
            finally:
                survey.close()

    def program(self, graph: Graph, arguments: Mapping[str, Socket] | None = None) -> Program:
        """The graph resolved against the registry; remembered as long as the graph lives. Raises GraphError."""
        if arguments:
            return compile_graph(graph, self.registry, arguments)
        with self._lock:
            found = self._programs.get(graph)
            if found is None:
                found = self._programs[graph] = self._compile(graph)
                graph.parent = None
            return found

    def flush(self) -> None:
        """Wait until everything is on disk."""
        if self._disk:
            self._disk.flush()

    def held(self) -> Mapping[str, int]:
        """Bytes per tier: values on the device, the host and the disk, and models on the device and on the host."""
        models = self._resources.models
        with self._lock:
            on_host = {"host_models": models.there.held()} if models.there else {}
            return {**self.store.statement(), "models": models.held(), **on_host}

    def clear(self) -> None:
        """Forget all values and traces, on every tier."""
        with self._lock:
            self._epoch += 1
            self.store.clear()
            self.traces.clear()
            self.device.trim()

    def close(self) -> None:
        """Write what is pending and release the cache folder. An engine that is never closed does so at exit."""
        self._shut()

    def __enter__(self) -> Self:
        """Use as a context manager."""
        return self

    def __exit__(self, *exc: object) -> None:
        """Close."""
        self.close()

    def troubles(self) -> Iterator[str]:
        """What is wrong with the cache folder, if anything."""
        for kind, why in (self._disk.unwritten if self._disk else {}).items():
            yield f"{kind} is not kept on disk: {why}"
        if self._catalogue and self._catalogue.trouble:
            yield f"the cache folder is not written to: {self._catalogue.trouble}"

    def _host_ledger(self, budget: int | None) -> Ledger | None:
        if self.device.name == "cpu":
            return None
        return Ledger("cpu", Host().memory() if budget is None else budget)

    def _compile(self, graph: Graph) -> Program:
        if graph.parent is not None:
            base, changes = graph.parent
            known = self._programs.get(base)
            if known is not None and known.editable(changes):
                return known.edited(changes)
        return compile_graph(graph, self.registry)

    def _settled(self, graph: Graph, arguments: Mapping[str, Socket] | None) -> tuple[Graph, Program]:
        """The graph with fresh seeds written into it."""
        if graph.document.sweep is not None:
            graph = self._settled_sweep(graph)
        program = self.program(graph, arguments)
        if not program.unsettled:
            return graph, program
        drawn = {f"{node.partition('[')[0]}.{name}": fresh.draw() for node, name, fresh in program.unsettled}
        graph = graph.set(drawn)
        return graph, self.program(graph, arguments)

    def _settled_sweep(self, graph: Graph) -> Graph:
        """Draw the fresh values that stand on a sweep's axes."""
        sweep = graph.dump()["sweep"]
        drawn = False
        for axis in (sweep[name] for name in AXES if name in sweep):
            for name, values in axis.items():
                fresh = self._fresh(graph, name)
                if fresh is not None and fresh.when in values:
                    axis[name] = [fresh.draw() if value == fresh.when else value for value in values]
                    drawn = True
        return graph.replace(sweep=sweep) if drawn else graph

    def _fresh(self, graph: Graph, name: str) -> Any:
        try:
            node, param = graph.locate(name)
        except GraphError:
            return None  # compiling names it, with everything else
        definition = self.registry.get(graph.node_type(node))
        return definition.params[param].fresh if definition and param in definition.params else None

    def _survey(self, program: Program, wanted: Sequence[Port]) -> Survey:
        return Survey(
            program,
            wanted,
            numerics=self._numerics,
            files=self.files,
            traces=self.traces,
            store=self.store,
            records=self.records,
        )

    def _recalled(self, graph: Graph, program: Program, wanted: Mapping[str, Port]) -> Result | None:
        began = time.perf_counter()
        known = self._recollections.get(graph)
        if known is not None and (result := self._recollected(graph, wanted, known, began)) is not None:
            return result
        survey = self._survey(program, list(wanted.values()))
        try:
            if survey.ready or not all(mark.identified for mark in survey.marks.values()):
                return None
            run = Run(_new_id(), survey, wanted, self._resources, last=self.records)
            if not run.collect() or run.values.keys() != wanted.keys():
                return None
            run.conclude()
            self.records.put(run.records())
            self._recollections[graph] = Recollection.of(survey, wanted, run.reports, self.store, self._epoch)
            return _result(run, graph, time.perf_counter() - began)
        finally:
            survey.close()
            self.store.trim()

    def _recollected(
        self, graph: Graph, wanted: Mapping[str, Port], known: Recollection, began: float
    ) -> Result | None:
        """The result of a graph that was recalled before, where a short look shows that nothing has changed."""
        try:
            if not known.stands(wanted, self.files, self.store, self._epoch):
                return None
        except FileError:
            return None  # a whole look says which
        values = {name: self.store.get(identity) for name, identity in known.identities.items()}
        found = {name: value for name, value in values.items() if value is not None}
        if found.keys() != wanted.keys():
            return None
        for identity in known.identities.values():
            self.store.use(identity)
        self.records.put(self.records.news(known.records))
        self.store.trim()
        seconds = time.perf_counter() - began
        return Result(_new_id(), graph, seconds, found, known.nodes, {}, known.files, known.identities)

    @contextmanager
    def _aside(self) -> Iterator[None]:
        """Let other threads at the books for a while, where this one holds them."""
        try:
            self._lock.release()
        except RuntimeError:
            yield
            return
        try:
            yield
        finally:
            self._lock.acquire()


class Session:
    """One turn of the engine: orders taken on together, each from its plan to its outcome."""

    def __init__(
        self,
        engine: Engine,
        orders: Sequence[Order],
        done: Callable[[int, Outcome], None],
        more: Callable[[], Sequence[Order]],
    ) -> None:
        self._engine = engine
        self._orders = orders
        self._done = done
        self._more = more
        self._count = 0
        self._loop = Loop(engine._resources, engine._aside, self._take_on)
        self._open: dict[int, _Story] = {}

    def run(self) -> None:
        """See every order to its end."""
        engine = self._engine
        with engine._lock:
            try:
                self._begin_all(self._orders)
                while (run := self._loop.advance()) is not None:
                    self._end(next(index for index, story in self._open.items() if story.run is run))
            finally:
                self._loop.close()
                for story in self._open.values():
                    story.conclude()

    def _take_on(self) -> bool:
        """Begin with what has come since; whether there was anything."""
        with self._engine._aside():
            orders = self._more()
        self._begin_all(orders)
        return bool(orders)

    def _begin_all(self, orders: Sequence[Order]) -> None:
        for order in orders:
            self._count += 1
            self._begin(self._count - 1, order)

    def _begin(self, index: int, order: Order) -> None:
        try:
            story = _Story(self._engine, order)
            self._open[index] = story
            self._loop.add(story.plan())
        except (GraphError, FileError) as error:
            self._close(index, error)

    def _end(self, index: int) -> None:
        story = self._open[index]
        if isinstance(story.run.ended, FileChanged) and story.replans:
            try:
                self._loop.add(story.replan(story.run.ended))
            except (GraphError, FileError) as error:
                self._close(index, error)
            return
        self._close(index, story.run.ended)

    def _close(self, index: int, error: BaseException | None) -> None:
        story = self._open.pop(index, None)
        result = story.conclude(error) if story else None
        outcome = error or result
        assert isinstance(outcome, Result | CalotypeError | Cancelled)
        with self._engine._aside():
            self._done(index, outcome)


class _Story:
    """One order on its way; planned again where a file changes under it."""

    def __init__(self, engine: Engine, order: Order) -> None:
        """Raises GraphError."""
        self._engine = engine
        self._listener = order.listener
        self._token = order.token
        self._graph, self._program = engine._settled(order.graph, order.arguments)
        self._wanted = self._program.wanted(order.outputs)
        self._id = _new_id()
        self._began = time.perf_counter()
        self._run: Run | None = None
        self.replans = REPLANS
        self._listener(RunStarted(self._id, len(self._program.ancestors(self._wanted.values()))))

    @property
    def run(self) -> Run:
        """The run as planned last."""
        assert self._run is not None
        return self._run

    def plan(self) -> Run:
        """The run that the order asks for. Raises GraphError."""
        engine = self._engine
        survey = engine._survey(self._program, list(self._wanted.values()))
        self._run = Run(
            self._id,
            survey,
            self._wanted,
            engine._resources,
            engine.exact,
            engine.strict,
            self._listener,
            self._token,
            engine.records,
            engine.compiled,
        )
        return self._run

    def replan(self, changed: FileChanged) -> Run:
        """The run again, now that a file is another. Raises GraphError."""
        self.replans -= 1
        self._settle()
        self._listener(Trouble(self._id, "", f"{changed}; planned again"))
        return self.plan()

    def conclude(self, error: BaseException | None = None) -> Result | None:
        """Whatever happened: what finished is remembered and told."""
        if self._run is not None:
            self._settle()
        failed = self._run is None or self._run.failures or self._run.values.keys() != self._wanted.keys()
        state = "cancelled" if isinstance(error, Cancelled) else "failed" if error or failed else "done"
        for message in self._engine.troubles():
            self._listener(Trouble(self._id, "", message))
        seconds = time.perf_counter() - self._began
        self._listener(RunFinished(self._id, state, seconds))
        if self._run is None:
            return None
        return _result(self._run, self._graph, seconds)

    def _settle(self) -> None:
        run, engine = self.run, self._engine
        run.conclude()
        engine.records.put(run.records())
        run.survey.close()
        engine.store.trim()


_IDS = random.Random()  # noqa: S311  names, not secrets


def _new_id() -> str:
    return f"{_IDS.getrandbits(128):032x}"


def _shut(disk: Disk | None, catalogue: Catalogue | None) -> None:
    if disk:
        disk.close()
    if catalogue:
        catalogue.close()


def _result(run: Run, graph: Graph, seconds: float) -> Result:
    found = {name: run.survey.identity(port) for name, port in run.wanted.items()}
    known = {name: identity for name, identity in found.items() if identity is not None}
    return Result(run.id, graph, seconds, run.values, run.reports, run.failures, _files(run.survey), known)


def _files(survey: Survey) -> dict[str, File]:
    """`node.param` -> every file that the survey resolved."""
    return {
        f"{survey.program.steps[position].id}.{name}": file
        for position in survey.order
        for name, file in survey.marks[position].files.items()
    }
