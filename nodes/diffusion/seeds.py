"""SEEDS: exponential solvers of the reverse diffusion's stochastic equation, in single steps. See `step`.

Gonzalez et al. 2023 (https://arxiv.org/abs/2305.14267), for the denoised latent. Time is -log sigma. The noise of every
stretch of a step is drawn anew and carried on to the step's end. `eta` in [0, 1] is its share; at 0 nothing is drawn,
and the step is DPM-Solver++'s of this order.
"""

from collections.abc import Sequence
from itertools import pairwise
from math import exp, expm1, log

from torch import Tensor

from nodes.diffusion.sde import phi_2, stirred
from nodes.diffusion.step import Noise, Steps

FIRST, SECOND = 1 / 3, 2 / 3
"""Where in a step `seeds_3` asks again."""


def seeds_2(x: Tensor, sigmas: Sequence[float], noise: Noise, *, eta: float = 1.0, r: float = 0.5) -> Steps:
    """SEEDS-2: two questions a step, the second after the share `r` of it; one onto 0."""
    for sigma, following in pairwise(sigmas):
        denoised = yield x, sigma
        if following == 0:
            return denoised
        step = log(sigma / following)
        between, whole = sigma * exp(-r * step) if r < 1 else following, step * (1 + eta)
        added = stirred(noise, sigma, between, eta)
        ahead = yield _walked(x, denoised, r * whole) + added, between
        added = added * exp(-(1 - r) * whole) + stirred(noise, between, following, eta)
        x = _walked(x, denoised + (ahead - denoised) / (2 * r), whole) + added
    return x


def seeds_3(x: Tensor, sigmas: Sequence[float], noise: Noise, *, eta: float = 1.0) -> Steps:
    """SEEDS-3: three questions a step, at its thirds; one onto 0."""
    for sigma, following in pairwise(sigmas):
        denoised = yield x, sigma
        if following == 0:
            return denoised
        step = log(sigma / following)
        near, far, whole = sigma * exp(-FIRST * step), sigma * exp(-SECOND * step), step * (1 + eta)
        added = stirred(noise, sigma, near, eta)
        change = (yield _walked(x, denoised, FIRST * whole) + added, near) - denoised
        added = added * exp((FIRST - SECOND) * whole) + stirred(noise, near, far, eta)
        bent = _walked(x, denoised, SECOND * whole) + change * (SECOND / FIRST * phi_2(SECOND * whole))
        change = (yield bent + added, far) - denoised
        added = added * exp((SECOND - 1) * whole) + stirred(noise, far, following, eta)
        x = _walked(x, denoised, whole) + change * (phi_2(whole) / SECOND) + added
    return x


def _walked(x: Tensor, denoised: Tensor, whole: float) -> Tensor:
    """Walk for the time `whole`, noise's share in it counted, as if the denoised latent stayed what it is."""
    return x * exp(-whole) - denoised * expm1(-whole)
