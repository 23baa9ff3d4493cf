import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from diffusers.image_processor import VaeImageProcessor

from nodes.diffusion.tiling import Tiling
from nodes.diffusion.vae import decode, downscale, encode


def picture(height=64, width=64, count=1):
    """Smooth colour ramps, another one for each image."""
    y = torch.linspace(0, 255, height)[:, None].expand(height, width)
    x = torch.linspace(255, 0, width).expand(height, width)
    images = [torch.stack([y, x, torch.full_like(x, 60.0 * number)]) for number in range(count)]
    return torch.stack(images).to(torch.uint8)


@pytest.fixture(scope="module")
def shifted():
    torch.manual_seed(0)
    sizes = {"block_out_channels": (8, 8), "norm_num_groups": 4, "down_block_types": ("DownEncoderBlock2D",) * 2}
    return AutoencoderKL(**sizes, up_block_types=("UpDecoderBlock2D",) * 2, scaling_factor=0.36, shift_factor=0.12)


def test_the_downscale_comes_from_the_config(vae, shifted):
    assert (downscale(vae), downscale(shifted)) == (8, 2)


def test_a_latent_is_the_scaled_mean(vae):
    latent = encode(picture(64, 48), vae)
    mean = vae.encode(picture(64, 48) / 127.5 - 1).latent_dist.mean * 0.18215
    assert latent.shape == (1, 4, 8, 6)
    assert latent.dtype == torch.float32
    torch.testing.assert_close(latent, mean.detach())


def test_a_picture_survives_the_round_trip(vae):
    y, x = torch.meshgrid(torch.arange(128), torch.arange(128), indexing="ij")
    disc = ((y - 64) ** 2 + (x - 64) ** 2 < 40**2).expand(1, 3, 128, 128)
    yellow = torch.tensor([250, 200, 40], dtype=torch.uint8)[:, None, None]
    original = torch.where(disc, yellow, torch.full((1, 3, 128, 128), 255, dtype=torch.uint8))
    again = decode(encode(original, vae), vae)
    assert again.dtype == torch.uint8
    assert again.shape == original.shape
    error = (again.float() - original.float()).square().mean()
    assert 10 * torch.log10(255**2 / error) > 24


def test_an_image_does_not_depend_on_its_batch(vae):
    images = picture(count=3)
    latents = encode(images, vae)
    assert torch.equal(latents[1:2], encode(images[1:2], vae))
    assert torch.equal(decode(latents, vae)[1:2], decode(latents[1:2], vae))


def test_decoding_rounds_as_diffusers_does(vae):
    latent = encode(picture(), vae)
    decoded = vae.decode(latent / 0.18215).sample.detach()
    [theirs] = VaeImageProcessor().postprocess(decoded, output_type="pil")
    assert decode(latent, vae)[0].permute(1, 2, 0).tolist() == np.asarray(theirs).tolist()


def test_decoding_truncates_where_that_is_asked_for(vae):
    latent = encode(picture(), vae)
    raw = vae.decode(latent / 0.18215).sample.detach()
    expected = (255 * ((raw + 1) / 2).clamp(0, 1)).numpy().astype(np.uint8)
    truncated = decode(latent, vae, "truncate")
    assert np.abs(truncated.numpy().astype(int) - expected).max() <= 1
    assert np.mean(truncated.numpy() == expected) > 0.999
    assert 0.4 < (decode(latent, vae).float() - truncated.float()).mean() < 0.6


def test_a_shift_is_taken_off_the_latent_and_put_back(shifted):
    images = picture(16, 16)
    latent = encode(images, shifted)
    mean = shifted.encode(images / 127.5 - 1).latent_dist.mean.detach()
    torch.testing.assert_close(latent, (mean - 0.12) * 0.36)
    expected = ((shifted.decode(mean).sample.detach() + 1) * 127.5).clamp(0, 255).round()
    assert (decode(latent, shifted).float() - expected).abs().max() <= 1


@pytest.mark.parametrize(("height", "width"), [(60, 64), (64, 63)])
def test_sizes_that_the_vae_would_crop_are_refused(height, width, vae):
    with pytest.raises(ValueError, match=f"multiples of 8, got {height} x {width}"):
        encode(picture(height, width), vae)


@pytest.mark.parametrize("images", [torch.zeros(1, 3, 8, 8), picture()[0], picture()[:, :1]])
def test_anything_but_uint8_rgb_is_refused(images, vae):
    with pytest.raises(ValueError, match=r"expected uint8 \(N, 3, H, W\), got"):
        encode(images, vae)


def test_an_overflowing_decoder_is_reported(vae):
    with pytest.raises(FloatingPointError, match="AutoencoderKL made infinities or NaN in float32; look at"):
        decode(torch.full((1, 4, 2, 2), torch.inf), vae)


def decibels(made, expected):
    return float(10 * torch.log10(255**2 / (made.float() - expected.float()).square().mean()))


def test_tiles_are_close_to_the_whole_and_have_no_seams(vae):
    whole = decode(encode(picture(192, 192), vae), vae)
    latent = encode(picture(192, 192), vae, Tiling(128, 64))
    assert decibels(decode(latent, vae), whole) > 33
    tiled = decode(encode(picture(192, 192), vae), vae, "nearest", Tiling(128, 64))
    assert decibels(tiled, whole) > 36
    error = tiled.float() - whole.float()
    assert float(error.diff(dim=3).mean((0, 1, 2))[48:144].abs().max()) < 2
    assert float(error.diff(dim=2).mean((0, 1, 3))[48:144].abs().max()) < 2


def test_tiles_of_a_batch_are_those_of_its_pictures(vae):
    images = picture(96, 64, count=2)
    latents = encode(images, vae, Tiling(64, 32))
    assert torch.equal(latents[1:], encode(images[1:], vae, Tiling(64, 32)))
    decoded = decode(latents, vae, "nearest", Tiling(64, 32))
    assert torch.equal(decoded[1:], decode(latents[1:], vae, "nearest", Tiling(64, 32)))


def test_tiles_leave_the_vae_as_it_is(vae):
    before = [(name, type(module)) for name, module in vae.named_modules()]
    weights = {name: weight.data_ptr() for name, weight in vae.named_parameters()}
    encode(picture(96, 64), vae, Tiling(64, 32))
    assert [(name, type(module)) for name, module in vae.named_modules()] == before
    assert {name: weight.data_ptr() for name, weight in vae.named_parameters()} == weights
