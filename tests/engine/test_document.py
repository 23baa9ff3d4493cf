"""Graph documents: what is read, what is refused and where, and what an edit leaves alone."""

import copy
import json
import math

import jsonschema
import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st
from toys import REGISTRY, graph

from engine.errors import GraphError
from engine.graph import MAX_BYTES, Graph, _Loader, schema
from engine.program import validate

DOCUMENT = {
    "format": "calotype/1",
    "nodes": {
        "photo": {"type": "toy.blob", "params": {"text": "fox", "weight": 3}},
        "start": {"type": "toy.encode", "inputs": {"blob": "photo"}},
        "paint": {"type": "toy.mix", "params": {"amount": 0.25}, "inputs": {"a": "start.out"}},
        "decoded": {"type": "toy.decode", "inputs": {"wave": "paint"}},
        "sheet": {"type": "toy.join", "inputs": {"blobs": ["photo", "decoded"]}},
    },
    "expose": {"amount": "paint.amount", "words": "photo.text"},
    "outputs": {"image": "sheet"},
    "meta": {"title": "A fox", "layout": {"photo": [1, 2.5]}},
}


def changed(path, value):
    """The document with one thing changed; `...` removes it."""
    made = copy.deepcopy(DOCUMENT)
    *way, last = path.split(".")
    at = made
    for part in way:
        at = at[part]
    if value is ...:
        del at[last]
    else:
        at[last] = value
    return made


def refused(source, **options):
    """All problems with which a document is refused, as text."""
    with pytest.raises(GraphError) as caught:
        Graph.parse(source, **options)
    return [str(problem) for problem in caught.value.problems]


def problems(document, **options):
    """All problems that validation finds, as text."""
    return [str(problem) for problem in validate(Graph.parse(document), REGISTRY, **options)]


class TestReading:
    @pytest.mark.parametrize("text", [json.dumps(DOCUMENT), json.dumps(DOCUMENT, indent=2), yaml.safe_dump(DOCUMENT)])
    def test_mapping_json_and_yaml_are_the_same(self, text):
        assert Graph.parse(text).dump() == Graph.parse(text.encode()).dump() == Graph.parse(DOCUMENT).dump() == DOCUMENT

    def test_a_byte_order_mark_is_skipped(self):
        assert Graph.parse(b"\xef\xbb\xbf" + json.dumps(DOCUMENT).encode()).dump() == DOCUMENT

    @pytest.mark.parametrize(
        "word", ["no", "yes", "on", "off", "2024-01-01", "12:30", "0123", "0x10", "1_000", ".nan", "+1", "=", "<<"]
    )
    def test_a_word_in_yaml_is_the_text_that_it_looks_like(self, word):
        read = Graph.parse(f"format: calotype/1\nnodes:\n  a: {{type: toy.blob, params: {{text: {word}}}}}\n")
        assert read.document.nodes["a"].params == {"text": word}

    @pytest.mark.parametrize("number", ["1e-3", "-2", "0.5", "1E3", "0", "true", "false", "null", '"1"'])
    def test_a_json_value_in_yaml_is_that_value(self, number):
        read = Graph.parse(f"format: calotype/1\nnodes:\n  a: {{type: toy.blob, params: {{text: {number}}}}}\n")
        value, expected = read.document.nodes["a"].params["text"], json.loads(number)
        assert (value, type(value)) == (expected, type(expected))

    def test_the_document_is_its_own_from_then_on(self):
        raw = copy.deepcopy(DOCUMENT)
        read = Graph.parse(raw)
        raw["nodes"]["photo"]["params"]["text"] = "owl"
        raw["meta"]["layout"]["photo"].append(3)
        assert read.dump() == DOCUMENT

    def test_a_file_is_read_and_gives_the_graph_its_name(self, tmp_path):
        place = tmp_path / "fox.json"
        place.write_text(json.dumps(DOCUMENT))
        read = Graph.load(place)
        assert (read.dump(), read.name) == (DOCUMENT, "fox.json")

    def test_a_file_that_cannot_be_read_is_refused(self, tmp_path):
        for place in (tmp_path, tmp_path / "nothing.json"):
            with pytest.raises(GraphError, match="cannot read"):
                Graph.load(place)

    def test_the_title_is_that_of_meta_or_the_name(self, tmp_path):
        place = tmp_path / "fox.json"
        place.write_text(json.dumps(changed("meta", {})))
        assert Graph.parse(DOCUMENT).title() == "A fox"
        assert Graph.load(place).title() == "fox.json"
        assert Graph.parse(changed("meta", {})).title() == "untitled"


