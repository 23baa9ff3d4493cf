"""Writing a picture of 1024 x 1024 pixels as a PNG."""

import io
from collections.abc import Callable, Iterator
from functools import partial

import numpy as np
import PIL.Image
import PIL.ImageDraw

from benchmarks.measure import Answer, Beside, Goal, Row, medians, timed
from calotype import png

QUESTION = "How long does it take to write a picture of 1024 x 1024 pixels, and how large is the file?"
ROUNDS = 7
SIDE = 1024
LIMIT = 1 / 3
SCALES = range(2, 9)
"""A photograph's structures, from an eighth to a four-hundredth of its side, as powers of two."""
GRAIN = 1.5
"""The noise of a photograph, in levels."""


def answer() -> Answer:
    pictures = {"a photograph": photograph(), "a flat drawing": drawing()}
    rows = [row for name, picture in pictures.items() for row in _rows(name, picture)]
    return Answer(QUESTION, rows, notes=_notes())


def photograph() -> PIL.Image.Image:
    """Random clouds of all sizes, the small ones faint, under a little noise: about what a photograph compresses to."""
    random = np.random.default_rng(0)
    light = np.zeros((SIDE, SIDE, 3), np.float32)
    for scale in SCALES:
        cells = 1 << scale
        shades = random.normal(size=(cells, cells, 1)) + 0.4 * random.normal(size=(cells, cells, 3))
        light += np.stack([_enlarged(shades[..., colour]) for colour in range(3)], -1) / cells
    light = (light - light.min()) / np.ptp(light) * 255 + random.normal(size=light.shape) * GRAIN
    return PIL.Image.fromarray(light.clip(0, 255).astype(np.uint8))


def drawing() -> PIL.Image.Image:
    """Outlined ellipses in plain colours."""
    picture = PIL.Image.new("RGB", (SIDE, SIDE), "#3b6ea5")
    pen = PIL.ImageDraw.Draw(picture)
    for number in range(40):
        left, top = number * 20, number * 17
        fill = (number * 6 % 256, number * 31 % 256, 200)
        pen.ellipse((left, top, left + 200, top + 150), fill=fill, outline="black", width=4)
    return picture


def _enlarged(shades: np.ndarray) -> np.ndarray:
    small = PIL.Image.fromarray(shades.astype(np.float32))
    return np.asarray(small.resize((SIDE, SIDE), PIL.Image.Resampling.BICUBIC))


def _rows(name: str, picture: PIL.Image.Image) -> Iterator[Row]:
    ways: dict[str, Callable[[], bytes]] = {
        "ours": partial(png.encode, picture, {}),
        "Pillow's default": partial(_saved, picture),
        "Pillow, compress_level=1": partial(_saved, picture, compress_level=1),
    }
    costs = medians({way: partial(timed, write) for way, write in ways.items()}, ROUNDS)
    sizes = {way: len(write()) for way, write in ways.items()}
    for peer in list(ways)[1:]:
        goal = Goal(LIMIT, of="ratio") if peer == "Pillow's default" else None
        yield Row(f"{name}: written", costs["ours"], Beside(peer, costs[peer]), goal)
        yield Row(f"{name}: kB", sizes["ours"] / 1e3, Beside(peer, sizes[peer] / 1e3), counted=True)


def _saved(picture: PIL.Image.Image, **options: int) -> bytes:
    stream = io.BytesIO()
    picture.save(stream, "PNG", **options)
    return stream.getvalue()


def _notes() -> tuple[str, ...]:
    return (
        "Both files hold the same pixels, and any program reads them.",
        (
            "Nobody waits for it: the service writes pictures while the next run samples, the command line writes "
            "several at a time, one per core."
        ),
    )
