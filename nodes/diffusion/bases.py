"""Which Stable Diffusion something small was made for: told from the widths and names in it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from torch import nn

UNET_BY_CONTEXT = {768: "SD 1.x", 1024: "SD 2.x", 2048: "SDXL", 1280: "the SDXL refiner"}
"""By the width of the states that a UNet attends to."""
TEXT_BY_WIDTH = {768: "SD 1.x or SDXL (CLIP-L)", 1024: "SD 2.x (OpenCLIP-H)", 1280: "SDXL (OpenCLIP-bigG)"}
"""By the width of a text encoder."""
EMBEDDING_BY_WIDTH = {768: "SD 1.x", 1024: "SD 2.x", 1280: "the SDXL refiner", 768 + 1280: "SDXL"}
"""By the width of the vectors that stand for a word; those of SDXL's two text encoders stand side by side."""

_CONTEXT_READERS = ("attn2_to_k", "attn2_to_v")
_OTHERS = {
    "double_blocks_": "Flux",
    "single_blocks_": "Flux",
    "single_transformer_blocks_": "Flux",
    "joint_blocks_": "SD 3",
    "transformer_blocks_": "a diffusion transformer",
}
"""What the names of modules begin with in networks that are no UNets."""
_OUTER_ATTENTION = ("down_blocks_0_attentions_", "input_blocks_1_1_", "up_blocks_3_attentions_", "output_blocks_11_1_")
"""Attention at full size, which SDXL has not."""


def of_lora(unet: Mapping[str, tuple[int, int]], text: Iterable[tuple[int, int]], *, second: bool) -> str | None:
    """Say what changes were made for; None where nothing tells.

    `unet` has the shapes (out, rest) of changes by the names of modules, with `_` for dots; `text` those of the first
    text encoder; `second` is whether there are changes of a second.
    """
    for beginning, family in _OTHERS.items():
        if any(name.startswith(beginning) for name in unet):
            return family
    contexts = {shape[1] for name, shape in unet.items() if name.endswith(_CONTEXT_READERS)}
    families = [UNET_BY_CONTEXT[width] for width in contexts if width in UNET_BY_CONTEXT]
    if families:
        return families[0]
    if second or any("transformer_blocks_1_" in name for name in unet):
        return "SDXL"
    if 1024 in {rest for _, rest in text}:
        return "SD 2.x"
    if 768 in {rest for _, rest in text}:
        return "SD 1.x"
    return "SD 1.x or 2.x" if any(name.startswith(_OUTER_ATTENTION) for name in unet) else None


def of_module(module: nn.Module) -> str:
    """Describe a UNet or a text encoder, with the family that its width tells."""
    config, kind = getattr(module, "config", None), type(module).__name__
    context = getattr(config, "cross_attention_dim", None)
    if isinstance(context, int):
        return f"{kind} of {UNET_BY_CONTEXT.get(context, f'a model with prompts of width {context}')}"
    width = getattr(config, "hidden_size", None)
    return f"{kind} of {TEXT_BY_WIDTH.get(width, f'width {width}')}" if isinstance(width, int) else kind
