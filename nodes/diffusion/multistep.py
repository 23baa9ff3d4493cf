"""Multistep samplers: one question a step, and older answers to bend the way. See `step` for their shape."""

from collections.abc import Callable, Sequence
from itertools import pairwise
from math import log
from typing import Any

import numpy as np
from torch import Tensor

from nodes.diffusion.sde import phi_2
from nodes.diffusion.step import Noise, Steps, exponential_step, slope, weighed

EVEN = ((1,), (3 / 2, -1 / 2), (23 / 12, -16 / 12, 5 / 12), (55 / 24, -59 / 24, 37 / 24, -9 / 24))
"""Adams and Bashforth's weights of the newest slope and those before, for steps of equal length."""
POINTS, WEIGHTS = np.polynomial.legendre.leggauss(8)


def dpmpp_2m(x: Tensor, sigmas: Sequence[float], noise: Noise) -> Steps:  # noqa: ARG001 - all samplers have one shape
    """DPM-Solver++(2M): Lu et al. 2022, algorithm 2 (https://arxiv.org/abs/2211.01095); second order.

    Time is -log sigma. The first step, and the one onto sigma 0, are of first order.
    """
    previous, previous_step = x, 0.0
    for sigma, following in pairwise(sigmas):
        denoised = yield x, sigma
        if following == 0:
            return denoised
        step = log(sigma / following)
        ahead = denoised + (denoised - previous) * (step / previous_step / 2) if previous_step else denoised
        x = exponential_step(x, ahead, sigma, following)
        previous, previous_step = denoised, step
    return x


def res_multistep(x: Tensor, sigmas: Sequence[float], noise: Noise) -> Steps:  # noqa: ARG001 - all have one shape
    """RES, multistep: refined exponential solver, Zhang et al. 2023 (https://arxiv.org/abs/2308.02157); second order.

    Like `dpmpp_2m`, but the change between answers is integrated exactly. The step onto 0 is of first order.
    """
    previous, previous_step = x, 0.0
    for sigma, following in pairwise(sigmas):
        denoised = yield x, sigma
        if following == 0:
            return denoised
        step = log(sigma / following)
        x = exponential_step(x, denoised, sigma, following)
        if previous_step:
            x = x + (denoised - previous) * (phi_2(step) * step / previous_step)
        previous, previous_step = denoised, step
    return x


def lms(x: Tensor, sigmas: Sequence[float], noise: Noise) -> Steps:  # noqa: ARG001 - all samplers have one shape
    """LMS: linear multistep in sigma, up to order 4 (k-diffusion), Adams-Bashforth on uneven levels.

    The step onto 0 bends like the others, so its end is not the last answer.
    """
    slopes: list[Tensor] = []
    for position, (sigma, following) in enumerate(pairwise(sigmas)):
        slopes = [slope(x, (yield x, sigma), sigma), *slopes][:4]
        levels = [sigmas[position - back] for back in range(len(slopes))]
        x = x + weighed(_integrals(levels, following, np.ones_like), slopes)
    return x


def deis(x: Tensor, sigmas: Sequence[float], noise: Noise) -> Steps:  # noqa: ARG001 - all samplers have one shape
    """DEIS: Zhang and Chen 2022 (https://arxiv.org/abs/2204.13902), rho-AB over log rho as in diffusers, order 3.

    The slope is taken for a polynomial in log sigma. The step onto 0, where that has no end, is of first order.
    """
    slopes: list[Tensor] = []
    for position, (sigma, following) in enumerate(pairwise(sigmas)):
        denoised = yield x, sigma
        if following == 0:
            return denoised
        slopes = [slope(x, denoised, sigma), *slopes][:3]
        times = [log(sigmas[position - back]) for back in range(len(slopes))]
        x = x + weighed(_integrals(times, log(following), np.exp), slopes)
    return x


def plms(x: Tensor, sigmas: Sequence[float], noise: Noise) -> Steps:  # noqa: ARG001 - all samplers have one shape
    """PLMS: pseudo linear multistep, Liu et al. 2022 (https://arxiv.org/abs/2202.09778), order 4, in sigma space.

    Steps count as equally long. The first is pseudo improved Euler and asks twice; the one onto 0 gives the answer.
    """
    slopes: list[Tensor] = []
    for sigma, following in pairwise(sigmas):
        denoised = yield x, sigma
        if following == 0:
            return denoised
        slopes = [slope(x, denoised, sigma), *slopes][:4]
        mean = weighed(EVEN[len(slopes) - 1], slopes)
        if len(slopes) == 1:
            ahead = x + mean * (following - sigma)
            mean = (mean + slope(ahead, (yield ahead, following), following)) / 2
        x = x + mean * (following - sigma)
    return x


def ipndm(x: Tensor, sigmas: Sequence[float], noise: Noise) -> Steps:  # noqa: ARG001 - all samplers have one shape
    """iPNDM: Zhang and Chen 2022 (https://arxiv.org/abs/2204.13902): like `plms`, but it begins with Euler's step."""
    slopes: list[Tensor] = []
    for sigma, following in pairwise(sigmas):
        denoised = yield x, sigma
        if following == 0:
            return denoised
        slopes = [slope(x, denoised, sigma), *slopes][:4]
        x = x + weighed(EVEN[len(slopes) - 1], slopes) * (following - sigma)
    return x


def gradient_estimation(x: Tensor, sigmas: Sequence[float], noise: Noise) -> Steps:  # noqa: ARG001 - one shape
    """Gradient estimation: Permenter and Yuan 2023, algorithm 2 with gamma 2 (https://arxiv.org/abs/2306.04848)."""
    before: Tensor | None = None
    for sigma, following in pairwise(sigmas):
        denoised = yield x, sigma
        if following == 0:
            return denoised
        now = slope(x, denoised, sigma)
        x = x + (now if before is None else now * 2 - before) * (following - sigma)
        before = now
    return x


def _integrals(times: Sequence[float], end: float, speed: Callable[[Any], Any]) -> list[float]:
    """Integrate each of Lagrange's polynomials on `times`, from times[0] to `end`, at the `speed` of sigma there.

    By Gauss and Legendre's rule with 8 points: exact at an even speed, and to 1e-12 at an exponential one.
    """
    half = (end - times[0]) / 2
    at = times[0] + half * (1 + POINTS)
    share = half * WEIGHTS * speed(at)
    lagrange = (np.prod([(at - other) / (own - other) for other in times if other != own], axis=0) for own in times)
    return [float(np.sum(share * polynomial)) for polynomial in lagrange]
