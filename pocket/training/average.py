"""The exponential moving average of a model's weights, which is what is shipped."""

import copy

import torch
from torch import nn


class Average:
    """Follows a model; `model` is a copy that holds the average."""

    def __init__(self, followed: nn.Module, decay: float) -> None:
        self.model = copy.deepcopy(followed).eval().requires_grad_(requires_grad=False)
        self._followed = followed
        self._decay = decay

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights after `step` steps; early ones weigh less."""
        decay = min(self._decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(list(self.model.parameters()), list(self._followed.parameters()), 1 - decay)
