"""Devices and tensors: the one module of the engine that imports torch."""

import dataclasses
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from functools import cache
from typing import Any, Protocol, Self, cast, get_type_hints
from weakref import WeakKeyDictionary

import torch
from pydantic import TypeAdapter

from engine import heap
from engine.host import Host, host_memory
from engine.socket import Array, Packed, Socket

_DTYPES: Mapping[str, torch.dtype] = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I32": torch.int32,
    "I64": torch.int64,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F32": torch.float32,
    "F64": torch.float64,
}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}
LOCKED = 4
"""A model is kept in page-locked memory, which copies faster, where so many times its bytes are free on the host."""


class Copying(Protocol):
    """Copies that are under way."""

    def synchronize(self) -> None:
        """Wait until all are done."""


class TensorSocket(Socket):
    """A socket with tensors among its fields. Subclasses are frozen dataclasses with `eq=False`.

    A field is a tensor, a `tuple[torch.Tensor, ...]`, or something that JSON can hold.
    """

    def tensors(self) -> dict[str, torch.Tensor]:
        """The tensors by the name of their field; those of a tuple by name and number."""
        found = {}
        for name, many in _tensor_fields(cast("Any", type(self))).items():
            value = getattr(self, name)
            found.update({f"{name}.{number}": each for number, each in enumerate(value)} if many else {name: value})
        return found

    def nbytes(self) -> int:
        """Bytes of the storages behind the tensors; a small view counts as the large tensor that it keeps alive."""
        storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in self.tensors().values()}
        return sum(storages.values())

    def move(self, place: str) -> Self:
        """The same value on `place`; into page-locked memory when it leaves a CUDA device for the host, all of it."""
        if place == "cpu":
            demoted = self.demote()
            demoted._settle()
            return demoted
        self._settle()
        if self.place() == place:
            return self
        return self._of({name: tensor.to(place, non_blocking=True) for name, tensor in self.tensors().items()})

    def demote(self) -> Self:
        """The same value in page-locked memory, to which the device may still be copying while it computes.

        `move` and `pack` of what comes back wait for that; nobody reads its tensors before.
        """
        if not any(map(_is_away, self.tensors().values())):
            return self
        sent, copying = _send(self.tensors())
        demoted = self._of(sent)
        _COPYING[demoted] = copying
        return demoted

    def _settle(self) -> None:
        """Wait until the tensors hold what was sent to them."""
        copying = _COPYING.get(self)
        if copying is not None:
            copying.synchronize()
            _COPYING.pop(self, None)

    def _of(self, tensors: Mapping[str, torch.Tensor]) -> Self:
        """The same value with other tensors."""
        return cast("Self", dataclasses.replace(cast("Any", self), **_gathered(type(self), tensors)))

    def place(self) -> str | None:
        """Where the first tensor lies."""
        return next((str(tensor.device) for tensor in self.tensors().values()), None)

    def stamp(self) -> Hashable:
        """Version counters of torch: every write in place raises them."""
        return tuple(tensor._version for tensor in self.tensors().values())

    def pack(self) -> Packed:
        """Tensors as arrays, the rest as JSON."""
        self._settle()
        meta = {
            name: _adapter(cast("Any", type(self)), name).dump_python(value, mode="json")
            for name, value in _fields(self).items()
            if name not in _tensor_fields(cast("Any", type(self)))
        }
        return Packed(meta, {name: _array(tensor) for name, tensor in self.tensors().items()})

    @classmethod
    def unpack(cls, packed: Packed) -> Self:
        """Put a value together again, on the CPU."""
        arrays = {name: _tensor(array) for name, array in packed.arrays.items()}
        return cls(
            **{name: _adapter(cast("Any", cls), name).validate_python(raw) for name, raw in packed.meta.items()},
            **_gathered(cls, arrays),
        )


_COPYING: WeakKeyDictionary[TensorSocket, Copying] = WeakKeyDictionary()
"""Values whose tensors do not hold all yet."""


@cache
def _adapter(cls: Any, name: str) -> TypeAdapter[Any]:
    """Reads one field of a class from JSON, so that a tuple comes back as a tuple."""
    return TypeAdapter(get_type_hints(cls, include_extras=True)[name])


