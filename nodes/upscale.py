"""Upscale models: networks that make a picture larger and invent the detail."""

from engine.context import Context
from engine.node import node
from nodes.diffusion import upscale as enlarging
from nodes.diffusion.tiling import Tiling
from nodes.fallback import in_float32, in_tiles
from nodes.files import UpscaleFile
from nodes.fit import Factor, Filter, px, target
from nodes.image import refit
from nodes.tile import Overlap, Tile
from nodes.types import MAX_SIDE, Image, Precision, Upscaler

PASSES = 3
"""How often a model is applied at most to reach a factor, as by A1111."""


@node("upscale.load", version=1)
def load(source: UpscaleFile, precision: Precision = "auto") -> Upscaler:
    """Refer to an upscale model: ESRGAN, Real-ESRGAN or its compact sort, such as RealESRGAN_x4plus.

    `source` is a safetensors file, by its name in a folder `upscale` or by its path. Its tensors say what it is, and
    how many times larger it makes a picture. SwinIR, HAT, DAT and others need `pip install "calotype[upscalers]"`.
    """
    scale = enlarging.scale(source.path)
    source.verify()
    return Upscaler(source.digest.hex(), precision, scale)


@node("image.upscale", version=1)
def upscale(
    image: Image,
    upscaler: Upscaler,
    context: Context,
    *,
    factor: Factor | None = None,
    filter: Filter = "lanczos",  # noqa: A002  the field's word
    tile: Tile = 512,
    overlap: Overlap = 32,
) -> Image:
    """Enlarge pictures with an upscale model: by its own scale, or to `factor` times their size.

    For a `factor` the model is applied until it is reached, once at least and three times at most, and the result
    resampled to the sides that are asked for, truncated to whole pixels: what A1111's upscalers do. The picture is
    worked on in tiles of `tile` px, 0 for all of it at once, that overlap by `overlap` px and fade into one another.
    Transparency is not part of a picture here; enlarge its mask with `mask.resize`.
    """
    wanted = None if factor is None else target(image.size, None, None, factor)
    larger = _applied(image, upscaler, context, Tiling(tile, overlap))
    if wanted is None:
        return larger
    for _ in range(PASSES - 1):
        if upscaler.scale == 1 or all(side >= least for side, least in zip(larger.size, wanted, strict=True)):
            break
        larger = _applied(larger, upscaler, context, Tiling(tile, overlap))
    return larger if larger.size == wanted else refit(larger, wanted, "stretch", filter)


def _applied(image: Image, upscaler: Upscaler, context: Context, tiling: Tiling) -> Image:
    """Pictures enlarged once."""
    width, height = (side * upscaler.scale for side in image.size)
    if max(width, height) > MAX_SIDE:
        made = f"{px(image.size)} enlarged {upscaler.scale} times is {px((width, height))}"
        raise ValueError(f"{made}: no side may exceed {MAX_SIDE} px; enlarge a smaller picture, or to a lower factor")
    model, wider = context.model(upscaler), in_float32(context, upscaler)

    def run(tiling: Tiling) -> Image:
        enlarged = enlarging.enlarge(image.data, model, tiling, wider=wider, progress=context.progress)
        return Image(enlarged.to(image.data.device))

    return in_tiles(context, run, tiling, max(image.size))
