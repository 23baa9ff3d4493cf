"""Tiles: a picture cut into pieces that overlap, and put together again."""

from collections.abc import Sequence
from typing import Annotated, NamedTuple

import torch
from annotated_types import Ge, Le

from engine.node import node
from engine.param import Unit
from engine.socket import Int
from nodes.diffusion.tiling import starts
from nodes.fit import Size, px
from nodes.image import blend
from nodes.types import MAX_SIDE, Image, Side

Tile = Annotated[int, Ge(0), Le(MAX_SIDE), Unit("px")]
"""Side of a square tile that is worked on at once; 0 is the whole picture."""
Overlap = Annotated[int, Ge(0), Le(2048), Unit("px")]
"""How much of a tile its neighbour covers at least."""


class Tiles(NamedTuple):
    """A batch of tiles, row by row and picture after picture, and how many there are."""

    out: Image
    count: Int  # type: ignore[assignment]  # a port, not the method of tuples


@node("image.tiles", version=1)
def tiles(image: Image, width: Side = 512, height: Side = 512, overlap: Overlap = 64) -> Tiles:
    """Cut a picture into tiles of one size that overlap by at least `overlap` px and are spread evenly.

    The grid of A1111's SD upscale. A picture that is smaller than a tile is continued by its mirror image.
    """
    whole = _mirrored(_mirrored(image.data, 2, height), 3, width)
    canvas = (whole.shape[3], whole.shape[2])
    boxes = corners(canvas, (width, height), overlap)
    cut = [whole[..., y : y + height, x : x + width] for x, y in boxes]
    return Tiles(Image(torch.stack(cut, dim=1).flatten(0, 1)), Int(len(boxes) * len(image.data)))


@node("image.untile", version=1)
def untile(tiles: Image, image: Image, overlap: Overlap = 64) -> Image:
    """Put tiles together again, at the size of the picture that was cut and with the overlap that it was cut with.

    Along the first `overlap` px every tile fades in over its left neighbour, and every row of tiles over the one above.
    Tiles that nobody changed give the picture back.
    """
    width, height = tiles.size
    canvas = max(image.size[0], width), max(image.size[1], height)
    columns, rows = starts(canvas[0], width, overlap), starts(canvas[1], height, overlap)
    expected = len(rows) * len(columns) * len(image.data)
    if len(tiles.data) != expected:
        raise ValueError(
            f"got {len(tiles.data)} tiles of {px(tiles.size)}: expected {expected} for {len(image.data)} of "
            f"{px(image.size)} with an overlap of {overlap} px; link the picture and the overlap that were cut"
        )
    grid = tiles.data.reshape(len(image.data), len(rows), len(columns), *tiles.data.shape[1:])
    strips = [_joined(row.unbind(1), columns, overlap, 3) for row in grid.unbind(1)]
    whole = _joined(strips, rows, overlap, 2)
    return Image(whole[..., : image.size[1], : image.size[0]].contiguous())


def corners(canvas: Size, tile: Size, overlap: int) -> list[tuple[int, int]]:
    """Upper left corners of the tiles, row by row."""
    columns, rows = (starts(*sides, overlap) for sides in zip(canvas, tile, strict=True))
    return [(x, y) for y in rows for x in columns]


def _joined(parts: Sequence[torch.Tensor], places: Sequence[int], overlap: int, dim: int) -> torch.Tensor:
    """Parts that begin at `places` along `dim`, each faded in over what lies before it."""
    ramp = (torch.arange(overlap, device=parts[0].device) * 255 // max(overlap, 1)).to(torch.uint8)
    share = ramp[:, None] if dim == 2 else ramp
    whole = parts[0]
    for part, place in zip(parts[1:], places[1:], strict=True):
        faded = blend(whole.narrow(dim, place, overlap), part.narrow(dim, 0, overlap), share)
        rest = part.narrow(dim, overlap, part.shape[dim] - overlap)
        whole = torch.cat([whole.narrow(dim, 0, place), faded, rest], dim)
    return whole


def _mirrored(data: torch.Tensor, dim: int, length: int) -> torch.Tensor:
    """`data` continued along `dim` to at least `length`: 0 1 2 | 2 1 0 | 0 1 2, over and over."""
    side = data.shape[dim]
    if side >= length:
        return data
    place = torch.arange(length, device=data.device) % (2 * side)
    return data.index_select(dim, torch.minimum(place, 2 * side - 1 - place))
