"""What `sample` does by ComfyUI's convention, and pictures encoded as ComfyUI does."""

from math import sqrt

import pytest
import torch

import pocket
from engine.context import Context
from engine.file import Files, ModelFile
from engine.models import ModelPool
from nodes import mask, model, noise, text, vae
from nodes.diffusion.denoise import Denoiser
from nodes.diffusion.guidance import Clause
from nodes.diffusion.noise import draw
from nodes.diffusion.schedule import karras
from nodes.options import options
from nodes.sample import sample
from nodes.types import Image, Latent, Mask, Noise

SHAPE = (4, 4, 4)


@pytest.fixture(scope="module")
def files():
    return Files(named={"pocket": pocket.FOLDER})


@pytest.fixture(scope="module")
def context(files):
    return Context(models=ModelPool(files))


@pytest.fixture(scope="module")
def parts(files):
    return model.load(files.resolve(ModelFile, "pocket"))


@pytest.fixture
def asked(monkeypatch):
    """Every question that reaches the UNet: the latent, its level, and whether its timestep is a whole one."""
    questions = []

    def answer(_self, given):
        questions.extend((each.x.clone(), each.sigma, each.guidance.whole_timesteps) for each in given)
        return [
            each.guidance.combine([(Clause(each.guidance.positive), each.x * 0)], [], each.x, each.sigma)
            for each in given
        ]

    monkeypatch.setattr(Denoiser, "__call__", answer)
    return questions


@pytest.fixture
def call(parts, context):
    words = text.encode(parts.text, context, text="smiling face")
    start = Latent(torch.randn(1, *SHAPE, generator=torch.Generator().manual_seed(5)))

    def made(**given):
        options = {"steps": 4, "cfg": 1.0, "sampler": "euler", "convention": "comfy", **given}
        return sample(parts.unet, words, start, options.pop("noise", Noise((3,))), context, **options).data

    made.start = start.data
    return made


@pytest.fixture
def table(parts, context):
    return context.model(parts.unet).table


def test_noise_that_covers_everything_is_a_little_stronger(call, asked, table):
    call()
    x, sigma, whole = asked[0]
    assert (sigma, whole) == (pytest.approx(table.sigma_max), True)
    torch.testing.assert_close(x, call.start + draw([3], SHAPE) * sqrt(1 + sigma**2))


def test_noise_that_does_not_is_as_strong_as_its_level(call, asked, table):
    call(denoise=0.5)
    x, sigma, _ = asked[0]
    assert sigma == pytest.approx(karras(table, 8)[4].item())
    torch.testing.assert_close(x, call.start + draw([3], SHAPE) * sigma)


def test_the_steps_draw_the_noise_that_the_run_began_with_once_more(call, asked):
    call(sampler="lcm", denoise=0.5)  # the answers are 0, so that nothing but a step's noise remains
    (_, _, _), (x, sigma, _) = asked[:2]
    torch.testing.assert_close(x, draw([3], SHAPE) * sigma)


