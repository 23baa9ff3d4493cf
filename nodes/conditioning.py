"""What prompts mean together."""

import math
from dataclasses import replace

import torch

from engine.node import node
from nodes.types import Conditioning, Fraction


@node("conditioning.combine", version=1)
def combine(a: Conditioning, b: Conditioning, share: Fraction = 0.5) -> Conditioning:
    """Let a picture follow two prompts at once: the mean of what is predicted under each, `share` of it under `b`.

    It is AND with weights whose sum is 1. Of several prompts combine two by 1/2, the third by 1/3 and so on.
    """
    if a.data.shape[2] != b.data.shape[2]:
        widths = f"{a.data.shape[2]} and {b.data.shape[2]}"
        raise ValueError(f"conditionings of the widths {widths} are of different models; encode both with one")
    tokens = math.lcm(a.data.shape[1], b.data.shape[1])
    data = torch.cat([_repeated(a.data, tokens), _repeated(b.data.to(a.data.device), tokens)])
    ours = (replace(part, weight=part.weight * (1 - share)) for part in a.parts)
    moved = (tuple((text, row + len(a.data)) for text, row in part.rows) for part in b.parts)
    theirs = (replace(part, weight=part.weight * share, rows=rows) for part, rows in zip(b.parts, moved, strict=True))
    return Conditioning(data, (*ours, *theirs))


def _repeated(data: torch.Tensor, tokens: int) -> torch.Tensor:
    """The same states over and over up to a length in tokens, which attention weighs like one of them."""
    return data.repeat(1, tokens // data.shape[1], 1)
