"""The colours of backgrounds, by name."""

from functools import cache

import torch
from torch import Tensor

COLOURS = {
    "white": (255, 255, 255),
    "black": (16, 16, 18),
    "gray": (140, 142, 146),
    "red": (216, 40, 44),
    "orange": (246, 140, 30),
    "yellow": (252, 214, 56),
    "green": (52, 164, 72),
    "blue": (44, 100, 220),
    "purple": (126, 64, 190),
    "pink": (248, 158, 194),
    "brown": (122, 80, 50),
    "teal": (30, 150, 150),
    "beige": (240, 226, 200),
    "light blue": (150, 206, 246),
    "dark blue": (22, 34, 86),
    "light green": (170, 226, 160),
}
NAMES = tuple(COLOURS)
WHITE = NAMES.index("white")

JITTER = 10 / 255
"""How far a shade may be off the colour that it is called by; white is exact."""


@cache
def rgb(device: torch.device) -> Tensor:
    """All colours, (16, 3), from 0 to 1."""
    return torch.tensor(list(COLOURS.values()), dtype=torch.float32, device=device) / 255


def held_out(concepts: Tensor) -> Tensor:
    """The one colour, never white, that each concept is never trained on: so that a probe can ask for something new."""
    return 1 + 7 * concepts % (len(NAMES) - 1)
