"""Checkpoints in one file, laid out as by Stable Diffusion's first code: recognised by their tensors, read by parts.

What a model is follows from the names and shapes of its tensors, which stand at the beginning of the file; its name
means nothing. What they do not say stands in the folder `data`. A part is built without values and takes its own
tensors from the file, one after another, so that little more memory is needed than it fills in the end.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from nodes.diffusion import original
from nodes.diffusion.table import NoiseSchedule
from nodes.diffusion.tensors import LoadError, opened, refusing, shapes, some

if TYPE_CHECKING:
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextModel

Family = Literal["sd1", "sd2"]
Shape = tuple[int, ...]

DATA = Path(__file__).parent / "data"
TOKENIZER = DATA / "tokenizer"
"""The vocabulary that SD 1.x and 2.x have in common, as transformers reads it."""

REMEDY = (
    "loaded = torch.load({path!r}, weights_only=True); loaded = loaded.get('state_dict', loaded); safetensors.torch."
    "save_file({{k: v.contiguous() for k, v in loaded.items() if hasattr(v, 'contiguous')}}, {converted!r})"
)
BATCH_BYTES = 2**26
"""The file is let go after so much of it was read, so that it does not count as memory beside the weights."""
HEAD_WIDTH = 64
"""Channels of an attention head, in text encoders and in the UNet of SD 2.x."""
V_THRESHOLD = 0.09
"""The UNets of SD 2.x differ in nothing but values: in those that predict v this bias deviates more than that."""
V_BIAS = "output_blocks.11.1.transformer_blocks.0.norm1.bias"


class Kind(NamedTuple):
    """A part as files spell it: prefixes of its names, a tensor that it always has, and what must not be unknown."""

    word: str
    prefixes: tuple[str, ...]
    mark: str
    own: tuple[str, ...]


UNET = Kind("UNet", ("model.diffusion_model.",), "input_blocks.0.0.weight", ("",))
VAE = Kind(
    "VAE",
    ("first_stage_model.", ""),
    "encoder.down.0.block.0.conv1.weight",
    ("encoder.", "decoder.", "quant_conv.", "post_quant_conv."),
)
CLIP = Kind(
    "text encoder",
    ("cond_stage_model.transformer.text_model.", "cond_stage_model.transformer."),
    "embeddings.token_embedding.weight",
    ("encoder.",),
)
OPEN_CLIP = Kind("text encoder", ("cond_stage_model.model.",), "token_embedding.weight", ())

_UNSUPPORTED = {
    "conditioner.embedders.": "an SDXL checkpoint; SDXL is not supported, take one of Stable Diffusion 1.x or 2.x",
    "diffusion_model.label_emb.": "the UNet of SDXL; SDXL is not supported, take a Stable Diffusion 1.x or 2.x model",
    "joint_blocks.": "a Stable Diffusion 3 model, which is not supported; take one of Stable Diffusion 1.x or 2.x",
    "double_blocks.": "a Flux model, which is not supported; take one of Stable Diffusion 1.x or 2.x",
}
"""Models that this code does not run, by a piece of a tensor's name."""
_OTHERS = {
    "input_hint_block.": "a ControlNet, which changes a checkpoint and is none",
    "controlnet_cond_embedding.": "a ControlNet, which changes a checkpoint and is none",
    "lora_": "a LoRA, which changes a checkpoint and is none; put it on one with the node model.lora",
    "string_to_param": "an embedding; put it into a folder embeddings/ and mention it in a prompt",
    "emb_params": "an embedding; put it into a folder embeddings/ and mention it in a prompt",
    "down_blocks.": "one part in diffusers' layout, which needs its config.json; name the whole folder of the model",
    "text_model.encoder.": "a text encoder alone",
}
"""What files without any part of a checkpoint are, likewise; the first that is found counts."""


@dataclass(frozen=True)
class Part:
    """The tensors of one part of a file: shapes by name, without the prefix."""

    path: Path
    kind: Kind
    prefix: str
    shapes: Mapping[str, Shape]

    def size(self, name: str, axis: int = 0) -> int:
        """Return the size of a tensor along an axis; raises LoadError where it is missing or has no such axis."""
        shape = self.shapes.get(name)
        if shape is None or len(shape) <= axis:
            found = "none" if shape is None else _by(shape)
            raise LoadError(self.path, f"a tensor {self.prefix}{name}, as a {self.kind.word} has it", found)
        return shape[axis]

    def count(self, beginning: str) -> int:
        """How many numbers follow a beginning of names."""
        return len({name.removeprefix(beginning).split(".")[0] for name in self.shapes if name.startswith(beginning)})


