"""Configs of the modules that the tensors of a part belong to: from their shapes, and from the folder `data`.

The folder says what shapes do not, such as activations and widths of heads. Everything else is counted and measured,
so a model of any size is read.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias

from nodes.diffusion.parts import DIFFUSERS_CONTROLNET, DIFFUSERS_VAE, Part
from nodes.diffusion.tensors import LoadError

Family: TypeAlias = Literal["sd1", "sd2", "sdxl", "refiner"]
Encoder: TypeAlias = Literal["clip", "open_clip", "big_g"]

DATA = Path(__file__).parent / "data"
HEAD_WIDTH = 64
"""Channels of an attention head, in text encoders and in all UNets but that of SD 1.x."""
NUMBERS = {"sdxl": 6, "refiner": 5}
"""How many numbers a UNet is told beside the pooled text: sizes and crops, or sizes, crop and a score."""


class Names(NamedTuple):
    """What the pieces of the way down are called; `{block}` counts through, from 1."""

    wide: str
    attention: str
    middle: str
    embedding: str


ORIGINAL = Names("input_blocks.{block}.0.out_layers.3", "input_blocks.{block}.1", "middle_block.1", "label_emb.0.0")
DIFFUSERS = Names(
    "down_blocks.{level}.resnets.{layer}.conv2",
    "down_blocks.{level}.attentions.{layer}",
    "mid_block.attentions.0",
    "add_embedding.linear_1",
)


VAE_ORIGINAL = ("encoder.down.", "block.", "encoder.mid.attn_1.")
VAE_DIFFUSERS = ("encoder.down_blocks.", "resnets.", "encoder.mid_block.attentions.")


@dataclass(frozen=True)
class Way:
    """The way down through a UNet: the width of each level, how deep the attention of each layer is, 0 for none."""

    widths: tuple[int, ...]
    depths: tuple[tuple[int, ...], ...]
    middle: int

    @property
    def layers(self) -> int:
        """Layers of a level."""
        return len(self.depths[0])


def read(name: str) -> dict[str, Any]:
    """Read a file of the folder `data`."""
    return dict(_read(name))


def unet(part: Part, family: Family, pooled: int | None = None) -> dict[str, Any]:
    """Return the config of the UNet that has these tensors; `pooled` is the width of the text that it is told."""
    way = _way(part, ORIGINAL)
    up = [
        tuple(_depth(part, f"output_blocks.{level * (way.layers + 1) + layer}.1") for layer in range(way.layers + 1))
        for level in range(len(way.widths))
    ]
    regular = all(len({*down, *above}) == 1 for down, above in zip(way.depths, reversed(up), strict=True))
    depths = {} if regular else {"reverse_transformer_layers_per_block": _lists(up)}
    return {
        **_shared(part, way, family, pooled, ORIGINAL, regular=regular),
        **depths,
        "sample_size": read(family)["sample_size"],
        "out_channels": part.size("out.2.weight"),
        "up_block_types": ["CrossAttnUpBlock2D" if any(depth) else "UpBlock2D" for depth in up],
    }


def controlnet(part: Part, family: Family) -> dict[str, Any]:
    """Return the config of the ControlNet that has these tensors, in either layout."""
    names = _spelling(part)
    beginning, block = _hints(part)
    hints = [part.size(f"{beginning}.weight"), *(part.size(f"{each}.weight") for each in block[1::2])]
    return {
        **_shared(part, _way(part, names), family, None, names, regular=True),
        "conditioning_channels": part.size(f"{beginning}.weight", 1),
        "conditioning_embedding_out_channels": hints,
    }


def unet_family(part: Part, *, refiner: bool | None = None) -> Family:
    """Say of which family a UNet or ControlNet is. Where files do not say whether it refines, its blocks do.

    SDXL's is told more than the time, the refiner's does not attend on its deepest level; of the others SD 2.x has
    linear projections around the attention, SD 1.x convolutions of one point.
    """
    names = _spelling(part)
    if f"{names.embedding}.weight" in part.spans:
        way = _way(part, names)
        attends = any(way.depths[-1]) or not way.middle
        return "refiner" if (not attends if refiner is None else refiner) else "sdxl"
    return "sd2" if _linear(part) else "sd1"


def vae(part: Part, family: Family | None) -> dict[str, Any]:
    """Return the config of the VAE that has these tensors, in a checkpoint of a family or alone."""
    down, layer, middle = VAE_DIFFUSERS if part.kind is DIFFUSERS_VAE else VAE_ORIGINAL
    levels = part.count(down)
    return {
        **vae_data(family),
        "latent_channels": part.size("decoder.conv_in.weight", 1),
        "block_out_channels": [part.size(f"{down}{level}.{layer}0.conv1.weight") for level in range(levels)],
        "layers_per_block": part.count(f"{down}0.{layer}"),
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "up_block_types": ["UpDecoderBlock2D"] * levels,
        "mid_block_add_attention": any(name.startswith(middle) for name in part.spans),
    }


def vae_data(family: Family | None) -> dict[str, Any]:
    """What is known of the VAEs that the checkpoints of a family have; alone, one is taken for Stable Diffusion's."""
    return read("vae_xl" if family in NUMBERS else "vae")


