"""Pictures: from files, to other sizes, one over another, in and out of batches."""

import io
import struct
from collections.abc import Callable
from typing import Annotated, NamedTuple, TypeVar

import numpy as np
import PIL.Image
import torch
from annotated_types import Ge
from PIL import ImageChops, ImageFilter, ImageOps, UnidentifiedImageError

from engine.file import File
from engine.node import node
from engine.socket import Int
from nodes.fit import Factor, Filter, Multiple, Resizing, Size, fit, px, target
from nodes.types import Colour, Image, Mask, Offset, Side, Sigma

FORMATS = ("PNG", "JPEG", "WEBP", "GIF")
"""What may be loaded. Pillow's other readers stay closed: some of them start programs."""
MAX_PIXELS = 64_000_000
"""Largest picture that is decoded, in pixels."""

Index = Annotated[int, Ge(0)]
"""A place in a batch; 0 is the first."""

Pictures = TypeVar("Pictures", Image, Mask)

_DAMAGED = (OSError, SyntaxError, ValueError, EOFError, struct.error)
_BOMB = (PIL.Image.DecompressionBombError, PIL.Image.DecompressionBombWarning)


class Loaded(NamedTuple):
    """A picture and its transparent area."""

    out: Image
    alpha: Mask


class Layer(NamedTuple):
    """A drawing and where it covers what is below."""

    out: Image
    mask: Mask


class Resized(NamedTuple):
    """A picture and the size that was asked for, in px."""

    out: Image
    width: Int
    height: Int


@node("image.load", version=1)
def load(source: File, background: Colour = "#ffffff") -> Loaded:
    """Load a PNG, JPEG, WebP or GIF, turned upright, its transparent area over a plain background.

    `alpha` is 255 where the picture is fully transparent, so that inpainting fills the holes; 0 where it is opaque. Of
    an animation the first frame is taken. 16 bit levels are rounded to 8; colour profiles are ignored, as by A1111.
    """
    picture = decode(source)
    alpha = picture.convert("RGBA").getchannel("A")
    return Loaded(Image.of(flatten(picture, background)), Mask.of(ImageChops.invert(alpha)))


@node("image.load_layer", version=1)
def load_layer(source: File) -> Layer:
    """Load a drawing on a transparent ground: its own colours, not premultiplied, and its opacity.

    `mask` is 255 where the drawing is opaque, 0 where nothing was painted. A picture without transparency is opaque.
    """
    picture = decode(source)
    return Layer(Image.of(picture), Mask.of(picture.convert("RGBA").getchannel("A")))


@node("image.resize", version=2)
def resize(
    image: Image,
    width: Side | None = None,
    height: Side | None = None,
    *,
    factor: Factor | None = None,
    mode: Resizing = "stretch",
    filter: Filter = "lanczos",  # noqa: A002  the field's word
    multiple: Multiple = 1,
) -> Resized:
    """Resize to `width` x `height`, or by `factor`, which goes before them.

    Where the aspects differ, `stretch` distorts, `crop` covers the canvas and cuts what hangs over, and `fill` fits
    inside and continues the edges: A1111's "just resize", "crop and resize" and "resize and fill". `latent` keeps the
    pixels, but for what is cut at the right and the bottom to make the sides multiples of `multiple`: `latent.resize`
    does the resizing then ("just resize (latent upscale)"). The outputs `width` and `height` are the size that was
    asked for; sides by `factor` are truncated to whole pixels, all are rounded down to a multiple of `multiple`.
    """
    size = target(image.size, width, height, factor, multiple)
    return Resized(refit(image, size, mode, filter, multiple), Int(size[0]), Int(size[1]))


@node("image.blur", version=1)
def blur(image: Image, radius: Sigma = 4.0) -> Image:
    """Blur with Pillow's Gaussian of standard deviation `radius`, three passes of a box; the edges are continued."""
    return each(image, lambda picture: picture.filter(ImageFilter.GaussianBlur(radius)))


@node("image.crop", version=1)
def crop(image: Image, x: Offset, y: Offset, width: Side, height: Side) -> Image:
    """Cut out the box whose upper left pixel is (`x`, `y`); it must lie inside the picture."""
    right, bottom = x + width, y + height
    if x < 0 or y < 0 or right > image.size[0] or bottom > image.size[1]:
        raise ValueError(f"the box ({x}, {y})..({right}, {bottom}) leaves the picture of {px(image.size)}")
    return Image(image.data[..., y:bottom, x:right].contiguous())


@node("image.composite", version=1)
def composite(base: Image, over: Image, mask: Mask, x: Offset = 0, y: Offset = 0) -> Image:
    """Lay `over` on `base` where the mask is white, its upper left pixel at (`x`, `y`).

    out = (mask over + (255 - mask) base) / 255, rounded to the nearest level, so that 0 and 255 keep pixels exactly. A
    mask of the size of `over` moves with it; one of the size of `base` stays in place. What leaves `base` is cut.
    """
    if mask.size not in (over.size, base.size):
        raise ValueError(f"the mask is {px(mask.size)}: expected `over`, {px(over.size)}, or `base`, {px(base.size)}")
    count, device = batch_size(base, over, mask), base.data.device
    left, right = _overlap(x, over.size[0], base.size[0])
    top, bottom = _overlap(y, over.size[1], base.size[1])
    on_base = (..., slice(top, bottom), slice(left, right))
    on_over = (..., slice(top - y, bottom - y), slice(left - x, right - x))
    share = mask.data[on_over if mask.size == over.size else on_base].to(device)
    data = base.data.expand(count, -1, -1, -1).clone()
    data[on_base] = blend(base.data[on_base], over.data[on_over].to(device), share)
    return Image(data)


