"""Sampling: from noise to a latent, under prompts and a mask."""

from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from itertools import count
from math import sqrt
from time import perf_counter
from typing import Annotated, Literal, NamedTuple, TypeAlias

import torch
from annotated_types import Ge, Le

from engine.context import Context
from engine.device import before_trim
from engine.digest import Digest
from engine.errors import Cancelled
from engine.node import Arguments, Rounds, node
from nodes.diffusion.compiling import compiled
from nodes.diffusion.denoise import Denoiser
from nodes.diffusion.drive import Result, Run, drive, lockstep
from nodes.diffusion.guidance import Guidance, Question, guided
from nodes.diffusion.noise import Streams, brownian
from nodes.diffusion.recording import forget
from nodes.diffusion.sampler import SAMPLERS, evaluations
from nodes.diffusion.schedule import FOR_XL, SCHEDULES, Convention, executed, plan
from nodes.diffusion.step import AnySteps, Predicted
from nodes.diffusion.table import NoiseSchedule
from nodes.noise import streams
from nodes.options import keywords, limits, sparing
from nodes.resume import Trail, firsts
from nodes.steering import check_prompts, concatenated, controls, kept, spoken
from nodes.types import (
    Colours,
    Conditioning,
    Control,
    Fraction,
    Image,
    InpaintConditioning,
    Latent,
    Mask,
    Noise,
    SampleOptions,
    Soft,
    Unet,
    UnetModel,
)
from nodes.unsaid import unsaid

SamplerName = Literal[
    "dpmpp_2m",
    "dpmpp_sde",
    "dpmpp_2m_sde",
    "dpmpp_2m_sde_heun",
    "dpmpp_2s_ancestral",
    "dpmpp_3m_sde",
    "euler_ancestral",
    "euler",
    "lms",
    "heun",
    "dpm_2",
    "dpm_2_ancestral",
    "dpm_fast",
    "dpm_adaptive",
    "restart",
    "ddim",
    "plms",
    "uni_pc",
    "uni_pc_bh2",
    "lcm",
    "heunpp2",
    "ddpm",
    "ipndm",
    "deis",
    "res_multistep",
    "gradient_estimation",
    "ipndm_v",
    "res_multistep_ancestral",
    "seeds_2",
    "seeds_3",
    "er_sde",
    "sa_solver",
    "sa_solver_pece",
    "euler_cfg_pp",
    "euler_ancestral_cfg_pp",
    "dpmpp_2s_ancestral_cfg_pp",
    "dpmpp_2m_cfg_pp",
    "res_multistep_cfg_pp",
    "res_multistep_ancestral_cfg_pp",
    "gradient_estimation_cfg_pp",
]
ScheduleName = Literal[
    "automatic",
    "karras",
    "exponential",
    "polyexponential",
    "normal",
    "sgm_uniform",
    "simple",
    "ddim_uniform",
    "beta",
    "beta_timestep",
    "kl_optimal",
    "linear_quadratic",
    "align_your_steps",
    "align_your_steps_xl",
    "vp",
    "laplace",
    "sd_turbo",
    "lcm",
    "custom",
]
"""A schedule; "automatic" is the one that the sampler is made for, "align_your_steps" that of the model's family."""
Step = Annotated[int, Ge(0), Le(100_000)]
"""A place among the steps of a run; 0 is the first."""
PLAIN = SampleOptions()
NEARLY = 1e-5
"""By how much a level may miss the highest one and still be it."""
before_trim(forget)


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
    soft: Soft | None = None
    inpaint: InpaintConditioning | None = None
    control: Control | None = None
    options: SampleOptions = PLAIN
    convention: Convention = "exact"
    round_mask: bool = True
    first: int = 0
    last: int | None = None
    leftover: bool = False


@dataclass(eq=False)
class _Asked:
    """What a call asks of its model."""

    call: _Call
    question: Question
    place: Digest | None
    """What the question is known by on the call's trail."""
    seconds: float = 0.0
    """Its share of what the answers of its round took."""


_Run: TypeAlias = Run[_Asked, Result]


def sample_many(calls: Sequence[Arguments]) -> Rounds:
    """Several calls of `sample` with one model, in lockstep: they share UNet calls, whatever else differs.

    Others join between two rounds. What a call meets, its cancellation included, stands in its place, and the others go
    on. What a UNet call raises ends them all and passes through.
    """
    answer = _Answering(_Call(**calls[0]))
    yield from lockstep(calls, answer, lambda arguments: _sampled(_Call(**arguments)))


