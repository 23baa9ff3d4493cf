"""UniPC: predictor and corrector in one, Zhao et al. 2023 (https://arxiv.org/abs/2302.04867). See `step`."""

from collections.abc import Callable, Sequence
from itertools import pairwise
from math import expm1, factorial, log

import numpy as np
from torch import Tensor

from nodes.diffusion.step import Noise, Steps, exponential_step, weighed


def uni_pc(x: Tensor, sigmas: Sequence[float], noise: Noise, *, order: int = 3) -> Steps:  # noqa: ARG001
    """UniPC with B(h) = h: predicts denoised latents, multistep, one question a step, by up to `order` answers.

    The last steps are of lower order, and the step onto 0 gives the answer.
    """
    return _unified(x, sigmas, order, lambda step: -step)


def uni_pc_bh2(x: Tensor, sigmas: Sequence[float], noise: Noise, *, order: int = 3) -> Steps:  # noqa: ARG001
    """UniPC with B(h) = exp(h) - 1; otherwise `uni_pc`."""
    return _unified(x, sigmas, order, lambda step: expm1(-step))


def _unified(x: Tensor, sigmas: Sequence[float], order: int, base: Callable[[float], float]) -> Steps:
    """Predict, ask there, correct with the answer, and predict on."""
    past: list[tuple[float, Tensor]] = []  # level and answer, the newest first
    used, left = past, x
    for position, (sigma, following) in enumerate(pairwise(sigmas)):
        denoised = yield x, sigma
        if following == 0:
            return denoised
        if used:
            x = _step(left, used, sigma, base, denoised)
        past = [(sigma, denoised), *past][:order]
        used, left = past[: len(sigmas) - 1 - position], x
        x = _step(x, used, following, base)
    return x


def _step(
    x: Tensor,
    used: Sequence[tuple[float, Tensor]],
    following: float,
    base: Callable[[float], float],
    ahead: Tensor | None = None,
) -> Tensor:
    """Step from the newest of the `used` answers to the next level; with the answer `ahead` there it is corrected."""
    (sigma, newest), *older = used
    step = log(sigma / following)
    points = [(log(sigma / level) / step, answer) for level, answer in older]
    if ahead is not None:
        points.append((1.0, ahead))
    x = exponential_step(x, newest, sigma, following)
    if not points:
        return x
    weights = _weights([ratio for ratio, _ in points], step, base)
    return x - weighed(weights, [(answer - newest) / ratio for ratio, answer in points]) * base(step)


def _weights(ratios: Sequence[float], step: float, base: Callable[[float], float]) -> list[float]:
    """Solve the paper's equation 5 for the weights of the differences; a single one weighs a half."""
    if len(ratios) == 1:
        return [0.5]
    power, wanted = expm1(-step) / -step - 1, []
    for degree in range(1, len(ratios) + 1):
        wanted.append(power * factorial(degree) / base(step))
        power = power / -step - 1 / factorial(degree + 1)
    matrix = np.array([[ratio**degree for ratio in ratios] for degree in range(len(ratios))])
    return [float(weight) for weight in np.linalg.solve(matrix, np.array(wanted))]