class TestSyntax:
    @pytest.mark.parametrize("source", ["[]", "- a\n- b\n", '"text"', "text", "7", "", "null", b"", "[1, 2"])
    def test_anything_but_an_object_is_refused(self, source):
        (problem,) = refused(source)
        assert "object" in problem or "not a graph document" in problem

    @pytest.mark.parametrize(
        "source", ['{"format": "calotype/1",}', "{", "a: b: c", "a: [1", "\t- a", "a: !!python/name:os.system", "\0"]
    )
    def test_broken_text_is_refused(self, source):
        (problem,) = refused(source)
        assert problem.startswith("not a graph document: ")

    @pytest.mark.parametrize(
        "source", ['{"nodes": {}, "nodes": {}}', "nodes: {}\nnodes: {}\n", '{"meta": {"a": {"nodes": 1, "nodes": 2}}}']
    )
    def test_a_doubled_key_is_refused(self, source):
        assert refused(source) == ["not a graph document: 'nodes' stands twice in one object"]

    @pytest.mark.parametrize("value", ["NaN", "Infinity", "-Infinity", "1e400"])
    def test_a_number_that_is_not_finite_is_refused(self, value):
        (problem,) = refused(f'{{"format": "calotype/1", "nodes": {{}}, "meta": {{"a": {value}}}}}')
        assert problem.endswith("is not a finite number")

    @pytest.mark.parametrize("value", ["1e400", "!!float .nan", "!!float .inf"])
    def test_a_number_that_is_not_finite_is_refused_in_yaml(self, value):
        (problem,) = refused(f"format: calotype/1\nnodes: {{}}\nmeta: {{a: {value}}}\n")
        assert problem.startswith("not a graph document: ")

    @pytest.mark.parametrize("value", [math.nan, [math.inf], {"b": -math.inf}])
    def test_a_number_that_is_not_finite_is_refused_in_a_mapping(self, value):
        (problem,) = refused(changed("meta", {"a": value}))
        assert problem.startswith("meta.a")
        assert "finite number" in problem

    def test_yaml_aliases_are_refused(self):
        assert "aliases are not supported" in refused("format: calotype/1\nnodes: {a: &x {type: b}, c: *x}\n")[0]

    def test_yaml_keys_are_plain_names(self):
        assert "keys are plain names" in refused("format: calotype/1\nnodes:\n  ? [a]\n  : {type: b}\n")[0]

    @pytest.mark.parametrize("value", ["!!set {x, y}", "!!binary aGk=", "!!timestamp 2024-01-01"])
    def test_yaml_data_that_json_cannot_hold_is_refused(self, value):
        (problem,) = refused(f"format: calotype/1\nnodes: {{}}\nmeta: {{a: {value}}}\n")
        assert problem.startswith("meta.a: ")

    def test_text_that_is_not_utf8_is_refused_and_says_where(self):
        assert refused(b'{"format": "\xff"}') == ["not UTF-8 text: invalid start byte at byte 12"]

    @pytest.mark.parametrize("depth", [300, 900, 5_000, 100_000])
    @pytest.mark.parametrize(
        ("before", "after"),
        [
            ('{"format": "calotype/1", "nodes": {}, "meta": {"a": ', "}}"),
            ("format: calotype/1\nnodes: {}\nmeta: {a: ", "}"),
        ],
        ids=["json", "yaml"],
    )
    def test_a_document_nested_too_deeply_is_refused(self, before, after, depth):
        (problem,) = refused(f"{before}{'[' * depth}{']' * depth}{after}")
        assert problem.endswith("nested too deeply")

    def test_a_mapping_that_contains_itself_is_refused(self):
        endless = {}
        endless["a"] = endless
        assert refused(changed("meta", endless))[0].endswith("nested too deeply")

    def test_a_document_that_is_too_large_is_refused_before_it_is_read(self):
        (problem,) = refused(" " * (MAX_BYTES + 1))
        assert problem == f"the document is longer than {MAX_BYTES} bytes"

    @given(st.text(alphabet='{}[]":,&*!?|>- \n\tabn01.e"') | st.binary())
    @example("? {a: b}\n: c")
    @example("&a [*a]")
    @example("!!map [1]")
    @example("---\na: b\n---\nc: d")
    def test_whatever_is_read_only_a_graph_error_comes_out(self, source):
        with pytest.raises(GraphError):
            Graph.parse(source)

    @given(
        st.recursive(
            st.none() | st.booleans() | st.floats() | st.text() | st.dates() | st.binary(),
            lambda inner: (
                st.lists(inner) | st.dictionaries(st.text() | st.integers() | st.sampled_from(list(DOCUMENT)), inner)
            ),
        ),
        st.sampled_from(
            [*DOCUMENT, "sweep", "arguments", "nodes.photo", "nodes.photo.params", "nodes.start.inputs.blob"]
        ),
    )
    @example({2**63: {"": {-1: 0}}, "": []}, "meta")  # a step that leads to a place before the first one of a list
    def test_whatever_stands_in_a_mapping_only_a_graph_error_comes_out(self, value, path):
        try:
            read = Graph.parse(changed(path, value))
        except GraphError as error:
            assert error.problems  # noqa: PT017  both ends are fine
        else:
            assert Graph.parse(read.dumps()).dump() == read.dump()


