"""The oracle: what a graph gives when everything is computed from scratch, and scripts of edits to compare it with.

A script is a list of moves made of plain numbers, read modulo whatever the graph has at that moment, so that hypothesis
can shrink it: add a node, change a literal, link something else, rename, swap files, evict, cancel, restart, sweep.
"""

import contextlib
import itertools
import shutil
import tempfile
from pathlib import Path

import toys
from accelerators import Accelerator
from hypothesis import strategies as st
from toys import REGISTRY, Blob, Wave

from engine.context import CancelToken
from engine.engine import Engine, Order
from engine.errors import Cancelled
from engine.event import NodeStarted
from engine.file import Files
from engine.graph import Graph
from engine.param import REQUIRED
from engine.socket import SCALARS

NAMES = ("fox.txt", "owl.txt")
BOOKS = ("fox", "owl")
CONTENTS = ("red", "blue", "der", "red ")
TEXTS = ("a", "b", "ab", "ba", "")
CHOICES = {
    ("toy.number", "value"): (0, 1, 2, 3),
    ("toy.load", "source"): NAMES,
    ("toy.recite", "poem"): ("fox", "owl fox", "elk", "owl"),
    ("toy.blob", "text"): TEXTS,
    ("toy.blob", "weight"): (1, 100, 400),
    ("toy.encode", "weight"): (1, 100, 400),
    ("toy.mix", "amount"): (0, 0.0, 0.5, 1),
    ("toy.mix", "seed"): (0, 1, 2),
    ("toy.mix", "mode"): ("add", "mul"),
    ("toy.classify", "classes"): (1, 2, 3),
    ("toy.steps", "count"): (0, 2),
    ("toy.climb", "way"): ("ab", "abc", "aba", "b"),
    ("toy.model", "name"): ("unet", "vae"),
    ("toy.model", "size"): (100, 200, 400),
    ("toy.patch", "name"): ("fox", "owl"),
}
TYPES = [
    *(type_ for type_ in REGISTRY if type_ not in {"toy.grid", "toy.climb"}),
    *("toy.number", "toy.scale", "toy.scale", "toy.join", "toy.blob"),
]
"""What is added, and how often: fusing takes several equal steps, and a list several values of one type."""

EDITS = ["add", "add", "param", "param", "param", "link", "swap", "swap", "rename", "remove"]
MOVES = [*EDITS, "file", "evict", "cancel", "restart", "nest", "nest", "together", "together", "walk", "walk"]
number = st.integers(0, 50)
move = st.tuples(st.sampled_from(MOVES), number, number, number)
scripts = st.tuples(
    st.lists(st.tuples(number, number, number), min_size=2, max_size=8),
    st.lists(move, min_size=1, max_size=12),
    st.sampled_from([0, 300, 1000, 1 << 30]),
    st.sampled_from([None, None, "disk", "small disk"]),
    st.sampled_from([None, None, 0, 150, 1 << 30]),
)


