"""Schedules that are lists: of a model's own levels, or of numbers. See `schedule` for what all have in common."""

from itertools import pairwise

from torch import Tensor

from nodes.diffusion.levels import OWN, Limits, between, check_steps, even, quantiles, row, to_zero
from nodes.diffusion.table import NoiseSchedule

ALIGNED = (14.615, 6.475, 3.861, 2.697, 1.886, 1.396, 0.963, 0.652, 0.399, 0.152, 0.029)
ALIGNED_XL = (14.615, 6.315, 3.771, 2.181, 1.342, 0.862, 0.555, 0.380, 0.234, 0.113, 0.029)
TURBO_LEVELS, LCM_LEVELS = 10, 50


def simple(table: NoiseSchedule, steps: int, _limits: Limits = OWN) -> Tensor:
    """The model's own levels from the highest on, evenly counted off (diffusers: "trailing")."""
    total = len(table.sigmas)
    check_steps(steps, total)
    return to_zero(row(table.sigmas[-1 - index * total // steps] for index in range(steps)))


def ddim_uniform(table: NoiseSchedule, steps: int, _limits: Limits = OWN) -> Tensor:
    """The model's own levels, evenly counted off from timestep 1 up (diffusers: "leading").

    It begins below the highest level. Where the number of levels is no multiple of `steps` there are more steps than
    asked for: `plan` leaves out the highest, other programs make them all.
    """
    check_steps(steps, len(table.sigmas) - 1)
    return to_zero(row(reversed(table.sigmas[1 :: len(table.sigmas) // steps])))


def beta_timestep(table: NoiseSchedule, steps: int, _limits: Limits = OWN) -> Tensor:
    """Timesteps at such quantiles: "Beta sampling is all you need", Lee et al. 2024 (https://arxiv.org/abs/2407.12173).

    ComfyUI calls this one beta. Timesteps are whole, and equal ones count once: from about 150 steps on there are fewer
    than asked for.
    """
    check_steps(steps)
    timesteps = (quantiles(even(1, 0, steps + 1)[:-1]) * (len(table.sigmas) - 1)).round().int()
    return to_zero(row(table.sigmas[timestep] for timestep in dict.fromkeys(timesteps.tolist())))


def align_your_steps(_table: NoiseSchedule, steps: int, _limits: Limits = OWN) -> Tensor:
    """Levels that Sabour et al. 2024 found best for SD 1.5 in ten steps (https://arxiv.org/abs/2404.14507).

    Other numbers of steps read them off between, evenly in log sigma. A node with an SDXL model at hand takes the next.
    """
    return between(ALIGNED, steps)


def align_your_steps_xl(_table: NoiseSchedule, steps: int, _limits: Limits = OWN) -> Tensor:
    """The same for SDXL."""
    return between(ALIGNED_XL, steps)


def sd_turbo(table: NoiseSchedule, steps: int, _limits: Limits = OWN) -> Tensor:
    """The first of the ten levels that SD-Turbo was distilled at, timesteps 999, 899, ... (Sauer et al. 2023).

    https://arxiv.org/abs/2311.17042. At most 10 steps.
    """
    check_steps(steps, TURBO_LEVELS)
    total = len(table.sigmas)
    return to_zero(row(table.sigmas[total - 1 - index * total // TURBO_LEVELS] for index in range(steps)))


def lcm(table: NoiseSchedule, steps: int, _limits: Limits = OWN) -> Tensor:
    """Levels that latent consistency models were distilled at, evenly counted off from the highest on, as in diffusers.

    Luo et al. 2023 (https://arxiv.org/abs/2310.04378). These are 50; more steps take as many of the model's as needed.
    """
    total = len(table.sigmas)
    check_steps(steps, total)
    known = max(steps, min(LCM_LEVELS, total))
    places = (known - index * known // steps for index in range(steps))
    return to_zero(row(table.sigmas[place * total // known - 1] for place in places))


def custom(_table: NoiseSchedule, steps: int, limits: Limits = OWN) -> Tensor:
    """The levels that `limits` lists; other numbers of steps read them off between, evenly in log sigma.

    ValueError where they are not at least one, above 0 and descending.
    """
    given = limits.levels
    if not given or not all(high > low for high, low in pairwise((*given, 0.0))):
        raise ValueError(f"levels: expected noise levels that descend and are above 0, got {list(given)}")
    return to_zero(row(given)) if steps == len(given) else between(given, steps)
