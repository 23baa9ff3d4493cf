"""Programs: links and literals checked against the registry, and an order that can run."""

import itertools
from dataclasses import dataclass
from typing import Annotated, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from toys import REGISTRY, Blob, Poem, graph

from engine import program as programs
from engine.errors import GraphError
from engine.file import File
from engine.node import node
from engine.param import Fresh
from engine.program import compile_graph, validate, walk
from engine.registry import Registry
from engine.socket import Bool, Float, Int, Text

NODES = {
    "photo": ("toy.blob", {"text": "fox"}),
    "parts": ("toy.split", {}, {"blob": "photo"}),
    "start": ("toy.encode", {}, {"blob": "photo"}),
    "paint": ("toy.mix", {"amount": 0.75}, {"a": "start", "b": "parts.tail"}),
    "decoded": ("toy.decode", {}, {"wave": "paint"}),
    "dice": ("toy.number", {"value": 3}),
}


def chain(outputs=None, **changes):
    return graph(outputs or {"image": "decoded"}, {**NODES, **changes})


@dataclass(frozen=True)
class Special(Blob):
    """A blob of its own."""


@node("test.special", version=1)
def special() -> Special:
    """A special blob."""


@node("test.needs_special", version=1)
def needs_special(special: Special) -> Special:
    """Takes nothing else."""


@node("test.floats", version=1)
def floats(value: float = 0.0) -> Float:
    """A float."""


@node("test.words", version=1)
def words(text: str = "") -> Text:
    """A text."""


@node("test.flag", version=1)
def flag(*, on: bool = False) -> Bool:
    """A flag."""


@node("test.takes", version=1)
def takes(
    required: int,
    size: list[int] = [1],  # noqa: B006  read, never called
    number: float = 1.0,
    mode: Literal["a", "b"] = "a",
    source: File | None = None,
    *,
    on: bool = False,
) -> Blob:
    """Parameters of every kind."""


PACK = REGISTRY.with_nodes(special, needs_special, floats, words, flag, takes)


def problems(made):
    return [str(problem) for problem in validate(made, PACK)]


def compiled(made):
    return compile_graph(made, PACK)


class TestTypes:
    def test_an_output_fits_an_input_of_its_class(self):
        assert problems(chain()) == []

    def test_another_class_is_refused_and_both_are_named(self):
        assert problems(chain(decoded=("toy.decode", {}, {"wave": "photo"}))) == [
            "nodes.decoded.inputs.wave: expected Wave, got Blob from photo.out"
        ]

    def test_a_named_output_is_told_by_its_port(self):
        assert problems(chain(decoded=("toy.decode", {}, {"wave": "parts.head"}))) == [
            "nodes.decoded.inputs.wave: expected Wave, got Blob from parts.head"
        ]

    def test_an_output_fits_an_input_of_a_base_class(self):
        assert problems(chain(s=("test.special",), e=("toy.encode", {}, {"blob": "s"}))) == []

    def test_a_base_class_does_not_fit_an_input_of_a_subclass(self):
        assert problems(chain(s=("test.needs_special", {}, {"special": "photo"}))) == [
            "nodes.s.inputs.special: expected Special, got Blob from photo.out"
        ]

    def test_an_int_fits_a_float_input_and_a_float_no_int_input(self):
        good = {"by": "dice", "wave": "paint"}
        assert problems(chain(s=("toy.scale", {}, good))) == []

    def test_a_number_may_stand_for_a_whole_parameter_and_is_judged_when_it_runs(self):
        assert problems(chain(f=("test.floats",), b=("toy.mix", {}, {"a": "start", "seed": "f"}))) == []
        assert problems(chain(f=("test.floats",), b=("toy.mix", {}, {"a": "start", "mode": "f"}))) == [
            "nodes.b.inputs.mode: expected Text, got Float from f.out"
        ]

    def test_an_optional_input_takes_its_type_or_nothing(self):
        assert problems(chain(paint=("toy.mix", {}, {"a": "start"}))) == []
        assert problems(chain(paint=("toy.mix", {}, {"a": "start", "b": "photo"}))) == [
            "nodes.paint.inputs.b: expected Wave, got Blob from photo.out"
        ]

    def test_a_list_takes_one_link_or_many_and_judges_each(self):
        assert problems(chain(sheet=("toy.join", {}, {"blobs": "photo"}))) == []
        assert problems(chain(sheet=("toy.join", {}, {"blobs": ["photo", "start", "parts.head", "dice"]}))) == [
            "nodes.sheet.inputs.blobs[1]: expected Blob, got Wave from start.out",
            "nodes.sheet.inputs.blobs[3]: expected Blob, got Int from dice.out",
        ]

    def test_an_empty_list_is_refused(self):
        assert problems(chain(sheet=("toy.join", {}, {"blobs": []}))) == [
            "nodes.sheet.inputs.blobs: expected at least one Blob"
        ]

    def test_a_list_where_one_link_belongs_is_refused(self):
        for inputs in ({"blob": ["photo"]}, {"blob": []}):
            assert problems(chain(start=("toy.encode", {}, inputs))) == [
                "nodes.start.inputs.blob: expected one link, got a list"
            ]