@cache
def _tensor_fields(cls: Any) -> Mapping[str, bool]:
    """The fields of a class that hold tensors, and whether each holds a tuple of them."""
    hints = get_type_hints(cls, include_extras=True)
    kinds = {entry.name: hints[entry.name] for entry in dataclasses.fields(cast("Any", cls))}
    return {
        name: kind is not torch.Tensor
        for name, kind in kinds.items()
        if kind in (torch.Tensor, tuple[torch.Tensor, ...])
    }


def _gathered(cls: type, tensors: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    """Fields from tensors by name, or by name and number."""
    many = [name for name, many in _tensor_fields(cls).items() if many]
    tuples = {
        name: tuple(tensors[f"{name}.{number}"] for number in range(sum(key.startswith(f"{name}.") for key in tensors)))
        for name in many
    }
    return {name: tensor for name, tensor in tensors.items() if "." not in name} | tuples


class Device(Host):
    """Where nodes run: `cpu` or a CUDA device. On the CPU the process keeps freed memory from then on: see `heap`."""

    def __init__(self, name: str = "cpu") -> None:
        """Raises ValueError for a device that this machine does not have."""
        if name != "cpu" and not (name.startswith("cuda") and torch.cuda.is_available()):
            raise ValueError(f"no device {name!r} here: expected cpu{_cuda_names()}")
        self.name = "cuda:0" if name == "cuda" else name
        self._paced: torch.cuda.Event | None = None
        if name == "cpu":
            heap.keep()

    @property
    def kind(self) -> str:
        """Device class, part of every key: results differ in their last bits between classes."""
        return "cpu" if self.name == "cpu" else torch.cuda.get_device_name(self.name)

    def sync(self) -> None:
        """Wait for the device, so that seconds mean something."""
        if self.name != "cpu":
            torch.cuda.synchronize(self.name)

    def pace(self) -> None:
        """Wait until the device has done all but what it was given since the last time: it stays busy meanwhile."""
        if self.name != "cpu":
            last, self._paced = self._paced, torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._paced.record(torch.cuda.current_stream(self.name))
            if last is not None:
                last.synchronize()

    def out_of_memory(self, error: BaseException) -> bool:
        """Whether memory ran out."""
        return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or (
            isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
        )

    def trim(self) -> None:
        """Give freed blocks back, after an out-of-memory error, or where nothing else is to come."""
        for give_up in _GIVE_UP:
            give_up()
        if self.name == "cpu":
            heap.give_back()
        else:
            torch.cuda.empty_cache()

    def park(self, modules: Sequence[object], spare: Sequence[object] = ()) -> "ParkedTensors | None":
        """Move the tensors of modules from an accelerator to the host, in place; page-locked where that is cheap."""
        if self.name == "cpu":
            return None
        spared = {_address(tensor) for module in spare for tensor in tensors_of(module)}
        found = {id(tensor): tensor for module in modules for tensor in tensors_of(module) if self._has(tensor)}
        moving = [tensor for tensor in found.values() if _address(tensor) not in spared]
        return ParkedTensors(moving, self.name)

    def _has(self, tensor: torch.Tensor) -> bool:
        return str(tensor.device) == self.name

    def memory(self) -> int:
        """Bytes a cache may reasonably use: half of what is free."""
        if self.name != "cpu":
            return torch.cuda.mem_get_info(self.name)[0] // 2
        return super().memory()

    def __enter__(self) -> None:
        """Around each node: no autograd."""
        self._guard = torch.no_grad()
        self._guard.__enter__()

    def __exit__(self, *exc: object) -> None:
        """Leave autograd as it was."""
        self._guard.__exit__(*cast("Any", exc))


_GIVE_UP: list[Callable[[], None]] = []


def before_trim(give_up: Callable[[], None]) -> None:
    """Have something that holds memory beside the budget, to be faster, give it up before a device is trimmed."""
    _GIVE_UP.append(give_up)


class ParkedTensors:
    """Tensors that were moved from a device to the host."""

    def __init__(self, tensors: Sequence[torch.Tensor], device: str) -> None:
        """Move them. Raises RuntimeError where the host has no room, and moves none."""
        self._tensors = tensors
        self._device = device
        self.nbytes = sum({_address(tensor): tensor.untyped_storage().nbytes() for tensor in tensors}.values())
        relocate(tensors, "cpu", locked=torch.cuda.is_available() and self.nbytes * LOCKED <= host_memory())

    def back(self) -> None:
        """Move them back. Raises torch.OutOfMemoryError where they do not fit, and moves none."""
        relocate(self._tensors, self._device)


def tensors_of(model: object) -> Iterator[torch.Tensor]:
    """Every tensor of a model: of modules, also those in the fields of dataclasses, in mappings and in sequences."""
    if isinstance(model, torch.Tensor):
        yield model
    elif isinstance(model, torch.nn.Module):
        yield from model.parameters()
        yield from model.buffers()
    elif isinstance(model, Mapping):
        for value in model.values():
            yield from tensors_of(value)
    elif isinstance(model, list | tuple):
        for value in model:
            yield from tensors_of(value)
    elif dataclasses.is_dataclass(model):
        yield from tensors_of(_fields(model))


def relocate(tensors: Sequence[torch.Tensor], place: str, *, locked: bool = False) -> None:
    """Move tensors to `place` in place, all or none; those that share a storage share it there too.

    All are copied before anybody waits: no tensor lies on the host before all that it holds is there.
    """
    moved: dict[int, torch.UntypedStorage] = {}
    for tensor in tensors:
        if _address(tensor) not in moved:
            moved[_address(tensor)] = _copied(tensor.untyped_storage(), place, locked=locked)
    for device in {tensor.device for tensor in tensors if _is_away(tensor)} if place == "cpu" else ():
        _wait(device)
    for tensor in tensors:
        fresh = torch.empty(0, dtype=tensor.dtype, device=place)
        storage = moved[_address(tensor)]
        tensor.data = fresh.set_(storage, tensor.storage_offset(), tensor.size(), tensor.stride())


def _copied(storage: torch.UntypedStorage, place: str, *, locked: bool) -> torch.UntypedStorage:
    source = torch.empty(0, dtype=torch.uint8, device=storage.device).set_(storage)
    copied = torch.empty(source.shape, dtype=torch.uint8, device=place, pin_memory=locked)
    copied.copy_(source, non_blocking=place != "cpu" or locked)
    return copied.untyped_storage()


def _wait(device: torch.device) -> None:
    """Wait for what the device was asked for so far, by this thread."""
    torch.cuda.current_stream(device).synchronize()


def _address(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def default_device() -> str:
    """CUDA where there is one, else the CPU."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def _fields(value: object) -> dict[str, Any]:
    return {entry.name: getattr(value, entry.name) for entry in dataclasses.fields(cast("Any", value))}


def _is_away(tensor: torch.Tensor) -> bool:
    return tensor.is_cuda


def _send(tensors: Mapping[str, torch.Tensor]) -> tuple[dict[str, torch.Tensor], Copying]:
    """Have CUDA tensors copied into page-locked memory, on a stream of their own; others are left where they are.

    The copies begin when all is computed that was asked for so far, and what is copied is kept until they are done.
    """
    device = next(tensor.device for tensor in tensors.values() if tensor.is_cuda)
    stream = _stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    sent = {}
    with torch.cuda.stream(stream):
        for name, tensor in tensors.items():
            sent[name] = _sent(tensor, stream) if tensor.is_cuda else tensor
        return sent, stream.record_event()


def _sent(tensor: torch.Tensor, stream: torch.cuda.Stream) -> torch.Tensor:
    tensor.record_stream(stream)
    return torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True).copy_(tensor, non_blocking=True)


@cache
def _stream(device: torch.device) -> torch.cuda.Stream:
    """The stream that values leave a device on."""
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]


def _array(tensor: torch.Tensor) -> Array:
    flat = tensor.detach().to("cpu").contiguous().reshape(-1)
    return Array(_NAMES[tensor.dtype], tuple(tensor.shape), flat.view(torch.uint8).numpy().tobytes())


def _tensor(array: Array) -> torch.Tensor:
    if not array.data:
        return torch.empty(array.shape, dtype=_DTYPES[array.dtype])
    return torch.frombuffer(bytearray(array.data), dtype=_DTYPES[array.dtype]).reshape(array.shape)


def _cuda_names() -> str:
    return "".join(f", cuda:{index}" for index in range(torch.cuda.device_count()))
