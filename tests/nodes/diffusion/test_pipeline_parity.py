"""Our sampling beside diffusers' pipelines, on the pocket model, in float32."""

from itertools import pairwise

import diffusers
import pytest
import torch

from nodes.diffusion import text
from nodes.diffusion.denoise import Denoiser
from nodes.diffusion.drive import drive
from nodes.diffusion.guidance import Guidance, guided
from nodes.diffusion.keep import Repaint
from nodes.diffusion.noise import draw
from nodes.diffusion.sampler import euler
from nodes.diffusion.schedule import karras
from nodes.diffusion.table import NoiseSchedule
from nodes.diffusion.tower import Tower
from nodes.diffusion.vae import decode, encode

pytestmark = pytest.mark.filterwarnings("ignore:__array_:DeprecationWarning")  # diffusers and numpy 2

PROMPT, NEGATIVE = "a grinning face, yellow background", "a cat"
CFG = 5.0
SIZE = 64
SEED = 11
BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
TABLE = NoiseSchedule.from_config(BETAS)


def levels(steps, *, skipped=0):
    return karras(TABLE, steps).tolist()[skipped:]


def noise(*seeds):
    return draw(seeds or [SEED], (4, SIZE // 8, SIZE // 8))


def assert_same(ours, theirs, tolerance=1e-4):
    assert ((ours - theirs).norm() / theirs.norm()).item() < tolerance


@pytest.fixture
def sample(unet):
    """Finish one run on the pocket model."""
    return lambda run: drive([run], Denoiser(unet, TABLE))[0]


@pytest.fixture
def pipeline(unet, vae, text_encoder, tokenizer):
    """Make a diffusers pipeline of the parts that our loader loaded."""
    scheduler = diffusers.EulerDiscreteScheduler(**BETAS, timestep_spacing="linspace", steps_offset=1)
    parts = {"unet": unet, "vae": vae, "text_encoder": text_encoder, "tokenizer": tokenizer, "scheduler": scheduler}

    def make(kind):
        made = kind(**parts, safety_checker=None, feature_extractor=None, requires_safety_checker=False)
        made.set_progress_bar_config(disable=True)
        return made

    return make


@pytest.fixture
def guidance(tokenizer, text_encoder):
    positive, negative = (text.encode(words, [Tower(tokenizer, text_encoder)]).states for words in (PROMPT, NEGATIVE))
    return Guidance(positive, negative, CFG)


@pytest.fixture(scope="module")
def latent(vae):
    """Encode a disc on a plain ground; diffusers samples the posterior, we take its mean, so both start from this."""
    y, x = torch.meshgrid(torch.arange(SIZE), torch.arange(SIZE), indexing="ij")
    disc = ((y - 30) ** 2 + (x - 36) ** 2 < 20**2).expand(1, 3, SIZE, SIZE)
    orange = torch.tensor([250, 140, 40], dtype=torch.uint8)[:, None, None]
    return encode(torch.where(disc, orange, torch.full((1, 3, SIZE, SIZE), 230, dtype=torch.uint8)), vae)


def asked(steps, **more):
    """What every pipeline is called with: our noise levels, for which this scheduler takes exact timesteps."""
    prompts = {"prompt": PROMPT, "negative_prompt": NEGATIVE, "guidance_scale": CFG}
    generator = torch.Generator().manual_seed(SEED)
    run = {"num_inference_steps": steps, "sigmas": levels(steps), "generator": generator, "output_type": "latent"}
    return prompts | run | more


def test_text_to_image_is_stable_diffusion_pipeline(pipeline, guidance, sample):
    """A batch of two, from the same latents; both sides scale the starting noise by sigma_max."""
    start = noise(1, 2)
    theirs = pipeline(diffusers.StableDiffusionPipeline)(**asked(8, latents=start, num_images_per_prompt=2)).images
    assert_same(sample(guided(euler(start * levels(8)[0], levels(8), None), guidance)), theirs)


def test_pictures_are_those_of_stable_diffusion_pipeline(pipeline, guidance, sample, vae):
    """Rounded alike: a level apart only where a last bit decides."""
    theirs = pipeline(diffusers.StableDiffusionPipeline)(**asked(4, output_type="pt", latents=noise())).images * 255
    ours = decode(sample(guided(euler(noise() * levels(4)[0], levels(4), None), guidance)), vae)
    assert (ours - theirs.round()).abs().max() <= 1


def test_a_short_prompts_conditioning_is_the_pipelines(pipeline, guidance):
    positive, negative = pipeline(diffusers.StableDiffusionPipeline).encode_prompt(
        PROMPT, "cpu", num_images_per_prompt=1, do_classifier_free_guidance=True, negative_prompt=NEGATIVE
    )
    assert_same(guidance.positive, positive)
    assert_same(guidance.negative, negative)


def test_image_to_image_is_stable_diffusion_img2img_pipeline(pipeline, guidance, sample, latent):
    """Diffusers runs the last int(steps * strength) steps of a schedule; ours walks the same levels here."""
    theirs = pipeline(diffusers.StableDiffusionImg2ImgPipeline)(**asked(10, strength=0.6, image=latent)).images
    sigmas = levels(10, skipped=4)
    assert_same(sample(guided(euler(latent + noise() * sigmas[0], sigmas, None), guidance)), theirs)


@pytest.fixture
def mask():
    """Repaint the right half of the latent: a binary mask, so that no two ways of resizing it differ."""
    mask = torch.zeros(1, 1, SIZE // 8, SIZE // 8)
    mask[..., SIZE // 16 :] = 1
    return mask


@pytest.fixture
def inpainted(pipeline, latent, mask):
    """What StableDiffusionInpaintPipeline, with a 4-channel UNet, makes of the picture at a strength."""

    def inpaint(strength):
        pixels = mask.repeat_interleave(8, dim=2).repeat_interleave(8, dim=3)
        pictures = {
            "image": latent,
            "masked_image_latents": latent,
            "mask_image": pixels,
            "height": SIZE,
            "width": SIZE,
        }
        return pipeline(diffusers.StableDiffusionInpaintPipeline)(**asked(10, strength=strength, **pictures)).images

    return inpaint


def under(guidance, mask, latent):
    return Guidance(guidance.positive, guidance.negative, CFG, Repaint(mask, latent))


def test_inpainting_is_stable_diffusion_inpaint_pipeline(inpainted, guidance, sample, mask, latent):
    """Below full strength, with a binary mask and Euler, two ways of keeping a part are one.

    After each step diffusers overwrites the kept part by the original under noise of that level; we blend the predicted
    clean latent. Euler walks a straight line from kept + noise * sigma to the clean latent, so it meets the overwritten
    values on its way.
    """
    sigmas = levels(10, skipped=4)
    run = euler(latent + noise() * sigmas[0], sigmas, None)
    assert_same(sample(guided(run, under(guidance, mask, latent))), inpainted(0.6))


def euler_over_noised_original(x, sigmas, mask, kept, noise):
    """Euler with diffusers' way of keeping a part."""
    for sigma, following in pairwise(sigmas):
        denoised = yield x, sigma
        x = x + (x - denoised) / sigma * (following - sigma)
        x = mask * x + (1 - mask) * (kept + noise * following)
    return x


def test_inpainting_at_full_strength_is_diffusers_but_for_the_start(inpainted, guidance, sample, mask, latent):
    """At strength 1 diffusers starts from noise alone in the kept part too, so the first prediction is another.

    With its start and its blending around our driver the results agree; with our own they stay near.
    """
    theirs, start = inpainted(1.0), noise() * levels(10)[0]
    their_way = euler_over_noised_original(start, levels(10), mask, latent, noise())
    assert_same(sample(guided(their_way, guidance)), theirs)
    our_way = guided(euler(latent + start, levels(10), None), under(guidance, mask, latent))
    assert_same(sample(our_way), theirs, tolerance=0.1)