class TestLinkedParameters:
    @pytest.mark.parametrize(
        ("param", "source"),
        [("required", "dice"), ("number", "floats"), ("number", "dice"), ("mode", "words"), ("on", "flag")],
    )
    def test_a_parameter_takes_an_output_of_its_scalar_type(self, param, source):
        params = {} if param == "required" else {"required": 1}
        assert problems(self.linked(param, source, params)) == []

    @pytest.mark.parametrize(
        ("param", "source", "expected", "got"),
        [
            ("number", "words", "Float", "Text"),
            ("mode", "dice", "Text", "Int"),
            ("on", "dice", "Bool", "Int"),
            ("number", "flag", "Float", "Bool"),
            ("number", "photo", "Float", "Blob"),
        ],
    )
    def test_another_type_is_refused(self, param, source, expected, got):
        assert problems(self.linked(param, source, {"required": 1})) == [
            f"nodes.t.inputs.{param}: expected {expected}, got {got} from {source}.out"
        ]

    @pytest.mark.parametrize("param", ["size", "source"])
    def test_what_is_no_scalar_cannot_be_linked(self, param):
        where = " (linked to dice.out)"
        assert problems(self.linked(param, "dice", {"required": 1})) == [
            f"nodes.t.inputs.{param}: this parameter cannot be linked; write a literal under params{where}"
        ]

    def test_a_parameter_takes_no_list(self):
        made = chain(t=("test.takes", {}, {"required": ["dice"]}))
        assert problems(made) == ["nodes.t.inputs.required: expected one link, got a list"]

    def test_a_link_stands_for_the_literal(self):
        program = compiled(self.linked("required", "dice", {}))
        step = program.steps[program.index["t"]]
        (source,) = step.sources
        assert (source.name, source.param) == ("required", step.definition.params["required"])
        assert "required" not in step.values

    def linked(self, param, source, params):
        more = {"floats": ("test.floats",), "words": ("test.words",), "flag": ("test.flag",)}
        return chain(**more, t=("test.takes", params, {param: source}))


