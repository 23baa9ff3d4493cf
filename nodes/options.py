"""How a sampler runs, beside what everybody sets."""

from collections.abc import Mapping
from math import inf
from typing import Annotated

from annotated_types import Ge, Le

from engine.node import node
from nodes.diffusion.schedule import Limits
from nodes.diffusion.step import Churn
from nodes.types import SampleOptions

Share = Annotated[float, Ge(0), Le(1)]
Level = Annotated[float, Ge(0), Le(1000)]
"""A noise level; 0 leaves it to the model."""


@node("sample.options", version=1)
def options(
    *,
    eta: Share | None = None,
    churn: Annotated[float, Ge(0), Le(100)] = 0.0,
    churn_min: Level = 0.0,
    churn_max: Level = 0.0,
    noise_scale: Annotated[float, Ge(0), Le(2)] = 1.0,
    order: Annotated[int, Ge(1), Le(3)] = 3,
    sigma_min: Level = 0.0,
    sigma_max: Level = 0.0,
    rho: Annotated[float, Ge(0), Le(100)] = 0.0,
    discard_penultimate: bool = False,
    noise_multiplier: Annotated[float, Ge(0), Le(1.5)] = 1.0,
    extra_noise: Share = 0.0,
    seed_delta: Annotated[int, Ge(0), Le(2**32)] = 0,
) -> SampleOptions:
    """Tell a sampler more than `sample` does; what it does not take has no effect, so a plot over samplers works.

    `eta` is the share of the noise that ancestral and SDE samplers put back on every step, by default all, and none for
    DDIM. `churn` is noise that Euler, Heun and DPM2 put back before steps from levels between `churn_min` and
    `churn_max` (0 = no end). `noise_scale` multiplies the noise of all steps. `order` is UniPC's. `sigma_min`,
    `sigma_max` and `rho` shape the schedule where it is not a list; 0 is the model's, or the schedule's, own.
    `discard_penultimate` leaves out the last level above 0, as some samplers always do. `noise_multiplier` scales the
    noise that a picture begins with, and `extra_noise` adds as much more of it, whatever the level. `seed_delta` is
    added to the seed that ancestral samplers draw the steps' noise from (the WebUI's ENSD).
    """
    return SampleOptions(
        eta=eta,
        churn=churn,
        churn_min=churn_min,
        churn_max=churn_max,
        noise_scale=noise_scale,
        order=order,
        sigma_min=sigma_min,
        sigma_max=sigma_max,
        rho=rho,
        discard_penultimate=discard_penultimate,
        noise_multiplier=noise_multiplier,
        extra_noise=extra_noise,
        seed_delta=seed_delta,
    )


def limits(given: SampleOptions) -> Limits:
    """What a schedule is told."""
    return Limits(given.sigma_min, given.sigma_max, given.rho)


def keywords(given: SampleOptions) -> Mapping[str, object]:
    """What a sampler is told, by the names of its arguments."""
    churn = Churn(given.churn, given.churn_min, given.churn_max or inf)
    told: dict[str, object] = {"churn": churn, "order": given.order}
    return told if given.eta is None else {**told, "eta": given.eta}
