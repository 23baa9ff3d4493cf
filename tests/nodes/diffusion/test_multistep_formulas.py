"""Multistep samplers beside their formulas; see `following`. Integrals are scipy's."""

from functools import partial
from itertools import pairwise
from math import exp, expm1, log

import numpy as np
import pytest
from following import SIGMAS, ancestral, assert_follows
from scipy.integrate import quad

BASHFORTH = {1: [1], 2: [3 / 2, -1 / 2], 3: [23 / 12, -16 / 12, 5 / 12], 4: [55 / 24, -59 / 24, 37 / 24, -9 / 24]}


def dpmpp_2m(D, x, sigmas, noise, _):
    old = h_last = None
    for s, s1 in pairwise(sigmas):
        denoised = D(x, s)
        if s1 == 0:
            return denoised
        h = log(s) - log(s1)
        r = h_last / h if h_last else None
        bent = denoised if old is None else (1 + 1 / (2 * r)) * denoised - 1 / (2 * r) * old
        x = s1 / s * x - expm1(-h) * bent
        old, h_last = denoised, h
    return x


def res_multistep(D, x, sigmas, noise, eta):
    """The answers go on linearly in t; noise is put back after."""
    old = t_old = None
    for s, s1 in pairwise(sigmas):
        denoised, t = D(x, s), -log(s)
        down, up = ancestral(s, s1, eta)
        if s1 == 0:
            return denoised
        end = -log(down)
        gained = quad(lambda u, end=end: exp(u - end), t, end, epsrel=1e-13)[0] * denoised
        if old is not None:
            bent = quad(lambda u, t=t, end=end: exp(u - end) * (u - t), t, end, epsrel=1e-13)[0]
            gained = gained + bent * (denoised - old) / (t - t_old)
        x = exp(t - end) * x + gained
        x = x + up * noise(s, s1) if up > 0 else x
        old, t_old = denoised, t
    return x


def ipndm(D, x, sigmas, noise, _, *, order=4):
    ds = []
    for s, s1 in pairwise(sigmas):
        denoised = D(x, s)
        if s1 == 0:
            return denoised
        ds = [(x - denoised) / s, *ds][:order]
        x = x + (s1 - s) * sum(weight * d for weight, d in zip(BASHFORTH[len(ds)], ds, strict=True))
    return x


def ipndm_v(D, x, sigmas, noise, _, *, order=4):
    ds = []
    for i, (s, s1) in enumerate(pairwise(sigmas)):
        denoised = D(x, s)
        if s1 == 0:
            return denoised
        ds = [(x - denoised) / s, *ds][:order]
        h = [s1 - s, *(sigmas[i - k] - sigmas[i - k - 1] for k in range(min(i, 3)))]
        if len(ds) == 1:
            bar = ds[0]
        elif len(ds) == 2:
            bar = (2 + h[0] / h[1]) / 2 * ds[0] - h[0] / h[1] / 2 * ds[1]
        else:
            u = (1 - h[0] / (3 * (h[0] + h[1])) * (h[0] * (h[0] + h[1])) / (h[1] * (h[1] + h[2]))) / 2
            c = [(2 + h[0] / h[1]) / 2 + u, -(h[0] / h[1]) / 2 - (1 + h[1] / h[2]) * u, u * h[1] / h[2]]
            if len(ds) == 4:
                v = (1 - h[0] / (3 * (h[0] + h[1]))) / 2
                v += (1 - h[0] / (2 * (h[0] + h[1]))) * h[0] / (6 * sum(h[:3]))
                v *= h[0] * (h[0] + h[1]) * sum(h[:3]) / (h[1] * (h[1] + h[2]) * sum(h[1:]))
                q = h[1] * (h[1] + h[2]) / (h[2] * (h[2] + h[3]))
                c = [
                    c[0] + v,
                    c[1] - (1 + h[1] / h[2] + q) * v,
                    c[2] + (h[1] / h[2] + q * (1 + h[2] / h[3])) * v,
                    -v * q * h[1] / h[2],
                ]
            bar = sum(weight * d for weight, d in zip(c, ds, strict=True))
        x = x + h[0] * bar
    return x


def lagrange(times, j, u):
    return np.prod([(u - other) / (times[j] - other) for k, other in enumerate(times) if k != j])


def deis(D, x, sigmas, noise, _, *, order=3):
    ds, times = [], []
    for s, s1 in pairwise(sigmas):
        denoised = D(x, s)
        if s1 == 0:
            return denoised
        ds, times = [(x - denoised) / s, *ds][:order], [log(s), *times][:order]
        for j, d in enumerate(ds):
            weight = quad(lambda u, j=j, times=times: exp(u) * lagrange(times, j, u), log(s), log(s1), epsrel=1e-13)[0]
            x = x + weight * d
    return x


