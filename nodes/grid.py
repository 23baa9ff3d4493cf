"""Contact sheets: many pictures on one, with labels, as a sweep shows its cells."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Annotated

import PIL.Image
from annotated_types import Ge, Le
from PIL import ImageColor, ImageDraw, ImageFont

from engine.node import node
from nodes.types import Colour, Image, Pixels

MAX_PIXELS = 200_000_000
"""Largest sheet, in pixels, as for A1111's X/Y/Z plots."""
LEAST_SIZE = 12
"""Size of the letters, in px, that small cells start from."""
SMALLEST_SIZE = 8
"""Size of the letters, in px, below which a label is cut instead of shrunk."""

Columns = Annotated[int, Ge(0), Le(1000)]
"""How many cells stand in a row; 0 leaves it to the sheet."""


@node("image.grid", version=1, gathers=True)
def grid(
    images: tuple[Image, ...],
    columns: Columns = 0,
    *,
    x_labels: tuple[str, ...] = (),
    y_labels: tuple[str, ...] = (),
    title: str = "",
    margin: Pixels = 0,
    background: Colour = "#ffffff",
) -> Image:
    """Lay pictures out on one sheet, row by row, with labels above the columns and left of the rows.

    Cells have the largest width and height of the pictures, which stand in their middle, `margin` px apart. Without
    `columns` there are as many as x labels, or enough for the y labels, or, as on A1111's grids, round(sqrt(n)) rows.
    Labels wrap and shrink to fit; they are black, on a dark background white. Pillow's own font sets them: it knows
    ASCII. Batches are spread over cells where there are no labels, and refused where there are.
    """
    pictures = _spread(images, labelled=bool(x_labels or y_labels))
    across, down = arrangement(len(pictures), columns, len(x_labels), len(y_labels))
    cell = max(picture.width for picture in pictures), max(picture.height for picture in pictures)
    size = max(LEAST_SIZE, sum(cell) // 25)
    sheet = Sheet(
        columns=across,
        rows=down,
        cell=cell,
        margin=margin,
        title=fitted(title, size * 5 // 4, across * (cell[0] + margin) - margin, cell[1]),
        above=tuple(fitted(text, size, cell[0] - size // 2, cell[1]) for text in x_labels),
        beside=tuple(fitted(text, size, cell[0] * 3 // 4, cell[1] - size // 2) for text in y_labels),
    )
    return Image.of(sheet.drawn(pictures, background)).move(str(images[0].data.device))


@dataclass(frozen=True, slots=True)
class Label:
    """Lines of text, set centred, and the size of their letters in pixels."""

    lines: tuple[str, ...]
    size: int

    @property
    def width(self) -> int:
        """Width of the widest line in pixels."""
        return math.ceil(max((_font(self.size).getlength(line) for line in self.lines), default=0))

    @property
    def height(self) -> int:
        """Height of all lines in pixels."""
        return len(self.lines) * _leading(self.size)

    def write(self, pen: ImageDraw.ImageDraw, x: float, y: float, ink: str) -> None:
        """Write the lines around the point (`x`, `y`)."""
        for number, line in enumerate(self.lines):
            middle = y - self.height / 2 + (number + 0.5) * _leading(self.size)
            pen.text((x, middle), line, ink, _font(self.size), anchor="mm")


@dataclass(frozen=True, slots=True)
class Sheet:
    """Cells of one size in rows and columns, `margin` px apart, and the labels around them."""

    columns: int
    rows: int
    cell: tuple[int, int]
    margin: int
    title: Label
    above: tuple[Label, ...]
    beside: tuple[Label, ...]

    @property
    def left(self) -> int:
        """Where the first column starts, in pixels."""
        return _edge(self.beside, max((label.width for label in self.beside), default=0))

    @property
    def heading(self) -> int:
        """Height of the title's strip in pixels."""
        return _edge([self.title], self.title.height)

    @property
    def top(self) -> int:
        """Where the first row starts, in pixels."""
        return self.heading + _edge(self.above, max((label.height for label in self.above), default=0))

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) of the sheet in pixels."""
        x, y = self.corner(self.rows - 1, self.columns - 1)
        return x + self.cell[0], y + self.cell[1]

    def corner(self, row: int, column: int) -> tuple[int, int]:
        """The upper left pixel of a cell."""
        return (
            self.left + column * (self.cell[0] + self.margin),
            self.top + row * (self.cell[1] + self.margin),
        )

    def drawn(self, pictures: Sequence[PIL.Image.Image], background: str) -> PIL.Image.Image:
        """The sheet with its pictures, row by row."""
        if math.prod(self.size) > MAX_PIXELS:
            limit = f"more than {MAX_PIXELS // 1_000_000} megapixels"
            raise ValueError(
                f"the sheet would be {self.size[0]} x {self.size[1]} px, {limit}; resize the pictures first"
            )
        canvas = PIL.Image.new("RGB", self.size, background)
        for index, picture in enumerate(pictures):
            x, y = self.corner(*divmod(index, self.columns))
            canvas.paste(picture, (x + (self.cell[0] - picture.width) // 2, y + (self.cell[1] - picture.height) // 2))
        self._write(ImageDraw.Draw(canvas), _ink(background))
        return canvas

    def _write(self, pen: ImageDraw.ImageDraw, ink: str) -> None:
        self.title.write(pen, (self.left + self.size[0]) / 2, self.heading / 2, ink)
        for column, label in enumerate(self.above):
            x, _ = self.corner(0, column)
            label.write(pen, x + self.cell[0] / 2, (self.heading + self.top) / 2, ink)
        for row, label in enumerate(self.beside):
            _, y = self.corner(row, 0)
            label.write(pen, self.left / 2, y + self.cell[1] / 2, ink)


def arrangement(count: int, columns: int, x_labels: int, y_labels: int) -> tuple[int, int]:
    """(columns, rows) for `count` cells. Raises ValueError where there is not one label for each."""
    rows = y_labels or max(1, round(math.sqrt(count)))
    across = columns or x_labels or math.ceil(count / rows)
    down = math.ceil(count / across)
    if x_labels not in (0, across):
        raise ValueError(f"expected {across} x labels, one for each column, got {x_labels}")
    if y_labels not in (0, down):
        raise ValueError(f"expected {down} y labels, one for each row, got {y_labels}")
    return across, down


def fitted(text: str, size: int, width: int, height: int) -> Label:
    """`text` in lines of whole words within `width` x `height` px, its letters `size` px high or as small as needed.

    In the smallest letters, words wider than a line are broken, and what is too high ends in an ellipsis.
    """
    for smaller in range(size, SMALLEST_SIZE, -1):
        label = Label(_wrapped(text.split(), " ", smaller, width), smaller)
        if label.width <= width and label.height <= height:
            return label
    pieces = [piece for word in text.split() for piece in _wrapped(word, "", SMALLEST_SIZE, width)]
    return Label(_cut(_wrapped(pieces, " ", SMALLEST_SIZE, width), width, height), SMALLEST_SIZE)


def _wrapped(parts: Iterable[str], joint: str, size: int, width: int) -> tuple[str, ...]:
    lines: list[str] = []
    for part in parts:
        longer = f"{lines[-1]}{joint}{part}" if lines else part
        if lines and _font(size).getlength(longer) <= width:
            lines[-1] = longer
        else:
            lines.append(part)
    return tuple(lines)


def _cut(lines: tuple[str, ...], width: int, height: int) -> tuple[str, ...]:
    room = max(1, height // _leading(SMALLEST_SIZE))
    if len(lines) <= room:
        return lines
    last = lines[room - 1]
    while last and _font(SMALLEST_SIZE).getlength(f"{last}…") > width:
        last = last[:-1]
    return (*lines[: room - 1], f"{last}…")


def _spread(images: Sequence[Image], *, labelled: bool) -> list[PIL.Image.Image]:
    """Every picture of every batch, in order."""
    if not images:
        raise ValueError("a sheet needs at least one picture")
    largest = max(len(image.data) for image in images)
    if labelled and largest > 1:
        raise ValueError(f"a batch of {largest} does not fit under one label; pick a picture or leave the labels out")
    return [image.pil(index) for image in images for index in range(len(image.data))]


def _edge(labels: Iterable[Label], extent: int) -> int:
    """The strip that labels of this extent need: half a letter of space on both sides, nothing where they are empty."""
    return extent + max((label.size for label in labels if label.lines), default=0)


def _ink(background: str) -> str:
    red, green, blue = ImageColor.getrgb(background)[:3]
    return "black" if red + green + blue > 3 * 255 // 2 else "white"


def _leading(size: int) -> int:
    return round(size * 1.25)


@cache
def _font(size: int) -> ImageFont.FreeTypeFont:
    font = ImageFont.load_default(size)
    if not isinstance(font, ImageFont.FreeTypeFont):
        raise TypeError("labels need a Pillow with FreeType")
    return font
