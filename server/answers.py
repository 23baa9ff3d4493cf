"""Results as clients get them: pictures become blobs, numbers and texts stand in the document itself."""

import time
from collections.abc import Mapping, Sequence
from typing import Any

from engine.engine import Result
from engine.run import NodeReport
from engine.socket import SCALARS, Socket
from server.blobs import Blobs
from server.front import Front, Rendered
from server.history import Blob
from server.submission import Answer, Prepared, compact


class Painter:
    """Turns results into answers, and their pictures into files."""

    def __init__(self, front: Front, blobs: Blobs) -> None:
        self._front = front
        self._blobs = blobs

    def answer(self, prepared: Prepared, result: Result) -> tuple[Answer, list[Blob]]:
        """The answer, and the blobs that were written for it."""
        made: dict[str, Blob] = {}
        pictures = {
            name: [self._kept(rendered, made) for rendered in listed]
            for name, listed in self._front.render(result).items()
        }
        outputs = {
            name: self._output(prepared, name, result.outputs[name], pictures, result)
            for name in prepared.names
            if name in result.outputs
        }
        answer = Answer(
            result.identities, result.nodes, compact(outputs), compact(_report(result.nodes)), tuple(sorted(made))
        )
        return answer, list(made.values())

    def _kept(self, rendered: Rendered, made: dict[str, Blob]) -> dict[str, Any]:
        digest, now = self._blobs.put(rendered.data), time.time()
        size = (len(rendered.data), rendered.type, rendered.width, rendered.height)
        made[digest] = Blob(digest, *size, made=now, used=now, upload=False)
        return {
            "digest": digest,
            "url": f"/v1/blobs/{digest}",
            "type": rendered.type,
            "width": rendered.width,
            "height": rendered.height,
            "bytes": len(rendered.data),
        }

    def _output(
        self,
        prepared: Prepared,
        name: str,
        value: Socket,
        pictures: Mapping[str, Sequence[Mapping[str, Any]]],
        result: Result,
    ) -> dict[str, Any]:
        found: dict[str, Any] = {"type": type(value).__name__, **_content(value, pictures.get(name, ()))}
        if name in prepared.program.cells:
            found["set"] = prepared.program.cells[name].set
        if name in prepared.cells:
            found["cells"] = [
                {
                    "node": cell.link,
                    "set": cell.set,
                    **_content(result.outputs[cell.link], pictures.get(cell.link, ())),
                }
                for cell in prepared.cells[name]
                if cell.link in result.outputs
            ]
        return found


def _content(value: Socket, pictures: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    if isinstance(value, tuple(SCALARS.values())):
        return {"value": getattr(value, "value", None)}
    return {"pictures": list(pictures)} if pictures else {}


def _report(nodes: Mapping[str, NodeReport]) -> dict[str, Any]:
    return {
        node: {
            "type": report.type,
            "outcome": str(report.outcome),
            "reason": report.reason,
            "seconds": round(report.seconds, 6),
            "needs": list(report.needs),
            "warnings": list(report.warnings),
        }
        for node, report in nodes.items()
    }
