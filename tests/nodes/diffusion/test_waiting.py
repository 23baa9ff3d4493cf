"""No step of a run makes the host wait for the device: nothing is read off a tensor between two UNet calls."""

from types import SimpleNamespace

import pytest
import torch
from standins import TABLE, UnetFormula, words
from torch.utils._python_dispatch import TorchDispatchMode

from nodes.diffusion.denoise import Denoiser
from nodes.diffusion.drive import drive
from nodes.diffusion.guidance import Clause, Guidance, guided
from nodes.diffusion.keep import Repaint
from nodes.diffusion.noise import Streams, brownian
from nodes.diffusion.sampler import SAMPLERS
from nodes.diffusion.schedule import karras, tail

STEADY = sorted(name for name, sampler in SAMPLERS.items() if not sampler.adaptive)
SHAPE = (4, 8, 8)


class NoReading(TorchDispatchMode):
    """Refuses to read a number, or how many there are of something, off a tensor."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        assert not {"_local_scalar_dense", "nonzero", "is_nonzero"} & set(str(function).split(".")), str(function)
        return function(*args, **(kwargs or {}))


def loop(name, device="cpu"):
    """Two runs of a sampler, ready to go: masked, rescaled, with two prompts that take turns."""
    sampler, table = SAMPLERS[name], TABLE
    sigmas = tail(karras, table, 6, 0.8).tolist()
    first, second, low = (words(number).to(device) for number in (1, 2, 3))
    turns = SimpleNamespace(at=lambda call, *_: (Clause(first if call % 2 else second),))
    mask = torch.zeros(1, 1, 8, 8, device=device)
    mask[..., 2:6, 2:6] = 1
    runs = []
    for seed, words_ in ((1, first), (2, turns)):
        drawn = Streams.open([seed, seed + 1], SHAPE, device=device)
        path = brownian([seed, seed + 1], SHAPE, sigmas[-2], sigmas[0], device=device)
        clean = torch.zeros(2, *SHAPE, device=device)
        keep = Repaint(mask, clean)
        guidance = Guidance(words_, low, 5.0, keep, rescale=0.7, unguided=sampler.unguided)
        noise = path if sampler.brownian else lambda *_, drawn=drawn: drawn()
        runs.append(guided(sampler(clean + drawn.initial * sigmas[0], sigmas, noise), guidance, 6))
    return runs, Denoiser(UnetFormula(0.7), table)


@pytest.mark.parametrize("name", STEADY)
def test_no_sampler_reads_a_number_off_a_tensor(name):
    runs, denoiser = loop(name)
    with NoReading():
        results = drive(runs, denoiser)
    assert all(result.isfinite().all() for result in results)


def test_an_adaptive_sampler_has_to():
    runs, denoiser = loop("dpm_adaptive")
    with NoReading(), pytest.raises(AssertionError, match="_local_scalar_dense"):
        drive(runs, denoiser)


@pytest.mark.gpu
@pytest.mark.parametrize("name", STEADY)
def test_no_sampler_waits_for_a_gpu(name):
    for rehearsal in (True, False):
        runs, denoiser = loop(name, "cuda")
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("default" if rehearsal else "error")
        try:
            drive(runs, denoiser)
        finally:
            torch.cuda.set_sync_debug_mode("default")
