"""Solvers of the reverse diffusion's stochastic equation: DPM-Solver++ SDE. See `step` for their shape.

Lu et al. 2022 (https://arxiv.org/abs/2211.01095), as k-diffusion made them customary. Their noise belongs to an
interval of sigma, not to a call: it is Brownian (see `brownian`), so that a finer walk sees the same path. `eta` in
[0, 1] is its share; at 0 the equation is the probability flow's and nothing is drawn.
"""

from collections.abc import Callable, Sequence
from itertools import pairwise
from math import exp, expm1, log, sqrt

from torch import Tensor

from nodes.diffusion.step import Noise, Steps, ancestral_step, exponential_step, renoised


def dpmpp_sde(x: Tensor, sigmas: Sequence[float], noise: Noise, *, eta: float = 1.0, r: float = 0.5) -> Steps:
    """DPM-Solver++ SDE, singlestep: two questions a step, the second after the share `r` of it; one onto 0."""
    for sigma, following in pairwise(sigmas):
        denoised = yield x, sigma
        if following == 0:
            return denoised
        middle = sigma * (following / sigma) ** r
        down, up = ancestral_step(sigma, middle, eta)
        between = renoised(exponential_step(x, denoised, sigma, down), up, noise, sigma, middle)
        ahead = yield between, middle
        denoised = denoised + (ahead - denoised) / (2 * r)
        down, up = ancestral_step(sigma, following, eta)
        x = renoised(exponential_step(x, denoised, sigma, down), up, noise, sigma, following)
    return x


def dpmpp_2m_sde(x: Tensor, sigmas: Sequence[float], noise: Noise, *, eta: float = 1.0) -> Steps:
    """DPM-Solver++(2M) SDE with the midpoint rule: multistep, one question a step; second order without noise."""
    return _two_steps(x, sigmas, noise, eta, _midpoint)


def dpmpp_2m_sde_heun(x: Tensor, sigmas: Sequence[float], noise: Noise, *, eta: float = 1.0) -> Steps:
    """DPM-Solver++(2M) SDE with Heun's rule; without noise it is `res_multistep`."""
    return _two_steps(x, sigmas, noise, eta, phi_2)


def dpmpp_3m_sde(x: Tensor, sigmas: Sequence[float], noise: Noise, *, eta: float = 1.0) -> Steps:
    """DPM-Solver++(3M) SDE: multistep, one question a step, bent by the two answers before.

    k-diffusion gives the second derivative half of the weight that third order needs, so this is of second order too,
    with smaller errors. Pictures are made with it, so it stays.
    """
    past: list[tuple[Tensor, float]] = []  # the denoised latents before, with the lengths of the steps that they took
    for sigma, following in pairwise(sigmas):
        denoised = yield x, sigma
        if following == 0:
            return denoised
        step = log(sigma / following)
        whole = step * (1 + eta)
        x = x * exp(-whole) - denoised * expm1(-whole) + _bend(denoised, past, step, whole)
        x = renoised(x, _up(following, step, eta), noise, sigma, following)
        past = [(denoised, step), *past][:2]
    return x


def phi_2(whole: float) -> float:
    """The second function of exponential integrators, times the step: 1 - (1 - exp(-h)) / h, which is h / 2 - ..."""
    return 1 + expm1(-whole) / whole


def stirred(noise: Noise, sigma: float, following: float, eta: float) -> Tensor | float:
    """Return the noise that the stretch between two levels leaves at its end; none is drawn where it is 0."""
    up = _up(following, log(sigma / following), eta)
    return noise(sigma, following) * up if up > 0 else 0.0


def _midpoint(whole: float) -> float:
    return -expm1(-whole) / 2


def _two_steps(x: Tensor, sigmas: Sequence[float], noise: Noise, eta: float, rule: Callable[[float], float]) -> Steps:
    """DPM-Solver++(2M) SDE, whose `rule` weighs the change from answer to answer."""
    previous, previous_step = x, 0.0
    for sigma, following in pairwise(sigmas):
        denoised = yield x, sigma
        if following == 0:
            return denoised
        step = log(sigma / following)
        whole = step * (1 + eta)
        x = x * exp(-whole) - denoised * expm1(-whole)
        if previous_step:
            x = x + (denoised - previous) * (rule(whole) * step / previous_step)
        x = renoised(x, _up(following, step, eta), noise, sigma, following)
        previous, previous_step = denoised, step
    return x


def _up(following: float, step: float, eta: float) -> float:
    """The level of the noise that a step of length `step` in log sigma leaves at `following`."""
    return following * sqrt(-expm1(-2 * step * eta))


def _bend(denoised: Tensor, past: Sequence[tuple[Tensor, float]], step: float, whole: float) -> Tensor | float:
    """What the change of the answers so far adds to a step: its first and second derivative, weighted."""
    if not past:
        return 0.0
    (newer, newer_step), *rest = past
    first = (denoised - newer) * (step / newer_step)
    if not rest:
        return first * phi_2(whole)
    [(older, older_step)] = rest
    near, far = newer_step / step, older_step / step
    change = (first - (newer - older) / far) / (near + far)
    return (first + change * near) * phi_2(whole) - change * (phi_2(whole) / whole - 0.5)