class TestMissing:
    def test_a_missing_input_is_named_with_its_type(self):
        assert problems(chain(start=("toy.encode",))) == ["nodes.start.inputs.blob: missing: link Blob"]
        assert problems(chain(sheet=("toy.join",))) == ["nodes.sheet.inputs.blobs: missing: link a list of Blob"]

    def test_a_missing_parameter_is_named(self):
        assert problems(chain(t=("test.takes",))) == ["nodes.t.params.required: missing: it has no default"]

    def test_a_literal_and_a_link_for_one_parameter_are_refused(self):
        made = chain(paint=("toy.mix", {"seed": 1}, {"a": "start", "seed": "dice"}))
        assert problems(made) == ["nodes.paint.params.seed: stands under params and under inputs; keep one"]

    def test_a_literal_for_an_input_is_refused(self):
        made = graph({}, {"start": ("toy.encode", {"blob": "fox"})})
        assert 'nodes.start.params.blob: "blob" is an input of toy.encode: link it under inputs' in problems(made)

    def test_a_link_to_nothing_that_the_node_has_is_refused(self):
        made = chain(photo=("toy.blob", {}, {"txt": "dice"}))
        assert problems(made) == ['nodes.photo.inputs.txt: toy.blob has no input "txt", did you mean "text"?']

    def test_a_bad_literal_says_what_was_expected(self):
        made = chain(paint=("toy.mix", {"amount": "half", "mode": "sub", "seed": True}, {"a": "start"}))
        assert problems(made) == [
            'nodes.paint.params.amount: must be a valid number, got "half" (range 0..1)',
            "nodes.paint.params.mode: must be 'add' or 'mul', got \"sub\"",
            "nodes.paint.params.seed: must be a valid integer, got true",
        ]


class TestOutputs:
    def test_several_outputs_need_a_port(self):
        expected = "toy.split has several outputs: write parts.head, parts.tail"
        assert problems(chain({"image": "parts"})) == [f"outputs.image: {expected}"]
        assert problems(chain(start=("toy.encode", {}, {"blob": "parts"}))) == [f"nodes.start.inputs.blob: {expected}"]

    def test_an_unknown_port_lists_those_that_there_are(self):
        assert problems(chain({"image": "parts.haed"})) == [
            "outputs.image: toy.split has no output 'haed': write parts.head, parts.tail"
        ]

    def test_an_output_may_be_any_node(self):
        program = compiled(chain({"a": "photo", "b": "parts.tail"}))
        assert {name: (program.steps[port.step].id, port.output) for name, port in program.outputs.items()} == {
            "a": ("photo", 0),
            "b": ("parts", 1),
        }

    @pytest.mark.parametrize(
        ("name", "found"), [("image", ("decoded", 0)), ("photo", ("photo", 0)), ("parts.tail", ("parts", 1))]
    )
    def test_an_output_is_found_by_name_or_by_node(self, name, found):
        program = compiled(chain())
        port = program.port(name)
        assert (program.steps[port.step].id, port.output) == found

    @pytest.mark.parametrize(
        ("name", "message"),
        [
            ("imag", 'imag: neither an output of the graph nor a node, did you mean "image"?'),
            ("pats.head", "pats.head: neither an output of the graph nor a node"),
            ("parts", "parts: parts has the outputs head, tail"),
            ("parts.haed", "parts.haed: parts has the outputs head, tail"),
            ("", ": neither an output of the graph nor a node"),
        ],
    )
    def test_an_output_that_is_not_there_is_refused(self, name, message):
        with pytest.raises(GraphError) as caught:
            compiled(chain()).port(name)
        assert str(caught.value).startswith(message.removeprefix(": "))

    def test_an_output_goes_before_a_node_of_the_same_name(self):
        program = compiled(chain({"photo": "decoded"}))
        assert program.steps[program.port("photo").step].id == "decoded"


