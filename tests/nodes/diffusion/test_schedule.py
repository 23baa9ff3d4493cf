import json
import math
from itertools import pairwise, product

import diffusers
import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nodes.diffusion.beta import beta_cdf, beta_quantile
from nodes.diffusion.drive import drive
from nodes.diffusion.levels import Limits
from nodes.diffusion.sampler import SAMPLERS
from nodes.diffusion.schedule import (
    LABELS,
    SCHEDULES,
    executed,
    exponential,
    karras,
    linear_quadratic,
    normal,
    plan,
    polyexponential,
    tail,
)
from nodes.diffusion.step import Predicted
from nodes.diffusion.table import NoiseSchedule

TABLE = NoiseSchedule.from_betas(0.00085, 0.012)

OWN_LISTS = ("simple", "ddim_uniform", "beta_timestep", "align_your_steps", "align_your_steps_xl", "sd_turbo", "lcm")
"""Schedules that are lists, or that no limits move."""
ANY_STEPS = sorted({*SCHEDULES} - {"beta_timestep", "sd_turbo", "custom"})

# A1111 1.10.1, 20 steps, printed to four decimals
SIGMAS = {
    "karras": """14.6146 11.7254 9.3402 7.3836 5.7894 4.4998 3.4648 2.6408 1.9909 1.4832 1.0908 .7909 .5647 .3964 .2730
        .1842 .1213 .0779 .0485 .0292 0""",
    "normal": """14.6146 10.7468 8.0815 6.2049 4.8557 3.8654 3.1238 2.5572 2.1157 1.7648 1.4806 1.2458 1.0481 .8784
        .7297 .5964 .4736 .3555 .2322 .0292 0""",
    "exponential": """14.6146 10.5363 7.5961 5.4763 3.9481 2.8464 2.0521 1.4794 1.0666 .7689 .5544 .3997 .2881 .2077
        .1498 .1080 .0778 .0561 .0405 .0292 0""",
    "sgm_uniform": """14.6146 10.9073 8.3072 6.4477 5.0924 4.0861 3.3251 2.7391 2.2797 1.9132 1.6156 1.3696 1.1629
        .9860 .8319 .6951 .5712 .4557 .3437 .2255 0""",
}
KARRAS_TIMESTEPS = """999 961.733 921.042 876.314 826.791 771.552 709.530 639.615 560.975 473.749 380.132 285.318
    197.081 123.395 69.257 34.698 15.482 5.992 1.783 0"""


def numbers(text):
    return [float(number) for number in text.split()]


@pytest.mark.parametrize("name", SIGMAS)
def test_twenty_steps_visit_the_noise_levels_that_a1111_visits(name):
    assert SCHEDULES[name](TABLE, 20).tolist() == pytest.approx(numbers(SIGMAS[name]), abs=5.1e-5)


def test_karras_levels_have_the_fractional_timesteps_that_a1111_gives_the_unet():
    timesteps = [TABLE.timestep(sigma) for sigma in karras(TABLE, 20).tolist()[:-1]]
    assert timesteps == pytest.approx(numbers(KARRAS_TIMESTEPS), abs=5.1e-4)


def test_the_table_is_that_of_stable_diffusion():
    assert len(TABLE.sigmas) == 1000
    assert TABLE.sigma_min == pytest.approx(0.0291675, abs=5e-8)
    assert TABLE.sigma_max == pytest.approx(14.614642, abs=1e-6)


@settings(deadline=None)
@given(st.floats(0, 999))
def test_a_timestep_survives_the_way_through_sigma(timestep):
    assert TABLE.timestep(TABLE.sigma(timestep)) == pytest.approx(timestep, abs=1e-9)


def test_levels_outside_the_table_are_clamped_to_its_ends():
    assert (TABLE.timestep(0.0), TABLE.timestep(1e9)) == (0, 999)
    assert (TABLE.sigma(-3), TABLE.sigma(5000)) == (TABLE.sigma_min, TABLE.sigma_max)


