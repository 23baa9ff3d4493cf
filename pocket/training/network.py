"""The parts of the model, untrained, in the layout of Stable Diffusion 1.x."""

import math
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from diffusers import AutoencoderKL, PNDMScheduler, UNet2DConditionModel
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel

from pocket.training.phrase import POSITIONS

SCALING = 0.18215
LATENTS = 4
DOWNSCALE = 8
HEAD = 32
"""Channels of an attention head."""

STEPS = 1000
BETAS = (0.00085, 0.012)
NOISE = {
    "beta_start": BETAS[0],
    "beta_end": BETAS[1],
    "beta_schedule": "scaled_linear",
    "num_train_timesteps": STEPS,
}
"""The noise that Stable Diffusion 1.x is trained with."""


@dataclass(frozen=True)
class Shape:
    """How large the parts are: channels by level from the picture down, `layers` of a UNet's level, text width."""

    vae: tuple[int, ...] = (24, 48, 96, 128)
    unet: tuple[int, ...] = (96, 128, 160)
    layers: int = 2
    groups: int = 16
    width: int = 160
    text_layers: int = 3
    top: bool = True
    """Whether the UNet attends to the text on its way up to the top level too."""


POCKET = Shape()
LEAN = Shape(vae=(16, 32, 64, 128), unet=(48, 96, 160), layers=1, width=128, text_layers=2, top=False)
"""What a CPU can train."""
TINY = Shape(vae=(8, 8, 8, 16), unet=(32, 32), layers=1, groups=8, width=32, text_layers=1)
"""For tests."""


def vae(shape: Shape) -> Any:
    """A VAE without attention, whose log variance is a constant."""
    model = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * len(shape.vae),
        up_block_types=("UpDecoderBlock2D",) * len(shape.vae),
        block_out_channels=shape.vae,
        latent_channels=LATENTS,
        norm_num_groups=8,
        sample_size=128,
        scaling_factor=SCALING,
        mid_block_add_attention=False,
    )
    for module in model.modules():
        _soften(module)
    return model.to(memory_format=torch.channels_last)


def unet(shape: Shape) -> Any:
    """A UNet that attends to the text on its lower levels, and at the top where the shape says so."""
    lower = len(shape.unet) - 1
    model = UNet2DConditionModel(
        sample_size=16,
        block_out_channels=shape.unet,
        layers_per_block=shape.layers,
        down_block_types=("DownBlock2D", *["CrossAttnDownBlock2D"] * lower),
        up_block_types=(*["CrossAttnUpBlock2D"] * lower, "CrossAttnUpBlock2D" if shape.top else "UpBlock2D"),
        attention_head_dim=tuple(channels // HEAD for channels in shape.unet),
        cross_attention_dim=shape.width,
        norm_num_groups=shape.groups,
    )
    return model.to(memory_format=torch.channels_last)


def text_encoder(shape: Shape, tokenizer: Any) -> Any:
    """A text encoder for the tokenizer's vocabulary."""
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=shape.width,
            intermediate_size=4 * shape.width,
            num_hidden_layers=shape.text_layers,
            num_attention_heads=shape.width // HEAD,
            max_position_embeddings=POSITIONS,
            projection_dim=shape.width,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def scheduler() -> Any:
    """The scheduler that is shipped, as in Stable Diffusion 1.x."""
    return PNDMScheduler(**NOISE, skip_prk_steps=True, set_alpha_to_one=False, steps_offset=1)


@cache
def kept(device: torch.device) -> torch.Tensor:
    """How much of a clean latent's variance is left at each of the 1000 steps."""
    roots = torch.linspace(math.sqrt(BETAS[0]), math.sqrt(BETAS[1]), STEPS, dtype=torch.float64)
    return (1 - roots**2).cumprod(0).float().to(device)


def _soften(module: nn.Module) -> None:
    """Let residual blocks begin near the identity: the VAE learns faster from there."""
    if type(module).__name__ == "ResnetBlock2D":
        with torch.no_grad():
            module.conv2.weight.mul_(0.2)  # type: ignore[operator, union-attr]
