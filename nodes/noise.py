"""Noise recipes. Numbers are drawn where they are used."""

from collections.abc import Sequence
from typing import Annotated

import torch
from annotated_types import Ge, Le

from engine.node import node
from engine.param import Unit
from nodes.diffusion.noise import Source, Streams, Variation
from nodes.types import MAX_SIDE, Fraction, Noise, Seed

Canvas = Annotated[int, Ge(0), Le(MAX_SIDE), Unit("px")]
"""Width or height of another picture; 0 is none."""


@node("noise.seeded", version=3)
def seeded(
    seed: Seed = 0,
    count: Annotated[int, Ge(1), Le(1024)] = 1,
    variation_seed: Seed = 0,
    variation: Fraction = 0.0,
    *,
    source: Source = "cpu",
    shared: bool = False,
    resize_from_width: Canvas = 0,
    resize_from_height: Canvas = 0,
) -> Noise:
    """Noise for `count` pictures with seeds `seed`, `seed` + 1, ...; `variation` mixes in other seeds.

    With a variation above 0 all pictures share `seed`, and the variation seeds count up instead, as the WebUI does.
    A seed of -1 is drawn at each submission and written into the graph. `source` "nv" draws what a CUDA device would.
    Where both sides to resize from are given, the noise of a picture of that size stands in the middle of this one's:
    it keeps its composition at another size. `shared` draws all pictures from the generator of `seed`, one after
    another, as ComfyUI does; then the noise of later steps depends on `count`.
    """
    sides = (resize_from_width, resize_from_height)
    resized_from = sides if all(sides) else ()
    places = tuple((index, count) for index in range(count)) if shared else ()
    if variation == 0 and not shared:
        return Noise(tuple((seed + index) % 2**64 for index in range(count)), source=source, resized_from=resized_from)
    variations = tuple((variation_seed + index) % 2**64 for index in range(count))
    return Noise((seed,) * count, variations if variation else (), variation, source, resized_from, places)


def streams(
    noise: Noise, shape: Sequence[int], downscale: int, *, seed_delta: int | None = None, device: torch.device
) -> Streams:
    """The noise of a run by its recipe, for latents of `shape` (C, h, w) with cells of `downscale` px."""
    variation = Variation(noise.variations, noise.strength) if noise.variations else None
    sides = tuple(max(1, side // downscale) for side in reversed(noise.resized_from))
    return Streams.open(
        noise.seeds,
        shape,
        variation=variation,
        source=noise.source,
        resized_from=(sides[0], sides[1]) if sides else None,
        seed_delta=seed_delta,
        places=noise.places,
        device=device,
    )
