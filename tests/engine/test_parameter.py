"""Parameters: what is taken for a literal, what is refused and how, and what stands in the key."""

import math
from dataclasses import dataclass
from enum import Enum, IntEnum
from typing import Annotated, Literal

import jsonschema
import pytest
from annotated_types import Ge, Gt, Le, Len, Lt, MultipleOf
from hypothesis import given
from hypothesis import strategies as st

from engine.file import File, ModelFile
from engine.param import REQUIRED, Fresh, Param, Parsed, Unit
from engine.socket import Bool, Float, Int, Text

Pixels = Annotated[int, Ge(0), Le(512), Unit("px")]
Strength = Annotated[float, Gt(0), Lt(1)]
Seed = Annotated[int, Ge(-1), Le(99), Fresh(when=-1, below=100)]


class Mode(Enum):
    ADD = "add"
    MUL = "mul"


class Level(IntEnum):
    LOW = 1


@dataclass(frozen=True)
class Point:
    x: int
    y: float = 0.0


def param(kind, default=REQUIRED):
    return Param("by", kind, default)


def refusal(kind, raw):
    with pytest.raises(ValueError) as caught:  # noqa: PT011  the message is what is tested
        param(kind).parse(raw)
    return str(caught.value)


class TestStrictness:
    @pytest.mark.parametrize("raw", [True, "7", 7.0, 7.5, None, [7], {"value": 7}])
    def test_only_an_int_is_an_int(self, raw):
        assert "valid integer" in refusal(int, raw)

    @pytest.mark.parametrize("raw", [True, "0.5", None, [0.5]])
    def test_only_a_number_is_a_float(self, raw):
        assert "valid number" in refusal(float, raw)

    @pytest.mark.parametrize("raw", [1, 0, "true", None])
    def test_only_a_bool_is_a_bool(self, raw):
        assert "valid boolean" in refusal(bool, raw)

    @pytest.mark.parametrize("raw", [1, True, None, ["a"]])
    def test_only_a_text_is_a_text(self, raw):
        assert "valid string" in refusal(str, raw)

    @pytest.mark.parametrize("raw", [1, 1.0, -3, 10**15])
    def test_an_int_written_for_a_float_is_the_same_float(self, raw):
        parsed = param(float).parse(raw)
        assert parsed == Parsed(float(raw), float(raw))
        assert (type(parsed.value), type(parsed.canonical)) == (float, float)

    @pytest.mark.parametrize("raw", [math.nan, math.inf, -math.inf, 10**400])
    def test_a_float_is_finite(self, raw):
        assert refusal(float, raw)

    def test_a_nan_within_a_list_is_refused(self):
        assert "not JSON" in refusal(list[float], [0.5, math.nan])

    @pytest.mark.parametrize("raw", [{1, 2}, b"a", object(), 1j])
    def test_what_json_cannot_hold_is_refused(self, raw):
        assert "not JSON" in refusal(list[int], raw)

    def test_none_is_taken_only_where_it_is_allowed(self):
        assert param(int | None).parse(None) == Parsed(None, None)
        assert refusal(int, None)


class TestChoices:
    @pytest.mark.parametrize("raw", ["sub", "ADD", "", 1, None])
    def test_a_literal_is_one_of_its_choices(self, raw):
        assert "'add' or 'mul'" in refusal(Literal["add", "mul"], raw)

    @pytest.mark.parametrize("raw", [True, 1.0])
    def test_a_literal_number_is_not_confused_with_its_equals(self, raw):
        assert param(Literal[1, 2]).parse(1) == Parsed(1, 1)
        assert "int 1" in refusal(Literal[1, 2], raw)

    def test_an_enum_is_written_by_value_and_arrives_as_member(self):
        assert param(Mode).parse("mul") == Parsed(Mode.MUL, "mul")

    @pytest.mark.parametrize("raw", ["sub", "MUL", 1])
    def test_an_enum_has_no_other_values(self, raw):
        assert "'add' or 'mul'" in refusal(Mode, raw)