@settings(deadline=None)
@given(st.sampled_from(ANY_STEPS), st.integers(1, 150))
def test_schedules_fall_from_the_highest_level_to_zero(name, steps):
    sigmas = SCHEDULES[name](TABLE, steps).tolist()
    counted = len(range(1, 1000, 1000 // steps)) if name == "ddim_uniform" else steps
    assert len(sigmas) == counted + 1
    assert all(high > low for high, low in pairwise(sigmas))
    assert name == "ddim_uniform" or sigmas[0] == pytest.approx(TABLE.sigma_max, rel=1e-4)
    assert sigmas[-1] == 0


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_schedule_without_steps_is_refused(name):
    with pytest.raises(ValueError, match="steps: expected at least 1, got 0"):
        SCHEDULES[name](TABLE, 0, Limits(levels=(2.0, 1.0)))


@pytest.mark.parametrize(("denoise", "total"), [(0.75, 26), (0.5, 40), (0.3, 66), (0.05, 400), (1.0, 20)])
def test_a_tail_is_the_end_of_a_longer_schedule(denoise, total):
    assert tail(karras, TABLE, 20, denoise).tolist() == karras(TABLE, total).tolist()[total - 20 :]


@settings(deadline=None)
@given(st.integers(1, 100), st.floats(0.01, 1))
def test_a_tail_has_exactly_the_steps_asked_for(steps, denoise):
    assert len(tail(normal, TABLE, steps, denoise)) == steps + 1


def test_at_denoise_zero_no_step_is_left_and_no_noise_is_added():
    assert tail(karras, TABLE, 20, 0).tolist() == [0]


@pytest.mark.parametrize("denoise", [-0.1, 1.1, math.nan, 1e-9])
def test_a_denoise_out_of_range_is_refused(denoise):
    with pytest.raises(ValueError, match=r"denoise: expected .*, got "):
        tail(karras, TABLE, 20, denoise)


def test_a_tail_without_steps_is_refused():
    with pytest.raises(ValueError, match="steps: expected at least 1, got 0"):
        tail(karras, TABLE, 0, 0.5)


# steps, denoise -> steps that run, position where they begin: A1111 1.10.1
A1111_STEPS = [
    *[(20, 0.05, 2, 18), (20, 0.3, 7, 13), (20, 0.5, 11, 9), (20, 0.75, 16, 4), (20, 0.9, 19, 1), (20, 0.95, 20, 0)],
    *[(20, 1.0, 20, 0), (30, 0.75, 23, 7), (50, 0.29, 15, 35), (100, 0.29, 29, 71), (1, 0.75, 1, 0)],
]


@pytest.mark.parametrize(("steps", "denoise", "run", "begin"), A1111_STEPS)
def test_a1111_runs_a_share_of_the_steps_and_one(steps, denoise, run, begin):
    whole, start = plan(karras, TABLE, steps, denoise, convention="a1111")
    assert (len(whole) - 1 - start, start) == (run, begin)
    assert executed(steps, denoise, "a1111") == run
    assert torch.equal(whole, karras(TABLE, steps))


def test_at_denoise_zero_a1111s_convention_makes_no_step_either():
    whole, start = plan(karras, TABLE, 20, 0, convention="a1111")
    assert whole[start:].tolist() == [0]


@pytest.mark.parametrize("convention", ["exact", "a1111"])
@pytest.mark.parametrize("denoise", [0.0, 0.3, 1.0])
def test_discarding_leaves_out_the_penultimate_level_and_no_step(convention, denoise):
    whole, start = plan(karras, TABLE, 20, denoise, convention=convention, discards=True)
    plain, plain_start = plan(karras, TABLE, 20, denoise, convention=convention)
    assert (len(whole), start) == (len(plain), plain_start)
    longer = karras(TABLE, len(plain)).tolist()
    assert whole.tolist() == [*longer[:-2], 0.0]


def test_limits_move_both_ends():
    limits = Limits(low=0.1, high=9.0)
    for name in sorted({*SCHEDULES} - {*OWN_LISTS, "custom"}):
        sigmas = SCHEDULES[name](TABLE, 20, limits).tolist()
        assert sigmas[0] == pytest.approx(9.0), name
        assert name in {"sgm_uniform", "linear_quadratic"} or sigmas[-2] == pytest.approx(0.1), name


@pytest.mark.parametrize("name", OWN_LISTS)
def test_lists_have_no_use_for_limits(name):
    assert torch.equal(SCHEDULES[name](TABLE, 10, Limits(0.1, 9.0, 3.0)), SCHEDULES[name](TABLE, 10, Limits()))


def test_limits_the_wrong_way_round_are_refused():
    with pytest.raises(ValueError, match="sigma_min, sigma_max: expected a lower and a higher level, got 5 and 2"):
        karras(TABLE, 20, Limits(low=5, high=2))


def test_rho_bends_karras_and_polyexponential():
    evenly = karras(TABLE, 3, Limits(rho=1)).tolist()
    assert evenly[1] == pytest.approx((TABLE.sigma_max + TABLE.sigma_min) / 2)
    bent = polyexponential(TABLE, 3, Limits(rho=2)).tolist()
    low, high = math.log(TABLE.sigma_min), math.log(TABLE.sigma_max)
    assert math.log(bent[1]) == pytest.approx(low + (high - low) / 4)


def test_polyexponential_is_exponential_unless_bent():
    torch.testing.assert_close(polyexponential(TABLE, 20), exponential(TABLE, 20))


def test_simple_and_ddim_count_off_the_models_own_levels():
    simple, ddim = (SCHEDULES[name](TABLE, 20).tolist() for name in ("simple", "ddim_uniform"))
    assert simple[:-1] == [TABLE.sigmas[999 - 50 * index] for index in range(20)]
    assert ddim[:-1] == [TABLE.sigmas[951 - 50 * index] for index in range(20)]
    assert SCHEDULES["simple"](TABLE, 7)[1].item() == TABLE.sigmas[999 - 142]


def test_ddim_leaves_out_the_highest_levels_where_steps_do_not_divide_them():
    levels = [TABLE.sigmas[991 - 33 * index] for index in range(31)]
    whole, begin = plan(SCHEDULES["ddim_uniform"], TABLE, 30, 1.0)
    assert (whole[:-1].tolist(), begin) == (levels, 1)
    assert plan(SCHEDULES["ddim_uniform"], TABLE, 30, 1.0, convention="a1111")[1] == 1
    assert plan(SCHEDULES["ddim_uniform"], TABLE, 30, 1.0, convention="comfy")[1] == 0


def test_comfyuis_convention_counts_like_the_exact_one_below_denoise_1():
    exact, comfy = (plan(karras, TABLE, 10, 0.75, convention=convention) for convention in ("exact", "comfy"))
    assert torch.equal(exact[0], comfy[0])
    assert exact[1] == comfy[1] == 3


@pytest.mark.parametrize(
    ("timestep", "nearest"), [(0, 0), (166.5, 166), (832.5, 833), (499.5, 500), (83.25, 83), (2.7, 3)]
)
def test_the_nearest_timestep_of_a_level_half_way_is_the_one_that_float32_finds(timestep, nearest):
    assert TABLE.nearest(TABLE.sigma(timestep)) == nearest


@pytest.mark.parametrize(("name", "more"), [("normal", 0), ("sgm_uniform", 1)])
def test_the_timesteps_of_even_schedules_are_those_that_float32_finds(name, more):
    """All of it in float32, as other programs do: even timesteps, log sigma between two, and the nearest of that."""
    log_sigmas = torch.tensor(TABLE.exact, dtype=torch.float64).log().float()
    ties = 0
    for steps in [*range(1, 131), 173, 183, 191, 400]:
        even = torch.linspace(999, 0, steps + more)[:steps]
        below, share = even.long(), even.frac()
        above = (below + 1).clamp(max=999)
        sigmas = ((1 - share) * log_sigmas[below] + share * log_sigmas[above]).exp()
        wanted = (sigmas.log() - log_sigmas[:, None]).abs().argmin(0).tolist()
        found = [TABLE.nearest(sigma) for sigma in SCHEDULES[name](TABLE, steps)[:-1].tolist()]
        assert found == wanted, steps
        ties += (share - 0.5).abs().lt(1e-3).sum().item()
    assert ties > 100


def test_the_nearest_timestep_of_any_level_is_one_of_the_models():
    assert [TABLE.nearest(sigma) for sigma in (0.0, 0.01, 1000.0)] == [0, 0, 999]
    assert [TABLE.nearest(sigma) for sigma in TABLE.sigmas] == list(range(1000))


@pytest.mark.parametrize(("name", "most"), [("simple", 1000), ("ddim_uniform", 999), ("lcm", 1000), ("sd_turbo", 10)])
def test_more_steps_than_the_model_has_levels_are_refused(name, most):
    assert len(SCHEDULES[name](TABLE, most)) == most + 1
    with pytest.raises(ValueError, match=f"steps: expected at most {most} .* take another schedule"):
        SCHEDULES[name](TABLE, most + 1)


def test_beta_spreads_levels_by_the_quantiles_that_scipy_gives():
    quantiles = scipy.stats.beta.ppf(1 - np.linspace(0, 1, 20), 0.6, 0.6)
    low, high = TABLE.sigma_min, TABLE.sigma_max
    assert SCHEDULES["beta"](TABLE, 20)[:-1].tolist() == pytest.approx((low + quantiles * (high - low)).tolist())


def test_beta_timestep_visits_the_nearest_whole_timesteps():
    quantiles = scipy.stats.beta.ppf(1 - np.linspace(0, 1, 20, endpoint=False), 0.6, 0.6)
    levels = [TABLE.sigmas[timestep] for timestep in np.rint(999 * quantiles).astype(int)]
    assert SCHEDULES["beta_timestep"](TABLE, 20)[:-1].tolist() == levels


def test_beta_timestep_makes_fewer_steps_than_there_are_equal_timesteps_and_starts_at_the_first():
    whole, begin = plan(SCHEDULES["beta_timestep"], TABLE, 500, 1.0)
    assert len(whole) < 501
    assert begin == 0
    assert all(high > low for high, low in pairwise(whole.tolist()))


@pytest.mark.parametrize(("alpha", "beta"), [(0.6, 0.6), (2.0, 0.3), (5.0, 7.0)])
def test_the_beta_distribution_is_scipys(alpha, beta):
    for share in np.linspace(0, 1, 41).tolist():
        assert beta_quantile(share, alpha, beta) == pytest.approx(scipy.stats.beta.ppf(share, alpha, beta), abs=1e-14)
        assert beta_cdf(share, alpha, beta) == pytest.approx(scipy.stats.beta.cdf(share, alpha, beta), abs=1e-14)


def test_kl_optimal_reaches_zero_after_the_models_lowest_level():
    sigmas = SCHEDULES["kl_optimal"](TABLE, 20).tolist()
    assert sigmas[-2:] == [pytest.approx(TABLE.sigma_min), 0]
    middle = (math.atan(TABLE.sigma_max) * 9 + math.atan(TABLE.sigma_min) * 10) / 19
    assert sigmas[10] == pytest.approx(math.tan(middle))


@pytest.mark.parametrize("steps", [2, 3, 10, 21])
def test_linear_quadratic_is_comfyuis(steps):
    even = steps // 2
    rest, left = steps - even, even - 0.025 * steps
    a, b, c = left / (even * rest**2), 0.025 / even - 2 * left / rest**2, left / (even * rest**2) * even**2
    rise = [step * 0.025 / even if step < even else a * step**2 + b * step + c for step in range(steps)]
    wanted = [(1 - share) * TABLE.sigma_max for share in (*rise, 1)]
    assert linear_quadratic(TABLE, steps).tolist() == pytest.approx(wanted)


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("align_your_steps", [14.615, 6.475, 3.861, 2.697, 1.886, 1.396, 0.963, 0.652, 0.399, 0.152, 0.029]),
        ("align_your_steps_xl", [14.615, 6.315, 3.771, 2.181, 1.342, 0.862, 0.555, 0.380, 0.234, 0.113, 0.029]),
    ],
)
def test_align_your_steps_in_eleven_steps_is_the_table_and_between_even_in_log_sigma(name, wanted):
    table, finer = SCHEDULES[name](TABLE, 11).tolist(), SCHEDULES[name](TABLE, 21).tolist()
    assert table[:-1] == pytest.approx(wanted)
    assert finer[:-1:2] == pytest.approx(table[:-1])
    assert finer[1] == pytest.approx(math.sqrt(table[0] * table[1]))