class TestShape:
    def test_all_problems_are_listed_at_once_with_their_paths(self):
        broken = {
            "format": "calotype/2",
            "nodes": {
                "9lives": {"type": "toy.blob"},
                "photo": {"type": 7, "paramz": {}},
                "start": {"inputs": {"blob": "a b"}},
            },
            "expose": {"amount": "paint"},
            "outputs": {"image": 3},
            "sweep": {"x": {"amount": []}, "w": {}},
            "arguments": {"image": {"type": "Blob", "defualt": "photo"}, "mask": 4},
        }
        found = [problem.split(":")[0] for problem in refused(broken)]
        assert sorted(found) == sorted(
            [
                "format",
                "nodes.9lives",
                "nodes.photo.type",
                "nodes.photo.paramz",
                "nodes.start.type",
                "nodes.start.inputs.blob",
                "expose.amount",
                "outputs.image",
                "sweep.x.amount",
                "sweep.w",
                "arguments.image.defualt",
                "arguments.mask",
            ]
        )

    @pytest.mark.parametrize("name", ["json1", "str", "Argument", "function-x", "brief", "list"])
    def test_no_name_of_a_node_gets_lost_in_a_path(self, name):
        assert refused(changed("nodes", {name: {}})) == [f"nodes.{name}.type: missing"]

    def test_a_missing_field_is_named(self):
        assert refused(changed("nodes", ...)) == ["nodes: missing"]
        assert refused(changed("format", ...)) == ["format: missing"]
        assert refused(changed("nodes.photo.type", ...)) == ["nodes.photo.type: missing"]

    def test_another_format_is_refused_and_says_which_was_expected(self):
        assert refused(changed("format", "comfy/1")) == ['format: expected "calotype/1", got "comfy/1"']

    @pytest.mark.parametrize(
        ("path", "meant"),
        [
            ("output", "outputs"),
            ("nodes.photo.parms", "params"),
            ("nodes.photo.input", "inputs"),
            ("exposed", "expose"),
        ],
    )
    def test_an_unknown_field_is_refused_with_a_guess(self, path, meant):
        assert refused(changed(path, {})) == [f'{path}: unknown field, did you mean "{meant}"?']

    def test_an_unknown_field_far_from_all_others_is_refused_without_a_guess(self):
        assert refused(changed("zzz", 1)) == ["zzz: unknown field"]

    @pytest.mark.parametrize("link", ["", "a b", "a.b.c", ".a", "a.", "$", 7, None, {"a": 1}, ["a", "b c"], ["a", 7]])
    def test_what_is_no_link_is_refused(self, link):
        (problem,) = refused(changed("nodes.start.inputs.blob", link))
        assert problem.startswith(
            "nodes.start.inputs.blob: expected a link such as 'photo', 'model.vae' or '$image', got "
        )

    @pytest.mark.parametrize("name", ["", "a b", "9a", "a.b", "a/b", "a[x0]", "-a", "ä"])
    def test_a_name_that_could_be_mistaken_for_something_else_is_refused(self, name):
        (problem,) = refused(changed("nodes", {name: {"type": "toy.blob"}}))
        assert "expected a name of letters, digits, _ and -" in problem

    @pytest.mark.parametrize("target", ["paint", "paint.", ".amount", "a.b.c", "first/paint.amount", 7])
    def test_an_exposed_name_leads_to_a_parameter(self, target):
        (problem,) = refused(changed("expose", {"amount": target}))
        assert problem.startswith("expose.amount: expected 'node.parameter', got ")

    def test_an_axis_has_values(self):
        (problem,) = refused(changed("sweep", {"x": {"amount": []}}))
        assert problem.startswith("sweep.x.amount: ")

    def test_a_literal_is_json(self):
        (problem,) = refused(changed("nodes.photo.params.text", [{1, 2}]))
        assert problem.startswith("nodes.photo.params.text[0]: ")

    def test_a_graph_stands_only_on_a_node_of_that_type(self):
        assert refused(changed("nodes.photo.graph", "a.json")) == [
            'nodes.photo.graph: only nodes of type "graph" have a graph'
        ]

    def test_a_node_of_type_graph_has_a_graph(self):
        assert refused(changed("nodes.photo", {"type": "graph"})) == [
            "nodes.photo.graph: missing: the name of a saved graph, or a graph document"
        ]