@node("sample", version=10, many=sample_many)
def sample(
    unet: Unet,
    positive: Conditioning,
    latent: Latent,
    noise: Noise,
    context: Context,
    *,
    negative: Conditioning | None = None,
    mask: Mask | None = None,
    soft: Soft | None = None,
    inpaint: InpaintConditioning | None = None,
    control: Control | None = None,
    options: SampleOptions | None = None,
    steps: Annotated[int, Ge(1), Le(1000)] = 20,
    cfg: Annotated[float, Ge(0), Le(100)] = 7.0,
    denoise: Fraction = 1.0,
    sampler: SamplerName = "dpmpp_2m",
    schedule: ScheduleName = "karras",
    convention: Convention = "exact",
    round_mask: bool = True,
    first: Step = 0,
    last: Step | None = None,
    leftover: bool = False,
) -> Latent:
    """Add noise to a latent and remove it again under a prompt.

    `denoise` says how far up the noise levels it begins: 0 changes nothing, 1 keeps next to nothing of the latent.
    Exactly `steps` steps run, the last ones of a schedule of `steps` / `denoise` steps; by the convention "a1111" about
    `steps` * `denoise` steps, as the WebUI counts. "comfy" counts exactly, and does what else ComfyUI does: the UNet is
    told whole timesteps, noise that covers everything is a little stronger, that of the steps comes from the same seed
    once more, and the mask is scaled down bilinearly, greys and all, and keeps also what the UNet sees.

    `options` tells the sampler more. `cfg` weighs the prompt against the negative one, which is needed unless `cfg` is
    1 and the prompt has one part. With a mask only the repainted area changes: on every step the predicted latent is
    replaced by the original outside of it. The mask is rounded to whole latent cells; without `round_mask` its greys
    mix both. `soft` reads greys as how much may change instead. `inpaint` is what an inpainting model wants to see of
    picture and mask, and other models ignore it. Without it such a model sees the mask and the latent; without a mask
    either, all is to be repainted, and the picture is middle grey, as its checkpoint's own VAE encodes it. `control`
    are ControlNets, from `controlnet.apply`. One latent serves all pictures of the noise, or there is one for each.

    Of the steps those from `first` on and before `last` run, counted from 0. What is left out at the end is made up for
    in the last step, unless `leftover` noise is to stay for another `sample`, which begins there and adds none of its
    own (the option `noise_multiplier` 0).
    """
    call = _Call(
        unet=unet,
        positive=positive,
        latent=latent,
        noise=noise,
        context=context,
        steps=steps,
        cfg=cfg,
        denoise=denoise,
        sampler=sampler,
        schedule=schedule,
        negative=negative,
        mask=mask,
        soft=soft,
        inpaint=inpaint,
        control=control,
        options=options or PLAIN,
        convention=convention,
        round_mask=round_mask,
        first=first,
        last=last,
        leftover=leftover,
    )
    [result] = drive([_sampled(call)], _Answering(call))
    if isinstance(result, BaseException):
        raise result
    return result


class _Answering:
    """Answers the questions of calls of one model, round by round; the first that takes part in one counts for all.

    What several calls ask at once is computed once.
    """

    def __init__(self, call: _Call) -> None:
        """Any call of that model will do."""
        model = call.context.model(call.unet)
        self._context = call.context
        batch, steady = 1 if call.context.scarce else None, call.context.exact
        self._compiled = compiled(model.unet) if call.context.compiled else None
        self._calls: set[_Call] | None = None
        unet = self._compiled or model.unet
        self._denoiser = Denoiser(unet, model.table, batch, called=self._count, steady=steady)

    def __call__(self, asked: Sequence[_Asked]) -> list[Predicted]:
        self._context = asked[0].call.context
        self._renew({each.call for each in asked})
        began = perf_counter()
        chosen = firsts([(each.place, each.question) for each in asked])
        distinct = list(dict.fromkeys(chosen))
        answers = dict(zip(distinct, self._denoiser([asked[number].question for number in distinct]), strict=True))
        share = (perf_counter() - began) / len(asked)
        for note in self._compiled.notes() if self._compiled else ():
            self._context.alarm(note)
        for each in asked:
            each.seconds = share
        return [answers[number] for number in chosen]

    def _renew(self, calls: set[_Call]) -> None:
        """Where others have joined, have the compiled form look whether anything has moved."""
        if self._compiled is not None and self._calls is not None and calls - self._calls:
            self._compiled.renew()
        self._calls = calls

    def _count(self, latents: int) -> None:
        self._context.measure("unet_calls", latents)


def _sampled(call: _Call) -> _Run[Latent | BaseException]:
    """Take one call from noise to its latent; what it meets on the way ends it alone."""
    try:
        result = yield from _sampling(call, call.context.model(call.unet))
    except (Exception, Cancelled) as error:  # noqa: BLE001  of this call only
        return error
    return Latent(result.clone(memory_format=torch.contiguous_format), call.latent.space)


