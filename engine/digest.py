"""Canonical encoding of plain values, and its sha256.

The encoding is injective: values of different type or content never share bytes (`1`, `1.0`, `True` and `"1"` all
differ), and dictionaries do not depend on the order of their keys.
"""

import hashlib
import math
import struct
from collections.abc import Callable, Mapping, Sequence

Json = None | bool | int | float | str | Sequence["Json"] | Mapping[str, "Json"]
Digest = bytes
"""32 bytes of sha256."""
Put = Callable[[bytes | bytearray | memoryview], object]


def encode(value: object) -> bytes:
    """Canonical bytes of None, bool, int, float, str, bytes, sequences and string-keyed mappings of them.

    Raises TypeError for anything else and ValueError for NaN and infinities, which no key may contain.
    """
    out = bytearray()
    _encode(value, out.extend)
    return bytes(out)


def digest(*parts: object) -> Digest:
    """sha256 of the canonical encoding of `parts`."""
    state = hashlib.sha256()
    _encode(parts, state.update)
    return state.digest()


def _encode(value: object, put: Put) -> None:  # noqa: C901, PLR0912  one branch per type
    match value:
        case None:
            put(b"N")
        case True:
            put(b"T")
        case False:
            put(b"F")
        case int():
            _sized(b"i", str(value).encode(), put)
        case float():
            if not math.isfinite(value):
                raise ValueError(f"{value} cannot be part of a key")
            put(b"f" + struct.pack(">d", value))
        case str():
            _sized(b"s", value.encode("utf-8", "surrogatepass"), put)
        case bytes() | bytearray() | memoryview():
            _sized(b"b", value, put)
        case Mapping():
            put(b"m%d:" % len(value))
            for name in sorted(value):
                if not isinstance(name, str):
                    raise TypeError(f"a key's mapping needs string names, got {name!r}")
                _encode(name, put)
                _encode(value[name], put)
        case Sequence():
            put(b"l%d:" % len(value))
            for item in value:
                _encode(item, put)
        case _:
            raise TypeError(f"{type(value).__name__} cannot be part of a key")


def _sized(tag: bytes, data: bytes | bytearray | memoryview, put: Put) -> None:
    put(tag + b"%d:" % len(data))
    put(data)