class Sketch:
    """A graph under construction: nodes in an order in which links only lead back."""

    def __init__(self):
        self.nodes = {}
        self.count = 0

    def offers(self, socket, before):
        """Links of the given type that earlier nodes offer."""
        found = []
        for name in before:
            for port, made in REGISTRY[self.nodes[name]["type"]].outputs.items():
                if issubclass(made, socket):
                    found.append(f"{name}.{port}")
        return found

    def add(self, a, b, c):
        """A node of some type, if everything that it needs is there."""
        definition = REGISTRY[TYPES[a % len(TYPES)]]
        inputs = {}
        for place, entry in enumerate(definition.inputs.values()):
            offers = self.offers(entry.socket, self.nodes)
            if not offers:
                if entry.optional:
                    continue
                return
            if entry.optional and c >> place & 1:
                continue
            links = (
                [offers[(b + i * c) % len(offers)] for i in range(1 + c % 3)] if entry.many else offers[b % len(offers)]
            )
            inputs[entry.name] = links
        params = {
            name: self.choice(definition.type, name, b + c)
            for name in definition.params
            if (definition.params[name].default is REQUIRED or (b + c) % 3)
        }
        self.nodes[f"n{self.count}"] = {"type": definition.type, "params": params, "inputs": inputs}
        self.count += 1

    def choice(self, type_, name, number):
        """Some value for a parameter."""
        choices = CHOICES[type_, name]
        return choices[number % len(choices)]

    def param(self, a, b, c):
        """Write a literal, write a default out, leave one out, or link a number."""
        name = self.pick(a)
        node = self.nodes[name]
        params = REGISTRY[node["type"]].params
        if not params:
            return
        param = list(params)[b % len(params)]
        earlier = list(self.nodes)[: list(self.nodes).index(name)]
        offers = self.offers(params[param].scalar, earlier) if params[param].scalar in SCALARS.values() else []
        if c % 4 == 0 and offers and param in ("seed", "value", "count") and params[param].scalar is SCALARS[int]:
            node["params"].pop(param, None)
            node["inputs"][param] = offers[c % len(offers)]
        else:
            node["inputs"].pop(param, None)
            node["params"][param] = self.choice(node["type"], param, c)

    def link(self, a, b, c):
        """Link an input to something else."""
        name = self.pick(a)
        node = self.nodes[name]
        entries = REGISTRY[node["type"]].inputs
        if not entries:
            return
        entry = list(entries.values())[b % len(entries)]
        offers = self.offers(entry.socket, list(self.nodes)[: list(self.nodes).index(name)])
        if entry.optional and c % 5 == 0:
            node["inputs"].pop(entry.name, None)
        elif offers:
            node["inputs"][entry.name] = (
                [offers[(c + i) % len(offers)] for i in range(1 + c % 3)] if entry.many else offers[c % len(offers)]
            )

    def swap(self, a, _b, _c):
        """Exchange what two inputs of a node are linked to, or move the one link there is."""
        node = self.nodes[self.pick(a)]
        entries = [entry for entry in REGISTRY[node["type"]].inputs.values() if not entry.many]
        if (
            len(entries) == 2
            and entries[0].socket is entries[1].socket
            and (entries[0].optional or len(node["inputs"]) > 1)
        ):
            one, other = (entry.name for entry in entries)
            links = {one: node["inputs"].get(other), other: node["inputs"].get(one)}
            node["inputs"] = {name: link for name, link in {**node["inputs"], **links}.items() if link is not None}

    def rename(self, a, b, _):
        """Another id, another place in the document."""
        old, new = self.pick(a), f"r{self.count}"
        self.count += 1
        text = {"n": new}
        for node in self.nodes.values():
            node["inputs"] = {
                port: [swapped(link, old, text["n"]) for link in links]
                if isinstance(links, list)
                else swapped(links, old, new)
                for port, links in node["inputs"].items()
            }
        self.nodes = {new if name == old else name: node for name, node in self.nodes.items()}

    def remove(self, a, _b, _c):
        """Take out a node that nothing needs."""
        used = {
            link.split(".")[0]
            for node in self.nodes.values()
            for links in node["inputs"].values()
            for link in (links if isinstance(links, list) else [links])
        }
        free = [name for name in self.nodes if name not in used]
        if len(self.nodes) > 1 and free:
            del self.nodes[free[a % len(free)]]

    def pick(self, number):
        """Some node."""
        return list(self.nodes)[number % len(self.nodes)]

    def document(self, number):
        """The graph; its outputs are one or all of the ports of its nodes."""
        ports = [f"{name}.{port}" for name, node in self.nodes.items() for port in REGISTRY[node["type"]].outputs]
        chosen = ports if number % 3 == 0 else [ports[number % len(ports)], ports[-1]]
        nodes = dict(reversed(self.nodes.items())) if number % 2 else self.nodes
        outputs = {f"out{index}": link for index, link in enumerate(chosen)}
        return Graph.parse({"format": "calotype/1", "nodes": nodes, "outputs": outputs})


def swapped(link, old, new):
    name, port = link.split(".")
    return f"{new if name == old else name}.{port}"


def from_scratch(graph, folder):
    """Every output, computed by calling the functions, without any engine."""
    files, known = Files([folder]), {}

    def value(link):
        name, port = link.split(".")
        if name not in known:
            known[name] = call(graph.document.nodes[name])
        return known[name][port]

    def call(node):
        definition = REGISTRY[node.type]
        given = {}
        for name, param in definition.params.items():
            if name in node.inputs:
                given[name] = param.parse(value(node.inputs[name]).value).value
            else:
                parsed = param.parse(node.params[name]) if name in node.params else param.parsed_default
                given[name] = files.resolve(param.file, parsed.value) if param.file else parsed.value
        for name, entry in definition.inputs.items():
            if name in node.inputs:
                links = node.inputs[name]
                given[name] = tuple(map(value, links)) if entry.many else value(links)
        if definition.context:
            given[definition.context] = toys.Context()
        returned = definition.function(**given)
        return dict(zip(definition.outputs, definition.unpack(returned), strict=True))

    return {name: value(link) for name, link in graph.document.outputs.items()}


