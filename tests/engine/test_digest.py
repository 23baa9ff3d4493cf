"""The canonical encoding: two values share bytes exactly if they are the same value."""

import enum
import math
import struct
import subprocess
import sys

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from engine.digest import digest, encode

scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text()
    | st.binary()
    | st.sampled_from(["", "1", "N", "i1:1", b"i1:1", 1, 1.0, True, 0, 0.0, -0.0, False, b"", "null"])
)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=4),
    max_leaves=8,
)


def exact(value):
    """A text that differs wherever values or their types do; dictionaries in the order of their keys."""
    if isinstance(value, dict):
        return f"{{{', '.join(f'{name!r}: {exact(value[name])}' for name in sorted(value))}}}"
    if isinstance(value, list):
        return f"[{', '.join(map(exact, value))}]"
    return repr(value)


def decode(data):
    """The value at the beginning of `data`, and the rest: what can be read back was not lost."""
    tag, rest = data[:1], data[1:]
    if tag in b"NTF":
        return {b"N": None, b"T": True, b"F": False}[tag], rest
    if tag == b"f":
        return struct.unpack(">d", rest[:8])[0], rest[8:]
    size, _, rest = rest.partition(b":")
    if tag in b"isb":
        text, rest = rest[: int(size)], rest[int(size) :]
        return {b"i": int, b"s": lambda raw: raw.decode("utf-8", "surrogatepass"), b"b": bytes}[tag](text), rest
    items = []
    for _ in range(int(size) * (2 if tag == b"m" else 1)):
        item, rest = decode(rest)
        items.append(item)
    return (dict(zip(items[::2], items[1::2], strict=True)) if tag == b"m" else items), rest


@given(values)
def test_a_value_can_be_read_back_from_its_encoding(value):
    read, rest = decode(encode(value))
    assert exact(read) == exact(value)
    assert rest == b""


@given(values, values)
@example("ab", ["a", "b"])
@example(["ab", "c"], ["a", "bc"])
@example([[], [1]], [[1], []])
@example({"a": {"b": 1}}, {"a": {}, "b": 1})
@example({"a": 1}, ["a", 1])
@example(["a", 1], [["a", 1]])
@example(1, 1.0)
@example(0.0, -0.0)
@example("a", b"a")
def test_different_values_never_share_an_encoding(one, other):
    assert (encode(one) == encode(other)) == (exact(one) == exact(other))


@given(st.lists(values, max_size=4), st.lists(values, max_size=4))
def test_different_parts_never_share_a_digest(one, other):
    assert (digest(*one) == digest(*other)) == (exact(one) == exact(other))


@given(st.dictionaries(st.text(), values), st.randoms())
def test_the_order_of_keys_is_irrelevant(mapping, random):
    shuffled = list(mapping.items())
    random.shuffle(shuffled)
    assert encode(dict(shuffled)) == encode(mapping)


@given(st.lists(values, min_size=2, max_size=4, unique_by=exact))
def test_the_order_of_a_list_matters(items):
    assert encode(items) != encode(items[::-1])


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_number_that_is_not_finite_is_refused_wherever_it_stands(value):
    for place in (value, [value], {"a": [1, {"b": value}]}):
        with pytest.raises(ValueError, match="cannot be part of a key"):
            encode(place)


@pytest.mark.parametrize("value", [object(), {1, 2}, 1j, iter([1]), len])
def test_what_has_no_canonical_form_is_refused(value):
    with pytest.raises(TypeError, match=f"{type(value).__name__} cannot be part of a key"):
        encode([value])


def test_a_mapping_has_string_keys():
    with pytest.raises(TypeError, match="string names, got 1"):
        encode({1: "a"})


def test_tuples_and_lists_are_the_same_sequence():
    assert encode((1, (2, 3))) == encode([1, [2, 3]])


def test_bytes_like_objects_are_their_content():
    assert encode(bytearray(b"ab")) == encode(memoryview(b"ab")) == encode(b"ab")


def test_a_text_enum_is_its_text():
    class Mode(enum.StrEnum):
        ADD = "add"

    assert encode(Mode.ADD) == encode("add")


def test_half_a_surrogate_pair_is_a_text_like_any_other():
    assert len({encode(text) for text in ("\ud800", "\udc00", "?", "\ufffd")}) == 4


def test_a_digest_is_32_bytes():
    assert [len(digest(*parts)) for parts in ((), (1,), ("a" * 10_000, [None]))] == [32, 32, 32]


def test_a_digest_is_the_same_in_every_process():
    script = "from engine.digest import digest; print(digest({'b': 1, 'a': ['x', 2.5]}, b'z', None).hex())"
    environment = {"PYTHONHASHSEED": "12345", "PYTHONPATH": "."}
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, env=environment)
    assert found.stdout.strip() == digest({"a": ["x", 2.5], "b": 1}, b"z", None).hex()


def test_the_encoding_does_not_change_between_versions():
    """Keys on people's disks were made with it."""
    assert encode({"b": [1, 1.5, True, None], "a": "ä", "c": b"x"}) == (
        b"m3:s1:as2:\xc3\xa4s1:bl4:i1:1f?\xf8\x00\x00\x00\x00\x00\x00TNs1:cb1:x"
    )
