"""What prompts mean together, where, and when."""

import math
from dataclasses import replace
from typing import Annotated, Literal

import torch
from annotated_types import Ge, Le

from engine.node import node
from nodes.diffusion.prompt import Part
from nodes.diffusion.scope import Area, Sizes
from nodes.types import MAX_SIDE, Conditioning, Fraction, Mask

Strength = Annotated[float, Ge(0), Le(10)]
"""How much a prompt counts where it has a place, against all others there."""
Length = Annotated[float, Ge(0), Le(MAX_SIDE)]
"""Pixels, or a share of a side."""
OwnSide = Annotated[int, Ge(0), Le(MAX_SIDE)]
"""A side in pixels; 0 is the picture's own."""


@node("conditioning.combine", version=2)
def combine(a: Conditioning, b: Conditioning, share: Fraction = 0.5) -> Conditioning:
    """Let a picture follow two prompts at once: the mean of what is predicted under each, `share` of it under `b`.

    It is AND with weights whose sum is 1. Of several prompts combine two by 1/2, the third by 1/3 and so on. Prompts
    that have places, from `conditioning.area` or `conditioning.mask`, count against each other cell by cell.
    """
    a, b = _alike(a, b)
    tokens = math.lcm(a.data.shape[1], b.data.shape[1])
    data = torch.cat([_repeated(a.data, tokens), _repeated(b.data, tokens)])
    ours = (replace(part, weight=part.weight * (1 - share)) for part in a.parts)
    theirs = (_moved(part, len(a.data), len(a.masks), part.weight * share) for part in b.parts)
    return Conditioning(data, (*ours, *theirs), torch.cat([a.pooled, b.pooled]), a.masks + b.masks)


@node("conditioning.average", version=1)
def average(a: Conditioning, b: Conditioning, share: Fraction = 0.5) -> Conditioning:
    """Mix the meanings of two prompts into one, `share` of it from `b`; unlike `combine` it costs one prediction.

    Every text of `a` is mixed with `b`, which must be one text: no AND, no editing. It is cut to the length of `a`, or
    filled up with zeros. Places, spans and sizes are those of `a`.
    """
    a, b = _alike(a, b)
    if len(b.data) != 1:
        raise ValueError(f"`b` stands for {len(b.data)} texts, expected one: write it without AND and without editing")
    other = b.data[:, : a.data.shape[1]]
    other = torch.cat([other, other.new_zeros(1, a.data.shape[1] - other.shape[1], other.shape[2])], dim=1)
    return replace(a, data=a.data * (1 - share) + other * share, pooled=a.pooled * (1 - share) + b.pooled[:1] * share)


@node("conditioning.concat", version=1)
def concat(a: Conditioning, b: Conditioning) -> Conditioning:
    """Let a picture follow two prompts as one text, but encoded apart: the tokens of `b` stand after those of `a`.

    `b` must be one text: no AND, no editing. All else is that of `a`.
    """
    a, b = _alike(a, b)
    if len(b.data) != 1:
        raise ValueError(f"`b` stands for {len(b.data)} texts, expected one: write it without AND and without editing")
    return replace(a, data=torch.cat([a.data, b.data.expand(len(a.data), -1, -1)], dim=1))


@node("conditioning.zero", version=1)
def zero(conditioning: Conditioning) -> Conditioning:
    """Take all meaning out of a prompt: states of nothing but zeros, as SDXL was trained to take for no prompt."""
    data, pooled = torch.zeros_like(conditioning.data), torch.zeros_like(conditioning.pooled)
    return replace(conditioning, data=data, pooled=pooled)