def _sampling(call: _Call, model: UnetModel) -> _Run[torch.Tensor]:
    """Put the call's sampler together and run it; an adaptive one for each picture alone."""
    start, sampler = _start(call.latent, call.noise), SAMPLERS[call.sampler]
    if sampler.adaptive and len(start) > 1:
        pictures = []
        for picture in _pictures(call):
            pictures.append((yield from _sampling(picture, model)))  # noqa: PERF401  no comprehension can yield
        return torch.cat(pictures)
    comfy = call.convention == "comfy"
    drawn = _drawn(call, start)
    keeper = kept(
        call.mask,
        call.soft,
        call.latent,
        start,
        round_mask=call.round_mask,
        noise=_noise_kept(call, drawn) if comfy else None,
    )
    way = _way(call, model)
    sigmas = way.levels
    if len(sigmas) < 2:
        return start
    guidance = replace(_guidance(call, start, model), repaint=keeper)
    steps = _steps(call, start, drawn, way, model.table)
    total = evaluations(call.sampler, sigmas, **_told(call)) or call.steps
    with (
        closing(_trail(call, guidance, way)) as trail,
        closing(
            guided(steps, guidance, call.steps * sampler.asks, call.first * sampler.asks, finished=sigmas[-1] == 0)
        ) as run,
    ):
        return (yield from _reported(run, total, call, trail))


def _guidance(call: _Call, start: torch.Tensor, model: UnetModel) -> Guidance:
    """What steers the call, but for its mask."""
    sampler, downscale = SAMPLERS[call.sampler], call.latent.space.downscale
    unguided, calls = sampler.unguided, sampler.asks * executed(call.steps, call.denoise, call.convention)
    check_prompts(call.positive, call.negative, call.cfg, model, unguided=unguided)
    nets = [call.context.model(hint.net) for hint in call.control.hints] if call.control else []
    negative = None
    if call.negative is not None:
        negative = spoken(call.negative, start, downscale, model, negative=True)
    return Guidance(
        spoken(call.positive, start, downscale, model, negative=False),
        negative,
        call.cfg,
        concat=concatenated(call.inpaint, start, model, partial(_unsaid, call, start)),
        whole_timesteps=call.convention == "comfy",
        controls=controls(call.control, nets, start, downscale, model),
        rescale=call.options.cfg_rescale,
        unguided=unguided,
        sparing=sparing(call.options, calls),
    )


def _unsaid(call: _Call, start: torch.Tensor) -> torch.Tensor:
    """What an inpainting model sees where the call does not say it."""
    return unsaid(call.unet, call.latent, start, call.mask, call.context, comfy=call.convention == "comfy")


class _Way(NamedTuple):
    """The levels that a call visits, and the lowest and highest that its Brownian paths run between.

    ComfyUI's run between those of the run, the WebUI's between those of the whole schedule.
    """

    levels: list[float]
    low: float
    high: float


def _way(call: _Call, model: UnetModel) -> _Way:
    """The levels of a call."""
    sampler = SAMPLERS[call.sampler]
    name = sampler.schedule if call.schedule == "automatic" else call.schedule
    whole, begin = plan(
        SCHEDULES[FOR_XL.get(name, name) if model.wide else name],
        model.table,
        call.steps,
        call.denoise,
        convention=call.convention,
        discards=call.convention in sampler.discards or call.options.discard_penultimate,
        limits=limits(call.options),
    )
    levels, run = whole.tolist(), whole[begin:].tolist()
    visited = run[call.first :] if call.last is None else run[call.first : call.last + 1]
    if not call.leftover and len(visited) > 1:
        visited[-1] = 0.0
    above = [level for level in (visited if call.convention == "comfy" else levels) if level > 0]
    return _Way(visited, above[-1], above[0]) if above else _Way(visited, 0.0, 0.0)


def _drawn(call: _Call, start: torch.Tensor) -> Streams:
    """Open the call's noise; ComfyUI draws that of the steps from the same seeds once more."""
    delta = call.options.seed_delta if SAMPLERS[call.sampler].reseeds else 0
    again = delta if delta or call.convention == "comfy" else None
    return streams(call.noise, start.shape[1:], call.latent.space.downscale, seed_delta=again, device=start.device)


