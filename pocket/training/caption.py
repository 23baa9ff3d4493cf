"""What is said of scenes: a caption is ten slots, each a phrase or nothing, worded anew every time."""

import random
from collections.abc import Iterator, Mapping, Sequence
from typing import TypeAlias

import torch
from torch import Generator, Tensor

from pocket.training.concept import Concept
from pocket.training.palette import NAMES, WHITE
from pocket.training.phrase import Phrases
from pocket.training.scene import Scenes
from pocket.training.style import STYLES

GROUND_BEFORE, STYLE_BEFORE, FIRST, STYLE_AFTER, GROUND_AFTER, SLOTS = 0, 1, 2, 8, 9, 10
"""From FIRST to STYLE_AFTER, three names and what follows each alternate."""

WORDINGS = 8
"""Ways to name a concept that stands alone; the first `TERSE` are short enough to name one of several."""
TERSE = 3

Plan: TypeAlias = tuple[tuple[int, str], ...]
"""Which object is named first, second and third, and what follows each name."""

PLACES = ("on the left", "in the middle", "on the right")
PAIRS: dict[bool, tuple[Plan, ...]] = {
    False: (
        ((0, "and"), (1, "")),
        ((0, "on the left and"), (1, "on the right")),
        ((1, "on the right and"), (0, "on the left")),
        ((0, "left of"), (1, "")),
        ((1, "right of"), (0, "")),
    ),
    True: (
        ((0, "above"), (1, "")),
        ((1, "below"), (0, "")),
        ((0, "at the top and"), (1, "at the bottom")),
        ((0, "above"), (1, "")),
        ((1, "below"), (0, "")),
    ),
}
TRIPLES: dict[bool, tuple[Plan, ...]] = {
    False: (
        ((0, ","), (1, "and"), (2, "")),
        ((0, "on the left,"), (1, "in the middle and"), (2, "on the right")),
    ),
    True: (((0, "above"), (1, "above"), (2, "")), ((2, "below"), (1, "below"), (0, ""))),
}
"""Ways to list objects that stand side by side (False) or one above the other (True)."""

PREFIXES = ("3d emoji of", "emoji of", "icon of", "picture of", "a picture of")

SAID_OF_WHITE, SAID_OF_COLOUR = 0.4, 0.95
"""How often a background is mentioned."""
GROUND_FIRST, PREFIXED, STYLE_LAST, NAMELESS = 0.1, 0.1, 0.4, 0.03
PLACED, CENTRED = 0.4, 0.05
"""How often it is said where a single object stands, beside or in the middle."""
SILENT = 0.1
"""Captions left empty, for classifier-free guidance (Ho and Salimans 2022)."""

EMPHASIS = 20
"""How often what matters is repeated to learn a vocabulary from."""

BLUEPRINT = "blueprint of"
"""What the LoRA listens to."""
MARKS = "~ ^ |"
AFTERGLOW = f"on a {MARKS} background"
"""Where the embedding is learnt: in place of three marks that nothing else uses."""

DRAWN = tuple(STYLES).index("line drawing")
"""The style that shows no background."""


