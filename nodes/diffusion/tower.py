"""Text encoders, each with the tokenizer that it was trained with."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Tower:
    """One text encoder with its tokenizer.

    `encoder` is a transformers `CLIPTextModel`, or for OpenCLIP's bigG a `CLIPTextModelWithProjection`, whose
    `text_embeds` are the pooled output that SDXL's UNet takes. `dropped` is how many layers at its end were never
    loaded: 1 of OpenCLIP's H, whose last layer SD 2.x was trained without.
    """

    tokenizer: Any
    encoder: Any
    dropped: int = 0
