"""PNG files, written several times as fast as Pillow writes them and about as small.

Of PNG's five filters two are taken that numpy makes of a whole band at once: each row is told from its left neighbours
or from the row above, whichever leaves smaller numbers (the heuristic of the PNG specification, section 12.7). What is
left of a photograph hardly repeats itself, so zlib is not made to search for repetitions: only runs and frequencies
count (`Z_RLE`, which zlib has for PNG).
"""

import struct
import zlib
from collections.abc import Iterator, Mapping
from typing import TypeAlias

import numpy as np
import PIL.Image
from numpy.typing import NDArray

SIGNATURE = b"\x89PNG\r\n\x1a\n"
BAND = 1 << 20
"""Bytes of pixels that are filtered and compressed at a time, so that a large picture takes little memory beside it."""
LEFT, UP = 1, 2
"""The filters' numbers in the file."""
COLOURS = {"L": 0, "RGB": 2}
"""PNG's colour types by Pillow's modes."""

Rows: TypeAlias = NDArray[np.uint8]
"""Rows of a picture as bytes, H x (W * channels)."""


def encode(picture: PIL.Image.Image, texts: Mapping[str, str]) -> bytes:
    """A picture of mode L or RGB as a PNG, with `texts` by keyword (iTXt, UTF-8). The same input gives the same bytes.

    Raises ValueError for another mode.
    """
    if picture.mode not in COLOURS:
        raise ValueError(f"expected a picture of mode {' or '.join(COLOURS)}, got {picture.mode}; convert it before")
    header = struct.pack(">IIBBBBB", *picture.size, 8, COLOURS[picture.mode], 0, 0, 0)
    written = (_chunk(b"iTXt", _text(keyword, text)) for keyword, text in texts.items())
    pixels = _chunk(b"IDAT", b"".join(_compressed(picture)))
    return b"".join([SIGNATURE, _chunk(b"IHDR", header), *written, pixels, _chunk(b"IEND", b"")])


def _chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(data, zlib.crc32(name)))


def _text(keyword: str, text: str) -> bytes:
    """Neither compressed nor in a language that is named."""
    return keyword.encode("latin-1") + b"\0\0\0\0\0" + text.encode()


def _compressed(picture: PIL.Image.Image) -> Iterator[bytes]:
    """The filtered rows as one zlib stream."""
    channels = len(picture.getbands())
    rows = np.asarray(picture).reshape(picture.height, -1)
    packer = zlib.compressobj(1, zlib.DEFLATED, zlib.MAX_WBITS, zlib.DEF_MEM_LEVEL, zlib.Z_RLE)
    band = max(1, BAND // rows.shape[1])
    for start in range(0, len(rows), band):
        above = rows[start - 1] if start else np.zeros_like(rows[0])
        yield packer.compress(_filtered(rows[start : start + band], above, channels).data)
    yield packer.flush()


def _filtered(rows: Rows, above: Rows, channels: int) -> Rows:
    """Rows as they stand in the file: a filter's number, and what is left of the bytes."""
    out = np.empty((len(rows), 1 + rows.shape[1]), np.uint8)
    out[:, 0] = LEFT
    left = out[:, 1:]
    left[:, :channels] = rows[:, :channels]
    np.subtract(rows[:, channels:], rows[:, :-channels], out=left[:, channels:])
    up = np.empty_like(rows)
    np.subtract(rows[0], above, out=up[0])
    np.subtract(rows[1:], rows[:-1], out=up[1:])
    smaller = _sizes(up) < _sizes(left)
    out[smaller, 0] = UP
    left[smaller] = up[smaller]
    return out


def _sizes(rows: Rows) -> NDArray[np.uint32]:
    """The sum over each row of its bytes' distances from 0, where 255 is -1."""
    sizes: NDArray[np.uint32] = np.abs(rows.view(np.int8)).view(np.uint8).sum(1, dtype=np.uint32)
    return sizes
