"""Graphs as nodes: flattened to ids such as `first/start`, with literals, links and arguments from outside."""

import copy
import json

import pytest
from toys import REGISTRY, Blob, graph

from engine.errors import GraphError
from engine.expand import expand
from engine.flat import Link, Linked
from engine.graph import MAX_DEPTH, Graph
from engine.program import compile_graph, validate

FORMAT = {"format": "calotype/1"}
PAINT = {
    **FORMAT,
    "nodes": {
        "start": {"type": "toy.encode", "inputs": {"blob": "$image"}},
        "paint": {"type": "toy.mix", "params": {"seed": 1}, "inputs": {"a": "start"}},
        "decoded": {"type": "toy.decode", "inputs": {"wave": "paint"}},
    },
    "arguments": {"image": "Blob"},
    "expose": {"strength": "paint.amount", "seed": "paint.seed"},
    "outputs": {"image": "decoded", "wave": "paint"},
}
PHOTO = {"type": "toy.blob", "params": {"text": "fox"}}


def house(nodes, outputs=(), library=None, **more):
    """A graph with PAINT, or whatever a node says, inside."""
    document = {**FORMAT, "nodes": copy.deepcopy(nodes), "outputs": dict(outputs), **more}
    return Graph.parse(document, library) if library else Graph.parse(document)


def first(**more):
    return {"type": "graph", "graph": PAINT, "inputs": {"image": "photo"}, **more}


def flat(made):
    """The flat graph, which must be free of problems."""
    assert validate(made, REGISTRY) == []
    return expand(made, REGISTRY, [])


def problems(made):
    return [str(problem) for problem in validate(made, REGISTRY)]


def inputs(node):
    return {
        name: [f"{link.node}.{link.port}".rstrip(".") for link in given.links] for name, given in node.inputs.items()
    }


class TestFlattening:
    def test_nodes_stand_under_the_id_of_the_node_that_holds_them(self):
        made = flat(house({"photo": PHOTO, "first": first()}, {"image": "first.image"}))
        assert list(made.nodes) == ["photo", "first/start", "first/paint", "first/decoded"]

    def test_links_within_lead_to_flat_ids_and_arguments_to_what_was_linked(self):
        made = flat(house({"photo": PHOTO, "first": first()}))
        assert inputs(made.nodes["first/start"]) == {"blob": ["photo"]}
        assert inputs(made.nodes["first/paint"]) == {"a": ["first/start"]}

    def test_an_output_leads_to_the_node_behind_it(self):
        made = flat(house({"photo": PHOTO, "first": first()}, {"image": "first.image", "wave": "first.wave"}))
        assert dict(made.outputs) == {"image": Link("first/decoded", ""), "wave": Link("first/paint", "")}

    def test_the_port_of_an_output_is_kept(self):
        parts = {
            **FORMAT,
            "nodes": {"cut": {"type": "toy.split", "inputs": {"blob": "$blob"}}},
            "arguments": {"blob": "Blob"},
            "outputs": {"tail": "cut.tail"},
        }
        nodes = {"photo": PHOTO, "parts": {"type": "graph", "graph": parts, "inputs": {"blob": "photo"}}}
        made = flat(house(nodes, {"tail": "parts"}))
        assert made.outputs["tail"] == Link("parts/cut", "tail")

    def test_the_only_output_needs_no_name(self):
        small = {**PAINT, "outputs": {"image": "decoded"}}
        made = flat(house({"photo": PHOTO, "first": first(graph=small)}, {"image": "first"}))
        assert made.outputs["image"] == Link("first/decoded", "")

    def test_a_chain_of_two_links_one_to_the_other(self):
        nodes = {"photo": PHOTO, "first": first(), "second": first(inputs={"image": "first.image"})}
        made = flat(house(nodes, {"image": "second.image"}))
        assert inputs(made.nodes["second/start"]) == {"blob": ["first/decoded"]}

    def test_the_order_in_which_nodes_are_written_is_irrelevant(self):
        nodes = {"second": first(inputs={"image": "first.image"}), "first": first(), "photo": PHOTO}
        made = flat(house(nodes, {"image": "second.image"}))
        assert inputs(made.nodes["second/start"]) == {"blob": ["first/decoded"]}

    def test_an_output_may_be_an_argument_passed_through(self):
        through = {**FORMAT, "nodes": {}, "arguments": {"image": "Blob"}, "outputs": {"image": "$image"}}
        made = flat(house({"photo": PHOTO, "first": first(graph=through)}, {"image": "first"}))
        assert made.outputs["image"] == Link("photo", "")

    def test_a_list_may_take_links_from_several_graphs(self):
        nodes = {
            "photo": PHOTO,
            "first": first(),
            "second": first(),
            "sheet": {"type": "toy.join", "inputs": {"blobs": ["first.image", "photo", "second.image"]}},
        }
        made = flat(house(nodes, {"image": "sheet"}))
        assert made.nodes["sheet"].inputs["blobs"] == Linked(
            (Link("first/decoded", ""), Link("photo", ""), Link("second/decoded", "")), many=True
        )

    def test_a_graph_within_a_graph_within_a_graph(self):
        middle = {
            **FORMAT,
            "nodes": {"inner": first(inputs={"image": "$picture"})},
            "arguments": {"picture": "Blob"},
            "expose": {"strength": "inner.strength"},
            "outputs": {"out": "inner.image"},
        }
        nodes = {
            "photo": PHOTO,
            "outer": {"type": "graph", "graph": middle, "inputs": {"picture": "photo"}, "params": {"strength": 0.125}},
        }
        made = flat(house(nodes, {"image": "outer"}))
        assert list(made.nodes) == ["photo", "outer/inner/start", "outer/inner/paint", "outer/inner/decoded"]
        assert inputs(made.nodes["outer/inner/start"]) == {"blob": ["photo"]}
        assert made.nodes["outer/inner/paint"].params["amount"] == 0.125
        assert made.outputs["image"] == Link("outer/inner/decoded", "")

    def test_an_inlined_graph_means_the_same_as_its_nodes_written_out(self):
        nested = compile_graph(
            house({"photo": PHOTO, "first": first(params={"strength": 0.25})}, {"image": "first.image"}), REGISTRY
        )
        plain = compile_graph(
            graph(
                {"image": "d"},
                {
                    "p": ("toy.blob", {"text": "fox"}),
                    "s": ("toy.encode", {}, {"blob": "p"}),
                    "m": ("toy.mix", {"seed": 1, "amount": 0.25}, {"a": "s"}),
                    "d": ("toy.decode", {}, {"wave": "m"}),
                },
            ),
            REGISTRY,
        )
        assert [step.head for step in nested.steps] == [step.head for step in plain.steps]
        assert [step.sources for step in nested.steps] == [step.sources for step in plain.steps]


