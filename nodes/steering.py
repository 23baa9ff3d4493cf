"""What steers one call of a sampler: checked against its UNet, before a wrong one fails all that share a UNet call."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.nn import functional

from nodes.cells import cells, shares
from nodes.diffusion.control import Control as Steering
from nodes.diffusion.guidance import Clause
from nodes.diffusion.keep import Keeper, NoisyRepaint, Repaint
from nodes.diffusion.scope import gap, place, window
from nodes.diffusion.soft import SoftRepaint
from nodes.types import Conditioning, Control, InpaintConditioning, Latent, Mask, Soft, UnetModel


@dataclass(frozen=True, eq=False)
class Spoken:
    """A conditioning made ready for latents of one size: `Scheduled` prompts.

    It holds a clause for each part and row, and for each part the noise levels between which it counts.
    """

    conditioning: Conditioning
    clauses: Mapping[tuple[int, int], Clause] = field(repr=False)
    windows: Sequence[tuple[float, float]]

    def at(self, call: int, calls: int, sigma: float | None) -> tuple[Clause, ...]:
        """What counts at model call `call` of `calls` and a noise level; None is any level."""
        said = enumerate(self.conditioning.at(call, calls))
        return tuple(
            self.clauses[number, row]
            for number, (_, row) in said
            if sigma is None or self.windows[number][0] <= sigma <= self.windows[number][1]
        )


def spoken(words: Conditioning, start: torch.Tensor, downscale: int, model: UnetModel, *, negative: bool) -> Spoken:
    """Make a conditioning ready for the latents `start`. Raises ValueError where it leaves a step to no prompt."""
    size = start.shape[2], start.shape[3]
    missing = None if negative else gap([part.scope for part in words.parts])
    if missing is not None:
        told = f"{missing[0]:.0%} to {missing[1]:.0%} of the way"
        raise ValueError(f"no prompt counts from {told}: combine it with one whose conditioning.span covers that")
    pooled, count = _pooled(words, model)
    relative = any(part.scope.relative for part in words.parts)
    clauses = {}
    for number, part in enumerate(words.parts):
        box, share = place(part.scope, words.masks, size, downscale)
        pixels = size[0] * downscale, size[1] * downscale
        numbers = part.scope.sizes.numbers(count, pixels, negative=negative) if count else ()
        share = None if share is None else share.to(start.device)
        for _, row in part.rows:
            clauses[number, row] = Clause(
                words.data[row : row + 1],
                part.weight,
                None if pooled is None else pooled[row : row + 1],
                numbers,
                None if share is None else box,
                share,
                relative,
            )
    windows = [window(model.table, part.scope.start, part.scope.end) for part in words.parts]
    return Spoken(words, clauses, windows)


def check_prompts(
    positive: Conditioning, negative: Conditioning | None, cfg: float, model: UnetModel, *, unguided: bool = False
) -> None:
    """Refuse conditionings of another width than the UNet's, and a missing negative one."""
    width = model.unet.config.cross_attention_dim
    widths = (width,) if isinstance(width, int) else tuple(width)
    for words in (positive, negative):
        if words is not None and words.data.shape[2] not in widths:
            given = " x ".join(map(str, words.data.shape))
            expected = f"this UNet takes 1 x tokens x {' or '.join(map(str, dict.fromkeys(widths)))}"
            raise ValueError(f"the conditioning is {given}, {expected}; encode with the model's own text encoder")
    if negative is not None:
        return
    if unguided:
        raise ValueError("this sampler asks for what is predicted under the negative prompt: link `negative`")
    weights = [part.weight for part in positive.parts]
    relative = any(part.scope.relative for part in positive.parts)
    if [weight * cfg for weight in weights] != [1] and not (relative and cfg == 1):
        if weights == [1] or relative:
            remedy = "link `negative`, or set cfg to 1"
            raise ValueError(f"cfg {cfg:g} weighs the prompt against a negative one: {remedy}")
        listed = ", ".join(f"{weight:g}" for weight in weights)
        raise ValueError(f"prompts with the weights {listed} are weighed against a negative one: link `negative`")


