"""Multistep samplers: one question a step, and older answers to bend the way. See `step` for their shape."""

from collections.abc import Callable, Sequence
from itertools import pairwise, zip_longest
from math import log
from typing import Any

import numpy as np
from torch import Tensor

from nodes.diffusion.sde import phi_2
from nodes.diffusion.step import Noise, Steps, exponential_step, slope, weighed

EVEN = ((1,), (3 / 2, -1 / 2), (23 / 12, -16 / 12, 5 / 12), (55 / 24, -59 / 24, 37 / 24, -9 / 24))
"""Adams and Bashforth's weights of the newest slope and those before, for steps of equal length."""
POINTS, WEIGHTS = np.polynomial.legendre.leggauss(16)


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
    before: tuple[Tensor, float] | None = None
    for sigma, following in pairwise(sigmas):
        denoised = yield x, sigma
        x = refined_step(x, denoised, sigma, following, before)
        before = denoised, sigma
    return x


def lms(x: Tensor, sigmas: Sequence[float], noise: Noise, *, order: int = 4) -> Steps:  # noqa: ARG001 - one shape
    """LMS: linear multistep in sigma, up to `order` (k-diffusion), Adams-Bashforth on uneven levels.

    The step onto 0 bends like the others, so its end is not the last answer.
    """
    slopes: list[Tensor] = []
    for position, (sigma, following) in enumerate(pairwise(sigmas)):
        slopes = [slope(x, (yield x, sigma), sigma), *slopes][:order]
        levels = [sigmas[position - back] for back in range(len(slopes))]
        x = x + weighed(integrals(levels, sigma, following, np.ones_like), slopes)
    return x


def deis(x: Tensor, sigmas: Sequence[float], noise: Noise, *, order: int = 3) -> Steps:  # noqa: ARG001 - one shape
    """DEIS: Zhang and Chen 2022 (https://arxiv.org/abs/2204.13902), rho-AB over log rho as in diffusers, up to `order`.

    The slope is taken for a polynomial in log sigma. The step onto 0, where that has no end, is of first order.
    """
    slopes: list[Tensor] = []
    for position, (sigma, following) in enumerate(pairwise(sigmas)):
        denoised = yield x, sigma
        if following == 0:
            return denoised
        slopes = [slope(x, denoised, sigma), *slopes][:order]
        times = [log(sigmas[position - back]) for back in range(len(slopes))]
        x = x + weighed(integrals(times, log(sigma), log(following), np.exp), slopes)
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


def ipndm(x: Tensor, sigmas: Sequence[float], noise: Noise, *, order: int = 4) -> Steps:  # noqa: ARG001 - one shape
    """iPNDM: Zhang and Chen 2022 (https://arxiv.org/abs/2204.13902): like `plms`, but it begins with Euler's step."""
    return _improved(x, sigmas, order, lambda lengths: EVEN[len(lengths) - 1])


def ipndm_v(x: Tensor, sigmas: Sequence[float], noise: Noise, *, order: int = 4) -> Steps:  # noqa: ARG001 - one shape
    """Take uneven steps like `ipndm`, as Zhou et al. published it (https://github.com/zju-pi/diff-sampler).

    Their third order is Adams and Bashforth's only where steps are even, and their fourth nowhere; with exact weights
    it would be `lms`. Pictures are made with these, so they stay.
    """
    return _improved(x, sigmas, order, _uneven)


def _improved(
    x: Tensor, sigmas: Sequence[float], order: int, weights: Callable[[Sequence[float]], Sequence[float]]
) -> Steps:
    """Step by weighed slopes, whose `weights` are told the lengths of this step and of those before."""
    slopes: list[Tensor] = []
    lengths: list[float] = []
    for sigma, following in pairwise(sigmas):
        denoised = yield x, sigma
        if following == 0:
            return denoised
        slopes = [slope(x, denoised, sigma), *slopes][:order]
        lengths = [following - sigma, *lengths][:order]
        x = x + weighed(weights(lengths), slopes) * (following - sigma)
    return x


def _uneven(lengths: Sequence[float]) -> Sequence[float]:
    """Weigh the newest slope and those before: Newton's form, whose terms are set out by their differences."""
    if len(lengths) == 1:
        return EVEN[0]
    now, one, *older = lengths
    weights = [1 + now / (2 * one), -now / (2 * one)]
    if older:
        two, *oldest = older
        third = (1 - now**2 / (3 * one * (one + two))) / 2
        weights = _plus(weights, [third, -third * (1 + one / two), third * one / two])
        if oldest:
            weights = _plus(weights, _fourth(now, one, two, oldest[0]))
    return weights


def _fourth(now: float, one: float, two: float, three: float) -> Sequence[float]:
    """Weigh the four slopes of the third difference."""
    near, far, whole = now + one, one + two, now + one + two
    share = (1 - now / (3 * near)) / 2 + (1 - now / (2 * near)) * now / (6 * whole)
    fourth = share * now * near * whole / (one * far * (far + three))
    ratio, bent = one / two, one * far / (two * (two + three))
    weights = (1, -(1 + ratio + bent), ratio + bent * (1 + two / three), -bent * ratio)
    return [fourth * weight for weight in weights]


def _plus(weights: Sequence[float], others: Sequence[float]) -> list[float]:
    return [weight + other for weight, other in zip_longest(weights, others, fillvalue=0.0)]


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


def refined_step(
    x: Tensor, denoised: Tensor, sigma: float, following: float, before: tuple[Tensor, float] | None
) -> Tensor:
    """Go to `following` as if the denoised latent went on as it did from the answer and the level `before`.

    Exact for answers that are linear in log sigma. Without one before, and onto 0, it stays what it is.
    """
    x = exponential_step(x, denoised, sigma, following)
    if before is None or following == 0:
        return x
    step, (previous, level) = log(sigma / following), before
    return x + (denoised - previous) * (phi_2(step) * step / log(level / sigma))


def integrals(times: Sequence[float], begin: float, end: float, speed: Callable[[Any], Any]) -> list[float]:
    """Integrate each of Lagrange's polynomials on `times`, from `begin` to `end`, at the `speed` of sigma there.

    By Gauss and Legendre's rule with 16 points: exact at an even speed, and to 1e-12 at an exponential one.
    """
    half = (end - begin) / 2
    at = begin + half * (1 + POINTS)
    share = half * WEIGHTS * speed(at)
    lagrange = (np.prod([(at - other) / (own - other) for other in times if other != own], axis=0) for own in times)
    return [float(np.sum(share * polynomial)) for polynomial in lagrange]
