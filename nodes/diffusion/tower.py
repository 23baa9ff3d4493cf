"""Text encoders, each with the tokenizer that it was trained with."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Tower:
    """One text encoder with its tokenizer.

    `encoder` is a transformers `CLIPTextModel`, or for OpenCLIP's bigG a `CLIPTextModelWithProjection`, whose
    `text_embeds` are the pooled output that SDXL's UNet takes.
    """

    tokenizer: Any
    encoder: Any
