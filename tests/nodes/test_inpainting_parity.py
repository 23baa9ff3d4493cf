"""Inpainting UNets, which see mask and masked picture, of SD 1.x and SDXL, beside diffusers' pipelines."""

import diffusers
import numpy as np
import PIL.Image
import pytest
import torch
from diffusers import UNet2DConditionModel
from pipelines import (
    ONE,
    SEED,
    SIZE,
    STEPS,
    UP,
    XL,
    XL_UP,
    Nodes,
    apart,
    by_mean,
    error,
    levels,
    photograph,
    plain,
    seeded,
    xl,
)

from nodes import mask as masks
from nodes import repaint
from nodes.types import Image

pytestmark = pytest.mark.filterwarnings("ignore:__array_:DeprecationWarning")  # diffusers and numpy 2
PROMPTS = "a fox in the snow, (sharp)", "a cat"
NINE = {"in_channels": 9, "sample_size": SIZE // 8}
BOX = {"x": 16, "y": 8, "w": 29, "h": 35}
"""Its edges do not lie between cells of the latent."""


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("models")


@pytest.fixture(scope="module")
def pipelines(root):
    """Both pipelines for inpainting."""
    one = plain(root / "one", seeded(lambda: UNet2DConditionModel(**ONE | UP | NINE)))
    wide = xl(root / "wide", seeded(lambda: UNet2DConditionModel(**XL | XL_UP | NINE)))
    return {
        "one": by_mean(diffusers.StableDiffusionInpaintPipeline(**one.components, requires_safety_checker=False)),
        "wide": by_mean(diffusers.StableDiffusionXLInpaintPipeline(**wide.components, add_watermarker=False)),
    }


@pytest.fixture(scope="module")
def nodes(root, pipelines):
    return Nodes(root)


@pytest.fixture(scope="module")
def picture():
    return photograph()


@pytest.fixture(scope="module")
def hole():
    return masks.rectangle(SIZE, SIZE, **BOX)


@pytest.fixture(scope="module")
def both(nodes, pipelines, picture, hole):
    """What we, and they, make of the hole in the picture: latents."""

    def make(name, **more):
        parts = nodes.load(name)
        seen = repaint.conditioning(parts.unet, parts.vae, Image.of(picture), hole, nodes.context)
        return nodes.sample(parts, *nodes.both(parts, PROMPTS), inpaint=seen, **more)

    def ask(name, **more):
        pixels = PIL.Image.fromarray(hole.data[0, 0].numpy())
        run = {"image": picture, "mask_image": pixels, "guidance_scale": 5.0, "output_type": "latent"}
        run |= {"sigmas": levels(), "num_inference_steps": STEPS, "generator": torch.Generator().manual_seed(SEED)}
        prompts = dict(zip(("prompt", "negative_prompt"), PROMPTS, strict=True))
        return pipelines[name](**run | prompts | {"height": SIZE, "width": SIZE} | more).images

    return make, ask


@pytest.mark.parametrize("name", ["one", "wide"])
def test_from_noise_it_is_diffusers(nodes, both, name):
    ours, theirs = (each(name, **more) for each, more in zip(both, ({}, {"strength": 1.0}), strict=True))
    assert error(ours, theirs) < 1e-4
    assert apart(nodes.decode(nodes.load(name), ours), both[1](name, strength=1.0, output_type="pt")) <= 1


@pytest.mark.parametrize("name", ["one", "wide"])
def test_from_the_picture_it_is_diffusers(nodes, both, name, picture):
    """Diffusers runs the last half of twice the steps, and so do we; nothing is put back outside of the mask."""
    make, ask = both
    start = nodes.encode(nodes.load(name), picture)
    theirs = ask(name, strength=0.5, sigmas=levels(steps=2 * STEPS), num_inference_steps=2 * STEPS)
    ours = make(name, latent=start, denoise=0.5)
    assert error(ours, theirs) < 1e-4
    assert error(start.data, theirs) > 1e-2


@pytest.mark.parametrize("name", ["one", "wide"])
def test_what_the_unet_sees_is_what_diffusers_shows_it(nodes, pipelines, picture, hole, name):
    parts, pipe = nodes.load(name), pipelines[name]
    seen = repaint.conditioning(parts.unet, parts.vae, Image.of(picture), hole, nodes.context)
    signed = pipe.image_processor.preprocess(picture)
    binary = torch.from_numpy(np.array(hole.data)).float() / 255
    share, hidden = pipe.prepare_mask_latents(
        binary, signed * (binary < 0.5), 1, SIZE, SIZE, torch.float32, "cpu", None, do_classifier_free_guidance=False
    )
    assert torch.equal(seen.data[:, :1], share)
    assert error(seen.data[:, 1:], hidden) < 1e-5


@pytest.mark.parametrize("name", ["one", "wide"])
def test_picture_and_mask_matter(nodes, both, name, picture):
    make, _ = both
    parts, first = nodes.load(name), make(name)
    elsewhere = masks.rectangle(SIZE, SIZE, **BOX | {"x": 32})
    for seen in ((photograph(seed=1), BOX), (picture, None)):
        image, box = seen
        hole = elsewhere if box is None else masks.rectangle(SIZE, SIZE, **box)
        other = repaint.conditioning(parts.unet, parts.vae, Image.of(image), hole, nodes.context)
        assert error(nodes.sample(parts, *nodes.both(parts, PROMPTS), inpaint=other), first) > 1e-3


def test_pictures_of_a_batch_see_their_own(nodes, both, picture, hole):
    make, _ = both
    parts = nodes.load("wide")
    pair = Image(torch.cat([Image.of(each).data for each in (photograph(seed=1), picture)]))
    seen = repaint.conditioning(parts.unet, parts.vae, pair, hole, nodes.context)
    together = nodes.sample(parts, *nodes.both(parts, PROMPTS), inpaint=seen, count=2)
    assert error(together[1:], make("wide", seed=SEED + 1)) < 1e-4
