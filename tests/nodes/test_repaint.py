"""Soft inpainting and inpainting models, as nodes: what is made for the sampler, and what is shown afterwards."""

import json
import shutil

import diffusers
import numpy as np
import PIL.Image
import pytest
import torch
from company import together
from PIL import ImageFilter
from safetensors.torch import load_file, save_file

import pocket
from engine.context import Context
from engine.file import Files, ModelFile
from engine.models import ModelPool
from nodes import inpaint, mask, model, text, vae
from nodes.diffusion.schedule import NoiseSchedule, karras
from nodes.diffusion.soft import changed
from nodes.repaint import conditioning, soft, soft_overlay
from nodes.sample import sample
from nodes.types import Image, InpaintConditioning, Latent, Mask, Noise

pytestmark = pytest.mark.filterwarnings("ignore:__array_:DeprecationWarning")  # diffusers and numpy 2

WEIGHTS = "diffusion_pytorch_model.safetensors"
DEFAULTS = {"steps": 3, "cfg": 4.0, "denoise": 0.75, "sampler": "euler", "schedule": "karras"}
BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The pocket model with five more channels, as an inpainting model has them: mask and masked latent.

    The widened layer is float32 among weights in float16: such a file is loaded in one precision too.
    """
    folder = shutil.copytree(pocket.FOLDER, tmp_path_factory.mktemp("models") / "inpainting")
    weights = load_file(folder / "unet" / WEIGHTS)
    more = torch.randn(len(weights["conv_in.weight"]), 5, 3, 3, generator=torch.Generator().manual_seed(0))
    weights["conv_in.weight"] = torch.cat([weights["conv_in.weight"], more * 0.1], dim=1)
    save_file(weights, folder / "unet" / WEIGHTS)
    config = json.loads((folder / "unet" / "config.json").read_text())
    (folder / "unet" / "config.json").write_text(json.dumps({**config, "in_channels": 9}))
    return folder


@pytest.fixture(scope="module")
def files(folder):
    return Files(named={"pocket": pocket.FOLDER, "inpainting": folder})


@pytest.fixture(scope="module")
def pool(files):
    return ModelPool(files)


@pytest.fixture
def context(pool):
    return Context(models=pool)


@pytest.fixture(scope="module")
def parts(files):
    return model.load(files.resolve(ModelFile, "inpainting"))


@pytest.fixture(scope="module")
def plain(files):
    return model.load(files.resolve(ModelFile, "pocket"))


@pytest.fixture(scope="module")
def photo():
    coarse = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(5))
    return Image((torch.nn.functional.interpolate(coarse, size=(64, 64)) * 255).to(torch.uint8))


@pytest.fixture(scope="module")
def area():
    return mask.ellipse(64, 64, x=10, y=14, w=40, h=36)


def masked_latent(parts, context, photo, area, strength):
    """The latent of the picture with its area lerped towards mid-grey, by diffusers' VAE."""
    signed = photo.data / 127.5 - 1
    grey = torch.lerp(signed, signed * (area.data < 128), strength)
    return context.model(parts.vae).encode(grey).latent_dist.mode().detach() * 0.18215


