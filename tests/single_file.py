"""Tiny checkpoints in one file, laid out as by Stable Diffusion's first code."""

import copy

import torch
from diffusers import AutoencoderKL, ControlNetModel, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from nodes.diffusion import original

UNET, VAE, CLIP = "model.diffusion_model.", "first_stage_model.", "cond_stage_model.transformer.text_model."
OPEN_CLIP = "cond_stage_model.model."
XL_CLIP, XL_BIG_G = "conditioner.embedders.0.transformer.text_model.", "conditioner.embedders.1.model."
REFINER_BIG_G = "conditioner.embedders.0.model."


def renamed(module, spelling, prefix):
    """A module's tensors under their names in files, VAE attention as the convolutions that it once was."""
    tensors = module.state_dict()
    names = original.tensors(tensors, spelling)
    points = (".q.weight", ".k.weight", ".v.weight", ".proj_out.weight")
    return {
        prefix + place: tensors[name][..., None, None]
        if spelling is original.vae and place.endswith(points) and tensors[name].ndim == 2
        else tensors[name].clone()
        for name, place in names.items()
    }  # fmt: skip


def interleaved(module):
    """A copy of a module whose convolutions have their channels side by side in memory, as UNets are loaded."""
    copied = copy.deepcopy(module).eval()
    for weight in copied.parameters():
        if weight.ndim == 4 and weight.shape[2:] != (1, 1):
            weight.data = weight.data.contiguous(memory_format=torch.channels_last)
    return copied


def shaken(module):
    """The module with weights that are nowhere 0 or 1, so that none can be missing or in another's place."""
    for weight in module.parameters():
        weight.data += 0.1 * torch.randn(weight.shape)
    return module.eval()


def tiny_unet(**changed):
    sizes = {
        "block_out_channels": (32, 64),
        "layers_per_block": 1,
        "cross_attention_dim": 64,
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    }
    return UNet2DConditionModel(**sizes | changed)


def tiny_vae(levels=2, **changed):
    """A VAE that halves the sides once less than it has levels."""
    return AutoencoderKL(
        block_out_channels=(*[32] * (levels - 1), 64),
        layers_per_block=1,
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        **changed,
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


def tiny_big_g(**changed):
    """A text encoder whose output is projected to another width."""
    sizes = {
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 3,
        "num_attention_heads": 1,
        "projection_dim": 48,
        "vocab_size": 49408,
        "hidden_act": "gelu",
        "bos_token_id": 49406,
        "eos_token_id": 49407,
    }
    return CLIPTextModelWithProjection(CLIPTextConfig(**sizes | changed)).eval()


def tiny_xl_unet(**changed):
    """SDXL's UNet: told sizes and pooled text, with the deepest level attending deeper."""
    sizes = {
        "block_out_channels": (32, 64, 128),
        "layers_per_block": 2,
        "cross_attention_dim": 128,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "transformer_layers_per_block": (1, 2, 3),
        "attention_head_dim": (1, 1, 2),
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 8,
        "projection_class_embeddings_input_dim": 48 + 6 * 8,
    }
    return UNet2DConditionModel(**sizes | changed)


def tiny_refiner_unet():
    """The refiner's: a level more, which does not attend, one number less, and the second text encoder alone."""
    return tiny_xl_unet(
        block_out_channels=(32, 64, 64, 128),
        cross_attention_dim=64,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=2,
        attention_head_dim=(1, 1, 1, 2),
        projection_class_embeddings_input_dim=48 + 5 * 8,
    )


def tiny_controlnet(unet):
    """A ControlNet with the sizes of a UNet."""
    return ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=(8, 16))


def told(unet, **given):
    """What the UNet or ControlNet of SDXL is told beside the text."""
    numbers = (unet.config.projection_class_embeddings_input_dim - 48) // 8
    return {"added_cond_kwargs": {"text_embeds": torch.ones(1, 48), "time_ids": torch.arange(numbers)[None]} | given}


def open_clip(encoder, prefix=OPEN_CLIP, *, unused=0):
    """A text encoder in OpenCLIP's layout, with more layers than are used."""
    tensors = {name.removeprefix("text_model."): tensor for name, tensor in encoder.state_dict().items()}
    layers = encoder.config.num_hidden_layers
    made = {
        "token_embedding.weight": tensors["embeddings.token_embedding.weight"],
        "positional_embedding": tensors["embeddings.position_embedding.weight"],
        "text_projection": tensors.get("text_projection.weight", torch.zeros(64, 64)).t(),
        "logit_scale": torch.tensor(1.0),
    }
    for kind in ("weight", "bias"):
        made[f"ln_final.{kind}"] = tensors[f"final_layer_norm.{kind}"]
        for layer in range(layers + unused):
            there = f"encoder.layers.{min(layer, layers - 1)}"
            block = f"transformer.resblocks.{layer}"
            parts = [tensors[f"{there}.self_attn.{letter}_proj.{kind}"] for letter in "qkv"]
            made[f"{block}.attn.in_proj_{kind}"] = torch.cat(parts)
            made[f"{block}.attn.out_proj.{kind}"] = tensors[f"{there}.self_attn.out_proj.{kind}"]
            made[f"{block}.mlp.c_fc.{kind}"] = tensors[f"{there}.mlp.fc1.{kind}"]
            made[f"{block}.mlp.c_proj.{kind}"] = tensors[f"{there}.mlp.fc2.{kind}"]
            made[f"{block}.ln_1.{kind}"] = tensors[f"{there}.layer_norm1.{kind}"]
            made[f"{block}.ln_2.{kind}"] = tensors[f"{there}.layer_norm2.{kind}"]
    return {prefix + name: tensor.clone().contiguous() for name, tensor in made.items()}


def everything_xl(unet, vae, clip, big_g):
    """A whole SDXL checkpoint; without `clip` it is a refiner's."""
    first = {} if clip is None else renamed(clip, original.clip, XL_CLIP)
    return {
        **renamed(unet, original.unet, UNET),
        **renamed(vae, original.vae, VAE),
        **first,
        **open_clip(big_g, REFINER_BIG_G if clip is None else XL_BIG_G),
    }


def same(module, expected):
    """Whether a module has these weights, bit for bit."""
    found = module.state_dict()
    return found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in found)


def bare(tensors):
    return {name.removeprefix("text_model."): tensor for name, tensor in tensors.items()}


def without(tensors, *prefixes):
    return {name: tensor for name, tensor in tensors.items() if not name.startswith(prefixes)}


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
