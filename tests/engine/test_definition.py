"""@node: what a signature becomes, and the error of each misuse."""

import functools
import inspect
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import pytest
from annotated_types import Ge, Le

from engine import errors
from engine.context import Context
from engine.file import File
from engine.node import Input, definition, node, read
from engine.socket import Float, Socket, Text


@dataclass(frozen=True)
class Clay(Socket):
    """Something to work with."""

    weight: int = 1

    def check(self):
        if self.weight < 0:
            raise ValueError(f"weight {self.weight} is below 0")


@dataclass(frozen=True)
class Brick(Clay):
    """Fits wherever clay does."""


class Halves(NamedTuple):
    left: Clay
    right: Text


@node("clay.press", version=3)
def press(clay: Clay, onto: Clay | None = None, by: Annotated[int, Ge(0), Le(9)] = 2) -> Clay:
    """Press clay onto clay.

    Twice as hard for bricks.
    """
    return Clay(clay.weight + by + (onto.weight if onto else 0))


def refused(error, function, type_="clay.bad", **options):
    """The message with which the definition is refused, by exactly this error."""
    with pytest.raises(errors.DefinitionError) as caught:
        node(type_, **{"version": 1, **options})(function)
    assert type(caught.value) is error
    return str(caught.value)


def annotated(**hints):
    """A function `(a: hint, ...) -> Clay`; a tuple stands for (hint, default)."""

    def function(**_):
        """Documented."""

    kinds = {name: hint if isinstance(hint, tuple) else (hint, inspect.Parameter.empty) for name, hint in hints.items()}
    parameters = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=hint)
        for name, (hint, default) in kinds.items()
    ]
    function.__signature__ = inspect.Signature(parameters)
    function.__annotations__ = {name: hint for name, (hint, _) in kinds.items()} | {"return": Clay}
    return function


class TestReading:
    def test_a_node_stays_a_plain_callable(self):
        assert press(Clay(3), by=4) == Clay(7)
        assert inspect.isfunction(press)
        assert press.__name__ == "press"

    def test_sockets_are_inputs_and_everything_else_is_a_parameter(self):
        made = definition(press)
        assert dict(made.inputs) == {"clay": Input("clay", Clay), "onto": Input("onto", Clay, optional=True)}
        assert list(made.params) == ["by"]

    def test_type_and_version_are_those_of_the_decorator(self):
        made = definition(press)
        assert (made.type, made.version) == ("clay.press", 3)

    def test_one_socket_is_the_output_out(self):
        made = definition(press)
        assert (dict(made.outputs), made.named) == ({"out": Clay}, False)

    def test_a_named_tuple_names_the_outputs_in_its_order(self):
        @node("clay.halve", version=1)
        def halve(clay: Clay) -> Halves:
            """Two halves."""
            return Halves(clay, Text("rest"))

        made = definition(halve)
        assert list(made.outputs.items()) == [("left", Clay), ("right", Text)]
        assert made.unpack(halve(Clay(2))) == (Clay(2), Text("rest"))

    def test_the_first_line_is_the_help_and_the_rest_is_kept(self):
        made = definition(press)
        assert made.help == "Press clay onto clay."
        assert made.doc == "Press clay onto clay.\n\nTwice as hard for bricks."

    def test_a_variadic_tuple_takes_a_list_of_links(self):
        made = read(annotated(clays=tuple[Clay, ...]), "clay.pile", version=1)
        assert dict(made.inputs) == {"clays": Input("clays", Clay, many=True)}

    def test_a_tuple_of_numbers_is_a_parameter(self):
        made = read(annotated(size=tuple[int, int]), "clay.cut", version=1)
        assert (list(made.inputs), list(made.params)) == ([], ["size"])

    def test_the_context_is_neither_input_nor_parameter(self):
        made = read(annotated(clay=Clay, context=Context), "clay.burn", version=1)
        assert made.context == "context"
        assert (list(made.inputs), list(made.params)) == (["clay"], [])

    def test_annotations_may_be_postponed(self):
        namespace = {"Clay": Clay, "Annotated": Annotated, "Ge": Ge}
        exec(
            "from __future__ import annotations\n"
            "def fire(clay: Clay, onto: Clay | None = None, heat: Annotated[int, Ge(0)] = 900) -> Clay:\n"
            "    '''Fire it.'''\n",
            namespace,
        )
        made = read(namespace["fire"], "clay.fire", version=1)
        assert dict(made.inputs) == {"clay": Input("clay", Clay), "onto": Input("onto", Clay, optional=True)}
        assert made.params["heat"].parse(1000).value == 1000
        assert dict(made.outputs) == {"out": Clay}

    def test_a_wrapped_function_keeps_its_signature(self):
        @functools.wraps(press)
        def traced(*args, **kwargs):
            return press(*args, **kwargs)

        made = read(traced, "clay.traced", version=1)
        assert (list(made.inputs), list(made.params)) == (["clay", "onto"], ["by"])

    def test_a_function_without_the_mark_has_no_definition(self):
        with pytest.raises(errors.DefinitionError, match="'refused' is not marked with @node"):
            definition(refused)


