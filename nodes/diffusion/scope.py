"""Scopes: where on the picture, when along the noise, and for which size a prompt counts."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from nodes.diffusion.table import NoiseSchedule

FEATHER = 8
"""Latent cells over which a prompt fades in at an edge of its area."""
SMALLEST = 8
"""Latent cells that the box around a mask has at least along each side."""
POSITIVE_SCORE, NEGATIVE_SCORE = 6.0, 2.5
"""What SDXL's refiner is told of the beauty of pictures where a prompt says nothing."""


@dataclass(frozen=True, slots=True)
class Area:
    """A rectangle, in pixels, or with `share` in shares of the picture's sides."""

    x: float
    y: float
    width: float
    height: float
    share: bool = False

    def box(self, size: tuple[int, int], downscale: int) -> "Box":
        """The rectangle on a latent of `size` (h, w) cells, cut at its edges; at least one cell."""
        sides = size[1], size[0]
        if self.share:
            x, y = (round(part * side) for part, side in zip((self.x, self.y), sides, strict=True))
            width, height = (
                max(1, round(part * side)) for part, side in zip((self.width, self.height), sides, strict=True)
            )
        else:
            x, y, width, height = (int(part) // downscale for part in (self.x, self.y, self.width, self.height))
        x, y = min(x, sides[0] - 1), min(y, sides[1] - 1)
        return Box(x, y, max(1, min(width, sides[0] - x)), max(1, min(height, sides[1] - y)))


@dataclass(frozen=True, slots=True)
class Box:
    """A rectangle of latent cells."""

    x: int
    y: int
    width: int
    height: int

    def cut(self, data: Tensor, cells: int = 1) -> Tensor:
        """What lies in it of (..., h, w), where `cells` values of the data stand for one cell along each side."""
        rows = slice(self.y * cells, (self.y + self.height) * cells)
        return data[..., rows, self.x * cells : (self.x + self.width) * cells]

    def within(self, size: tuple[int, int]) -> bool:
        """Whether it is smaller than a latent of `size` (h, w)."""
        return (self.height, self.width) != size

    def feather(self, size: tuple[int, int]) -> Tensor:
        """How much a prompt counts in each of its cells, (1, 1, height, width): it fades in at edges within `size`.

        ComfyUI's: evenly over up to `FEATHER` cells, at most a quarter of a side.
        """
        share = torch.ones(1, 1, self.height, self.width)
        reach = FEATHER
        for axis, length, start, whole in ((2, self.height, self.y, size[0]), (3, self.width, self.x, size[1])):
            reach = min(reach, length // 4)
            for step in range(reach):
                for place, inner in ((step, start > 0), (length - 1 - step, start + length < whole)):
                    if inner:
                        share.narrow(axis, place, 1).mul_((step + 1) / reach)
        return share


@dataclass(frozen=True, slots=True)
class Sizes:
    """What SDXL is told of the picture that it is to look like one of, in pixels; a size of 0 is the picture's own.

    `width` and `height` before it was cropped at (`crop_x`, `crop_y`) to the target. `score` is the refiner's beauty;
    None is 6 for a prompt and 2.5 for a negative one.
    """

    width: int = 0
    height: int = 0
    crop_x: int = 0
    crop_y: int = 0
    target_width: int = 0
    target_height: int = 0
    score: float | None = None

    def numbers(self, count: int, size: tuple[int, int], *, negative: bool) -> tuple[float, ...]:
        """The `count` numbers that a UNet takes for a picture of `size` (height, width) in px: 6, or a refiner's 5."""
        height, width = size
        begin = (self.height or height, self.width or width, self.crop_y, self.crop_x)
        if count == 5:
            usual = NEGATIVE_SCORE if negative else POSITIVE_SCORE
            return (*map(float, begin), usual if self.score is None else self.score)
        return (*map(float, begin), float(self.target_height or height), float(self.target_width or width))


@dataclass(frozen=True, slots=True)
class Scope:
    """Where, when and for which size a prompt counts; by default everywhere, always, and for the picture's own.

    `mask` is the number of one of its conditioning's masks, with `bounds` the box around it is its area. Where prompts
    have a place they count by `strength` times the level of the mask, against all others there. `start` and `end` are
    shares of the noise's way down, 0 at the top.
    """

    area: Area | None = None
    mask: int | None = None
    bounds: bool = False
    strength: float = 1.0
    start: float = 0.0
    end: float = 1.0
    sizes: Sizes = Sizes()

    @property
    def placed(self) -> bool:
        """Whether the prompt has a place of its own, or a strength."""
        return self.area is not None or self.mask is not None or self.strength != 1

    @property
    def relative(self) -> bool:
        """Whether it counts against those others that count where and when it does."""
        return self.placed or (self.start, self.end) != (0.0, 1.0)


EVERYWHERE = Scope()


def window(table: NoiseSchedule, start: float, end: float) -> tuple[float, float]:
    """The lowest and the highest noise level between two shares of the way down the timesteps."""
    last = len(table.sigmas) - 1
    high = math.inf if start <= 0 else table.sigma((1 - start) * last)
    low = 0.0 if end >= 1 else table.sigma((1 - end) * last)
    return low, high


def gap(scopes: list[Scope]) -> tuple[float, float] | None:
    """The first part of the way down at which none of the scopes counts, as (start, end); None where there is none."""
    spans = sorted((scope.start, scope.end) for scope in scopes if scope.end > scope.start)
    reached = 0.0
    for start, end in [*spans, (1.0, 1.0)]:
        if start > reached:
            return reached, start
        reached = max(reached, end)
    return None


def place(scope: Scope, masks: tuple[Tensor, ...], size: tuple[int, int], downscale: int) -> tuple[Box, Tensor | None]:
    """The box of a scope on a latent of `size` (h, w), and how much it counts in there: (1 or N, 1, height, width).

    Masks are uint8, (1 or N, 1, H, W). None where nothing says how much: everything counts alike. ComfyUI's formulas.
    """
    whole = Box(0, 0, size[1], size[0])
    box = whole if scope.area is None else scope.area.box(size, downscale)
    if not scope.placed:
        return whole, None
    if scope.mask is None:
        return box, box.feather(size) * scope.strength
    level = functional.interpolate(masks[scope.mask].float() / 255, size=size, mode="bilinear", align_corners=False)
    if scope.bounds:
        box = _around(level)
    return box, box.cut(level) * scope.strength


def _around(level: Tensor) -> Box:
    """The box around all that is not 0, at least `SMALLEST` cells wide and high where there are so many."""
    height, width = level.shape[2:]
    touched = level.amax(dim=(0, 1)) > 0
    rows, columns = (touched.any(dim=axis).nonzero().flatten().tolist() for axis in (1, 0))
    if not rows:
        return Box(0, 0, min(SMALLEST, width), min(SMALLEST, height))
    x, y = min(columns[0], max(width - SMALLEST, 0)), min(rows[0], max(height - SMALLEST, 0))
    wide, high = max(SMALLEST, columns[-1] + 1 - x), max(SMALLEST, rows[-1] + 1 - y)
    return Box(x, y, min(wide, width - x), min(high, height - y))
