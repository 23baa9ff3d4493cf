"""Prompts to conditionings: what CLIP makes of a text of any length."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from transformers import CLIPTextModel, CLIPTokenizer


def encode(text: str, tokenizer: CLIPTokenizer, encoder: CLIPTextModel) -> Tensor:
    """Return the conditioning of `text`: hidden states (1, 77 * k, D) of its k chunks, one after another.

    The states are those of the last layer after the final layer norm. Each chunk is encoded alone, so words know only
    their own chunk. The result is on the encoder's device, in its dtype.
    """
    window = encoder.config.max_position_embeddings
    tokens = torch.tensor(chunks(text, tokenizer, window), device=encoder.device)
    with torch.no_grad():
        states: Tensor = encoder(tokens).last_hidden_state
    return states.reshape(1, -1, states.shape[-1])


def chunks(text: str, tokenizer: CLIPTokenizer, window: int = 77) -> list[list[int]]:
    """Split the text's tokens into chunks of `window` tokens: begin, up to window - 2 of them, end, and padding.

    No token is dropped, a text without tokens is one chunk, and a chunk ends wherever its 75 tokens do, also in a word.
    The padding is the tokenizer's own: the end token for SD 1.x, token 0 for SD 2.x.
    """
    tokens = tokenizer(text, add_special_tokens=False, truncation=False, verbose=False).input_ids
    room = window - 2
    starts = range(0, max(len(tokens), 1), room)
    return [_framed(tokens[start : start + room], tokenizer, window) for start in starts]


def _framed(tokens: list[int], tokenizer: CLIPTokenizer, window: int) -> list[int]:
    """Put begin and end around the tokens and pad them."""
    framed = [tokenizer.bos_token_id, *tokens, tokenizer.eos_token_id]
    return framed + [tokenizer.pad_token_id] * (window - len(framed))
