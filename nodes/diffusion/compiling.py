"""Compiled UNets: slow to begin with, faster from then on.

torch.compile takes a minute or more for a UNet, once for a picture's size and for one or several latents; later
processes find most of its work on disk. So it is for those who make many pictures of few sizes.
"""

from collections.abc import Iterator
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn


class CompiledUnet:
    """Calls a compiled UNet, any number of latents at a time."""

    def __init__(self, unet: nn.Module) -> None:
        self.unet = unet
        self._dtype: torch.dtype = unet.dtype  # type: ignore[assignment]
        self._call: Any = torch.compile(unet.forward)

    @property
    def dtype(self) -> torch.dtype:
        """That of the UNet."""
        return self._dtype

    def __call__(
        self, sample: Tensor, timestep: Tensor, encoder_hidden_states: Tensor, *, return_dict: bool, **more: Any
    ) -> tuple[Tensor, ...]:
        """Predict as the UNet does; what is returned is nobody else's."""
        given = (sample, timestep, encoder_hidden_states)
        if len(sample) > 1:
            for tensor in (*given, *_tensors(more)):
                torch._dynamo.maybe_mark_dynamic(tensor, 0)
        output: tuple[Tensor, ...] = self._call(*given, return_dict=return_dict, **more)
        return output


_COMPILED: WeakKeyDictionary[nn.Module, CompiledUnet] = WeakKeyDictionary()


def compiled(unet: Any) -> CompiledUnet:
    """The compiled form of a UNet, the same one every time."""
    if unet not in _COMPILED:
        _COMPILED[unet] = CompiledUnet(unet)
    return _COMPILED[unet]


def _tensors(value: Any) -> Iterator[Tensor]:
    """The tensors among what a UNet takes besides, one row per latent."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        for entry in value.values():
            yield from _tensors(entry)
    elif isinstance(value, tuple | list):
        for entry in value:
            yield from _tensors(entry)
