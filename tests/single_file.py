"""Tiny checkpoints in one file, laid out as by Stable Diffusion's first code."""

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel

from nodes.diffusion import original

UNET, VAE, CLIP = "model.diffusion_model.", "first_stage_model.", "cond_stage_model.transformer.text_model."


def renamed(module, spelling, prefix):
    """A module's tensors under their names in files, VAE attention as the convolutions that it once was."""
    tensors = module.state_dict()
    names = original.tensors(tensors, spelling)
    points = (".q.weight", ".k.weight", ".v.weight", ".proj_out.weight")
    return {
        prefix + place: tensors[name][..., None, None] if place.endswith(points) and tensors[name].ndim == 2
        else tensors[name].clone()
        for name, place in names.items()
    }  # fmt: skip


def tiny_unet(**changed):
    sizes = {
        "block_out_channels": (32, 64),
        "layers_per_block": 1,
        "cross_attention_dim": 64,
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    }
    return UNet2DConditionModel(**sizes | changed)


def tiny_vae():
    return AutoencoderKL(
        block_out_channels=(32, 64),
        layers_per_block=1,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
    )


def tiny_clip(**changed):
    sizes = {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 1,
        "vocab_size": 49408,
        "hidden_act": "quick_gelu",
    }
    return CLIPTextModel(CLIPTextConfig(**sizes | changed)).eval()


def everything(unet, vae, encoder):
    """A whole checkpoint, with what trainers leave in it beside the weights."""
    return {
        **renamed(unet, original.unet, UNET),
        **renamed(vae, original.vae, VAE),
        **renamed(encoder, original.clip, CLIP),
        f"{CLIP}embeddings.position_ids": torch.arange(77)[None],
        "alphas_cumprod": torch.ones(1000),
        "first_stage_model.loss.logvar": torch.tensor(0.0),
    }
