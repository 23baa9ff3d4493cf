"""The samplers, by the names that graphs call them: ComfyUI's. See `step` for their shape.

What each is by nature stands in its record: the label that the WebUI shows, the schedule it is made for, how many
questions a step asks, which noise it wants. What it can be told are the keyword arguments of its function.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from inspect import signature
from itertools import count
from types import MappingProxyType

import torch
from torch import Tensor

from nodes.diffusion import cfg_pp
from nodes.diffusion.ancestral import (
    ddim,
    ddpm,
    dpm_2_ancestral,
    dpmpp_2s_ancestral,
    euler_ancestral,
    lcm,
    res_multistep_ancestral,
)
from nodes.diffusion.dpm_solver import dpm_adaptive, dpm_fast
from nodes.diffusion.er_sde import er_sde
from nodes.diffusion.flow import dpm_2, euler, heun, heunpp2, restart
from nodes.diffusion.multistep import deis, dpmpp_2m, gradient_estimation, ipndm, ipndm_v, lms, plms, res_multistep
from nodes.diffusion.sa_solver import sa_solver, sa_solver_pece
from nodes.diffusion.schedule import Convention
from nodes.diffusion.sde import dpmpp_2m_sde, dpmpp_2m_sde_heun, dpmpp_3m_sde, dpmpp_sde
from nodes.diffusion.seeds import seeds_2, seeds_3
from nodes.diffusion.step import AnySteps, Noise, Predicted, SamplerFunction
from nodes.diffusion.unipc import uni_pc, uni_pc_bh2

WEBUI: tuple[Convention, ...] = ("exact", "a1111")
COMFY: tuple[Convention, ...] = ("comfy",)
ALWAYS = WEBUI + COMFY


@dataclass(frozen=True)
class Sampler:
    """A sampler, and what is to be known of it before it runs.

    `label` is the WebUI's name, or one like those where it has none. `schedule` is what "automatic" means for it. For
    prompts that change on the way, a run has `asks` calls a step. By the conventions in `discards` it gets a schedule
    one step longer without the penultimate level. `brownian` ones want noise of intervals. What `reseeds` draws its
    steps' noise from the seed and the option `seed_delta`. An `adaptive` one makes as many steps as it takes, and must
    be run for each picture alone. An `unguided` one is answered with a `Predicted`, whatever the cfg.
    """

    run: SamplerFunction
    label: str
    schedule: str = "normal"
    asks: int = 1
    discards: tuple[Convention, ...] = ()
    brownian: bool = False
    reseeds: bool = False
    adaptive: bool = False
    unguided: bool = False

    @property
    def takes(self) -> tuple[str, ...]:
        """The names of the options that it takes."""
        return tuple(name for name, each in signature(self.run).parameters.items() if each.kind is each.KEYWORD_ONLY)

    def __call__(self, x: Tensor, sigmas: Sequence[float], noise: Noise, **options: object) -> AnySteps:
        """Start it with those of the options that it takes; the others are no error, and have no effect."""
        taken = {name: value for name, value in options.items() if name in self.takes}
        return partial(self.run, **taken)(x, sigmas, noise)


SAMPLERS: Mapping[str, Sampler] = MappingProxyType(
    {
        "dpmpp_2m": Sampler(dpmpp_2m, "DPM++ 2M", "karras"),
        "dpmpp_sde": Sampler(dpmpp_sde, "DPM++ SDE", "karras", asks=2, brownian=True),
        "dpmpp_2m_sde": Sampler(dpmpp_2m_sde, "DPM++ 2M SDE", "exponential", brownian=True),
        "dpmpp_2m_sde_heun": Sampler(dpmpp_2m_sde_heun, "DPM++ 2M SDE Heun", "exponential", brownian=True),
        "dpmpp_2s_ancestral": Sampler(dpmpp_2s_ancestral, "DPM++ 2S a", "karras", asks=2, reseeds=True),
        "dpmpp_3m_sde": Sampler(dpmpp_3m_sde, "DPM++ 3M SDE", "exponential", discards=WEBUI, brownian=True),
        "euler_ancestral": Sampler(euler_ancestral, "Euler a", reseeds=True),
        "euler": Sampler(euler, "Euler"),
        "lms": Sampler(lms, "LMS"),
        "heun": Sampler(heun, "Heun", asks=2),
        "dpm_2": Sampler(dpm_2, "DPM2", "karras", asks=2, discards=ALWAYS),
        "dpm_2_ancestral": Sampler(dpm_2_ancestral, "DPM2 a", "karras", asks=2, discards=ALWAYS, reseeds=True),
        "dpm_fast": Sampler(dpm_fast, "DPM fast", reseeds=True),
        "dpm_adaptive": Sampler(dpm_adaptive, "DPM adaptive", reseeds=True, adaptive=True),
        "restart": Sampler(restart, "Restart", "karras", asks=2),
        "ddim": Sampler(ddim, "DDIM", "ddim_uniform"),
        "plms": Sampler(plms, "PLMS", "ddim_uniform"),
        "uni_pc": Sampler(uni_pc, "UniPC", "sgm_uniform", discards=COMFY),
        "lcm": Sampler(lcm, "LCM", "lcm"),
        "uni_pc_bh2": Sampler(uni_pc_bh2, "UniPC BH2", "sgm_uniform", discards=COMFY),
        "heunpp2": Sampler(heunpp2, "HeunPP2", asks=3),
        "ddpm": Sampler(ddpm, "DDPM"),
        "ipndm": Sampler(ipndm, "IPNDM"),
        "deis": Sampler(deis, "DEIS"),
        "res_multistep": Sampler(res_multistep, "RES multistep"),
        "gradient_estimation": Sampler(gradient_estimation, "Gradient estimation"),
        "ipndm_v": Sampler(ipndm_v, "IPNDM v"),
        "res_multistep_ancestral": Sampler(res_multistep_ancestral, "RES multistep a", reseeds=True),
        "seeds_2": Sampler(seeds_2, "SEEDS-2", "karras", asks=2),
        "seeds_3": Sampler(seeds_3, "SEEDS-3", "karras", asks=3),
        "er_sde": Sampler(er_sde, "ER-SDE"),
        "sa_solver": Sampler(sa_solver, "SA-Solver"),
        "sa_solver_pece": Sampler(sa_solver_pece, "SA-Solver PECE", asks=2),
        "euler_cfg_pp": Sampler(cfg_pp.euler_cfg_pp, "Euler CFG++", unguided=True),
        "euler_ancestral_cfg_pp": Sampler(cfg_pp.euler_ancestral_cfg_pp, "Euler a CFG++", reseeds=True, unguided=True),
        "dpmpp_2s_ancestral_cfg_pp": Sampler(
            cfg_pp.dpmpp_2s_ancestral_cfg_pp, "DPM++ 2S a CFG++", "karras", asks=2, reseeds=True, unguided=True
        ),
        "dpmpp_2m_cfg_pp": Sampler(cfg_pp.dpmpp_2m_cfg_pp, "DPM++ 2M CFG++", "karras", unguided=True),
        "res_multistep_cfg_pp": Sampler(cfg_pp.res_multistep_cfg_pp, "RES multistep CFG++", unguided=True),
        "res_multistep_ancestral_cfg_pp": Sampler(
            cfg_pp.res_multistep_ancestral_cfg_pp, "RES multistep a CFG++", reseeds=True, unguided=True
        ),
        "gradient_estimation_cfg_pp": Sampler(
            cfg_pp.gradient_estimation_cfg_pp, "Gradient estimation CFG++", unguided=True
        ),
    },
)

LABELS: Mapping[str, str] = MappingProxyType(
    {sampler.label: name for name, sampler in SAMPLERS.items()},
)
"""The samplers by their labels."""


def evaluations(sampler: str, sigmas: Sequence[float], **options: object) -> int | None:
    """Count the questions of a run along `sigmas`; None where only the run itself knows, as with `dpm_adaptive`.

    The sampler is walked through with nothing in its tensors, so the count is the one that it will make.
    """
    if SAMPLERS[sampler].adaptive:
        return None
    nothing = torch.zeros(0)
    answer = Predicted(nothing, nothing) if SAMPLERS[sampler].unguided else nothing
    return sum(1 for _ in _questions(SAMPLERS[sampler](nothing, sigmas, lambda *_: nothing, **options), answer))


def _questions(steps: AnySteps, answer: Tensor | Predicted) -> Iterator[int]:
    """Answer all of a sampler's questions alike, and count them."""
    try:
        next(steps)
        for number in count():
            yield number
            steps.send(answer)
    except StopIteration:
        return
