"""Tiles: a tensor worked on piece by piece, where the whole would not fit into memory.

Neighbours overlap. What a convolution makes of the border of a tile is wrong, as it sees zeros where the picture goes
on; so the outer quarter of an overlap counts for nothing, and in the half between one tile fades into the other. The
result is that of the whole where nothing reaches farther than that quarter. What looks at a whole picture at once, such
as attention, sees a tile instead, and so tiles differ a little from one another; fading hides the seams.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise, product

import torch
from torch import Tensor

Progress = Callable[[int, int], None]
"""Called after each tile with how many are done, and how many there are."""


@dataclass(frozen=True, slots=True)
class Tiling:
    """The side of a square tile in px, 0 for the whole picture, and how much of it its neighbour covers at least."""

    side: int = 0
    overlap: int = 0

    def cells(self, grain: int) -> Tiling:
        """The same in cells of `grain` px: the side rounded down to whole cells, the overlap up."""
        return Tiling(self.side // grain, -(-self.overlap // grain))

    def covers(self, length: int) -> bool:
        """Whether one tile is enough for something whose longest side is `length`."""
        return self.side == 0 or length <= self.side


WHOLE = Tiling()
"""No tiles."""


def starts(length: int, tile: int, overlap: int) -> list[int]:
    """Where tiles begin along a line: as few as overlap by `overlap`, spread evenly from 0 to the very end."""
    if overlap >= tile:
        raise ValueError(f"an overlap of {overlap} px leaves nothing of a tile of {tile} px: it must be smaller")
    gaps = -(-(length - overlap) // (tile - overlap)) - 1
    return [0] if gaps < 1 else [index * (length - tile) // gaps for index in range(gaps + 1)]


def shares(places: Sequence[int], tile: int, length: int) -> list[Tensor]:
    """How much each of the tiles that begin at `places` counts along a line of `length`: everywhere 1 in all."""
    counts = torch.zeros(len(places), length)
    for row, place in zip(counts, places, strict=True):
        row[place : place + tile] = 1
    for left, (here, there) in enumerate(pairwise(places)):
        fade = _fade(here + tile - there)
        counts[left + 1, there : here + tile] *= fade
        counts[left, there : here + tile] *= 1 - fade
    counts /= counts.sum(0)
    return [row[place : place + tile] for row, place in zip(counts, places, strict=True)]


def tiled(
    data: Tensor,
    run: Callable[[Tensor], Tensor],
    tiling: Tiling,
    *,
    grain: tuple[int, int] = (1, 1),
    progress: Progress | None = None,
) -> Tensor:
    """Run on overlapping tiles of `data`, (N, C, H, W), and join the results, float32 (N, C', H', W').

    `tiling` is in cells; one is `grain[0]` wide in the data and `grain[1]` in the result. Everything at once where one
    tile covers it.
    """
    taken, given = grain
    sides = [length // taken for length in data.shape[2:]]
    if tiling.covers(max(sides)):
        return run(data).float()
    spans = [_spans(length, tiling, given) for length in sides]
    joined: Tensor | None = None
    boxes = list(product(*spans))
    for done, ((y, tall, down), (x, wide, across)) in enumerate(boxes, 1):
        part = data[..., y * taken : (y + tall) * taken, x * taken : (x + wide) * taken]
        made = run(part.contiguous()).float()
        if joined is None:
            joined = made.new_zeros(*made.shape[:2], *(length * given for length in sides))
        weight = (down[:, None] * across).to(made.device)
        joined[..., y * given : (y + tall) * given, x * given : (x + wide) * given] += made * weight
        if progress is not None:
            progress(done, len(boxes))
    assert joined is not None
    return joined


def _fade(overlap: int) -> Tensor:
    """From 0 to 1: nothing for a quarter, a ramp over half, all for the last quarter."""
    place = torch.arange(overlap) + 0.5
    return (2 * place / overlap - 0.5).clamp(0, 1)


def _spans(length: int, tiling: Tiling, given: int) -> list[tuple[int, int, Tensor]]:
    """Where each tile begins along a line and how long it is, in cells, and how much each of its results counts."""
    tile = min(tiling.side, length)
    places = starts(length, tile, tiling.overlap) if tile < length else [0]
    weights = shares([place * given for place in places], tile * given, length * given)
    return [(place, tile, weight) for place, weight in zip(places, weights, strict=True)]
