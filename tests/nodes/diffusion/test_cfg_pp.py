"""CFG++ beside its formulas, where guided and negative predictions differ; see `following`."""

from itertools import pairwise
from math import exp, expm1, log

import pytest
import torch
from following import SIGMAS, START, ancestral, assert_follows, noise_of

from nodes.diffusion import cfg_pp
from nodes.diffusion.drive import drive
from nodes.diffusion.sampler import SAMPLERS
from nodes.diffusion.step import Predicted

PLAIN = {
    "euler_cfg_pp": "euler",
    "euler_ancestral_cfg_pp": "euler_ancestral",
    "dpmpp_2s_ancestral_cfg_pp": "dpmpp_2s_ancestral",
    "dpmpp_2m_cfg_pp": "dpmpp_2m",
    "res_multistep_cfg_pp": "res_multistep",
    "res_multistep_ancestral_cfg_pp": "res_multistep_ancestral",
    "gradient_estimation_cfg_pp": "gradient_estimation",
}


@pytest.fixture
def both(mixture):
    """Guided and negative: the prompt wants what is above 1."""

    def predict(x, sigma):
        negative = mixture.denoised(x, sigma)
        return Predicted(negative + 0.6 * (torch.tanh(x / (1 + sigma)) + 1), negative)

    return predict


def euler_ancestral_cfg_pp(D, x, sigmas, noise, eta):
    for s, s1 in pairwise(sigmas):
        guided, negative = D(x, s)
        down, up = ancestral(s, s1, eta)
        x = guided + (x - negative) / s * down
        x = x + up * noise(s, s1) if up > 0 else x
    return x


def euler_cfg_pp(D, x, sigmas, noise, _):
    """Algorithm 2 of the paper: Tweedie's formula with the guided noise, renoising with that of the negative prompt."""
    for s, s1 in pairwise(sigmas):
        z, abar, abar1 = x / (1 + s**2) ** 0.5, 1 / (1 + s**2), 1 / (1 + s1**2)
        guided, negative = ((x - clean) / s for clean in D(x, s))
        clean = (z - (1 - abar) ** 0.5 * guided) / abar**0.5
        x = (abar1**0.5 * clean + (1 - abar1) ** 0.5 * negative) * (1 + s1**2) ** 0.5
    return x


def dpmpp_2s_ancestral_cfg_pp(D, x, sigmas, noise, eta):
    for s, s1 in pairwise(sigmas):
        guided, negative = D(x, s)
        down, up = ancestral(s, s1, eta)
        if down == 0:
            return guided
        h = log(s) - log(down)
        mid = exp(-(-log(s) + h / 2))
        guided2, negative2 = D(mid / s * x - expm1(-h / 2) * negative, mid)
        x = guided2 - exp(-h) * negative2 + down / s * x + up * noise(s, s1)
    return x


def dpmpp_2m_cfg_pp(D, x, sigmas, noise, _):
    old = h_last = None
    for s, s1 in pairwise(sigmas):
        guided, negative = D(x, s)
        h = log(s) - log(s1) if s1 else None
        if old is None or s1 == 0:
            x = guided + (x - negative) / s * s1
        else:
            r = h_last / h
            x = guided - exp(-h) * negative - expm1(-h) * (negative - old) / (2 * r) + exp(-h) * x
        old, h_last = negative, h
    return x


def gradient_estimation_cfg_pp(D, x, sigmas, noise, _):
    old = None
    for s, s1 in pairwise(sigmas):
        guided, negative = D(x, s)
        d = (x - negative) / s
        x = guided + d * s1 if s1 else guided
        x = x + (2 - 1) * (d - old) * (s1 - s) if old is not None and s1 else x
        old = d
    return x


def res_multistep_ancestral_cfg_pp(D, x, sigmas, noise, eta):
    old = h_last = last = None
    for s, s1 in pairwise(sigmas):
        guided, negative = D(x, s)
        down, up = ancestral(s, s1, eta)
        if s1 == 0:
            return guided
        h = log(s) - log(down)
        step = exp(-h) * x - expm1(-h) * negative
        if old is not None:
            h_last = log(last) - log(s)
            step = step + (expm1(-h) / h + 1) * h / h_last * (negative - old)
        x = step + (guided - negative)
        x = x + up * noise(s, s1) if up > 0 else x
        old, last = negative, s
    return x


BY_HAND = {
    "euler_cfg_pp": euler_cfg_pp,
    "euler_ancestral_cfg_pp": euler_ancestral_cfg_pp,
    "dpmpp_2s_ancestral_cfg_pp": dpmpp_2s_ancestral_cfg_pp,
    "dpmpp_2m_cfg_pp": dpmpp_2m_cfg_pp,
    "res_multistep_cfg_pp": lambda *run: res_multistep_ancestral_cfg_pp(*run[:4], 0.0),
    "res_multistep_ancestral_cfg_pp": res_multistep_ancestral_cfg_pp,
    "gradient_estimation_cfg_pp": gradient_estimation_cfg_pp,
}


def test_those_that_want_both_predictions_are_these():
    assert {name for name, sampler in SAMPLERS.items() if sampler.unguided} == set(BY_HAND)


@pytest.mark.parametrize("name", BY_HAND)
@pytest.mark.parametrize("eta", [0.4, 1.0])
@pytest.mark.parametrize("steps", [12, 5, 2, 1])
def test_a_sampler_follows_its_formula_and_draws_noise_for_the_same_ways(name, eta, steps, both):
    assert_follows(name, BY_HAND[name], both, SIGMAS[-steps - 1 :], eta=eta)


@pytest.mark.parametrize("name", PLAIN)
def test_where_guidance_changes_nothing_it_is_the_plain_sampler(name, mixture):
    def run(sampler, model):
        [end] = drive(
            [SAMPLERS[sampler](START, SIGMAS, noise_of([]), eta=0.6)],
            lambda questions: [model(*question) for question in questions],
        )
        return end

    twice = run(name, lambda x, sigma: Predicted(mixture.denoised(x, sigma), mixture.denoised(x, sigma)))
    torch.testing.assert_close(twice, run(PLAIN[name], mixture.denoised), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", BY_HAND)
def test_guidance_moves_the_result(name, both, mixture):
    def run(model):
        function = getattr(cfg_pp, name)
        [end] = drive(
            [function(START, SIGMAS, noise_of([]))],
            lambda questions: [model(*question) for question in questions],
        )
        return end

    still = run(lambda x, sigma: Predicted(mixture.denoised(x, sigma), mixture.denoised(x, sigma)))
    assert (run(both) - still).mean() > 0.2
