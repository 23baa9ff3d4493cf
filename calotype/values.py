"""Values as people write them on a command line: lists, ranges, words to replace. Pure functions of texts.

The syntax is that of the WebUI's X/Y/Z plot, with its ranges mended: they may lead down, and never overshoot.
"""

import csv
import io
import math
import re
from collections.abc import Iterator, Sequence
from decimal import Decimal
from fractions import Fraction
from itertools import permutations

MOST = 10_000
"""Values that one text may stand for: a sweep takes no more cells."""

_NUMBER = r"[+-]?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d{1,3})?"


def _range(number: str) -> re.Pattern[str]:
    step = number.removeprefix("[+-]?")
    return re.compile(rf"({number})\s*-\s*({number})\s*(?:\(\s*([+-]{step})\s*\)|\[\s*(\d+)\s*\])?")


_WHOLE_RANGE, _RANGE = _range(r"[+-]?\d+"), _range(_NUMBER)


def listed(text: str) -> list[str]:
    """The values of a line, or of several: parted by commas, without the spaces around them.

    A value with a comma stands in double quotes, which are doubled within. Raises ValueError.
    """
    try:
        lines = list(csv.reader(io.StringIO(text, newline=None), skipinitialspace=True))
    except csv.Error as error:
        raise ValueError(f"{text[:80]!r} is no list of values: {error}") from error
    return [value.strip() for line in lines for value in line]


def whole_range(text: str) -> list[int] | None:
    """The whole numbers of `1-5`, `1-9 (+2)`, `9-1 (-2)` or `1-10 [5]`; None where `text` is no range.

    Both ends belong to it. `[n]` are n numbers evenly from end to end, their fractions cut off. Raises ValueError.
    """
    found = _WHOLE_RANGE.fullmatch(text.strip())
    return None if found is None else [int(value) for value in _values(text, *found.groups())]


def number_range(text: str) -> list[float] | None:
    """The numbers of a range as in `whole_range`; without a step they are 1 apart, and none lies beyond the end.

    So `0-1 (+0.3)` is 0, 0.3, 0.6, 0.9, and `0.1-0.5` is 0.1 alone. Decimals are counted exactly. Raises ValueError.
    """
    found = _RANGE.fullmatch(text.strip())
    if found is None:
        return None
    try:
        return [float(value) for value in _values(text, *found.groups())]
    except OverflowError:
        raise ValueError(f"{text!r} leads beyond the numbers that there are") from None


def reordered(text: str, words: Sequence[str]) -> list[tuple[tuple[str, ...], str]]:
    """Every order of the words, and `text` with the words in that order, where they stand in it. Raises ValueError."""
    places = sorted((text.find(word), word) for word in words)
    for (start, word), (following, _) in zip(places, [*places[1:], (len(text), "")], strict=True):
        if start < 0:
            raise ValueError(f"{word!r} does not stand in {text!r}")
        if start + len(word) > following:
            raise ValueError(f"{word!r} overlaps with another word in {text!r}")
    if math.factorial(len(words)) > MOST:
        raise ValueError(f"{len(words)} words have more than {MOST} orders; name fewer")
    pieces, end = [], 0
    for start, word in places:
        pieces.append(text[end:start])
        end = start + len(word)
    return [
        (order, "".join(piece + word for piece, word in zip(pieces, order, strict=True)) + text[end:])
        for order in permutations(words)
    ]


def parted(text: str, count: int) -> list[str]:
    """One value for several names: `euler:karras`, `512x768`. Raises ValueError."""
    for sign in ":x":
        parts = [part.strip() for part in text.split(sign)]
        if len(parts) == count and (sign == ":" or all(re.fullmatch(_NUMBER, part) for part in parts)):
            return parts
    raise ValueError(f"expected {count} values joined by `:`, or numbers joined by `x`, got {text!r}")


def _values(text: str, first: str, last: str, step: str | None, count: str | None) -> Iterator[Fraction]:
    start, end = (Fraction(Decimal(value)) for value in (first, last))
    if count is not None:
        return _evenly(text, start, end, int(count))
    stride = Fraction(Decimal(step)) if step else Fraction(1 if end >= start else -1)
    if stride == 0 or (end - start) * stride < 0:
        raise ValueError(f"{text!r} never arrives: a step of {step} does not lead from {first} to {last}")
    number = int((end - start) / stride) + 1
    check_count(text, number)
    return (start + index * stride for index in range(number))


def _evenly(text: str, start: Fraction, end: Fraction, count: int) -> Iterator[Fraction]:
    check_count(text, count)
    return (start + (end - start) * index / max(1, count - 1) for index in range(count))


def check_count(text: str, count: int) -> None:
    """Raise ValueError for a text that stands for no values, or for more than MOST."""
    if not 1 <= count <= MOST:
        raise ValueError(f"{text!r} stands for {count} values; 1 to {MOST} are allowed")
