"""Sampling: from noise to a latent, under prompts and a mask."""

from collections.abc import Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from itertools import count
from typing import Annotated, Any, Literal, TypeAlias

import numpy as np
import PIL.Image
import torch
from annotated_types import Ge, Le

from engine.context import Context
from engine.errors import Cancelled
from engine.node import node
from nodes.diffusion.drive import Result, Run, drive
from nodes.diffusion.guidance import Denoiser, Guidance, Question, Repaint, grouped, guided
from nodes.diffusion.noise import Streams, Variation
from nodes.diffusion.sampler import SAMPLERS
from nodes.diffusion.schedule import SCHEDULES, tail
from nodes.types import Colours, Conditioning, Fraction, Image, Latent, Mask, Noise, Unet, UnetModel

SamplerName = Literal["dpmpp_2m", "euler", "euler_ancestral", "heun", "ddim"]
ScheduleName = Literal["karras", "normal", "exponential", "sgm_uniform"]
HALF = 128
"""A latent cell is repainted where its mask level, scaled down with Pillow's bicubic filter, is at least this."""


@dataclass(frozen=True, eq=False)
class _Call:
    """The arguments of one call of `sample`."""

    unet: Unet
    positive: Conditioning
    latent: Latent
    noise: Noise
    context: Context
    steps: int
    cfg: float
    denoise: float
    sampler: SamplerName
    schedule: ScheduleName
    negative: Conditioning | None = None
    mask: Mask | None = None


@dataclass(frozen=True, eq=False)
class _Asked:
    """What a call asks of its model."""

    call: _Call
    model: UnetModel
    question: Question


_Run: TypeAlias = Run[_Asked, Result]


def sample_many(calls: Sequence[Mapping[str, Any]]) -> list[Latent | BaseException]:
    """Several calls of `sample` in lockstep: those of one model share UNet calls, whatever else differs.

    What a call meets, its cancellation included, stands in its place, and the others go on. What a UNet call raises
    ends them all and passes through.
    """
    return drive([_sampled(_Call(**call)) for call in calls], _answer)


@node("sample", version=1, many=sample_many)
def sample(
    unet: Unet,
    positive: Conditioning,
    latent: Latent,
    noise: Noise,
    context: Context,
    *,
    negative: Conditioning | None = None,
    mask: Mask | None = None,
    steps: Annotated[int, Ge(1), Le(1000)] = 20,
    cfg: Annotated[float, Ge(0), Le(100)] = 7.0,
    denoise: Fraction = 1.0,
    sampler: SamplerName = "dpmpp_2m",
    schedule: ScheduleName = "karras",
) -> Latent:
    """Add noise to a latent and remove it again under a prompt.

    `denoise` says how far up the noise levels it begins: 0 changes nothing, 1 keeps next to nothing of the latent.
    Exactly `steps` steps run, the last ones of a schedule of `steps` / `denoise` steps. `cfg` weighs the prompt against
    the negative one, which is needed unless `cfg` is 1. With a mask only the repainted area changes: on every step the
    predicted latent is replaced by the original outside of it. One latent serves all pictures of the noise, or there is
    one for each.
    """
    call = _Call(unet, positive, latent, noise, context, steps, cfg, denoise, sampler, schedule, negative, mask)
    [result] = drive([_sampled(call)], _answer)
    if isinstance(result, BaseException):
        raise result
    return result


def _answer(asked: Sequence[_Asked]) -> list[torch.Tensor]:
    """Answer the questions of all calls, those of one model together; the first of them keeps count."""
    answers: dict[int, torch.Tensor] = {}
    for alike in grouped(range(len(asked)), lambda position: asked[position].call.unet):
        first = asked[alike[0]]
        counted = partial(first.call.context.measure, "unet_calls")
        denoiser = Denoiser(first.model.unet, first.model.table, called=counted)
        answers.update(zip(alike, denoiser([asked[position].question for position in alike]), strict=True))
    return [answers[position] for position in range(len(asked))]


def _sampled(call: _Call) -> _Run[Latent | BaseException]:
    """Take one call from noise to its latent; what it meets on the way ends it alone."""
    try:
        result = yield from _sampling(call, call.context.model(call.unet))
    except (Exception, Cancelled) as error:  # noqa: BLE001  of this call only
        return error
    return Latent(result.clone(memory_format=torch.contiguous_format), call.latent.space)


