"""What is known of a run on the client's side, however it is asked for."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from calotype.client.errors import RunEnded
from calotype.naming import stem
from engine.errors import Problem
from server.rows import State
from server.schema import Brief, Output, Picture, RunView


class Record:
    """A run as it was last heard of. `name` is what its pictures are named after; empty means its title."""

    def __init__(self, view: Brief, name: str = "") -> None:
        self.id = view.id
        self._name = name
        self._hear(view)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.id} {self.state}>"

    @property
    def state(self) -> State:
        """Where it was in its life."""
        return self._view.state

    @property
    def view(self) -> RunView | None:
        """Everything that was said of it: times, nodes, labels; None where it was only accepted so far."""
        return self._view if isinstance(self._view, RunView) else None

    @property
    def outputs(self) -> Mapping[str, Output]:
        """Its outputs; empty until it was seen to have ended. A failed run has those that were finished."""
        return self.view.outputs if self.view else {}

    @property
    def problems(self) -> list[Problem]:
        """Why it failed."""
        return [Problem(item.path, item.message, item.code) for item in self.view.problems] if self.view else []

    def _hear(self, view: Brief) -> None:
        self._view = view

    def _whole(self) -> bool:
        """Whether nothing more is to be heard of it."""
        return self.view is not None and self.state.final and self.view.nodes is not None

    def _result(self) -> Mapping[str, Output]:
        if self.state is not State.DONE:
            raise RunEnded(self.id, self.state, self.problems)
        return self.outputs

    def _picture(self, output: str, index: int) -> Picture:
        found = self.outputs.get(output)
        if found is None or not -len(found.pictures) <= index < len(found.pictures):
            known = {name: len(each.pictures) for name, each in self.outputs.items()}
            text = f"it has no picture {index} of {output!r}; pictures of its outputs: {known}"
            raise RunEnded(self.id, self.state, [*self.problems, Problem("outputs", text, "no-picture")])
        return found.pictures[index]

    def _files(self, folder: Path) -> Iterable[tuple[str, str, str]]:
        """Output, name without number, and digest of every file."""
        folder.mkdir(parents=True, exist_ok=True)
        title = self.view.title if self.view else ""
        for output, found in self.outputs.items():
            named = stem(self._name, title, output, self.outputs)
            yield from ((output, named, picture.digest) for picture in found.pictures)


def page_address(state: str | None, of: str | None, limit: int) -> str:
    """Where the first page of a list of runs is."""
    query: dict[str, Any] = {"state": state, "of": of, "limit": limit}
    return f"/v1/runs?{urlencode({name: value for name, value in query.items() if value is not None})}"
