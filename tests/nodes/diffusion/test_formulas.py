"""Single-step samplers, and k-diffusion's, beside their formulas; see `following`."""

from functools import partial
from itertools import pairwise
from math import atan, exp, expm1, floor, log

import numpy as np
import pytest
import torch
from following import SIGMAS, START, ancestral, assert_follows
from scipy.integrate import quad

from nodes.diffusion.drive import drive
from nodes.diffusion.flow import restart_way
from nodes.diffusion.sampler import SAMPLERS
from nodes.diffusion.step import Churn


def euler(D, x, sigmas, noise, _):
    for s, s1 in pairwise(sigmas):
        x = x + (x - D(x, s)) / s * (s1 - s)
    return x


def euler_ancestral(D, x, sigmas, noise, eta):
    for s, s1 in pairwise(sigmas):
        down, up = ancestral(s, s1, eta)
        x = x + (x - D(x, s)) / s * (down - s)
        x = x + noise(s, s1) * up if s1 > 0 else x
    return x


def heun(D, x, sigmas, noise, _):
    for s, s1 in pairwise(sigmas):
        d = (x - D(x, s)) / s
        if s1 == 0:
            x = x + d * (s1 - s)
        else:
            x2 = x + d * (s1 - s)
            x = x + (d + (x2 - D(x2, s1)) / s1) / 2 * (s1 - s)
    return x


def dpm_2(D, x, sigmas, noise, _):
    for s, s1 in pairwise(sigmas):
        d = (x - D(x, s)) / s
        if s1 == 0:
            x = x + d * (s1 - s)
        else:
            mid = exp((log(s) + log(s1)) / 2)
            x2 = x + d * (mid - s)
            x = x + (x2 - D(x2, mid)) / mid * (s1 - s)
    return x


def restart(D, x, sigmas, noise, _):
    at = sigmas[0]
    for s, s1 in restart_way(sigmas):
        if s > at:
            x = x + noise(at, s) * (s**2 - at**2) ** 0.5
        x, at = heun(D, x, [s, s1], noise, None), s1
    return x


def ddpm(D, x, sigmas, noise, _):
    """Ho et al. 2020, equation 7, with alphas, on x / sqrt(1 + sigma ** 2)."""
    for s, s1 in pairwise(sigmas):
        z, abar, abar1 = x / (1 + s**2) ** 0.5, 1 / (1 + s**2), 1 / (1 + s1**2)
        alpha = abar / abar1
        mean = abar1**0.5 * (1 - alpha) / (1 - abar) * D(x, s) + alpha**0.5 * (1 - abar1) / (1 - abar) * z
        spread = ((1 - abar1) / (1 - abar) * (1 - alpha)) ** 0.5
        x = (mean + (noise(s, s1) * spread if s1 > 0 else 0)) * (1 + s1**2) ** 0.5
    return x


def euler_churned(D, x, sigmas, noise, _):
    for s, s1 in pairwise(sigmas):
        gamma = min(6.0 / (len(sigmas) - 1), 2**0.5 - 1) if 0.3 <= s <= 9 else 0
        eps, hat = noise(s, s), s * (1 + gamma)
        if gamma > 0:
            x = x + eps * (hat**2 - s**2) ** 0.5
        x = x + (x - D(x, hat)) / hat * (s1 - hat)
    return x


def dpm_2_ancestral(D, x, sigmas, noise, eta):
    for s, s1 in pairwise(sigmas):
        d = (x - D(x, s)) / s
        down, up = ancestral(s, s1, eta)
        if down == 0:
            x = x + d * (down - s)
        else:
            mid = exp((log(s) + log(down)) / 2)
            x2 = x + d * (mid - s)
            x = x + (x2 - D(x2, mid)) / mid * (down - s) + noise(s, s1) * up
    return x


