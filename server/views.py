"""Runs as documents."""

import json
from collections.abc import Mapping
from typing import Any

from server.history import History, Run
from server.submission import compact


def brief(run: str, state: str) -> dict[str, str]:
    """A run, in short."""
    return {"id": run, "state": state, "url": f"/v1/runs/{run}", "events": f"/v1/runs/{run}/events"}


def whole(run: Run, history: History, *, nodes: bool = True) -> dict[str, Any]:
    """A run; with `nodes`, also what became of each node."""
    found: dict[str, Any] = {
        **brief(run.id, str(run.state)),
        "title": run.title,
        "client": run.client,
        "priority": run.priority,
        "attempts": run.attempts,
        "labels": dict(run.labels),
        "submitted": run.submitted,
        "started": run.started,
        "finished": run.finished,
        "seconds": run.seconds,
        "outputs": json.loads(run.outputs or "{}"),
        "problems": json.loads(run.problems or "[]"),
    }
    if nodes and run.state.final:
        found["nodes"] = json.loads(history.report_of(run.id) or "null")
    return found


def dumped(document: Mapping[str, Any]) -> bytes:
    """A document as bytes; lone surrogates cannot be in it."""
    return compact(document).encode()
