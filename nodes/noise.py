"""Noise recipes. Numbers are drawn where they are used."""

from typing import Annotated

from annotated_types import Ge, Le

from engine.node import node
from nodes.types import Fraction, Noise, Seed


@node("noise.seeded", version=1)
def seeded(
    seed: Seed = 0, count: Annotated[int, Ge(1), Le(64)] = 1, variation_seed: Seed = 0, variation: Fraction = 0.0
) -> Noise:
    """Noise for `count` pictures with seeds `seed`, `seed` + 1, ...; `variation` mixes in other seeds.

    With a variation above 0 all pictures share `seed`, and the variation seeds count up instead, as the WebUI does.
    A seed of -1 is drawn at each submission and written into the graph.
    """
    if variation == 0:
        return Noise(tuple((seed + index) % 2**64 for index in range(count)))
    variations = tuple((variation_seed + index) % 2**64 for index in range(count))
    return Noise((seed,) * count, variations, variation)