class House:
    """An engine over a folder of files, that a script can break and restart."""

    def __init__(self, make, memory, disk, host):
        self.folder = Path(tempfile.mkdtemp(prefix="calotype-oracle-"))
        self.make, self.memory, self.disk, self.host = make, memory, disk, host
        self.seen = []
        for name, content in zip(NAMES, CONTENTS, strict=False):
            (self.folder / name).write_text(content)
        (self.folder / "books").mkdir()
        (self.folder / "books" / "fox.txt").write_text("fox")
        self.engine = self.open()

    def open(self):
        options = {"memory": self.memory, "files": Files([self.folder]), "strict": True}
        if self.disk:
            options |= {"cache": self.folder / "cache", "disk": 2000 if self.disk == "small disk" else 1 << 30}
        if self.host is not None:
            options |= {"device": Accelerator(), "host_memory": self.host}
        return self.make(REGISTRY, **options)

    def restart(self):
        self.engine.close()
        self.engine = self.open()

    def close(self):
        self.engine.close()
        shutil.rmtree(self.folder)

    def file(self, a, b, c):
        """Replace a file under its name; or write a book that a text may mention, or take it away."""
        if c % 2:
            book = self.folder / "books" / f"{BOOKS[a % len(BOOKS)]}.txt"
            book.write_text(CONTENTS[b % len(CONTENTS)])
            if not b % 3:
                book.unlink()
            return
        (self.folder / NAMES[a % len(NAMES)]).write_text(CONTENTS[b % len(CONTENTS)])

    def evict(self, a, b, _):
        """Let go of some values in memory."""
        for number, identity in enumerate(sorted(self.engine.store.identities())):
            if (number * a + b) % 3 == 0:
                self.engine.store.drop_memory(identity)

    def cancelled(self, graph, number):
        """Start a run and cancel it at its n-th node."""
        token, left = CancelToken(), [number % 4]

        def listener(event):
            if isinstance(event, NodeStarted):
                left[0] -= 1
                if left[0] < 0:
                    token.cancel()

        with contextlib.suppress(Cancelled):
            self.engine.run(graph, listener=listener, token=token)


def check(make, script):
    """Follow a script with an engine; every value it gives must be what computing from scratch gives."""
    start, moves, memory, disk, host = script
    house, sketch = House(make, memory, disk, host), Sketch()
    try:
        sketch.add(TYPES.index("toy.blob"), 0, 1)
        for numbers in start:
            sketch.add(*numbers)
        compare(house, sketch.document(0))
        for kind, a, b, c in moves:
            if kind in EDITS:
                getattr(sketch, kind)(a, b, c)
            elif kind in ("file", "evict"):
                getattr(house, kind)(a, b, c)
            elif kind == "cancel":
                house.cancelled(sketch.document(b), a)
            elif kind == "restart":
                house.restart()
            elif kind == "nest":
                compare_nested(house, sketch.document(b), a)
            elif kind == "walk":
                compare_walks(house, sketch, (a, b, c))
            elif kind == "together":
                compare_together(house, sketch, (a, b, c))
            compare(house, sketch.document(c))
            recall_again(house, sketch.document(c), a)
    finally:
        house.close()


def wrapped(graph, number):
    """The graph within another that sets one of its parameters, and what both must give: (outer, flat equivalent)."""
    literals = [(node, param) for node, found in graph.document.nodes.items() for param in found.params]
    outputs = {name: f"inner.{name}" for name in graph.document.outputs}
    outer = {"type": "graph", "graph": graph.dump()}
    if literals:
        node, param = literals[number % len(literals)]
        type_ = graph.document.nodes[node].type
        value = CHOICES[type_, param][number % len(CHOICES[type_, param])]
        outer["graph"]["expose"] = {"knob": f"{node}.{param}"}
        outer["params"] = {"knob": value}
        graph = graph.set({f"{node}.{param}": value})
    return Graph.parse({"format": "calotype/1", "nodes": {"inner": outer}, "outputs": outputs}), graph