class TestArguments:
    def test_an_unbound_argument_falls_back_to_its_default(self):
        own = copy.deepcopy(PAINT)
        own["nodes"]["blank"] = {"type": "toy.blob"}
        own["arguments"] = {"image": {"type": "Blob", "default": "blank"}}
        made = flat(house({"first": {"type": "graph", "graph": own}}))
        assert inputs(made.nodes["first/start"]) == {"blob": ["first/blank"]}

    def test_a_bound_argument_does_not(self):
        own = copy.deepcopy(PAINT)
        own["nodes"]["blank"] = {"type": "toy.blob"}
        own["arguments"] = {"image": {"type": "Blob", "default": "blank"}}
        made = flat(house({"photo": PHOTO, "first": first(graph=own)}))
        assert inputs(made.nodes["first/start"]) == {"blob": ["photo"]}

    def test_an_unbound_argument_without_default_is_one_problem(self):
        twice = copy.deepcopy(PAINT)
        twice["nodes"]["again"] = {"type": "toy.encode", "inputs": {"blob": "$image"}}
        made = house({"first": {"type": "graph", "graph": twice}})
        assert problems(made) == ["nodes.first.inputs.image: missing: link it"]

    def test_an_argument_takes_one_link(self):
        made = house({"photo": PHOTO, "first": first(inputs={"image": ["photo", "photo"]})})
        assert problems(made) == ["nodes.first/start.inputs.blob: argument $image takes one link, not a list"]

    def test_an_argument_of_the_outermost_graph_is_open_until_bound(self):
        made = Graph.parse(PAINT)
        assert problems(made) == ["arguments.image: open: bind it to a value of type Blob, or give it a default"]
        assert validate(made, REGISTRY, ["image"]) == []
        program = compile_graph(made, REGISTRY, {"image": Blob("a")})
        assert [step.argument for step in program.steps if step.argument] == [Blob("a")]

    def test_a_bound_value_is_of_the_declared_type(self):
        with pytest.raises(GraphError, match=r"arguments\.image: expected Blob \(toys\), got engine\.graph\.Graph"):
            compile_graph(Graph.parse(PAINT), REGISTRY, {"image": Graph.parse(PAINT)})

    def test_a_bound_argument_overrides_the_default_of_the_outermost_graph(self):
        own = copy.deepcopy(PAINT)
        own["nodes"]["blank"] = {"type": "toy.blob"}
        own["arguments"] = {"image": {"type": "Blob", "default": "blank"}}
        program = compile_graph(Graph.parse(own), REGISTRY, {"image": Blob("a")})
        (source,) = next(step for step in program.steps if step.id == "start").sources
        assert [program.steps[port.step].argument for port in source.ports] == [Blob("a")]

    def test_an_argument_leads_on_to_the_argument_of_the_graph_around(self):
        middle = {**FORMAT, "nodes": {"inner": first(inputs={"image": "$picture"})}, "arguments": {"picture": "Blob"}}
        made = Graph.parse(middle)
        assert validate(made, REGISTRY, ["picture"]) == []
        assert inputs(expand(made, REGISTRY, [], ["picture"]).nodes["inner/start"]) == {"blob": ["$picture"]}

    def test_a_type_that_no_node_uses_is_refused_within_too(self):
        own = {**PAINT, "arguments": {"image": "Blob", "mask": "Wafe"}}
        made = house({"photo": PHOTO, "first": first(graph=own)})
        assert problems(made) == ['first/arguments.mask: unknown type "Wafe", did you mean "Wave"?']