class TestConditioning:
    @pytest.mark.parametrize("strength", [1.0, 0.4, 0.0])
    def test_it_is_the_mask_and_then_the_latent_of_the_picture_without_its_area(
        self, parts, context, photo, area, strength
    ):
        made = conditioning(parts.unet, parts.vae, photo, area, context, strength=strength)
        made.check()
        assert made.data.shape == (1, 5, 8, 8)
        corners = np.asarray(area.pil())[::8, ::8] >= 128
        assert made.data[0, 0].tolist() == corners.astype(float).tolist()
        expected = masked_latent(parts, context, photo, area, strength)
        torch.testing.assert_close(made.data[:, 1:], expected, rtol=1e-4, atol=1e-5)

    def test_the_mask_is_rounded_unless_told_otherwise(self, parts, context, photo):
        grey = Mask(torch.tensor([127, 128], dtype=torch.uint8).repeat_interleave(32).expand(1, 1, 64, 64).contiguous())
        hard = conditioning(parts.unet, parts.vae, photo, grey, context)
        assert hard.data[0, 0, 0].tolist() == [0, 0, 0, 0, 1, 1, 1, 1]
        smooth = conditioning(parts.unet, parts.vae, photo, grey, context, round_mask=False)
        torch.testing.assert_close(smooth.data[0, 0, 0, ::4], torch.tensor([127 / 255, 128 / 255]))
        assert not torch.allclose(hard.data[:, 1:], smooth.data[:, 1:], atol=1e-3)

    def test_a_mask_serves_a_batch_of_pictures(self, parts, context, photo, area):
        both = Image(torch.cat([photo.data, photo.data.flip(3)]))
        made = conditioning(parts.unet, parts.vae, both, area, context)
        assert made.data.shape == (2, 5, 8, 8)
        alone = conditioning(parts.unet, parts.vae, Image(both.data[1:]), area, context)
        assert torch.equal(made.data[1:], alone.data)

    def test_it_is_empty_for_any_other_unet_and_nothing_is_encoded(self, plain, files, photo, area):
        pool = ModelPool(files)
        made = conditioning(plain.unet, plain.vae, photo, area, Context(models=pool))
        assert made.data.shape[1] == 0
        assert pool.held() == 0

    def test_it_survives_the_disk(self, plain, parts, context, photo, area):
        for owner in (plain, parts):
            made = conditioning(owner.unet, owner.vae, photo, area, context)
            again = InpaintConditioning.unpack(made.pack())
            again.check()
            assert torch.equal(again.data, made.data)

    def test_a_mask_of_another_size_is_refused(self, parts, context, photo):
        with pytest.raises(ValueError, match="the mask is 32 x 64 px: expected the size of the image, 64 x 64 px"):
            conditioning(parts.unet, parts.vae, photo, mask.rectangle(32, 64, x=0, y=0, w=9, h=9), context)


@pytest.fixture
def seen(parts, context, photo, area):
    return conditioning(parts.unet, parts.vae, photo, area, context)


@pytest.fixture
def masks(parts, context, photo, area):
    """What diffusers' pipeline is told of the mask."""
    latents = masked_latent(parts, context, photo, area, 1.0)
    return {"mask_image": (area.data >= 128).float(), "masked_image_latents": latents}


@pytest.fixture
def pipeline(parts, context):
    words = context.model(parts.text)
    made = diffusers.StableDiffusionInpaintPipeline(
        unet=context.model(parts.unet).unet,
        vae=context.model(parts.vae),
        text_encoder=words.towers[0].encoder,
        tokenizer=words.towers[0].tokenizer,
        scheduler=diffusers.EulerDiscreteScheduler(**BETAS, timestep_spacing="linspace", steps_offset=1),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    made.set_progress_bar_config(disable=True)
    return made


@pytest.fixture
def call(parts, pool, photo):
    """The arguments of a call of `sample` with the inpainting model."""
    context = Context(models=pool)
    positive, negative = (text.encode(parts.text, context, text=words) for words in ("smiling face", "a cat"))
    latent = vae.encode(parts.vae, photo, context)

    def arguments(**options):
        given = {"unet": parts.unet, "positive": positive, "negative": negative, "latent": latent, "noise": Noise((7,))}
        return {**given, "context": Context(models=pool), **DEFAULTS, **options}

    return arguments


def assert_alike(ours, theirs):
    assert ((ours - theirs).norm() / theirs.norm()).item() < 1e-4


class TestInpaintingModels:
    def test_sampling_is_stable_diffusion_inpaint_pipeline(self, call, parts, pipeline, masks, seen):
        """Order of the channels, the mask on the grid, and what is not scaled: as diffusers has them."""
        theirs = pipeline(
            prompt="smiling face",
            negative_prompt="a cat",
            guidance_scale=4.0,
            image=call()["latent"].data,
            **masks,
            height=64,
            width=64,
            strength=0.6,
            num_inference_steps=10,
            sigmas=karras(NoiseSchedule.from_config(BETAS), 10).tolist(),
            generator=torch.Generator().manual_seed(7),
            output_type="latent",
        ).images
        ours = sample(**call(inpaint=seen, steps=6, denoise=0.6))
        assert_alike(ours.data, theirs)

    @pytest.mark.parametrize(("shape", "message"), [((1, 0, 1, 1), "1 x 0 x 1 x 1"), ((1, 5, 8, 4), "1 x 5 x 8 x 4")])
    def test_a_conditioning_of_another_model_or_size_is_refused(self, call, shape, message):
        with pytest.raises(ValueError, match=f"the inpaint conditioning is {message}, expected 1 or 1 x 5 x 8 x 8"):
            sample(**call(inpaint=InpaintConditioning(torch.zeros(shape))))

    def test_another_model_ignores_it(self, call, plain, seen):
        ignoring = sample(**call(unet=plain.unet, inpaint=seen))
        assert torch.equal(ignoring.data, sample(**call(unet=plain.unet)).data)

    def test_calls_with_different_conditionings_share_unet_calls_and_come_out_as_alone(self, call, pool, seen, area):
        taken = []
        counting = Context(models=pool, meter=lambda *what: taken.append(what))
        other = InpaintConditioning(seen.data.flip(3))
        calls = [
            call(inpaint=seen, context=counting),
            call(inpaint=other, steps=4, noise=Noise((1, 2)), mask=area, sampler="heun"),
        ]
        made = together(calls)
        assert taken == [("unet_calls", 6)] * 3
        for result, arguments in zip(made, calls, strict=True):
            assert_alike(result.data, sample(**arguments).data)
        assert not torch.allclose(made[0].data, sample(**call(inpaint=other)).data, atol=1e-2)


@pytest.fixture
def shift():
    """A latent before and after its right half was changed."""
    before = Latent(torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(3)))
    moved = torch.zeros(1, 4, 8, 8)
    moved[..., 4:] = 1.5
    return before, Latent(before.data + moved)


