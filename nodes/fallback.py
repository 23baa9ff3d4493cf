"""What a node does where memory or precision does not suffice: smaller tiles, float32."""

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any, TypeVar

from engine.context import Context
from engine.device import Device
from nodes.diffusion.tiling import Tiling
from nodes.types import Upscaler, Vae

T = TypeVar("T")

SIDES = (512, 256, 128)
"""Sides of the tiles that are tried where memory runs out, in px."""


def in_tiles(run: Callable[[Tiling], T], tiling: Tiling) -> T:
    """What `run` makes with a tiling or, where memory runs out, with smaller and smaller tiles."""
    ran_out = Device("cpu").out_of_memory
    for side in SIDES:
        try:
            return run(tiling)
        except Exception as error:
            if not ran_out(error):
                raise
        if not tiling.side or side < tiling.side:
            tiling = Tiling(side, min(tiling.overlap, side // 2))
    return run(tiling)


def in_float32(context: Context, ref: Vae | Upscaler) -> Callable[[], Any]:
    """The way to a model in float32, for what overflows at its own precision; it is loaded when it is asked for."""

    @cache
    def model() -> Any:
        return context.model(replace(ref, precision="float32"))

    return model
