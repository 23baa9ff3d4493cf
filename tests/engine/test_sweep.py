"""Sweeps: one flat graph in which each node stands once for each combination of the axes that reach it."""

import json
from typing import Annotated, NamedTuple

import pytest
import toys
from annotated_types import Ge
from hypothesis import given
from hypothesis import strategies as st
from toys import LOG, REGISTRY, Blob, Wave, engine, graph, mixed

from engine.errors import GraphError
from engine.expand import expand
from engine.file import File, Files, ModelFile
from engine.flat import MAX_NODES, Link, Linked
from engine.graph import Graph
from engine.models import ModelPool, ModelRef
from engine.node import node
from engine.param import Fresh
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
        assert problems(made) == [f"sweep: {2_000 * 10_000} nodes, at most {MAX_NODES} are allowed"]

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


BATCHED = {**NODES, "again": ("toy.mix", {"seed": 1}, {"a": "start"})}
SHADES = {"amount": [0.25, 0.5]}


class TestBatch:
    def batch(self, values, outputs=("decoded",), **more):
        return swept(outputs, BATCHED, batch={"seed": values}, **more)

    def test_an_output_becomes_one_for_each_picture(self):
        made = expand(self.batch([5, 6, 7]), REGISTRY, [])
        assert made.outputs == {f"decoded-{number}": Link(f"decoded[b{number - 1}]", "") for number in (1, 2, 3)}
        assert [made.nodes[f"again[b{number}]"].params["seed"] for number in (0, 1, 2)] == [5, 6, 7]

    def test_no_gatherer_is_needed(self):
        made = self.batch([5, 6], outputs=("again", "start"))
        assert problems(made) == []
        assert list(expand(made, REGISTRY, []).outputs) == ["again-1", "again-2", "start"]

    def test_asking_for_the_output_gives_all_pictures(self):
        result = engine().run(self.batch([5, 6]), ["decoded"])
        assert list(result.outputs) == ["decoded-1", "decoded-2"]
        assert result["decoded-1"] == engine().run(graph({"out": "decoded"}, BATCHED).set({"again.seed": 5}))["out"]

    def test_two_more_pictures_compute_two_samples_and_two_decodes(self):
        house = engine()
        house.run(self.batch([1, 2, 3, 4]))
        LOG.clear()
        more = house.run(self.batch([1, 2, 3, 4, 5, 6]))
        assert sorted(LOG) == ["toy.decode", "toy.decode", "toy.mix", "toy.mix"]
        assert more.ran() == ["again[b4]", "again[b5]", "decoded[b4]", "decoded[b5]"]
        LOG.clear()
        assert house.run(self.batch([6, 2])).ran() == []

    def test_a_cell_of_a_sheet_shows_its_batch_on_a_plain_sheet(self):
        made = expand(self.batch([5, 6], x={"words": ["fox", "owl"]}), REGISTRY, [])
        assert made.outputs == {"decoded": Link("grid:decoded", "")}
        assert links(made.nodes["grid:decoded"], "blobs") == ["grid:decoded[x0]", "grid:decoded[x1]"]
        assert links(made.nodes["grid:decoded[x1]"], "blobs") == ["decoded[x1,b0]", "decoded[x1,b1]"]
        assert made.nodes["grid:decoded[x1]"].params == {"columns": 0, "x_labels": [], "y_labels": []}
        assert problems(self.batch([5, 6], x={"words": ["fox", "owl"]}, z={"amount": [0.5]})) == []

    def test_names_advance_together(self):
        made = self.batch([5, 6], outputs=("decoded",)).replace(
            sweep={"batch": {"seed": [5, 6], "words": ["fox", "owl"]}}
        )
        cells = compile_graph(made, REGISTRY).swept["decoded"].cells
        assert [cell.set for cell in cells] == [{"seed": 5, "words": "fox"}, {"seed": 6, "words": "owl"}]

    def test_a_name_that_is_taken_is_refused(self):
        made = graph({"a": "decoded", "a-2": "photo"}, BATCHED, sweep={"batch": {"again.seed": [1, 2]}})
        assert problems(made) == ["outputs.a: the batch calls a picture of it 'a-2', as another output is called"]

    def test_an_edit_reaches_every_picture_and_runs_what_it_must(self):
        house = engine()
        first = house.run(self.batch([1, 2]))
        LOG.clear()
        edited = house.run(first.graph.set({"words": "owl"}))
        assert sorted(LOG) == ["toy.blob", "toy.decode", "toy.decode", "toy.encode", "toy.mix", "toy.mix"]
        LOG.clear()
        assert house.run(edited.graph.set({"words": "fox"})).outputs == first.outputs
        assert LOG == []


