"""Parts of models among the tensors of a file, and what a file is that lacks one.

Everything is recognised by the names and shapes of tensors, which stand at the beginning of a file; its name means
nothing.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from nodes.diffusion.tensors import LoadError, Shape, Span, by, some, spans

REMEDY = (
    "loaded = torch.load({path!r}, weights_only=True); loaded = loaded.get('state_dict', loaded); safetensors.torch."
    "save_file({{k: v.contiguous() for k, v in loaded.items() if hasattr(v, 'contiguous')}}, {converted!r})"
)
"""How a pickle becomes a file that is read here."""
RUN = "Stable Diffusion 1.x, 2.x or XL"
"""The models that this code runs."""


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
DIFFUSERS_VAE = Kind("VAE", ("",), "encoder.down_blocks.0.resnets.0.conv1.weight", ("",))
CLIP = Kind(
    "text encoder",
    ("cond_stage_model.transformer.text_model.", "cond_stage_model.transformer."),
    "embeddings.token_embedding.weight",
    ("encoder.",),
)
OPEN_CLIP = Kind("text encoder", ("cond_stage_model.model.",), "token_embedding.weight", ())
XL_CLIP = CLIP._replace(
    word="first text encoder",
    prefixes=("conditioner.embedders.0.transformer.text_model.", "conditioner.embedders.0.transformer."),
)
XL_BIG_G = OPEN_CLIP._replace(word="second text encoder", prefixes=("conditioner.embedders.1.model.",))
REFINER_BIG_G = OPEN_CLIP._replace(prefixes=("conditioner.embedders.0.model.",))
CONTROLNET = Kind("ControlNet", ("control_model.", ""), "input_hint_block.0.weight", ("",))
DIFFUSERS_CONTROLNET = Kind("ControlNet", ("",), "controlnet_cond_embedding.conv_in.weight", ("",))

_HELD = (UNET, VAE, DIFFUSERS_VAE, CLIP, OPEN_CLIP, XL_CLIP, XL_BIG_G, REFINER_BIG_G)
_CONTROLLING = (CONTROLNET, DIFFUSERS_CONTROLNET)

_UNSUPPORTED = {
    "joint_blocks.": "a Stable Diffusion 3 model",
    "clip_txt_mapper.": "a Stable Cascade model",
    "clip_txt_pooled_mapper.": "a Stable Cascade model",
    ".channelwise.": "a Stable Cascade model",
    "adaln_single.": "a PixArt model or another with its blocks",
    "double_layers.": "an AuraFlow model",
    "individual_token_refiner.": "a HunyuanVideo model",
    "distilled_guidance_layer.": "a Chroma model",
    "double_stream_blocks.": "a HiDream model",
    "double_blocks.": "a Flux model",
    "cap_embedder.": "a Lumina model",
    "txt_norm.": "a Qwen-Image model",
    "head.modulation": "a Wan model",
    "caption_norm.": "a Sana model",
    ".time_stack.": "a model of moving pictures",
    "motion_modules.": "AnimateDiff, a model of moving pictures",
    "embedder.model.visual.": "an unCLIP model, which starts from a picture's embedding",
    "edm_mean": "a Playground 2.5 model",
    "edm_vpred.": "a CosXL model",
    "scaled_fp8": "a model in float8 with scales beside it",
    ".absmax": "a quantised model",
    "ip_adapter.": "an IP-Adapter",
    "task_embedding": "a ControlNet-Union",
    "lora_controlnet": "a ControlLoRA",
    "adapter.body.": "a T2I-Adapter",
    "body.0.resnets.": "a T2I-Adapter",
    "body.0.in_conv.": "a T2I-Adapter",
    "body.0.block1.": "a T2I-Adapter",
    "lllite_": "a ControlNet-LLLite",
}
"""Models that this code does not run, by a piece of a tensor's name; the first that is found counts."""
_OTHERS = {
    "input_hint_block.": "a ControlNet, which changes a checkpoint and is none; load it with the node controlnet.load",
    "controlnet_cond_embedding.": "a ControlNet, which changes a checkpoint and is none; load it with the node "
    "controlnet.load",
    "lora_": "a LoRA, which changes a checkpoint and is none; put it on one with the node model.lora",
    "string_to_param": "an embedding; put it into a folder embeddings/ and mention it in a prompt",
    "emb_params": "an embedding; put it into a folder embeddings/ and mention it in a prompt",
    "down_blocks.": "one part in diffusers' layout, which needs its config.json; name the whole folder of the model",
    "text_model.encoder.": "a text encoder alone",
}
"""What files without any part of a checkpoint are, likewise."""


