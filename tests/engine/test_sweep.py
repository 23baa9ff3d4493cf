"""Sweeps: one flat graph in which each node stands once for each combination of the axes that reach it."""

import json
from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st
from toys import REGISTRY, Blob, Wave, graph

from engine import expand as expansion
from engine.errors import GraphError
from engine.expand import Link, Linked, expand
from engine.graph import Graph
from engine.node import node
from engine.program import compile_graph, validate

NODES = {
    "photo": ("toy.blob", {"text": "fox"}),
    "start": ("toy.encode", {}, {"blob": "photo"}),
    "paint": ("toy.mix", {"amount": 0.75}, {"a": "start"}),
    "again": ("toy.mix", {"seed": 1}, {"a": "paint", "b": "start"}),
    "decoded": ("toy.decode", {}, {"wave": "again"}),
}
EXPOSE = {"amount": "paint.amount", "seed": "again.seed", "mode": "paint.mode", "words": "photo.text"}


def sweep(outputs=("decoded",), nodes=NODES, registry=REGISTRY, **axes):
    """The flat graph of a sweep that is free of problems."""
    made = swept(outputs, nodes, **axes)
    assert validate(made, registry) == []
    return expand(made, registry, [])


def swept(outputs=("decoded",), nodes=NODES, **axes):
    return graph({name: name for name in outputs}, nodes, expose=EXPOSE, sweep=axes)


def problems(made, registry=REGISTRY):
    return [str(problem) for problem in validate(made, registry)]


def links(node, port):
    return [f"{link.node}.{link.port}".rstrip(".") for link in node.inputs[port].links]


