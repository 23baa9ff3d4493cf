"""Samplers beside their published formulas, written down once more: plainly, in t = -log sigma, and apart from them."""

import numpy as np
import pytest
import torch

from nodes.diffusion.drive import drive
from nodes.diffusion.sampler import SAMPLERS

START = torch.tensor([-20.0, -9.0, 3.0, 8.0, 21.0], dtype=torch.float64)
SIGMAS = [*(np.linspace(14.6 ** (1 / 7), 0.05 ** (1 / 7), 12) ** 7).tolist(), 0.0]


def noise_of(log):
    """Noise by the order of the draws; `log` hears for which way each was."""
    generator = torch.Generator().manual_seed(8)

    def noise(sigma, following):
        log.append((pytest.approx(sigma), pytest.approx(following)))
        return torch.randn(START.shape, generator=generator, dtype=torch.float64)

    return noise


def ancestral(s, s1, eta):
    up = min(s1, eta * (s1**2 * (s**2 - s1**2) / s**2) ** 0.5)
    return (s1**2 - up**2) ** 0.5, up


def assert_follows(name, by_hand, model, sigmas, **options):
    """A run is what `by_hand(D, x, sigmas, noise, eta)` makes, and draws noise for the same ways."""
    ours, theirs = [], []
    run = SAMPLERS[name](START, sigmas, noise_of(ours), **options)
    [result] = drive([run], lambda questions: [model(*question) for question in questions])
    wanted = by_hand(model, START, sigmas, noise_of(theirs), options.get("eta"))
    torch.testing.assert_close(result, wanted, rtol=1e-9, atol=1e-11)
    assert ours == theirs