@dataclass(frozen=True)
class Part:
    """The tensors of one part of a model, in one file or several: where they are by name, without the prefix."""

    path: Path
    kind: Kind
    prefix: str
    spans: Mapping[str, Span]

    @property
    def shapes(self) -> dict[str, Shape]:
        """The shapes by name."""
        return {name: span.shape for name, span in self.spans.items()}

    def size(self, name: str, axis: int = 0) -> int:
        """Return the size of a tensor along an axis; raises LoadError where it is missing or has no such axis."""
        span = self.spans.get(name)
        if span is None or len(span.shape) <= axis:
            found = "none" if span is None else by(span.shape)
            raise LoadError(self.path, f"a tensor {self.prefix}{name}, as a {self.kind.word} has it", found)
        return span.shape[axis]

    def count(self, beginning: str) -> int:
        """How many numbers follow a beginning of names."""
        return len({name.removeprefix(beginning).split(".")[0] for name in self.spans if name.startswith(beginning)})


@dataclass(frozen=True)
class Contents:
    """All the tensors of a file."""

    path: Path
    spans: Mapping[str, Span]

    @classmethod
    def of(cls, path: Path) -> Contents:
        """Read what is in a file. Raises LoadError for a damaged file, and for a pickle."""
        return cls(path, spans(path, REMEDY))

    def __contains__(self, name: str) -> bool:
        """Whether there is a tensor of that name."""
        return name in self.spans

    def prefix(self, kind: Kind) -> str | None:
        """What the names of a part begin with, where it is there."""
        return next((prefix for prefix in kind.prefixes if prefix + kind.mark in self.spans), None)

    def has(self, *kinds: Kind) -> bool:
        """Whether one of these parts is there."""
        return any(self.prefix(kind) is not None for kind in kinds)

    def part(self, *kinds: Kind) -> Part:
        """Return the first of these parts that is there, or say what the file is instead."""
        unsupported = _told(_UNSUPPORTED, self.spans)
        kind = next((kind for kind in kinds if self.has(kind)), kinds[0])
        prefix = self.prefix(kind)
        if prefix is None or unsupported:
            expected = f"a {kind.word} of {RUN} (tensors such as {kind.prefixes[0]}{kind.mark})"
            refused = unsupported and f"{unsupported}, which is not supported; take one of {RUN}"
            raise LoadError(self.path, expected, refused or self._instead(kind))
        own = {name.removeprefix(prefix): span for name, span in self.spans.items() if name.startswith(prefix)}
        return Part(self.path, kind, prefix, own)

    def _instead(self, kind: Kind) -> str:
        """What a file is that lacks a part."""
        held = [other.word for other in _HELD if self.has(other)]
        if kind is VAE and held:
            return f"a checkpoint without one ({' and '.join(held)} alone); give it a VAE with the node vae.load"
        if held == ["VAE"]:
            return "a VAE alone; load it with the node vae.load, beside a checkpoint"
        if held and kind in _CONTROLLING:
            return f"a checkpoint ({' and '.join(held)}); load it with the node model.load"
        if any(name.startswith("model_ema.") for name in self.spans):
            return "averaged weights (model_ema.) alone; take the file that has the others too"
        if held:
            return f"{' and '.join(held)} alone; take a checkpoint that has all parts"
        return _told(_OTHERS, self.spans) or f"{len(self.spans)} tensors of something else: {some(list(self.spans))}"


def _told(sentences: Mapping[str, str], found: Collection[str]) -> str | None:
    """The sentence about the first piece that occurs in a name."""
    names = "\n".join(found)  # one long text is searched much faster than thousands of short ones
    return next((said for piece, said in sentences.items() if piece in names), None)
