"""Engine: owns the device, the store, the traces and the models, and runs graphs one after the other."""

import threading
import time
import uuid
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from engine.budget import Ledger
from engine.catalogue import Catalogue
from engine.context import CancelToken
from engine.digest import digest
from engine.disk import Disk
from engine.errors import Cancelled, FileChanged, GraphError, RunFailed
from engine.event import Outcome, RunFinished, RunStarted, Trouble
from engine.file import File, Files
from engine.graph import Graph
from engine.host import Host
from engine.models import ModelPool
from engine.plan import Planned, Survey
from engine.program import Port, Program, compile_graph
from engine.registry import Registry
from engine.run import Listener, NodeReport, Resources, Run
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

    def __getitem__(self, name: str) -> Socket:
        """One output. Raises the node's failure where it has none."""
        if name not in self.outputs and self.failures:
            raise RunFailed(self.failures)
        return self.outputs[name]

    def ran(self) -> list[str]:
        """The nodes that ran, in topological order."""
        return [node for node, report in self.nodes.items() if report.outcome is Outcome.RAN]

    def report(self, paths: Mapping[str, Sequence[str]] | None = None) -> dict[str, Any]:
        """The report as JSON values; `paths` are the files that the outputs were saved to."""
        nodes = {
            node: {
                "type": report.type,
                "outcome": str(report.outcome),
                "reason": report.reason,
                "seconds": round(report.seconds, 6),
                "needs": list(report.needs),
            }
            for node, report in self.nodes.items()
        }
        outputs = {name: list(found) for name, found in (paths or {}).items()}
        return {"run": self.run, "seconds": round(self.seconds, 6), "nodes": nodes, "outputs": outputs}


class Engine:
    """Runs graphs; whatever was computed once, here or by another process with the same `cache`, is found again.

    `memory` and `host_memory` are budgets in bytes for the device (values and models together) and, on an accelerator,
    for the host; the default is half of what is free. `cache` names the folder of the disk tier. `exact` never fuses
    calls. `strict` makes a value that is re-made differently an error. Safe to use from several threads; runs queue.
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
        strict: bool = False,
        numerics: Mapping[str, str] | None = None,
    ) -> None:
        self.registry = registry
        self.device = device or Host()
        self.exact = exact
        self.strict = strict
        self._catalogue = Catalogue(cache) if cache else None
        self.files = files or Files()
        if self._catalogue:
            self.files.remember_in(CataloguedDigests(self._catalogue))
        self._disk = Disk(self._catalogue, registry.sockets, disk) if self._catalogue else None
        ledger = Ledger(self.device.name, self.device.memory() if memory is None else memory)
        self.store = Store(ledger, self._host_ledger(host_memory), self._disk)
        self.traces = Traces(self._catalogue)
        self.records = Records(self._catalogue)
        self._resources = Resources(self.device, self.store, self.traces, ModelPool(self.files, ledger), ledger)
        settings = {"device": self.device.kind, "mode": "exact" if exact else "fast", **(numerics or {})}
        self._numerics = digest("numerics", settings)
        self._programs: weakref.WeakKeyDictionary[Graph, Program] = weakref.WeakKeyDictionary()
        self._lock = threading.RLock()
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
        with self._lock:
            graph, program = self._settled(graph, arguments)
            wanted = _wanted(program, outputs)
            result = self._run(graph, program, wanted, listener, token or CancelToken())
        if check and result.failures:
            raise RunFailed(result.failures)
        return result

    def plan(
        self, graph: Graph, outputs: Sequence[str] | None = None, *, arguments: Mapping[str, Socket] | None = None
    ) -> list[Planned]:
        """What a run would do, and why, without running anything. Raises GraphError."""
        with self._lock:
            program = self.program(graph, arguments)
            survey = self._survey(program, list(_wanted(program, outputs).values()))
            try:
                return list(survey.planned())
            finally:
                survey.close()

    def program(self, graph: Graph, arguments: Mapping[str, Socket] | None = None) -> Program:
        """The graph resolved against the registry; remembered as long as the graph lives. Raises GraphError."""
        if arguments:
            return compile_graph(graph, self.registry, arguments)
        found = self._programs.get(graph)
        if found is None:
            found = self._programs[graph] = self._compile(graph)
            graph.parent = None
        return found

    def flush(self) -> None:
        """Wait until everything is on disk."""
        if self._disk:
            self._disk.flush()

    def clear(self) -> None:
        """Forget all values and traces, on every tier."""
        with self._lock:
            self.store.clear()
            self.traces.clear()

    def close(self) -> None:
        """Write what is pending and release the cache folder. An engine that is never closed does so at exit."""
        self._shut()

    def __enter__(self) -> Self:
        """Use as a context manager."""
        return self

    def __exit__(self, *exc: object) -> None:
        """Close."""
        self.close()

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
        for axis in sweep.values():
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

    def _run(
        self, graph: Graph, program: Program, wanted: Mapping[str, Port], listener: Listener, token: CancelToken
    ) -> Result:
        """One run, planned again where a file changes under it."""
        run_id, began, state = uuid.uuid4().hex, time.perf_counter(), "failed"
        listener(RunStarted(run_id, len(program.ancestors(wanted.values()))))
        try:
            for left in reversed(range(REPLANS + 1)):
                survey = self._survey(program, list(wanted.values()))
                run = Run(run_id, survey, self._resources, self.exact, self.strict, listener, token, self.records)
                try:
                    values = self._follow(run, wanted)
                    break
                except FileChanged as error:
                    if not left:
                        raise
                    listener(Trouble(run_id, "", f"{error}; planned again"))
            state = "failed" if run.failures else "done"
        except Cancelled:
            state = "cancelled"
            raise
        finally:
            for kind, why in (self._disk.unwritten if self._disk else {}).items():
                listener(Trouble(run_id, "", f"{kind} is not kept on disk: {why}"))
            if self._catalogue and self._catalogue.trouble:
                listener(Trouble(run_id, "", f"the cache folder is not written to: {self._catalogue.trouble}"))
            seconds = time.perf_counter() - began
            listener(RunFinished(run_id, state, seconds))
        return Result(run_id, graph, seconds, values, run.reports, run.failures, _files(survey))

    def _follow(self, run: Run, wanted: Mapping[str, Port]) -> dict[str, Socket]:
        """Run the loop and fetch the wanted values; whatever happens, what finished is remembered and told."""
        survey = run.survey
        try:
            run.loop()
            known = {name: identity for name, port in wanted.items() if (identity := survey.identity(port)) is not None}
            return run.values(known)
        finally:
            run.conclude()
            self.records.put(run.records())
            survey.close()
            self.store.trim()


def _shut(disk: Disk | None, catalogue: Catalogue | None) -> None:
    if disk:
        disk.close()
    if catalogue:
        catalogue.close()


def _wanted(program: Program, outputs: Sequence[str] | None) -> dict[str, Port]:
    names = program.outputs if outputs is None else outputs
    return {name: program.port(name) for name in names}


def _files(survey: Survey) -> dict[str, File]:
    """`node.param` -> every file that the survey resolved."""
    return {
        f"{survey.program.steps[position].id}.{name}": file
        for position in survey.order
        for name, file in survey.marks[position].files.items()
    }