class TestOutputs:
    def test_another_type_is_refused_and_named(self):
        with pytest.raises(errors.OutputRefused, match=r"^clay\.press returned Text as 'out', expected Clay$"):
            definition(press).unpack(Text("clay"))

    def test_nothing_is_refused(self):
        with pytest.raises(errors.OutputRefused, match="NoneType as 'out'"):
            definition(press).unpack(None)

    def test_a_tuple_in_place_of_a_socket_is_refused(self):
        with pytest.raises(errors.OutputRefused, match="tuple as 'out'"):
            definition(press).unpack((Clay(),))

    def test_a_subclass_is_taken(self):
        assert definition(press).unpack(Brick(2)) == (Brick(2),)

    def test_a_value_that_breaks_its_convention_is_refused_and_says_which(self):
        with pytest.raises(errors.OutputRefused, match=r"^clay\.press returned a bad 'out': weight -1 is below 0$"):
            definition(press).unpack(Clay(-1))

    @pytest.mark.parametrize("returned", [Clay(), (Clay(),), (Clay(), Text("a"), Text("b")), None])
    def test_a_wrong_number_of_outputs_is_refused_and_says_what_was_promised(self, returned):
        made = read(_halving, "clay.halve", version=1)
        with pytest.raises(errors.OutputRefused, match="expected left: Clay, right: Text"):
            made.unpack(returned)

    def test_a_wrong_type_under_one_name_is_refused_and_names_the_port(self):
        made = read(_halving, "clay.halve", version=1)
        with pytest.raises(errors.OutputRefused, match="returned Clay as 'right', expected Text"):
            made.unpack(Halves(Clay(), Clay()))


def _halving(clay: Clay) -> Halves:
    """Two halves."""


LABELS = {"columns": int, "x_labels": list[str], "y_labels": list[str]}