def unet(path: Path, dtype: torch.dtype, device: torch.device | str) -> UNet2DConditionModel:
    """Load the UNet of a checkpoint, ready to predict; its EMA is left out where the file has both."""
    part = _part(path, UNET)
    config = _unet_config(part)
    _check_inputs(part)
    return _filled(lambda: _made("diffusers", "UNet2DConditionModel", config), part, original.unet, dtype, device)


def vae(path: Path, dtype: torch.dtype, device: torch.device | str) -> AutoencoderKL:
    """Load the VAE of a checkpoint, or one that is alone in its file."""
    part = _part(path, VAE)
    config = _vae_config(part)
    return _filled(lambda: _made("diffusers", "AutoencoderKL", config), part, original.vae, dtype, device)


def text_encoder(path: Path, dtype: torch.dtype, device: torch.device | str) -> CLIPTextModel:
    """Load the text encoder of a checkpoint: CLIP's, or OpenCLIP's up to the layer that SD 2.x takes."""
    part, family = _text(path)
    config = _clip_config(part) if family == "sd1" else _open_clip_config(part)
    names = original.clip if family == "sd1" else original.open_clip
    return _filled(lambda: _clip_made(config), part, names, dtype, device)


def tokenizer_options(path: Path) -> dict[str, Any]:
    """What the tokenizer of a checkpoint has other than the vocabulary in TOKENIZER."""
    options: dict[str, Any] = _data(_text(path)[1])["tokenizer"]
    return options


def schedule(path: Path) -> NoiseSchedule:
    """Return the noise levels that a checkpoint was trained on, and what its UNet predicts.

    A checkpoint that predicts v has a tensor `v_pred`, or is one of SD 2.x with the values of those; one with a tensor
    `ztsnr` was trained on noise without any signal, and is refused.
    """
    found = _shapes(path)
    part = _part(path, UNET, found)
    config = _data(_family(part))["schedule"] | {"rescale_betas_zero_snr": "ztsnr" in found}
    config["prediction_type"] = "v_prediction" if "v_pred" in found or _predicts_v(part) else "epsilon"
    with refusing(path, "a supported noise schedule"):
        return NoiseSchedule.from_config(config)


def family(path: Path) -> Family:
    """Say of which family a checkpoint is."""
    return _family(_part(path, UNET))


def inputs(path: Path) -> int:
    """Return how many channels the UNet of a checkpoint takes."""
    return _check_inputs(_part(path, UNET))


def latent_space(path: Path) -> dict[str, Any]:
    """Return the latent space of a checkpoint or of a VAE; of a checkpoint without VAE, that of Stable Diffusion's."""
    found = _shapes(path)
    if _prefix(VAE, found) is None:
        _part(path, UNET, found)
        config = _data("vae")
    else:
        config = _vae_config(_part(path, VAE, found))
    return {
        "channels": config["latent_channels"],
        "downscale": 2 ** (len(config["block_out_channels"]) - 1),
        "scaling": config["scaling_factor"],
        "shift": 0.0,
    }


def described(path: Path) -> str:
    """Say in a few words what a file is. Raises LoadError where it is neither a checkpoint nor a VAE."""
    found = _shapes(path)
    if _prefix(UNET, found) is None and _prefix(VAE, found) is not None:
        return "VAE"
    part = _part(path, UNET, found)
    inpainting = " inpainting" if _check_inputs(part) > part.size("out.2.weight") else ""
    without = "" if _prefix(VAE, found) is not None else " without VAE"
    return f"SD {_family(part)[-1]}.x{inpainting}{without}"


@cache
def _read(name: str) -> Any:
    return json.loads((DATA / f"{name}.json").read_text(encoding="utf-8"))


def _data(name: str) -> dict[str, Any]:
    return dict(_read(name))


def _shapes(path: Path) -> dict[str, Shape]:
    return shapes(path, REMEDY)


def _prefix(kind: Kind, found: Mapping[str, Shape]) -> str | None:
    return next((prefix for prefix in kind.prefixes if prefix + kind.mark in found), None)


def _part(path: Path, kind: Kind, found: Mapping[str, Shape] | None = None) -> Part:
    """Find a part among the tensors of a file, or say what the file is instead."""
    found = _shapes(path) if found is None else found
    unsupported, prefix = _told(_UNSUPPORTED, found), _prefix(kind, found)
    if prefix is None or unsupported:
        expected = f"a {kind.word} of Stable Diffusion 1.x or 2.x (tensors such as {kind.prefixes[0]}{kind.mark})"
        raise LoadError(path, expected, unsupported or _instead(kind, found))
    own = {name.removeprefix(prefix): shape for name, shape in found.items() if name.startswith(prefix)}
    return Part(path, kind, prefix, own)


def _told(sentences: Mapping[str, str], found: Collection[str]) -> str | None:
    """The sentence about the first piece that occurs in a name."""
    return next((said for piece, said in sentences.items() if any(piece in name for name in found)), None)


