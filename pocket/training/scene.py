"""What stands where in a batch of pictures, drawn by lot on the device: tensors, one row per picture."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Generator, Tensor

from pocket.training import palette
from pocket.training.lot import seed_of
from pocket.training.style import STYLES, TURN

MOST = 3
"""Objects in one picture."""

ALONE = (1.0, 0.0, 0.0)
"""Shares of pictures with one, two and three objects, where there is always one."""


@dataclass(frozen=True)
class Canvas:
    """A size of pictures, in pixels, and the span of a single object's size, as shares of the short side."""

    width: int
    height: int
    smallest: float = 0.42
    largest: float = 1.0
    roam: float = 1.0
    """How far from the middle of its place an object may be, as a share of the room there is."""


SQUARE = Canvas(128, 128)
TIGHT = Canvas(128, 128, 0.7, 0.84, roam=0.15)


@dataclass(frozen=True)
class Recipe:
    """How varied scenes are."""

    canvases: Mapping[Canvas, float] = field(
        default_factory=lambda: {
            SQUARE: 0.8,
            Canvas(192, 128): 0.07,
            Canvas(128, 192): 0.06,
            Canvas(256, 256, 0.38, 0.7): 0.07,
        }
    )
    """Sizes of pictures, the square one first, and how often a batch has them."""
    crowds: tuple[float, ...] = (0.7, 0.22, 0.08)
    """Shares of pictures with one, two and three objects."""
    grounds: tuple[float, ...] = (0.3, 0.5, 0.2)
    """Shares of white, plain and gradient backgrounds."""
    stacked: float = 0.2
    """Share of pairs on square canvases that stand one above the other."""
    aside: float = 0.0
    """Share of single objects that leave room for another beside them."""
    turn: int = TURN
    """Every so many pictures each style has its turn."""


FULL = Recipe()
LEAN = Recipe(
    canvases={
        TIGHT: 0.78,
        Canvas(192, 128, 0.7, 0.84, roam=0.3): 0.08,
        Canvas(128, 192, 0.7, 0.84, roam=0.3): 0.06,
        Canvas(256, 256, 0.5, 0.75, roam=0.3): 0.08,
    },
    crowds=(0.45, 0.55, 0.0),
    grounds=(0.25, 0.69, 0.06),
    stacked=0.0,
    aside=0.15,
    turn=12,
)
"""What is learnt from fewer samples: mostly one size, one object in the middle or one on each side, seldom a style."""


@dataclass(frozen=True, eq=False)
class Scenes:
    """What B pictures show. Objects are listed left to right, or top to bottom where `stacked`."""

    canvas: Canvas
    concepts: Tensor
    """(B, 3), -1 where there are fewer objects; those with more come last in the batch."""
    starts: tuple[int, ...]
    """The first picture that has a first, a second and a third object."""
    centres: Tensor
    """(B, 3, 2), x and y in pixels."""
    sizes: Tensor
    """(B, 3), pixels."""
    flipped: Tensor
    """(B, 3), whether an object is shown mirrored."""
    stacked: Tensor
    """(B,)"""
    colours: Tensor
    """(B, 2), numbers in the palette, of where a gradient begins (at the top or left) and ends; equal where plain."""
    shades: Tensor
    """(B, 2, 3), what is painted for them, from 0 to 1."""
    slopes: Tensor
    """(B,), the way of a gradient: 0 down, 1 to the right, 2 both."""
    turn: int = TURN
    """Every so many pictures each style has its turn."""

    def __len__(self) -> int:
        """The number of pictures."""
        return len(self.concepts)

    @property
    def styles(self) -> Tensor:
        """(B,), numbers in `STYLES`; they take turns, one past the end is none."""
        turns = torch.arange(len(self), device=self.concepts.device) % self.turn
        return turns.clamp(max=len(STYLES))


def canvas_of(number: int, seed: int, recipe: Recipe) -> Canvas:
    """The size that batch `number` has."""
    lots = random.Random(seed_of("canvas", seed, number))  # noqa: S311  # they are no secret
    return lots.choices(list(recipe.canvases), list(recipe.canvases.values()))[0]


