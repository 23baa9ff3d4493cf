import json
import math
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nodes.diffusion.schedule import SCHEDULES, NoiseSchedule, karras, normal, tail

TABLE = NoiseSchedule.from_betas(0.00085, 0.012)

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


@pytest.mark.parametrize("name", SCHEDULES)
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
@given(st.sampled_from(sorted(SCHEDULES)), st.integers(1, 150))
def test_schedules_fall_from_the_highest_level_to_zero(name, steps):
    sigmas = SCHEDULES[name](TABLE, steps).tolist()
    assert len(sigmas) == steps + 1
    assert all(high > low for high, low in pairwise(sigmas))
    assert sigmas[0] == pytest.approx(TABLE.sigma_max)
    assert sigmas[-1] == 0


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_schedule_without_steps_is_refused(name):
    with pytest.raises(ValueError, match="steps: expected at least 1, got 0"):
        SCHEDULES[name](TABLE, 0)


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
        (config(rescale_betas_zero_snr=True), "rescale_betas_zero_snr: expected false, got True"),
        ({"_class_name": "FlowMatchEulerDiscreteScheduler"}, "beta_start, beta_end, beta_schedule: expected in the Fl"),
        ({"trained_betas": [0.5, -0.5]}, "positive, finite and ascending"),
    ],
)
def test_an_unknown_noise_schedule_is_refused_by_name(read, problem):
    with pytest.raises(ValueError, match=problem):
        NoiseSchedule.from_config(read)
