"""DPM-Solver in steps of order 1 to 3: Lu et al. 2022 (https://arxiv.org/abs/2206.00927). See `step` for the shape.

Both samplers choose their own levels between the first of `sigmas` and the last above 0, and end at that one: the noise
there, 0.03 for Stable Diffusion, stays, as it does in k-diffusion. Where there is but one level, its answer is the end.
`eta` in [0, 1] is the share of ancestral noise; the WebUI runs both with 1, ComfyUI with 0.
"""

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import atan, exp, expm1, log, sqrt
from typing import TypeAlias

from torch import Tensor

from nodes.diffusion.step import Noise, Steps, ancestral_step, renoised, slope

Pair: TypeAlias = Generator[tuple[Tensor, float], Tensor, tuple[Tensor, Tensor]]

RELATIVE, ABSOLUTE = 0.05, 0.0078
"""What `dpm_adaptive` lets a step differ from one of lower order, unless told otherwise."""
CLOSE = 1e-5
"""How near to the end, in log sigma, counts as there."""


def dpm_fast(x: Tensor, sigmas: Sequence[float], noise: Noise, *, eta: float = 1.0) -> Steps:
    """DPM-Solver-fast: as many questions as `sigmas` have steps, spent on steps of order 3 as far as they go.

    Of `sigmas` only both ends and the number count; the levels are even in log sigma.
    """
    first, last = _ends(sigmas)
    if last == first:
        return (yield x, first) if len(sigmas) > 1 else x
    orders = _orders(len(sigmas) - 1)
    levels = [*(first * (last / first) ** (index / len(orders)) for index in range(len(orders))), last]
    for order, (sigma, following) in zip(orders, pairwise(levels), strict=True):
        down, up = _bounded_step(sigma, following, last, eta)
        known = slope(x, (yield x, sigma), sigma)
        if order == 3:
            _, x = yield from _both(x, known, sigma, down)
        elif order == 2:
            x = yield from _second(x, known, sigma, down)
        else:
            x = x - known * (down * expm1(log(sigma / down)))
        x = renoised(x, up, noise, sigma, following)
    return x


def dpm_adaptive(
    x: Tensor,
    sigmas: Sequence[float],
    noise: Noise,
    *,
    eta: float = 1.0,
    rtol: float = RELATIVE,
    atol: float = ABSOLUTE,
) -> Steps:
    """DPM-Solver-23: steps of order 3 as long as those of order 2 agree with them; as many as it takes.

    They agree within the share `rtol` of the latent, and at least `atol`. The error is the root mean square over all of
    x, so pictures that are to be independent must be run one by one.
    """
    sigma, last = _ends(sigmas)
    if last == sigma:
        return (yield x, sigma) if len(sigmas) > 1 else x
    control, before = _Control(order=1.5 if eta else 3.0), x
    known: Tensor | None = None
    while log(sigma / last) > CLOSE:
        following = max(last, sigma * exp(-control.step))
        down, up = _bounded_step(sigma, following, last, eta)
        known = slope(x, (yield x, sigma), sigma) if known is None else known
        low, high = yield from _both(x, known, sigma, down)
        if control.accepts(_error(low, high, (low.abs().maximum(before.abs()) * rtol).clamp(min=atol))):
            before, x, known = low, renoised(high, up, noise, sigma, following), None
            sigma = following
    return x


@dataclass
class _Control:
    """How long the next step is to be, in log sigma: the integral controller of k-diffusion's DPM-Solver-23."""

    order: float
    step: float = 0.05

    def accepts(self, error: float) -> bool:
        """Lengthen or shorten the next step after one that was off by `error`, and say whether that one counts."""
        factor = 1 + atan((1 / (error + 1e-8)) ** (1 / self.order) - 1)
        self.step *= factor
        return factor >= 0.81


def _ends(sigmas: Sequence[float]) -> tuple[float, float]:
    """Return the first level and the last above 0; equal where there is nothing between."""
    above = [sigma for sigma in sigmas if sigma > 0]
    return (above[0], above[-1]) if above else (0.0, 0.0)


def _orders(questions: int) -> list[int]:
    """Spend `questions` on steps of order 3, the last ones lower: the paper's DPM-Solver-fast."""
    thirds, rest = divmod(questions, 3)
    return [3] * thirds + [rest] if rest else [3] * (thirds - 1) + [2, 1]


def _bounded_step(sigma: float, following: float, last: float, eta: float) -> tuple[float, float]:
    """Split a step like `ancestral_step`, but never go below the last level."""
    down = max(last, ancestral_step(sigma, following, eta)[0])
    return down, sqrt(max(following**2 - down**2, 0.0))


def _second(x: Tensor, known: Tensor, sigma: float, following: float) -> Steps:
    """Step with order 2, by one more question in the middle of log sigma."""
    step = log(sigma / following)
    middle = sigma * exp(-step / 2)
    there = x - known * (middle * expm1(step / 2))
    change = slope(there, (yield there, middle), middle) - known
    return x - (known + change) * (following * expm1(step))


def _both(x: Tensor, known: Tensor, sigma: float, following: float) -> Pair:
    """Step with order 2 and with order 3, by two more questions at thirds of log sigma."""
    step = log(sigma / following)
    third, later = (sigma * exp(-step * share) for share in (1 / 3, 2 / 3))
    there = x - known * (third * expm1(step / 3))
    change = slope(there, (yield there, third), third) - known
    bend = expm1(step * 2 / 3) / (step * 2 / 3) - 1
    further = x - known * (later * expm1(step * 2 / 3)) - change * (later * 2 * bend)
    last = slope(further, (yield further, later), later) - known
    plain = x - known * (following * expm1(step))
    low = plain - change * (following * 1.5 * expm1(step))
    return low, plain - last * (following * 1.5 * (expm1(step) / step - 1))


def _error(low: Tensor, high: Tensor, passed: Tensor) -> float:
    """How far apart two results are, against what is let pass."""
    return float(((low - high) / passed).square().mean().sqrt())
