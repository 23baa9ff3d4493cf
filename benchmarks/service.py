"""The HTTP service under load: submissions that are cached, while a sampler runs; streams of events; memory."""

import asyncio
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any, cast

import httpx2
import psutil
import uvloop

from benchmarks.measure import Answer, Beside, Goal, Row

QUESTION = "How many cached graphs does the service answer, how soon while it samples, and does it stay small?"
COMFYUI = "ComfyUI 0.3.64, on a machine of this kind"
THEIRS, THEIR_P99 = 147.0, 0.0088
"""Fully cached prompts of 10 nodes a second, and their 99th percentile in seconds; one client, an idle machine."""
GOAL = 5
"""Times their rate."""
SECONDS = 8.0
CLIENTS = 50
SUBSCRIBERS = 1000
RUNS = 10_000
NODES = 10
PATIENCE = 90.0


def answer() -> Answer:
    with tempfile.TemporaryDirectory() as folder, _served(Path(folder)) as service:
        alone = uvloop.run(_asked(service, 1, SECONDS))
        many = uvloop.run(_asked(service, CLIENTS, SECONDS))
        with _sampling(service):
            busy = uvloop.run(_asked(service, CLIENTS, SECONDS))
            paced = [uvloop.run(_asked(service, CLIENTS, SECONDS, rate=rate)) for rate in (THEIRS, GOAL * THEIRS)]
        streams = uvloop.run(_streamed(service))
        sizes = _grown(service)
    rows = [*_answered(alone, many), *_busy(busy, paced), *_followed(streams), *_sized(sizes)]
    return Answer(QUESTION, rows, _details(sizes), _notes())


@dataclass
class Load:
    """What came of asking for a while: seconds of every answer, and how long it took in all."""

    seconds: float
    answers: list[float] = field(default_factory=list)

    @property
    def rate(self) -> float:
        """Answers a second."""
        return len(self.answers) / self.seconds

    def percentile(self, share: int) -> float:
        """Seconds within which that many of a hundred were answered."""
        return statistics.quantiles(self.answers, n=100)[share - 1]


@dataclass(frozen=True)
class Streams:
    """What came of many streams of one run: how many saw its end, the last one how late, and how the server grew."""

    complete: int
    spread: float
    grown: int


def _answered(alone: Load, many: Load) -> Iterator[Row]:
    theirs, each = Beside(COMFYUI, 1 / THEIRS), "a cached submission of 10 nodes"
    yield Row(f"{each}: one client, mean", 1 / alone.rate, theirs)
    yield Row(f"{each}: {CLIENTS} clients, mean", 1 / many.rate, theirs, Goal(1 / GOAL, of="ratio"))
    late = many.percentile(99)
    yield Row(f"... 99th percentile, {CLIENTS} clients", late, Beside(f"{COMFYUI}, one client", THEIR_P99))


def _busy(busy: Load, paced: Sequence[Load]) -> Iterator[Row]:
    theirs = Beside(COMFYUI, 1 / THEIRS)
    yield Row(f"while a sampler runs: {CLIENTS} clients, mean", 1 / busy.rate, theirs)
    yield Row("... 99th percentile, as fast as it answers", busy.percentile(99))
    for load in paced:
        yield Row(f"... 99th percentile, {load.rate:.0f} a second", load.percentile(99), goal=Goal(0.05))


def _followed(streams: Streams) -> Iterator[Row]:
    missing = SUBSCRIBERS - streams.complete
    yield Row(f"of {SUBSCRIBERS} subscribers, without the end of the run", missing, goal=Goal(0), counted=True)
    yield Row("... from the first to the last that sees it", streams.spread)
    yield Row("... KiB of memory for each", streams.grown / SUBSCRIBERS / 1024, counted=True)


