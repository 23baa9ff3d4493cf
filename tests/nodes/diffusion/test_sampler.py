from itertools import pairwise, product
from math import sqrt

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp

from nodes.diffusion.drive import drive
from nodes.diffusion.flow import restart_way
from nodes.diffusion.sampler import LABELS, SAMPLERS, evaluations
from nodes.diffusion.schedule import SCHEDULES, karras, plan
from nodes.diffusion.step import Churn, Predicted

FIRST, LAST = 14.6, 0.05
FIRST_ORDER = (
    *("euler", "euler_ancestral", "ddim", "heunpp2", "gradient_estimation"),
    *("euler_cfg_pp", "euler_ancestral_cfg_pp", "gradient_estimation_cfg_pp"),
)
SECOND_ORDER = (
    *("heun", "dpm_2", "dpm_2_ancestral", "dpmpp_2s_ancestral", "dpmpp_sde", "restart", "plms", "ipndm"),
    *("dpmpp_2m", "dpmpp_2m_sde", "dpmpp_2m_sde_heun", "res_multistep", "res_multistep_ancestral", "seeds_2", "er_sde"),
    *("dpmpp_2s_ancestral_cfg_pp", "dpmpp_2m_cfg_pp", "res_multistep_cfg_pp", "res_multistep_ancestral_cfg_pp"),
)
KNOWN_ORDER = (
    *((1, name) for name in FIRST_ORDER),
    *((2, name) for name in SECOND_ORDER),
    *((3, "seeds_3"), (4, "sa_solver"), (4, "sa_solver_pece")),
)
HIGHER_ORDER = (
    "lms",
    "deis",
    "uni_pc",
    "uni_pc_bh2",
    "dpmpp_3m_sde",
    "dpm_fast",
    "seeds_3",
    "sa_solver",
    "sa_solver_pece",
)
BETWEEN_ORDERS = ("ipndm_v",)
ALWAYS_NOISY = ("lcm", "ddpm")
ENDS_EARLY = ("dpm_fast", "dpm_adaptive")
START = torch.tensor([-20.0, -9.0, 3.0, 8.0, 21.0], dtype=torch.float64)


def levels(steps, *, rho=7.0):
    return (np.linspace(FIRST ** (1 / rho), LAST ** (1 / rho), steps + 1) ** rho).tolist()


def sample(name, model, x, sigmas, noise=None, **options):
    """Run a sampler; one that wants both predictions is told that guidance changes nothing."""
    unguided = SAMPLERS[name].unguided

    def answer(question):
        clean = model(*question)
        return Predicted(clean, clean) if unguided else clean

    [result] = drive([SAMPLERS[name](x, sigmas, noise, **options)], lambda questions: list(map(answer, questions)))
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


def test_every_sampler_has_its_place_in_these_tests():
    placed = {*FIRST_ORDER, *SECOND_ORDER, *HIGHER_ORDER, *BETWEEN_ORDERS, *ALWAYS_NOISY, "dpm_adaptive"}
    assert placed == set(SAMPLERS)


@pytest.mark.parametrize(("order", "name"), KNOWN_ORDER)
@pytest.mark.parametrize("rho", [7.0, 3.0])
def test_halving_the_steps_lowers_the_error_by_the_samplers_order(order, name, rho, mixture, truth):
    coarse, fine = (
        error(sample(name, mixture.denoised, START, levels(steps, rho=rho), eta=0.0), truth) for steps in (80, 160)
    )
    assert coarse / fine == pytest.approx(2**order, rel=0.12)


@pytest.mark.parametrize("name", HIGHER_ORDER)
@pytest.mark.parametrize("rho", [7.0, 3.0])
def test_higher_orders_come_nearer_in_as_many_steps(name, rho, mixture, truth):
    assert error(sample(name, mixture.denoised, START, levels(50, rho=rho), eta=0.0), truth) < 2e-4


@pytest.mark.parametrize("name", [*SECOND_ORDER, *HIGHER_ORDER, *BETWEEN_ORDERS])
def test_deterministic_samplers_converge_to_the_probability_flow(name, mixture, truth):
    assert error(sample(name, mixture.denoised, START, levels(250), eta=0.0), truth) < 1e-4


@pytest.mark.parametrize("name", ["uni_pc", "uni_pc_bh2"])
def test_unipc_comes_nearer_the_more_answers_it_looks_back_at(name, mixture, truth):
    off = [error(sample(name, mixture.denoised, START, levels(80), order=order), truth) for order in (1, 2, 3, 4)]
    assert sorted(off, reverse=True) == off
    assert off[3] < 2e-5
    assert off[0] > 1e-4