@node("conditioning.area", version=1)
def area(
    conditioning: Conditioning,
    *,
    x: Length = 0.0,
    y: Length = 0.0,
    width: Length = 0.0,
    height: Length = 0.0,
    unit: Literal["px", "share"] = "px",
    strength: Strength = 1.0,
) -> Conditioning:
    """Let a prompt count in a rectangle only, in pixels or in shares of the picture's sides; combine it with others.

    The UNet sees nothing else than the rectangle there. Towards edges inside of the picture the prompt fades out, over
    a quarter of the rectangle or 64 px. Where nothing of any prompt counts, nothing is drawn: put one that has no place
    beside it. A width and height of 0 are all of the picture, which leaves the `strength` alone.
    """
    if (width == 0) != (height == 0):
        raise ValueError(f"the area is {width:g} x {height:g}: expected two sides, or 0 x 0 for all of the picture")
    if unit == "share" and max(x + width, y + height) > 1:
        raise ValueError(f"the area ends at {x + width:g}, {y + height:g}: expected shares up to 1, or the unit px")
    place = Area(x, y, width, height, share=unit == "share") if width else None
    return conditioning.scoped(area=place, strength=strength)


@node("conditioning.mask", version=1)
def mask(conditioning: Conditioning, mask: Mask, *, strength: Strength = 1.0, bounds: bool = False) -> Conditioning:
    """Let a prompt count where a mask is white, in its greys less; combine it with others.

    The mask is stretched over the picture. With `bounds` the UNet sees nothing else than the box around it.
    """
    if len(mask.data) != 1:
        raise ValueError(f"there are {len(mask.data)} masks, expected one")
    number = len(conditioning.masks)
    placed = conditioning.scoped(mask=number, bounds=bounds, strength=strength)
    return replace(placed, masks=(*conditioning.masks, mask.data.to(conditioning.data.device)))


@node("conditioning.span", version=1)
def span(conditioning: Conditioning, start: Fraction = 0.0, end: Fraction = 1.0) -> Conditioning:
    """Let a prompt count from a share of the noise's way down to another, by the model's timesteps; 0 is the top.

    Other prompts must count before and after, so combine it with them.
    """
    if start >= end:
        raise ValueError(f"the span begins at {start:g} and ends at {end:g}: expected an end after the start")
    return conditioning.scoped(start=start, end=end)


@node("conditioning.sizes", version=1)
def sizes(
    conditioning: Conditioning,
    *,
    width: OwnSide = 0,
    height: OwnSide = 0,
    crop_x: OwnSide = 0,
    crop_y: OwnSide = 0,
    target_width: OwnSide = 0,
    target_height: OwnSide = 0,
    score: Annotated[float, Ge(0), Le(10)] | None = None,
) -> Conditioning:
    """Tell SDXL what picture it is to draw one like: its size before it was cropped, where, and to which size.

    0 is the picture's own size. `score` is how beautiful SDXL's refiner is to think it is, by default 6, and 2.5 for a
    negative prompt. Other models take none of this.
    """
    return conditioning.scoped(sizes=Sizes(width, height, crop_x, crop_y, target_width, target_height, score))


def _alike(a: Conditioning, b: Conditioning) -> tuple[Conditioning, Conditioning]:
    """Both on one device; refuses those of different models."""
    widths = [(each.data.shape[2], each.pooled.shape[1]) for each in (a, b)]
    if widths[0] != widths[1]:
        told = " and ".join(str(width) if not pooled else f"{width} + {pooled}" for width, pooled in widths)
        raise ValueError(f"conditionings of the widths {told} are of different models; encode both with one")
    device = a.data.device
    masks = tuple(each.to(device) for each in b.masks)
    return a, replace(b, data=b.data.to(device), pooled=b.pooled.to(device), masks=masks)


def _moved(part: Part, rows: int, masks: int, weight: float) -> Part:
    """A part whose rows and mask stand behind others."""
    number = None if part.scope.mask is None else part.scope.mask + masks
    named = tuple((text, row + rows) for text, row in part.rows)
    return replace(part, weight=weight, rows=named, scope=replace(part.scope, mask=number))


def _repeated(data: torch.Tensor, tokens: int) -> torch.Tensor:
    """The same states over and over up to a length in tokens, which attention weighs like one of them."""
    return data.repeat(1, tokens // data.shape[1], 1)
