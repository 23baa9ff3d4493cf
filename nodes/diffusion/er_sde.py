"""ER-SDE: solvers of the extended reverse stochastic equation, Cui et al. 2023 (https://arxiv.org/abs/2309.06169).

How much noise a step puts back is free as long as the levels come out right; a scale of sigma says it. See `step`.
"""

from collections.abc import Callable, Sequence
from itertools import pairwise
from math import sqrt
from typing import Any, TypeAlias

import numpy as np
from torch import Tensor

from nodes.diffusion.step import Noise, Steps, renoised

Scale: TypeAlias = Callable[[Any], Any]

POINTS, WEIGHTS = np.polynomial.legendre.leggauss(16)
NOTHING = 1e-12
"""Share of a level's variance that is rounding."""


def er_sde(x: Tensor, sigmas: Sequence[float], noise: Noise, *, eta: float | None = None, max_stage: int = 3) -> Steps:
    """ER-SDE-Solver, multistep, up to three answers in one step; one question a step.

    Without `eta` its scale is the paper's fifth, sigma * (exp(sigma ** 0.3) + 10). With it, sigma ** (1 + eta): at 0
    the probability flow, at 1 the reverse diffusion. `max_stage`, 1 to 3, is the order of Taylor's expansion in sigma.
    """
    scale: Scale = _extended if eta is None else lambda sigma: sigma ** (1 + eta)
    answers: list[tuple[Tensor, float]] = []  # and their levels, the newest first
    change: Tensor | None = None
    for sigma, following in pairwise(sigmas):
        denoised = yield x, sigma
        if following == 0:
            return denoised
        kept = float(scale(following) / scale(sigma))
        x = x * kept + denoised * (1 - kept)
        if answers and max_stage > 1:
            first, second = _weights(scale, sigma, following)
            before, change = change, (denoised - answers[0][0]) / (sigma - answers[0][1])
            x = x + change * first
            if before is not None and max_stage > 2:
                x = x + (change - before) * (2 / (sigma - answers[1][1]) * second)
        lost = following**2 - (sigma * kept) ** 2
        x = renoised(x, sqrt(lost) if lost > NOTHING * following**2 else 0.0, noise, sigma, following)
        answers = [(denoised, sigma), *answers][:2]
    return x


def _extended(sigma: Any) -> Any:
    return sigma * (np.exp(sigma**0.3) + 10)


def _weights(scale: Scale, sigma: float, following: float) -> tuple[float, float]:
    """Weigh the first and the second derivative of the answers by sigma: Taylor's terms, integrated.

    The integrals are Gauss and Legendre's in log sigma; the authors' are sums of a hundred.
    """
    half = np.log(sigma / following) / 2
    at = following * np.exp(half * (1 + POINTS))
    share = half * WEIGHTS * at / scale(at) * scale(following)
    step = following - sigma
    return step + float(share.sum()), step**2 / 2 + float((share * (at - sigma)).sum())