@pytest.mark.parametrize("steps", [1, 2, 20])
def test_vp_is_k_diffusions_between_its_own_ends(steps):
    time = torch.linspace(1, 1e-3, steps, dtype=torch.float64)
    wanted = ((19.9 * time**2 / 2 + 0.1 * time).exp() - 1).sqrt()
    ends = Limits(low=math.sqrt(math.expm1(19.9e-6 / 2 + 1e-4)), high=math.sqrt(math.expm1(19.9 / 2 + 0.1)))
    assert SCHEDULES["vp"](TABLE, steps, ends)[:-1].tolist() == pytest.approx(wanted.tolist())
    assert SCHEDULES["vp"](TABLE, 20)[-2].item() == pytest.approx(TABLE.sigma_min)


def test_laplace_has_the_quantiles_that_scipy_gives():
    shares = np.linspace(0, 1, 21)[1:-1]
    quantiles = np.exp(-scipy.stats.laplace.ppf(shares, loc=0, scale=0.5))
    sigmas = SCHEDULES["laplace"](TABLE, 21).tolist()
    assert sigmas[1:-2] == pytest.approx(quantiles.tolist(), rel=1e-3)
    assert (sigmas[0], sigmas[-2], sigmas[-1]) == (TABLE.sigma_max, TABLE.sigma_min, 0)


