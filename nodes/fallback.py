"""What a node does where memory or precision does not suffice: smaller tiles, float32; and it says so."""

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

_WORDS = {Vae: "VAE", Upscaler: "upscale model"}


def in_tiles(context: Context, run: Callable[[Tiling], T], tiling: Tiling, longest: int) -> T:
    """What `run` makes with a tiling or, where memory ran out even after all was freed, with smaller and smaller tiles.

    `longest` is the longest side of the picture in px. In exact mode a result is that of the parameters or none.
    """
    ran_out, used = Device("cpu").out_of_memory, tiling
    for side in (side for side in SIDES if context.scarce and side < min(tiling.side or longest, longest)):
        try:
            made = run(used)
            break
        except Exception as error:
            if not ran_out(error):
                raise
        used = Tiling(side, min(tiling.overlap, side // 2))
    else:
        made = run(used)
    if used != tiling:
        context.warn(
            f"memory was too short for tile={tiling.side}, so tiles of {used.side} px were made: expect slight seams; "
            f"set tile to {used.side} to ask for it, or take a smaller picture"
        )
    return made


def in_float32(context: Context, ref: Vae | Upscaler) -> Callable[[], Any]:
    """The way to a model in float32, for what overflows at its own precision; it is loaded when it is asked for."""

    @cache
    def model() -> Any:
        context.warn(
            f"the {_WORDS[type(ref)]} overflowed in 16 bits to infinity or NaN, so this was computed again in float32; "
            "load it with precision float32 to save the time"
        )
        return context.model(replace(ref, precision="float32"))

    return model
