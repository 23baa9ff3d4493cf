"""Compiled UNets: slow to begin with, faster from then on.

torch.compile takes a minute or more for a UNet, once for a picture's size and for one or several latents; later
processes find most of its work on disk. So it is for those who make many pictures of few sizes. On a CUDA device calls
that repeat are recorded besides, for each number of latents: see `recording`.
"""

from functools import partial
from typing import Any
from weakref import WeakKeyDictionary, ref

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from nodes.diffusion.lending import complete
from nodes.diffusion.precision import number_format
from nodes.diffusion.recording import Recordings, recordings


class CompiledUnet:
    """Calls a compiled UNet, any number of latents at a time; whoever has it called keeps the UNet itself."""

    def __init__(self, unet: nn.Module, recorded: Recordings | None = None) -> None:
        self._unet = ref(unet)
        self._dtype = number_format(unet)
        self._forward: Any = torch.compile(type(unet).forward)
        self._recorded = recorded

    @property
    def unet(self) -> nn.Module:
        """The UNet. Raises ReferenceError where it is gone."""
        unet = self._unet()
        if unet is None:
            raise ReferenceError("the UNet is gone: expected it to be kept for as long as its compiled form is called")
        return unet

    @property
    def dtype(self) -> torch.dtype:
        """That of the UNet."""
        return self._dtype

    def __call__(
        self, sample: Tensor, timestep: Tensor, encoder_hidden_states: Tensor, *, return_dict: bool, **more: Any
    ) -> tuple[Tensor, ...]:
        """Predict as the UNet does; what is returned is nobody else's. Raises ReferenceError where the UNet is gone."""
        unet = self.unet
        given, named = (sample, timestep, encoder_hidden_states), {"return_dict": return_dict, **more}
        if self._recorded is None:
            return self._plain(unet, *given, **named)
        return self._recorded.call(unet, partial(self._plain, unet), given, named)

    def renew(self) -> None:
        """Begin a run: what was recorded of the UNet goes where that has changed, or moved."""
        if self._recorded is not None:
            self._recorded.renew(self.unet)

    def notes(self) -> list[str]:
        """What there is to say of its calls that was not said before."""
        return [] if self._recorded is None else self._recorded.notes()

    def _plain(self, unet: nn.Module, *given: Tensor, **named: Any) -> tuple[Tensor, ...]:
        if len(given[0]) > 1:
            for tensor in tree_leaves((given, named)):
                if isinstance(tensor, Tensor):
                    torch._dynamo.maybe_mark_dynamic(tensor, 0)
        output: tuple[Tensor, ...] = self._forward(unet, *given, **named)
        return output


_COMPILED: WeakKeyDictionary[nn.Module, CompiledUnet] = WeakKeyDictionary()


def compiled(unet: Any) -> CompiledUnet:
    """The compiled form of a UNet, the same one every time; every run takes it anew, as weights move between runs."""
    if unet not in _COMPILED:
        complete(unet)
        _COMPILED[unet] = CompiledUnet(unet, recordings(next(unet.parameters()).device))
    found = _COMPILED[unet]
    found.renew()
    return found
