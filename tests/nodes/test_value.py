import pytest

from engine.node import definition
from engine.socket import Bool, Float, Int, Text
from nodes.value import add, between, boolean, integer, number, seed, text


def test_each_value_travels_as_its_own_type():
    assert number(0.75) == Float(0.75)
    assert integer(7) == Int(7)
    assert text("a fox") == Text("a fox")
    assert boolean(value=True) == Bool(value=True)
    assert seed(7) == Int(7)


def test_a_whole_number_fits_where_a_number_does():
    assert issubclass(definition(integer).outputs["out"], definition(number).outputs["out"])


@pytest.mark.parametrize("value", [-(2**63), 2**64 - 1])
def test_integers_reach_from_the_least_signed_to_the_largest_seed(value):
    param = definition(integer).params["value"]
    assert param.parse(value).value == value
    with pytest.raises(ValueError, match="range"):
        param.parse(value + (1 if value > 0 else -1))


@pytest.mark.parametrize(("node", "value"), [(integer, 1.5), (integer, True), (number, "1"), (text, 1), (boolean, 1)])
def test_a_literal_of_another_type_is_refused(node, value):
    with pytest.raises(ValueError, match="valid"):
        definition(node).params["value"].parse(value)


def test_a_seed_of_minus_one_is_drawn_at_each_submission_even_when_nobody_wrote_it():
    param = definition(seed).params["value"]
    assert param.default == -1
    assert param.fresh is not None
    assert param.fresh.when == -1


@pytest.mark.parametrize(("a", "b", "expected"), [(1, 2, 3), (7, -9, -2), (2**63, 2**63 - 1, 2**64 - 1)])
def test_whole_numbers_are_added_exactly(a, b, expected):
    assert add(a, b) == Int(expected)


@pytest.mark.parametrize(
    ("curve", "shares"),
    [
        ("linear", [0, 1 / 3, 2 / 3, 1]),
        ("aggressive", [0, 0.5, 0.8660254, 1]),
        ("lazy", [0, 0.1339746, 0.5, 1]),
    ],
)
def test_loopback_goes_along_the_curves_of_a1111(curve, shares):
    went = [between(0.75, 0.5, loop / 3, curve).value for loop in range(4)]
    assert went == pytest.approx([0.75 - 0.25 * share for share in shares], abs=1e-7)


@pytest.mark.parametrize("curve", ["linear", "aggressive", "lazy"])
@pytest.mark.parametrize(("start", "end"), [(0.7, 0.3), (0.1, 1.0), (-3.3, 17.9), (1.0, 1.0)])
def test_a_curve_begins_and_ends_exactly(curve, start, end):
    assert between(start, end, 0.0, curve) == Float(start)
    assert between(start, end, 1.0, curve) == Float(end)
