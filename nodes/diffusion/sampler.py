"""Samplers: ways down from noise to a clean latent, as generators in sigma space.

A sampler asks its questions by yielding (x, sigma): "what is the clean latent behind x, which carries noise of standard
deviation sigma?" The answer, the denoised latent, is sent in, and the end result is returned. A sampler therefore knows
nothing of models, guidance or batches, and one driver can advance many of them together.

All have one shape: `x` is the noisy latent at sigmas[0], any dtype and shape; `sigmas` are Python floats, descending,
usually ending in 0; `noise()` returns a fresh standard normal tensor like x. Fewer than two sigmas are no steps.
"""

from collections.abc import Callable, Generator, Mapping, Sequence
from itertools import pairwise
from math import log, sqrt
from types import MappingProxyType
from typing import TypeAlias

from torch import Tensor

Steps: TypeAlias = Generator[tuple[Tensor, float], Tensor, Tensor]
Noise: TypeAlias = Callable[[], Tensor]
Sampler: TypeAlias = Callable[[Tensor, Sequence[float], Noise], Steps]


def euler(x: Tensor, sigmas: Sequence[float], noise: Noise) -> Steps:  # noqa: ARG001 - all samplers have one shape
    """Euler: Karras et al. 2022, algorithm 2 without churn (https://arxiv.org/abs/2206.00364); first order."""
    for sigma, following in pairwise(sigmas):
        denoised = yield x, sigma
        x = x + (x - denoised) / sigma * (following - sigma)
    return x


def heun(x: Tensor, sigmas: Sequence[float], noise: Noise) -> Steps:  # noqa: ARG001 - all samplers have one shape
    """Heun: Karras et al. 2022, algorithm 2 without churn; second order, two questions a step and one for the last."""
    for sigma, following in pairwise(sigmas):
        slope = (x - (yield x, sigma)) / sigma
        ahead = x + slope * (following - sigma)
        if following > 0:
            slope = (slope + (ahead - (yield ahead, following)) / following) / 2
        x = x + slope * (following - sigma)
    return x


def dpmpp_2m(x: Tensor, sigmas: Sequence[float], noise: Noise) -> Steps:  # noqa: ARG001 - all samplers have one shape
    """DPM-Solver++(2M): Lu et al. 2022, algorithm 2 (https://arxiv.org/abs/2211.01095); second order, multistep.

    Time is -log sigma. The first step, and the one onto sigma 0, are of first order.
    """
    previous, previous_step = x, 0.0
    for sigma, following in pairwise(sigmas):
        denoised = yield x, sigma
        if following == 0:
            return denoised
        step = log(sigma / following)
        ahead = denoised + (denoised - previous) * (step / previous_step / 2) if previous_step else denoised
        x = x * (following / sigma) + ahead * (1 - following / sigma)
        previous, previous_step = denoised, step
    return x


def euler_ancestral(x: Tensor, sigmas: Sequence[float], noise: Noise, *, eta: float = 1.0) -> Steps:
    """Euler with ancestral noise: Euler down past the next level, then noise up to it (k-diffusion).

    `eta` in [0, 1] is the share of the noise that ancestral sampling (Ho et al. 2020, https://arxiv.org/abs/2006.11239)
    would put back; at 0 this is `euler`.
    """
    for sigma, following in pairwise(sigmas):
        denoised = yield x, sigma
        down, up = ancestral_step(sigma, following, eta)
        x = x + (x - denoised) / sigma * (down - sigma)
        if up > 0:
            x = x + noise() * up
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
        x = denoised + (x - denoised) / sigma * down
        if up > 0:
            x = x + noise() * up
    return x


SAMPLERS: Mapping[str, Sampler] = MappingProxyType(
    {"euler": euler, "euler_ancestral": euler_ancestral, "heun": heun, "dpmpp_2m": dpmpp_2m, "ddim": ddim},
)


def ancestral_step(sigma: float, following: float, eta: float) -> tuple[float, float]:
    """Split a step: the level to go `down` to, and the noise `up` from there; down**2 + up**2 == following**2."""
    up = min(following, eta * sqrt(following**2 * (sigma**2 - following**2) / sigma**2))
    return sqrt(following**2 - up**2), up