def samples(batch: int, canvas: Canvas) -> int:
    """How many pictures of a size cost as much as `batch` square ones."""
    return max(1, batch * SQUARE.width * SQUARE.height // (canvas.width * canvas.height))


def draw(
    count: int,
    canvas: Canvas,
    weights: Tensor,
    mirrored: Tensor,
    generator: Generator,
    *,
    recipe: Recipe = FULL,
) -> Scenes:
    """Draw `count` scenes. `weights` and `mirrored`, (N,), say how often and whether flipped a concept is shown."""
    device = weights.device
    starts = _starts(count, recipe.crowds)
    number = torch.arange(count, device=device)
    crowd = 1 + (number >= starts[1]).long() + (number >= starts[2]).long()
    absent = torch.arange(MOST, device=device) >= crowd[:, None]
    concepts = _lots(weights, count, generator)
    stacked = _stacked(crowd, canvas, recipe.stacked, generator)
    centres, sizes = _places(crowd, stacked, canvas, recipe.aside, generator)
    colours = _colours(concepts.masked_fill(absent, -1), recipe.grounds, generator)
    return Scenes(
        canvas,
        concepts.masked_fill(absent, -1),
        starts,
        centres,
        sizes,
        mirrored[concepts] & _chance(0.5, concepts, generator),
        stacked,
        colours,
        _shades(colours, generator),
        torch.randint(3, (count,), generator=generator, device=device),
        recipe.turn,
    )


def _starts(count: int, crowds: Sequence[float]) -> tuple[int, ...]:
    singles = round(crowds[0] * count)
    return 0, singles, min(count, singles + round(crowds[1] * count))


def _lots(weights: Tensor, count: int, generator: Generator) -> Tensor:
    """Draw different concepts by weight, (B, 3), after Efraimidis and Spirakis 2006.

    `torch.multinomial` would do, but makes the host wait for the device.
    """
    keys = weights.new_empty(count, len(weights)).exponential_(generator=generator)
    return (weights / keys).topk(MOST).indices


def _stacked(crowd: Tensor, canvas: Canvas, share: float, generator: Generator) -> Tensor:
    """Objects stand above one another on tall canvases, and sometimes two do on square ones."""
    if canvas.width == canvas.height:
        return _chance(share, crowd, generator) & (crowd > 1) & (crowd < MOST)
    return (crowd > 1) & (canvas.width < canvas.height)


def _places(
    crowd: Tensor, stacked: Tensor, canvas: Canvas, aside: float, generator: Generator
) -> tuple[Tensor, Tensor]:
    """Cut the canvas into as many cells as there are objects and put one somewhere into each."""
    alone = _chance(aside, crowd, generator) & (crowd == 1)
    shift = torch.where(alone, _chance(0.5, crowd, generator).long(), 0)
    crowd = torch.where(alone, 2, crowd)
    across = torch.stack([~stacked, stacked], 1)
    parts = torch.where(across, crowd[:, None], 1)[:, None]
    cells = (
        torch.stack([torch.full_like(crowd, canvas.width), torch.full_like(crowd, canvas.height)], 1)[:, None] / parts
    )
    order = shift[:, None, None] + torch.arange(MOST, device=crowd.device)[:, None]
    middles = (torch.where(parts > 1, order, 0) + 0.5) * cells
    least = torch.where(crowd > 1, 0.75, canvas.smallest)[:, None]
    most = torch.where(crowd > 1, 1.04, canvas.largest)[:, None]
    shares = least + (most - least) * _uniform(crowd.new_empty(len(crowd), MOST), generator)
    sizes = shares * cells.amin(-1)
    slack = canvas.roam * (cells - sizes[..., None]).clamp(min=0) / 2
    centres = middles + slack * (2 * _uniform(slack, generator) - 1)
    return centres, sizes


def _colours(concepts: Tensor, grounds: Sequence[float], generator: Generator) -> Tensor:
    """Draw backgrounds; where that would show a combination that is held out, the colour becomes white."""
    count, device = len(concepts), concepts.device
    chosen = torch.randint(1, len(palette.NAMES), (count, 2), generator=generator, device=device)
    lot = torch.rand(count, 1, generator=generator, device=device)
    plain = torch.where(lot < grounds[0], palette.WHITE, chosen[:, :1].expand(-1, 2))
    colours = torch.where(lot > 1 - grounds[2], chosen, plain)
    clashes = (palette.held_out(concepts)[:, :, None] == colours[:, None]) & (concepts >= 0)[:, :, None]
    return colours.masked_fill(clashes.any(1), palette.WHITE)


def _shades(colours: Tensor, generator: Generator) -> Tensor:
    exact = palette.rgb(colours.device)[colours]
    shift = (2 * _uniform(exact, generator) - 1) * palette.JITTER
    shift = torch.where((colours[:, :1] == colours[:, 1:])[..., None], shift[:, :1], shift)
    return torch.where((colours == palette.WHITE)[..., None], exact, (exact + shift).clamp(0, 1))


def _uniform(like: Tensor, generator: Generator) -> Tensor:
    return torch.rand(like.shape, generator=generator, device=like.device)


def _chance(share: float, like: Tensor, generator: Generator) -> Tensor:
    return _uniform(like, generator) < share