class TestExposed:
    def test_a_literal_overrides_the_one_within(self):
        made = flat(house({"photo": PHOTO, "first": first(params={"strength": 0.75, "seed": 9})}))
        assert made.nodes["first/paint"].params == {"amount": 0.75, "seed": 9}

    def test_two_uses_of_one_graph_are_set_apart(self):
        nodes = {"photo": PHOTO, "first": first(params={"seed": 2}), "second": first()}
        made = flat(house(nodes))
        assert made.nodes["first/paint"].params["seed"] == 2
        assert made.nodes["second/paint"].params["seed"] == 1

    def test_a_link_overrides_the_literal_within(self):
        nodes = {
            "photo": PHOTO,
            "dice": {"type": "toy.number"},
            "first": first(inputs={"image": "photo", "seed": "dice"}),
        }
        made = flat(house(nodes))
        assert inputs(made.nodes["first/paint"]) == {"a": ["first/start"], "seed": ["dice"]}
        assert "seed" not in made.nodes["first/paint"].params

    def test_a_literal_overrides_the_link_within(self):
        own = copy.deepcopy(PAINT)
        own["nodes"]["dice"] = {"type": "toy.number"}
        own["nodes"]["paint"] = {"type": "toy.mix", "inputs": {"a": "start", "seed": "dice"}}
        made = flat(house({"photo": PHOTO, "first": first(graph=own, params={"seed": 5})}))
        assert inputs(made.nodes["first/paint"]) == {"a": ["first/start"]}
        assert made.nodes["first/paint"].params["seed"] == 5

    def test_a_link_may_come_from_another_graph_wherever_that_is_written(self):
        dice = {**FORMAT, "nodes": {"number": {"type": "toy.number"}}, "outputs": {"out": "number"}}
        linked = first(inputs={"image": "photo", "seed": "dice"})
        for nodes in (
            {"photo": PHOTO, "first": linked, "dice": {"type": "graph", "graph": dice}},
            {"dice": {"type": "graph", "graph": dice}, "photo": PHOTO, "first": linked},
        ):
            assert inputs(flat(house(nodes)).nodes["first/paint"])["seed"] == ["dice/number"]

    def test_a_literal_from_outermost_overrides_a_link_in_the_middle(self):
        inner = first(inputs={"image": "$picture", "seed": "dice"})
        middle = {
            **FORMAT,
            "nodes": {"dice": {"type": "toy.number"}, "inner": inner},
            "arguments": {"picture": "Blob"},
            "expose": {"seed": "inner.seed"},
        }
        nodes = {
            "photo": PHOTO,
            "outer": {"type": "graph", "graph": middle, "inputs": {"picture": "photo"}, "params": {"seed": 7}},
        }
        made = flat(house(nodes))
        assert made.nodes["outer/inner/paint"].params["seed"] == 7
        assert inputs(made.nodes["outer/inner/paint"]) == {"a": ["outer/inner/start"]}

    def test_a_link_from_outermost_overrides_a_literal_in_the_middle(self):
        inner = first(inputs={"image": "$picture"}, params={"seed": 7})
        middle = {
            **FORMAT,
            "nodes": {"inner": inner},
            "arguments": {"picture": "Blob"},
            "expose": {"seed": "inner.seed"},
        }
        nodes = {
            "photo": PHOTO,
            "dice": {"type": "toy.number"},
            "outer": {"type": "graph", "graph": middle, "inputs": {"picture": "photo", "seed": "dice"}},
        }
        made = flat(house(nodes))
        assert inputs(made.nodes["outer/inner/paint"])["seed"] == ["dice"]
        assert "seed" not in made.nodes["outer/inner/paint"].params

    def test_both_a_literal_and_a_link_is_a_problem(self):
        nodes = {
            "photo": PHOTO,
            "dice": {"type": "toy.number"},
            "first": first(params={"seed": 1}, inputs={"image": "photo", "seed": "dice"}),
        }
        assert problems(house(nodes)) == ["nodes.first.params.seed: stands under params and under inputs; keep one"]