def dpmpp_2s_ancestral(D, x, sigmas, noise, eta, *, r=1 / 2):
    for s, s1 in pairwise(sigmas):
        denoised = D(x, s)
        down, up = ancestral(s, s1, eta)
        if down == 0:
            x = denoised
        else:
            t, t1 = -log(s), -log(down)
            h = t1 - t
            x2 = exp(-(t + r * h)) / exp(-t) * x - expm1(-h * r) * denoised
            mean = (1 - 1 / (2 * r)) * denoised + 1 / (2 * r) * D(x2, exp(-(t + r * h)))
            x = exp(-t1) / exp(-t) * x - expm1(-h) * mean + noise(s, s1) * up
    return x


def dpmpp_sde(D, x, sigmas, noise, eta, *, r=1 / 2):
    for s, s1 in pairwise(sigmas):
        denoised = D(x, s)
        if s1 == 0:
            return denoised
        t, t1 = -log(s), -log(s1)
        mid = exp(-(t + (t1 - t) * r))
        down, up = ancestral(s, mid, eta)
        x2 = down / s * x - expm1(t + log(down)) * denoised + noise(s, mid) * up
        mean = (1 - 1 / (2 * r)) * denoised + 1 / (2 * r) * D(x2, mid)
        down, up = ancestral(s, s1, eta)
        x = down / s * x - expm1(t + log(down)) * mean + noise(s, s1) * up
    return x


def two_m_sde(rule):
    def run(D, x, sigmas, noise, eta):
        old = h_last = None
        for s, s1 in pairwise(sigmas):
            denoised = D(x, s)
            if s1 == 0:
                return denoised
            h = log(s) - log(s1)
            x = s1 / s * exp(-eta * h) * x - expm1(-h - eta * h) * denoised
            if old is not None:
                x = x + rule(-h - eta * h) * (h / h_last) * (denoised - old)
            x = x + noise(s, s1) * s1 * (-expm1(-2 * eta * h)) ** 0.5
            old, h_last = denoised, h
        return x

    return run


def dpmpp_3m_sde(D, x, sigmas, noise, eta):
    d_1 = d_2 = h_1 = h_2 = None
    for s, s1 in pairwise(sigmas):
        denoised = D(x, s)
        if s1 == 0:
            return denoised
        h = log(s) - log(s1)
        h_eta = h * (eta + 1)
        x = exp(-h_eta) * x - expm1(-h_eta) * denoised
        phi_2 = expm1(-h_eta) / h_eta + 1
        if h_2 is not None:
            r0, r1 = h_1 / h, h_2 / h
            d1_0, d1_1 = (denoised - d_1) / r0, (d_1 - d_2) / r1
            d1 = d1_0 + (d1_0 - d1_1) * r0 / (r0 + r1)
            x = x + phi_2 * d1 - (phi_2 / h_eta - 0.5) * (d1_0 - d1_1) / (r0 + r1)
        elif h_1 is not None:
            x = x + phi_2 * (denoised - d_1) / (h_1 / h)
        x = x + noise(s, s1) * s1 * (-expm1(-2 * h * eta)) ** 0.5
        d_1, d_2, h_1, h_2 = denoised, d_1, h, h_1
    return x


def lms(D, x, sigmas, noise, _, *, order=4):
    ds = []
    for i, (s, s1) in enumerate(pairwise(sigmas)):
        ds = [(x - D(x, s)) / s, *ds][:order]

        def lagrange(tau, j, i=i):
            others = (k for k in range(min(i + 1, order)) if k != j)
            return np.prod([(tau - sigmas[i - k]) / (sigmas[i - j] - sigmas[i - k]) for k in others])

        x = x + sum(quad(lagrange, s, s1, args=(j,), epsrel=1e-12)[0] * d for j, d in enumerate(ds))
    return x


def heunpp2(D, x, sigmas, noise, _):
    for i, (s, s1) in enumerate(pairwise(sigmas)):
        d = (x - D(x, s)) / s
        if i == len(sigmas) - 2:
            x = x + d * (s1 - s)
            continue
        x2 = x + d * (s1 - s)
        d2 = (x2 - D(x2, s1)) / s1
        if i == len(sigmas) - 3:
            w2 = s1 / (2 * sigmas[0])
            x = x + (d * (1 - w2) + d2 * w2) * (s1 - s)
            continue
        s2 = sigmas[i + 2]
        x3 = x2 + d2 * (s2 - s1)
        d3 = (x3 - D(x3, s2)) / s2
        w2, w3 = s1 / (3 * sigmas[0]), s2 / (3 * sigmas[0])
        x = x + (d * (1 - w2 - w3) + d2 * w2 + d3 * w3) * (s1 - s)
    return x


