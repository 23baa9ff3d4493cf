"""Numbers, words and switches as nodes, so that one value can feed many parameters."""

from math import pi, sin
from typing import Annotated, Literal

from annotated_types import Ge, Le

from engine.node import node
from engine.socket import Bool, Float, Int, Text
from nodes.types import Fraction, Seed

Whole = Annotated[int, Ge(-(2**63)), Le(2**64 - 1)]
"""A whole number of 64 bits, signed or, as seeds are, unsigned."""


@node("number", version=1)
def number(value: float) -> Float:
    """Give a number to every parameter that it is linked to."""
    return Float(value)


@node("integer", version=1)
def integer(value: Whole) -> Int:
    """Give a whole number to every parameter that it is linked to; a whole number also fits a number."""
    return Int(value)


@node("seed", version=1)
def seed(value: Seed = -1) -> Int:
    """Give one seed to everything that it is linked to; -1 draws it anew at each submission."""
    return Int(value)


@node("integer.add", version=1)
def add(a: Whole, b: Whole) -> Int:
    """Add two whole numbers, such as a seed and how far it has counted up."""
    return Int(a + b)


@node("number.between", version=1)
def between(start: float, end: float, at: Fraction, curve: Literal["linear", "aggressive", "lazy"] = "linear") -> Float:
    """Go from one number to another: `start` at 0, `end` at 1.

    `aggressive` is fast at first, sin(at pi / 2), and `lazy` at last, 1 - cos(at pi / 2): the curves of A1111's
    loopback, where `at` is i / (loops - 1).
    """
    share = {"linear": at, "aggressive": sin(at * pi / 2), "lazy": 1 - sin((1 - at) * pi / 2)}[curve]
    return Float(start * (1 - share) + end * share)


@node("text", version=1)
def text(value: str) -> Text:
    """Give a text to every parameter that it is linked to."""
    return Text(value)


@node("boolean", version=1)
def boolean(*, value: bool) -> Bool:
    """Give true or false to every parameter that it is linked to."""
    return Bool(value)
