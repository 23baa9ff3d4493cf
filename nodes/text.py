"""Prompts."""

from engine.context import Context
from engine.node import node
from nodes.diffusion import text as encoding
from nodes.types import Conditioning, TextEncoder


@node("text.encode", version=1)
def encode(encoder: TextEncoder, context: Context, text: str = "") -> Conditioning:
    """Encode a prompt of any length, in chunks of 75 tokens; the empty prompt is what a negative prompt defaults to."""
    model = context.model(encoder)
    return Conditioning(encoding.encode(text, model.tokenizer, model.encoder).float())