class TestVary:
    def seeds(self, **more):
        made = swept(**more)
        assert problems(made) == []
        return [cell.set["seed"] for cell in compile_graph(made, REGISTRY).swept["decoded"].cells]

    X, Y, Z = {"amount": [0.25, 0.5]}, {"words": ["a", "b", "c"]}, {"mode": ["add", "mul"]}

    def test_a_number_counts_up_along_its_axes_x_fastest(self):
        assert self.seeds(x=self.X, y=self.Y, vary={"seed": ["x", "y"]}) == [1, 2, 3, 4, 5, 6]
        assert self.seeds(x=self.X, y=self.Y, z=self.Z, vary={"seed": ["x", "y", "z"]}) == list(range(1, 13))

    def test_axes_that_are_not_listed_count_one(self):
        assert self.seeds(x=self.X, y=self.Y, vary={"seed": ["y"]}) == [1, 1, 2, 2, 3, 3]
        assert self.seeds(x=self.X, y=self.Y, z=self.Z, vary={"seed": ["x", "z"]}) == [1, 2] * 3 + [3, 4] * 3

    def test_a_batch_counts_slowest(self):
        batch = {"start.weight": [1, 2, 3]}
        assert self.seeds(x=self.X, batch=batch, vary={"seed": ["batch", "x"]}) == [1, 3, 5, 2, 4, 6]

    def test_it_counts_from_what_an_axis_sets(self):
        assert self.seeds(x=self.X, y={"seed": [10, 20]}, vary={"seed": ["x"]}) == [10, 11, 20, 21]

    def test_it_counts_from_the_default_where_nothing_is_written(self):
        made = swept(x=self.X, vary={"photo.weight": ["x"]})
        assert [compile_graph(made, REGISTRY).steps[place].values["weight"] for place in (0, 1)] == [100, 101]

    def test_every_cell_is_what_setting_its_values_gives(self):
        made = swept(x=self.X, y=self.Y, vary={"seed": ["x", "y"]})
        house, program = engine(), compile_graph(made, REGISTRY)
        cells = program.swept["decoded"].cells
        found = house.run(made, [cell.link for cell in cells])
        for cell in cells:
            assert found[cell.link] == engine().run(made.replace(sweep=None).set(cell.set))["decoded"]

    @pytest.mark.parametrize(
        ("vary", "message"),
        [
            ({"sede": ["x"]}, 'sweep.vary.sede: neither an exposed name nor node.param, did you mean "seed"?'),
            ({"again.sede": ["x"]}, 'sweep.vary.again.sede: toy.mix has no parameter "sede", did you mean "seed"?'),
            ({"seed": ["y"]}, "sweep.vary.seed: this sweep has no axis y"),
            ({"amount": ["x"]}, "sweep.vary.amount: only whole numbers count up, and paint.amount is none"),
            ({"words": ["x"]}, "sweep.vary.words: only whole numbers count up, and photo.text is none"),
            ({"seed": ["x"], "again.seed": ["x"]}, "sweep.vary.again.seed: again.seed counts already, as seed"),
        ],
    )
    def test_what_cannot_count_is_refused(self, vary, message):
        assert problems(swept(x=self.X, vary=vary)) == [message]

    def test_a_linked_number_is_refused(self):
        linked = {**NODES, "dice": ("toy.number",), "again": ("toy.mix", {}, {"a": "paint", "seed": "dice"})}
        assert problems(swept(nodes=linked, x=self.X, vary={"seed": ["x"]})) == [
            "sweep.vary.seed: again.seed is linked; name the literal that it comes from"
        ]

    def test_a_word_that_is_no_axis_is_refused(self):
        with pytest.raises(GraphError, match=r"sweep.vary.seed\[0\]: expected 'x', 'y', 'z' or 'batch', got \"w\""):
            swept(x=self.X, vary={"seed": ["w"]})


TEXT = {**NODES, "photo": ("toy.blob", {"text": "a red fox, a fox"})}