def test_laplace_visits_no_level_twice():
    sigmas = SCHEDULES["laplace"](TABLE, 1000).tolist()
    assert len(sigmas) < 1001
    assert all(high > low for high, low in pairwise(sigmas))


def test_turbo_visits_the_first_of_ten_levels():
    assert SCHEDULES["sd_turbo"](TABLE, 4).tolist() == [*(TABLE.sigmas[t] for t in (999, 899, 799, 699)), 0]
    assert SCHEDULES["sd_turbo"](TABLE, 10)[-2].item() == TABLE.sigmas[99]


@pytest.mark.parametrize("steps", [1, 4, 7, 8, 50])
def test_lcm_visits_the_timesteps_that_diffusers_visits(steps):
    scheduler = diffusers.LCMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    scheduler.set_timesteps(steps)
    levels = [TABLE.sigmas[timestep] for timestep in scheduler.timesteps.tolist()]
    assert SCHEDULES["lcm"](TABLE, steps).tolist() == [*levels, 0]


def test_past_fifty_steps_lcm_takes_more_of_the_models_levels():
    assert [TABLE.nearest(level) for level in SCHEDULES["lcm"](TABLE, 100).tolist()[:3]] == [999, 989, 979]


class TestCustom:
    def test_as_many_steps_as_levels_are_the_levels(self):
        assert SCHEDULES["custom"](TABLE, 3, Limits(levels=(9.0, 3.0, 0.1))).tolist() == [9, 3, 0.1, 0]

    def test_other_numbers_of_steps_read_between(self):
        sigmas = SCHEDULES["custom"](TABLE, 5, Limits(levels=(9.0, 4.0, 1.0))).tolist()
        assert sigmas == pytest.approx([9, 6, 4, 2, 1, 0])
        assert SCHEDULES["custom"](TABLE, 1, Limits(levels=(9.0, 4.0))).tolist() == pytest.approx([9, 0])

    def test_a_run_that_begins_part_of_the_way_up_takes_the_last_of_a_finer_list(self):
        whole, begin = plan(SCHEDULES["custom"], TABLE, 2, 0.4, limits=Limits(levels=(9.0, 4.0, 1.0)))
        assert whole[begin:].tolist() == pytest.approx([2, 1, 0])

    @pytest.mark.parametrize("levels", [(), (3.0, 3.0), (1.0, 2.0), (2.0, 0.0), (2.0, -1.0), (2.0, math.nan)])
    def test_levels_that_do_not_descend_to_above_zero_are_refused(self, levels):
        with pytest.raises(ValueError, match="levels: expected noise levels that descend and are above 0"):
            SCHEDULES["custom"](TABLE, 3, Limits(levels=levels))