class TestNames:
    """Problems that only a registry can see, each with a path and a guess."""

    @pytest.mark.parametrize(
        ("path", "value", "where", "problem"),
        [
            ("nodes.photo.type", "toy.bolb", "", 'unknown node type "toy.bolb", did you mean "toy.blob"?'),
            ("nodes.photo.params.txt", "a", "", 'toy.blob has no parameter "txt", did you mean "text"?'),
            ("nodes.photo.params.blub", "a", "", 'toy.blob has no parameter "blub"'),
            ("nodes.start.inputs.blobb", "photo", "", 'toy.encode has no input "blobb", did you mean "blob"?'),
            ("nodes.start.inputs.blob", "phto", "", "no node 'phto', did you mean \"photo\"?"),
            ("nodes.start.inputs.blob", "photo.ot", "", "toy.blob has no output 'ot': write photo.out"),
            ("nodes.start.inputs.blob", "$image", "", "no argument $image"),
            ("nodes.sheet.inputs.blobs", ["photo", "decode"], "[1]", "no node 'decode', did you mean \"decoded\"?"),
            ("nodes.sheet.inputs.blobs", ["decode"], "[0]", "no node 'decode', did you mean \"decoded\"?"),
            ("outputs.image", "sheat", "", "no node 'sheat', did you mean \"sheet\"?"),
            ("expose.amount", "paint.amont", "", "paint has no parameter 'amont', did you mean \"amount\"?"),
            ("expose.amount", "pant.amount", "", "no node 'pant', did you mean \"paint\"?"),
            ("arguments", {"image": "Blub"}, ".image", 'unknown type "Blub", did you mean "Blob"?'),
        ],
    )
    def test_an_unknown_name_is_one_problem(self, path, value, where, problem):
        assert problems(changed(path, value)) == [f"{path}{where}: {problem}"]

    def test_a_value_bound_to_an_unknown_argument_is_a_problem(self):
        declared = changed("arguments", {"image": {"type": "Blob", "default": "photo"}})
        assert problems(declared, arguments=["imgae"]) == [
            "arguments.imgae: the graph has no argument 'imgae', did you mean \"image\"?"
        ]

    def test_everything_that_is_wrong_is_found_at_once(self):
        broken = changed("nodes.photo.type", "toy.bolb")
        broken["nodes"]["paint"] = {"type": "toy.mix", "params": {"amount": 2, "sede": 1}, "inputs": {"b": "photo"}}
        broken["outputs"] = {"image": "sheat"}
        found = [problem.split(":")[0] for problem in problems(broken)]
        assert sorted(found) == [
            "nodes.paint.inputs.a",
            "nodes.paint.params.amount",
            "nodes.paint.params.sede",
            "nodes.photo.type",
            "outputs.image",
        ]

    def test_a_sound_document_has_no_problems(self):
        assert problems(DOCUMENT) == []


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=4,
)
names = st.from_regex(r"[A-Za-z_][A-Za-z0-9_-]{0,3}", fullmatch=True)
links = st.from_regex(r"\$?[A-Za-z_][A-Za-z0-9_-]{0,3}(\.[A-Za-z_][A-Za-z0-9_]{0,3})?", fullmatch=True)
nodes = st.fixed_dictionaries(
    {"type": st.text(max_size=5).filter(lambda word: word != "graph")},
    optional={
        "params": st.dictionaries(st.text(max_size=3), json_values, max_size=2),
        "inputs": st.dictionaries(st.text(max_size=3), links | st.lists(links, max_size=2), max_size=2),
    },
)
axes = st.dictionaries(st.text(max_size=3), st.lists(json_values, min_size=1, max_size=2), max_size=2)
documents = st.recursive(
    st.fixed_dictionaries(
        {"format": st.just("calotype/1"), "nodes": st.dictionaries(names, nodes, max_size=3)},
        optional={
            "expose": st.dictionaries(names, st.tuples(names, names).map(".".join), max_size=2),
            "arguments": st.dictionaries(
                names, st.text() | st.fixed_dictionaries({"type": st.text()}, optional={"default": links}), max_size=2
            ),
            "outputs": st.dictionaries(names, links, max_size=2),
            "sweep": st.fixed_dictionaries({}, optional={"x": axes, "y": axes, "z": axes}),
            "meta": st.dictionaries(st.text(max_size=3), json_values, max_size=2),
        },
    ),
    lambda inner: st.tuples(inner, names, inner).map(
        lambda found: {**found[0], "nodes": {**found[0]["nodes"], found[1]: {"type": "graph", "graph": found[2]}}}
    ),
    max_leaves=3,
)