def test_a_batch_that_shares_a_generator_begins_with_one_draw(call, asked):
    call(noise=noise.seeded(3, 2, shared=True), denoise=0.5)
    x, sigma, _ = asked[0]
    drawn = torch.randn(2, *SHAPE, generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(x, call.start + drawn * sigma)


def test_a_mask_is_scaled_down_bilinearly_and_its_greys_are_mixed_once(call, asked):
    levels = torch.zeros(1, 1, 32, 32, dtype=torch.uint8)
    levels[..., :20] = 255  # of the third column of cells, the two pixels in the middle count: 19 and 20
    result = call(mask=Mask(levels), denoise=0.5)
    share = torch.tensor([1.0, 1.0, 0.5, 0.0])
    torch.testing.assert_close(result, call.start * (1 - share))
    x, sigma, _ = asked[1]
    torch.testing.assert_close(x[..., 3], (call.start + draw([3], SHAPE) * sigma)[..., 3])


@pytest.mark.parametrize("convention", ["exact", "comfy"])
def test_a_run_in_two_parts_ends_where_one_run_ends(parts, context, convention):
    words = text.encode(parts.text, context, text="[smiling:crying:0.5] face")
    start = Latent(torch.randn(1, *SHAPE, generator=torch.Generator().manual_seed(5)))

    def run(latent, **given):
        told = {"steps": 6, "cfg": 1.0, "sampler": "heun", "convention": convention, **given}
        return sample(parts.unet, words, latent, Noise((3,)), context, **told)

    half = run(start, last=3, leftover=True)
    rest = run(half, first=3, options=options(noise_multiplier=0.0))
    torch.testing.assert_close(rest.data, run(start).data, rtol=1e-4, atol=1e-4)


def test_what_a_mask_keeps_has_the_noise_that_is_left_over(call, asked, table):
    area = mask.rectangle(32, 32, x=0, y=0, w=16, h=32)
    half = call(mask=area, last=2, leftover=True, convention="exact")
    noisy = call.start + draw([3], SHAPE) * karras(table, 4)[2].item()
    torch.testing.assert_close(half[..., 2:], noisy[..., 2:], rtol=1e-4, atol=1e-4)


def test_ddim_puts_the_noise_of_the_next_seed_on_what_a_mask_keeps(call, asked):
    nothing = Mask(torch.zeros(1, 1, 32, 32, dtype=torch.uint8))
    for sampler, seed in (("euler", 3), ("ddim", 4)):
        asked.clear()
        call(sampler=sampler, mask=nothing, denoise=0.5)
        x, sigma, _ = asked[1]
        torch.testing.assert_close(x, call.start + draw([seed], SHAPE) * sigma)


def test_a_run_that_adds_no_noise_shows_what_a_mask_keeps_without_any(call, asked):
    """But for DDIM, whose noise there is its own."""
    nothing = Mask(torch.zeros(1, 1, 32, 32, dtype=torch.uint8))
    for sampler, seen in (("euler", 0.0), ("ddim", draw([4], SHAPE))):
        asked.clear()
        call(sampler=sampler, mask=nothing, denoise=0.5, options=options(noise_multiplier=0.0))
        assert len(asked) == 4
        for x, sigma, _ in asked:
            torch.testing.assert_close(x, call.start + seen * sigma)


def test_dpm_fast_puts_no_noise_back_unless_told_to(call):
    assert torch.equal(call(sampler="dpm_fast"), call(sampler="dpm_fast", options=options(eta=0.0)))
    assert not torch.equal(call(sampler="dpm_fast"), call(sampler="dpm_fast", options=options(eta=1.0)))


def test_a_run_that_stops_early_ends_without_noise_unless_it_is_to_be_left(call, asked):
    torch.testing.assert_close(call(last=2), torch.zeros(1, *SHAPE))  # the answers are 0
    assert [sigma > 0 for _, sigma, _ in asked] == [True, True]
    assert call(last=2, leftover=True).abs().mean() > 0.1
    assert torch.equal(call(first=9), call.start)


def test_dpm_2_and_unipc_leave_out_the_penultimate_level_and_dpmpp_3m_sde_does_not(call, asked, table):
    for name, levels in (("uni_pc", karras(table, 5).tolist()[:-2]), ("dpmpp_3m_sde", karras(table, 4).tolist()[:-1])):
        asked.clear()
        call(sampler=name)
        assert [sigma for _, sigma, _ in asked] == pytest.approx(levels)


def test_what_is_hidden_is_encoded_as_middle_grey(parts, context):
    photo = Image(torch.randint(0, 256, (1, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(1)))
    levels = torch.full((1, 1, 32, 32), 127, dtype=torch.uint8)
    shown = vae.encode(parts.vae, photo, context, Mask(levels))
    torch.testing.assert_close(shown.data, vae.encode(parts.vae, photo, context).data)
    hidden = vae.encode(parts.vae, photo, context, Mask(levels + 1)).data
    other = Image(255 - photo.data)
    assert torch.equal(hidden, vae.encode(parts.vae, other, context, Mask(levels + 1)).data)
    with pytest.raises(ValueError, match="the mask is 16 x 16 px: expected the size of the image, 32 x 32 px"):
        vae.encode(parts.vae, photo, context, mask.rectangle(16, 16, x=0, y=0, w=8, h=8))