class TestZeroTerminalSignal:
    """A table whose last level has next to no signal: 4518 times as much noise as picture."""

    @pytest.fixture
    def terminal(self):
        signal = torch.tensor([1 / math.sqrt(1 + sigma**2) for sigma in TABLE.sigmas], dtype=torch.float64)
        signal = (signal - signal[-1]) * signal[0] / (signal[0] - signal[-1])
        kept = (signal**2).clamp(min=4.8973451890853435e-08)
        return NoiseSchedule(tuple(((1 - kept) / kept).sqrt().tolist()), "v_prediction")

    @pytest.mark.parametrize("name", SCHEDULES)
    @pytest.mark.parametrize("steps", [1, 2, 10])
    def test_every_schedule_is_finite_and_falls(self, name, steps, terminal):
        assert terminal.sigma_max == pytest.approx(4518.76, abs=0.1)
        sigmas = SCHEDULES[name](terminal, steps, Limits(levels=(4000.0, 3.0, 0.1))).tolist()
        assert all(math.inf > high > low >= 0 for high, low in pairwise(sigmas))
        assert sigmas[-1] == 0

    @pytest.mark.parametrize("name", SAMPLERS)
    def test_every_sampler_stays_finite(self, name, terminal, mixture):
        generator = torch.Generator().manual_seed(3)

        def noise(*_):
            return torch.randn(50, generator=generator)

        def answer(question):
            clean = mixture.denoised(*question)
            return Predicted(clean, clean) if SAMPLERS[name].unguided else clean

        for schedule, steps in product(("karras", "normal", "simple", "beta"), (1, 2, 20)):
            sigmas = SCHEDULES[schedule](terminal, steps).tolist()
            run = SAMPLERS[name](noise() * sigmas[0], sigmas, noise)
            [end] = drive([run], lambda questions: list(map(answer, questions)))
            assert end.isfinite().all(), (schedule, steps)


