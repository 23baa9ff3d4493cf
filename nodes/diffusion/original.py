"""What the files of CompVis' and Stability's first code call the modules that diffusers and transformers build.

There the blocks of a UNet are counted through: each level of the way down has its layers and then one that halves the
sides, and the way up has one layer more on each level, the last of which also doubles the sides.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable
from typing import TypeAlias

Spelling: TypeAlias = Callable[[Collection[str]], dict[str, str]]
"""From the names of modules to those that they have in a file."""

_UNET_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "time_emb_proj": "emb_layers.1",
    "conv_shortcut": "skip_connection",
}
_UNET_OUTER = {
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "controlnet_mid_block": "middle_block_out.0",
    "controlnet_cond_embedding.conv_in": "input_hint_block.0",
}
_UNET_BLOCK = re.compile(r"(down|mid|up)_blocks?(?:\.(\d+))?\.(resnets|attentions|\w+samplers)\.(\d+)\.(.+)")
_UP_ATTENTION = re.compile(r"up_blocks\.(\d+)\.attentions\.")

_HINT_BLOCK = "controlnet_cond_embedding.blocks."
_CONTROL_BLOCK = "controlnet_down_blocks."

_VAE_BLOCK = re.compile(r"(encoder|decoder)\.(down|up)_blocks\.(\d+)\.(resnets|\w+samplers)\.(\d+)\.(.+)")
_VAE_MIDDLE = re.compile(r"(encoder|decoder)\.mid_block\.(resnets|attentions)\.(\d+)\.(.+)")
_VAE_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}

_OLDER_ATTENTION = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
"""What diffusers itself called these once."""

_TENSOR = "="
"""What the name of a place ends with that is no module but a tensor."""
_OPEN_CLIP_OUTER = {
    "embeddings.token_embedding": "token_embedding",
    "embeddings.position_embedding": f"positional_embedding{_TENSOR}",
    "text_projection": f"text_projection{_TENSOR}",
    "final_layer_norm": "ln_final",
}
_OPEN_CLIP_INNER = {
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
    "self_attn.out_proj": "attn.out_proj",
}


def tensors(weights: Iterable[str], spelling: Spelling) -> dict[str, str]:
    """What the weights of a module are called there."""
    parted = {weight: weight.rpartition(".") for weight in weights}
    places = spelling(list(dict.fromkeys(module for module, _, _ in parted.values())))
    return {weight: _tensor(places[module], kind) for weight, (module, _, kind) in parted.items()}


def stored(names: Iterable[str]) -> Spelling:
    """The spelling of files in diffusers' layout with these names of tensors, which changed a little over the years."""
    found = {name.rpartition(".")[0] for name in names}

    def places(modules: Collection[str]) -> dict[str, str]:
        return {module: next((each for each in _ages(module) if each in found), module) for module in modules}

    return places


def unet(modules: Collection[str]) -> dict[str, str]:
    """What the modules of a UNet are called there; names of something else are left as they are."""
    layers = _count(modules, "down_blocks.0.resnets.")
    attending = {int(found[1]) for found in map(_UP_ATTENTION.match, modules) if found}
    return {name: _of_unet(name, layers, attending) for name in modules}


def controlnet(modules: Collection[str]) -> dict[str, str]:
    """What the modules of a ControlNet are called there: as those of a UNet, and some of its own."""
    hints = _count(modules, _HINT_BLOCK)
    return {name: _of_controlnet(name, hints) or place for name, place in unet(modules).items()}


def vae(modules: Collection[str]) -> dict[str, str]:
    """What the modules of a VAE are called there, where the levels of the decoder are counted from the finest."""
    finest = _count(modules, "decoder.up_blocks.") - 1
    return {name: _of_vae(name, finest) for name in modules}


def clip(modules: Collection[str]) -> dict[str, str]:
    """What the modules of CLIP's text encoder are called there: as in transformers."""
    return {name: name.removeprefix("text_model.") for name in modules}