def swept(graph, number):
    """The graph swept over one or two parameters, while a third may count: (whole graph, plain graph, its sweep).

    None where nothing can be swept. Where the only axis is a batch, outputs of any type are; else blobs, for a sheet.
    """
    literals = [(node, param) for node, found in graph.document.nodes.items() for param in found.params]
    outputs = dict(graph.document.outputs)
    letters = (("x", "y"), ("y", "batch"), ("batch", "x"))[number % 3][: 1 + number % 2]
    if letters != ("batch",):
        outputs = {name: link for name, link in outputs.items() if type_of(graph, link) is Blob}
    if not literals or not outputs:
        return None
    axes = {}
    for letter, index in zip(letters, (number, number // 2), strict=False):
        node, param = literals[index % len(literals)]
        if f"{node}.{param}" not in [name for axis in axes.values() for name in axis]:
            axes[letter] = {f"{node}.{param}": list(CHOICES[graph.document.nodes[node].type, param][:2])}
    vary = counting(graph, axes, literals, number) if number % 4 else {}
    sweep = {**axes, "vary": vary}
    return graph.replace(sweep=sweep, outputs=outputs), graph.replace(outputs=outputs), sweep


def counting(graph, axes, literals, number):
    """One of the whole numbers, counting up along all axes."""
    types = {node: REGISTRY[found.type] for node, found in graph.document.nodes.items()}
    whole = [f"{node}.{param}" for node, param in literals if types[node].params[param].scalar is SCALARS[int]]
    return {whole[number % len(whole)]: list(axes)} if whole else {}


def type_of(graph, link):
    """What a link gives."""
    node, port = link.split(".")
    return REGISTRY[graph.document.nodes[node].type].outputs[port]


def from_cells(graph, sweep, folder):
    """What a sweep must give: each output's cells, computed one by one, on one sheet or beside one another."""
    axes = {letter: sweep[letter] for letter in ("batch", "y", "x") if letter in sweep}
    lengths = {letter: len(next(iter(axis.values()))) for letter, axis in axes.items()}
    places = [dict(zip(axes, indexes, strict=True)) for indexes in itertools.product(*map(range, lengths.values()))]
    found = [(place, from_scratch(at(graph, sweep, places, place), folder)) for place in places]
    expected = {}
    for name, link in graph.document.outputs.items():
        letters = reached(graph, link, axes, sweep["vary"])
        values = {tuple(place[letter] for letter in axes if letter in letters): given[name] for place, given in found}
        expected |= shown(name, values, {letter: axes[letter] for letter in axes if letter in letters})
    return expected


def at(graph, sweep, places, place):
    """The graph of one cell."""
    axes = {letter: sweep[letter] for letter in place}
    graph = graph.set({name: values[place[letter]] for letter in axes for name, values in axes[letter].items()})
    for name in sweep["vary"]:
        node, param = name.split(".")
        graph = graph.set({name: graph.document.nodes[node].params[param] + places.index(place)})
    return graph


def shown(name, values, axes):
    """The cells of one output, each under its indexes on `axes`, as the sweep gives them."""
    if not axes:
        return {name: values[()]}
    if list(axes) == ["batch"]:
        return {f"{name}-{index + 1}": values[index,] for index in range(len(values))}
    labels = {
        letter: [f"{knob}: {oracle_label(value)}" for knob, listed in axes[letter].items() for value in listed]
        for letter in axes
        if letter != "batch"
    }
    plane = sorted({indexes[-len(labels) :] for indexes in values})
    cells = [[values[indexes] for indexes in sorted(values) if indexes[-len(labels) :] == place] for place in plane]
    pictures = tuple(toys.grid(tuple(cell), 0, [], []) if "batch" in axes else cell[0] for cell in cells)
    return {name: toys.grid(pictures, len(labels.get("x", "1")), labels.get("x", []), labels.get("y", []))}


def oracle_label(value):
    return f"{value:.8g}" if isinstance(value, float) else str(value)


def reached(graph, link, axes, vary):
    """Letters of the axes that change what a link gives: those that set a parameter upstream, or make it count."""
    seen, pending = set(), [link.split(".")[0]]
    while pending:
        name = pending.pop()
        if name not in seen:
            seen.add(name)
            for links in graph.document.nodes[name].inputs.values():
                pending += [item.split(".")[0] for item in (links if isinstance(links, list) else [links])]
    knobs = [(letter, knob) for letter, axis in axes.items() for knob in (*axis, *vary)]
    return {letter for letter, knob in knobs if knob.split(".")[0] in seen}


def compare_nested(house, graph, number):
    """The same graph within another, and swept."""
    outer, flat = wrapped(graph, number)
    assert dict(house.engine.run(outer).outputs) == from_scratch(flat, house.folder)
    if (found := swept(graph, number)) is not None:
        whole, plain, sweep = found
        expected = from_cells(plain, sweep, house.folder)
        assert dict(house.engine.run(whole).outputs) == expected


def compare_together(house, sketch, numbers):
    """Several variants of a graph at once, the last of which come while others run; then each of them recalled.

    One may be cancelled on its way.
    """
    chosen = (*numbers, sum(numbers), 2 * sum(numbers) + 1)
    graphs = [scaled(sketch, variant(sketch.document(number), number), number) for number in chosen]
    cancelled, punctual = numbers[0] % 5, 1 + numbers[1] % 4
    token, left, outcomes = CancelToken(), [numbers[2] % 6], {}

    def listener(event):
        if isinstance(event, NodeStarted):
            left[0] -= 1
            if left[0] < 0:
                token.cancel()

    orders = [Order(graph) for graph in graphs]
    orders[cancelled] = Order(graphs[cancelled], listener=listener, token=token)
    late = iter(orders[punctual:])
    house.engine.together(orders[:punctual], outcomes.__setitem__, lambda: list(itertools.islice(late, 1)))
    assert outcomes.keys() == set(range(len(graphs) - len(list(late))))
    for index, graph in enumerate(graphs[: len(outcomes)]):
        if index == cancelled and isinstance(outcomes[index], Cancelled):
            continue
        expected = from_scratch(graph, house.folder)
        assert dict(outcomes[index].outputs) == expected
        recalled = house.engine.recall(graph)
        assert recalled is None or dict(recalled.outputs) == expected


def scaled(sketch, graph, number):
    """The graph with something in it that may be on its way together with others."""
    waves = sketch.offers(Wave, sketch.nodes)
    if not waves:
        return graph
    document = graph.dump()
    document["nodes"]["by"] = {"type": "toy.number", "params": {"value": number % 5}}
    links = {"by": "by.out", "wave": waves[number % len(waves)]}
    document["nodes"]["scaled"] = {"type": "toy.scale", "inputs": links}
    document["outputs"]["scaled"] = "scaled.out"
    return Graph.parse(document)


def compare_walks(house, sketch, numbers):
    """Two ways that begin somewhere in a graph, of which others may have gone a part before."""
    waves, ways = sketch.offers(Wave, sketch.nodes), CHOICES["toy.climb", "way"]
    if not waves:
        return
    document = sketch.document(0).dump()
    a, b, c = numbers
    for name, way, place in (("one", a, b), ("other", a if c % 2 else c, b + c % 2)):
        walk = {"type": "toy.climb", "params": {"way": ways[way % len(ways)]}}
        document["nodes"][name] = {**walk, "inputs": {"wave": waves[place % len(waves)]}}
    graph = Graph.parse({**document, "outputs": {"one": "one.out", "other": "other.out"}})
    assert dict(house.engine.run(graph).outputs) == from_scratch(graph, house.folder)


def recall_again(house, graph, number):
    """Graphs that were seen before are recalled as what they would give now; the files may be others meanwhile."""
    house.seen = [*house.seen[-3:], graph]
    for seen in house.seen[number % 2 :]:
        for _ in range(2):
            recalled = house.engine.recall(seen)
            assert recalled is None or dict(recalled.outputs) == from_scratch(seen, house.folder)


def variant(graph, number):
    """The graph with one literal changed, or as it is."""
    literals = [(node, param) for node, found in graph.document.nodes.items() for param in found.params]
    if not literals or number % 4 == 0:
        return graph
    node, param = literals[number % len(literals)]
    choices = CHOICES[graph.document.nodes[node].type, param]
    return graph.set({f"{node}.{param}": choices[number // 2 % len(choices)]})


def compare(house, graph):
    """One run against the oracle and, where nothing is evicted meanwhile, against its own plan."""
    foreseen = {item.node: str(item.verdict) for item in house.engine.plan(graph)}
    result = house.engine.run(graph)
    expected = from_scratch(graph, house.folder)
    assert dict(result.outputs) == expected
    if house.memory < 1 << 30 or house.disk == "small disk":
        return  # what is evicted in the middle of a run cannot be foreseen
    for node in result.ran():
        assert foreseen[node] in ("run", "may run"), f"{node} ran, the plan said {foreseen[node]}"
    for node, verdict in foreseen.items():
        if verdict == "run":
            assert node in result.ran(), f"{node} did not run, the plan said it would"


__all__ = ["Blob", "Engine", "Wave", "check", "scripts"]
