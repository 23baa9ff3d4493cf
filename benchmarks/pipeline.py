"""The saved graphs on the embedded model, as the benchmarks use them."""

from pathlib import Path

from calotype.front import Engine
from calotype.library import find
from engine.digest import Digest
from engine.engine import Engine as AnyEngine
from engine.graph import Graph
from engine.trace import Record, Trace

CHAINED = "inpaint_after_img2img"
PAINTED = "img2img"


def engine(cache: Path | None = None) -> Engine:
    """An engine on the CPU; without a cache folder unless one is given."""
    return Engine(device="cpu", cache=cache)


def brief(steps: int) -> Graph:
    """Inpaint after img2img, in few steps."""
    return find(CHAINED).set({"first.steps": steps, "second.steps": steps})


def settled(engine: AnyEngine, node: str) -> tuple[Record, Trace]:
    """What a node was in the last run that it was part of, and what it gave then."""
    record = engine.records.get(node)
    trace = None if record is None else engine.traces.get(bytes.fromhex(record.key))
    assert record is not None
    assert trace is not None
    return record, trace


def output(engine: AnyEngine, node: str) -> Digest:
    """The identity of what a node with one output gave last."""
    (identity,) = settled(engine, node)[1].outputs
    return identity
