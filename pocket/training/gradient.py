"""Whether compiled code may be trusted: its gradients beside those of eager code.

Inductor of torch 2.13 once returned zeros for whole layers on a CPU while the loss was right, so nothing is trained
before this was asked.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

UNLIKE = 0.3
"""The most that a gradient may be off, as a share of its norm: bf16 makes a few hundredths, a lost gradient 1."""
FLOOR = 1e-3
"""Gradients below this share of the whole are noise."""


def disagreements(model: nn.Module, eager: Callable[[], Tensor], compiled: Callable[[], Tensor]) -> list[str]:
    """Names of parameters whose gradients of the two losses differ. Both must draw the same random numbers."""
    expected, found = _gradients(model, eager), _gradients(model, compiled)
    floor = FLOOR * torch.stack([gradient.norm() for gradient in expected.values()]).norm()
    return [name for name, right in expected.items() if (right - found[name]).norm() > UNLIKE * right.norm() + floor]


def _gradients(model: nn.Module, loss: Callable[[], Tensor]) -> dict[str, Tensor]:
    model.zero_grad(set_to_none=True)
    loss().backward()  # type: ignore[no-untyped-call]
    found = {
        name: torch.zeros_like(each) if each.grad is None else each.grad for name, each in model.named_parameters()
    }
    model.zero_grad(set_to_none=True)
    return found