def clip(part: Part) -> dict[str, Any]:
    """Return the config of CLIP's text encoder with these tensors."""
    width = part.size("embeddings.token_embedding.weight", 1)
    return {
        **read("clip"),
        **_encoder(width, part.size("embeddings.position_embedding.weight")),
        "intermediate_size": part.size("encoder.layers.0.mlp.fc1.weight"),
        "num_hidden_layers": part.count("encoder.layers."),
    }


def open_clip(part: Part) -> dict[str, Any]:
    """Return the config of OpenCLIP's text encoder with these tensors, all of its layers counted."""
    width = part.size("token_embedding.weight", 1)
    return {
        **read("open_clip"),
        **_encoder(width, part.size("positional_embedding")),
        "intermediate_size": part.size("transformer.resblocks.0.mlp.c_fc.weight"),
        "num_hidden_layers": part.count("transformer.resblocks."),
    }


def time_width(told: int, pooled: int | None, numbers: int) -> int:
    """Return the width of each number that a UNet is told, from that of all that it is told.

    Where the width of the pooled text is not known, it is the largest power of two that leaves two fifths for the text.
    """
    if pooled is not None and told > pooled:
        return (told - pooled) // numbers
    return 1 << max(0, (3 * told // (5 * numbers)).bit_length() - 1)


@cache
def _read(name: str) -> Any:
    return json.loads((DATA / f"{name}.json").read_text(encoding="utf-8"))


def _encoder(width: int, positions: int) -> dict[str, int]:
    return {
        "hidden_size": width,
        "projection_dim": width,
        "num_attention_heads": max(1, width // HEAD_WIDTH),
        "max_position_embeddings": positions,
    }


def _shared(part: Part, way: Way, family: Family, pooled: int | None, names: Names, *, regular: bool) -> dict[str, Any]:
    """Return what the configs of a UNet and of a ControlNet have in common."""
    told = {}
    if family in NUMBERS:
        size = part.size(f"{names.embedding}.weight", 1)
        told = {
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": time_width(size, pooled, NUMBERS[family]),
            "projection_class_embeddings_input_dim": size,
        }
    context = _context(part)
    return {
        **read(family)["unet"],
        **({} if family == "sd1" else {"attention_head_dim": [max(1, width // HEAD_WIDTH) for width in way.widths]}),
        **told,
        **({} if context is None else {"cross_attention_dim": context}),
        "in_channels": part.size("conv_in.weight" if names is DIFFUSERS else "input_blocks.0.0.weight", 1),
        "block_out_channels": list(way.widths),
        "layers_per_block": way.layers,
        "down_block_types": ["CrossAttnDownBlock2D" if any(depth) else "DownBlock2D" for depth in way.depths],
        "mid_block_type": "UNetMidBlock2DCrossAttn" if way.middle else "UNetMidBlock2D",
        "transformer_layers_per_block": _layers(way) if regular else _lists(way.depths),
    }


def _layers(way: Way) -> list[int]:
    """How deep the attention of each level is; the middle takes the number of the last."""
    *depths, last = (max(depth) for depth in way.depths)
    return [*(depth or 1 for depth in depths), last or way.middle or 1]


def _lists(depths: Iterable[tuple[int, ...]]) -> list[int | list[int]]:
    return [list(depth) if any(depth) else 1 for depth in depths]


def _way(part: Part, names: Names) -> Way:
    if names is DIFFUSERS:
        levels, layers = part.count("down_blocks."), part.count("down_blocks.0.resnets.")
    else:
        levels = 1 + sum(name.endswith(".0.op.weight") for name in part.spans)
        layers = max(1, (part.count("input_blocks.") - levels) // levels)
    if not levels or not layers:
        raise LoadError(part.path, f"a {part.kind.word} of blocks", "none")
    places = [
        [{"level": level, "layer": layer, "block": 1 + (layers + 1) * level + layer} for layer in range(layers)]
        for level in range(levels)
    ]
    return Way(
        tuple(part.size(f"{names.wide.format(**level[0])}.weight") for level in places),
        tuple(tuple(_depth(part, names.attention.format(**layer)) for layer in level) for level in places),
        _depth(part, names.middle),
    )


def _depth(part: Part, attention: str) -> int:
    return part.count(f"{attention}.transformer_blocks.") if f"{attention}.norm.weight" in part.spans else 0


def _spelling(part: Part) -> Names:
    return DIFFUSERS if part.kind is DIFFUSERS_CONTROLNET else ORIGINAL


def _linear(part: Part) -> bool:
    return any(name.endswith(".proj_in.weight") and len(span.shape) == 2 for name, span in part.spans.items())


def _context(part: Part) -> int | None:
    """The width of the text that is attended to."""
    return next((part.size(name, 1) for name in part.spans if name.endswith(".attn2.to_k.weight")), None)


def _hints(part: Part) -> tuple[str, list[str]]:
    """The first layer that a ControlNet sees its picture with, and all but the last of those that follow."""
    if part.kind is DIFFUSERS_CONTROLNET:
        inner = range(part.count("controlnet_cond_embedding.blocks."))
        return "controlnet_cond_embedding.conv_in", [f"controlnet_cond_embedding.blocks.{each}" for each in inner]
    inner = range(1, part.count("input_hint_block.") - 1)
    return "input_hint_block.0", [f"input_hint_block.{2 * each}" for each in inner]
