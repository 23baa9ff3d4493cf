"""Reading literals off a program without running it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from engine.errors import CalotypeError
from engine.file import File
from engine.node import NodeDef
from engine.program import Port, Program, Step
from engine.socket import Bool, Float, Text
from nodes.files import PromptText, Styles
from nodes.style import applied

OWN = "nodes"
"""The pack whose nodes are as quick as they look."""


@dataclass(frozen=True)
class Reader:
    """Looks back through a program for what is written in it."""

    program: Program
    files: Mapping[str, File]

    def source(self, step: Step | None, *names: str) -> Step | None:
        """The node that feeds the first of these inputs that is linked."""
        port = self.link(step, *names)
        return None if port is None else self.program.steps[port.step]

    def link(self, step: Step | None, *names: str) -> Port | None:
        """The output that feeds the first of these inputs that is linked."""
        found = {source.name: source.ports[0] for source in step.sources} if step else {}
        return next((found[name] for name in names if name in found), None)

    def upstream(self, step: Step | None, type_: str, *names: str) -> Step | None:
        """The first node of a type behind a step, following the first linked of these inputs each time."""
        while step is not None and step.definition.type != type_:
            step = self.source(step, *names)
        return step

    def nearest(self, start: int, type_: str) -> Step | None:
        """The node of a type that is the fewest links behind a step."""
        level, seen = [start], {start}
        while level:
            for position in level:
                if self.program.steps[position].definition.type == type_:
                    return self.program.steps[position]
            level = list(
                dict.fromkeys(
                    port.step
                    for position in level
                    for port in self.program.steps[position].needs
                    if port.step not in seen
                )
            )
            seen.update(level)
        return None

    def known(self, step: Step | None, name: str) -> Any:
        """A parameter: its literal, or what the nodes it is linked to make of theirs; None where that is unknown."""
        if step is None:
            return None
        if name in step.values:
            return step.values[name]
        port = self.link(step, name)
        return None if port is None else self._made(port)

    def file(self, step: Step | None, name: str) -> File | None:
        """What a file parameter stands for."""
        return self.files.get(f"{step.id}.{name}") if step else None

    def literal(self, step: Step | None, name: str) -> str:
        """What is written in a file parameter, or in a text."""
        if step is not None and name in step.files:
            return step.files[name][1]
        return str(self.known(step, name) or "")

    def prompt(self, step: Step, side: str) -> str:
        """A prompt as it was written, LoRA tags and all, with its styles; empty where it does not come from a text."""
        encode = self.source(step, side)
        port = self.link(encode, "prompt")
        if port is None:
            return self.literal(encode, "text")
        node = self.program.steps[port.step]
        negative = list(node.definition.outputs)[port.output] == "negative"
        written = self.literal(node, "negative" if negative else "text")
        return self._styled(node, written, negative=negative)

    def texts(self, step: Step, side: str) -> list[PromptText]:
        """What a prompt was written as, with the files that it mentions."""
        encode = self.source(step, side)
        found = [self.file(encode, "text")]
        if (node := self.source(encode, "prompt")) is not None:
            found = [self.file(node, "text"), self.file(node, "negative")]
        return [file for file in found if isinstance(file, PromptText)]

    def _styled(self, node: Step, written: str, *, negative: bool) -> str:
        table = self.file(node, "source")
        styles = table.styles if isinstance(table, Styles) else {}
        for name in self.known(node, "styles") or ():
            if name in styles:
                written = applied(written, styles[name].negative if negative else styles[name].prompt)
        return written

    def _made(self, port: Port) -> Any:
        """What one of Calotype's nodes of numbers and words gives: it is a pure function, so it is called."""
        step = self.program.steps[port.step]
        made = step.definition
        if made.pack != OWN or made.inputs or step.files or made.context or not _gives_scalars(made):
            return None
        values = {name: self.known(step, name) for name in made.params}
        if any(value is None and name not in step.values for name, value in values.items()):
            return None
        try:
            returned = made.unpack(made.function(**values))[port.output]
        except (ValueError, ArithmeticError, CalotypeError):
            return None  # the run says what is wrong
        return getattr(returned, "value", None)


def _gives_scalars(made: NodeDef) -> bool:
    return all(issubclass(kind, Float | Text | Bool) for kind in made.outputs.values())
