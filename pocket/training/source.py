"""Endless training data: what to draw, composed and captioned on the device."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Generator, Tensor

from pocket.training import archive
from pocket.training.caption import Author
from pocket.training.concept import Concept
from pocket.training.lot import generator
from pocket.training.phrase import Tokens
from pocket.training.picture import compose, stylise
from pocket.training.scene import ALONE, FULL, Canvas, Recipe, Scenes, draw

SIDE = 160
"""Pixels of a sprite; pictures of 128 mostly shrink it."""

TIERS = (4.0, 1.5, 1.0, 0.5, 0.25)
"""How often a concept of each tier is drawn."""


@dataclass(frozen=True, eq=False)
class Batch:
    """Pictures (B, 3, H, W) from -1 to 1, their captions as token ids (B, 77) and as phrases, and their scenes."""

    pictures: Tensor
    ids: Tensor
    slots: Tensor
    scenes: Scenes


class Source:
    """Draws batches of what a number of the most important concepts look like; the same ones for the same seed."""

    def __init__(
        self, concepts: Sequence[Concept], sprites: Tensor, tokenizer: Any, *, recipe: Recipe = FULL, seed: int = 0
    ) -> None:
        self.concepts = concepts
        self.device = sprites.device
        self.author = Author(concepts, self.device)
        self.tokens = Tokens(self.author.phrases, tokenizer, self.device)
        self._sprites = sprites
        self._mirrored = torch.tensor([concept.mirrored for concept in concepts], device=self.device)
        self.recipe = recipe
        self._alone = replace(recipe, crowds=ALONE)
        self._seed = seed
        self.limit(len(concepts))

    @classmethod
    def open(
        cls, path: Path, tokenizer: Any, device: torch.device, *, recipe: Recipe = FULL, seed: int = 0
    ) -> "Source":
        """Read an archive onto a device."""
        concepts, sprites = archive.read(path, SIDE)
        return cls(concepts, sprites.to(device), tokenizer, recipe=recipe, seed=seed)

    def limit(self, most: int) -> int:
        """Draw only the first `most` concepts from now on; return how many of them are not reserved."""
        shares = [TIERS[each.tier] if number < most else 0.0 for number, each in enumerate(self.concepts)]
        self._weights = self._tensor([0.0 if each.reserved else share for each, share in self._paired(shares)])
        return int((self._weights > 0).sum())

    @property
    def square(self) -> Canvas:
        """The size that most pictures have."""
        return next(iter(self.recipe.canvases))

    def batch(self, number: int, count: int, canvas: Canvas | None = None) -> Batch:
        """Draw batch `number` with styles and captions as they are trained on."""
        lots = self._generator(number)
        scenes = draw(count, canvas or self.square, self._weights, self._mirrored, lots, recipe=self.recipe)
        pictures = stylise(compose(scenes, self._sprites), scenes.turn)
        return self._batch(pictures, self.author.write(scenes, lots), scenes)

    def reworded(self, scenes: Scenes, number: int, times: int) -> Tensor:
        """Several captions of each scene of batch `number`, as token ids (B, times, 77)."""
        lots = generator(self.device, "words", self._seed, number)
        return torch.stack([self.tokens.captions(self.author.write(scenes, lots)) for _ in range(times)], 1)

    def alone(self, number: int, count: int) -> Scenes:
        """Draw scenes of single objects."""
        return draw(count, self.square, self._weights, self._mirrored, self._generator(number), recipe=self._alone)

    def labelled(self, scenes: Scenes, style: Callable[[Tensor], Tensor], before: str = "", behind: str = "") -> Batch:
        """Paint single objects in one style; captions are their labels between two phrases."""
        slots = self.author.label(scenes.concepts[:, 0], before, behind)
        return self._batch(style(compose(scenes, self._sprites)), slots, scenes)

    def held_out(self, count: int) -> Tensor:
        """Pictures of the reserved concepts alone, always the same, (B, 3, 128, 128) from -1 to 1."""
        weights = self._tensor([float(concept.reserved) for concept in self.concepts])
        scenes = draw(count, self.square, weights, self._mirrored, self._generator(-1), recipe=self.recipe)
        return compose(scenes, self._sprites) * 2 - 1

    def _batch(self, pictures: Tensor, slots: Tensor, scenes: Scenes) -> Batch:
        return Batch(pictures * 2 - 1, self.tokens.captions(slots), slots, scenes)

    def _generator(self, number: int) -> Generator:
        return generator(self.device, "batch", self._seed, number)

    def _tensor(self, values: Sequence[float]) -> Tensor:
        return torch.tensor(values, device=self.device)

    def _paired(self, shares: Sequence[float]) -> list[tuple[Concept, float]]:
        return list(zip(self.concepts, shares, strict=True))