class TestSetting:
    def test_an_exposed_name_leads_through_every_level(self):
        made = house({"photo": PHOTO, "first": first()}, expose={"how": "first.strength"})
        assert made.locate("how") == made.locate("first.strength") == ("first/paint", "amount")
        assert flat(made.set(how=0.25)).nodes["first/paint"].params["amount"] == 0.25

    def test_what_a_graph_exposes_is_set_on_the_node_that_holds_it(self):
        made = house({"photo": PHOTO, "first": first()}).set({"first.strength": 0.25})
        assert made.document.nodes["first"].params == {"strength": 0.25}

    def test_the_same_parameter_by_its_place_within_is_set_in_the_same_place(self):
        made = house({"photo": PHOTO, "first": first()}).set({"first/paint.amount": 0.25})
        assert made.document.nodes["first"].params == {"strength": 0.25}

    def test_what_a_graph_does_not_expose_is_set_by_its_place_within(self):
        made = house({"photo": PHOTO, "first": first(), "second": first()}).set({"first/paint.mode": "mul"})
        assert flat(made).nodes["first/paint"].params["mode"] == "mul"
        assert "mode" not in flat(made).nodes["second/paint"].params

    def test_a_place_two_levels_down_is_set(self):
        middle = {**FORMAT, "nodes": {"inner": first(inputs={"image": "$picture"})}, "arguments": {"picture": "Blob"}}
        nodes = {"photo": PHOTO, "outer": {"type": "graph", "graph": middle, "inputs": {"picture": "photo"}}}
        made = house(nodes)
        assert made.locate("outer/inner/paint.amount") == ("outer/inner/paint", "amount")
        for name in ("outer/inner/paint.amount", "outer/inner.strength", "outer/inner/paint.mode"):
            value = "mul" if name.endswith("mode") else 0.25
            assert value in flat(made.set({name: value})).nodes["outer/inner/paint"].params.values()

    def test_the_original_is_left_alone(self):
        made = house({"photo": PHOTO, "first": first()})
        before = made.dump(inline=True)
        made.set({"first/paint.mode": "mul", "first.strength": 0.25})
        assert made.dump(inline=True) == before

    @pytest.mark.parametrize(
        "name", ["first/pant.mode", "first/zzz", "first.zzz", "first/", "frst/paint.mode", "first/paint/a.b"]
    )
    def test_a_name_that_leads_nowhere_is_quoted_whole(self, name):
        with pytest.raises(GraphError) as caught:
            house({"photo": PHOTO, "first": first()}).set({name: 1})
        assert [problem.path for problem in caught.value.problems] == [name]

    def test_the_type_of_a_node_is_found_by_its_flat_id(self):
        made = house({"photo": PHOTO, "first": first()})
        assert made.node_type("first/paint") == "toy.mix"
        assert made.node_type("photo") == "toy.blob"