def open_clip(modules: Collection[str]) -> dict[str, str]:
    """What the modules of CLIP's text encoder are called in OpenCLIP; q, k and v have one name, as they are one."""
    return {name: _of_open_clip(name.removeprefix("text_model.")) for name in modules}


def _ages(module: str) -> list[str]:
    """The names that a module has had."""
    before, _, last = module.partition(".attentions.0.")
    older = [f"{before}.attentions.0.{_OLDER_ATTENTION[last]}"] if last in _OLDER_ATTENTION else []
    return [module, f"text_model.{module}", module.removeprefix("text_model."), *older]


def _tensor(place: str, kind: str) -> str:
    """The name of a weight or a bias; those of OpenCLIP are not all in modules of their own."""
    if place.endswith(_TENSOR):
        return place.removesuffix(_TENSOR)
    return f"{place}_{kind}" if place.endswith(".in_proj") else f"{place}.{kind}"


def _of_unet(name: str, layers: int, attending: Collection[int]) -> str:
    found = _UNET_BLOCK.fullmatch(name)
    if found is None:
        return _UNET_OUTER.get(name, name)
    way, block, kind, number, rest = found[1], int(found[2] or 0), found[3], int(found[4]), found[5]
    rest = _UNET_RESNET.get(rest, rest) if kind == "resnets" else rest
    first = (layers + 1) * block
    return {
        ("down", "resnets"): f"input_blocks.{first + 1 + number}.0.{rest}",
        ("down", "attentions"): f"input_blocks.{first + 1 + number}.1.{rest}",
        ("down", "downsamplers"): f"input_blocks.{first + 1 + layers}.0.op",
        ("mid", "resnets"): f"middle_block.{2 * number}.{rest}",
        ("mid", "attentions"): f"middle_block.1.{rest}",
        ("up", "resnets"): f"output_blocks.{first + number}.0.{rest}",
        ("up", "attentions"): f"output_blocks.{first + number}.1.{rest}",
        ("up", "upsamplers"): f"output_blocks.{first + layers}.{1 + (block in attending)}.conv",
    }.get((way, kind), name)


def _of_controlnet(name: str, hints: int) -> str | None:
    if name.startswith(_CONTROL_BLOCK):
        return f"zero_convs.{name.removeprefix(_CONTROL_BLOCK)}.0"
    if name.startswith(_HINT_BLOCK):
        return f"input_hint_block.{2 * int(name.removeprefix(_HINT_BLOCK)) + 2}"
    return f"input_hint_block.{2 * hints + 2}" if name == "controlnet_cond_embedding.conv_out" else None


def _of_vae(name: str, finest: int) -> str:
    if found := _VAE_MIDDLE.fullmatch(name):
        side, kind, number, rest = found[1], found[2], int(found[3]), found[4]
        if kind == "attentions":
            return f"{side}.mid.attn_1.{_VAE_ATTENTION.get(rest, rest)}"
        return f"{side}.mid.block_{number + 1}.{rest}"
    if found := _VAE_BLOCK.fullmatch(name):
        side, way, kind, rest = found[1], found[2], found[4], found[6]
        level = int(found[3]) if way == "down" else finest - int(found[3])
        inner = f"block.{found[5]}.{_shortcut(rest)}" if kind == "resnets" else f"{way}sample.{rest}"
        return f"{side}.{way}.{level}.{inner}"
    return name.replace("conv_norm_out", "norm_out")


def _shortcut(name: str) -> str:
    return "nin_shortcut" if name == "conv_shortcut" else name


def _of_open_clip(name: str) -> str:
    found = re.fullmatch(r"encoder\.layers\.(\d+)\.(.+)", name)
    if found is None:
        return _OPEN_CLIP_OUTER.get(name, name)
    return f"transformer.resblocks.{found[1]}.{_OPEN_CLIP_INNER.get(found[2], 'attn.in_proj')}"


def _count(modules: Collection[str], beginning: str) -> int:
    """How many numbered modules there are of that name."""
    return len({name.removeprefix(beginning).split(".")[0] for name in modules if name.startswith(beginning)})