def sa_solver(D, x, sigmas, noise, eta, *, order=3, low=0.57119, high=5.09241, pece=False):
    """Xue et al. 2023, algorithm 1, for data prediction: predictor of `order` steps, corrector of one more."""

    def step(x, answers, times, way):
        s, s1, tau, added = way
        t, t1 = -log(s), -log(s1)
        x = s1 / s * exp(-(tau**2) * (t1 - t)) * x + added
        for j, answer in enumerate(answers):

            def grown(u, j=j):
                return (1 + tau**2) * exp((1 + tau**2) * (u - t1)) * lagrange(times, j, u)

            x = x + quad(grown, t, t1, epsrel=1e-13)[0] * answer
        return x

    answers, times, before = [], [], None
    for s, s1 in pairwise(sigmas):
        denoised = D(x, s)
        if before is not None:
            x = step(before[0], [denoised, *answers], [-log(s), *times], before[1:])
            denoised = D(x, s) if pece else denoised
        if s1 == 0:
            return denoised
        answers, times = [denoised, *answers][:order], [-log(s), *times][:order]
        tau = eta if low <= s1 <= high else 0
        added = s1 * (1 - exp(-2 * tau**2 * (log(s) - log(s1)))) ** 0.5 * noise(s, s1) if tau else 0.0
        before = x, s, s1, tau, added
        x = step(x, answers, times, before[1:])
    return x


def unified(x, s1, answers, base):
    """Zhao et al. 2023, equations 5 to 9 for data prediction: one step, by answers of which the first is at its start.

    Where `h` is the step in -log sigma, the differences from the first answer are weighed so that what they say up to
    their order is integrated exactly, whatever function `base` of `h` divides both sides.
    """
    (s, newest), *others = answers
    h = log(s / s1)
    x = s1 / s * x - expm1(-h) * newest
    places = [log(s / level) / h for level, _ in others]
    if not others:
        return x

    def moment(degree):
        return -h * quad(lambda u: exp((u - 1) * h) * u**degree, 0, 1, epsrel=1e-13)[0] / base(h)

    powers = [[place**degree for place in places] for degree in range(len(places))]
    weights = np.linalg.solve(powers, [moment(degree + 1) for degree in range(len(places))])
    weights = [0.5] if len(others) == 1 else weights
    bent = sum(w / place * (answer - newest) for w, place, (_, answer) in zip(weights, places, others, strict=True))
    return x - base(h) * bent


def uni_pc(D, x, sigmas, noise, _, *, order=3, base=lambda h: -h):
    """Algorithms 5 and 6, in one loop: what is asked at a predicted place also corrects it, and is not asked again.

    An order is as high as there are answers behind, and as there are steps left.
    """
    past, before = [], None
    for i, (s, s1) in enumerate(pairwise(sigmas)):
        denoised = D(x, s)
        if before is not None and s1 > 0:
            x = unified(before[0], s, [*before[1], (s, denoised)], base)
        if s1 == 0:
            return denoised
        past = [(s, denoised), *past]
        known = past[: min(order, len(sigmas) - 1 - i)]
        before = x, known
        x = unified(x, s1, known, base)
    return x


BY_HAND = {
    "uni_pc": uni_pc,
    "uni_pc_bh2": partial(uni_pc, base=lambda h: expm1(-h)),
    "dpmpp_2m": dpmpp_2m,
    "res_multistep": lambda *run: res_multistep(*run[:4], 0.0),
    "res_multistep_ancestral": res_multistep,
    "ipndm": ipndm,
    "ipndm_v": ipndm_v,
    "deis": deis,
    "sa_solver": sa_solver,
    "sa_solver_pece": partial(sa_solver, pece=True),
}


@pytest.mark.parametrize("name", BY_HAND)
@pytest.mark.parametrize("eta", [0.4, 1.0])
@pytest.mark.parametrize("steps", [12, 5, 4, 3, 2, 1])
def test_a_sampler_follows_its_formula_and_draws_noise_for_the_same_ways(name, eta, steps, mixture):
    assert_follows(name, BY_HAND[name], mixture.denoised, SIGMAS[-steps - 1 :], eta=eta)


@pytest.mark.parametrize("name", ["ipndm", "ipndm_v", "deis", "sa_solver", "sa_solver_pece", "uni_pc", "uni_pc_bh2"])
@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_a_sampler_is_of_the_order_asked_for(name, order, mixture):
    assert_follows(name, partial(BY_HAND[name], order=order), mixture.denoised, SIGMAS, order=order, eta=1.0)


@pytest.mark.parametrize(("low", "high"), [(0.0, 99.0), (1.0, 2.0)])
def test_sa_solver_draws_between_the_levels_that_it_is_told(low, high, mixture):
    told = {"sde_min": low, "sde_max": high}
    assert_follows("sa_solver", partial(sa_solver, low=low, high=high), mixture.denoised, SIGMAS, eta=0.8, **told)


@pytest.mark.parametrize("order", [1, 2, 3])
def test_where_steps_are_even_ipndm_v_is_ipndm_up_to_the_third_order(order, mixture):
    sigmas = [5.0 - 0.25 * step for step in range(18)]
    assert_follows("ipndm_v", partial(ipndm, order=order), mixture.denoised, sigmas, order=order)
