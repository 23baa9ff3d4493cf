"""A LoRA (Hu et al. 2021, https://arxiv.org/abs/2106.09685) on the attentions of a UNet, in kohya's key layout."""

import math
from typing import Any

import torch
from torch import Tensor, nn

RANK, ALPHA = 2, 2.0
ADAPTED = ("to_q", "to_k", "to_v", "to_out.0")


class Adapted(nn.Module):
    """A frozen linear layer and what is learnt beside it."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.linear = linear
        self.down = nn.Parameter(torch.empty(RANK, linear.in_features, device=linear.weight.device))
        self.up = nn.Parameter(torch.zeros(linear.out_features, RANK, device=linear.weight.device))
        nn.init.kaiming_uniform_(self.down, a=math.sqrt(5))

    def forward(self, x: Tensor) -> Tensor:
        """The layer's output and the adapter's."""
        y: Tensor = self.linear(x) + x @ self.down.T @ self.up.T * (ALPHA / RANK)
        return y


def adapt(unet: Any) -> dict[str, Adapted]:
    """Put an adapter on every attention's projections and freeze all else; return them by path."""
    unet.requires_grad_(requires_grad=False)
    found = {
        name: Adapted(module)
        for name, module in unet.named_modules()
        if isinstance(module, nn.Linear) and name.endswith(ADAPTED) and ".attn" in name
    }
    for name, adapted in found.items():
        unet.set_submodule(name, adapted)
    return found


def kohya(adapters: dict[str, Adapted]) -> dict[str, Tensor]:
    """The adapters as kohya's scripts name them, in half precision."""
    tensors: dict[str, Tensor] = {}
    for name, adapted in adapters.items():
        key = "lora_unet_" + name.replace(".", "_")
        tensors[f"{key}.lora_down.weight"] = adapted.down.detach().half().cpu()
        tensors[f"{key}.lora_up.weight"] = adapted.up.detach().half().cpu()
        tensors[f"{key}.alpha"] = torch.tensor(ALPHA).half()
    return tensors