class TestReach:
    def test_nodes_that_no_axis_reaches_stand_once(self):
        made = sweep(x={"amount": [0.25, 0.5]})
        assert [name for name in made.nodes if "[" not in name] == ["photo", "start", "grid:decoded"]

    def test_nodes_that_an_axis_reaches_stand_once_for_each_of_its_values(self):
        made = sweep(x={"amount": [0.25, 0.5]})
        assert [name for name in made.nodes if "[" in name] == [
            "paint[x0]", "paint[x1]", "again[x0]", "again[x1]", "decoded[x0]", "decoded[x1]",
        ]  # fmt: skip

    def test_only_where_both_axes_reach_every_combination_stands(self):
        made = sweep(x={"amount": [0.25, 0.5]}, y={"seed": [1, 2]})
        assert [name for name in made.nodes if name.startswith("paint")] == ["paint[x0]", "paint[x1]"]
        assert [name for name in made.nodes if name.startswith("again")] == [
            "again[x0,y0]", "again[x1,y0]", "again[x0,y1]", "again[x1,y1]",
        ]  # fmt: skip

    def test_a_cell_has_the_values_of_its_place(self):
        made = sweep(x={"amount": [0.25, 0.5]}, y={"seed": [7, 8]})
        assert made.nodes["paint[x1]"].params["amount"] == 0.5
        assert made.nodes["again[x1,y0]"].params["seed"] == 7

    def test_links_stay_within_the_cell_and_lead_out_to_what_is_shared(self):
        made = sweep(x={"amount": [0.25, 0.5]}, y={"seed": [7, 8]})
        assert links(made.nodes["again[x1,y0]"], "a") == ["paint[x1]"]
        assert links(made.nodes["again[x1,y0]"], "b") == ["start"]
        assert links(made.nodes["decoded[x1,y0]"], "wave") == ["again[x1,y0]"]

    def test_names_on_one_axis_advance_together(self):
        made = sweep(x={"amount": [0.25, 0.5], "mode": ["add", "mul"]})
        assert made.nodes["paint[x0]"].params == {"amount": 0.25, "mode": "add"}
        assert made.nodes["paint[x1]"].params == {"amount": 0.5, "mode": "mul"}

    def test_an_axis_over_a_link_takes_its_place(self):
        linked = {**NODES, "dice": ("toy.number",), "again": ("toy.mix", {}, {"a": "paint", "seed": "dice"})}
        made = sweep(nodes=linked, x={"seed": [1, 2]})
        assert set(made.nodes["again[x0]"].inputs) == {"a"}
        assert made.nodes["again[x1]"].params["seed"] == 2

    def test_an_axis_may_be_named_by_node_and_parameter(self):
        assert sweep(x={"paint.amount": [0.25, 0.5]}).nodes == {
            **sweep(x={"amount": [0.25, 0.5]}).nodes,
            "grid:decoded": sweep(x={"paint.amount": [0.25, 0.5]}).nodes["grid:decoded"],
        }

    def test_an_axis_may_lead_into_a_graph_within(self):
        inner = graph({"out": "n"}, {"n": ("toy.blob",)}, expose={"text": "n.text"}).dump()
        made = Graph.parse(
            {
                "format": "calotype/1",
                "nodes": {"one": {"type": "graph", "graph": inner}, "two": {"type": "graph", "graph": inner}},
                "outputs": {"one": "one", "two": "two"},
                "sweep": {"x": {"one.text": ["a", "b"]}},
            }
        )
        assert list(expand(made, REGISTRY, []).nodes) == ["one/n[x0]", "one/n[x1]", "two/n", "grid:one"]

    def test_an_empty_sweep_is_none(self):
        assert sweep().nodes == sweep(x={}).nodes == expand(graph({"decoded": "decoded"}, NODES), REGISTRY, []).nodes

    def test_one_value_is_a_sweep_of_one(self):
        assert "decoded[x0]" in sweep(x={"amount": [0.5]}).nodes

    @given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), max_size=6), st.sampled_from("xyz"), st.data())
    def test_a_swept_graph_is_what_setting_the_values_one_by_one_gives(self, pairs, letter, data):
        nodes = {"n0": ("toy.blob", {"text": "fox"}), "n1": ("toy.encode", {}, {"blob": "n0"})}
        for number, (a, b) in enumerate(pairs, start=2):
            waves = [name for name in nodes if name != "n0"]
            nodes[f"n{number}"] = ("toy.mix", {}, {"a": waves[a % len(waves)], "b": waves[b % len(waves)]})
        last = f"n{len(nodes) - 1}"
        nodes["out"] = ("toy.decode", {}, {"wave": last})
        where = data.draw(st.sampled_from([name for name, given in nodes.items() if given[0] == "toy.mix"] or ["n1"]))
        name = f"{where}.{'seed' if where != 'n1' else 'weight'}"
        values = data.draw(st.lists(st.integers(1, 3), min_size=1, max_size=3))
        plain = graph({"out": "out"}, nodes)
        cells = compile_graph(graph({"out": "out"}, nodes, sweep={letter: {name: values}}), REGISTRY)
        for number, value in enumerate(values):
            alone = compile_graph(plain.set({name: value}), REGISTRY)
            found = cells.index.get(f"out[{letter}{number}]", cells.index.get("out"))
            assert recipe(cells, found) == recipe(alone, alone.index["out"])


def recipe(program, position):
    """A step with all that it depends on, without ids."""
    step = program.steps[position]
    sources = [
        (source.name, [(recipe(program, port.step), port.output) for port in source.ports]) for source in step.sources
    ]
    return (step.head, sources)