class TestOrder:
    def test_every_step_comes_after_what_it_needs(self):
        program = compiled(chain())
        assert all(program.index[before.id] < program.index[after.id] for before, after in walk(program))
        assert {(before.id, after.id) for before, after in walk(program)} == {
            ("photo", "parts"), ("photo", "start"), ("start", "paint"), ("parts", "paint"), ("paint", "decoded"),
        }  # fmt: skip

    def test_ancestors_are_what_an_output_depends_on(self):
        program = compiled(chain())
        found = program.ancestors([program.port("start")])
        assert [program.steps[position].id for position in found] == ["photo", "start"]

    def test_consumers_are_what_links_to_a_step(self):
        program = compiled(chain())
        found = program.consumers[program.index["photo"]]
        assert {program.steps[position].id for position in found} == {"parts", "start"}

    @pytest.mark.parametrize("length", [1, 2, 5])
    def test_a_cycle_is_refused_with_its_path(self, length):
        nodes = {f"n{i}": ("toy.mix", {}, {"a": f"n{(i + 1) % length}"}) for i in range(length)}
        (problem,) = problems(graph({}, {**NODES, **nodes}))
        path, _, said = problem.partition(": a cycle: ")
        around = said.split(" -> ")
        assert path == f"nodes.{around[0]}"
        assert around[0] == around[-1]
        assert len(around) == length + 1
        for before, after in itertools.pairwise(around):
            assert nodes[after][2] == {"a": before}

    def test_a_cycle_is_told_next_to_everything_else(self):
        nodes = {"a": ("toy.mix", {"amount": 2}, {"a": "b"}), "b": ("toy.mix", {"sede": 1}, {"a": "a"})}
        found = problems(graph({"o": "c"}, nodes))
        assert sum(" a cycle: " in problem for problem in found) == 1
        assert sorted(problem.split(":")[0] for problem in found if " a cycle: " not in problem) == [
            "nodes.a.params.amount",
            "nodes.b.params.sede",
            "outputs.o",
        ]

    def test_a_long_chain_is_no_deeper_than_a_short_one(self):
        nodes = {"n0": ("toy.blob",), "n1": ("toy.encode", {}, {"blob": "n0"})}
        for number in range(2, 5_000):
            nodes[f"n{number}"] = ("toy.mix", {}, {"a": f"n{number - 1}"})
        program = compiled(graph({"out": "n4999"}, nodes))
        assert len(program.ancestors(program.outputs.values())) == 5_000

    def test_too_many_nodes_are_refused(self, monkeypatch):
        monkeypatch.setattr(programs, "MAX_NODES", 5)
        assert problems(chain()) == ["nodes: 6 nodes, at most 5 are allowed"]


class TestLiterals:
    def test_a_default_written_out_makes_the_same_head(self):
        short = compiled(graph({}, {"a": ("toy.blob",)}))
        long = compiled(graph({}, {"a": ("toy.blob", {"weight": 100, "text": "a"})}))
        assert short.steps[0].head == long.steps[0].head

    def test_type_version_and_every_parameter_are_in_the_head(self):
        @node("toy.blob", version=2)
        def newer(text: str = "a", weight: int = 100) -> Blob:
            """A blob."""

        @node("toy.blub", version=1)
        def other(text: str = "a", weight: int = 100) -> Blob:
            """A blob."""

        made = [
            (PACK, "toy.blob", {}),
            (PACK, "toy.blob", {"text": "b"}),
            (PACK, "toy.blob", {"weight": 9}),
            (Registry([newer]), "toy.blob", {}),
            (Registry([other]), "toy.blub", {}),
        ]
        heads = {compile_graph(graph({}, {"a": (type_, params)}), pack).steps[0].head for pack, type_, params in made}
        assert len(heads) == len(made)

    def test_the_name_of_a_file_stays_out_of_the_head(self):
        heads = {
            compiled(graph({}, {"a": ("toy.load", {"source": name})})).steps[0].head for name in ("a.png", "b.png")
        }
        assert len(heads) == 1

    def test_a_file_that_is_left_out_is_a_value(self):
        made = compiled(graph({}, {"t": ("test.takes", {"required": 1})})).steps[0]
        assert (made.files, made.values["source"]) == ({}, None)
        made = compiled(graph({}, {"t": ("test.takes", {"required": 1, "source": "a"})})).steps[0]
        assert (made.files, "source" in made.values) == ({"source": (File, "a")}, False)

    def test_a_text_that_mentions_files_is_a_value_and_part_of_the_head_as_well(self):
        one, other = (compiled(graph({}, {"a": ("toy.recite", {"poem": text})})).steps[0] for text in ("fox", "owl"))
        assert (one.files, one.values, one.canonical) == ({"poem": (Poem, "fox")}, {"poem": "fox"}, {"poem": "fox"})
        assert one.head != other.head

    def test_a_literal_that_asks_for_a_fresh_value_is_unsettled(self):
        fresh = Fresh(when=-1, below=100)

        @node("test.roll", version=1)
        def roll(seed: Annotated[int, fresh] = -1) -> Int:
            """A die."""

        made = compile_graph(graph({}, {"a": ("test.roll",), "b": ("test.roll", {"seed": 4})}), Registry([roll]))
        assert made.unsettled == [("a", "seed", fresh)]
        assert made.edited({"a": {"seed": 3}, "b": {"seed": -1}}).unsettled == [("b", "seed", fresh)]


