"""Noise levels in rows: what all schedules are made from. See `table` for what a level is."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from nodes.diffusion.beta import beta_quantile
from nodes.diffusion.table import NoiseSchedule


@dataclass(frozen=True)
class Limits:
    """Where a schedule is to begin and end, and how it is to bend; 0 leaves it to the model, or to the schedule.

    `low` and `high` are the last level above 0 and the first, `rho` the exponent of `karras` and `polyexponential`.
    Schedules that are a list of the model's timesteps, or of numbers, have no use for them. `levels`, descending and
    above 0, are what `custom` is made of.
    """

    low: float = 0.0
    high: float = 0.0
    rho: float = 0.0
    levels: tuple[float, ...] = ()

    def ends(self, table: NoiseSchedule) -> tuple[float, float]:
        """Return the highest and the lowest level."""
        high, low = self.high or table.sigma_max, self.low or table.sigma_min
        if not 0 < low < high:
            raise ValueError(f"sigma_min, sigma_max: expected a lower and a higher level, got {low:g} and {high:g}")
        return high, low


OWN = Limits()


def check_steps(steps: int, most: int | None = None) -> None:
    """Refuse a schedule without steps, or with more than the model has levels for."""
    if steps < 1:
        raise ValueError(f"steps: expected at least 1, got {steps}")
    if most is not None and steps > most:
        raise ValueError(
            f"steps: expected at most {most} for a schedule of the model's own levels, got {steps}; "
            f"take another schedule, or a higher denoise"
        )


def row(numbers: Iterable[float]) -> Tensor:
    """Return levels as float64."""
    return torch.tensor(list(numbers), dtype=torch.float64)


def even(first: float, last: float, count: int) -> Tensor:
    """Return `count` evenly spaced values; a single one is the first."""
    check_steps(count)
    return torch.linspace(first, last, count, dtype=torch.float64)


def quantiles(shares: Tensor) -> Tensor:
    """Return quantiles of the beta distribution that both schedules of this name use."""
    return row(beta_quantile(share, 0.6, 0.6) for share in shares.tolist())


def between(levels: Sequence[float], steps: int) -> Tensor:
    """Read `steps` levels off a table, evenly in its positions and in log sigma between them."""
    places = even(0, len(levels) - 1, steps).numpy()
    logs = np.interp(places, np.arange(len(levels)), np.log(levels))
    return to_zero(torch.from_numpy(np.exp(logs)))


def to_zero(sigmas: Tensor) -> Tensor:
    """End a schedule at the clean latent."""
    return torch.cat([sigmas, sigmas.new_zeros(1)])
