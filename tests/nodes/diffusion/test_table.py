"""Noise levels without any signal at the last timestep, and other predictions on the same levels."""

import math

import pytest
import torch
from diffusers import EulerDiscreteScheduler

from nodes.diffusion.table import NoiseSchedule

BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


class TestZeroTerminalSignal:
    """Lin et al. 2023: the last of the noise levels that a model was trained on has no signal in it."""

    def test_the_levels_are_those_of_diffusers(self):
        read = BETAS | {"rescale_betas_zero_snr": True}
        signal = EulerDiscreteScheduler(**read).alphas_cumprod.double()
        expected = ((1 - signal) / signal).sqrt()
        found = torch.tensor(NoiseSchedule.from_config(read).sigmas, dtype=torch.float64)
        torch.testing.assert_close(found[:-1], expected[:-1], rtol=1e-3, atol=0)
        assert float(found[-1]) == pytest.approx(float(expected[-1]), rel=1e-6)

    def test_the_first_level_stays_and_the_last_is_as_high_as_comfyui_lets_it(self, table):
        changed = table.with_zero_snr()
        assert changed.sigma_min == pytest.approx(table.sigma_min, rel=1e-6)
        assert changed.sigma_max == pytest.approx(4518.8, rel=1e-4)
        assert changed.prediction == table.prediction
        assert changed.nearest(changed.sigma_max) == 999

    def test_the_levels_come_nearer_to_the_last_one_than_before(self, table):
        """The signal that is left is shifted by what was left at the end: a closed form."""
        changed = table.with_zero_snr()
        first, middle, last = (1 / math.sqrt(1 + table.sigmas[t] ** 2) for t in (0, 500, 999))
        root = (middle - last) * first / (first - last)
        assert changed.sigmas[500] == pytest.approx(math.sqrt(1 / root**2 - 1), rel=1e-9)

    @pytest.mark.parametrize("read", [{}, {"rescale_betas_zero_snr": True}])
    def test_levels_that_end_so_stay_as_they_are(self, read):
        changed = NoiseSchedule.from_config(BETAS | read).with_zero_snr()
        assert changed.with_zero_snr() == changed
        assert changed.sigma_max == pytest.approx(4096 if read else 4518.8, rel=1e-4)
        assert changed.sigmas[998] == pytest.approx(2254, rel=1e-3)

    def test_what_is_predicted_may_be_changed_alone(self, table):
        changed = table.with_prediction("v_prediction")
        assert (changed.sigmas, changed.prediction) == (table.sigmas, "v_prediction")
        with pytest.raises(ValueError, match="prediction: expected one of epsilon, v_prediction, got 'sample'"):
            table.with_prediction("sample")
