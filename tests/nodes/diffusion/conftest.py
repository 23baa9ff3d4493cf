from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from nodes.diffusion import load
from nodes.diffusion.table import NoiseSchedule

POCKET = Path(__file__).parents[3] / "pocket" / "model"


@dataclass(frozen=True)
class Mixture:
    """Numbers drawn from two Gaussians, whose posterior mean is known in closed form."""

    means: tuple[float, float] = (-1.0, 1.5)
    deviations: tuple[float, float] = (0.5, 0.8)
    weights: tuple[float, float] = (0.4, 0.6)

    def denoised(self, x, sigma):
        """E[clean | x], for x = clean + sigma * noise, elementwise."""
        mean, deviation, weight = (
            torch.tensor(values, dtype=x.dtype) for values in (self.means, self.deviations, self.weights)
        )
        variance = deviation**2 + sigma**2
        x = x[..., None]
        share = torch.softmax(weight.log() - variance.log() / 2 - (x - mean) ** 2 / (2 * variance), dim=-1)
        return (share * (deviation**2 * x + sigma**2 * mean) / variance).sum(-1)


@pytest.fixture(scope="session", autouse=True)
def _threads():
    torch.set_num_threads(min(2, torch.get_num_threads()))


@pytest.fixture(scope="session")
def mixture():
    return Mixture()


@pytest.fixture(scope="session")
def table():
    return NoiseSchedule.from_betas(0.00085, 0.012)


@pytest.fixture(scope="session")
def pocket():
    return POCKET


@pytest.fixture(scope="session")
def unet():
    return load.unet(POCKET)


@pytest.fixture(scope="session")
def vae():
    return load.vae(POCKET)


@pytest.fixture(scope="session")
def text_encoder():
    return load.text_encoder(POCKET)


@pytest.fixture(scope="session")
def tokenizer():
    return load.tokenizer(POCKET)
