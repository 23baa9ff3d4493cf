"""Samplers that follow the probability flow in single steps: each step asks anew. See `step` for their shape."""

from collections.abc import Sequence
from itertools import pairwise
from math import sqrt

from torch import Tensor

from nodes.diffusion.step import STILL, Churn, Noise, Steps, slope, weighed

RESTART_LOW, RESTART_HIGH = 0.1, 2.0
"""The levels between which `restart` goes back and down again."""


def euler(x: Tensor, sigmas: Sequence[float], noise: Noise, *, churn: Churn = STILL) -> Steps:
    """Euler: Karras et al. 2022, algorithm 2 without its second half (https://arxiv.org/abs/2206.00364).

    First order, one question a step.
    """
    for sigma, following in pairwise(sigmas):
        x, raised = churn.apply(x, sigma, len(sigmas) - 1, noise)
        denoised = yield x, raised
        x = x + slope(x, denoised, raised) * (following - raised)
    return x


def heun(x: Tensor, sigmas: Sequence[float], noise: Noise, *, churn: Churn = STILL) -> Steps:
    """Heun: Karras et al. 2022, algorithm 2; second order, two questions a step and one for the last."""
    for sigma, following in pairwise(sigmas):
        x, raised = churn.apply(x, sigma, len(sigmas) - 1, noise)
        x = yield from _heun_step(x, raised, following)
    return x


def heunpp2(x: Tensor, sigmas: Sequence[float], noise: Noise, *, churn: Churn = STILL) -> Steps:
    """Heun++: Heun that looks two levels ahead and weighs the slopes there by their levels.

    From Carzit's sd-webui-samplers-scheduler (MIT). Three questions a step, two for the last but one, one for the last.
    """
    steps = len(sigmas) - 1
    for position, (sigma, following) in enumerate(pairwise(sigmas)):
        x, raised = churn.apply(x, sigma, steps, noise)
        levels = sigmas[position + 1 : steps][:2]  # those ahead, but for the last
        slopes, ahead, at = [slope(x, (yield x, raised), raised)], x, raised
        for level in levels:
            ahead, at = ahead + slopes[-1] * (level - at), level
            slopes.append(slope(ahead, (yield ahead, level), level))
        shares = [level / sigmas[0] / (len(levels) + 1) for level in levels]
        x = x + weighed([1 - sum(shares), *shares], slopes) * (following - raised)
    return x


def dpm_2(x: Tensor, sigmas: Sequence[float], noise: Noise, *, churn: Churn = STILL) -> Steps:
    """DPM2: the midpoint method, with the middle of log sigma, after DPM-Solver-2 (https://arxiv.org/abs/2206.00927).

    k-diffusion's; second order, two questions a step and one for the step onto 0.
    """
    for sigma, following in pairwise(sigmas):
        x, raised = churn.apply(x, sigma, len(sigmas) - 1, noise)
        x = yield from midpoint_step(x, raised, following)
    return x


def restart(x: Tensor, sigmas: Sequence[float], noise: Noise) -> Steps:
    """Restart: Heun that now and then goes back up and down again, Xu et al. 2023 (https://arxiv.org/abs/2306.14878).

    The way is `restart_way`'s, so a run of 20 steps or more makes as many steps, but visits other levels than asked.
    """
    reached = sigmas[0] if sigmas else 0.0
    for sigma, following in restart_way(sigmas):
        if sigma > reached:
            x = x + noise(reached, sigma) * sqrt(sigma**2 - reached**2)
        x = yield from _heun_step(x, sigma, following)
        reached = following
    return x


def restart_way(sigmas: Sequence[float]) -> list[tuple[float, float]]:
    """Return the steps of `restart`, (from, to): the WebUI's rule.

    Below 20 steps there is no restart. From 20 on 9 of the steps, from 36 on twice a quarter of them, are spent on
    going down once more from the level nearest to 2 to the one nearest to 0.1; the rest go down from the first level to
    the last above 0, evenly in sigma ** (1 / 7).
    """
    steps = len(sigmas) - 1
    if steps < 20 or sigmas[-1] > 0:
        return list(pairwise(sigmas))
    spent, times = (steps // 4, 2) if steps >= 36 else (9, 1)
    levels = [*curve(sigmas[0], sigmas[-2], steps - spent * times), 0.0]
    low, high = _nearest(levels, RESTART_LOW), _nearest(levels, RESTART_HIGH)
    way = list(pairwise(levels))
    if high >= low or low == 0:
        return way
    again = list(pairwise(curve(levels[high], levels[low], spent + 1)))
    return [*way[:low], *again * times, *way[low:]]


def curve(first: float, last: float, count: int, rho: float = 7.0) -> list[float]:
    """Return `count` levels whose sigma ** (1 / rho) falls evenly, Karras et al. 2022, equation 5; one is the first."""
    high, low = first ** (1 / rho), last ** (1 / rho)
    return [(high + (low - high) * index / max(count - 1, 1)) ** rho for index in range(count)]


def midpoint_step(x: Tensor, sigma: float, following: float) -> Steps:
    """Step with the slope in the middle of log sigma; onto 0 with the one at hand."""
    first = slope(x, (yield x, sigma), sigma)
    if following == 0:
        return x - first * sigma
    middle = sqrt(sigma * following)
    between = x + first * (middle - sigma)
    return x + slope(between, (yield between, middle), middle) * (following - sigma)


def _heun_step(x: Tensor, sigma: float, following: float) -> Steps:
    """Step with the mean of the slopes at both ends; onto 0 with the one at hand."""
    first = slope(x, (yield x, sigma), sigma)
    if following == 0:
        return x - first * sigma
    ahead = x + first * (following - sigma)
    return x + (first + slope(ahead, (yield ahead, following), following)) * ((following - sigma) / 2)


def _nearest(levels: Sequence[float], level: float) -> int:
    """Return the position of the level nearest to `level`, the first of equals."""
    return min(range(len(levels)), key=lambda position: abs(levels[position] - level))
