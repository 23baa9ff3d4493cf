"""Schedules: the lists of noise levels along which a sampler walks (see `table` for what a level is).

Each is a formula that k-diffusion, the WebUI or ComfyUI made customary, under ComfyUI's name where it has one.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal, TypeAlias

import numpy as np
import torch
from torch import Tensor

from nodes.diffusion.beta import beta_quantile
from nodes.diffusion.table import NoiseSchedule

Convention: TypeAlias = Literal["exact", "a1111", "comfy"]
"""How many steps a run makes that begins part of the way up; see `plan`."""

KARRAS_RHO = 7.0
LINEAR_RISE = 0.025
LONGEST_SCHEDULE = 100_000
NEARLY_ALL = 0.9999
"""ComfyUI takes what is above for 1."""
ALIGNED = (14.615, 6.475, 3.861, 2.697, 1.886, 1.396, 0.963, 0.652, 0.399, 0.152, 0.029)
ALIGNED_XL = (14.615, 6.315, 3.771, 2.181, 1.342, 0.862, 0.555, 0.380, 0.234, 0.113, 0.029)


@dataclass(frozen=True)
class Limits:
    """Where a schedule is to begin and end, and how it is to bend; 0 leaves it to the model, or to the schedule.

    `low` and `high` are the last level above 0 and the first, `rho` the exponent of `karras` and `polyexponential`.
    Schedules that are a list of the model's timesteps, or of numbers, have no use for them.
    """

    low: float = 0.0
    high: float = 0.0
    rho: float = 0.0

    def ends(self, table: NoiseSchedule) -> tuple[float, float]:
        """Return the highest and the lowest level."""
        high, low = self.high or table.sigma_max, self.low or table.sigma_min
        if not 0 < low < high:
            raise ValueError(f"sigma_min, sigma_max: expected a lower and a higher level, got {low:g} and {high:g}")
        return high, low


OWN = Limits()
Schedule: TypeAlias = Callable[[NoiseSchedule, int, Limits], Tensor]


def karras(table: NoiseSchedule, steps: int, limits: Limits = OWN) -> Tensor:
    """Karras et al. 2022, equation 5 with rho 7: sigma ** (1 / 7) falls evenly.

    Like every schedule here: `steps` + 1 noise levels, descending, the last 0, as float64 on the CPU; `steps` >= 1.
    """
    rho = limits.rho or KARRAS_RHO
    high, low = (level ** (1 / rho) for level in limits.ends(table))
    return _to_zero(_even(high, low, steps) ** rho)


def exponential(table: NoiseSchedule, steps: int, limits: Limits = OWN) -> Tensor:
    """Log sigma falls evenly from the highest noise level to the lowest."""
    high, low = limits.ends(table)
    return _to_zero(_even(math.log(high), math.log(low), steps).exp())


def polyexponential(table: NoiseSchedule, steps: int, limits: Limits = OWN) -> Tensor:
    """Log sigma falls with the power rho of an even ramp; with rho 1, which is the default, it is `exponential`."""
    high, low = (math.log(level) for level in limits.ends(table))
    return _to_zero((_even(1, 0, steps) ** (limits.rho or 1.0) * (high - low) + low).exp())


def normal(table: NoiseSchedule, steps: int, limits: Limits = OWN) -> Tensor:
    """The timestep falls evenly from the last to 0 (the WebUI: "uniform" and "normal", diffusers: "linspace")."""
    high, low = (table.timestep(level) for level in limits.ends(table))
    return _to_zero(_at_timesteps(table, _even(high, low, steps)))


def sgm_uniform(table: NoiseSchedule, steps: int, limits: Limits = OWN) -> Tensor:
    """The timestep falls evenly and would reach 0 one step later (Stability's generative-models)."""
    _check_steps(steps)
    high, low = (table.timestep(level) for level in limits.ends(table))
    return _to_zero(_at_timesteps(table, _even(high, low, steps + 1)[:-1]))


def simple(table: NoiseSchedule, steps: int, _limits: Limits = OWN) -> Tensor:
    """The model's own levels from the highest on, evenly counted off (diffusers: "trailing")."""
    total = len(table.sigmas)
    _check_steps(steps, total)
    return _to_zero(_levels(table.sigmas[-1 - index * total // steps] for index in range(steps)))


def ddim_uniform(table: NoiseSchedule, steps: int, _limits: Limits = OWN) -> Tensor:
    """The model's own levels, evenly counted off from timestep 1 up (diffusers: "leading").

    It begins below the highest level. Where the number of levels is no multiple of `steps` there are more steps than
    asked for: `plan` leaves out the highest, other programs make them all.
    """
    _check_steps(steps, len(table.sigmas) - 1)
    return _to_zero(_levels(reversed(table.sigmas[1 :: len(table.sigmas) // steps])))


def beta(table: NoiseSchedule, steps: int, limits: Limits = OWN) -> Tensor:
    """Levels at even quantiles of a beta distribution with 0.6 and 0.6: dense at both ends (the WebUI, diffusers)."""
    high, low = limits.ends(table)
    return _to_zero(_quantiles(_even(1, 0, steps)) * (high - low) + low)


def beta_timestep(table: NoiseSchedule, steps: int, _limits: Limits = OWN) -> Tensor:
    """Timesteps at such quantiles: "Beta sampling is all you need", Lee et al. 2024 (https://arxiv.org/abs/2407.12173).

    ComfyUI calls this one beta. Timesteps are whole, and equal ones count once: from about 150 steps on there are fewer
    than asked for.
    """
    _check_steps(steps)
    timesteps = (_quantiles(_even(1, 0, steps + 1)[:-1]) * (len(table.sigmas) - 1)).round().int()
    return _to_zero(_levels(table.sigmas[timestep] for timestep in dict.fromkeys(timesteps.tolist())))


def kl_optimal(table: NoiseSchedule, steps: int, limits: Limits = OWN) -> Tensor:
    """The arc tangent of sigma falls evenly: Sabour et al. 2024, theorem 3.1 (https://arxiv.org/abs/2404.14507).

    The WebUI spreads one level more over the range and never reaches 0; this is ComfyUI's, which does.
    """
    high, low = (math.atan(level) for level in limits.ends(table))
    return _to_zero(_even(high, low, steps).tan())


def linear_quadratic(table: NoiseSchedule, steps: int, limits: Limits = OWN) -> Tensor:
    """Half of the steps for the first 2.5 % of sigma, evenly; then ever longer ones (Polyak et al. 2024, Movie Gen).

    https://arxiv.org/abs/2410.13720
    """
    _check_steps(steps)
    even = steps // 2
    rest = steps - even
    share = np.arange(steps) / max(even, 1) * LINEAR_RISE
    over = np.arange(rest) / rest
    begin, speed = (LINEAR_RISE, LINEAR_RISE * rest / even) if even else (0.0, 0.0)
    share[even:] = begin + speed * over + (1 - begin - speed) * over**2
    return _to_zero(torch.from_numpy(1 - share) * limits.ends(table)[0])


def align_your_steps(_table: NoiseSchedule, steps: int, _limits: Limits = OWN) -> Tensor:
    """Levels that Sabour et al. 2024 found best for SD 1.5 in ten steps (https://arxiv.org/abs/2404.14507).

    Other numbers of steps read them off between, evenly in log sigma.
    """
    return _between(ALIGNED, steps)


def align_your_steps_xl(_table: NoiseSchedule, steps: int, _limits: Limits = OWN) -> Tensor:
    """The same for SDXL."""
    return _between(ALIGNED_XL, steps)


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
    },
)

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
    _check_steps(steps)
    if not 0 <= denoise <= 1:
        raise ValueError(f"denoise: expected a number from 0 to 1, got {denoise}")
    if denoise == 0:
        return 0
    if convention == "a1111":
        return int(min(denoise, 0.999) * steps) + 1
    if steps / denoise > LONGEST_SCHEDULE:
        raise ValueError(f"denoise: expected 0 or at least {steps / LONGEST_SCHEDULE} for {steps} steps, got {denoise}")
    return steps


def _check_steps(steps: int, most: int | None = None) -> None:
    """Refuse a schedule without steps, or with more than the model has levels for."""
    if steps < 1:
        raise ValueError(f"steps: expected at least 1, got {steps}")
    if most is not None and steps > most:
        raise ValueError(
            f"steps: expected at most {most} for a schedule of the model's own levels, got {steps}; "
            f"take another schedule, or a higher denoise"
        )


def _levels(numbers: Iterable[float]) -> Tensor:
    """Return numbers as float64."""
    return torch.tensor(list(numbers), dtype=torch.float64)


def _even(first: float, last: float, count: int) -> Tensor:
    """Return `count` evenly spaced values; a single one is the first."""
    _check_steps(count)
    return torch.linspace(first, last, count, dtype=torch.float64)


def _at_timesteps(table: NoiseSchedule, timesteps: Tensor) -> Tensor:
    """Return the noise levels of fractional timesteps."""
    return _levels(table.sigma(timestep) for timestep in timesteps.tolist())


def _quantiles(shares: Tensor) -> Tensor:
    """Return quantiles of the beta distribution that both schedules of this name use."""
    return _levels(beta_quantile(share, 0.6, 0.6) for share in shares.tolist())


def _between(levels: Sequence[float], steps: int) -> Tensor:
    """Read `steps` levels off a table, evenly in its positions and in log sigma between them."""
    places = _even(0, len(levels) - 1, steps).numpy()
    logs = np.interp(places, np.arange(len(levels)), np.log(levels))
    return _to_zero(torch.from_numpy(np.exp(logs)))


def _to_zero(sigmas: Tensor) -> Tensor:
    """End a schedule at the clean latent."""
    return torch.cat([sigmas, sigmas.new_zeros(1)])