WHITE = Mask(torch.full((1, 1, 64, 64), 255, dtype=torch.uint8))


class TestSoftOverlay:
    def test_it_is_the_scaled_and_blurred_share_of_what_changed(self, shift):
        grey = mask.blur(mask.rectangle(64, 64, x=16, y=0, w=48, h=64), 8)
        settings = soft(1.0, 0.5, 4.0, influence=0.3, threshold=0.8, difference_contrast=3.0)
        shown = soft_overlay(settings, *shift, grey)
        levels = np.asarray(grey.pil().resize((8, 8), PIL.Image.Resampling.BICUBIC))
        share = changed(
            shift[0].data,
            shift[1].data,
            torch.from_numpy(levels / 255)[None, None],
            preservation=0.5,
            influence=0.3,
            threshold=0.8,
            contrast=3.0,
        )
        small = PIL.Image.fromarray(np.floor(255 * share[0, 0].numpy()).astype(np.uint8))
        wanted = small.resize((64, 64), PIL.Image.Resampling.LANCZOS).filter(ImageFilter.GaussianBlur(4))
        assert np.abs(np.asarray(wanted).astype(int) - np.asarray(shown.pil())).max() <= 1

    def test_what_changed_is_shown_and_what_did_not_is_kept(self, shift):
        shown = np.asarray(soft_overlay(soft(), *shift, WHITE).pil())
        assert shown[:, :8].max() < 10
        assert shown[:, 48:].min() > 250

    def test_each_picture_has_its_own(self, shift):
        before, after = shift
        both = Latent(torch.cat([after.data, before.data]))
        shown = soft_overlay(soft(), before, both, WHITE)
        assert shown.data.shape == (2, 1, 64, 64)
        assert torch.equal(shown.data[:1], soft_overlay(soft(), before, after, WHITE).data)
        assert shown.data[1].max() == 0

    def test_with_a_base_it_lies_in_the_box_and_nothing_else_is_shown(self, shift):
        base = Image(torch.zeros(1, 3, 90, 120, dtype=torch.uint8))
        shown = np.asarray(soft_overlay(soft(), *shift, WHITE, base, x=20, y=30, width=32, height=48).pil())
        assert shown.shape == (90, 120)
        assert shown[30:78, 46:52].min() > 250
        shown = shown.copy()
        shown[30:78, 20:52] = 0
        assert shown.max() == 0

    def test_with_the_frame_of_a_whole_picture_it_is_the_same_as_without(self, shift, photo):
        framed = inpaint.frame(photo, WHITE, width=64, height=64)
        box = {"x": framed.x.value, "y": framed.y.value, "width": framed.width.value, "height": framed.height.value}
        placed = soft_overlay(soft(), *shift, WHITE, framed.base, **box)
        assert torch.equal(placed.data, soft_overlay(soft(), *shift, WHITE).data)

    def test_a_box_outside_of_the_base_is_refused(self, shift, photo):
        with pytest.raises(ValueError, match=r"the box of 64 x 64 px at \(1, 0\) leaves the base of 64 x 64 px"):
            soft_overlay(soft(), *shift, WHITE, photo, x=1)

    def test_latents_of_two_sizes_are_refused(self, shift):
        with pytest.raises(ValueError, match="before and after one sampling, got 1 x 4 x 8 x 8 and 1 x 4 x 8 x 16"):
            soft_overlay(soft(), shift[0], Latent(torch.zeros(1, 4, 8, 16)), WHITE)
