"""Pictures that come from outside: what they claim to be is checked before anything is decoded, then all is decoded."""

import contextlib
import mmap
import re
import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from PIL.BmpImagePlugin import BmpImageFile
from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.WebPImagePlugin import WebPImageFile

from server.problem import Refusal

PARTS = 10_000
"""Chunks of a PNG or segments of a JPEG: an empty one takes far more memory than it takes in the file."""
SCANS = 100
"""Passes of a progressive JPEG: encoders write about ten, and a few bytes make one that touches the whole picture."""
_SIGNATURE = 32
"""Bytes by which a format is known."""
_SEGMENT, _SCAN = re.compile(rb"\xff[\xe0-\xef\xfe]"), re.compile(rb"\xff\xda")
_RUN_LENGTHS = (1, 2)
"""Values of a BMP's compression field with which a decoder in Python would take minutes."""


@dataclass(frozen=True, slots=True)
class Picture:
    """What a file turned out to be: its MIME type, and its size in pixels as stored."""

    type: str
    width: int
    height: int


def examine(path: Path, pixels: int) -> Picture:
    """Decode a whole file that nobody trusts. Blocks: the place for it is a worker thread.

    Refuses with `limit-pixels` what has more than `pixels`, before memory is taken for them, and with
    `unreadable-picture` what is not exactly one undamaged PNG, JPEG, WebP or BMP picture.
    """
    with path.open("rb") as stream:
        form = _form(stream.read(_SIGNATURE))
        with _decoding(form.name), mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
            if size := form.check(data):
                _check_size(*size, pixels)
            stream.seek(0)
            with form.open(stream) as picture:
                _check_size(*picture.size, pixels)
                _check_single(picture, form.name)
                picture.load()
                return Picture(form.type, *picture.size)


def _check_chunks(data: mmap.mmap) -> None:
    """Walk a PNG to its end: every chunk is whole and has its checksum."""
    position = 8
    for _ in range(PARTS):
        length, kind = struct.unpack_from(">I4s", data, position)
        position += 12 + length
        if zlib.crc32(data[position - length - 8 : position - 4]) != struct.unpack_from(">I", data, position - 4)[0]:
            raise ValueError(f"checksum of chunk {kind!r} differs")
        if kind == b"IEND":
            return
    raise ValueError(f"more than {PARTS} chunks")


def _check_segments(data: mmap.mmap) -> None:
    for pattern, most, name in ((_SEGMENT, PARTS, "segments"), (_SCAN, SCANS, "scans")):
        if sum(1 for _ in islice(pattern.finditer(data), most + 1)) > most:
            raise ValueError(f"more than {most} {name}")


def _canvas(data: mmap.mmap) -> tuple[int, int]:
    """Width and height of a WebP, whose decoder takes memory for them as soon as it is made."""
    match data[12:16]:
        case b"VP8X":
            return _little(data[24:27]) + 1, _little(data[27:30]) + 1
        case b"VP8L":
            packed = _little(data[21:25])
            return (packed & 0x3FFF) + 1, (packed >> 14 & 0x3FFF) + 1
        case b"VP8 ":
            return _little(data[26:28]) & 0x3FFF, _little(data[28:30]) & 0x3FFF
        case kind:
            raise ValueError(f"chunk {kind!r} where the picture should begin")


def _check_compression(data: mmap.mmap) -> None:
    if _little(data[14:18]) > 12 and _little(data[30:34]) in _RUN_LENGTHS:
        raise ValueError("run-length encoding is not read")


def _check_size(width: int, height: int, pixels: int) -> None:
    if width * height > pixels:
        detail = f"The picture has {width} x {height} pixels; {pixels} is the most (limits.pixels). Send a smaller one."
        raise Refusal("limit-pixels", detail, setting="limits.pixels", limit=pixels)


def _check_single(picture: ImageFile, name: str) -> None:
    if (frames := getattr(picture, "n_frames", 1)) != 1:
        raise Refusal("unreadable-picture", f"This {name} has {frames} frames. Send one of them as a still picture.")


class _Form(NamedTuple):
    """A format that is read. `check` looks for what would harm the decoder that `open` makes."""

    name: str
    type: str
    signature: re.Pattern[bytes]
    check: Callable[[mmap.mmap], tuple[int, int] | None]
    open: Callable[..., ImageFile]


_FORMS = (
    _Form("PNG", "image/png", re.compile(rb"\x89PNG\r\n\x1a\n"), _check_chunks, PngImageFile),
    _Form("JPEG", "image/jpeg", re.compile(rb"\xff\xd8\xff"), _check_segments, JpegImageFile),
    _Form("WebP", "image/webp", re.compile(rb"RIFF.{4}WEBP", re.DOTALL), _canvas, WebPImageFile),
    _Form("BMP", "image/bmp", re.compile(rb"BM"), _check_compression, BmpImageFile),
)


def _form(start: bytes) -> _Form:
    """Format of a file that starts so; what stands further in does not matter."""
    for form in _FORMS:
        if form.signature.match(start):
            return form
    known = ", ".join(form.name for form in _FORMS)
    begins = f"begins with {start[:8].hex(' ')}" if start else "is empty"
    raise Refusal(
        "unreadable-picture", f"Expected a picture ({known}), but the file {begins}. Send one of these formats."
    )


@contextlib.contextmanager
def _decoding(name: str) -> Iterator[None]:
    """Whatever reading foreign bytes raises means one thing."""
    try:
        yield
    except Refusal:
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.errno is not None:  # the disk, not the picture
            raise
        detail = (
            f"The {name} is damaged, incomplete or made to do harm ({error}). Save the picture again and send that."
        )
        raise Refusal("unreadable-picture", detail) from error


def _little(data: bytes) -> int:
    return int.from_bytes(data, "little")
