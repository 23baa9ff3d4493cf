"""Schedules: the lists of noise levels along which a sampler walks (see `table` for what a level is).

Each is a formula that k-diffusion, the WebUI or ComfyUI made customary, under ComfyUI's name where it has one.
"""

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Literal, TypeAlias

import numpy as np
import torch
from torch import Tensor

from nodes.diffusion.levels import OWN, Limits, check_steps, even, quantiles, row, to_zero
from nodes.diffusion.listed import (
    align_your_steps,
    align_your_steps_xl,
    beta_timestep,
    custom,
    ddim_uniform,
    lcm,
    sd_turbo,
    simple,
)
from nodes.diffusion.table import NoiseSchedule

Convention: TypeAlias = Literal["exact", "a1111", "comfy"]
"""How many steps a run makes that begins part of the way up; see `plan`."""

KARRAS_RHO = 7.0
LINEAR_RISE = 0.025
LONGEST_SCHEDULE = 100_000
VP_END, LAPLACE_EDGE = 1e-3, 1e-5
NEARLY_ALL = 0.9999
"""ComfyUI takes what is above for 1."""


Schedule: TypeAlias = Callable[[NoiseSchedule, int, Limits], Tensor]


def karras(table: NoiseSchedule, steps: int, limits: Limits = OWN) -> Tensor:
    """Karras et al. 2022, equation 5 with rho 7: sigma ** (1 / 7) falls evenly.

    Like every schedule here: `steps` + 1 noise levels, descending, the last 0, as float64 on the CPU; `steps` >= 1.
    """
    rho = limits.rho or KARRAS_RHO
    high, low = (level ** (1 / rho) for level in limits.ends(table))
    return to_zero(even(high, low, steps) ** rho)


def exponential(table: NoiseSchedule, steps: int, limits: Limits = OWN) -> Tensor:
    """Log sigma falls evenly from the highest noise level to the lowest."""
    high, low = limits.ends(table)
    return to_zero(even(math.log(high), math.log(low), steps).exp())


def polyexponential(table: NoiseSchedule, steps: int, limits: Limits = OWN) -> Tensor:
    """Log sigma falls with the power rho of an even ramp; with rho 1, which is the default, it is `exponential`."""
    high, low = (math.log(level) for level in limits.ends(table))
    return to_zero((even(1, 0, steps) ** (limits.rho or 1.0) * (high - low) + low).exp())


def normal(table: NoiseSchedule, steps: int, limits: Limits = OWN) -> Tensor:
    """The timestep falls evenly from the last to 0 (the WebUI: "uniform" and "normal", diffusers: "linspace")."""
    high, low = (table.timestep(level) for level in limits.ends(table))
    return to_zero(_at_timesteps(table, _even_timesteps(high, low, steps)))


def sgm_uniform(table: NoiseSchedule, steps: int, limits: Limits = OWN) -> Tensor:
    """The timestep falls evenly and would reach 0 one step later (Stability's generative-models)."""
    check_steps(steps)
    high, low = (table.timestep(level) for level in limits.ends(table))
    return to_zero(_at_timesteps(table, _even_timesteps(high, low, steps + 1)[:-1]))


def beta(table: NoiseSchedule, steps: int, limits: Limits = OWN) -> Tensor:
    """Levels at even quantiles of a beta distribution with 0.6 and 0.6: dense at both ends (the WebUI, diffusers)."""
    high, low = limits.ends(table)
    return to_zero(quantiles(even(1, 0, steps)) * (high - low) + low)


def kl_optimal(table: NoiseSchedule, steps: int, limits: Limits = OWN) -> Tensor:
    """The arc tangent of sigma falls evenly: Sabour et al. 2024, theorem 3.1 (https://arxiv.org/abs/2404.14507).

    The WebUI spreads one level more over the range and never reaches 0; this is ComfyUI's, which does.
    """
    high, low = (math.atan(level) for level in limits.ends(table))
    return to_zero(even(high, low, steps).tan())


def linear_quadratic(table: NoiseSchedule, steps: int, limits: Limits = OWN) -> Tensor:
    """Half of the steps for the first 2.5 % of sigma, evenly; then ever longer ones (Polyak et al. 2024, Movie Gen).

    https://arxiv.org/abs/2410.13720
    """
    check_steps(steps)
    even = steps // 2
    rest = steps - even
    share = np.arange(steps) / max(even, 1) * LINEAR_RISE
    over = np.arange(rest) / rest
    begin, speed = (LINEAR_RISE, LINEAR_RISE * rest / even) if even else (0.0, 0.0)
    share[even:] = begin + speed * over + (1 - begin - speed) * over**2
    return to_zero(torch.from_numpy(1 - share) * limits.ends(table)[0])


def vp(table: NoiseSchedule, steps: int, limits: Limits = OWN) -> Tensor:
    """Time falls evenly in a variance preserving diffusion whose beta grows evenly: Song et al. 2021, as k-diffusion.

    With time t from 1 to 0.001, sigma is sqrt(exp(beta_d * t ** 2 / 2 + beta_min * t) - 1). Both betas follow from the
    first level and the last (Karras et al. 2022, table 1); k-diffusion's own are those of 152.17 and 0.01048.
    """
    high, low = (math.log1p(level**2) for level in limits.ends(table))
    beta_d = 2 * (low / VP_END - high) / (VP_END - 1)
    time = even(1, VP_END, steps)
    return to_zero((beta_d * time**2 / 2 + (high - beta_d / 2) * time).expm1().sqrt())