def dpm_steps(D, x, s, s1, *, order, r1):
    """DPM-Solver-1, -2 and -3 of the paper, in eps."""
    t, h = -log(s), log(s) - log(s1)

    def eps(y, time):
        return (y - D(y, exp(-time))) / exp(-time)

    e = eps(x, t)
    if order == 1:
        return x - s1 * expm1(h) * e
    a = t + r1 * h
    e1 = eps(x - exp(-a) * expm1(r1 * h) * e, a)
    if order == 2:
        return x - s1 * expm1(h) * e - s1 / (2 * r1) * expm1(h) * (e1 - e)
    r2 = 2 / 3
    b = t + r2 * h
    u2 = x - exp(-b) * expm1(r2 * h) * e - exp(-b) * (r2 / r1) * (expm1(r2 * h) / (r2 * h) - 1) * (e1 - e)
    return x - s1 * expm1(h) * e - s1 / r2 * (expm1(h) / h - 1) * (eps(u2, b) - e)


def bounded(s, s1, end, eta):
    down = max(end, ancestral(s, s1, eta)[0])
    return down, (s1**2 - down**2) ** 0.5


def dpm_fast(D, x, sigmas, noise, eta):
    n, end = len(sigmas) - 1, sigmas[-2]
    m = floor(n / 3) + 1
    orders = [3] * (m - 2) + [2, 1] if n % 3 == 0 else [3] * (m - 1) + [n % 3]
    levels = [*np.exp(np.linspace(log(sigmas[0]), log(end), m + 1))[:-1].tolist(), end]
    for order, (s, s1) in zip(orders, pairwise(levels), strict=True):
        down, up = bounded(s, s1, end, eta)
        x = dpm_steps(D, x, s, down, order=order, r1=1 / 3 if order == 3 else 1 / 2)
        x = x + up * noise(s, s1) if up > 0 else x
    return x


def dpm_adaptive(D, x, sigmas, noise, eta):
    s, end, h, before = sigmas[0], sigmas[-2], 0.05, x
    while -log(s) < -log(end) - 1e-5:
        s1 = max(end, exp(log(s) - h))
        down, up = bounded(s, s1, end, eta)
        low, high = (dpm_steps(D, x, s, down, order=order, r1=1 / 3) for order in (2, 3))
        delta = torch.maximum(torch.tensor(0.0078, dtype=x.dtype), 0.05 * torch.maximum(low.abs(), before.abs()))
        error = torch.linalg.norm((low - high) / delta).item() / x.numel() ** 0.5
        factor = 1 + atan((1 / (1e-8 + error)) ** (1 / (1.5 if eta else 3)) - 1)
        if factor >= 0.81:
            before, x = low, high + up * noise(s, s1) if up > 0 else high
            s = s1
        h *= factor
    return x


def plms(D, x, sigmas, noise, _):
    old = []
    for s, s1 in pairwise(sigmas):
        denoised = D(x, s)
        if s1 == 0:
            return denoised
        e = (x - denoised) / s
        if not old:
            ahead = x + e * (s1 - s)
            prime = (e + (ahead - D(ahead, s1)) / s1) / 2
        elif len(old) == 1:
            prime = (3 * e - old[-1]) / 2
        elif len(old) == 2:
            prime = (23 * e - 16 * old[-1] + 5 * old[-2]) / 12
        else:
            prime = (55 * e - 59 * old[-1] + 37 * old[-2] - 9 * old[-3]) / 24
        old.append(e)
        x = x + prime * (s1 - s)
    return x


def lcm(D, x, sigmas, noise, _):
    for s, s1 in pairwise(sigmas):
        x = D(x, s)
        x = x + s1 * noise(s, s1) if s1 > 0 else x
    return x


