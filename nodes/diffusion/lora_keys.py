"""What the keys in files of LoRAs say: the part of the model, the module, and what stands there.

A key is a module's name between a beginning that says the part and an ending that says the tensor. kohya's scripts and
LyCORIS write names with `_` for dots, diffusers, PEFT and ComfyUI with dots; all of them in the names of diffusers and
transformers or, for UNets, of Stable Diffusion's first code.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Literal, NamedTuple, TypeAlias

Part: TypeAlias = Literal["unet", "text_encoder", "text_encoder_2"]
Field: TypeAlias = str
"""What a tensor is: a side, `alpha`, ..."""

PARTS: tuple[Part, ...] = ("unet", "text_encoder", "text_encoder_2")

_PREFIXES: Mapping[str, Part] = {
    "lora_unet_": "unet",
    "lora_te1_": "text_encoder",
    "lora_te2_": "text_encoder_2",
    "lora_te_": "text_encoder",
    "lycoris_": "unet",
    "unet.": "unet",
    "text_encoder.": "text_encoder",
    "text_encoder_2.": "text_encoder_2",
    "diffusion_model.": "unet",
    "text_encoders.clip_l.transformer.": "text_encoder",
    "text_encoders.clip_h.transformer.": "text_encoder",
    "text_encoders.clip_g.transformer.": "text_encoder_2",
    "text_model.": "text_encoder",
}
"""How keys of a part begin: of kohya and LyCORIS, of diffusers, of ComfyUI, and of a text encoder alone."""
_OUTER = "base_model.model."
"""What PEFT puts before all of it."""
_BARE_UNET = ("down_blocks.", "mid_block.", "up_blocks.", "conv_in.", "conv_out.", "time_embedding.", "add_embedding.")

_SIDES = ("{}.weight", "{}.default.weight")
_ENDINGS: Mapping[str, Field] = {
    **{side.format(".lora_down"): "down" for side in _SIDES},
    **{side.format(".lora_A"): "down" for side in _SIDES},
    ".lora.down.weight": "down",
    ".lora_linear_layer.down.weight": "down",
    "_lora.down.weight": "down",
    **{side.format(".lora_up"): "up" for side in _SIDES},
    **{side.format(".lora_B"): "up" for side in _SIDES},
    ".lora.up.weight": "up",
    ".lora_linear_layer.up.weight": "up",
    "_lora.up.weight": "up",
    ".lora_mid.weight": "mid",
    ".alpha": "alpha",
    ".scale": "scale",
    ".dora_scale": "dora_scale",
    ".lora_magnitude_vector": "rows",
    **{side.format(".lora_magnitude_vector"): "rows" for side in _SIDES},
    **{f".{name}": name for name in ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "hada_t1", "hada_t2")},
    **{f".{name}": name for name in ("lokr_w1", "lokr_w1_a", "lokr_w1_b")},
    **{f".{name}": name for name in ("lokr_w2", "lokr_w2_a", "lokr_w2_b", "lokr_t2")},
    ".diff": "weight",
    ".w_norm": "weight",
    ".diff_b": "bias",
    ".b_norm": "bias",
}
"""How keys end, with what stands there."""

_UNREAD = {
    "bundle_emb.": "an embedding that is bundled with it, which has to be saved as a file of its own",
    ".oft_": "OFT or BOFT, which turn weights",
    ".on_input": "(IA)^3, which scales activations",
    ".a1.weight": "GLoRA",
    ".b1.weight": "GLoRA",
    "lambda_layer": "T-LoRA",
    ".set_weight": "whole weights in place of changes",
    ".reshape_weight": "weights of another shape",
    "lora_controlnet": "a Control-LoRA",
    "lora_te3_": "a text encoder of SD 3 or Flux",
    "lora_prior_": "Stable Cascade",
    "lora_transformer_": "a diffusion transformer, such as Flux or SD 3",
    "transformer.": "a diffusion transformer, such as Flux or SD 3",
    "model.diffusion_model.": "a whole checkpoint",
    "emb_params": "an embedding",
}
"""What there is in files beside, by a piece of its keys."""


class Place(NamedTuple):
    """Where a tensor belongs: `module` is a name with dots where the file has dots, without the part's beginning."""

    part: Part
    module: str
    field: Field

    @property
    def name(self) -> str:
        """The module's name with `_` for dots, as diffusers, transformers or the first code have it."""
        name = self.module.replace(".processor.", ".").replace(".", "_").removeprefix("text_model_")
        return re.sub(r"_to_out$", "_to_out_0", name)


def place(key: str) -> Place | None:
    """Say where a tensor belongs; None where the key is no LoRA's of a Stable Diffusion model."""
    ending = next((ending for ending in _ENDINGS if key.endswith(ending)), None)
    if ending is None:
        return None
    module = key.removesuffix(ending).removeprefix(_OUTER)
    prefix = next((prefix for prefix in _PREFIXES if module.startswith(prefix)), None)
    if prefix is None:
        return Place("unet", module, _ENDINGS[ending]) if f"{module}.".startswith(_BARE_UNET) else None
    return Place(_PREFIXES[prefix], module.removeprefix(prefix), _ENDINGS[ending])


def unread(keys: Iterable[str]) -> str | None:
    """Say what keys without a place are, if that is known."""
    keys = list(keys)
    return next((said for piece, said in _UNREAD.items() if any(piece in key for key in keys)), None)