class TestMessages:
    @pytest.mark.parametrize("raw", [-1, 513])
    def test_a_range_is_named_with_its_unit(self, raw):
        message = refusal(Pixels, raw)
        assert f"got {raw} (range 0..512 px)" in message

    @pytest.mark.parametrize("raw", [0, 1])
    def test_an_open_range_is_named(self, raw):
        assert f"got {raw} (range 0..1)" in refusal(Strength, raw)

    def test_a_one_sided_range_is_named(self):
        assert "got -1 (range 0..)" in refusal(Annotated[int, Ge(0)], -1)
        assert "got 3 (range ..2)" in refusal(Annotated[int, Le(2)], 3)

    def test_a_multiple_is_named(self):
        assert refusal(Annotated[int, MultipleOf(8)], 9) == "must be a multiple of 8, got 9"

    def test_what_came_is_quoted_as_json(self):
        assert refusal(int, "7").endswith('got "7"')
        assert refusal(int, None).endswith("got null")

    def test_a_long_value_is_cut(self):
        assert len(refusal(int, "x" * 10_000)) < 200

    def test_the_place_within_a_nested_list_is_named(self):
        assert refusal(list[list[float]], [[1, 2], [3, "4"]]).startswith("[1][1] ")

    def test_the_place_within_a_record_is_named(self):
        assert refusal(list[Point], [{"x": 1}, {"x": 1, "y": "2"}]).startswith("[1]['y'] ")

    def test_a_list_of_the_wrong_length_is_refused(self):
        assert "at least 1 item" in refusal(Annotated[list[int], Len(1, 2)], [])
        assert "at most 2 items" in refusal(Annotated[list[int], Len(1, 2)], [1, 2, 3])


class TestNested:
    def test_numbers_in_nested_lists_are_canonical(self):
        parsed = param(list[list[float]]).parse([[1, 2.5], []])
        assert repr(parsed.canonical) == "[[1.0, 2.5], []]"

    def test_a_tuple_arrives_as_tuple_and_stands_in_the_key_as_list(self):
        assert param(tuple[int, int]).parse([1, 2]) == Parsed((1, 2), [1, 2])

    def test_a_mapping_is_parsed_within(self):
        assert repr(param(dict[str, float]).parse({"a": 1}).value) == "{'a': 1.0}"
        assert refusal(dict[str, float], {"a": True}).startswith("['a'] ")

    def test_a_record_stands_in_the_key_with_its_defaults(self):
        assert param(Point).parse({"x": 1}) == param(Point).parse({"x": 1, "y": 0})
        assert param(Point).parse({"x": 1}) == Parsed(Point(1, 0.0), {"x": 1, "y": 0.0})


class TestText:
    """What a person means on a command line."""

    @pytest.mark.parametrize(
        ("kind", "text", "meant"),
        [
            (int, "7", 7),
            (float, "0.5", 0.5),
            (float, "1e-3", 0.001),
            (bool, "true", True),
            (str, "7", "7"),
            (str, "true", "true"),
            (str, '"quoted"', '"quoted"'),
            (str, "", ""),
            (Literal["1", "2"], "1", "1"),
            (Literal[1, 2], "1", 1),
            (Mode, "add", "add"),
            (list[int], "[1, 2]", [1, 2]),
            (list[str], '["a, b"]', ["a, b"]),
            (list[str], 'a, "b, c"', ["a", "b, c"]),
            (list[str], "", []),
            (int | None, "null", None),
            (str | None, "7", "7"),
            (File, "7.png", "7.png"),
            (File, "7", "7"),
            (File, "null", "null"),
            (File | None, "null", None),
            (File | None, "7", "7"),
        ],
    )
    def test_a_text_is_read_as_the_parameter_needs_it(self, kind, text, meant):
        read = param(kind).parse_text(text)
        assert (read, type(read)) == (meant, type(meant))
        param(kind).parse(read)

    @pytest.mark.parametrize("text", ["seven", "", "07", "NaN", "Infinity", "1.5", "true", "[1", "[" * 100_000])
    def test_a_text_that_means_nothing_is_judged_as_any_literal(self, text):
        made = param(int)
        with pytest.raises(ValueError, match=r"integer|not JSON"):
            made.parse(made.parse_text(text))