class TestMisuse:
    @pytest.mark.parametrize("type_", ["", "Clay.press", "clay press", "clay.", ".press", "clay..press", "9clay", 7])
    def test_bad_node_type(self, type_):
        assert repr(type_) in refused(errors.BadNodeType, annotated(), type_)

    @pytest.mark.parametrize("version", [0, -1, 1.0, "1", True, None])
    def test_bad_version(self, version):
        message = refused(errors.BadVersion, annotated(), version=version)
        assert message == f"clay.bad: version must be a positive int, got {version!r}"

    @pytest.mark.parametrize("doc", [None, "", "   \n"])
    def test_missing_docstring(self, doc):
        function = annotated(clay=Clay)
        function.__doc__ = doc
        assert "clay.bad" in refused(errors.MissingDocstring, function)

    def test_a_lambda_is_not_a_plain_function(self):
        assert "clay.bad" in refused(errors.NotAPlainFunction, lambda clay: clay)

    def test_a_class_is_not_a_plain_function(self):
        assert "clay.bad" in refused(errors.NotAPlainFunction, Clay)

    def test_a_partial_is_not_a_plain_function(self):
        assert "clay.bad" in refused(errors.NotAPlainFunction, functools.partial(press, by=1))

    def test_a_coroutine_is_not_a_plain_function(self):
        async def later(clay: Clay) -> Clay:
            """Later."""

        assert "later" in refused(errors.NotAPlainFunction, later)

    def test_a_generator_is_not_a_plain_function(self):
        def bit_by_bit(clay: Clay) -> Clay:
            """Bit by bit."""
            yield clay

        assert "bit_by_bit" in refused(errors.NotAPlainFunction, bit_by_bit)

    def test_an_async_generator_is_not_a_plain_function(self):
        async def now_and_then(clay: Clay) -> Clay:
            """Now and then."""
            yield clay

        assert "now_and_then" in refused(errors.NotAPlainFunction, now_and_then)

    def test_variadic_arguments(self):
        def pile(*clays: Clay) -> Clay:
            """Pile."""

        assert "clay.bad: parameter 'clays'" in refused(errors.VariadicParameter, pile)

    def test_variadic_keywords(self):
        def pile(**clays: Clay) -> Clay:
            """Pile."""

        assert "clay.bad: parameter 'clays'" in refused(errors.VariadicParameter, pile)

    def test_positional_only_parameter(self):
        def pile(clay: Clay, /) -> Clay:
            """Pile."""

        assert "clay.bad: parameter 'clay'" in refused(errors.PositionalOnlyParameter, pile)

    def test_missing_annotation(self):
        def pile(clay, by: int) -> Clay:
            """Pile."""

        assert refused(errors.MissingAnnotation, pile) == "clay.bad: parameter 'clay' has no type"

    @pytest.mark.parametrize(
        "hint",
        [
            Any,
            object,
            type,
            Context | None,
            list[Clay],
            dict[str, Clay],
            tuple[Clay],
            tuple[Clay, Clay],
            tuple[int, Clay],
            tuple[Clay, ...] | None,
            Annotated[Clay, "wet"],
            Clay | Text,
            Clay | Text | None,
            Clay | int,
            File | int,
            list[File],
            Path,
            set[str],
            frozenset[int],
        ],
        ids=str,
    )
    def test_unsupported_annotation(self, hint):
        assert "clay.bad: parameter 'by'" in refused(errors.UnsupportedAnnotation, annotated(by=hint))

    @pytest.mark.parametrize("hint", ["Nowhere", "not a type", "inspect.Nothing"])
    def test_an_annotation_that_cannot_be_read(self, hint):
        assert "clay.bad" in refused(errors.UnsupportedAnnotation, annotated(by=hint))

    def test_a_list_of_links_has_no_default(self):
        assert "tuple[Clay, ...]" in refused(errors.UnsupportedAnnotation, annotated(by=(tuple[Clay, ...], ())))

    def test_an_optional_input_without_none(self):
        message = refused(errors.OptionalInputDefault, annotated(onto=Clay | None))
        assert message.startswith("clay.bad: parameter 'onto'")

    @pytest.mark.parametrize("default", [None, Clay()])
    def test_a_default_on_a_required_input(self, default):
        message = refused(errors.OptionalInputDefault, annotated(onto=(Clay, default)))
        assert message == "clay.bad: parameter 'onto': an optional input is `Clay | None = None`"

    def test_a_second_context(self):
        message = refused(errors.SeveralContexts, annotated(context=Context, other=Context))
        assert message == "clay.bad: parameter 'other': 'context' already is the Context"

    @pytest.mark.parametrize(
        ("hint", "default"),
        [
            (int, "7"),
            (int, True),
            (int, None),
            (float, float("nan")),
            (float, float("inf")),
            (Annotated[int, Ge(0)], -1),
            (Literal["add", "mul"], "sub"),
            (Enum("Mode", {"ADD": "add"}), "sub"),
            (list[int], [1, "2"]),
            (bytes, b"\xff"),
        ],
    )
    def test_bad_default(self, hint, default):
        message = refused(errors.BadDefault, annotated(by=(hint, default)))
        assert message.startswith(f"clay.bad: parameter 'by': default {default!r} is refused")

    def test_missing_return(self):
        def press(clay: Clay):
            """Press."""

        assert "clay.bad" in refused(errors.MissingReturn, press)

    @pytest.mark.parametrize(
        "hint", [None, int, Socket, Clay | None, tuple[Clay, Text], NamedTuple("Mixed", [("clay", Clay), ("by", int)])]
    )
    def test_unsupported_return(self, hint):
        function = annotated(clay=Clay)
        function.__annotations__["return"] = hint
        assert refused(errors.UnsupportedReturn, function).startswith("clay.bad: returns ")

    def test_a_named_tuple_whose_types_cannot_be_read(self):
        halve = annotated(clay=Clay)
        halve.__annotations__["return"] = NamedTuple("Lost", [("left", "Nowhere")])  # noqa: F821
        assert "clay.bad" in refused(errors.UnsupportedAnnotation, halve)

    @pytest.mark.parametrize(
        "hints",
        [
            {"clays": tuple[Clay, ...]},
            {"clays": tuple[Clay, ...], "columns": int, "x_labels": list[str]},
            {"clay": Clay, **LABELS},
            {"clays": tuple[Clay, ...], "others": tuple[Clay, ...], **LABELS},
        ],
    )
    def test_bad_gatherer(self, hints):
        assert "clay.bad" in refused(errors.BadGatherer, annotated(**hints), gathers=True)

    @pytest.mark.parametrize("many", [list, iter, annotated(clay=Clay), 7])
    def test_bad_companion(self, many):
        message = refused(errors.BadCompanion, annotated(clay=Clay), many=many)
        assert message.startswith(f"clay.bad: many is {many!r}, expected a generator function")

    def test_a_gatherer_with_named_outputs(self):
        function = annotated(clays=tuple[Clay, ...], **LABELS)
        function.__annotations__["return"] = Halves
        assert "clay.bad" in refused(errors.BadGatherer, function, gathers=True)

    def test_each_misuse_has_its_own_error(self):
        kinds = errors.DefinitionError.__subclasses__()
        tested = inspect.getsource(TestMisuse)
        assert [kind.__name__ for kind in kinds if f"errors.{kind.__name__}," not in tested] == []

    def test_a_float_on_a_wire_is_an_input_and_a_float_is_a_parameter(self):
        made = read(annotated(by=Float, times=float), "clay.scale", version=1)
        assert (list(made.inputs), list(made.params)) == (["by"], ["times"])


def test_an_input_of_the_root_class_is_refused():
    with pytest.raises(errors.UnsupportedAnnotation, match=r"clay\.any: parameter 'thing': Socket itself says nothing"):
        read(annotated(thing=Socket), "clay.any", version=1)


def test_a_plain_tuple_in_place_of_the_named_one_is_refused():
    class Pair(NamedTuple):
        left: Clay
        right: Clay

    def pair() -> Pair:
        """Two."""
        return Pair(Clay(), Clay())

    made = read(pair, "clay.pair", version=1)
    assert len(made.unpack(pair())) == 2
    with pytest.raises(errors.OutputRefused, match="returned tuple, expected left: Clay, right: Clay"):
        made.unpack((Clay(), Clay()))