def controls(
    control: Control | None, nets: Sequence[Any], start: torch.Tensor, downscale: int, model: UnetModel
) -> tuple[Steering, ...]:
    """The ControlNets of one call, for the latents `start`; `nets` are the modules of its hints."""
    if control is None:
        return ()
    size = start.shape[2] * downscale, start.shape[3] * downscale
    made = []
    for hint, net, image, mask in zip(control.hints, nets, control.images, control.masks, strict=True):
        _check_net(net, model)
        if len(image) not in (1, len(start)):
            raise ValueError(f"{len(image)} pictures for a ControlNet and {len(start)} to sample; give one, or as many")
        shown = _shown(image, mask, size).to(start.device)
        made.append(Steering(net, shown, hint.strength, *window(model.table, hint.start, hint.end)))
    return tuple(made)


def _pooled(words: Conditioning, model: UnetModel) -> tuple[torch.Tensor | None, int]:
    """The pooled states that the UNet takes, and how many numbers about sizes; None and 0 for most UNets."""
    config = model.unet.config
    if not model.wide:
        return None, 0
    whole, each, given = (
        config.projection_class_embeddings_input_dim,
        config.addition_time_embed_dim,
        words.pooled.shape,
    )
    count, rest = divmod(whole - given[1], each)
    if not words.pooled.numel() or rest or count not in (5, 6):
        raise ValueError(
            f"the conditioning has {given[1]} pooled states, this UNet takes {whole - 6 * each} beside 6 sizes, or "
            f"{whole - 5 * each} beside 5; encode with the model's own text encoder"
        )
    return words.pooled, count


def _check_net(net: Any, model: UnetModel) -> None:
    """Refuse a ControlNet for another kind of UNet."""
    ours, theirs = model.unet.config, net.config
    alike = ("cross_attention_dim", "addition_embed_type", "block_out_channels")
    for name in alike:
        wanted, given = getattr(ours, name, None), getattr(theirs, name, None)
        if _plain(wanted) != _plain(given):
            raise ValueError(
                f"this ControlNet is for another kind of model: its {name} is {given}, the UNet's is {wanted}; take "
                "one that was made for the model's family"
            )


def _plain(value: Any) -> Any:
    """Numbers of levels as one, where all are alike."""
    if isinstance(value, (list, tuple)):
        return value[0] if len(set(value)) == 1 else tuple(value)
    return value


def _shown(image: torch.Tensor, mask: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """A hint as a ControlNet takes it, at the pictures' size (height, width); -1 where the mask is from 128 on."""
    hint = _fitted(image.float() / 255, size)
    if not len(mask):
        return hint
    hidden = _fitted(mask.float() / 255, size) >= 0.5
    return torch.where(hidden, -1.0, hint)


def _fitted(data: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Stretch to (height, width), smoothly."""
    if tuple(data.shape[2:]) == size:
        return data
    return functional.interpolate(data, size=size, mode="bilinear", align_corners=False, antialias=True)


def concatenated(
    inpaint: InpaintConditioning | None, start: torch.Tensor, model: UnetModel, unsaid: Callable[[], torch.Tensor]
) -> torch.Tensor | None:
    """What goes to the UNet beside the latents `start`, where it is an inpainting model; None for others.

    `unsaid` makes it where no `inpaint` says it.
    """
    (pictures, channels, *sides), takes = start.shape, model.unet.config.in_channels
    if channels == takes:
        return None
    if takes != 2 * channels + 1:
        raise ValueError(f"the latent has {channels} channels, this UNet takes {takes}; use the model's own VAE")
    if inpaint is None:
        return unsaid()
    given = tuple(inpaint.data.shape)
    if given[0] not in (1, pictures) or given[1:] != (takes - channels, *sides):
        expected = f"1 or {pictures} x {takes - channels} x {sides[0]} x {sides[1]}"
        raise ValueError(
            f"the inpaint conditioning is {' x '.join(map(str, given))}, expected {expected}; make it with this UNet, "
            "from a picture and mask of the latent's size"
        )
    return inpaint.data.to(start.device)


def kept(
    mask: Mask | None,
    soft: Soft | None,
    latent: Latent,
    start: torch.Tensor,
    *,
    round_mask: bool,
    noise: torch.Tensor | None = None,
) -> Keeper | None:
    """What the mask keeps of the latents `start`; None where there is no mask. With `noise`, as ComfyUI does."""
    if mask is None:
        if soft is not None:
            raise ValueError("soft inpainting reads the greys of a mask: link `mask`, or take the link of `soft` away")
        return None
    if noise is not None and soft is None:
        return NoisyRepaint(shares(mask, latent, len(start)), start, noise)
    share = cells(mask, latent, len(start), rounded=round_mask and soft is None)
    if soft is None:
        return Repaint(share, start)
    return SoftRepaint(share, start, soft.bias, soft.preservation, soft.contrast)
