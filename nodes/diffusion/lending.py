"""Weights that their file lends to a module, so that it is there at once, until threads have read them.

A file that is mapped is there without being read, but is no place to compute from: it may change, it may get shorter,
which ends a process that looks where it was, and weights lie in it where kernels round differently than for a tensor
of torch's. So threads read the weights into tensors, and each part of a module takes its own before it first computes,
waiting for them if need be. Whoever looks at a weight before that finds its values all the same.
"""

from __future__ import annotations

import mmap
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from math import prod
from pathlib import Path
from threading import Condition
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from nodes.diffusion import reading
from nodes.diffusion.reading import Piece
from nodes.diffusion.tensors import SHORTER, LoadError

Waiting: TypeAlias = Callable[[], None]
"""Waits until something is done."""
Beginning: TypeAlias = Callable[[], Waiting]
_POSTPONED: ContextVar[list[Beginning] | None] = ContextVar("postponed", default=None)


@contextmanager
def postponed() -> Iterator[list[Waiting]]:
    """Begin to read at the end of a block, and leave the waiting to whoever opens it: it is what the list holds then.

    Nobody waits where the block raises; then nothing is read.
    """
    begins: list[Beginning] = []
    waiting: list[Waiting] = []
    token = _POSTPONED.set(begins)
    try:
        yield waiting
    finally:
        _POSTPONED.reset(token)
    waiting += [begin() for begin in begins]


def later(begin: Beginning) -> None:
    """Have weights read that somebody waits for later, or, where nobody postpones it, read them now."""
    begins = _POSTPONED.get()
    if begins is None:
        begin()()
    else:
        begins.append(begin)


def complete(module: nn.Module) -> None:
    """Wait until a module has all weights of its own: before it is copied or compiled, say.

    Raises LoadError, or whatever went wrong with the reading.
    """
    for part in module.modules():
        for hook in [*part._forward_pre_hooks.values()]:
            if isinstance(hook, _Tenant):
                hook.take()


class Loan:
    """Weights of a module in the files that lend them."""

    def __init__(self, pieces: Mapping[str, Piece], dtype: torch.dtype) -> None:
        """Map the files of weights that are wanted as they lie there. Raises OSError, and LoadError for short files."""
        files = {path: _mapped(path) for path in {piece.span.path for piece in pieces.values()}}
        self.lent = {name: _lent(files[piece.span.path], piece) for name, piece in pieces.items()}
        """Each weight as it lies in its file; none once all are read."""
        self._pieces = pieces
        self._own = {name: piece.empty(dtype, "cpu") for name, piece in pieces.items()}
        self._left = {name: weight.numel() for name, weight in self._own.items()}
        self._wrong: BaseException | None = None
        self._news = Condition()
        self._tenants: list[_Tenant] = []

    def to(self, module: nn.Module) -> None:
        """Have every part of a module, which holds what is lent, take its own before it computes."""
        for path, inner in module.named_modules():
            prefix = f"{path}." if path else ""
            for table in (inner._parameters, inner._buffers):
                names = {name: prefix + name for name in table if prefix + name in self.lent}
                if names:
                    self._tenants.append(_Tenant(self, inner, table, names))

    def begin(self) -> Waiting:
        """Begin to read; returns what waits until all is read and taken. That raises LoadError if it cannot be."""
        reads = reading.begin(self._pieces, self._own, self._arrived)

        def wait() -> None:
            for read in reads:
                read.result()
            for tenant in self._tenants:
                tenant.take()
            self.lent = {}

        return wait

    def own(self, name: str) -> Tensor:
        """Wait for a weight. Raises LoadError, or whatever went wrong with the reading."""
        with self._news:
            self._news.wait_for(lambda: not self._left[name] or self._wrong)
            if self._left[name]:
                assert self._wrong is not None
                raise self._wrong
        return self._own[name]

    def _arrived(self, name: str, numbers: int, wrong: BaseException | None) -> None:
        with self._news:
            self._left[name] -= numbers
            self._wrong = self._wrong or wrong
            if wrong is not None or not self._left[name]:
                self._news.notify_all()


@dataclass(eq=False)
class _Tenant:
    """A part of a module that holds what is lent."""

    loan: Loan
    part: nn.Module
    table: dict[str, Any]
    """Its weights by name."""
    names: Mapping[str, str]
    """Those that are lent, and what the loan calls them."""
    hook: RemovableHandle | None = None

    def __post_init__(self) -> None:
        self.hook = self.part.register_forward_pre_hook(self)

    def __call__(self, *_: object) -> None:
        """The part is about to compute."""
        self.take()

    def take(self) -> None:
        """Put its own in the place of what is lent, once it is there."""
        if self.hook is None:
            return
        for name, known in self.names.items():
            own = self.loan.own(known)
            lent = self.table[name]
            self.table[name] = nn.Parameter(own, requires_grad=False) if isinstance(lent, nn.Parameter) else own
        hook, self.hook = self.hook, None
        if hook is not None:  # another thread may have come first
            hook.remove()


def _mapped(path: Path) -> mmap.mmap:
    """A file in memory, which nobody writes through: torch complains about memory that cannot be written."""
    with path.open("rb") as file:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)


def _lent(file: mmap.mmap, piece: Piece) -> Tensor:
    count, format_ = prod(piece.shape), piece.span.format
    missing = piece.start + count * format_.itemsize - len(file)
    if missing > 0:
        raise LoadError(piece.span.path, f"{missing} bytes more", SHORTER)
    return torch.frombuffer(file, dtype=format_, count=count, offset=piece.start).view(piece.shape)