class TestReplace:
    def texts(self, nodes=NODES, **more):
        made = swept(nodes=nodes, **more)
        assert problems(made) == []
        return [cell.set["words"] for cell in compile_graph(made, REGISTRY).swept["decoded"].cells]

    def test_values_stand_in_the_place_of_a_word(self):
        found = self.texts(TEXT, x={"words": ["fox", "owl"]}, replace={"x": "fox"})
        assert found == ["a red fox, a fox", "a red owl, a owl"]

    def test_two_axes_may_replace_words_of_one_text(self):
        found = self.texts(
            TEXT, x={"words": ["fox", "owl"]}, y={"words": ["red", "old"]}, replace={"x": "fox", "y": "red"}
        )
        assert found == ["a red fox, a fox", "a red owl, a owl", "a old fox, a fox", "a old owl, a owl"]

    def test_words_are_replaced_in_what_another_axis_sets(self):
        found = self.texts(
            x={"words": ["one fox", "no word"]}, batch={"words": ["fox", "owl"]}, replace={"batch": "fox"}
        )
        assert found == ["one fox", "one owl", "no word", "no word"]

    def test_labels_are_the_bare_words(self):
        made = swept(x={"words": ["fox", "owl"]}, replace={"x": "fox"})
        assert expand(made, REGISTRY, []).nodes["grid:decoded"].params["x_labels"] == ["fox", "owl"]

    def test_every_cell_is_what_setting_its_text_gives(self):
        made = swept(
            nodes=TEXT,
            x={"words": ["fox", "owl"]},
            y={"words": ["red", "old"]},
            replace={"x": "fox", "y": "red"},
        )
        cells = compile_graph(made, REGISTRY).swept["decoded"].cells
        found = engine().run(made, [cell.link for cell in cells])
        for cell in cells:
            assert found[cell.link] == engine().run(made.replace(sweep=None).set(cell.set))["decoded"]

    @pytest.mark.parametrize(
        ("axis", "replace", "message"),
        [
            ({"words": ["a", "b"]}, {"x": "owl"}, "sweep.replace.x: 'owl' stands nowhere in words"),
            ({"seed": ["a", "b"]}, {"x": "owl"}, "sweep.replace.x: 'owl' stands nowhere in seed"),
            ({"words": ["a", "b"]}, {"y": "fox"}, "sweep.replace.y: this sweep has no axis y"),
        ],
    )
    def test_a_word_that_stands_nowhere_is_refused(self, axis, replace, message):
        assert message in problems(swept(x=axis, replace=replace))

    def test_a_linked_text_is_refused(self):
        linked = {**NODES, "more": ("toy.label", {}, {"blob": "other"}), "other": ("toy.blob",)}
        linked["photo"] = ("toy.blob", {}, {"text": "more"})
        assert problems(swept(nodes=linked, x={"words": ["fox"]}, replace={"x": "fox"})) == [
            "sweep.replace.x: photo.text is linked; name the literal that it comes from"
        ]


class TestFreshSeeds:
    @staticmethod
    def house():
        @node("toy.draw", version=1)
        def draw(seed: Annotated[int, Ge(-1), Fresh(-1, 1 << 32)] = -1, more: int = 0) -> Blob:
            """A fresh seed."""
            return Blob(f"{seed} {more}")

        return engine(draw)

    def drawn(self, sweep, params=None):
        house = self.house()
        made = graph({"out": "a"}, {"a": ("toy.draw", params or {})}, sweep=sweep)
        result = house.run(made)
        assert house.run(result.graph).ran() == []
        return result.graph, [cell.set["a.seed"] for cell in house.program(result.graph).swept["out"].cells]

    def test_a_seed_that_varies_is_drawn_once_and_counts_up(self):
        written, seeds = self.drawn({"batch": {"a.more": [0, 0, 0]}, "vary": {"a.seed": ["batch"]}})
        first = written.dump()["nodes"]["a"]["params"]["seed"]
        assert first > 2
        assert seeds == [first, first + 1, first + 2]

    def test_each_one_on_an_axis_is_drawn_on_its_own(self):
        written, seeds = self.drawn({"x": {"a.seed": [-1, 7, -1]}})
        assert written.dump()["sweep"]["x"]["a.seed"] == seeds
        assert seeds[1] == 7
        assert len({*seeds, -1}) == 4

    def test_each_one_of_a_batch_is_drawn_on_its_own(self):
        assert len({*self.drawn({"batch": {"a.seed": [-1, -1]}})[1], -1}) == 3


