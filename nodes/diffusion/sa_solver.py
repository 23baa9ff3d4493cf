"""SA-Solver: stochastic Adams, predictor and corrector, Xue et al. 2023 (https://arxiv.org/abs/2309.05019). See `step`.

Time is -log sigma. Noise is put back on the steps onto the levels from `sde_min` to `sde_max`, `eta` of it: the paper's
tau. `order`, 1 to 4, counts the answers that predict; one more corrects.
"""

from collections.abc import Sequence
from itertools import pairwise
from math import exp, log

import numpy as np
from torch import Tensor

from nodes.diffusion.multistep import integrals
from nodes.diffusion.sde import stirred
from nodes.diffusion.step import Noise, Steps, weighed

SDE_MIN, SDE_MAX = 0.57119, 5.09241
"""Stable Diffusion's levels when 80 % and 20 % of the timesteps are behind."""


def sa_solver(
    x: Tensor,
    sigmas: Sequence[float],
    noise: Noise,
    *,
    eta: float = 1.0,
    order: int = 3,
    sde_min: float = SDE_MIN,
    sde_max: float = SDE_MAX,
) -> Steps:
    """SA-Solver that predicts, asks there, and corrects with the answer (PEC): one question a step."""
    taus = [eta if sde_min <= level <= sde_max else 0.0 for level in sigmas[1:]]
    return _adams(x, sigmas, noise, taus, order)


def sa_solver_pece(
    x: Tensor,
    sigmas: Sequence[float],
    noise: Noise,
    *,
    eta: float = 1.0,
    order: int = 3,
    sde_min: float = SDE_MIN,
    sde_max: float = SDE_MAX,
) -> Steps:
    """SA-Solver that asks once more where it corrected (PECE): two questions a step, one for the first."""
    taus = [eta if sde_min <= level <= sde_max else 0.0 for level in sigmas[1:]]
    return _adams(x, sigmas, noise, taus, order, again=True)


def _adams(
    x: Tensor, sigmas: Sequence[float], noise: Noise, taus: Sequence[float], order: int, *, again: bool = False
) -> Steps:
    """Predict, ask there, correct with the answer and the same noise, and predict on."""
    past: list[tuple[float, Tensor]] = []  # level and answer, the newest first
    left, before, tau = x, 0.0, 0.0
    added: Tensor | float = 0.0
    for (sigma, following), coming in zip(pairwise(sigmas), taus, strict=True):
        denoised = yield x, sigma
        if past and (again or following > 0):
            x = _step(left, [(sigma, denoised), *past], before, sigma, tau) + added
            denoised = (yield x, sigma) if again else denoised
        if following == 0:
            return denoised
        past = [(sigma, denoised), *past][:order]
        left, before, tau = x, sigma, coming
        added = stirred(noise, sigma, following, tau**2)
        x = _step(left, past, sigma, following, tau) + added
    return x


def _step(x: Tensor, used: Sequence[tuple[float, Tensor]], sigma: float, following: float, tau: float) -> Tensor:
    """Step by the polynomial through the `used` answers, and leave the noise to others."""
    end, rate = -log(following), 1 + tau**2
    times = [-log(level) for level, _ in used]
    weights = integrals(times, -log(sigma), end, lambda time: rate * np.exp(rate * (time - end)))
    return x * exp(-rate * log(sigma / following)) + weighed(weights, [answer for _, answer in used])
