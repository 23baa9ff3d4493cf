"""Compiled UNets: they give what the UNet gives, whatever the number of latents, and only where somebody asked."""

import pytest
import torch

from nodes.diffusion import compiling
from nodes.diffusion.compiling import CompiledUnet, compiled
from nodes.diffusion.denoise import Denoiser
from nodes.diffusion.guidance import Guidance, Question


def questions(count):
    made = torch.Generator().manual_seed(count)
    x, high, low = (torch.randn(count, *shape, generator=made) for shape in ((4, 16, 16), (77, 128), (77, 128)))
    return [Question(x, 2.0, Guidance(high, low, cfg=4.0))]


@pytest.fixture
def interpreted(monkeypatch):
    """Compile nothing; log what was to be."""
    asked = []

    def compile_(function):
        asked.append(function)
        return function

    monkeypatch.setattr(torch, "compile", compile_)
    monkeypatch.setattr(compiling, "_COMPILED", type(compiling._COMPILED)())
    return asked


def test_a_unet_is_compiled_once(unet, interpreted):
    assert compiled(unet) is compiled(unet)
    assert interpreted == [unet.forward]


def test_it_takes_what_a_unet_takes(unet, table, interpreted):
    [answer] = Denoiser(compiled(unet), table)(questions(3))
    [expected] = Denoiser(unet, table)(questions(3))
    torch.testing.assert_close(answer.guided, expected.guided)
    assert interpreted


def test_whatever_has_a_row_per_latent_is_found():
    rows = torch.zeros(2, 3)
    more = {"added_cond_kwargs": {"text_embeds": rows, "time_ids": rows}, "down": (rows, rows), "other": None}
    assert len(list(compiling._tensors(more))) == 4


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch.*")
def test_what_is_compiled_gives_what_the_unet_gives_for_any_number_of_latents(unet, table):
    denoiser = Denoiser(CompiledUnet(unet), table)
    for count in (1, 3, 2, 5):
        [answer] = denoiser(questions(count))
        [expected] = Denoiser(unet, table)(questions(count))
        torch.testing.assert_close(answer.guided, expected.guided, rtol=1e-4, atol=1e-4)