class TestProblems:
    @pytest.mark.parametrize(
        ("changes", "where", "problem"),
        [
            (
                {"params": {"strenght": 1}},
                "nodes.first.params.strenght",
                "'paint' has no parameter 'strenght', did you mean \"strength\"?",
            ),
            (
                {"inputs": {"image": "photo", "imag": "photo"}},
                "nodes.first.inputs.imag",
                "'paint' has no argument or parameter 'imag', did you mean \"image\"?",
            ),
            ({"inputs": {"image": "phto"}}, "nodes.first.inputs.image", "no node 'phto', did you mean \"photo\"?"),
            (
                {"params": {"strength": 2}},
                "nodes.first/paint.params.amount",
                "must be less than or equal to 1, got 2 (range 0..1)",
            ),
        ],
    )
    def test_what_the_holding_node_says_wrong_is_told_by_its_path(self, changes, where, problem):
        own = {**PAINT, "meta": {"title": "paint"}}
        assert problems(house({"photo": PHOTO, "first": first(graph=own, **changes)})) == [f"{where}: {problem}"]

    @pytest.mark.parametrize(
        ("path", "value", "where", "problem"),
        [
            ("nodes.paint.type", "toy.mxi", "nodes.first/paint.type", 'unknown node type "toy.mxi", did you mean'),
            ("nodes.paint.inputs.a", "strat", "nodes.first/paint.inputs.a", "no node 'strat', did you mean"),
            ("nodes.start.inputs.blob", "$imag", "nodes.first/start.inputs.blob", "no argument $imag, did you mean"),
            (
                "nodes.start.inputs.blob",
                "paint",
                "nodes.first/start.inputs.blob",
                "expected Blob, got Wave from first/",
            ),
            ("expose.strength", "paint.amont", "first/expose.strength", "paint has no parameter 'amont', did you mean"),
            ("expose.strength", "pant.amount", "first/expose.strength", "no node 'pant', did you mean"),
        ],
    )
    def test_what_is_wrong_within_is_told_by_its_flat_path(self, path, value, where, problem):
        own = copy.deepcopy(PAINT)
        *way, last = path.split(".")
        at = own
        for part in way:
            at = at[part]
        at[last] = value
        found = problems(house({"photo": PHOTO, "first": first(graph=own)}))
        assert [line for line in found if line.startswith(f"{where}: {problem}")]

    def test_an_unknown_output_lists_those_that_there_are(self):
        made = house({"photo": PHOTO, "first": first()}, {"image": "first.picture"})
        assert problems(made) == ["outputs.image: no output 'picture' of 'untitled' (it has image, wave)"]

    def test_several_outputs_need_a_name(self):
        made = house({"photo": PHOTO, "first": first()}, {"image": "first"})
        assert problems(made) == ["outputs.image: say which output of 'untitled' (it has image, wave)"]

    def test_a_problem_of_shape_is_told_by_its_path(self):
        with pytest.raises(GraphError) as caught:
            house({"first": first(graph={**PAINT, "nodes": {"a": {"type": 7}}})})
        assert [problem.path for problem in caught.value.problems] == ["nodes.first.graph.nodes.a.type"]

    def test_a_graph_within_cannot_sweep(self):
        made = house({"photo": PHOTO, "first": first(graph={**PAINT, "sweep": {"x": {"strength": [0.5, 1]}}})})
        assert problems(made) == ["nodes.first.graph: a graph within a graph cannot sweep; sweep in the outermost one"]

    def test_a_circle_through_a_graph_is_refused(self):
        assert problems(house({"first": first(inputs={"image": "first.image"})}, {"image": "first.image"})) != []

    def test_an_argument_that_leads_back_to_itself_is_refused(self):
        through = {**FORMAT, "nodes": {}, "arguments": {"image": "Blob"}, "outputs": {"image": "$image"}}
        made = house({"first": {"type": "graph", "graph": through, "inputs": {"image": "first"}}}, {"image": "first"})
        assert [problem for problem in problems(made) if "leads back to itself" in problem]

    def test_a_default_that_leads_back_to_itself_is_refused(self):
        made = Graph.parse(
            {**FORMAT, "nodes": {}, "arguments": {"a": {"type": "Blob", "default": "$a"}}, "outputs": {"a": "$a"}}
        )
        assert [problem for problem in problems(made) if "leads back to itself" in problem]


def saved(tmp_path, **documents):
    """A library of graphs on disk, as the command line has one."""
    for name, document in documents.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(document))

    def library(name):
        place = tmp_path / f"{name}.json"
        if not place.exists():
            raise LookupError(f"no saved graph {name!r}")
        return Graph.load(place, library)

    return library


def holding(name, **more):
    return {**FORMAT, "nodes": {"inner": {"type": "graph", "graph": name}}, **more}


