"""What all samplers share: their shape, and the maths of one step.

A sampler asks its questions by yielding (x, sigma): "what is the clean latent behind x, which carries noise of standard
deviation sigma?" The answer, the denoised latent, is sent in, and the end result is returned. A sampler therefore knows
nothing of models, guidance or batches, and one driver can advance many of them together.

Samplers of the CFG++ family are answered with a `Predicted`: they step along the noise that the negative prompt sees.

All have one shape: `x` is the noisy latent at sigmas[0], any dtype and shape; `sigmas` are Python floats, descending,
usually ending in 0; `noise(sigma, following)` returns a standard normal tensor like x for the way between two levels.
What else a sampler takes are its keyword arguments. Fewer than two sigmas are no steps.
"""

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from math import inf, sqrt
from typing import Any, NamedTuple, TypeAlias

from torch import Tensor


class Predicted(NamedTuple):
    """An answer to a sampler that wants to know both.

    `guided` is the clean latent predicted under all prompts, inside a mask, as others get it alone; `negative` the one
    predicted under the negative prompt, which no mask has touched.
    """

    guided: Tensor
    negative: Tensor


Steps: TypeAlias = Generator[tuple[Tensor, float], Tensor, Tensor]
UnguidedSteps: TypeAlias = Generator[tuple[Tensor, float], Predicted, Tensor]
AnySteps: TypeAlias = Generator[tuple[Tensor, float], Any, Tensor]
"""Either: the sampler's record says which answers it wants."""
Noise: TypeAlias = Callable[[float, float], Tensor]
SamplerFunction: TypeAlias = Callable[..., AnySteps]


@dataclass(frozen=True)
class Churn:
    """Noise that is put back before a step: Karras et al. 2022, algorithm 2 (https://arxiv.org/abs/2206.00364).

    `amount` is spread over the steps that begin at a level from `low` to `high`; each raises its level by at most 41 %.
    """

    amount: float = 0.0
    low: float = 0.0
    high: float = inf

    def raised(self, sigma: float, steps: int) -> float:
        """Return the level that a step of `steps` begins at instead of `sigma`."""
        within = self.low <= sigma <= self.high
        return sigma * (1 + min(self.amount / steps, sqrt(2) - 1)) if within else sigma

    def apply(self, x: Tensor, sigma: float, steps: int, noise: Noise) -> tuple[Tensor, float]:
        """Raise x to that level. With any amount every step draws, even where it adds nothing: seeds count on it."""
        if self.amount <= 0:
            return x, sigma
        raised, drawn = self.raised(sigma, steps), noise(sigma, sigma)
        return (x + drawn * sqrt(raised**2 - sigma**2), raised) if raised > sigma else (x, sigma)


STILL = Churn()


def slope(x: Tensor, denoised: Tensor, sigma: float) -> Tensor:
    """The noise that stands on x, at length 1: dx / dsigma of the probability flow."""
    return (x - denoised) / sigma


def ancestral_step(sigma: float, following: float, eta: float) -> tuple[float, float]:
    """Split a step: the level to go `down` to, and the noise `up` from there; down**2 + up**2 == following**2."""
    up = min(following, eta * sqrt(following**2 * (sigma**2 - following**2) / sigma**2))
    return sqrt(following**2 - up**2), up


def exponential_step(x: Tensor, denoised: Tensor, sigma: float, following: float) -> Tensor:
    """Go to `following` as if the denoised latent stayed what it is: exact in exponential integrators' first order."""
    return x * (following / sigma) + denoised * (1 - following / sigma)


def renoised(x: Tensor, up: float, noise: Noise, sigma: float, following: float) -> Tensor:
    """Add noise of level `up` to x; none is drawn where it is 0."""
    return x + noise(sigma, following) * up if up > 0 else x


def weighed(weights: Sequence[float], slopes: Sequence[Tensor]) -> Tensor:
    """Return the weighted sum of at least one slope."""
    [total, *rest] = [slope * weight for weight, slope in zip(weights, slopes, strict=True)]
    for term in rest:
        total = total + term
    return total
