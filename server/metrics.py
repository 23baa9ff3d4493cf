"""Figures for Prometheus."""

from collections import Counter as Counts
from collections.abc import Callable, Iterable, Mapping

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from engine.run import NodeReport

SECONDS = (0.005, 0.02, 0.1, 0.5, 1, 2, 5, 10, 30, 60, 300, 1800)


class Metrics:
    """What the service counts. One registry per service, so that several may live in one process."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._submitted = Counter("calotype_runs_submitted", "Runs accepted.", registry=self.registry)
        self._runs = Counter("calotype_runs", "Runs that ended, by state.", ["state"], registry=self.registry)
        self._seconds = Histogram(
            "calotype_run_seconds", "Seconds from acceptance to end.", buckets=SECONDS, registry=self.registry
        )
        self._nodes = Counter("calotype_nodes", "Nodes, by outcome.", ["outcome"], registry=self.registry)
        self._node_seconds = Counter("calotype_node_seconds", "Seconds in which nodes ran.", registry=self.registry)
        self._saved = Counter(
            "calotype_saved_seconds", "Seconds that found results took when they were made.", registry=self.registry
        )
        self._calls = Counter("calotype_unet_calls", "UNet calls.", registry=self.registry)
        self._batch = Counter("calotype_unet_latents", "Latents in all UNet calls.", registry=self.registry)
        self._ended = {state: self._runs.labels(state) for state in ("done", "failed", "cancelled")}
        self._outcomes = {name: self._nodes.labels(name) for name in ("ran", "hit", "unneeded", "failed")}

    def gauges(self, queue: Callable[[], Mapping[str, int]], tiers: Callable[[], Mapping[str, int]]) -> None:
        """Where the momentary figures come from: runs by state, bytes by tier."""
        self.registry.register(_Gauges(queue, tiers))

    def submitted(self) -> None:
        """A run was accepted."""
        self._submitted.inc()

    def ended(self, state: str, seconds: float) -> None:
        """A run ended."""
        self._ended[state].inc()
        self._seconds.observe(seconds)

    def nodes(self, nodes: Iterable[NodeReport]) -> None:
        """The nodes of a run are settled."""
        counts: Counts[str] = Counts()
        ran = saved = 0.0
        for report in nodes:
            counts[report.outcome] += 1
            ran += report.seconds
            saved += report.saved
        for outcome, count in counts.items():
            self._outcomes[outcome].inc(count)
        self._node_seconds.inc(ran)
        self._saved.inc(saved)

    def measured(self, name: str, value: float) -> None:
        """A node counted something."""
        if name == "unet_calls":
            self._calls.inc()
            self._batch.inc(value)

    def text(self) -> bytes:
        """Everything in Prometheus' format; the mean batch is `calotype_unet_latents / calotype_unet_calls`."""
        return generate_latest(self.registry)


class _Gauges(Collector):
    def __init__(self, queue: Callable[[], Mapping[str, int]], tiers: Callable[[], Mapping[str, int]]) -> None:
        self._queue = queue
        self._tiers = tiers

    def collect(self) -> "list[GaugeMetricFamily]":
        """The figures as they are now."""
        depth = GaugeMetricFamily("calotype_queue_depth", "Runs that wait or run.", labels=["state"])
        for state, count in self._queue().items():
            depth.add_metric([state], count)
        tiers = GaugeMetricFamily("calotype_tier_bytes", "Bytes of values and models, by tier.", labels=["tier"])
        for tier, size in self._tiers().items():
            tiers.add_metric([tier], size)
        return [depth, tiers]