def test_every_schedule_has_a_label():
    assert sorted(LABELS.values()) == sorted(SCHEDULES)
    assert (LABELS["Uniform"], LABELS["DDIM"], LABELS["Align Your Steps"]) == (
        "normal",
        "ddim_uniform",
        "align_your_steps",
    )


@pytest.mark.parametrize(
    ("sampler", "schedule"),
    [("dpmpp_2m", "karras"), ("dpmpp_3m_sde", "exponential"), ("euler_ancestral", "normal"), ("restart", "karras")],
)
def test_automatic_schedules_are_the_webuis(sampler, schedule):
    assert SAMPLERS[sampler].schedule == schedule


def config(**changed):
    return {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", **changed}


def test_the_pocket_models_scheduler_config_gives_the_standard_table(pocket):
    read = json.loads((pocket / "scheduler" / "scheduler_config.json").read_text())
    assert NoiseSchedule.from_config(read) == TABLE


def test_a_config_says_what_the_unet_predicts():
    assert NoiseSchedule.from_config(config()).prediction == "epsilon"
    assert NoiseSchedule.from_config(config(prediction_type="v_prediction")).prediction == "v_prediction"


def test_betas_may_be_spaced_evenly_or_listed():
    evenly = NoiseSchedule.from_config(config(beta_schedule="linear", num_train_timesteps=3))
    listed = NoiseSchedule.from_config({"trained_betas": [0.00085, (0.00085 + 0.012) / 2, 0.012]})
    assert evenly.sigmas == pytest.approx(listed.sigmas)
    assert evenly.sigma_min == pytest.approx(math.sqrt(0.00085 / (1 - 0.00085)), rel=1e-4)


@pytest.mark.parametrize(
    ("read", "problem"),
    [
        (config(prediction_type="sample"), "prediction_type: expected one of epsilon, v_prediction, got 'sample'"),
        (config(beta_schedule="squaredcos_cap_v2"), "beta_schedule: expected one of scaled_linear, linear, got 'sq"),
        (config(use_flow_sigmas=True), "use_flow_sigmas: expected false, got True"),
        ({"_class_name": "FlowMatchEulerDiscreteScheduler"}, "beta_start, beta_end, beta_schedule: expected in the Fl"),
        ({"trained_betas": [0.5, -0.5]}, "positive, finite and ascending"),
    ],
)
def test_an_unknown_noise_schedule_is_refused_by_name(read, problem):
    with pytest.raises(ValueError, match=problem):
        NoiseSchedule.from_config(read)
