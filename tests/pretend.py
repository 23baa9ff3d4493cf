"""A device that pretends to be an accelerator: its memory is the CPU's, but what was moved off it is remembered."""

import torch

from engine.device import Device, tensors_of


class Pretend(Device):
    """`cpu:0`: torch computes there as on the CPU, and calls it by another name than the host.

    `moved` names what became of modules, in order. A tensor that lies on the host is marked `away`.
    """

    def __init__(self):
        self.name = "cpu:0"
        self.moved = []

    @property
    def kind(self):
        return "pretend"

    def sync(self):
        """Nothing is ever under way."""

    def pace(self):
        """It is never behind."""

    def trim(self):
        """There are no blocks to give back."""

    def park(self, modules, spare=()):
        parked = super().park(modules, spare)
        parked.device = self
        mark(parked, away=True)
        self.moved.append(("away", parked.nbytes))
        back = parked.back
        parked.back = lambda: (back(), mark(parked, away=False), self.moved.append(("back", parked.nbytes)))
        return parked

    def _has(self, tensor):
        return not lies_away(tensor)


def mark(parked, *, away):
    for tensor in parked._tensors:
        tensor.away = away


def lies_away(tensor):
    """Whether a tensor was moved off the device."""
    return getattr(tensor, "away", False)


def all_here(module):
    """Whether every tensor of a module lies on the device."""
    return not any(map(lies_away, tensors_of(module)))


def addresses(module):
    """Where the tensors of a module are in memory."""
    return [tensor.data_ptr() for tensor in tensors_of(module) if isinstance(tensor, torch.Tensor)]