def _sized(sizes: Sequence[tuple[int, int]]) -> Iterator[Row]:
    (first, early), (last, late) = sizes[2], sizes[-1]
    grown = Beside(f"after {first} runs", early / 1e6)
    yield Row(f"MB after {last} runs, half of them new", late / 1e6, grown, Goal(1.05, of="ratio"), counted=True)


def _details(sizes: Sequence[tuple[int, int]]) -> list[tuple[str, ...]]:
    return [("runs", "resident MB"), *((str(runs), f"{size / 1e6:.1f}") for runs, size in sizes)]


def _notes() -> tuple[str, ...]:
    return (
        f"A real process on loopback; {os.cpu_count()} cores for server, sampler and client together.",
        "Every submission is durable (fsync) before it is answered.",
        f"ComfyUI: {THEIRS:.0f} prompts a second, p99 {THEIR_P99 * 1000:.1f} ms; nothing durable, no sampler running.",
        "The sampler: text2img on the embedded model, 200 steps, one run after the other, on the CPU.",
    )


@dataclass(frozen=True)
class Service:
    """A server in a process of its own."""

    port: int
    process: subprocess.Popen[bytes]

    @property
    def url(self) -> str:
        """Its address."""
        return f"http://127.0.0.1:{self.port}"

    def size(self) -> int:
        """Resident bytes."""
        return int(psutil.Process(self.process.pid).memory_info().rss)


@contextmanager
def _served(folder: Path) -> Iterator[Service]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("CALOTYPE_")}
    environment |= {"CALOTYPE_DATA": str(folder), "CALOTYPE_PORT": str(port), "OMP_NUM_THREADS": "1"}
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "calotype", "serve"], env=environment, stdout=log, stderr=log, cwd=folder
        )
    service = Service(port, process)
    try:
        _until(lambda: httpx2.get(f"{service.url}/healthz").status_code == 200)
        yield service
    finally:
        process.kill()
        process.wait()


def _until(true: Callable[[], bool]) -> None:
    give_up = time.monotonic() + PATIENCE
    while time.monotonic() < give_up:
        with suppress(httpx2.TransportError):
            if true():
                return
        time.sleep(0.1)
    raise TimeoutError("the service does not answer")


def _graph(x: int, nodes: int = NODES) -> dict[str, Any]:
    """A chain of masks."""
    chain: dict[str, Any] = {
        "n0": {"type": "mask.ellipse", "params": {"width": 8, "height": 8, "x": x, "y": 1, "w": 4, "h": 4}}
    }
    for number in range(1, nodes):
        chain[f"n{number}"] = {"type": "mask.invert", "inputs": {"mask": f"n{number - 1}"}}
    return {"format": "calotype/1", "nodes": chain, "outputs": {"mask": f"n{nodes - 1}"}}


def _request(body: bytes) -> bytes:
    head = "POST /v1/runs HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


