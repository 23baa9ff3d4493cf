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
    """What `run` makes with a tiling or, where memory is scarce, with the largest of smaller tiles that there is.

    `longest` is the longest side of the picture in px.
    """
    ran_out, most = Device("cpu").out_of_memory, min(tiling.side or longest, longest)
    sides = [side for side in SIDES if context.scarce and side < most]
    if not sides:
        return run(tiling)
    for side in sides:
        try:
            made = run(Tiling(side, min(tiling.overlap, side // 2)))
        except Exception as error:
            if side == sides[-1] or not ran_out(error):
                raise
        else:
            context.warn(
                f"memory was too short for tile={tiling.side}, so tiles of {side} px were made: expect slightly other "
                f"colours; set tile to {side} to ask for it, or take a smaller picture"
            )
            return made
    raise AssertionError


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