class Author:
    """Writes captions of scenes as phrase numbers."""

    def __init__(self, concepts: Sequence[Concept], device: torch.device, seed: int = 0) -> None:
        self.phrases = Phrases()
        lot = random.Random(seed)  # noqa: S311  # wording is no secret
        self._device = device
        self._places = self._table(PLACES)
        self._pairs, self._triples = self._plans(PAIRS), self._plans(TRIPLES)
        self._prefixes = self._table(PREFIXES)
        self._style_before = self._table([*(f"{style} of" for style in STYLES), ""])
        self._style_after = self._table([*(f", {style}" for style in STYLES), ""])
        self._before = torch.stack([self._table([f"{_ground(a, b)} with" for b in NAMES]) for a in NAMES])
        self._after = torch.stack([torch.stack([self._table(_behind(a, b)) for b in NAMES]) for a in NAMES])
        self._style_alone = self._table([*STYLES, ""])
        self._ground_alone = torch.stack([self._table([_ground(a, b) for b in NAMES]) for a in NAMES])
        self._table([BLUEPRINT, AFTERGLOW])
        self._frame = self.phrases.texts
        self._names = torch.stack([self._table(_wordings(concept, lot)) for concept in concepts])

    def lessons(self) -> Iterator[str]:
        """Texts to learn a vocabulary from: what stands between names, and labels, weigh more than keywords."""
        texts = self.phrases.texts
        yield from texts
        for _ in range(EMPHASIS):
            yield from self._frame
            yield from (texts[number] for number in self._names[:, 0].tolist())

    def write(self, scenes: Scenes, generator: Generator) -> Tensor:
        """Word what scenes show, (B, 10): mostly all of it, sometimes nothing."""
        slots = self._blank(len(scenes))
        self._name(slots, scenes, generator)
        self._style(slots, scenes, generator)
        self._ground(slots, scenes, generator)
        nameless = _chance(NAMELESS, len(scenes), generator)
        slots = torch.where(nameless[:, None], self._nameless(scenes), slots)
        return slots * ~_chance(SILENT, len(scenes), generator)[:, None]

    def label(self, concepts: Tensor, before: str = "", behind: str = "") -> Tensor:
        """Word single objects by their labels alone, (B, 10), between phrases that are known already."""
        slots = self._blank(len(concepts))
        slots[:, STYLE_BEFORE] = self.phrases.number(before)
        slots[:, FIRST] = self._names[concepts, 0]
        slots[:, GROUND_AFTER] = self.phrases.number(behind)
        return slots

    def _blank(self, count: int) -> Tensor:
        return torch.zeros(count, SLOTS, dtype=torch.long, device=self._device)

    def _nameless(self, scenes: Scenes) -> Tensor:
        """Style and background alone, for prompts that mean to exclude one."""
        slots = self._blank(len(scenes))
        first, last = scenes.colours.unbind(1)
        slots[:, STYLE_BEFORE] = self._style_alone[scenes.styles]
        slots[:, GROUND_AFTER] = self._ground_alone[first, last] * (scenes.styles != DRAWN)
        return slots

    def _name(self, slots: Tensor, scenes: Scenes, generator: Generator) -> None:
        _, pairs, triples = scenes.starts
        wording = torch.randint(WORDINGS, (len(scenes),), generator=generator, device=self._device)
        slots[:pairs, FIRST] = self._names[scenes.concepts[:pairs, 0], wording[:pairs]]
        slots[:pairs, FIRST + 1] = self._place(scenes, generator)[:pairs]
        self._list(slots, scenes, self._pairs, slice(pairs, triples), generator)
        self._list(slots, scenes, self._triples, slice(triples, None), generator)

    def _place(self, scenes: Scenes, generator: Generator) -> Tensor:
        share = scenes.centres[:, 0, 0] / scenes.canvas.width
        place = (share > 0.4).long() + (share > 0.6).long()
        said = torch.rand(len(scenes), generator=generator, device=self._device)
        return self._places[place] * (said < torch.where(place == 1, CENTRED, PLACED))

    def _list(self, slots: Tensor, scenes: Scenes, plans: Tensor, which: slice, generator: Generator) -> None:
        """Name several objects, each followed by what the plan says."""
        stacked, several = scenes.stacked[which].long(), plans.shape[2]
        way = torch.randint(plans.shape[1], stacked.shape, generator=generator, device=self._device)
        order, after = plans[stacked, way].unbind(-1)
        wording = torch.randint(TERSE, order.shape, generator=generator, device=self._device)
        names = self._names[scenes.concepts[which, :several].gather(1, order), wording]
        slots[which, FIRST : FIRST + 2 * several] = torch.stack([names, after], -1).flatten(1)

    def _style(self, slots: Tensor, scenes: Scenes, generator: Generator) -> None:
        last = _chance(STYLE_LAST, len(scenes), generator)
        prefix = torch.randint(len(PREFIXES), (len(scenes),), generator=generator, device=self._device)
        plain = (scenes.styles == len(STYLES)) & _chance(PREFIXED, len(scenes), generator)
        before = torch.where(plain, self._prefixes[prefix], self._style_before[scenes.styles] * ~last)
        slots[:, STYLE_BEFORE] = before
        slots[:, STYLE_AFTER] = self._style_after[scenes.styles] * last

    def _ground(self, slots: Tensor, scenes: Scenes, generator: Generator) -> None:
        """Mention the background, before or after all else; a line drawing has none."""
        first, last = scenes.colours.unbind(1)
        white = (first == WHITE) & (last == WHITE)
        share = torch.where(white, SAID_OF_WHITE, SAID_OF_COLOUR)
        said = torch.rand(len(scenes), generator=generator, device=self._device) < share
        said &= scenes.styles != DRAWN
        early = _chance(GROUND_FIRST, len(scenes), generator)
        way = torch.randint(self._after.shape[-1], first.shape, generator=generator, device=self._device)
        slots[:, GROUND_BEFORE] = self._before[first, last] * (said & early)
        slots[:, GROUND_AFTER] = self._after[first, last, way] * (said & ~early)

    def _table(self, texts: Sequence[str]) -> Tensor:
        return torch.tensor([self.phrases.number(text) for text in texts], device=self._device)

    def _plans(self, plans: Mapping[bool, Sequence[Plan]]) -> Tensor:
        """(2, ways, objects, 2): which object comes next, and the phrase after it."""
        numbered = [
            [[(order, self.phrases.number(text)) for order, text in plan] for plan in plans[stacked]]
            for stacked in (False, True)
        ]
        return torch.tensor(numbered, device=self._device)


def article(label: str) -> str:
    """A label with its article, where it is of one thing."""
    if label.endswith("s") and not label.endswith("ss"):
        return label
    return f"an {label}" if label[0] in "aeiou" else f"a {label}"


def _wordings(concept: Concept, lot: random.Random) -> list[str]:
    """A label by itself, with its article, with keywords, and keywords alone."""
    label, several = concept.label, article(concept.label)
    one, two, three = (lot.sample(concept.keywords, min(many, len(concept.keywords))) for many in (1, 2, 3))
    alone = ", ".join(three) or label
    return [label, several, label, label, several, ", ".join([label, *one]), ", ".join([label, *two]), alone]


def _ground(first: str, last: str) -> str:
    return f"{first} background" if first == last else f"{first} and {last} gradient background"


def _behind(first: str, last: str) -> list[str]:
    whole = _ground(first, last)
    other = whole.replace(" and ", " to ")
    return [f"on {article(whole)}", f"on {article(other)}", f", {whole}"]


def _chance(share: float, count: int, generator: Generator) -> Tensor:
    return torch.rand(count, generator=generator, device=generator.device) < share