def _instead(kind: Kind, found: Mapping[str, Shape]) -> str:
    """What a file is that lacks a part."""
    held = [other.word for other in (UNET, VAE, CLIP, OPEN_CLIP) if _prefix(other, found) is not None]
    if kind is VAE and held:
        return f"a checkpoint without one ({' and '.join(held)} alone); give it a VAE with the node vae.load"
    if held == ["VAE"]:
        return "a VAE alone; load it with the node vae.load, beside a checkpoint"
    if any(name.startswith("model_ema.") for name in found):
        return "averaged weights (model_ema.) alone; take the file that has the others too"
    if held:
        return f"{' and '.join(held)} alone; take a checkpoint that has all parts"
    return _told(_OTHERS, found) or f"{len(found)} tensors of something else: {some(list(found))}"


def _text(path: Path) -> tuple[Part, Family]:
    found = _shapes(path)
    if _prefix(OPEN_CLIP, found) is not None:
        return _part(path, OPEN_CLIP, found), "sd2"
    return _part(path, CLIP, found), "sd1"


def _family(part: Part) -> Family:
    """SD 2.x has linear projections around the attention, SD 1.x convolutions of one point."""
    return "sd2" if len(part.shapes.get("middle_block.1.proj_in.weight", ())) == 2 else "sd1"


def _predicts_v(part: Part) -> bool:
    if _family(part) != "sd2" or _check_inputs(part) > part.size("out.2.weight") or V_BIAS not in part.shapes:
        return False
    with opened(part.path, REMEDY) as file:
        return bool(file.get_tensor(part.prefix + V_BIAS).float().std(unbiased=False) > V_THRESHOLD)


def _check_inputs(part: Part) -> int:
    taken, given = part.size("input_blocks.0.0.weight", 1), part.size("out.2.weight")
    if taken not in (given, 2 * given + 1):
        expected = "a UNet with as many channels in as out, or for inpainting twice as many and one"
        raise LoadError(part.path, expected, f"{taken} in and {given} out")
    return taken