OPTIONAL = {"params", "inputs", "expose", "arguments", "outputs", "meta", "sweep", "x", "y", "z"}


class Yaml(yaml.SafeDumper):
    """Writes a text in quotes wherever it could be read as something else."""


Yaml.yaml_implicit_resolvers = _Loader.yaml_implicit_resolvers


class TestRoundTrip:
    @given(documents)
    def test_what_is_dumped_is_read_as_the_same_graph(self, document):
        read = Graph.parse(document)
        dumped = read.dump()
        assert Graph.parse(dumped).dump() == dumped
        assert Graph.parse(read.dumps()).document.model_dump() == Graph.parse(dumped).document.model_dump()

    @given(documents)
    def test_nothing_but_empty_fields_is_left_out(self, document):
        def full(part):
            if not isinstance(part, dict):
                return part
            kept = {name: full(value) for name, value in part.items()}
            return {name: value for name, value in kept.items() if value not in ({}, None) or name not in OPTIONAL}

        assert full(Graph.parse(document).dump()) == full(document)

    @given(documents)
    def test_json_and_yaml_are_two_spellings_of_one_document(self, document):
        written = yaml.dump(document, Dumper=Yaml, sort_keys=False)
        assert repr(Graph.parse(written).dump()) == repr(Graph.parse(json.dumps(document)).dump())

    @given(documents)
    def test_reading_does_not_change_what_is_read(self, document):
        before = copy.deepcopy(document)
        Graph.parse(document).set({})
        assert document == before

    def test_non_ascii_text_stays_readable(self):
        assert "größer" in Graph.parse(changed("meta", {"title": "größer"})).dumps()


class TestSchema:
    def test_the_schema_is_a_schema(self):
        jsonschema.Draft202012Validator.check_schema(schema())

    @given(documents)
    def test_the_schema_takes_what_is_read(self, document):
        jsonschema.validate(document, schema(), jsonschema.Draft202012Validator)

    @pytest.mark.parametrize(
        "path", ["outptus", "nodes.photo.parms", "nodes.inner.graph.nodez", "sweep.w", "arguments.image.defualt"]
    )
    def test_the_schema_refuses_unknown_fields(self, path):
        whole = changed("sweep", {"x": {"amount": [1]}})
        whole["arguments"] = {"image": {"type": "Blob"}}
        whole["nodes"]["inner"] = {"type": "graph", "graph": copy.deepcopy(DOCUMENT)}
        jsonschema.validate(whole, schema())
        *way, last = path.split(".")
        at = whole
        for part in way:
            at = at[part]
        at[last] = {}
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(whole, schema())
        assert refused(whole)[0].startswith(path)

    @pytest.mark.parametrize(
        ("path", "value"),
        [
            ("format", "calotype/2"),
            ("nodes", []),
            ("nodes", ...),
            ("nodes.photo.type", 7),
            ("nodes.9lives", {"type": "a"}),
            ("nodes.photo.params", []),
            ("nodes.start.inputs.blob", 7),
            ("outputs.image", 7),
            ("outputs.image", "a b"),
            ("expose.amount", 7),
            ("arguments", {"image": 7}),
            ("sweep", {"x": {"amount": []}}),
            ("sweep", {"x": {"amount": 7}}),
            ("meta", 7),
        ],
    )
    def test_schema_and_reader_refuse_the_same(self, path, value):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(changed(path, value), schema())
        assert refused(changed(path, value))


