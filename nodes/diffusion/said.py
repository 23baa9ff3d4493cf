"""What prompts say to a network, and what its cross-attentions make of it: asked at every step, computed once.

The keys and values of a cross-attention depend on the conditioning alone. A run shows the network the same
conditionings again and again, so they are kept as long as calls repeat.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeAlias
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from nodes.diffusion.precision import number_format

KEPT = 1 << 29
"""Bytes of keys and values that are kept for one batch of runs, at most; what is beyond that is computed every time."""
REPEATED = 2
"""Rounds within which something is said again: prompts may take turns."""

Memory: TypeAlias = tuple[object, ...]


class Allowance:
    """Bytes that may still be kept."""

    def __init__(self, left: int = KEPT) -> None:
        self.left = left

    def take(self, size: int) -> bool:
        """Whether so many bytes more may be kept; they are taken."""
        fits = size <= self.left
        self.left -= size if fits else 0
        return fits


class Said:
    """Conditionings (B, tokens, D), one per latent of a call, with the keys and values that networks made of them."""

    def __init__(self, tokens: Tensor, allowance: Allowance) -> None:
        self.tokens = tokens
        self._allowance = allowance
        self._cast: dict[torch.dtype, Tensor] = {tokens.dtype: tokens}
        self._made: dict[nn.Module, Tensor] = {}
        self._parts: dict[tuple[int, ...], Said] = {}

    def rows(self, positions: tuple[int, ...]) -> "Said":
        """What is said to some of the latents."""
        found = self._parts.get(positions)
        if found is None:
            whole = positions == tuple(range(len(self.tokens)))
            tokens = self.tokens if whole else self.tokens[list(positions)]
            found = self._parts[positions] = Said(tokens, self._allowance)
        return found

    @contextmanager
    def to(self, network: Any) -> Iterator[Tensor]:
        """The conditionings in a network's dtype; within, its cross-attentions find what they made of them before.

        Nothing of this stays with the network, whose layers others may copy or change between two calls.
        """
        tokens = self._as(number_format(network))
        layers = [layer for layer in _projections(network) if "forward" not in vars(layer)]
        try:
            for layer in layers:
                layer.forward = partial(self._project, layer, layer.forward, tokens)
            yield tokens
        finally:
            for layer in layers:
                vars(layer).pop("forward", None)

    def kept(self) -> int:
        """Bytes of keys and values that are kept."""
        return sum(made.nbytes for made in self._made.values()) + sum(part.kept() for part in self._parts.values())

    def _as(self, dtype: torch.dtype) -> Tensor:
        if dtype not in self._cast:
            self._cast[dtype] = self.tokens.to(dtype)
        return self._cast[dtype]

    def _project(self, layer: nn.Module, project: Callable[[Tensor], Tensor], tokens: Tensor, states: Tensor) -> Tensor:
        if states is not tokens:
            return project(states)
        made = self._made.get(layer)
        if made is None:
            made = project(states)
            if self._allowance.take(made.nbytes):
                self._made[layer] = made
        return made


class Conversation:
    """What is said in the calls of a batch of runs, as long as it is repeated within `REPEATED` rounds."""

    def __init__(self) -> None:
        self._allowance = Allowance()
        self._known: dict[Memory, Said] = {}
        self._used: dict[Memory, int] = {}
        self._round = 0

    def begin(self) -> None:
        """A round of calls begins."""
        self._round += 1
        for key in [key for key, last in self._used.items() if last < self._round - REPEATED]:
            del self._used[key]
            self._allowance.left += self._known.pop(key).kept()

    def said(self, rows: Sequence[Tensor], length: int) -> Said:
        """Conditionings (1, tokens, D), one per latent of a call, each repeated to `length` tokens."""
        key = (length, *map(memory, rows))
        if key not in self._known:
            tokens = torch.cat([row.repeat(1, length // row.shape[1], 1) for row in rows])
            self._known[key] = _Held(tokens, self._allowance, rows)
        self._used[key] = self._round
        return self._known[key]


class _Held(Said):
    """Conditionings that keep alive what they were put together from: its memory stands for it."""

    def __init__(self, tokens: Tensor, allowance: Allowance, rows: Sequence[Tensor]) -> None:
        super().__init__(tokens, allowance)
        self._rows = tuple(rows)


def memory(data: Tensor) -> Memory:
    """What a tensor that is kept alive can be told by: where it lies, and how often it was written into."""
    return data.data_ptr(), data.shape, data.stride(), data._version


_FOUND: WeakKeyDictionary[nn.Module, tuple[nn.Module, ...]] = WeakKeyDictionary()


def _projections(network: object) -> tuple[nn.Module, ...]:
    """The layers of a network that make keys and values of conditionings."""
    if not isinstance(network, nn.Module):
        return ()
    found = _FOUND.get(network)
    if found is None:
        attentions = [part for part in network.modules() if getattr(part, "is_cross_attention", False)]
        found = _FOUND[network] = tuple(
            layer for part in attentions for layer in (part.to_k, part.to_v) if isinstance(layer, nn.Module)
        )
    return found
