"""Socket: what may travel on a wire.

A socket class is a frozen dataclass. Its class is its nominal type: an output fits an input of the same class or of a
base class. Values are immutable: nodes share them, caches keep them, so a node must never write into one.
"""

import math
import sys
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, Self

from pydantic import TypeAdapter

from engine.digest import Digest, digest


@dataclass(frozen=True, slots=True)
class Array:
    """Raw numbers of one tensor: dtype in safetensors' spelling (`U8`, `F32`, `BF16`), shape, and bytes in C order."""

    dtype: str
    shape: tuple[int, ...]
    data: bytes


@dataclass(frozen=True, slots=True)
class Packed:
    """A socket taken apart for hashing and for the disk: JSON-able fields and arrays."""

    meta: Mapping[str, Any]
    arrays: Mapping[str, Array] = field(default_factory=dict)


class Socket:
    """Base of everything that travels on a wire. Subclasses are frozen dataclasses.

    `by_value` decides the identity. True: the sha256 of the content, so that equal values are equal wherever they come
    from. False: the recipe (the key of the node that makes it), known without running and never hashed.
    """

    by_value: ClassVar[bool] = True

    def identity(self) -> Digest:
        """Identity of the content; meaningful for classes with `by_value`."""
        packed = self.pack()
        arrays = {name: [a.dtype, a.shape, a.data] for name, a in packed.arrays.items()}
        return digest("value", type(self).__name__, packed.meta, arrays)

    def nbytes(self) -> int:
        """Bytes that this value keeps in memory."""
        return 64 * len(fields(self))  # type: ignore[arg-type]

    def move(self, place: str) -> Self:
        """The same value on `place` (`cpu`, `cuda:0`); itself where nothing has to move."""
        return self

    def demote(self) -> Self:
        """The same value on the host, for a tier there, which hands it out by `move` alone: that waits for a copy."""
        return self.move("cpu")

    def place(self) -> str | None:
        """Where the tensors lie; None for values without tensors."""
        return None

    def stamp(self) -> Hashable:
        """Changes when somebody writes into the value; the loop compares it before and after each node."""
        return None

    def check(self) -> None:
        """Raise ValueError where the value breaks the conventions of its class."""

    def pack(self) -> Packed:
        """Take the value apart."""
        return Packed(_adapter(type(self)).dump_python(self, mode="json"))

    @classmethod
    def unpack(cls, packed: Packed) -> Self:
        """Put a value together again."""
        value: Self = _adapter(cls).validate_python(packed.meta)
        return value


def _adapter(cls: type[Any]) -> TypeAdapter[Any]:
    found = _ADAPTERS.get(cls)
    if found is None:
        found = _ADAPTERS[cls] = TypeAdapter(cls)
    return found


_ADAPTERS: dict[type[Any], TypeAdapter[Any]] = {}


@dataclass(frozen=True, slots=True)
class Float(Socket):
    """A finite number on a wire."""

    value: float

    def check(self) -> None:
        """Raise ValueError for anything else."""
        _expect(self.value, float, int)
        if isinstance(self.value, float) and not math.isfinite(self.value):
            raise ValueError(f"{self.value} is not a finite number")


@dataclass(frozen=True, slots=True)
class Int(Float):
    """A whole number on a wire; fits wherever a Float does."""

    value: int

    def check(self) -> None:
        """Raise ValueError for anything else."""
        _expect(self.value, int)


@dataclass(frozen=True, slots=True)
class Text(Socket):
    """A string on a wire."""

    value: str

    def nbytes(self) -> int:
        """Bytes that this value keeps in memory."""
        return sys.getsizeof(self.value)

    def check(self) -> None:
        """Raise ValueError for anything else."""
        _expect(self.value, str)


@dataclass(frozen=True, slots=True)
class Bool(Socket):
    """A truth value on a wire."""

    value: bool

    def check(self) -> None:
        """Raise ValueError for anything else."""
        _expect(self.value, bool)


def _expect(value: object, *kinds: type) -> None:
    if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
        raise ValueError(f"expected {kinds[0].__name__}, got {value!r}")


SCALARS: Mapping[type, type[Socket]] = {bool: Bool, int: Int, float: Float, str: Text}