class TestSet:
    def test_a_literal_is_set_by_its_exposed_name(self):
        assert Graph.parse(DOCUMENT).set(amount=0.5).dump() == changed("nodes.paint.params.amount", 0.5)

    def test_a_literal_is_set_by_node_and_parameter(self):
        assert Graph.parse(DOCUMENT).set({"photo.weight": 9}).dump() == changed("nodes.photo.params.weight", 9)

    def test_several_literals_are_set_at_once(self):
        made = Graph.parse(DOCUMENT).set({"amount": 0.5, "photo.weight": 9}, words="owl")
        assert made.document.nodes["photo"].params == {"text": "owl", "weight": 9}
        assert made.document.nodes["paint"].params == {"amount": 0.5}

    def test_a_literal_takes_the_place_of_a_link(self):
        linked = changed("nodes.paint.inputs", {"a": "start", "amount": "number"})
        linked["nodes"]["paint"]["params"] = {}
        made = Graph.parse(linked).set(amount=0.5).document.nodes["paint"]
        assert (made.params, made.inputs) == ({"amount": 0.5}, {"a": "start"})

    def test_an_edit_never_changes_the_original(self):
        original = Graph.parse(DOCUMENT)
        original.set(amount=0.5).set(words="owl").set({"start.weight": 4})
        assert original.dump() == DOCUMENT

    def test_a_value_that_is_changed_afterwards_leaves_the_graph_alone(self):
        values = [1, [2]]
        made = Graph.parse(DOCUMENT).set({"photo.text": values})
        values[1].append(3)
        assert made.document.nodes["photo"].params["text"] == [1, [2]]

    def test_every_name_that_leads_nowhere_is_listed_with_a_guess(self):
        known = "amount, words, photo., start., paint., decoded., sheet."
        with pytest.raises(GraphError) as caught:
            Graph.parse(DOCUMENT).set({"amuont": 1, "phto.text": "a", "amount": 0.5, "zzz": 1})
        assert [str(problem) for problem in caught.value.problems] == [
            'amuont: neither an exposed name nor node.param, did you mean "amount"?',
            'phto.text: neither an exposed name nor node.param, did you mean "photo"?',
            f"zzz: neither an exposed name nor node.param; this graph has {known}",
        ]

    def test_a_value_nested_too_deeply_is_refused(self):
        endless = []
        for _ in range(10_000):
            endless = [endless]
        with pytest.raises(GraphError, match="amount: nested too deeply"):
            Graph.parse(DOCUMENT).set(amount=endless)

    def test_values_are_judged_by_validation(self):
        made = Graph.parse(DOCUMENT).set(amount=2)
        assert [problem.path for problem in validate(made, REGISTRY)] == ["nodes.paint.params.amount"]

    def test_the_name_survives(self):
        original = Graph.parse(DOCUMENT)
        original.name = "fox.json"
        assert original.set(amount=1).name == original.replace(outputs={}).name == "fox.json"


class TestReplace:
    def test_a_part_is_replaced(self):
        original = Graph.parse(DOCUMENT)
        assert original.replace(outputs={"small": "photo"}).dump() == changed("outputs", {"small": "photo"})
        assert original.dump() == DOCUMENT

    def test_a_part_is_added(self):
        sweep = {"x": {"amount": [0.5, 1]}}
        assert Graph.parse(DOCUMENT).replace(sweep=sweep).dump() == {**DOCUMENT, "sweep": sweep}

    def test_a_bad_part_is_refused(self):
        with pytest.raises(GraphError, match=r"outputs\.image: expected a link"):
            Graph.parse(DOCUMENT).replace(outputs={"image": 7})

    def test_an_unknown_part_is_refused(self):
        with pytest.raises(GraphError, match='output: unknown field, did you mean "outputs"'):
            Graph.parse(DOCUMENT).replace(output={})


def test_a_graph_lists_what_it_exposes():
    assert Graph.parse(DOCUMENT).exposed() == ("amount", "words")
    assert graph({}, {}).exposed() == ()
