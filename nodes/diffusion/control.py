"""ControlNets: networks that read a hint, such as lines, and steer a UNet with it (Zhang et al. 2023).

https://arxiv.org/abs/2302.05543
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from nodes.diffusion.moments import Moments
from nodes.diffusion.precision import number_format
from nodes.diffusion.said import Said


class Net(Protocol):
    """What is asked of a ControlNet: diffusers' `ControlNetModel` fits."""

    @property
    def dtype(self) -> torch.dtype:
        """The dtype that latents, conditionings and hints are cast to."""

    def __call__(
        self,
        sample: Tensor,
        timestep: Tensor,
        *,
        encoder_hidden_states: Tensor,
        controlnet_cond: Tensor,
        added_cond_kwargs: Any,
        return_dict: bool,
    ) -> tuple[list[Tensor], Tensor]:
        """Return what is to be added to the UNet's states on its way down, and in its middle."""


@dataclass(frozen=True, eq=False)
class Control:
    """One ControlNet at work, between two noise levels.

    `hint` is (1 or N, 3, H, W) in float32, at the pictures' size: from 0 to 1, and -1 where an inpainting one is to
    see nothing.
    """

    net: Net
    hint: Tensor
    strength: float = 1.0
    low: float = 0.0
    high: float = math.inf

    def counts(self, sigma: float) -> bool:
        """Whether it is at work at a noise level."""
        return self.strength != 0 and self.low <= sigma <= self.high


@dataclass(frozen=True, eq=False)
class Inputs:
    """What a UNet and its ControlNets take for B latents: scaled latents, timesteps, conditionings, additions."""

    scaled: Tensor
    moments: Moments
    said: Said
    added: dict[str, Tensor] | None = None

    def rows(self, numbers: tuple[int, ...], positions: Tensor) -> "Inputs":
        """The same for some of the latents; `positions` are their numbers on the device."""
        added = None if self.added is None else {name: value[positions] for name, value in self.added.items()}
        return replace(
            self,
            scaled=self.scaled[positions],
            moments=self.moments.rows(numbers),
            said=self.said.rows(numbers),
            added=added,
        )


def residuals(inputs: Inputs, controls: Sequence[Sequence[Control]]) -> dict[str, Any]:
    """What ControlNets add to the states of a UNet, as it takes it; `controls` are those of each latent, hints (1, …).

    Each network is asked once, for all latents that it steers; those that it does not steer get nothing from it.
    """
    asked: dict[int, list[tuple[int, Control]]] = {}
    for position, own in enumerate(controls):
        for control in own:
            asked.setdefault(id(control.net), []).append((position, control))
    total: list[Tensor] = []
    for entries in asked.values():
        for layer in _distinct(entries):
            total = _added(total, _asked(inputs, layer))
    if not total:
        return {}
    return {"down_block_additional_residuals": tuple(total[:-1]), "mid_block_additional_residual": total[-1]}


def _distinct(entries: Sequence[tuple[int, Control]]) -> list[list[tuple[int, Control]]]:
    """Split entries so that no latent is twice in one list: one network may read two hints of a picture."""
    layers: list[list[tuple[int, Control]]] = []
    for entry in entries:
        free = next((layer for layer in layers if all(entry[0] != position for position, _ in layer)), None)
        if free is None:
            layers.append([entry])
        else:
            free.append(entry)
    return layers


def _asked(inputs: Inputs, entries: Sequence[tuple[int, Control]]) -> list[Tensor]:
    """The residuals of one network for all latents, 0 for those without an entry; the middle's stands last."""
    device = inputs.scaled.device
    numbers = tuple(position for position, _ in entries)
    positions = torch.tensor(numbers).to(device, non_blocking=True)
    own, net = inputs.rows(numbers, positions), entries[0][1].net
    dtype = number_format(net)
    with own.said.to(net) as told, own.moments.to(net) as timesteps:
        down, middle = net(
            own.scaled.to(dtype),
            timesteps,
            encoder_hidden_states=told,
            controlnet_cond=torch.cat([control.hint for _, control in entries]).to(device, dtype),
            added_cond_kwargs=own.added,
            return_dict=False,
        )
    strengths = torch.tensor([control.strength for _, control in entries]).to(device, non_blocking=True)
    return [_spread(state * strengths[:, None, None, None].to(state), positions, inputs) for state in (*down, middle)]


def _spread(state: Tensor, positions: Tensor, inputs: Inputs) -> Tensor:
    whole = state.new_zeros(len(inputs.scaled), *state.shape[1:])
    return whole.index_copy(0, positions, state)


def _added(total: Sequence[Tensor], more: Sequence[Tensor]) -> list[Tensor]:
    return list(more) if not total else [one + other for one, other in zip(total, more, strict=True)]