class TestSheets:
    def test_a_reached_output_becomes_a_sheet_of_its_cells(self):
        made = sweep(x={"amount": [0.25, 0.5]})
        assert made.outputs["decoded"] == Link("grid:decoded", "")
        assert made.nodes["grid:decoded"].type == "toy.grid"
        assert made.nodes["grid:decoded"].inputs == {
            "blobs": Linked((Link("decoded[x0]", ""), Link("decoded[x1]", "")), many=True)
        }

    def test_an_output_that_no_axis_reaches_stays_single(self):
        made = sweep(outputs=("photo", "decoded"), x={"amount": [0.25, 0.5]})
        assert made.outputs["photo"] == Link("photo", "")

    def test_x_runs_across_and_y_down(self):
        made = sweep(x={"amount": [0.25, 0.5, 1]}, y={"seed": [7, 8]}).nodes["grid:decoded"]
        assert links(made, "blobs") == [f"decoded[x{x},y{y}]" for y in (0, 1) for x in (0, 1, 2)]
        assert made.params == {
            "columns": 3,
            "x_labels": ["amount: 0.25", "amount: 0.5", "amount: 1"],
            "y_labels": ["seed: 7", "seed: 8"],
        }

    def test_y_alone_is_one_column(self):
        made = sweep(y={"amount": [0.25, 0.5]}).nodes["grid:decoded"]
        assert made.params == {"columns": 1, "x_labels": [], "y_labels": ["amount: 0.25", "amount: 0.5"]}

    def test_z_puts_a_sheet_next_to_the_other(self):
        made = sweep(x={"amount": [0.25, 0.5]}, y={"seed": [7, 8]}, z={"words": ["fox", "owl", "elk"]})
        whole = made.nodes["grid:decoded"]
        assert links(whole, "blobs") == [f"grid:decoded[z{z}]" for z in (0, 1, 2)]
        assert whole.params == {"columns": 3, "x_labels": ["words: fox", "words: owl", "words: elk"], "y_labels": []}
        assert links(made.nodes["grid:decoded[z1]"], "blobs") == [
            f"decoded[x{x},y{y},z1]" for y in (0, 1) for x in (0, 1)
        ]
        assert made.nodes["grid:decoded[z1]"].params["columns"] == 2

    def test_only_the_axes_that_reach_an_output_are_labelled(self):
        made = sweep(
            outputs=("decoded", "other"),
            nodes={**NODES, "other": ("toy.decode", {}, {"wave": "paint"})},
            x={"amount": [0.25, 0.5]},
            y={"seed": [7, 8]},
        )
        assert made.nodes["grid:other"].params == {
            "columns": 2,
            "x_labels": ["amount: 0.25", "amount: 0.5"],
            "y_labels": [],
        }

    def test_an_axis_of_several_names_is_labelled_by_the_first(self):
        made = sweep(x={"mode": ["add", "mul"], "amount": [0.25, 0.5]}).nodes["grid:decoded"]
        assert made.params["x_labels"] == ["mode: add", "mode: mul"]

    @pytest.mark.parametrize(
        ("values", "labels"),
        [([0.1 + 0.2, 1.0], ["0.3", "1"]), ([1, True], ["1", "True"]), (["a", None], ["a", "None"])],
    )
    def test_a_label_is_short(self, values, labels):
        made = swept(x={"words": values})
        found = expand(made, REGISTRY, []).nodes["grid:decoded"].params["x_labels"]
        assert found == [f"words: {label}" for label in labels]

    def test_a_named_port_is_gathered(self):
        @node("toy.pairs", version=1)
        def pairs(blob: Blob) -> NamedTuple("Pair", [("left", Blob), ("right", Blob)]):
            """Two blobs."""

        nodes = {"photo": ("toy.blob",), "pair": ("toy.pairs", {}, {"blob": "photo"})}
        made = graph({"right": "pair.right"}, nodes, sweep={"x": {"photo.text": ["a", "b"]}})
        registry = REGISTRY.with_nodes(pairs)
        assert problems(made, registry) == []
        assert links(expand(made, registry, []).nodes["grid:right"], "blobs") == ["pair[x0].right", "pair[x1].right"]

    def test_the_sheet_fits_its_gatherer(self):
        assert problems(swept(x={"amount": [0.25, 0.5]}, y={"seed": [1, 2]}, z={"words": ["a", "b"]})) == []


