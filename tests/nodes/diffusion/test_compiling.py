"""Compiled UNets: they give what the UNet gives, whatever the number of latents, and only where somebody asked."""

import copy
import gc
import weakref

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
    assert interpreted == [type(unet).forward]


def test_it_takes_what_a_unet_takes(unet, table, interpreted):
    [answer] = Denoiser(compiled(unet), table)(questions(3))
    [expected] = Denoiser(unet, table)(questions(3))
    torch.testing.assert_close(answer.guided, expected.guided, rtol=1e-4, atol=1e-4)
    assert interpreted


def test_whatever_has_a_row_per_latent_may_have_any_number_of_them(unet, table, interpreted, monkeypatch):
    marked = []
    monkeypatch.setattr(torch._dynamo, "maybe_mark_dynamic", lambda tensor, axis: marked.append((len(tensor), axis)))
    rows = torch.zeros(2, 4, 8, 8)
    more = {"added_cond_kwargs": {"text_embeds": rows, "time_ids": rows}, "beside": (rows, rows), "other": None}
    form = CompiledUnet(unet)
    form._forward = lambda *_, **__: (rows,)
    form(rows, rows, rows, return_dict=False, **more)
    assert marked == [(2, 0)] * 7
    form(rows[:1], rows, rows, return_dict=False, **more)
    assert len(marked) == 7


def test_a_compiled_form_does_not_keep_its_unet(unet, interpreted):
    copied = copy.deepcopy(unet)
    gone, form = weakref.ref(copied), compiled(copied)
    del copied
    gc.collect()
    assert (gone(), len(compiling._COMPILED)) == (None, 0)
    rows = torch.zeros(1, 4, 8, 8)
    with pytest.raises(ReferenceError, match="the UNet is gone"):
        form(rows, rows, rows, return_dict=False)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch.*")
def test_what_is_compiled_gives_what_the_unet_gives_for_any_number_of_latents(unet, table):
    denoiser = Denoiser(CompiledUnet(unet), table)
    for count in (1, 3, 2, 5):
        [answer] = denoiser(questions(count))
        [expected] = Denoiser(unet, table)(questions(count))
        torch.testing.assert_close(answer.guided, expected.guided, rtol=1e-4, atol=1e-4)
