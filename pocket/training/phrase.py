"""Captions as phrases that are tokenised once, so that a batch of captions is put together on the device."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

POSITIONS = 77
"""Tokens of a caption, as CLIP has them."""


class Phrases:
    """Numbered texts; number 0 is empty."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {"": 0}

    def number(self, text: str) -> int:
        """The number of a text, a new one if need be."""
        return self._numbers.setdefault(text, len(self._numbers))

    @property
    def texts(self) -> Sequence[str]:
        """All texts by number."""
        return tuple(self._numbers)

    def caption(self, slots: Sequence[int]) -> str:
        """Phrases as a person reads them."""
        texts = self.texts
        return " ".join(texts[slot] for slot in slots if slot).replace(" ,", ",").removeprefix(", ")


class Tokens:
    """The token ids of phrases. Words never span two phrases, so a caption's ids are its phrases' ids in a row."""

    def __init__(self, phrases: Phrases, tokenizer: Any, device: torch.device) -> None:
        found = tokenizer([*phrases.texts[1:]], add_special_tokens=False)["input_ids"]
        rows = [torch.tensor(ids, dtype=torch.long) for ids in ([], *found)]
        self._lengths = torch.tensor([len(row) for row in rows], device=device)
        self._ids = pad_sequence(rows, batch_first=True).to(device)
        self._begin, self._end = tokenizer.bos_token_id, tokenizer.eos_token_id

    def captions(self, slots: Tensor) -> Tensor:
        """Captions (B, slots) of phrase numbers as token ids (B, 77), cut off where they are longer."""
        lengths, count = self._lengths[slots], len(slots)
        within = torch.arange(self._ids.shape[1], device=slots.device)
        places = 1 + (lengths.cumsum(1) - lengths)[..., None] + within
        kept = (within < lengths[..., None]) & (places < POSITIONS - 1)
        places = torch.where(kept, places, POSITIONS)
        ids = torch.full((count, POSITIONS + 1), self._end, dtype=torch.long, device=slots.device)
        ids[:, 0] = self._begin
        return ids.scatter_(1, places.flatten(1), self._ids[slots].flatten(1))[:, :POSITIONS]
