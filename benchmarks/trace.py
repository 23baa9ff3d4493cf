"""What an evening's work computed and looked at: calls with their seconds and bytes, and runs as lists of calls.

Identities are small numbers. A call's `outputs` may be those of another call too, where both gave the same content.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent / "traces"


@dataclass(frozen=True)
class Value:
    """One output of a call. `exact` values are known by content, so that their consumers wait for them to be made."""

    identity: int
    size: int
    exact: bool


@dataclass(frozen=True)
class Call:
    """A node with its literals and the identities of its inputs; what it gave, and the seconds that it took."""

    type: str
    seconds: float
    inputs: tuple[int, ...]
    outputs: tuple[Value, ...]


@dataclass(frozen=True)
class Run:
    """One run: the calls behind the outputs that were asked for, in topological order, and the identities of those."""

    edit: str
    calls: tuple[int, ...]
    wanted: tuple[int, ...]


@dataclass(frozen=True)
class Trace:
    """All runs, and all calls that they are made of."""

    about: Mapping[str, str]
    calls: Sequence[Call]
    runs: Sequence[Run]

    def needed(self) -> int:
        """Bytes of all values together: with so much memory nothing is ever computed twice."""
        return sum({value.identity: value.size for call in self.calls for value in call.outputs}.values())

    def compulsory(self) -> float:
        """Seconds of all calls, each once."""
        return sum(call.seconds for call in self.calls)


def load(name: str) -> Trace:
    """A recorded trace."""
    data = json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))
    return Trace(data["about"], [_call(item) for item in data["calls"]], [_run(item) for item in data["runs"]])


def save(name: str, trace: Trace) -> Path:
    """Write a trace, one call or run on a line."""
    path = FOLDER / f"{name}.json"
    listed = {"calls": [_plain(call) for call in trace.calls], "runs": [asdict(run) for run in trace.runs]}
    parts = [
        f'"about": {json.dumps(dict(trace.about))}',
        *(f'"{key}": {_lines(items)}' for key, items in listed.items()),
    ]
    path.write_text("{\n" + ",\n".join(parts) + "\n}\n", encoding="utf-8")
    return path


def _plain(call: Call) -> dict[str, Any]:
    outputs = [[value.identity, value.size, value.exact] for value in call.outputs]
    return {"type": call.type, "seconds": round(call.seconds, 6), "inputs": call.inputs, "outputs": outputs}


def _lines(items: Sequence[Any]) -> str:
    return "[\n" + ",\n".join(json.dumps(item, ensure_ascii=False) for item in items) + "\n]"


def _call(data: Mapping[str, Any]) -> Call:
    outputs = tuple(Value(*output) for output in data["outputs"])
    return Call(data["type"], data["seconds"], tuple(data["inputs"]), outputs)


def _run(data: Mapping[str, Any]) -> Run:
    return Run(data["edit"], tuple(data["calls"]), tuple(data["wanted"]))