def _steps(call: _Call, start: torch.Tensor, drawn: Streams, way: _Way, table: NoiseSchedule) -> AnySteps:
    """Start the call's sampler on its noise.

    ComfyUI makes noise that covers all of a latent a little stronger, for the latent's own variance of 1.
    """
    sampler, options, shape = SAMPLERS[call.sampler], call.options, start.shape[1:]
    recipe, level = call.noise, way.levels[0]
    path = brownian(
        recipe.seeds,
        shape,
        way.low,
        way.high,
        source=recipe.source,
        places=recipe.places,
        device=start.device,
    )

    def noise(sigma: float, following: float) -> torch.Tensor:
        step = path(sigma, following) if sampler.brownian else drawn()
        return step if options.noise_scale == 1 else step * options.noise_scale

    if call.convention == "comfy" and level > table.sigma_max * (1 - NEARLY):
        level = sqrt(1 + level**2)
    x = start + drawn.initial * (options.noise_multiplier * (level + options.extra_noise))
    return sampler(x, way.levels, noise, **_told(call))


def _trail(call: _Call, guidance: Guidance, way: _Way) -> Trail:
    """The call's way through its steps, of which earlier calls may have gone a part."""
    sampler, options = SAMPLERS[call.sampler], call.options
    taken = {name: value for name, value in _told(call).items() if name in sampler.takes}
    drawn = [call.noise.identity(), call.convention == "comfy", options.seed_delta if sampler.reseeds else 0]
    drawn += [options.noise_scale, (way.low, way.high) if sampler.brownian else None]
    nets = [hint.net.identity() for hint in call.control.hints] if call.control else []
    return Trail(call.context, [call.unet.identity(), call.sampler, taken, drawn], guidance, nets)


def _told(call: _Call) -> Mapping[str, object]:
    """What the sampler is told; ComfyUI's DPM-Solvers put no noise back unless they are."""
    quiet = call.convention == "comfy" and call.sampler in {"dpm_fast", "dpm_adaptive"}
    return {"eta": 0.0, **keywords(call.options)} if quiet else keywords(call.options)


def _noise_kept(call: _Call, drawn: Streams) -> torch.Tensor:
    """The noise that ComfyUI puts on what a mask keeps: what the run adds, but for DDIM that of the next seed."""
    if call.sampler != "ddim":
        return drawn.initial * call.options.noise_multiplier
    recipe = replace(call.noise, seeds=tuple((seed + 1) % 2**64 for seed in call.noise.seeds))
    shape, device = drawn.initial.shape[1:], drawn.initial.device
    return streams(recipe, shape, call.latent.space.downscale, device=device).initial


def _pictures(call: _Call) -> Iterator[_Call]:
    """The call for each of its pictures alone."""
    noise, latent, mask, inpaint = call.noise, call.latent, call.mask, call.inpaint
    for index, seed in enumerate(noise.seeds):
        row = slice(index, index + 1)
        yield replace(
            call,
            control=None if call.control is None else _alone(call.control, row),
            noise=replace(noise, seeds=(seed,), variations=noise.variations[row], places=noise.places[row]),
            latent=latent if len(latent.data) == 1 else replace(latent, data=latent.data[row]),
            mask=mask if mask is None or len(mask.data) == 1 else replace(mask, data=mask.data[row]),
            inpaint=inpaint if inpaint is None or len(inpaint.data) == 1 else replace(inpaint, data=inpaint.data[row]),
        )


def _alone(control: Control, row: slice) -> Control:
    """The ControlNets for one picture."""
    images, masks = (
        tuple(data if len(data) <= 1 else data[row] for data in several) for several in (control.images, control.masks)
    )
    return replace(control, images=images, masks=masks)


def _reported(
    run: Generator[Question, Predicted, torch.Tensor], total: int, call: _Call, trail: Trail
) -> _Run[torch.Tensor]:
    """Tell the call's context of every answer, recalled or not: there it may be cancelled, and shown."""
    call.context.progress(0, total)
    try:
        question = next(run)
        for done in count(1):
            answer = trail.recall(question)
            if answer is None:
                answer = yield (asked := _Asked(call, question, trail.place))
                trail.keep(question, answer, asked.seconds)
            call.context.progress(min(done, total), total, partial(_picture, call, answer.guided))
            question = run.send(answer)
    except StopIteration as end:
        result: torch.Tensor = end.value
    return result


def _picture(call: _Call, denoised: torch.Tensor) -> Image:
    """The first picture's predicted latent, a pixel per cell."""
    colours = call.context.model(Colours(call.unet.digest, call.unet.precision))
    return Image(colours.picture(denoised[:1]))


def _start(latent: Latent, noise: Noise) -> torch.Tensor:
    count, given = len(noise.seeds), latent.data.shape[0]
    if given not in (1, count):
        raise ValueError(f"noise for {count} pictures and {given} latents; give one latent, or as many as pictures")
    return latent.data.expand(count, -1, -1, -1)
