"""Sockets: what a value is known by, and how it is taken apart and put together."""

from dataclasses import dataclass, field
from enum import Enum

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.digest import digest
from engine.socket import SCALARS, Array, Bool, Float, Int, Packed, Socket, Text


class Mode(Enum):
    ADD = "add"


@dataclass(frozen=True)
class Recipe(Socket):
    """A value of several fields."""

    seeds: tuple[int, ...] = ()
    strength: float = 0.0
    mode: Mode = Mode.ADD
    note: Text = field(default_factory=lambda: Text(""))


@dataclass(frozen=True)
class Twin(Socket):
    """The same fields under another name."""

    seeds: tuple[int, ...] = ()
    strength: float = 0.0
    mode: Mode = Mode.ADD
    note: Text = field(default_factory=lambda: Text(""))


@dataclass(frozen=True)
class Pixels(Socket):
    """Raw numbers."""

    data: bytes
    shape: tuple[int, ...]
    dtype: str = "U8"

    def pack(self):
        return Packed({}, {"data": Array(self.dtype, self.shape, self.data)})


scalars = (
    st.builds(Int, st.integers())
    | st.builds(Float, st.floats(allow_nan=False, allow_infinity=False))
    | st.builds(Text, st.text())
    | st.builds(Bool, st.booleans())
)


class TestIdentity:
    @given(scalars, scalars)
    def test_equal_values_of_one_class_are_one_and_others_are_not(self, one, other):
        same = type(one) is type(other) and repr(one) == repr(other)
        assert (one.identity() == other.identity()) == same

    def test_numbers_of_different_classes_are_apart(self):
        assert len({value.identity() for value in (Int(1), Float(1.0), Bool(value=True), Text("1"))}) == 4

    def test_the_class_is_part_of_it(self):
        assert Recipe((1,)).identity() != Twin((1,)).identity()

    @pytest.mark.parametrize("other", [Recipe((2,)), Recipe((1,), 0.5), Recipe((1,), note=Text("a")), Recipe((1, 1))])
    def test_every_field_is_part_of_it(self, other):
        assert Recipe((1,)).identity() != other.identity()

    def test_shape_dtype_and_content_are_part_of_it(self):
        shapes = [Pixels(b"abcd", shape) for shape in ((4,), (2, 2), (1, 4))]
        values = [*shapes, Pixels(b"abce", (4,)), Pixels(b"abcd", (4,), "I8")]
        assert len({value.identity() for value in values}) == len(values)

    def test_an_int_written_for_a_float_is_the_same(self):
        assert Float(1).identity() == Float(1.0).identity()

    def test_a_number_that_is_not_finite_has_none(self):
        with pytest.raises(ValueError, match="cannot be part of a key"):
            Float(float("nan")).identity()

    def test_it_is_told_apart_from_every_recipe(self):
        assert Text("a").identity() != digest("recipe", "Text", {"value": "a"}, {})

    def test_it_does_not_change_between_versions(self):
        """Identities on people's disks were made with it."""
        assert Text("fox").identity().hex()[:16] == "fed03fb57aa568c2"


class TestPacking:
    @given(scalars)
    def test_a_scalar_comes_back(self, value):
        again = type(value).unpack(value.pack())
        assert (again, type(again.value)) == (value, type(value.value))

    def test_fields_come_back_with_their_types(self):
        value = Recipe((1, 2), 0.5, Mode.ADD, Text("a"))
        assert value.pack().meta == {"seeds": [1, 2], "strength": 0.5, "mode": "add", "note": {"value": "a"}}
        assert Recipe.unpack(value.pack()) == value

    def test_an_identity_survives_packing(self):
        value = Recipe((1, 2), 0.5, Mode.ADD, Text("a"))
        assert Recipe.unpack(value.pack()).identity() == value.identity()

    @pytest.mark.parametrize("meta", [{}, {"seeds": "a"}, {"seeds": [1], "strength": "x"}])
    def test_what_does_not_fit_is_a_value_error(self, meta):
        with pytest.raises(ValueError, match="validation error"):
            Float.unpack(Packed(meta)) if not meta else Recipe.unpack(Packed(meta))


class TestDefaults:
    def test_a_value_without_tensors_lies_nowhere_and_moves_nowhere(self):
        value = Text("a")
        assert value.place() is None
        assert value.move("cuda:0") is value
        assert value.stamp() is None

    def test_a_long_text_counts_with_its_length(self):
        assert Text("x" * 1_000_000).nbytes() >= 1_000_000
        assert 0 < Int(1).nbytes() < 1000

    def test_most_values_are_known_by_content(self):
        assert all(socket.by_value for socket in SCALARS.values())

    def test_every_scalar_of_python_has_a_socket(self):
        assert dict(SCALARS) == {bool: Bool, int: Int, float: Float, str: Text}

    def test_an_int_fits_wherever_a_float_does(self):
        assert issubclass(Int, Float)
        assert not issubclass(Bool, Int)

    def test_a_value_cannot_be_written_into(self):
        with pytest.raises(AttributeError):
            Text("a").value = "b"


class TestChecking:
    @given(scalars)
    def test_a_scalar_that_holds_what_it_promises_is_taken(self, value):
        value.check()

    def test_a_whole_number_is_a_number(self):
        Float(1).check()

    @pytest.mark.parametrize(
        "value",
        [
            Text(5),
            Text(None),
            Int("7"),
            Int(7.0),
            Int(value=True),
            Float("0.5"),
            Float(value=True),
            Bool(1),
            Bool(None),
        ],
        ids=repr,
    )
    def test_a_scalar_that_holds_something_else_is_refused(self, value):
        with pytest.raises(ValueError, match=f"got {value.value!r}"):
            value.check()

    @pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
    def test_a_number_that_is_not_finite_is_refused(self, value):
        with pytest.raises(ValueError, match="is not a finite number"):
            Float(value).check()