class TestLibrary:
    def test_a_saved_graph_is_found_by_name(self, tmp_path):
        library = saved(tmp_path, paint=PAINT)
        made = house({"photo": PHOTO, "first": first(graph="paint")}, {"image": "first.image"}, library)
        assert list(flat(made).nodes) == ["photo", "first/start", "first/paint", "first/decoded"]

    def test_an_unknown_name_is_a_problem(self, tmp_path):
        with pytest.raises(GraphError, match=r"^nodes\.first\.graph: no saved graph 'pant'$"):
            house({"first": first(graph="pant")}, library=saved(tmp_path))

    def test_problems_within_a_saved_graph_name_it(self, tmp_path):
        library = saved(tmp_path, broken={**PAINT, "nodes": {"a": {}}})
        with pytest.raises(GraphError, match=r"^nodes\.first\.graph\(broken\)\.nodes\.a\.type: missing$"):
            house({"first": first(graph="broken")}, library=library)

    def test_a_saved_graph_that_contains_itself_is_refused(self, tmp_path):
        with pytest.raises(GraphError, match="more than 16 graphs within graphs; does a graph contain itself"):
            saved(tmp_path, a=holding("b"), b=holding("a"))("a")

    def test_graphs_nested_too_deeply_are_refused(self):
        deep = PAINT
        for _ in range(MAX_DEPTH + 1):
            deep = {**FORMAT, "nodes": {"inner": {"type": "graph", "graph": deep}}}
        with pytest.raises(GraphError, match=f"more than {MAX_DEPTH} graphs within graphs"):
            Graph.parse(deep)

    def test_a_dump_refers_to_saved_graphs_as_the_document_did(self, tmp_path):
        library = saved(tmp_path, paint=PAINT)
        made = house({"photo": PHOTO, "first": first(graph="paint")}, {"image": "first.image"}, library)
        assert made.dump()["nodes"]["first"]["graph"] == "paint"
        assert Graph.parse(made.dump(), library).dump() == made.dump()

    def test_an_inline_dump_stands_alone(self, tmp_path):
        library = saved(tmp_path, paint=PAINT, middle=holding("paint", expose={"strength": "inner.strength"}))
        made = house({"outer": {"type": "graph", "graph": "middle", "params": {"strength": 0.25}}}, library=library)
        alone = Graph.parse(made.dump(inline=True))
        assert expand(alone, REGISTRY, []) == expand(made, REGISTRY, [])
        assert alone.dump(inline=True) == alone.dump() == made.dump(inline=True)

    def test_an_edit_within_a_saved_graph_is_written_out_with_it(self, tmp_path):
        library = saved(tmp_path, paint=PAINT)
        made = house({"photo": PHOTO, "first": first(graph="paint"), "second": first(graph="paint")}, library=library)
        edited = made.set({"first/paint.mode": "mul"}).dump()
        assert edited["nodes"]["first"]["graph"]["nodes"]["paint"]["params"]["mode"] == "mul"
        assert edited["nodes"]["second"]["graph"] == "paint"
        assert made.dump()["nodes"]["first"]["graph"] == "paint"

    def test_replacing_a_part_keeps_saved_graphs_apart_that_share_a_file_name(self, tmp_path):
        for folder, text in (("a", "from a"), ("b", "from b")):
            (tmp_path / folder).mkdir()
            saved(
                tmp_path / folder,
                same={
                    **FORMAT,
                    "nodes": {"blob": {"type": "toy.blob", "params": {"text": text}}},
                    "outputs": {"out": "blob"},
                },
            )
        library = saved(tmp_path)
        made = house(
            {"one": {"type": "graph", "graph": "a/same"}, "two": {"type": "graph", "graph": "b/same"}},
            {"o": "one"},
            library,
        )
        for again in (made.replace(outputs={"o": "two"}), Graph.parse(made.dump(), library)):
            assert flat(again).nodes["one/blob"].params == {"text": "from a"}
            assert flat(again).nodes["two/blob"].params == {"text": "from b"}

    def test_replacing_a_part_keeps_saved_graphs_within_an_inline_one(self, tmp_path):
        library = saved(tmp_path, paint=PAINT)
        made = house({"outer": {"type": "graph", "graph": holding("paint")}}, library=library)
        again = made.replace(meta={"title": "again"})
        assert again.dump() == {**made.dump(), "meta": {"title": "again"}}
        assert expand(again, REGISTRY, []) == expand(made, REGISTRY, [])

    def test_replacing_a_part_keeps_an_edit_within_a_saved_graph(self, tmp_path):
        library = saved(tmp_path, paint=PAINT)
        made = house({"photo": PHOTO, "first": first(graph="paint")}, library=library).set({"first/paint.mode": "mul"})
        again = made.replace(outputs={"image": "first.image"})
        assert flat(again).nodes["first/paint"].params["mode"] == "mul"
