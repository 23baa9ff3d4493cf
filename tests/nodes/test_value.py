import pytest

from engine.node import definition
from engine.socket import Bool, Float, Int, Text
from nodes.value import boolean, integer, number, text


def test_each_value_travels_as_its_own_type():
    assert number(0.75) == Float(0.75)
    assert integer(7) == Int(7)
    assert text("a fox") == Text("a fox")
    assert boolean(value=True) == Bool(value=True)


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