def gradient_estimation(D, x, sigmas, noise, _):
    old = None
    for s, s1 in pairwise(sigmas):
        d = (x - D(x, s)) / s
        bar = d if old is None or s1 == 0 else 2 * d + (1 - 2) * old
        x, old = x + bar * (s1 - s), d
    return x


BY_HAND = {
    "euler": euler,
    "euler_ancestral": euler_ancestral,
    "ddim": euler_ancestral,
    "heun": heun,
    "dpm_2": dpm_2,
    "ddpm": ddpm,
    "dpm_2_ancestral": dpm_2_ancestral,
    "dpmpp_2s_ancestral": dpmpp_2s_ancestral,
    "dpmpp_sde": dpmpp_sde,
    "dpmpp_2m_sde": two_m_sde(lambda h: -0.5 * expm1(h)),
    "dpmpp_2m_sde_heun": two_m_sde(lambda h: -expm1(h) / h + 1),
    "dpmpp_3m_sde": dpmpp_3m_sde,
    "dpm_fast": dpm_fast,
    "dpm_adaptive": dpm_adaptive,
    "lms": lms,
    "heunpp2": heunpp2,
    "plms": plms,
    "lcm": lcm,
    "gradient_estimation": gradient_estimation,
}


@pytest.mark.parametrize("name", BY_HAND)
@pytest.mark.parametrize("eta", [0.4, 1.0])
@pytest.mark.parametrize("steps", [12, 10, 5, 2, 1])
def test_a_sampler_follows_its_formula_and_draws_noise_for_the_same_ways(name, eta, steps, mixture):
    if steps > 1 or name not in {"dpm_fast", "dpm_adaptive"}:  # which have no step then
        assert_follows(name, BY_HAND[name], mixture.denoised, SIGMAS[-steps - 1 :], eta=eta)


@pytest.mark.parametrize("name", ["dpm_fast", "dpm_adaptive"])
@pytest.mark.parametrize("steps", [2, 3, 4])
def test_dpm_solvers_follow_their_formulas_in_few_steps(name, steps, mixture):
    assert_follows(name, BY_HAND[name], mixture.denoised, SIGMAS[-steps - 1 :], eta=1.0)


def test_euler_churns_by_its_formula(mixture):
    assert_follows("euler", euler_churned, mixture.denoised, SIGMAS, churn=Churn(6.0, 0.3, 9.0))


@pytest.mark.parametrize(("steps", "again"), [(19, 0), (20, 1), (36, 2)])
def test_restart_is_heun_that_goes_up_again(steps, again, mixture):
    sigmas = [*(np.linspace(14.6 ** (1 / 7), 0.05 ** (1 / 7), steps) ** 7).tolist(), 0.0]
    assert sum(s > s1 for (_, s1), (s, _) in pairwise(restart_way(sigmas))) == again
    assert_follows("restart", restart, mixture.denoised, sigmas)


@pytest.mark.parametrize("share", [0.3, 0.5, 1.0])
@pytest.mark.parametrize("name", ["dpmpp_sde", "dpmpp_2s_ancestral"])
def test_singlestep_solvers_ask_again_after_the_share_r_of_a_step(name, share, mixture):
    by_hand = {"dpmpp_sde": dpmpp_sde, "dpmpp_2s_ancestral": dpmpp_2s_ancestral}[name]
    followed = partial(by_hand, r=share)
    assert_follows(name, followed, mixture.denoised, SIGMAS, eta=0.7, r=share)


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_lms_is_of_the_order_asked_for(order, mixture):
    assert_follows("lms", partial(lms, order=order), mixture.denoised, SIGMAS, order=order)


def test_a_stricter_adaptive_solver_comes_nearer(mixture):
    def run(**told):
        asked = []
        [end] = drive(
            [SAMPLERS["dpm_adaptive"](START, SIGMAS, None, eta=0.0, **told)],
            lambda questions: [mixture.denoised(*question) for question in questions if not asked.append(question)],
        )
        return end, len(asked)

    (exact, _), (strict, many), (plain, few) = run(rtol=1e-5, atol=1e-6), run(rtol=0.005, atol=0.001), run()
    assert many > few
    assert (strict - exact).norm() < (plain - exact).norm() / 3
