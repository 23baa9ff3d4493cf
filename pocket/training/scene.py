"""What stands where in a batch of pictures, drawn by lot on the device: tensors, one row per picture."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from pocket.training import palette
from pocket.training.style import STYLES, TURN

MOST = 3
"""Objects in one picture."""

CROWDS = (0.7, 0.22, 0.08)
"""Shares of pictures with one, two and three objects."""
ALONE = (1.0, 0.0, 0.0)

GROUNDS = (0.3, 0.5, 0.2)
"""Shares of white, plain and gradient backgrounds."""

STACKED = 0.2
"""Share of pairs on square canvases that stand one above the other."""


@dataclass(frozen=True)
class Canvas:
    """A size of pictures, in pixels, and the span of a single object's size, as shares of the short side."""

    width: int
    height: int
    smallest: float = 0.42
    largest: float = 1.0


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

    def __len__(self) -> int:
        """The number of pictures."""
        return len(self.concepts)

    @property
    def styles(self) -> Tensor:
        """(B,), numbers in `STYLES`; they take turns, one past the end is none."""
        turns = torch.arange(len(self), device=self.concepts.device) % TURN
        return turns.clamp(max=len(STYLES))


def draw(
    count: int,
    canvas: Canvas,
    weights: Tensor,
    mirrored: Tensor,
    generator: Generator,
    *,
    crowds: Sequence[float] = CROWDS,
) -> Scenes:
    """Draw `count` scenes. `weights` and `mirrored`, (N,), say how often and whether flipped a concept is shown."""
    device = weights.device
    starts = _starts(count, crowds)
    number = torch.arange(count, device=device)
    crowd = 1 + (number >= starts[1]).long() + (number >= starts[2]).long()
    absent = torch.arange(MOST, device=device) >= crowd[:, None]
    concepts = _lots(weights, count, generator)
    stacked = _stacked(crowd, canvas, generator)
    centres, sizes = _places(crowd, stacked, canvas, generator)
    colours = _colours(concepts.masked_fill(absent, -1), generator)
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


def _stacked(crowd: Tensor, canvas: Canvas, generator: Generator) -> Tensor:
    """Objects stand above one another on tall canvases, and sometimes two do on square ones."""
    if canvas.width == canvas.height:
        return _chance(STACKED, crowd, generator) & (crowd > 1) & (crowd < MOST)
    return (crowd > 1) & (canvas.width < canvas.height)


def _places(crowd: Tensor, stacked: Tensor, canvas: Canvas, generator: Generator) -> tuple[Tensor, Tensor]:
    """Cut the canvas into as many cells as there are objects and put one somewhere into each."""
    across = torch.stack([~stacked, stacked], 1)
    parts = torch.where(across, crowd[:, None], 1)[:, None]
    cells = (
        torch.stack([torch.full_like(crowd, canvas.width), torch.full_like(crowd, canvas.height)], 1)[:, None] / parts
    )
    order = torch.arange(MOST, device=crowd.device)[:, None]
    middles = (torch.where(parts > 1, order, 0) + 0.5) * cells
    least = torch.where(crowd > 1, 0.75, canvas.smallest)[:, None]
    most = torch.where(crowd > 1, 1.04, canvas.largest)[:, None]
    shares = least + (most - least) * _uniform(crowd.new_empty(len(crowd), MOST), generator)
    sizes = shares * cells.amin(-1)
    slack = (cells - sizes[..., None]).clamp(min=0) / 2
    centres = middles + slack * (2 * _uniform(slack, generator) - 1)
    return centres, sizes


def _colours(concepts: Tensor, generator: Generator) -> Tensor:
    """Draw backgrounds; where that would show a combination that is held out, the colour becomes white."""
    count, device = len(concepts), concepts.device
    chosen = torch.randint(1, len(palette.NAMES), (count, 2), generator=generator, device=device)
    lot = torch.rand(count, 1, generator=generator, device=device)
    plain = torch.where(lot < GROUNDS[0], palette.WHITE, chosen[:, :1].expand(-1, 2))
    colours = torch.where(lot > 1 - GROUNDS[2], chosen, plain)
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
