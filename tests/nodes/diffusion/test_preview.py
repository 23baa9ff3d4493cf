from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch

import graphs
from nodes.diffusion import load
from nodes.diffusion.preview import fit
from nodes.diffusion.vae import encode

INPUTS = Path(graphs.__file__).parent / "inputs"


def photo(name):
    with PIL.Image.open(INPUTS / name) as picture:
        fitted = picture.convert("RGB").resize((192, 128), PIL.Image.Resampling.LANCZOS)
    return torch.from_numpy(np.array(fitted)).permute(2, 0, 1).unsqueeze(0)


def small(picture):
    """What a preview is to look like: the mean colour behind each latent cell."""
    return torch.nn.functional.avg_pool2d(picture.float(), 8)


def correlations(first, second):
    return [
        torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1].item() for a, b in zip(first, second, strict=True)
    ]


@pytest.fixture(scope="module")
def colours(vae):
    return fit(vae)


def test_the_preview_of_an_encoded_photo_is_the_photo_scaled_down(vae, colours):
    picture = photo("fox.png")
    shown, wanted = colours.picture(encode(picture, vae)), small(picture)
    assert (shown - wanted).abs().mean() < 25
    assert min(correlations(shown[0].float(), wanted[0])) > 0.9


def test_plain_colours_are_told_apart(vae, colours):
    wanted = torch.tensor([[220, 30, 30], [30, 200, 30], [30, 30, 220], [230, 230, 230], [20, 20, 20]])
    plain = wanted[:, :, None, None].expand(-1, -1, 64, 64).to(torch.uint8)
    shown = colours.picture(encode(plain, vae))[:, :, 4, 4].int()
    distances = (shown[:, None] - wanted[None]).abs().sum(2)
    assert distances.argmin(1).tolist() == [0, 1, 2, 3, 4]


def test_a_preview_has_a_pixel_for_each_cell_of_each_latent(colours):
    shown = colours.picture(torch.zeros(3, 4, 5, 7))
    assert shown.dtype == torch.uint8
    assert shown.shape == (3, 3, 5, 7)
    assert shown.is_contiguous()


def test_latents_far_off_are_shown_in_the_nearest_colour_there_is(colours):
    shown = colours.picture(torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(1)) * 1000)
    assert set(shown.unique().tolist()) == {0, 255}


def test_a_vae_in_half_precision_gives_the_same_colours(pocket, vae, colours):
    half = fit(load.vae(pocket, dtype=torch.float16))
    latent = encode(photo("face.png"), vae)
    assert half.matrix.dtype == torch.float32
    assert (half.picture(latent).int() - colours.picture(latent).int()).abs().max() <= 3


class Stripes:
    """A VAE of 16 channels, a few of which know nothing of colours: an affine map of each cell's mean and detail."""

    device, dtype = torch.device("cpu"), torch.float32

    class config:  # noqa: N801  as diffusers spells it
        block_out_channels = (8, 8, 8, 8)
        scaling_factor = 1.0
        shift_factor = 0.0

    def __init__(self):
        self._mix = torch.randn(3, 12, generator=torch.Generator().manual_seed(2))

    def encode(self, signed):
        self._means = torch.nn.functional.avg_pool2d(signed, 8)
        mixed = torch.einsum("nchw,cd->ndhw", self._means, self._mix)
        faint = 1e-6 * self._means.pow(2).repeat(1, 2, 1, 1)[:, :4]
        self._latent = torch.cat([mixed, faint], dim=1)
        return self

    @property
    def latent_dist(self):
        return self

    def mode(self):
        return self._latent


def test_any_number_of_channels_will_do_and_those_that_say_nothing_have_no_say():
    vae = Stripes()
    colours = fit(vae)
    latent, wanted = encode(photo("fox.png"), vae), small(photo("fox.png"))
    assert (colours.picture(latent) - wanted).abs().mean() < 3
    latent[:, 12:] += torch.randn(latent[:, 12:].shape, generator=torch.Generator().manual_seed(3))
    assert (colours.picture(latent) - wanted).abs().mean() < 3