class TestSchema:
    def test_a_schema_carries_range_and_default(self):
        assert param(Pixels, 8).schema == {"type": "integer", "minimum": 0, "maximum": 512, "default": 8}

    def test_a_required_parameter_has_no_default(self):
        assert "default" not in param(Pixels).schema

    @pytest.mark.parametrize(
        ("kind", "default", "written"),
        [(Mode, Mode.ADD, "add"), (tuple[int, int], (1, 2), [1, 2]), (Point, Point(1), {"x": 1, "y": 0.0})],
    )
    def test_a_default_is_shown_as_it_would_be_written(self, kind, default, written):
        assert param(kind, default).schema["default"] == written

    def test_a_file_is_written_as_its_name(self):
        assert param(ModelFile).schema == {"type": "string"}

    @pytest.mark.parametrize(
        "kind", [int, float, bool, str, Pixels, Strength, Literal["a", 1], Mode, list[float], Point]
    )
    @given(raw=st.data())
    def test_what_is_parsed_satisfies_the_schema(self, kind, raw):
        value = raw.draw(
            st.none()
            | st.booleans()
            | st.integers(-2, 600)
            | st.floats(-1, 2)
            | st.sampled_from(["a", "add", [1], [], {"x": 1}])
        )
        made = param(kind)
        try:
            parsed = made.parse(value)
        except ValueError:
            return
        jsonschema.validate(value, made.schema)
        jsonschema.validate(parsed.canonical, made.schema)


class TestDefaults:
    @pytest.mark.parametrize(
        ("kind", "default", "written"),
        [(float, 1, 1), (Mode, Mode.MUL, "mul"), (list[float], [1, 2], [1.0, 2.0]), (int | None, None, None)],
    )
    def test_a_default_equals_the_same_value_written_out(self, kind, default, written):
        made = param(kind, default)
        assert made.parsed_default == made.parse(written)
        assert repr(made.parsed_default.canonical) == repr(made.parse(written).canonical)

    def test_a_default_of_another_type_is_not_bent_into_shape(self):
        with pytest.raises(ValueError, match="valid integer, got true"):
            _ = param(int, default=True).parsed_default


class TestKinds:
    @pytest.mark.parametrize(
        ("kind", "socket"),
        [
            (int, Int),
            (float, Float),
            (str, Text),
            (bool, Bool),
            (Pixels, Int),
            (Literal["add", "mul"], Text),
            (Literal[1, 2], Int),
            (Literal["auto", 1], None),
            (Mode, Text),
            (Level, None),
            (int | None, Int),
            (list[int], None),
            (Point, None),
            (File, None),
        ],
    )
    def test_a_scalar_parameter_may_be_linked_to_its_socket(self, kind, socket):
        assert param(kind).scalar is socket

    def test_a_file_is_known_as_such(self):
        assert param(ModelFile).file is ModelFile
        assert param(str).file is None

    def test_a_file_may_be_left_out_where_its_type_says_so(self):
        made = param(File | None, None)
        assert made.file is File
        assert made.parsed_default == Parsed(None, None)
        assert made.parse("fox.png").value == "fox.png"

    def test_the_default_of_a_file_is_written_as_its_name(self, tmp_path):
        made = param(File, File("fox.png", tmp_path, b""))
        assert made.parsed_default == Parsed("fox.png", "fox.png")
        assert made.schema == {"type": "string", "default": "fox.png"}

    def test_a_file_is_a_name_and_nothing_else(self):
        assert "valid string" in refusal(File, {"name": "a", "path": "/etc/passwd", "digest": ""})
        assert "valid string" in refusal(File, None)

    def test_the_unit_is_for_reading(self):
        assert param(Pixels).unit == "px"
        assert param(int).unit == ""

    def test_a_fresh_value_is_drawn_within_its_bounds(self):
        fresh = param(Seed).fresh
        drawn = {fresh.draw() for _ in range(1000)}
        assert drawn <= set(range(100))
        assert len(drawn) > 50
        assert all(param(Seed).parse(value) for value in drawn)

    def test_most_parameters_are_never_fresh(self):
        assert param(int).fresh is None


@given(st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.lists(st.floats() | st.booleans()))
def test_a_canonical_value_parses_to_itself(raw):
    for kind in (int, float, bool, str, list[float], list[int], int | None):
        made = param(kind)
        try:
            parsed = made.parse(raw)
        except ValueError:
            continue
        again = made.parse(parsed.canonical)
        assert repr(again) == repr(parsed)
