"""Samplers that step down too far and put noise back: each draws anew on every step. See `step` for their shape.

`eta` in [0, 1] is the share of the noise that ancestral sampling (Ho et al. 2020, https://arxiv.org/abs/2006.11239)
would put back; at 0 nothing is drawn.
"""

from collections.abc import Sequence
from itertools import pairwise
from math import sqrt

from torch import Tensor

from nodes.diffusion.flow import midpoint_step
from nodes.diffusion.multistep import refined_step
from nodes.diffusion.step import Noise, Steps, ancestral_step, exponential_step, renoised, slope


def euler_ancestral(x: Tensor, sigmas: Sequence[float], noise: Noise, *, eta: float = 1.0) -> Steps:
    """Euler with ancestral noise: Euler down past the next level, then noise up to it (k-diffusion)."""
    for sigma, following in pairwise(sigmas):
        denoised = yield x, sigma
        down, up = ancestral_step(sigma, following, eta)
        x = x + slope(x, denoised, sigma) * (down - sigma)
        x = renoised(x, up, noise, sigma, following)
    return x


def dpm_2_ancestral(x: Tensor, sigmas: Sequence[float], noise: Noise, *, eta: float = 1.0) -> Steps:
    """DPM2 with ancestral noise (k-diffusion); two questions a step, one where it steps down to 0."""
    for sigma, following in pairwise(sigmas):
        down, up = ancestral_step(sigma, following, eta)
        x = yield from midpoint_step(x, sigma, down)
        x = renoised(x, up, noise, sigma, following)
    return x


def dpmpp_2s_ancestral(x: Tensor, sigmas: Sequence[float], noise: Noise, *, eta: float = 1.0, r: float = 0.5) -> Steps:
    """DPM-Solver++(2S) with ancestral noise: Lu et al. 2022, algorithm 1 (https://arxiv.org/abs/2211.01095).

    Two questions a step, the second after the share `r` of log sigma; one where it steps down to 0.
    """
    for sigma, following in pairwise(sigmas):
        denoised = yield x, sigma
        down, up = ancestral_step(sigma, following, eta)
        if down > 0:
            between = sigma * (down / sigma) ** r
            ahead = yield exponential_step(x, denoised, sigma, between), between
            denoised = denoised + (ahead - denoised) / (2 * r)
        x = renoised(exponential_step(x, denoised, sigma, down), up, noise, sigma, following)
    return x


def res_multistep_ancestral(x: Tensor, sigmas: Sequence[float], noise: Noise, *, eta: float = 1.0) -> Steps:
    """RES, multistep, with ancestral noise; with `eta` 0 it is `res_multistep`."""
    before: tuple[Tensor, float] | None = None
    for sigma, following in pairwise(sigmas):
        denoised = yield x, sigma
        down, up = ancestral_step(sigma, following, eta)
        x = renoised(refined_step(x, denoised, sigma, down, before), up, noise, sigma, following)
        before = denoised, sigma
    return x


def ddim(x: Tensor, sigmas: Sequence[float], noise: Noise, *, eta: float = 0.0) -> Steps:
    """DDIM: Song et al. 2020, equation 12 (https://arxiv.org/abs/2010.02502), written in sigma space.

    There the equation loses every alpha and becomes Euler's: with `eta` 0 this is `euler`, with `eta` it is
    `euler_ancestral`, in exact arithmetic. It is kept under its own name since graphs ask for it. What tells DDIM and
    Euler apart in other programs is the timesteps they visit, which is the schedule's affair here.
    """
    for sigma, following in pairwise(sigmas):
        denoised = yield x, sigma
        down, up = ancestral_step(sigma, following, eta)
        x = denoised + slope(x, denoised, sigma) * down
        x = renoised(x, up, noise, sigma, following)
    return x


def ddpm(x: Tensor, sigmas: Sequence[float], noise: Noise) -> Steps:
    """DDPM: the posterior of Ho et al. 2020, equation 7 (https://arxiv.org/abs/2006.11239), in sigma space.

    Its mean lies between x and the denoised latent, its variance is that of a whole ancestral step.
    """
    for sigma, following in pairwise(sigmas):
        denoised = yield x, sigma
        share = (following / sigma) ** 2
        x = x * share + denoised * (1 - share)
        x = renoised(x, following * sqrt(1 - share), noise, sigma, following)
    return x


def lcm(x: Tensor, sigmas: Sequence[float], noise: Noise) -> Steps:
    """Latent consistency: Luo et al. 2023, algorithm 3 (https://arxiv.org/abs/2310.04378): clean, then noise anew."""
    for sigma, following in pairwise(sigmas):
        denoised = yield x, sigma
        x = renoised(denoised, following, noise, sigma, following)
    return x