class TestLabels:
    def test_labels_may_be_given(self):
        made = sweep(x=SHADES, labels={"x": ["little", "much"]}).nodes["grid:decoded"]
        assert made.params["x_labels"] == ["little", "much"]

    def test_there_is_one_for_each_value(self):
        assert problems(swept(x=SHADES, labels={"x": ["little"]})) == ["sweep.labels.x: 1 labels for 2 values"]
        assert problems(swept(x=SHADES, labels={"y": ["a"]})) == ["sweep.labels.y: this sweep has no axis y"]

    def test_sheets_may_go_without(self):
        made = sweep(x=SHADES, y={"words": ["a", "b"]}, z={"seed": [1, 2]}, legend=False)
        for name, columns in (("grid:decoded", 2), ("grid:decoded[z1]", 2)):
            assert made.nodes[name].params == {"columns": columns, "x_labels": [], "y_labels": []}

    def test_a_margin_goes_to_a_gatherer_that_has_one(self):
        @node("toy.table", version=1, gathers=True)
        def table(
            waves: tuple[Wave, ...], columns: int, x_labels: list[str], y_labels: list[str], margin: int = 0
        ) -> Wave:
            """A sheet of waves."""

        registry = REGISTRY.with_nodes(table)
        made = swept(("decoded", "again"), x=SHADES, margin=4)
        assert problems(made, registry) == []
        cells = expand(made, registry, []).nodes
        assert cells["grid:again"].params["margin"] == 4
        assert "margin" not in cells["grid:decoded"].params

    @pytest.mark.parametrize(
        ("name", "label"), [("models/fox v1.5.safetensors", "fox v1.5"), ("fox/", "fox"), ("v1.5", "v1.5")]
    )
    def test_models_are_labelled_without_folder_and_ending(self, name, label):
        made = graph({"out": "a"}, {"a": ("toy.weights", {"source": name})}, sweep={"x": {"a.source": [name]}})
        found = expand(made, REGISTRY.with_nodes(weights, inscribe), []).nodes["a[x0]"].params["source"]
        assert found == name
        made = swept_models(x={"model.source": [name]})
        assert expand(made, REGISTRY.with_nodes(weights, inscribe), []).nodes["grid:out"].params["x_labels"] == [
            f"model.source: {label}"
        ]

    @pytest.mark.parametrize(("value", "label"), [([], "none"), (["a", "b"], "a, b")])
    def test_a_list_is_labelled_by_what_is_in_it(self, value, label):
        found = expand(swept(x={"words": [value]}), REGISTRY, []).nodes["grid:decoded"].params["x_labels"]
        assert found == [f"words: {label}"]


class TestSheetsInARow:
    def test_z_alone_is_one_row_of_cells(self):
        made = sweep(z={"words": ["fox", "owl", "elk"]}).nodes
        assert links(made["grid:decoded"], "blobs") == ["decoded[z0]", "decoded[z1]", "decoded[z2]"]
        assert made["grid:decoded"].params == {
            "columns": 3,
            "x_labels": ["words: fox", "words: owl", "words: elk"],
            "y_labels": [],
        }

    def test_sheets_and_cells_may_be_asked_for(self):
        program = compile_graph(swept(x={"amount": [0.25, 0.5]}, z={"words": ["fox", "owl", "elk"]}), REGISTRY)
        found = program.swept["decoded"]
        assert found.sheets == ("grid:decoded[z0].out", "grid:decoded[z1].out", "grid:decoded[z2].out")
        assert [cell.link for cell in found.cells] == [f"decoded[x{x},z{z}].out" for z in (0, 1, 2) for x in (0, 1)]
        assert found.cells[1].set == {"amount": 0.5, "words": "fox"}
        assert program.wanted([*found.sheets, found.cells[0].link]).keys() == {*found.sheets, "decoded[x0,z0].out"}


@toys.dataclass(frozen=True)
class Weights(ModelRef):
    """A model."""

    name: str

    def load(self, files, place):
        return self.name

    def module_bytes(self, module):
        return 1


