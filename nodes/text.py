"""Prompts."""

from dataclasses import replace
from typing import Annotated

from annotated_types import Ge, Le

from engine.context import Context
from engine.node import node
from nodes.diffusion import text as encoding
from nodes.files import NO_TEXT, PromptText
from nodes.prompt import written
from nodes.types import Conditioning, Embedding, Prompt, TextEncoder


@node("text.encode", version=4)
def encode(
    encoder: TextEncoder,
    context: Context,
    prompt: Prompt | None = None,
    *,
    text: PromptText = NO_TEXT,
    weighting: encoding.Weighting = "a1111",
    negative: bool = False,
) -> Conditioning:
    """Encode a prompt of any length, in chunks of 75 tokens; the empty prompt is what a negative prompt defaults to.

    (word) and (word:1.3) weigh, [word] weighs less, BREAK begins a new chunk, [cat:dog:0.5] changes the text half way,
    [cat|dog] on each step, `fox :1.2 AND snow` joins prompts, and the name of an embedding stands for its vectors. A
    `negative` text is not split at AND. `weighting` is what weights do to the encoder's states: a1111 keeps the mean of
    each chunk, no_norm does not, ignore drops them, none takes brackets as text, comfy reads and weighs as ComfyUI. A
    linked `prompt` goes before `text`, and knows itself whether it is negative. For SDXL an empty negative text is all
    zeros, but with `comfy`.
    """
    given = written(text, negative=negative) if prompt is None else prompt
    model = context.model(encoder)
    vectors = {name: context.model(Embedding(digest)) for name, digest in given.embeddings}
    reading = encoding.Reading(weighting, encoder.clip_skip, vectors, context.warn)
    encoded, parts = encoding.encode_prompt(given.text, model.towers, reading, negative=given.negative)
    return Conditioning(encoded.states, parts, encoded.pooled)


@node("text.clip_skip", version=1)
def clip_skip(encoder: TextEncoder, skip: Annotated[int, Ge(1), Le(12)] = 1) -> TextEncoder:
    """Leave out the last `skip` - 1 layers of a text encoder; 1 leaves out none, some models were trained with 2.

    SDXL and SD 2.x were trained with 2, and 1 means the same there. The WebUI heeds it for neither of them.
    """
    return replace(encoder, clip_skip=skip)