choices = {
    "photo.text": st.sampled_from(["fox", "owl", "", 7]),
    "photo.weight": st.sampled_from([1, 100, 0, "x"]),
    "paint.amount": st.sampled_from([0, 0.5, 1, 2, None]),
    "paint.mode": st.sampled_from(["add", "mul", "sub"]),
    "dice.value": st.integers(0, 3),
    "load.source": st.sampled_from(["a.png", "b.png", 3]),
    "takes.source": st.sampled_from(["a.png", None]),
    "takes.size": st.sampled_from([[1], [1, 2], []]),
    "inner/blob.text": st.sampled_from(["a", "b"]),
    "inner/blob.weight": st.sampled_from([1, 2, -1]),
    "inner.words": st.sampled_from(["c", "d"]),
}


class TestEdited:
    """An edit of literals gives what compiling the edited graph gives, without compiling it."""

    @given(
        st.lists(
            st.sampled_from(sorted(choices)).flatmap(lambda name: st.tuples(st.just(name), choices[name])), max_size=6
        )
    )
    def test_an_edited_program_is_the_one_compiled_anew(self, edits):
        inner = graph({"out": "blob"}, {"blob": ("toy.blob",)}, expose={"words": "blob.text"}).dump()
        more = {"load": ("toy.load", {"source": "a.png"}), "takes": ("test.takes", {"required": 1})}
        document = chain(**more).dump()
        document["nodes"]["inner"] = {"type": "graph", "graph": inner}
        at = graph({}, {}).replace(**document)
        made = compiled(at)
        for name, value in edits:
            following = at.set({name: value})
            _, changes = following.parent
            assert made.editable(changes)
            if refusals := validate(following, PACK):
                with pytest.raises(GraphError) as caught:
                    made.edited(changes)
                assert list(caught.value.problems) == refusals
            else:
                made, at = made.edited(changes), following
                assert content(made) == content(compiled(at))

    def test_the_program_that_was_edited_stays_as_it_was(self):
        made = compiled(chain())
        before = content(made)
        made.edited({"paint": {"amount": 0.25}})
        assert content(made) == before

    @pytest.mark.parametrize(
        "changes",
        [
            {"nowhere": {"a": 1}},
            {"paint": {"amonut": 1}},
            {"paint": {"a": 1}},
            {"paint": {"amount": 1}, "start": {"b": 1}},
        ],
    )
    def test_only_literals_can_be_edited(self, changes):
        assert not compiled(chain()).editable(changes)

    def test_a_literal_in_place_of_a_link_is_no_mere_edit(self):
        made = compiled(chain(paint=("toy.mix", {}, {"a": "start", "seed": "dice"})))
        assert not made.editable({"paint": {"seed": 1}})
        assert made.editable({"paint": {"amount": 1}})

    def test_a_bad_value_is_refused_as_when_compiling(self):
        made = compiled(chain())
        with pytest.raises(GraphError, match=r"^nodes\.paint\.params\.amount: must be less than or equal to 1"):
            made.edited({"paint": {"amount": 2}})


def content(program):
    """Everything that a run looks at."""
    steps = [
        (step.id, step.head, repr(sorted(step.values.items())), step.canonical, step.files, step.sources)
        for step in program.steps
    ]
    return steps, program.outputs, program.index