class Asker(asyncio.Protocol):
    """One connection that asks the same again and again, as fast as it is answered or as often as told."""

    def __init__(self, request: bytes, load: Load, until: float, pause: float) -> None:
        self.done = asyncio.get_running_loop().create_future()
        self._request, self._load, self._until, self._pause = request, load, until, pause
        self._received = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Ask for the first time."""
        self._transport = cast("asyncio.Transport", transport)
        self._ask()

    def data_received(self, data: bytes) -> None:
        """Take an answer, and ask again."""
        self._received += data
        head, found, rest = self._received.partition(b"\r\n\r\n")
        if not found:
            return
        length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
        if len(rest) < length:
            return
        now = time.perf_counter()
        assert head.startswith(b"HTTP/1.1 202"), self._received[:300]
        assert b'"state":"done"' in rest, rest
        self._load.answers.append(now - self._asked)
        self._received = b""
        if now >= self._until:
            self._transport.close()
            self.done.set_result(None)
        else:
            asyncio.get_running_loop().call_later(max(0.0, self._asked + self._pause - now), self._ask)

    def _ask(self) -> None:
        self._asked = time.perf_counter()
        self._transport.write(self._request)


async def _asked(service: Service, clients: int, seconds: float, rate: float = 0.0) -> Load:
    """Ask with some clients for some seconds: in a closed loop, or at a rate for all together."""
    request = _request(json.dumps({"graph": _graph(1)}).encode())
    httpx2.post(f"{service.url}/v1/runs?wait=60", json={"graph": _graph(1)}).raise_for_status()
    load, began, loop = Load(0.0), time.perf_counter(), asyncio.get_running_loop()
    askers: list[Asker] = []
    for number in range(clients):
        if rate:
            await asyncio.sleep(number and 1 / rate)
        pause = clients / rate if rate else 0.0
        asker = Asker(request, load, began + seconds, pause)
        await loop.create_connection(partial(_same, asker), "127.0.0.1", service.port)
        askers.append(asker)
    await asyncio.gather(*(asker.done for asker in askers))
    load.seconds = time.perf_counter() - began
    return load


def _same(asker: Asker) -> Asker:
    return asker


@contextmanager
def _sampling(service: Service) -> Iterator[None]:
    """Keep the sampler busy."""
    with httpx2.Client(base_url=service.url, timeout=60) as client:
        runs = [_sample(client, seed) for seed in range(40)]
        _until(lambda: bool(client.get("/v1/queue").json()["running"]))
        time.sleep(5)  # by now the model is loaded
        yield
        assert client.get("/v1/queue").json()["running"], "the sampler ran out of work"
        for run in runs:
            client.delete(f"/v1/runs/{run}")
        _until(lambda: not client.get("/v1/queue").json()["running"])


def _sample(client: httpx2.Client, seed: int) -> str:
    set_ = {"seed": seed, "steps": 200, "prompt": "red apple", "width": 128, "height": 128}
    answered = client.post("/v1/runs", json={"graph": "text2img", "set": set_})
    answered.raise_for_status()
    return str(answered.json()["id"])


async def _streamed(service: Service) -> Streams:
    """Follow one run with many connections, from before it begins to its end."""
    async with httpx2.AsyncClient(base_url=service.url, timeout=60) as client:
        before = service.size()
        await client.patch("/v1/queue", json={"paused": True})
        body = {"graph": "text2img", "set": {"seed": 9, "steps": 20, "width": 64, "height": 64}}
        run = (await client.post("/v1/runs", json=body)).json()["id"]
        request = f"GET /v1/runs/{run}/events HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode()
        following = [asyncio.create_task(_follow(service, request)) for _ in range(SUBSCRIBERS)]
        await asyncio.sleep(5)
        grown = service.size() - before
        await client.patch("/v1/queue", json={"paused": False})
        ends = [end for end in await asyncio.gather(*following) if end is not None]
    return Streams(len(ends), max(ends) - min(ends), grown)


async def _follow(service: Service, request: bytes) -> float | None:
    """When the end of the run was seen."""
    reader, writer = await asyncio.open_connection("127.0.0.1", service.port)
    writer.write(request)
    with suppress(asyncio.IncompleteReadError, TimeoutError):
        await asyncio.wait_for(reader.readuntil(b"event: run.finished"), PATIENCE)
        seen = time.perf_counter()
        writer.close()
        return seen
    writer.close()
    return None


def _grown(service: Service) -> list[tuple[int, int]]:
    """Runs so far, and the server's size: every other run is a graph that was never seen."""
    sizes = [(0, service.size())]
    with httpx2.Client(base_url=service.url, timeout=60) as client:
        for number in count(1):
            x = number // 2 if number % 2 else 1
            body = {"graph": _graph(x % 7 - 3, NODES + x // 7 % 40), "labels": {"n": str(x)}}
            client.post("/v1/runs?wait=60", json=body)
            if number % (RUNS // 10) == 0:
                sizes.append((number, service.size()))
            if number == RUNS:
                return sizes
    raise AssertionError
