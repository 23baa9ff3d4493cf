"""Subgraphs and sweeps -> one flat graph: ids such as `first/start` and `paint[x2,y0]`, and links between them."""

from collections.abc import Collection, Iterator
from typing import Any

from engine.errors import Problem
from engine.flat import Flat, FlatNode, Link, Linked
from engine.graph import SUBGRAPH, Argument, Document, Graph, Node, split, suggest
from engine.registry import Registry
from engine.sweep import swept


def expand(graph: Graph, registry: Registry, problems: list[Problem], bound: Collection[str] = ()) -> Flat:
    """Flatten `graph`. What is wrong with it is added to `problems`; the rest is expanded all the same.

    `bound` names the arguments that the caller gives values for; other arguments fall back to their defaults.
    """
    scope = _Scope(graph, problems, bound=bound)
    scope.take_over()
    scope.check_signature(registry)
    nodes = dict(scope.nodes())
    outputs = {
        name: link
        for name, text in graph.document.outputs.items()
        if (link := scope.resolve(text, f"outputs.{name}")) is not None
    }
    flat = Flat(nodes, outputs, scope.opened)
    return flat if graph.document.sweep is None else swept(graph, flat, registry, problems)


class _Scope:
    """One graph being flattened: knows its prefix, what its parent binds, and the scopes of its subgraphs."""

    def __init__(
        self,
        graph: Graph,
        problems: list[Problem],
        prefix: str = "",
        outer: "tuple[_Scope, str] | None" = None,
        bound: Collection[str] = (),
    ) -> None:
        self.graph = graph
        self.document: Document = graph.document
        self.problems = problems
        self.prefix = prefix
        self.outer = outer
        self.bound = bound
        self.opened: dict[str, str] = outer[0].opened if outer else {}
        self.literals: dict[str, dict[str, Any]] = {}
        self.linked: dict[str, dict[str, Linked]] = {}
        self._resolving: set[str] = set()
        self.inner = {
            node: _Scope(subgraph, problems, f"{prefix}{node}/", (self, node))
            for node, subgraph in graph.subgraphs.items()
        }
        if outer and self.document.sweep:
            self._complain(f"nodes.{outer[1]}.graph", "a graph within a graph cannot sweep; sweep in the outermost one")

    def params(self, node: str) -> dict[str, Any]:
        """Literals of a node, with what the parent sets through exposed names."""
        stated = {**self.document.nodes[node].params, **self.literals.get(node, {})}
        return {name: value for name, value in stated.items() if name not in self.linked.get(node, {})}

    def nodes(self) -> Iterator[tuple[str, FlatNode]]:
        """Flat nodes of this graph and of those within."""
        for name, node in self.document.nodes.items():
            if name in self.inner:
                yield from self.inner[name].nodes()
            elif node.type != SUBGRAPH:
                yield f"{self.prefix}{name}", FlatNode(node.type, self.params(name), self._inputs(name, node))

    def check_signature(self, registry: Registry) -> None:
        """Every exposed name leads to a parameter, every argument has a known type, here and in the graphs within."""
        for name, target in self.document.expose.items():
            node, param = target.split(".")
            path = f"{self.prefix}expose.{name}"
            known = self._parameters(node, registry)
            if node not in self.document.nodes:
                self._complain(path, f"no node {node!r}{suggest(node, self.document.nodes)}", "unknown_node")
            elif known is not None and param not in known:
                self._complain(path, f"{node} has no parameter {param!r}{suggest(param, known)}", "unknown_parameter")
        for name, declared in self.document.arguments.items():
            type_ = declared if isinstance(declared, str) else declared.type
            if type_ not in registry.sockets:
                message = f'unknown type "{type_}"{suggest(type_, registry.sockets)}'
                self._complain(f"{self.prefix}arguments.{name}", message, "unknown_type")
        for inner in self.inner.values():
            inner.check_signature(registry)

    def _parameters(self, node: str, registry: Registry) -> Collection[str] | None:
        """Names that may be set on a node; None where its type is unknown."""
        if node in self.inner:
            return self.inner[node].document.expose
        made = registry.get(self.document.nodes[node].type) if node in self.document.nodes else None
        return None if made is None else made.params

    def resolve(self, text: str, path: str) -> Link | None:
        """Follow a link through arguments and outputs of subgraphs to a flat node."""
        if text in self._resolving:
            return self._refuse(path, f"{text!r} leads back to itself")
        self._resolving.add(text)
        try:
            return self._argument(text[1:], path) if text.startswith("$") else self._output(*split(text), path)
        finally:
            self._resolving.discard(text)

    def take_over(self) -> None:
        """Sort what the nodes that hold subgraphs give into arguments, literals and linked parameters, outermost first.

        After all scopes are there, because a link may lead into any of them.
        """
        for name, inner in self.inner.items():
            inner._take(self, name)
            inner.take_over()

    def _take(self, parent: "_Scope", name: str) -> None:
        where = f"nodes.{parent.prefix}{name}"
        links = parent._inputs(name, parent.document.nodes[name], leave=self.document.arguments)
        for param, value in parent.params(name).items():
            path = f"{where}.params.{param}"
            target = self._exposed(param, path, "parameter")
            if param in links:
                self._complain(path, "stands under params and under inputs; keep one", "twice")
            elif target and target[1] in self.literals.get(target[0], {}):
                self._complain(path, f"another exposed name sets {'.'.join(target)} too; keep one", "twice")
            elif target:
                self.literals.setdefault(target[0], {})[target[1]] = value
        for param, given in links.items():
            target = self._exposed(param, f"{where}.inputs.{param}", "argument or parameter")
            known = {**self.literals.get(target[0], {}), **self.linked.get(target[0], {})} if target else {}
            if target and target[1] in known:
                self._complain(f"{where}.inputs.{param}", f"another exposed name sets {'.'.join(target)} too", "twice")
            elif target:
                self.linked.setdefault(target[0], {})[target[1]] = given

    def _exposed(self, name: str, path: str, kind: str) -> list[str] | None:
        target = self.document.expose.get(name)
        if target is None:
            known = [*self.document.expose, *self.document.arguments]
            self._complain(path, f"{self.graph.title()!r} has no {kind} {name!r}{suggest(name, known)}", "unknown_name")
            return None
        return target.split(".")

    def _inputs(self, name: str, node: Node, leave: Collection[str] = ()) -> dict[str, Linked]:
        """What is linked to a node, with what the parent sets through exposed names; `leave` out its arguments."""
        found: dict[str, Linked] = {}
        for port, text in node.inputs.items():
            if port in leave:
                continue
            found[port] = self._linked(text, f"nodes.{self.prefix}{name}.inputs.{port}")
        literal = self.literals.get(name, {})
        return {**{port: links for port, links in found.items() if port not in literal}, **self.linked.get(name, {})}

    def _linked(self, text: str | list[str], path: str) -> Linked:
        many = isinstance(text, list)
        places = {f"{path}[{index}]": item for index, item in enumerate(text)} if many else {path: str(text)}
        links = [self.resolve(item, place) for place, item in places.items()]
        found = tuple(link for link in links if link is not None)
        return Linked(found, many) if len(found) == len(links) else Linked(())

    def _argument(self, name: str, path: str) -> Link | None:
        declared = self.document.arguments.get(name)
        if declared is None:
            return self._refuse(path, f"no argument ${name}{suggest(name, self.document.arguments)}", "unknown_name")
        if self.outer:
            parent, node = self.outer
            bound = parent.document.nodes[node].inputs.get(name)
            if isinstance(bound, list):
                return self._refuse(path, f"argument ${name} takes one link, not a list")
            if bound is not None:
                return parent.resolve(bound, f"nodes.{parent.prefix}{node}.inputs.{name}")
        if isinstance(declared, Argument) and declared.default is not None and name not in self.bound:
            return self.resolve(declared.default, f"{self.prefix}arguments.{name}.default")
        if self.outer:
            parent, node = self.outer
            where = f"nodes.{parent.prefix}{node}.inputs.{name}"
            return self._refuse(where, "missing: link it", "missing")
        self.opened[f"${name}"] = declared.type if isinstance(declared, Argument) else declared
        return Link(f"${name}", "")

    def _output(self, node: str, port: str, path: str) -> Link | None:
        if node not in self.document.nodes:
            hint = suggest(node, self.document.nodes)
            return self._refuse(path, f"no node {node!r}{hint}", "unknown_node")
        if self.document.nodes[node].type != SUBGRAPH:
            return Link(f"{self.prefix}{node}", port)
        return self.inner[node].output(port, path) if node in self.inner else None

    def output(self, port: str, path: str) -> Link | None:
        """The flat node behind an output of this graph."""
        outputs = self.document.outputs
        if not port and len(outputs) == 1:
            port = next(iter(outputs))
        if port not in outputs:
            listed = ", ".join(outputs) or "none"
            said = f"no output {port!r}" if port else "say which output"
            return self._refuse(path, f"{said} of {self.graph.title()!r} (it has {listed})", "unknown_output")
        return self.resolve(outputs[port], f"{self.prefix}outputs.{port}")

    def _refuse(self, path: str, message: str, code: str = "invalid") -> Link | None:
        self._complain(path, message, code)
        return None

    def _complain(self, path: str, message: str, code: str = "invalid") -> None:
        self.problems.append(Problem(path, message, code))
