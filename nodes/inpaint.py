"""Inpainting: what is cut out, what stands under the mask, and how the result goes back into the picture."""

from typing import Literal, NamedTuple

import PIL.Image
import torch
from PIL import ImageFilter

from engine.node import node
from engine.socket import Int
from nodes import mask as masks
from nodes.fit import Factor, Filter, Multiple, Resizing, Size, fit, px, target, unfilled
from nodes.image import Pictures, batch_size, composite, cut, each, refit
from nodes.types import Image, Mask, Offset, Pixels, Side, Sigma

Area = Literal["whole", "masked"]
"""What is repainted at the asked size: the whole picture, or only the surroundings of the mask."""
Edge = Literal["a1111", "outside", "across", "inside"]
"""On which side of the mask's edge the result fades into the picture."""
Content = Literal["fill", "original", "noise", "nothing"]
"""What stands under the mask at the start."""
Box = tuple[int, int, int, int]
"""Left, top, right and bottom in px; the last two are outside."""

BLURS = ((256, 1), (64, 1), (16, 2), (4, 4), (2, 2), (0, 1))
"""Radius in px and repeats of the layers that fill a hole, from the farthest to the nearest."""


class Frame(NamedTuple):
    """What is repainted, and where it belongs: `x`, `y`, `width` and `height` are its box on `base`, in px.

    `mask_width` and `mask_height` are the size at which it is repainted, that of `mask`.
    """

    image: Image
    mask: Mask
    base: Image
    overlay: Mask
    x: Int
    y: Int
    width: Int
    height: Int
    mask_width: Int
    mask_height: Int


@node("inpaint.frame", version=1)
def frame(
    image: Image,
    mask: Mask,
    *,
    width: Side | None = None,
    height: Side | None = None,
    factor: Factor | None = None,
    area: Area = "whole",
    padding: Pixels = 32,
    mode: Resizing = "stretch",
    filter: Filter = "lanczos",  # noqa: A002  the field's word
    invert: bool = False,
    blur: Sigma = 4.0,
    edge: Edge = "a1111",
    multiple: Multiple = 1,
) -> Frame:
    """Prepare a picture and its mask for inpainting, as the WebUI does.

    The mask is inverted where asked, blurred, and both are brought to `width` x `height`, or to `factor` times the
    picture, rounded down to `multiple`: the `whole` picture by `mode`, or, `masked`, the box around the mask with
    `padding` px to each side, grown to the aspect that is asked for; then `mode` does not matter, and the result is as
    large as the picture. `image` and `mask` are what is encoded and repainted; `base` is what the result is pasted on,
    `overlay` where, with what share. With b the blurred mask on `base`, the `edge` fades `outside` of the mask's middle
    line, min(2 b, 255), `across` it, b, or `inside`, max(2 b - 255, 0), and then nothing changes outside of the mask
    itself; `a1111` is `outside` for `whole` and `across` for `masked`.

    A mask of another size is stretched to the picture's first. A blank mask keeps everything. In the mode `latent` the
    `whole` picture stays as it is, and mask, base and overlay have the size that its latent is resized to. Of a batch
    of masks the box holds all.
    """
    batch_size(image, mask)
    size = target(image.size, width, height, factor, multiple)
    hard = aligned(mask, image.size)
    hard = masks.invert(hard) if invert else hard
    soft = masks.blur(hard, blur)
    if area == "masked":
        box = region(soft, padding, size)
        share = overlay(soft, hard, "across" if edge == "a1111" else edge)
        return _placed(_boxed(image, box, size, filter), _boxed(soft, box, size, "lanczos"), image, share, box)
    fitting: Resizing = "stretch" if mode == "latent" else mode
    step = multiple if mode == "latent" else 1
    picture = cut(image, step)
    base = refit(picture, size, fitting, filter)
    hard, soft = (refit(cut(part, step), size, fitting, "lanczos") for part in (hard, soft))
    share = overlay(soft, hard, "outside" if edge == "a1111" else edge)
    return _placed(picture if mode == "latent" else base, soft, base, share, (0, 0, *size))


@node("inpaint.content", version=1)
def content(image: Image, mask: Mask, content: Content = "original") -> Image:
    """Put what the masked area starts from under the mask: the WebUI's "masked content".

    `fill` spreads the colours around the mask into it, by blurred copies of what is kept laid over one another, the
    widest first; what is not masked stays exactly, and a picture that is masked everywhere becomes black. Before
    `noise` and `nothing`, which `latent.content` puts there, the WebUI fills too. `original` keeps the picture.
    """
    if content == "original":
        return image
    mask = aligned(mask, image.size)
    count = batch_size(image, mask)
    images, holes = (parts.data.expand(count, -1, -1, -1) for parts in (image, mask))
    filled = [_filled(Image(one[None]), Mask(hole[None])) for one, hole in zip(images, holes, strict=True)]
    return Image(torch.cat(filled).to(image.data.device))