@node("image.batch", version=1)
def batch(images: tuple[Image, ...]) -> Image:
    """Put pictures of one size into one batch, in the order of the links."""
    sizes = sorted({image.size for image in images})
    if len(sizes) != 1:
        raise ValueError(f"expected pictures of one size, got {', '.join(map(px, sizes)) or 'none'}; resize them first")
    return Image(torch.cat([image.data.to(images[0].data.device) for image in images]))


@node("image.pick", version=1)
def pick(image: Image, index: Index = 0) -> Image:
    """Take one picture out of a batch; 0 is the first."""
    if index >= len(image.data):
        raise ValueError(f"index {index} is outside the batch of {len(image.data)}: expected 0..{len(image.data) - 1}")
    return Image(image.data[index : index + 1].clone())


def decode(source: File) -> PIL.Image.Image:
    """The picture in a file, upright, as RGB or RGBA.

    Raises ValueError that names the file when it is no picture in one of the FORMATS, is damaged, or, by its header
    and before any pixel is decoded, has more than MAX_PIXELS.
    """
    picture = _open(source.name, source.read())
    if picture.width * picture.height > MAX_PIXELS:
        raise ValueError(f"{source.name}: {px(picture.size)} is {_too_many()}")
    try:
        upright = ImageOps.exif_transpose(picture)
    except _DAMAGED as error:
        raise ValueError(f"{source.name} is damaged or cut short: {error}") from error
    plain = _eight_bit(upright)
    return plain.convert("RGBA" if plain.has_transparency_data else "RGB")


def flatten(picture: PIL.Image.Image, background: str) -> PIL.Image.Image:
    """`picture` over a plain background, RGB."""
    layer = picture.convert("RGBA")
    canvas = PIL.Image.new("RGB", picture.size, background)
    canvas.paste(layer, mask=layer.getchannel("A"))
    return canvas


def each(pictures: Pictures, change: Callable[[PIL.Image.Image], PIL.Image.Image]) -> Pictures:
    """A batch with every picture changed by Pillow, on the device that it came from."""
    changed = [pictures.of(change(pictures.pil(index))).data for index in range(len(pictures.data))]
    return type(pictures)(torch.cat(changed).to(pictures.data.device))


def refit(pictures: Pictures, size: Size, mode: Resizing, resampling: Filter, multiple: int = 1) -> Pictures:
    """A batch fitted to `size`; by `latent` only cut to multiples of `multiple`, itself where nothing is cut."""
    if mode == "latent":
        return cut(pictures, multiple)
    return each(pictures, lambda picture: fit(picture, size, mode, resampling))


def cut(pictures: Pictures, multiple: int) -> Pictures:
    """A batch without the last columns and rows beyond a multiple of `multiple`; itself where there are none."""
    width, height = target(pictures.size, *pictures.size, None, multiple)
    if pictures.size == (width, height):
        return pictures
    return type(pictures)(pictures.data[..., :height, :width].contiguous())


def batch_size(*inputs: Image | Mask) -> int:
    """How many pictures come out: a batch of 1 goes with any other. Raises ValueError where two others differ."""
    return together(*(len(entry.data) for entry in inputs))


def together(*counts: int) -> int:
    """The length of batches that go together: 1 goes with any other. Raises ValueError where two others differ."""
    others = sorted(set(counts) - {1})
    if len(others) > 1:
        raise ValueError(f"batches of {' and '.join(map(str, others))} do not go together")
    return others[0] if others else 1


def _open(name: str, data: bytes) -> PIL.Image.Image:
    try:
        return PIL.Image.open(io.BytesIO(data), formats=FORMATS)
    except _BOMB as error:
        raise ValueError(f"{name} has {_too_many()}") from error
    except UnidentifiedImageError as error:
        raise ValueError(f"{name} is not a picture: expected PNG, JPEG, WebP or GIF") from error
    except _DAMAGED as error:
        raise ValueError(f"{name} is damaged: {error}") from error


def _too_many() -> str:
    return f"more than the {MAX_PIXELS // 1_000_000} megapixels that are decoded"


def _eight_bit(picture: PIL.Image.Image) -> PIL.Image.Image:
    """16 bit grey at 8 bits, 65535 -> 255, its one transparent level as alpha; other pictures as they are."""
    if picture.mode != "I;16":
        return picture
    levels = np.asarray(picture).astype(np.uint32)
    grey = PIL.Image.fromarray(((levels + 128) // 257).astype(np.uint8))
    if "transparency" in picture.info:
        grey.putalpha(PIL.Image.fromarray(np.where(levels == picture.info["transparency"], 0, 255).astype(np.uint8)))
    return grey


def _overlap(offset: int, length: int, canvas: int) -> tuple[int, int]:
    """Start and end, on the canvas, of what it shares with something `length` long at `offset`."""
    start = max(offset, 0)
    return start, max(start, min(offset + length, canvas))


def blend(below: torch.Tensor, above: torch.Tensor, share: torch.Tensor) -> torch.Tensor:
    """Levels of `above` in shares of 255, the rest of `below`, rounded to the nearest."""
    weight = share.to(torch.int32)
    return ((weight * above + (255 - weight) * below + 127) // 255).to(torch.uint8)
