"""Numbers, words and switches as nodes, so that one value can feed many parameters."""

from typing import Annotated

from annotated_types import Ge, Le

from engine.node import node
from engine.socket import Bool, Float, Int, Text

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


@node("text", version=1)
def text(value: str) -> Text:
    """Give a text to every parameter that it is linked to."""
    return Text(value)


@node("boolean", version=1)
def boolean(*, value: bool) -> Bool:
    """Give true or false to every parameter that it is linked to."""
    return Bool(value)
