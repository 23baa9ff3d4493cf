from functools import partial
from itertools import pairwise
from math import sqrt

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp

from nodes.diffusion.drive import drive
from nodes.diffusion.sampler import SAMPLERS, ddim, dpmpp_2m, euler, euler_ancestral, heun
from nodes.diffusion.schedule import karras

FIRST, LAST = 14.6, 0.05
START = torch.tensor([-20.0, -9.0, 3.0, 8.0, 21.0], dtype=torch.float64)


def levels(steps, *, rho=7.0):
    return (np.linspace(FIRST ** (1 / rho), LAST ** (1 / rho), steps + 1) ** rho).tolist()


def sample(sampler, model, x, sigmas, noise=None):
    [result] = drive([sampler(x, sigmas, noise)], lambda questions: [model(*question) for question in questions])
    return result


def error(result, truth):
    return ((result - truth).norm() / truth.norm()).item()


@pytest.fixture(scope="module")
def truth(mixture):
    """Where the probability-flow ODE, dx/dsigma = (x - D) / sigma, leads: integrated in log sigma to 1e-12."""

    def slope(_, x, sigma):
        return (torch.from_numpy(x) - mixture.denoised(torch.from_numpy(x), sigma)).numpy()

    span = (np.log(FIRST), np.log(LAST))
    flow = solve_ivp(lambda t, x: slope(t, x, np.exp(t)), span, START.numpy(), "DOP853", rtol=1e-12, atol=1e-12)
    return torch.from_numpy(flow.y[:, -1])


@pytest.mark.parametrize(("sampler", "steps"), [(euler, 12_000), (ddim, 12_000), (heun, 200), (dpmpp_2m, 200)])
def test_deterministic_samplers_converge_to_the_probability_flow(sampler, steps, mixture, truth):
    assert error(sample(sampler, mixture.denoised, START, levels(steps)), truth) < 1e-4


@pytest.mark.parametrize(("sampler", "order"), [(euler, 1), (ddim, 1), (heun, 2), (dpmpp_2m, 2)])
@pytest.mark.parametrize("rho", [7.0, 3.0])
def test_halving_the_steps_lowers_the_error_by_the_samplers_order(sampler, order, rho, mixture, truth):
    coarse, fine = (
        error(sample(sampler, mixture.denoised, START, levels(steps, rho=rho)), truth) for steps in (200, 400)
    )
    assert coarse / fine == pytest.approx(2**order, rel=0.1)


@pytest.mark.parametrize(("sampler", "steps"), [(euler, 12_000), (ddim, 12_000), (heun, 400), (dpmpp_2m, 400)])
def test_a_gaussian_is_carried_to_its_closed_form(sampler, steps):
    """For N(1, 2 ** 2) the flow keeps x - 1 in proportion to sqrt(2 ** 2 + sigma ** 2)."""
    result = sample(sampler, lambda x, sigma: (4 * x + sigma**2) / (4 + sigma**2), START, levels(steps))
    truth = 1 + (START - 1) * sqrt(4 + LAST**2) / sqrt(4 + FIRST**2)
    assert error(result, truth) < 1e-4


@pytest.mark.parametrize("name", SAMPLERS)
def test_the_step_onto_zero_returns_the_denoised_latent(name, mixture):
    result = sample(SAMPLERS[name], mixture.denoised, START, [0.5, 0.0])
    torch.testing.assert_close(result, mixture.denoised(START, 0.5))


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("sigmas", [[], [0.0], [5.0]])
def test_fewer_than_two_levels_are_no_steps(name, sigmas):
    assert sample(SAMPLERS[name], None, START, sigmas) is START


@pytest.mark.parametrize("name", SAMPLERS)
def test_samplers_keep_dtype_and_leave_their_input_alone(name, mixture):
    x = START.float()
    kept = x.clone()
    result = sample(SAMPLERS[name], mixture.denoised, x, levels(4), lambda: torch.ones_like(x))
    assert result.dtype == torch.float32
    assert torch.equal(x, kept)


def draws(seed, shape=START.shape):
    generator = torch.Generator().manual_seed(seed)
    return lambda: torch.randn(shape, generator=generator, dtype=torch.float64)


def ancestral_by_hand(model, x, sigmas, noise, eta):
    """k-diffusion's ancestral Euler in numbers, apart from the code under test."""
    for s, s1 in pairwise(sigmas):
        up = min(s1, eta * (s1**2 * (s**2 - s1**2) / s**2) ** 0.5)
        down = (s1**2 - up**2) ** 0.5
        d = (x - model(x, s)) / s
        x = x + d * (down - s)
        if s1 > 0:
            x = x + noise() * up
    return x


@pytest.mark.parametrize("eta", [0.3, 1.0])
def test_euler_ancestral_follows_its_formula_on_the_same_noise(eta, mixture):
    sigmas = [*levels(20), 0.0]
    result = sample(partial(euler_ancestral, eta=eta), mixture.denoised, START, sigmas, draws(1))
    by_hand = ancestral_by_hand(mixture.denoised, START, sigmas, draws(1), eta)
    torch.testing.assert_close(result, by_hand, rtol=1e-12, atol=0)


@pytest.mark.parametrize("name", ["euler_ancestral", "ddim"])
@pytest.mark.parametrize("eta", [0.5, 1.0])
def test_stochastic_samplers_draw_from_the_data_distribution(name, eta, mixture, table):
    sigmas = karras(table, 150).tolist()
    noise = draws(2, (20_000,))
    samples = sample(partial(SAMPLERS[name], eta=eta), mixture.denoised, noise() * sigmas[0], sigmas, noise)
    mean = 0.4 * -1.0 + 0.6 * 1.5
    second = 0.4 * (1.0 + 0.25) + 0.6 * (2.25 + 0.64)
    assert samples.mean().item() == pytest.approx(mean, abs=0.03)
    assert samples.var().item() == pytest.approx(second - mean**2, rel=0.03)
    assert (samples < 0.25).double().mean().item() == pytest.approx(0.4 * 0.9938 + 0.6 * 0.0591, abs=0.015)


def test_without_eta_ancestral_euler_is_euler_and_draws_nothing(mixture):
    result = sample(partial(euler_ancestral, eta=0), mixture.denoised, START, levels(10), None)
    torch.testing.assert_close(result, sample(euler, mixture.denoised, START, levels(10)), rtol=1e-12, atol=0)


def test_ddim_is_euler_and_with_eta_ancestral_euler(mixture):
    sigmas = [*levels(20), 0.0]
    plain = sample(ddim, mixture.denoised, START, sigmas)
    torch.testing.assert_close(plain, sample(euler, mixture.denoised, START, sigmas), rtol=1e-10, atol=1e-12)
    noisy = sample(partial(ddim, eta=0.7), mixture.denoised, START, sigmas, draws(3))
    ancestral = sample(partial(euler_ancestral, eta=0.7), mixture.denoised, START, sigmas, draws(3))
    torch.testing.assert_close(noisy, ancestral, rtol=1e-10, atol=1e-12)


def test_heun_asks_twice_a_step_but_once_for_the_last():
    asked = []
    sample(heun, lambda x, sigma: asked.append(sigma) or x / 2, START, [4.0, 2.0, 1.0, 0.0])
    assert asked == [4.0, 2.0, 2.0, 1.0, 1.0]
