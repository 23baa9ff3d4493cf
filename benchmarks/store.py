"""Keeping a value, finding it again, and restoring it instead of computing it."""

import hashlib
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from statistics import median

import torch

from benchmarks import pipeline
from benchmarks.measure import Answer, Beside, Goal, Row, digits, duration, medians, timed
from calotype.front import Engine
from calotype.library import find
from engine.budget import Ledger
from engine.catalogue import Catalogue
from engine.digest import Digest, digest
from engine.disk import Disk, encode_value
from engine.graph import Graph
from engine.registry import Registry
from engine.socket import Socket
from engine.store import Store
from nodes.types import Conditioning, Image, Latent

QUESTION = "What does it cost to keep a value, to find it again, and to restore it instead of computing it?"
ROUNDS = 15
ROOM = 1 << 40

NODES = {"paint": "sampled latent, 20 steps", "prompted/positive": "conditioning", "decoded": "decoded picture"}
"""Nodes of the graph img2img that are worth restoring."""
AT_MOST = 1 / 20


def answer() -> Answer:
    with tempfile.TemporaryDirectory() as folder:
        costs = {
            name: _costs(value, Path(folder) / str(number)) for number, (name, value) in enumerate(_values().items())
        }
        nodes = list(_against_computing(Path(folder) / "cache"))
    return Answer(QUESTION, [*nodes, *_against_the_limit(costs)], _details(costs), _notes())


def _values() -> dict[str, Socket]:
    torch.manual_seed(1)
    pictures = {f"image {side}x{side}": Image(_bytes(1, 3, side, side)) for side in (512, 1024)}
    latents = {f"latent {side}x{side}": Latent(torch.randn(1, 4, side, side)) for side in (64, 128)}
    return {**pictures, **latents, "conditioning 77x768": Conditioning(torch.randn(1, 77, 768))}


def _bytes(*shape: int) -> torch.Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8)


@dataclass(frozen=True)
class Costs:
    """Seconds for one value of `size` bytes, by operation; and what the disk takes for the same bytes alone."""

    size: int
    memory: Mapping[str, float]
    disk: Mapping[str, float]
    limits: Mapping[str, float]


def _costs(value: Socket, folder: Path) -> Costs:
    bench = Bench(value, folder)
    found = medians(
        {
            "put": bench.put,
            "get": bench.get,
            "evict": bench.evict,
            "write": bench.write,
            "read": bench.read,
            "plain write": bench.plain_write,
            "plain read": bench.plain_read,
        },
        ROUNDS,
    )
    bench.close()
    memory = {name: found[name] for name in ("put", "get", "evict")}
    disk = {name: found[name] for name in ("write", "read")}
    return Costs(value.nbytes(), memory, disk, {name: found[f"plain {name}"] for name in disk})


class Bench:
    """One value in a store with memory and disk. Every method is a sample."""

    def __init__(self, value: Socket, folder: Path) -> None:
        self._value = value
        self._file = encode_value(value)
        self._plain = folder / "plain"
        self._catalogue = Catalogue(folder)
        self._disk = Disk(self._catalogue, Registry.installed().sockets, ROOM)
        self._ledger = Ledger("cpu", ROOM)
        self._memory = Store(self._ledger)
        self._fresh = (digest(number) for number in count())

    def put(self) -> float:
        """Into memory."""
        identity = next(self._fresh)
        return timed(lambda: self._memory.put(identity, self._value, 1.0))

    def get(self) -> float:
        """From memory."""
        identity = self._kept()
        return timed(lambda: self._memory.get(identity))

    def evict(self) -> float:
        """Out of memory, because room is wanted."""
        self._kept()
        return timed(lambda: self._ledger.make_room(ROOM - self._ledger.used() + 1))

    def write(self) -> float:
        """To disk, until it is there; a run does not wait for it."""
        identity = next(self._fresh)
        return timed(lambda: self._written(identity))

    def read(self) -> float:
        """From disk, checked."""
        identity = next(self._fresh)
        self._written(identity)
        return timed(lambda: self._disk.get(identity))

    def plain_write(self) -> float:
        """The limit: the same bytes to a new file."""
        self._plain.unlink(missing_ok=True)
        return timed(lambda: self._plain.write_bytes(self._file))

    def plain_read(self) -> float:
        """The limit: the same bytes from a file, and their checksum."""
        self._plain.write_bytes(self._file)
        return timed(lambda: hashlib.sha256(self._plain.read_bytes()).digest())

    def close(self) -> None:
        """Release the folder."""
        self._disk.close()
        self._catalogue.close()

    def _kept(self) -> Digest:
        identity = next(self._fresh)
        self._memory.put(identity, self._value, 1.0)
        return identity

    def _written(self, identity: Digest) -> None:
        self._disk.put(identity, self._value, 1.0)
        self._disk.flush()


def _against_the_limit(costs: Mapping[str, Costs]) -> Iterator[Row]:
    for name, found in costs.items():
        yield Row(f"{name}: to disk", found.disk["write"], Beside("plain write", found.limits["write"]))
        yield Row(f"{name}: from disk", found.disk["read"], Beside("plain read and sha256", found.limits["read"]))


def _against_computing(cache: Path) -> Iterator[Row]:
    """Values of a real run, restored from disk, beside the seconds that their nodes took."""
    graph = find(pipeline.PAINTED)
    with pipeline.engine(cache) as engine:
        engine.run(graph)
        rounds = [_round(engine, graph, number) for number in range(ROUNDS)]
    for node, what in NODES.items():
        computed, restored = (median(column) for column in zip(*(found[node] for found in rounds), strict=True))
        yield Row(f"{what}: from disk", restored, Beside("computing it", computed), Goal(AT_MOST, of="ratio"))


def _round(engine: Engine, graph: Graph, number: int) -> dict[str, tuple[float, float]]:
    """Seconds for computing, and for restoring, each of the nodes' values."""
    result = engine.run(graph.set(prompt=f"fox {number}"))
    engine.flush()
    return {node: (result.nodes[node].seconds, _restored(engine, node)) for node in NODES}


def _restored(engine: Engine, node: str) -> float:
    identity = pipeline.output(engine, node)
    engine.store.drop_memory(identity)
    return timed(lambda: engine.store.get(identity))


def _details(costs: Mapping[str, Costs]) -> list[tuple[str, ...]]:
    head = ("", "bytes", "memory put", "memory get", "memory evict", "disk put", "disk get")
    return [head, *((name, f"{found.size:,}", *_cells(found)) for name, found in costs.items())]


def _cells(found: Costs) -> Iterator[str]:
    yield from map(duration, found.memory.values())
    for seconds in found.disk.values():
        yield f"{duration(seconds)}, {digits(found.size / seconds / 1e6)} MB/s"


def _notes() -> tuple[str, ...]:
    nodes = "Computing: nodes of the saved graph img2img on the embedded model, 128 x 128 pixels."
    disk = (
        "To disk: packed, checksummed, written under another name and renamed, entered in the index, on a thread that "
        "no run waits for. From disk: read, checked, unpacked, its use noted. Files are in the page cache."
    )
    memory = "In memory nothing is copied or encoded, so bytes do not matter."
    return nodes, disk, memory
