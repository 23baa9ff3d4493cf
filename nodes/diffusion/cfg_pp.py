"""CFG++: samplers that put back the noise which the negative prompt sees. See `step` for their shape.

Chung et al. 2024 (https://arxiv.org/abs/2406.08070): guidance may move the clean latent, but the noise that stands on
it ought to be the model's own. So a step is the plain sampler's under the negative prompt, and what guidance changes,
guided - negative, is added to where that leads. A cfg of 1 does here about what 12.5 does elsewhere.

Each is answered with a `Predicted`. Where both predictions are one, it is the plain sampler of its name.
"""

from collections.abc import Sequence
from itertools import pairwise
from math import log

from torch import Tensor

from nodes.diffusion.multistep import refined_step
from nodes.diffusion.step import Noise, UnguidedSteps, ancestral_step, exponential_step, renoised, slope


def euler_cfg_pp(x: Tensor, sigmas: Sequence[float], noise: Noise) -> UnguidedSteps:
    """Euler with CFG++: the paper's algorithm 2, DDIM, in sigma space."""
    return euler_ancestral_cfg_pp(x, sigmas, noise, eta=0.0)


def euler_ancestral_cfg_pp(x: Tensor, sigmas: Sequence[float], noise: Noise, *, eta: float = 1.0) -> UnguidedSteps:
    """Euler with ancestral noise and CFG++."""
    for sigma, following in pairwise(sigmas):
        guided, negative = yield x, sigma
        down, up = ancestral_step(sigma, following, eta)
        x = renoised(guided + slope(x, negative, sigma) * down, up, noise, sigma, following)
    return x


def dpmpp_2s_ancestral_cfg_pp(
    x: Tensor, sigmas: Sequence[float], noise: Noise, *, eta: float = 1.0, r: float = 0.5
) -> UnguidedSteps:
    """DPM-Solver++(2S) with ancestral noise and CFG++, as its authors wrote it; the way to `r` is not guided."""
    for sigma, following in pairwise(sigmas):
        guided, negative = yield x, sigma
        down, up = ancestral_step(sigma, following, eta)
        mean = negative
        if down > 0:
            between = sigma * (down / sigma) ** r
            guided, ahead = yield exponential_step(x, negative, sigma, between), between
            mean, negative = negative + (ahead - negative) / (2 * r), ahead
        x = exponential_step(x, mean, sigma, down) + (guided - negative)
        x = renoised(x, up, noise, sigma, following)
    return x


def dpmpp_2m_cfg_pp(x: Tensor, sigmas: Sequence[float], noise: Noise) -> UnguidedSteps:  # noqa: ARG001 - one shape
    """DPM-Solver++(2M) with CFG++."""
    previous, previous_step = x, 0.0
    for sigma, following in pairwise(sigmas):
        guided, negative = yield x, sigma
        if following == 0:
            return guided
        step = log(sigma / following)
        ahead = negative + (negative - previous) * (step / previous_step / 2) if previous_step else negative
        x = exponential_step(x, ahead, sigma, following) + (guided - negative)
        previous, previous_step = negative, step
    return x


def res_multistep_cfg_pp(x: Tensor, sigmas: Sequence[float], noise: Noise) -> UnguidedSteps:
    """RES, multistep, with CFG++."""
    return res_multistep_ancestral_cfg_pp(x, sigmas, noise, eta=0.0)


def res_multistep_ancestral_cfg_pp(
    x: Tensor, sigmas: Sequence[float], noise: Noise, *, eta: float = 1.0
) -> UnguidedSteps:
    """RES, multistep, with ancestral noise and CFG++."""
    before: tuple[Tensor, float] | None = None
    for sigma, following in pairwise(sigmas):
        guided, negative = yield x, sigma
        down, up = ancestral_step(sigma, following, eta)
        x = refined_step(x, negative, sigma, down, before) + (guided - negative)
        x = renoised(x, up, noise, sigma, following)
        before = negative, sigma
    return x


def gradient_estimation_cfg_pp(x: Tensor, sigmas: Sequence[float], noise: Noise) -> UnguidedSteps:  # noqa: ARG001
    """Gradient estimation with CFG++."""
    before: Tensor | None = None
    for sigma, following in pairwise(sigmas):
        guided, negative = yield x, sigma
        if following == 0:
            return guided
        now = slope(x, negative, sigma)
        x = x + (now if before is None else now * 2 - before) * (following - sigma) + (guided - negative)
        before = now
    return x