class TestProblems:
    def test_uneven_names_on_one_axis_are_refused(self):
        made = swept(x={"amount": [0.25, 0.5], "mode": ["add"]})
        assert problems(made) == ["sweep.x: names on one axis advance together and need equally many values"]

    def test_an_unknown_name_is_refused_with_a_guess(self):
        assert problems(swept(y={"amuont": [0.5]})) == [
            'sweep.y.amuont: neither an exposed name nor node.param, did you mean "amount"?'
        ]

    def test_an_unknown_parameter_is_refused(self):
        found = problems(swept(x={"paint.amonut": [0.5]}))
        assert found == ['nodes.paint[x0].params.amonut: toy.mix has no parameter "amonut", did you mean "amount"?']

    def test_a_value_out_of_range_names_its_cell(self):
        found = problems(swept(x={"amount": [0.5, 2]}))
        assert found == ["nodes.paint[x1].params.amount: must be less than or equal to 1, got 2 (range 0..1)"]

    @pytest.mark.parametrize("name", ["amount", "paint.amount"])
    def test_one_parameter_on_two_axes_is_refused(self, name):
        assert problems(swept(x={"amount": [0.5, 1]}, y={name: [0.25]})) == [
            f"sweep.y.{name}: paint.amount is swept already, by sweep.x.amount"
        ]

    def test_one_parameter_twice_on_an_axis_is_refused(self):
        assert problems(swept(x={"amount": [0.5, 1], "paint.amount": [0.25, 1]})) == [
            "sweep.x.paint.amount: paint.amount is swept already, by sweep.x.amount"
        ]

    def test_too_many_cells_are_refused(self):
        thousands = list(range(101))
        assert problems(swept(x={"seed": thousands}, y={"words": [str(value) for value in thousands]})) == [
            "sweep: 10201 cells, at most 10000 are allowed"
        ]

    def test_too_many_nodes_are_refused_before_they_are_made(self):
        chain = {"n0": ("toy.blob",), "n1": ("toy.encode", {}, {"blob": "n0"})}
        for number in range(2, 2_000):
            chain[f"n{number}"] = ("toy.mix", {}, {"a": f"n{number - 1}"})
        values = [str(value) for value in range(10_000)]
        made = graph({}, chain, sweep={"x": {"n0.text": values}})
        assert problems(made) == [f"sweep: {2_000 * 10_000} nodes, at most {expansion.MAX_NODES} are allowed"]

    def test_an_output_that_nothing_gathers_is_one_problem(self):
        assert problems(swept(outputs=("again",), x={"amount": [0.5, 1]})) == [
            "outputs.again: no node puts many Wave on one sheet; sweep an output of another type"
        ]

    def test_an_output_of_an_unknown_type_is_one_problem(self):
        made = swept(nodes={**NODES, "decoded": ("toy.decoed", {}, {"wave": "again"})}, x={"amount": [0.5]})
        assert problems(made) == ['nodes.decoded[x0].type: unknown node type "toy.decoed", did you mean "toy.decode"?']

    def test_an_unknown_port_of_a_reached_output_is_one_problem(self):
        made = graph({"image": "decoded.ot"}, NODES, sweep={"x": {"paint.amount": [0.5, 1]}})
        assert problems(made) == ["outputs.image: toy.decode has no output 'ot': write decoded[x0].out"]

    def test_all_axes_are_judged_at_once(self):
        found = problems(swept(x={"amuont": [1]}, y={"sede": [1]}))
        assert [problem.split(":")[0] for problem in found] == ["sweep.x.amuont", "sweep.y.sede"]


def test_an_edit_of_a_swept_graph_reaches_every_cell():
    made = swept(x={"amount": [0.25, 0.5]}).set(seed=9)
    cells = expand(made, REGISTRY, []).nodes
    assert [cells[f"again[x{x}]"].params["seed"] for x in (0, 1)] == [9, 9]


def test_a_swept_document_survives_a_round_trip():
    made = swept(x={"amount": [0.25, 0.5]}, z={"words": ["a"]})
    assert expand(Graph.parse(json.loads(made.dumps())), REGISTRY, []) == expand(made, REGISTRY, [])


def test_a_cell_can_be_asked_for_by_its_id():
    program = compile_graph(swept(x={"amount": [0.25, 0.5]}), REGISTRY)
    assert program.steps[program.port("decoded[x1]").step].id == "decoded[x1]"
    with pytest.raises(GraphError, match="did you mean"):
        program.port("decoded[x2]")


def test_waves_are_never_gathered_as_blobs():
    assert REGISTRY.gatherer(Wave) is None
    assert REGISTRY.gatherer(Blob).type == "toy.grid"