def laplace(table: NoiseSchedule, steps: int, limits: Limits = OWN) -> Tensor:
    """Quantiles of a Laplace distribution of log sigma, 0 and 0.5: Hang et al. 2024 (https://arxiv.org/abs/2407.03297).

    Dense about level 1. Quantiles beyond the model's levels become these levels, and count once: from about 500 steps
    on there are fewer than asked for.
    """
    high, low = limits.ends(table)
    place = 0.5 - even(0, 1, steps)
    logs = -0.5 * place.sign() * (1 - 2 * place.abs() + LAPLACE_EDGE).log()
    return to_zero(row(dict.fromkeys(logs.exp().clamp(low, high).tolist())))


SCHEDULES: Mapping[str, Schedule] = MappingProxyType(
    {
        "karras": karras,
        "exponential": exponential,
        "polyexponential": polyexponential,
        "normal": normal,
        "sgm_uniform": sgm_uniform,
        "simple": simple,
        "ddim_uniform": ddim_uniform,
        "beta": beta,
        "beta_timestep": beta_timestep,
        "kl_optimal": kl_optimal,
        "linear_quadratic": linear_quadratic,
        "align_your_steps": align_your_steps,
        "align_your_steps_xl": align_your_steps_xl,
        "vp": vp,
        "laplace": laplace,
        "sd_turbo": sd_turbo,
        "lcm": lcm,
        "custom": custom,
    },
)

FOR_XL: Mapping[str, str] = MappingProxyType({"align_your_steps": "align_your_steps_xl"})
"""Schedules that stand for others where the model is one of SDXL's."""

LABELS: Mapping[str, str] = MappingProxyType(
    {
        "Karras": "karras",
        "Exponential": "exponential",
        "Polyexponential": "polyexponential",
        "Uniform": "normal",
        "SGM Uniform": "sgm_uniform",
        "Simple": "simple",
        "DDIM": "ddim_uniform",
        "Beta": "beta",
        "Beta timestep": "beta_timestep",
        "KL Optimal": "kl_optimal",
        "Linear Quadratic": "linear_quadratic",
        "Align Your Steps": "align_your_steps",
        "Align Your Steps XL": "align_your_steps_xl",
        "VP": "vp",
        "Laplace": "laplace",
        "Turbo": "sd_turbo",
        "LCM": "lcm",
        "Custom": "custom",
    },
)
"""The schedules by the WebUI's labels, and by labels like those where it has none."""


def plan(
    schedule: Schedule,
    table: NoiseSchedule,
    steps: int,
    denoise: float,
    *,
    convention: Convention = "exact",
    discards: bool = False,
    limits: Limits = OWN,
) -> tuple[Tensor, int]:
    """Return a whole schedule, and the position in it at which a run of strength `denoise` begins.

    By the convention "exact" exactly `steps` steps run, however small `denoise` is: the last ones of int(steps /
    denoise) steps. ComfyUI's KSampler counts this way, and so does the WebUI's "do exactly the amount of steps". By
    "a1111", its default, the schedule has `steps` steps, and the last int(min(denoise, 0.999) * steps) + 1 of them run.
    "comfy" counts like "exact", but at 1 every level of the schedule is visited, however many were asked for.

    At 1 a run begins at the first level. At 0 there are no steps: the level that remains is 0, so adding noise at it
    changes nothing (the WebUI would make one).

    `discards` takes one step more and leaves out the penultimate level. `steps` >= 1, `denoise` in [0, 1]; ValueError
    outside, or if the whole schedule would pass 100,000 steps.
    """
    run = executed(steps, denoise, convention)
    total = int(steps / denoise) if denoise > 0 and convention != "a1111" else steps
    levels = schedule(table, total + 1 if discards else total, limits)
    whole = torch.cat([levels[:-2], levels[-1:]]) if discards else levels
    if convention == "comfy" and denoise > NEARLY_ALL:
        return whole, 0
    return whole, max(0, len(whole) - 1 - run)


def tail(schedule: Schedule, table: NoiseSchedule, steps: int, denoise: float) -> Tensor:
    """Return the levels that a run visits by the convention "exact"; see `plan`."""
    whole, begin = plan(schedule, table, steps, denoise)
    return whole[begin:]


def executed(steps: int, denoise: float, convention: Convention = "exact") -> int:
    """Count the steps that a run of strength `denoise` makes; see `plan`."""
    check_steps(steps)
    if not 0 <= denoise <= 1:
        raise ValueError(f"denoise: expected a number from 0 to 1, got {denoise}")
    if denoise == 0:
        return 0
    if convention == "a1111":
        return int(min(denoise, 0.999) * steps) + 1
    if steps / denoise > LONGEST_SCHEDULE:
        raise ValueError(f"denoise: expected 0 or at least {steps / LONGEST_SCHEDULE} for {steps} steps, got {denoise}")
    return steps


def _even_timesteps(first: float, last: float, count: int) -> Tensor:
    """Return `count` evenly spaced timesteps, rounded as they are elsewhere: by that one half way has its side."""
    check_steps(count)
    return torch.linspace(first, last, count, dtype=torch.float32).double()


def _at_timesteps(table: NoiseSchedule, timesteps: Tensor) -> Tensor:
    """Return the noise levels of fractional timesteps."""
    return row(table.sigma(timestep) for timestep in timesteps.tolist())