def test_the_adaptive_sampler_keeps_to_its_tolerance(mixture, truth):
    asked = []

    def model(x, sigma):
        asked.append(sigma)
        return mixture.denoised(x, sigma)

    assert error(sample("dpm_adaptive", model, START, levels(10), eta=0.0), truth) < 0.05
    assert len(asked) < 100


@pytest.mark.parametrize("name", sorted({*SAMPLERS} - {*ALWAYS_NOISY, *FIRST_ORDER, "dpm_adaptive"}))
def test_a_gaussian_is_carried_to_its_closed_form(name):
    """For N(1, 2 ** 2) the flow keeps x - 1 in proportion to sqrt(2 ** 2 + sigma ** 2)."""
    result = sample(name, lambda x, sigma: (4 * x + sigma**2) / (4 + sigma**2), START, levels(200), eta=0.0)
    truth = 1 + (START - 1) * sqrt(4 + LAST**2) / sqrt(4 + FIRST**2)
    assert error(result, truth) < 1.5e-4


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_step_from_one_level_onto_zero_returns_the_denoised_latent(name, mixture):
    result = sample(name, mixture.denoised, START, [0.5, 0.0])
    torch.testing.assert_close(result, mixture.denoised(START, 0.5))


@pytest.mark.parametrize("name", sorted({*SAMPLERS} - {*ENDS_EARLY, "lms"}))
def test_every_run_onto_zero_ends_with_the_last_answer(name, mixture, table):
    answers = []

    def model(x, sigma):
        answers.append(mixture.denoised(x, sigma))
        return answers[-1]

    result = sample(name, model, START, karras(table, 24).tolist(), draws(5))
    torch.testing.assert_close(result, answers[-1], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", ENDS_EARLY)
def test_dpm_solvers_stop_at_the_last_level_above_zero(name, mixture):
    asked = []
    onto = sample(
        name, lambda x, sigma: asked.append(sigma) or mixture.denoised(x, sigma), START, [*levels(9), 0.0], draws(5)
    )
    assert min(asked) > LAST
    assert error(onto, mixture.denoised(onto, LAST)) > 1e-4


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("sigmas", [[], [0.0], [5.0]])
def test_fewer_than_two_levels_are_no_steps(name, sigmas):
    assert sample(name, None, START, sigmas) is START


@pytest.mark.parametrize("name", SAMPLERS)
def test_samplers_keep_dtype_and_leave_their_input_alone(name, mixture):
    x = START.float()
    kept = x.clone()
    result = sample(name, mixture.denoised, x, levels(4), lambda *_: torch.ones_like(x), churn=Churn(2.0))
    assert result.dtype == torch.float32
    assert torch.equal(x, kept)


@pytest.mark.parametrize("name", sorted({*SAMPLERS} - {"dpm_adaptive"}))
def test_pictures_of_a_batch_do_not_know_of_one_another(name, mixture):
    """But for the adaptive one, which is to be run for each alone."""
    sigmas, noises = [*levels(24), 0.0], {}

    def noise_of(rows):
        def noise(sigma, following):
            drawn = noises.setdefault((sigma, following), draws(len(noises))())
            return drawn[rows]

        return noise

    together = sample(name, mixture.denoised, START, sigmas, noise_of(slice(None)), churn=Churn(3.0))
    alone = sample(name, mixture.denoised, START[3:4], sigmas, noise_of(slice(3, 4)), churn=Churn(3.0))
    assert torch.equal(together[3:4], alone)


@pytest.mark.parametrize("name", SAMPLERS)
def test_noise_is_asked_for_the_way_between_two_levels(name, mixture):
    """In the range of the walk, and for Brownian samplers never of no length."""
    sigmas, asked = [*levels(24), 0.0], []

    def noise(sigma, following):
        asked.append((sigma, following))
        return torch.zeros_like(START)

    sample(name, mixture.denoised, START, sigmas, noise)
    assert all(0 <= level <= FIRST + 1e-9 for way in asked for level in way)
    assert all(LAST - 1e-9 <= following < sigma for sigma, following in asked if SAMPLERS[name].brownian)
    assert bool(asked) == (
        name == "restart" or name in ALWAYS_NOISY or ("eta" in SAMPLERS[name].takes and name != "ddim")
    )


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("convention", ["exact", "a1111", "comfy"])
def test_few_steps_by_every_convention_come_down(name, convention, mixture, table):
    """And ask as often as was counted, where that can be counted."""
    sampler = SAMPLERS[name]
    for steps, denoise in product((1, 2, 3), (0.3, 1.0)):
        whole, begin = plan(
            SCHEDULES[sampler.schedule],
            table,
            steps,
            denoise,
            convention=convention,
            discards=convention in sampler.discards,
        )
        sigmas, asked = whole[begin:].tolist(), []
        start = mixture.means[1] + draws(steps)() * sigmas[0]
        end = sample(name, lambda *q, asked=asked: asked.append(q) or mixture.denoised(*q), start, sigmas, draws(9))
        assert evaluations(name, sigmas) in {None, len(asked)}
        assert end.abs().max() < (30 if name == "dpm_fast" else 10), (steps, denoise, end)


def draws(seed, shape=START.shape):
    generator = torch.Generator().manual_seed(seed)
    return lambda *_: torch.randn(shape, generator=generator, dtype=torch.float64)


NOISY = ("euler_ancestral", "ddim", "dpmpp_2s_ancestral", "dpmpp_sde", "dpmpp_2m_sde", "dpmpp_3m_sde")


MORE_NOISY = ("seeds_2", "seeds_3", "er_sde", "sa_solver", "sa_solver_pece", "res_multistep_ancestral")


@pytest.mark.parametrize("name", [*NOISY, *MORE_NOISY, "dpm_2_ancestral", "dpmpp_2m_sde_heun", "ddpm"])
def test_stochastic_samplers_draw_from_the_data_distribution(name, mixture, table):
    sigmas = karras(table, 100).tolist()
    noise = draws(2, (6_000,))
    told = {} if name == "er_sde" else {"eta": 1.0}  # whose own scale is another
    samples = sample(name, mixture.denoised, noise() * sigmas[0], sigmas, noise, **told)
    mean = 0.4 * -1.0 + 0.6 * 1.5
    second = 0.4 * (1.0 + 0.25) + 0.6 * (2.25 + 0.64)
    assert samples.mean().item() == pytest.approx(mean, abs=0.06)
    assert samples.var().item() == pytest.approx(second - mean**2, rel=0.06)
    assert (samples < 0.25).double().mean().item() == pytest.approx(0.4 * 0.9938 + 0.6 * 0.0591, abs=0.02)


@pytest.mark.parametrize("name", [name for name in SAMPLERS if "eta" in SAMPLERS[name].takes])
def test_without_eta_nothing_is_drawn(name, mixture):
    assert sample(name, mixture.denoised, START, [*levels(10), 0.0], None, eta=0.0).isfinite().all()


@pytest.mark.parametrize(
    ("noisy", "plain"),
    [
        ("euler_ancestral", "euler"),
        ("ddim", "euler"),
        ("dpm_2_ancestral", "dpm_2"),
        ("dpmpp_2m_sde", "dpmpp_2m"),
        ("dpmpp_2m_sde_heun", "res_multistep"),
        ("dpmpp_sde", "dpmpp_2s_ancestral"),
    ],
)
def test_without_eta_a_stochastic_sampler_is_the_deterministic_one(noisy, plain, mixture):
    result, wanted = (sample(name, mixture.denoised, START, [*levels(10), 0.0], eta=0.0) for name in (noisy, plain))
    torch.testing.assert_close(result, wanted, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(("name", "eta"), [("ddim", 0.7), ("ddpm", 1.0)])
def test_ddim_with_eta_and_ddpm_are_ancestral_euler(name, eta, mixture):
    sigmas = [*levels(20), 0.0]
    noisy = sample(name, mixture.denoised, START, sigmas, draws(3), eta=eta)
    ancestral = sample("euler_ancestral", mixture.denoised, START, sigmas, draws(3), eta=eta)
    torch.testing.assert_close(noisy, ancestral, rtol=1e-10, atol=1e-12)


class TestChurn:
    def test_without_an_amount_nothing_is_drawn(self, mixture):
        assert Churn().apply(START, 2.0, 20, None) == (START, 2.0)

    def test_it_raises_the_level_by_its_share_and_at_most_by_41_percent(self):
        assert Churn(5.0).raised(2.0, 20) == pytest.approx(2.5)
        assert Churn(50.0).raised(2.0, 20) == pytest.approx(2 * sqrt(2))

    def test_outside_of_its_levels_it_draws_and_adds_nothing(self):
        drawn = []
        x, sigma = Churn(5.0, 3.0, 9.0).apply(START, 2.0, 20, lambda *way: drawn.append(way) or START)
        assert (sigma, len(drawn)) == (2.0, 1)
        assert x is START

    def test_what_it_adds_has_the_variance_that_the_raised_level_lacks(self):
        x, sigma = Churn(5.0).apply(torch.zeros(1), 2.0, 20, lambda *_: torch.ones(1))
        assert x.item() == pytest.approx(sqrt(sigma**2 - 4))

    @pytest.mark.parametrize("name", ["heun", "dpm_2"])
    def test_churned_samplers_still_draw_from_the_data_distribution(self, name, mixture, table):
        sigmas, noise = karras(table, 60).tolist(), draws(4, (6_000,))
        samples = sample(name, mixture.denoised, noise() * sigmas[0], sigmas, noise, churn=Churn(20.0))
        assert samples.mean().item() == pytest.approx(0.5, abs=0.07)
        assert samples.var().item() == pytest.approx(2.234 - 0.25, rel=0.1)


class TestRestart:
    def test_below_twenty_steps_there_is_none(self, table):
        sigmas = karras(table, 19).tolist()
        assert restart_way(sigmas) == list(pairwise(sigmas))

    def test_from_twenty_steps_on_nine_go_down_once_more(self, table):
        way = restart_way(karras(table, 20).tolist())
        [again] = [number for number, (one, other) in enumerate(pairwise(way)) if other[0] > one[1]]
        levels = [way[0][0], *(end for _, end in way)]
        assert (len(way), again) == (20, 8)
        assert way[again + 1][0] == pytest.approx(levels[4])
        assert way[again + 9][1] == pytest.approx(way[again][1])
        assert levels[:10] == pytest.approx(karras(table, 11).tolist()[:10])

    def test_from_36_steps_on_a_quarter_goes_down_twice(self, table):
        way = restart_way(karras(table, 40).tolist())
        backs = [number for number, (one, other) in enumerate(pairwise(way)) if other[0] > one[1]]
        assert (len(way), len(backs), backs[1] - backs[0]) == (40, 2, 10)

    def test_a_run_that_begins_below_goes_straight_down(self):
        sigmas = [0.09 * 0.9**step for step in range(25)] + [0.0]
        assert len(restart_way(sigmas)) < 25
        assert all(high > low for high, low in restart_way(sigmas))


class TestRecords:
    def test_options_that_a_sampler_does_not_take_have_no_effect(self, mixture):
        plain = sample("dpmpp_2m", mixture.denoised, START, levels(5))
        assert torch.equal(
            plain, sample("dpmpp_2m", mixture.denoised, START, levels(5), eta=0.3, churn=Churn(9.0), order=1)
        )

    def test_what_a_sampler_takes_are_the_keywords_of_its_function(self):
        assert {name: SAMPLERS[name].takes for name in ("euler", "ddim", "uni_pc", "dpmpp_2m")} == {
            "euler": ("churn",),
            "ddim": ("eta",),
            "uni_pc": ("order",),
            "dpmpp_2m": (),
        }

    def test_automatic_schedules_exist(self):
        assert {sampler.schedule for sampler in SAMPLERS.values()} <= set(SCHEDULES)

    def test_labels_are_the_webuis(self):
        assert (LABELS["DPM++ 2S a"], LABELS["Euler a"], LABELS["UniPC"]) == (
            "dpmpp_2s_ancestral",
            "euler_ancestral",
            "uni_pc",
        )
        assert len(LABELS) == len(SAMPLERS)

    @pytest.mark.parametrize("name", sorted({*SAMPLERS} - {"dpm_adaptive"}))
    def test_what_is_counted_is_what_is_asked(self, name, mixture, table):
        sigmas, asked = karras(table, 21).tolist(), []
        sample(name, lambda x, sigma: asked.append(sigma) or mixture.denoised(x, sigma), START, sigmas, draws(6))
        assert evaluations(name, sigmas) == len(asked)

    @pytest.mark.parametrize(
        ("name", "count"),
        [
            ("euler", 20),
            ("heun", 39),
            ("dpm_2", 39),
            ("restart", 39),
            ("plms", 21),
            ("heunpp2", 57),
            ("dpm_adaptive", None),
        ],
    )
    def test_twenty_steps_cost(self, name, count, table):
        assert evaluations(name, karras(table, 20).tolist()) == count

    def test_no_steps_cost_nothing(self):
        assert {evaluations(name, [0.0]) for name in SAMPLERS} == {0, None}


def test_heun_asks_twice_a_step_but_once_for_the_last():
    asked = []
    sample("heun", lambda x, sigma: asked.append(sigma) or x / 2, START, [4.0, 2.0, 1.0, 0.0])
    assert asked == [4.0, 2.0, 2.0, 1.0, 1.0]


@pytest.mark.parametrize(("name", "more"), [("ddim", 0), ("plms", 1), ("uni_pc", 0)])
@pytest.mark.parametrize(("denoise", "steps"), [(1.0, 20), (0.75, 16), (0.3, 7)])
def test_samplers_that_walked_timesteps_lose_no_step(name, more, denoise, steps, table):
    levels, begin = plan(SCHEDULES["ddim_uniform"], table, 20, denoise, convention="a1111")
    assert evaluations(name, levels[begin:].tolist()) == steps + more
