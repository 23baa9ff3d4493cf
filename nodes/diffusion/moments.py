"""Timesteps, and what networks make of each: asked of every latent of every call, computed once.

An embedding depends on the timestep alone, which is the same for the two halves of a call with guidance, for all
pictures of a batch and for most cells of a sweep. Each is made by itself: how many others a layer is given beside one
may change its last bits, and a run that is taken up at a step has to find what it would have found.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

KEPT = 4096
"""Embeddings of one network that are kept, at most: a few kilobytes each."""


class Embeddings:
    """What networks made of timesteps, for a batch of runs."""

    def __init__(self) -> None:
        self._made: dict[nn.Module, dict[float, Tensor]] = {}

    def of(self, layer: nn.Module) -> dict[float, Tensor]:
        """Those of a network's layer, (1, D) by timestep."""
        made = self._made.setdefault(layer, {})
        if len(made) > KEPT:
            made.clear()
        return made


class Moments:
    """Timesteps, one per latent of a call."""

    def __init__(self, timesteps: Sequence[float], device: torch.device, embeddings: Embeddings) -> None:
        self.timesteps = tuple(timesteps)
        self.data = torch.tensor(self.timesteps, dtype=torch.float32).to(device, non_blocking=True)
        """The same, (B,), float32, on the device, which nobody waited for."""
        self._embeddings = embeddings

    def rows(self, numbers: Sequence[int]) -> "Moments":
        """Those of some of the latents."""
        return Moments([self.timesteps[number] for number in numbers], self.data.device, self._embeddings)

    @contextmanager
    def to(self, network: Any) -> Iterator[Tensor]:
        """The timesteps as a network takes them; within, it finds what it made of them before."""
        layer = getattr(network, "time_embedding", None) if isinstance(network, nn.Module) else None
        if layer is None or "forward" in vars(layer):
            yield self.data
            return
        layer.forward = partial(self._embed, layer, layer.forward)
        try:
            yield self.data
        finally:
            vars(layer).pop("forward", None)

    def _embed(
        self, layer: nn.Module, embed: Callable[..., Tensor], waves: Tensor, condition: Tensor | None = None
    ) -> Tensor:
        """Embed timesteps that come as waves, (B, C): to (B, D)."""
        if condition is not None or len(waves) != len(self.timesteps):
            return embed(waves, condition)
        made = self._embeddings.of(layer)
        for row, timestep in enumerate(self.timesteps):
            if timestep not in made:
                made[timestep] = embed(waves[row : row + 1])
        return torch.cat([made[timestep] for timestep in self.timesteps])