@node("inpaint.paste", version=1)
def paste(base: Image, over: Image, overlay: Mask, *, x: Offset, y: Offset, width: Side, height: Side) -> Image:
    """Put what was repainted back into its box on the picture, in the shares of the overlay, rounded.

    What `inpaint.frame` added to reach the size is cut off again and the rest resized to `width` x `height`, so that
    nothing is shifted or distorted. Everything beyond the box is kept.
    """
    if overlay.size != base.size:
        raise ValueError(f"the overlay is {px(overlay.size)}: expected the size of the base, {px(base.size)}")
    if x < 0 or y < 0 or x + width > base.size[0] or y + height > base.size[1]:
        raise ValueError(f"the box ({x}, {y})..({x + width}, {y + height}) leaves the base of {px(base.size)}")
    boxed = each(over, lambda picture: unfilled(picture, (width, height), "lanczos"))
    share = Mask(overlay.data[..., y : y + height, x : x + width])
    return composite(base, boxed, share, x, y)


def region(mask: Mask, padding: int, size: Size) -> Box:
    """The box that is repainted at `size`: around all that is not 0 in any of the masks; everything where all is 0."""
    box = bounds(mask)
    return (0, 0, *mask.size) if box is None else expanded(padded(box, padding, mask.size), mask.size, size)


def bounds(mask: Mask) -> Box | None:
    """The smallest box around all that is not 0 in any of the masks, or None."""
    touched = mask.data.amax(dim=(0, 1)) > 0
    columns, rows = (torch.nonzero(touched.any(dim=axis)).flatten().tolist() for axis in (0, 1))
    return (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1) if rows else None


def padded(box: Box, padding: int, canvas: Size) -> Box:
    """A box with `padding` px more to each side, cut at the canvas."""
    x1, y1, x2, y2 = box
    width, height = canvas
    return max(x1 - padding, 0), max(y1 - padding, 0), min(x2 + padding, width), min(y2 + padding, height)


def expanded(box: Box, canvas: Size, size: Size) -> Box:
    """A box made higher or wider until it has the aspect of `size`, as far as the canvas allows."""
    x1, y1, x2, y2 = box
    aspect, width, height = size[0] / size[1], x2 - x1, y2 - y1
    if width / height > aspect:
        y1, y2 = _widened(y1, y2, int(width / aspect - height), canvas[1])
    else:
        x1, x2 = _widened(x1, x2, int(height * aspect - width), canvas[0])
    return x1, y1, x2, y2


def overlay(soft: Mask, hard: Mask, edge: Literal["outside", "across", "inside"]) -> Mask:
    """The share of the result, from the mask before and after it was blurred."""
    level = soft.data.to(torch.int16)
    match edge:
        case "outside":
            return Mask((2 * level).clamp(max=255).to(torch.uint8))
        case "across":
            return soft
        case "inside":
            return Mask(torch.minimum((2 * level - 255).clamp(min=0).to(torch.uint8), hard.data))


def aligned(mask: Mask, size: Size) -> Mask:
    """A mask stretched over a picture of `size`; bilinear, so that no level appears beyond its edges."""
    return mask if mask.size == size else each(mask, lambda picture: fit(picture, size, "stretch", "bilinear"))


def _widened(start: int, end: int, by: int, limit: int) -> tuple[int, int]:
    """A span longer by `by`, half to each side, pushed back inside 0..limit and cut where it does not fit."""
    start, end = start - by // 2, end + by - by // 2
    back = max(end - limit, 0)
    start, end = start - back, end - back
    forward = max(-start, 0)
    return start + forward, min(end + forward, limit)


def _boxed(pictures: Pictures, box: Box, size: Size, resampling: Filter) -> Pictures:
    """What lies in the box, fitted into `size`."""
    return each(pictures, lambda picture: fit(picture.crop(box), size, "fill", resampling))


def _placed(image: Image, mask: Mask, base: Image, share: Mask, box: Box) -> Frame:
    x1, y1, x2, y2 = box
    placed = map(Int, (x1, y1, x2 - x1, y2 - y1, *mask.size))
    return Frame(image, mask, base, share, *placed)


def _filled(image: Image, mask: Mask) -> torch.Tensor:
    """One picture with the colours around the mask spread into it, on the CPU."""
    kept = PIL.Image.new("RGBa", image.size)
    kept.paste(image.pil().convert("RGBA").convert("RGBa"), mask=masks.invert(mask).pil())
    layers = PIL.Image.new("RGBA", image.size)
    for radius, repeats in BLURS:
        blurred = kept.filter(ImageFilter.GaussianBlur(radius)).convert("RGBA")
        for _ in range(repeats):
            layers.alpha_composite(blurred)
    return Image.of(layers).data
