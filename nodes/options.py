"""How a sampler runs, beside what everybody sets."""

from collections.abc import Mapping
from math import inf
from typing import Annotated

from annotated_types import Ge, Gt, Le, Len

from engine.node import node
from nodes.diffusion.levels import Limits
from nodes.diffusion.sparing import Sparing
from nodes.diffusion.step import Churn
from nodes.types import SampleOptions

Share = Annotated[float, Ge(0), Le(1)]
Level = Annotated[float, Ge(0), Le(20_000)]
"""A noise level; 0 leaves it to the model, or to the sampler."""
Levels = Annotated[tuple[Annotated[float, Gt(0), Le(20_000)], ...], Len(0, 1000)]
Tolerance = Annotated[float, Ge(1e-6), Le(1)]


@node("sample.options", version=3)
def options(
    *,
    eta: Share | None = None,
    churn: Annotated[float, Ge(0), Le(100)] = 0.0,
    churn_min: Level = 0.0,
    churn_max: Level = 0.0,
    noise_scale: Annotated[float, Ge(0), Le(2)] = 1.0,
    order: Annotated[int, Ge(1), Le(4)] | None = None,
    r: Annotated[float, Ge(0.05), Le(1)] = 0.5,
    max_stage: Annotated[int, Ge(1), Le(3)] = 3,
    sde_min: Level = 0.0,
    sde_max: Level = 0.0,
    rtol: Tolerance = 0.05,
    atol: Tolerance = 0.0078,
    sigma_min: Level = 0.0,
    sigma_max: Level = 0.0,
    rho: Annotated[float, Ge(0), Le(100)] = 0.0,
    levels: Levels = (),
    discard_penultimate: bool = False,
    noise_multiplier: Annotated[float, Ge(0), Le(1.5)] = 1.0,
    extra_noise: Share = 0.0,
    seed_delta: Annotated[int, Ge(0), Le(2**32)] = 0,
    cfg_rescale: Share = 0.0,
    ngms: Level = 0.0,
    ngms_all: bool = False,
    skip_early: Share = 0.0,
) -> SampleOptions:
    """Tell a sampler more than `sample` does; what it does not take has no effect, so a plot over samplers works.

    `eta` is the share of the noise that ancestral and SDE samplers put back on every step, by default all, and none for
    DDIM; ER-SDE has a measure of its own until it is given. `churn` is noise that Euler, Heun, HeunPP2 and DPM2 put
    back before steps from levels between `churn_min` and `churn_max` (0 = no end). `noise_scale` multiplies the noise
    of all steps. `order` is how many answers LMS, iPNDM (4 by default), DEIS, UniPC and SA-Solver (3) look back at;
    `max_stage` is ER-SDE's. `r` is where in a step DPM++ SDE, DPM++ 2S and SEEDS-2 ask again. SA-Solver puts noise back
    on steps onto levels from `sde_min` to `sde_max` (0 = 0.57 and 5.09). `rtol` and `atol` are what DPM adaptive lets
    pass, relative and absolute.

    `sigma_min`, `sigma_max` and `rho` shape the schedule where it is not a list; 0 is the model's, or the schedule's,
    own. `levels` are those of the schedule "custom", descending and without a 0 at the end. `discard_penultimate`
    leaves out the last level above 0, as some samplers always do. `noise_multiplier` scales the noise that a picture
    begins with, and `extra_noise` adds as much more of it, whatever the level. `seed_delta` is added to the seed that
    ancestral samplers draw the steps' noise from (the WebUI's ENSD). `cfg_rescale` takes back that share of the
    contrast that a high cfg adds; models that predict v were trained for about 0.7.

    What leaves out the negative prompt spares half of the UNet's work. `ngms`, the WebUI's negative guidance minimum
    sigma, does below that noise level, on every second model call, or on each with `ngms_all`; `skip_early` does for
    that share of a run from its beginning on (0 = not at all). The first prompt of several stands for it there.
    """
    return SampleOptions(
        eta=eta,
        churn=churn,
        churn_min=churn_min,
        churn_max=churn_max,
        noise_scale=noise_scale,
        order=order,
        r=r,
        max_stage=max_stage,
        sde_min=sde_min,
        sde_max=sde_max,
        rtol=rtol,
        atol=atol,
        sigma_min=sigma_min,
        sigma_max=sigma_max,
        rho=rho,
        levels=levels,
        discard_penultimate=discard_penultimate,
        noise_multiplier=noise_multiplier,
        extra_noise=extra_noise,
        seed_delta=seed_delta,
        cfg_rescale=cfg_rescale,
        ngms=ngms,
        ngms_all=ngms_all,
        skip_early=skip_early,
    )


def limits(given: SampleOptions) -> Limits:
    """What a schedule is told."""
    return Limits(given.sigma_min, given.sigma_max, given.rho, given.levels)


def sparing(given: SampleOptions, calls: int) -> Sparing:
    """At which of the `calls` of a run the negative prompt is left out."""
    return Sparing(given.ngms, given.ngms_all, given.skip_early, calls)


def keywords(given: SampleOptions) -> Mapping[str, object]:
    """What a sampler is told, by the names of its arguments."""
    churn = Churn(given.churn, given.churn_min, given.churn_max or inf)
    told = {"churn": churn, "r": given.r, "max_stage": given.max_stage, "rtol": given.rtol, "atol": given.atol}
    own = {
        "eta": given.eta,
        "order": given.order,
        "sde_min": given.sde_min or None,
        "sde_max": given.sde_max or None,
    }
    return {**told, **{name: value for name, value in own.items() if value is not None}}
