"""What a file of weights is, from the names and shapes of its tensors; its name means nothing.

Nor does its folder, but for one thing: the networks that enlarge pictures are many, and not all are known here.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from nodes.diffusion import checkpoint, embedding, lora
from nodes.diffusion.parts import REMEDY
from nodes.diffusion.tensors import LoadError, shapes

Shapes = Mapping[str, tuple[int, ...]]

UPSCALERS = "upscale"
"""The folder of upscalers."""
CONFIG_BYTES = 1 << 20
"""A longer config is none."""
_BASES: Mapping[int, str] = {768: "SD 1.x", 1024: "SD 2.x", 2048: "SDXL"}
"""Base models by the width of the text that their cross-attention takes."""
_CHECKPOINT = re.compile(r"(model\.)?diffusion_model\.|input_blocks\.0\.0\.weight$|cond_stage_model\.|conditioner\.")
_CONTROLNET = re.compile(r"(^|\.)(input_hint_block\.0\.|controlnet_cond_embedding\.conv_in\.)")
_LORA = re.compile(r"(\.|_)lora(_|\.)(down|up|A|B|linear_layer)|\.(hada_w1|lokr_w1|oft_blocks|diff|w_norm)(_|\.|$)")
_VAE = re.compile(r"(^|\.)(encoder\.down\.0\.block\.0\.conv1|encoder\.down_blocks\.0\.resnets\.0\.conv1)\.weight$")
_NESTED = re.compile(r"^params(_ema)?\.")
"""What stands before all names where a file holds the dictionary that trainers of upscalers nest them in."""
_UPSCALERS = {
    r"\.(RDB1|rdb1)\.conv1x1\.": "ESRGAN+",
    r"^model\.1\.sub\.0\.(RDB1|0)\.|^body\.0\.rdb1\.|^RRDB_trunk\.0\.RDB1\.": "ESRGAN",
    r"^layers\.0\.residual_group\.blocks\.0\.attn\.relative_position_bias_table$": "SwinIR",
    r"^layers\.0\.residual_group\.blocks\.0\.(attn_block|conv_block)\.": "HAT",
    r"^layers\.0\.blocks\.0\.(attn\.attns|adaptive_)": "DAT",
    r"^block_1\.c1_r\.eval_conv\.weight$": "SPAN",
    r"^body\.\d+\.weight$": "compact ESRGAN",
}
_PARTS = {
    r"^(text_model|transformer\.text_model)\.encoder\.": "text encoder",
    r"^down_blocks\.0\.": "UNet in diffusers' layout, without its config.json",
}


class Recognised(NamedTuple):
    """What a file is, in a few words, and the folder that its kind belongs into; none where it has no folder."""

    words: str
    folder: str | None


def recognise(path: Path, among: str | None = None) -> Recognised:
    """Say what a file, or a folder in diffusers' layout, is; `among` is the folder of the kind that it lies in.

    A network that nothing is known of is an upscaler where it lies among them: spandrel may know it. Raises LoadError
    for a damaged one, a pickle, and for a LoRA or an embedding that could not be used.
    """
    if path.is_dir():
        return _folder(path)
    found = shapes(path, REMEDY)
    if controlnet := _controlnet(found):
        return controlnet
    if any(map(_LORA.search, found)):
        return Recognised(lora.described(path), "loras")
    if _stands_for_a_word(found):
        return Recognised(embedding.described(path), "embeddings")
    if any(map(_CHECKPOINT.match, found)):
        return Recognised(checkpoint.described(path), "checkpoints")
    told = next(filter(None, (judge(found) for judge in (_vae, _upscaler, _part))), None)
    return told or (_foreign(found) if among == UPSCALERS else None) or _nothing(found)


def _controlnet(found: Shapes) -> Recognised | None:
    if not any(map(_CONTROLNET.search, found)):
        return None
    base = _base(found, re.compile(r"attn2\.to_k\.weight$"))
    return Recognised(f"ControlNet{f' for {base}' if base else ''}", "controlnet")


def _stands_for_a_word(found: Shapes) -> bool:
    """Whether the tensors are those of an embedding, which may be one of any name."""
    alone = len(found) == 1 and len(next(iter(found.values()))) in (1, 2)
    return alone or any(found.keys() >= set(names) for names in embedding.LAYOUTS)


def _vae(found: Shapes) -> Recognised | None:
    return Recognised("VAE", "vae") if any(map(_VAE.search, found)) else None


def _upscaler(found: Shapes) -> Recognised | None:
    names = [_NESTED.sub("", name) for name in found]
    for spelling, word in _UPSCALERS.items():
        if any(re.search(spelling, name) for name in names):
            return Recognised(f"upscaler {word}", UPSCALERS)
    return None


def _foreign(found: Shapes) -> Recognised | None:
    """An upscaler of an unknown sort, as far as there are convolutions of pictures in it."""
    convolves = any(len(shape) == 4 for shape in found.values())
    return Recognised("upscaler of another sort, for spandrel", UPSCALERS) if convolves else None


def _part(found: Shapes) -> Recognised | None:
    for spelling, words in _PARTS.items():
        if any(re.search(spelling, name) for name in found):
            return Recognised(words, None)
    return None


def _nothing(found: Shapes) -> Recognised:
    return Recognised(f"{len(found)} tensors of something else", None)


def _base(found: Shapes, spelling: re.Pattern[str]) -> str | None:
    """The base model, by what a weight in the cross-attention, or its side of a LoRA, takes in."""
    widths = (shape[1] for name, shape in found.items() if len(shape) > 1 and spelling.search(name))
    return next((_BASES[width] for width in widths if width in _BASES), None)


def _folder(path: Path) -> Recognised:
    if (path / "model_index.json").is_file():
        named = str(_config(path / "model_index.json").get("_class_name", "model"))
        unet = path / "unet" / "config.json"
        width = _config(unet).get("cross_attention_dim") if unet.is_file() else None
        base = _BASES.get(width) if isinstance(width, int) else None
        return Recognised(f"{base or named} in diffusers' layout", "checkpoints")
    named = str(_config(path / "config.json").get("_class_name", "model"))
    words, folder = {"AutoencoderKL": ("VAE", "vae"), "ControlNetModel": ("ControlNet", "controlnet")}.get(
        named, (named, None)
    )
    return Recognised(f"{words} in diffusers' layout", folder)


def _config(path: Path) -> dict[str, object]:
    try:
        if path.stat().st_size > CONFIG_BYTES:
            raise ValueError(f"more than {CONFIG_BYTES >> 20} MiB")
        content = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise LoadError(path, "JSON", f"something else ({error})") from error
    if not isinstance(content, dict):
        raise LoadError(path, "a JSON object", type(content).__name__)
    return content
