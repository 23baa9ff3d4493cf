"""Precision: in which number format a network computes, and what overflows in 16 bits computed again in 32."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

M = TypeVar("M", bound=nn.Module)


def finite(run: Callable[[M], Tensor], module: M, wider: Callable[[], M] | None = None) -> Tensor:
    """Return what a module computes or, where that holds infinities or NaN, what the same module does in float32.

    `wider` gives the one in float32; it is asked only when it is needed. Raises FloatingPointError where there is none,
    or it overflows too.
    """
    made = run(module)
    if bool(made.isfinite().all()):
        return made
    dtype = next(module.parameters()).dtype
    if dtype == torch.float32 or wider is None:
        remedy = "look at what goes in" if dtype == torch.float32 else "load the model in float32"
        raise FloatingPointError(f"{type(module).__name__} made infinities or NaN in {_word(dtype)}; {remedy}")
    del made
    return finite(run, wider())


def number_format(network: Any) -> torch.dtype:
    """The dtype of a network's weights: that of its first. The property of diffusers' goes through all its modules."""
    weight = next(network.parameters(), None) if isinstance(network, nn.Module) else None
    dtype: torch.dtype = network.dtype if weight is None else weight.dtype
    return dtype


def _word(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