def _unet_config(part: Part) -> dict[str, Any]:
    """Return the config of the UNet that has these tensors."""
    blocks = part.count("input_blocks.")
    levels = 1 + sum(name.endswith(".0.op.weight") for name in part.shapes)
    layers = max(1, (blocks - levels) // levels)
    starts = [1 + (layers + 1) * level for level in range(levels)]
    widths = [part.size(f"input_blocks.{start}.0.out_layers.3.weight") for start in starts]
    attends = [f"input_blocks.{start}.1.norm.weight" in part.shapes for start in starts]
    family = _family(part)
    heads = {} if family == "sd1" else {"attention_head_dim": [max(1, width // HEAD_WIDTH) for width in widths]}
    return {
        **_data(family)["unet"],
        **heads,
        "in_channels": part.size("input_blocks.0.0.weight", 1),
        "out_channels": part.size("out.2.weight"),
        "block_out_channels": widths,
        "layers_per_block": layers,
        "down_block_types": ["CrossAttnDownBlock2D" if attend else "DownBlock2D" for attend in attends],
        "up_block_types": ["CrossAttnUpBlock2D" if attend else "UpBlock2D" for attend in reversed(attends)],
        "cross_attention_dim": part.size("middle_block.1.transformer_blocks.0.attn2.to_k.weight", 1),
    }


def _vae_config(part: Part) -> dict[str, Any]:
    """Return the config of the VAE that has these tensors."""
    levels = part.count("encoder.down.")
    widths = [part.size(f"encoder.down.{level}.block.0.conv1.weight") for level in range(levels)]
    return {
        **_data("vae"),
        "latent_channels": part.size("decoder.conv_in.weight", 1),
        "block_out_channels": widths,
        "layers_per_block": part.count("encoder.down.0.block."),
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "up_block_types": ["UpDecoderBlock2D"] * levels,
        "mid_block_add_attention": "encoder.mid.attn_1.q.weight" in part.shapes,
    }


def _clip_config(part: Part) -> dict[str, Any]:
    """Return the config of CLIP's text encoder with these tensors."""
    width = part.size("embeddings.token_embedding.weight", 1)
    return {
        **_data("sd1")["text_encoder"],
        "hidden_size": width,
        "projection_dim": width,
        "intermediate_size": part.size("encoder.layers.0.mlp.fc1.weight"),
        "num_hidden_layers": part.count("encoder.layers."),
        "num_attention_heads": max(1, width // HEAD_WIDTH),
        "max_position_embeddings": part.size("embeddings.position_embedding.weight"),
    }


def _open_clip_config(part: Part) -> dict[str, Any]:
    """Return the config of OpenCLIP's text encoder with these tensors, up to the last layer but one."""
    width = part.size("token_embedding.weight", 1)
    return {
        **_data("sd2")["text_encoder"],
        "hidden_size": width,
        "projection_dim": width,
        "intermediate_size": part.size("transformer.resblocks.0.mlp.c_fc.weight"),
        "num_hidden_layers": max(1, part.count("transformer.resblocks.") - 1),
        "num_attention_heads": max(1, width // HEAD_WIDTH),
        "max_position_embeddings": part.size("positional_embedding"),
    }


def _made(library: str, kind: str, config: Mapping[str, Any]) -> Any:
    return getattr(import_module(library), kind)(**config)


def _clip_made(config: Mapping[str, Any]) -> Any:
    return _made("transformers", "CLIPTextModel", {"config": _made("transformers", "CLIPTextConfig", config)})


def _filled(
    make: Callable[[], Any],
    part: Part,
    spelling: original.Spelling,
    dtype: torch.dtype,
    device: torch.device | str,
) -> Any:
    """Build a module without values and give it the tensors of a part."""
    with refusing(part.path, f"a {part.kind.word} of Stable Diffusion 1.x or 2.x"), torch.device("meta"):
        module = make()
    wanted = {name: tuple(weight.shape) for name, weight in module.state_dict().items()}
    names = original.tensors(wanted, spelling)
    _check_names(part, names.values(), type(module).__name__)
    _check_shapes(part, names, wanted)
    with refusing(part.path, f"weights of a {part.kind.word}"):
        loaded = dict(_weights(part, names, wanted, dtype, device))
    module.load_state_dict(loaded, assign=True)
    _count_positions(module, device)
    return module.eval().requires_grad_(requires_grad=False)


def _check_names(part: Part, expected: Collection[str], kind: str) -> None:
    """Refuse a file with other tensors than a module has."""
    missing = [f"{part.prefix}{name}" for name in expected if name not in part.shapes]
    if missing:
        found = f"{len(set(expected)) - len(set(missing))} of them, without {some(missing)}"
        raise LoadError(part.path, f"{len(set(expected))} tensors of a {kind}", found)
    known = set(expected)
    unknown = [name for name in part.shapes if name not in known and name.startswith(part.kind.own)]
    if unknown and part.kind.own:
        found = f"{len(unknown)} more: {some([f'{part.prefix}{name}' for name in unknown])}"
        raise LoadError(part.path, f"{len(known)} tensors of a {kind}", f"{found}; it is another architecture")


def _check_shapes(part: Part, names: Mapping[str, str], wanted: Mapping[str, Shape]) -> None:
    wrong = [name for name in wanted if not _fits(part.shapes[names[name]], wanted[name])]
    if wrong:
        name = wrong[0]
        found = f"{_by(part.shapes[names[name]])} ({len(wrong)} of {len(wanted)} do not fit)"
        raise LoadError(part.path, f"{part.prefix}{names[name]} of shape {_by(wanted[name])}", found)


def _fits(found: Shape, wanted: Shape) -> bool:
    """Whether a tensor can be taken: as it is, as a convolution of one point, or with q, k and v in one."""
    return found in (wanted, (*wanted, 1, 1), (3 * wanted[0], *wanted[1:]))


def _weights(
    part: Part, names: Mapping[str, str], wanted: Mapping[str, Shape], dtype: torch.dtype, device: torch.device | str
) -> Iterator[tuple[str, Tensor]]:
    """Read the tensors of a part one after another, in copies of their own."""
    for batch in _batches(names, wanted):
        with opened(part.path, REMEDY) as file:
            for name in batch:
                tensor = _own_rows(name, file.get_tensor(part.prefix + names[name]), wanted[name])
                yield name, tensor.to(device, dtype, copy=True).reshape(wanted[name])


def _batches(names: Iterable[str], wanted: Mapping[str, Shape]) -> Iterator[list[str]]:
    batch, held = list[str](), 0
    for name in names:
        batch.append(name)
        held += 4 * prod(wanted[name])
        if held > BATCH_BYTES:
            yield batch
            batch, held = [], 0
    yield batch


def _own_rows(name: str, tensor: Tensor, wanted: Shape) -> Tensor:
    """Return the third that is meant, where q, k and v stand in one tensor."""
    if tensor.shape[0] == wanted[0]:
        return tensor
    return tensor.chunk(3)["qkv".index(name.split(".")[-2][0])]


def _count_positions(module: nn.Module, device: torch.device | str) -> None:
    """Give a text encoder back what it computes when it is built: the numbers of its positions."""
    for inner in module.modules():
        for name, buffer in inner.named_buffers(recurse=False):
            setattr(inner, name, torch.arange(buffer.shape[-1], device=device).expand(buffer.shape))


def _by(shape: Shape) -> str:
    return " x ".join(map(str, shape)) or "a number"