def _sampling(call: _Call, model: UnetModel) -> _Run[torch.Tensor]:
    """Put the call's sampler together and run it."""
    start = _start(call.latent, call.noise)
    repaint = None if call.mask is None else Repaint(_cells(call.mask, call.latent, len(start)).to(start.device), start)
    sigmas = tail(SCHEDULES[call.schedule], model.table, call.steps, call.denoise).tolist()
    if len(sigmas) < 2:
        return start
    guidance = Guidance(call.positive.data, _negative(call.negative, call.cfg), call.cfg, repaint)
    _check_fit(start, guidance, model)
    streams = _streams(call.noise, start)
    steps = SAMPLERS[call.sampler](start + streams.initial * sigmas[0], sigmas, streams)
    total = (2 if call.sampler == "heun" else 1) * (len(sigmas) - 1) - (call.sampler == "heun")
    with closing(guided(steps, guidance)) as run:
        return (yield from _reported(run, total, call, model))


def _reported(
    run: Generator[Question, torch.Tensor, torch.Tensor], total: int, call: _Call, model: UnetModel
) -> _Run[torch.Tensor]:
    """Tell the call's context of every answer: there it may be cancelled, and shown."""
    call.context.progress(0, total)
    try:
        question = next(run)
        for done in count(1):
            denoised = yield _Asked(call, model, question)
            call.context.progress(done, total, partial(_picture, call, denoised))
            question = run.send(denoised)
    except StopIteration as end:
        result: torch.Tensor = end.value
    return result


def _picture(call: _Call, denoised: torch.Tensor) -> Image:
    """The first picture's predicted latent, a pixel per cell."""
    colours = call.context.model(Colours(call.unet.digest, call.unet.precision))
    return Image(colours.picture(denoised[:1]))


def _check_fit(start: torch.Tensor, guidance: Guidance, model: UnetModel) -> None:
    """Refuse what the UNet cannot take, before it fails all that share the UNet call."""
    pictures, channels = start.shape[:2]
    takes, width = model.unet.config.in_channels, model.unet.config.cross_attention_dim
    if channels != takes:
        raise ValueError(f"the latent has {channels} channels, this UNet takes {takes}; use the model's own VAE")
    for tokens in guidance.conditionings:
        if tokens.shape[2] != width or tokens.shape[0] not in (1, pictures):
            given = " x ".join(map(str, tokens.shape))
            expected = f"this UNet takes 1 x tokens x {width}"
            raise ValueError(f"the conditioning is {given}, {expected}; encode with the model's own text encoder")


def _start(latent: Latent, noise: Noise) -> torch.Tensor:
    count, given = len(noise.seeds), latent.data.shape[0]
    if given not in (1, count):
        raise ValueError(f"noise for {count} pictures and {given} latents; give one latent, or as many as pictures")
    return latent.data.expand(count, -1, -1, -1)


def _negative(negative: Conditioning | None, cfg: float) -> torch.Tensor | None:
    if negative is None and cfg != 1:
        raise ValueError(f"cfg {cfg:g} weighs the prompt against a negative one: link `negative`, or set cfg to 1")
    return None if negative is None else negative.data


def _streams(noise: Noise, start: torch.Tensor) -> Streams:
    variation = Variation(noise.variations, noise.strength) if noise.variations else None
    return Streams.open(noise.seeds, start.shape[1:], variation=variation, device=start.device)


def _cells(mask: Mask, latent: Latent, pictures: int) -> torch.Tensor:
    """The mask on the latent grid, N x 1 x h x w of zeros and ones, as the WebUI rounds it."""
    height, width = latent.data.shape[2:]
    pixels = (width * latent.space.downscale, height * latent.space.downscale)
    if mask.size != pixels:
        raise ValueError(f"the mask has {mask.size[0]} x {mask.size[1]} px, the latent {pixels[0]} x {pixels[1]} px")
    if pictures > 1 and mask.data.shape[0] not in (1, pictures):
        raise ValueError(f"{mask.data.shape[0]} masks for {pictures} pictures; give one mask, or as many as pictures")
    scaled = [
        np.asarray(mask.pil(index).resize((width, height), PIL.Image.Resampling.BICUBIC))
        for index in range(mask.data.shape[0])
    ]
    return (torch.from_numpy(np.stack(scaled)).unsqueeze(1) >= HALF).float()
