"""SEEDS and ER-SDE beside their formulas; see `following`. Integrals are scipy's."""

from functools import partial
from itertools import pairwise
from math import exp, expm1, log

import pytest
from following import SIGMAS, assert_follows
from scipy.integrate import quad


def bridge(t, t1, eta):
    """Standard deviation, at t1, of the noise that comes in between two times."""
    return exp(-t1) * (-expm1(-2 * eta * (t1 - t))) ** 0.5


def decay(t, t1, eta):
    return exp(-(1 + eta) * (t1 - t))


def seeds_2(D, x, sigmas, noise, eta, *, r=1 / 2):
    for s, s1 in pairwise(sigmas):
        denoised = D(x, s)
        if s1 == 0:
            return denoised
        t, t1 = -log(s), -log(s1)
        m = t + r * (t1 - t)
        z = bridge(t, m, eta) * noise(s, exp(-m))
        mid = D(decay(t, m, eta) * x + (1 - decay(t, m, eta)) * denoised + z, exp(-m))
        z = decay(m, t1, eta) * z + (bridge(m, t1, eta) * noise(exp(-m), s1) if r < 1 else 0)
        mean = (1 - 1 / (2 * r)) * denoised + 1 / (2 * r) * mid
        x = decay(t, t1, eta) * x + (1 - decay(t, t1, eta)) * mean + z
    return x


def seeds_3(D, x, sigmas, noise, eta):
    """DPM-Solver++(3S)'s stages, with r1 = 1/3 and r2 = 2/3, at the rate 1 + eta."""
    for s, s1 in pairwise(sigmas):
        denoised = D(x, s)
        if s1 == 0:
            return denoised
        t, h = -log(s), log(s) - log(s1)
        a, b, t1 = t + h / 3, t + 2 * h / 3, t + h
        rate = (1 + eta) * h
        z = bridge(t, a, eta) * noise(s, exp(-a))
        d1 = D(exp(-rate / 3) * x - expm1(-rate / 3) * denoised + z, exp(-a)) - denoised
        z = decay(a, b, eta) * z + bridge(a, b, eta) * noise(exp(-a), exp(-b))
        bend = 2 * (expm1(-2 * rate / 3) / (2 * rate / 3) + 1)
        d2 = D(exp(-2 * rate / 3) * x - expm1(-2 * rate / 3) * denoised + bend * d1 + z, exp(-b)) - denoised
        z = decay(b, t1, eta) * z + bridge(b, t1, eta) * noise(exp(-b), s1)
        x = exp(-rate) * x - expm1(-rate) * denoised + 3 / 2 * (expm1(-rate) / rate + 1) * d2 + z
    return x


def er_sde(D, x, sigmas, noise, eta, *, stages=3):
    def phi(s):
        return s * (exp(s**0.3) + 10) if eta is None else s ** (1 + eta)

    answers, levels, d_last = [], [], None
    for s, s1 in pairwise(sigmas):
        x0 = D(x, s)
        r = phi(s1) / phi(s)
        if s1 == 0:
            return x0
        spread = (s1**2 - s**2 * r**2) ** 0.5 if eta != 0 else 0
        x = r * x + (1 - r) * x0
        if answers and stages > 1:
            d = (x0 - answers[-1]) / (s - levels[-1])
            first = quad(lambda u: 1 / phi(u), s1, s, epsrel=1e-13)[0]
            x = x + (s1 - s + phi(s1) * first) * d
            if d_last is not None and stages > 2:
                second = quad(lambda u, s=s: (u - s) / phi(u), s1, s, epsrel=1e-13)[0]
                dd = 2 * (d - d_last) / (s - levels[-2])
                x = x + ((s1 - s) ** 2 / 2 + phi(s1) * second) * dd
            d_last = d
        x = x + spread * noise(s, s1) if spread > 0 else x
        answers.append(x0)
        levels.append(s)
    return x


@pytest.mark.parametrize("by_hand", [seeds_2, seeds_3, er_sde])
@pytest.mark.parametrize("eta", [0.4, 1.0])
@pytest.mark.parametrize("steps", [12, 5, 2, 1])
def test_a_sampler_follows_its_formula_and_draws_noise_for_the_same_ways(by_hand, eta, steps, mixture):
    assert_follows(by_hand.__name__, by_hand, mixture.denoised, SIGMAS[-steps - 1 :], eta=eta)


@pytest.mark.parametrize("share", [0.3, 1.0])
def test_seeds_2_asks_again_after_the_share_r_of_a_step(share, mixture):
    assert_follows("seeds_2", partial(seeds_2, r=share), mixture.denoised, SIGMAS, eta=0.7, r=share)


@pytest.mark.parametrize("stages", [1, 2, 3])
def test_er_sde_takes_as_many_stages_as_it_is_told_and_has_a_scale_of_its_own(stages, mixture):
    assert_follows("er_sde", partial(er_sde, stages=stages), mixture.denoised, SIGMAS, max_stage=stages)


def test_er_sde_without_noise_is_the_probability_flow(mixture):
    assert_follows("er_sde", er_sde, mixture.denoised, SIGMAS, eta=0.0)