@node("toy.weights", version=1)
def weights(source: ModelFile) -> Weights:
    """A model by file."""
    return Weights(source.path.stem)


GROUPS = []


def inscribe_many(calls):
    """Several calls in one."""
    GROUPS.append([call["model"].name for call in calls])
    yield {number: inscribe(**call) for number, call in enumerate(calls)}


@node("toy.inscribe", version=1, many=inscribe_many)
def inscribe(model: Weights, seed: int = 0, source: File | None = None) -> Blob:
    """What a model makes of a seed."""
    return Blob(mixed(model.name, seed, source and source.name))


def swept_models(**axes):
    nodes = {
        "model": ("toy.weights", {"source": "a"}),
        "other": ("toy.weights", {"source": "a"}),
        "one": ("toy.inscribe", {}, {"model": "model"}),
    }
    return graph({"out": "one"}, nodes, sweep=axes)


class TestOrder:
    REGISTRY = REGISTRY.with_nodes(weights, inscribe)

    def made(self, **axes):
        """The cells in the order in which they are made."""
        flat = expand(swept_models(**axes), self.REGISTRY, [])
        return [name.removeprefix("one") for name in flat.nodes if name.startswith("one[")]

    @pytest.mark.parametrize("letter", ["x", "y", "z", "batch"])
    def test_models_change_slowest_whatever_their_axis(self, letter):
        other = "y" if letter == "x" else "x"
        order = self.made(**{letter: {"model.source": ["a", "b"]}, other: {"one.seed": [1, 2]}})
        assert [f"{letter[0]}0" in place for place in order] == [True, True, False, False]

    def test_models_come_before_other_files_and_files_before_numbers(self):
        order = self.made(x={"model.source": ["a", "b"]}, y={"one.source": ["p", "q"]}, z={"one.seed": [1, 2]})
        assert order == [f"[x{x},y{y},z{z}]" for x in (0, 1) for y in (0, 1) for z in (0, 1)]

    def test_the_sheet_is_laid_out_by_letter(self):
        flat = expand(swept_models(x={"model.source": ["a", "b"]}, y={"one.seed": [1, 2]}), self.REGISTRY, [])
        assert links(flat.nodes["grid:out"], "blobs") == ["one[x0,y0]", "one[x1,y0]", "one[x0,y1]", "one[x1,y1]"]

    def test_calls_of_one_model_are_made_together_and_those_of_another_after_them(self, tmp_path):
        for name in ("a", "b"):
            (tmp_path / f"{name}.safetensors").write_text(name)
        GROUPS.clear()
        files = [str(tmp_path / f"{name}.safetensors") for name in ("a", "b")]
        house = engine(weights, inscribe, files=Files([tmp_path]))
        house.run(swept_models(x={"model.source": files}, y={"one.seed": list(range(40))}))
        assert GROUPS == [["a"] * 32, ["a"] * 8, ["b"] * 32, ["b"] * 8]

    def test_models_that_come_next_are_read_ahead_while_the_first_one_is_at_work(self, tmp_path, monkeypatch):
        for name in ("a", "b"):
            (tmp_path / f"{name}.safetensors").write_text(name)
        GROUPS.clear()
        seen = []
        monkeypatch.setattr(
            ModelPool, "foresee", lambda _, refs: seen.append((len(GROUPS), {ref.name for ref in refs}))
        )
        house = engine(weights, inscribe, files=Files([tmp_path]))
        files = [str(tmp_path / f"{name}.safetensors") for name in ("a", "b")]
        house.run(swept_models(x={"model.source": files}, y={"one.seed": [1, 2]}))
        assert seen == [(0, {"a", "b"}), (1, {"b"})]


@pytest.mark.parametrize(
    ("sweep", "message"),
    [
        ({"margin": 501}, "sweep.margin: expected less than or equal to 500, got 501"),
        ({"legned": False}, 'sweep.legned: unknown field, did you mean "legend"?'),
        ({"legend": 0}, "sweep.legend: expected a valid boolean, got 0"),
        ({"labels": {"batch": ["a"]}}, "sweep.labels"),
    ],
)
def test_a_sweep_of_the_wrong_form_is_refused(sweep, message):
    with pytest.raises(GraphError) as error:
        graph({}, NODES, sweep=sweep)
    assert message in str(error.value)
