"""SDXL: two text encoders, what its UNet takes beside their states, and its refiner, beside diffusers' pipelines."""

from itertools import pairwise

import pytest
import torch
from pipelines import SEED, SIZE, STEPS, TABLE, Nodes, error, levels, plain, refiner, xl

from nodes import conditioning, noise, options, text
from nodes.diffusion.noise import draw
from nodes.sample import sample
from nodes.types import Conditioning, Latent

pytestmark = pytest.mark.filterwarnings("ignore:__array_:DeprecationWarning")  # diffusers and numpy 2
PROMPT, NEGATIVE = "a fox in the snow, (sharp)", "a cat"
NOISE = draw([SEED], (4, SIZE // 8, SIZE // 8))


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("models")


@pytest.fixture(scope="module")
def pipeline(root):
    return xl(root / "xl")


@pytest.fixture(scope="module")
def refining(root):
    return refiner(root / "refiner")


@pytest.fixture(scope="module")
def nodes(root, pipeline, refining):
    return Nodes(root)


@pytest.fixture(scope="module")
def parts(nodes):
    return nodes.load("xl")


def asked(**more):
    run = {"num_inference_steps": STEPS, "sigmas": levels(), "guidance_scale": 5.0, "output_type": "latent"}
    return run | {"height": SIZE, "width": SIZE, "latents": NOISE} | more


def both(nodes, parts, positive=PROMPT, negative=NEGATIVE):
    """Without weights, which diffusers does not read."""
    return (
        nodes.words(parts, positive, weighting="none"),
        nodes.words(parts, negative, weighting="none", negative=True),
    )


def test_states_stand_side_by_side_and_pooled_ones_are_the_second_encoders(nodes, parts, pipeline):
    theirs, _, pooled, _ = pipeline.encode_prompt(PROMPT, device="cpu", do_classifier_free_guidance=False)
    ours = nodes.words(parts, PROMPT, weighting="none")
    assert ours.data.shape == (1, 77, 32 + 64)
    assert error(ours.data, theirs) < 1e-6
    assert error(ours.pooled, pooled) < 1e-6


@pytest.mark.parametrize(("skip", "theirs"), [(1, None), (2, 0), (3, 1)])
def test_clip_skip_begins_at_the_last_layer_but_one(nodes, parts, pipeline, skip, theirs):
    ours = text.encode(text.clip_skip(parts.text, skip), nodes.context, text="a fox")
    expected, *_ = pipeline.encode_prompt("a fox", device="cpu", do_classifier_free_guidance=False, clip_skip=theirs)
    assert error(ours.data, expected) < 1e-6


def test_a_long_prompt_is_chunks_side_by_side_and_pools_the_first(nodes, parts):
    words = nodes.words(parts, "a fox BREAK a cat")
    first, second = nodes.words(parts, "a fox"), nodes.words(parts, "a cat")
    torch.testing.assert_close(words.data, torch.cat([first.data, second.data], dim=1))
    torch.testing.assert_close(words.pooled, first.pooled)


def test_weights_keep_the_mean_of_each_encoder_and_leave_the_pooled_states(nodes, parts):
    plain, weighed = nodes.words(parts, "a fox"), nodes.words(parts, "a (fox:1.5)")
    for part in (slice(0, 32), slice(32, 96)):
        assert weighed.data[..., part].mean().item() == pytest.approx(plain.data[..., part].mean().item(), abs=1e-5)
        assert not torch.equal(weighed.data[..., part], plain.data[..., part])
    assert torch.equal(weighed.pooled, plain.pooled)


def test_an_empty_negative_prompt_is_zeros_but_for_comfyui(nodes, parts):
    nothing = nodes.words(parts, "", negative=True)
    assert not nothing.data.any()
    assert not nothing.pooled.any()
    assert nodes.words(parts, "", negative=True, weighting="comfy").data.any()
    assert nodes.words(parts, "").data.any()


def test_text_to_image_is_diffusers(nodes, parts, pipeline):
    theirs = pipeline(PROMPT, negative_prompt=NEGATIVE, **asked()).images
    assert error(nodes.sample(parts, *both(nodes, parts)), theirs) < 1e-4


def test_without_a_negative_prompt_it_is_diffusers_too(nodes, parts, pipeline):
    theirs = pipeline(PROMPT, **asked()).images
    assert error(nodes.sample(parts, *both(nodes, parts, negative="")), theirs) < 1e-4


def test_sizes_are_what_the_unet_hears(nodes, parts, pipeline):
    told = {"original_size": (96, 128), "crops_coords_top_left": (8, 16), "target_size": (72, 80)}
    told |= {f"negative_{name}": value for name, value in told.items()}
    theirs = pipeline(PROMPT, negative_prompt=NEGATIVE, **asked(), **told).images
    sizes = {"width": 128, "height": 96, "crop_x": 16, "crop_y": 8, "target_width": 80, "target_height": 72}
    words = [conditioning.sizes(each, **sizes) for each in both(nodes, parts)]
    assert error(nodes.sample(parts, *words), theirs) < 1e-4
    assert error(nodes.sample(parts, *both(nodes, parts)), theirs) > 1e-3


def test_guidance_is_rescaled_as_in_the_paper(nodes, root):
    """Diffusers rescales what the model predicts: for one that predicts v, the velocity, as we do."""
    theirs = plain(root / "velocity", prediction_type="v_prediction")
    parts = nodes.load("velocity")
    words = both(nodes, parts)
    expected = theirs(PROMPT, negative_prompt=NEGATIVE, guidance_rescale=0.7, **asked()).images
    ours = nodes.sample(parts, *words, options=options.options(cfg_rescale=0.7))
    assert error(ours, expected) < 1e-4
    assert error(nodes.sample(parts, *words), expected) > 1e-2


def test_the_refiner_goes_on_where_the_base_left_off(nodes, parts, pipeline, refining):
    """The base ends at a level, the refiner begins there with a score of its own, and hears no target size."""
    base = both(nodes, parts)
    last = nodes.load("refiner")
    words = both(nodes, last)
    assert words[0].data.shape == (1, 77, 64)
    half = nodes.sample(parts, *base, last=2, leftover=True)
    quiet = options.options(noise_multiplier=0.0)
    ours = nodes.sample(last, *words, latent=Latent(half, last.vae.space), first=2, options=quiet)
    x = half
    scores = [(SIZE, SIZE, 0, 0, 6.0), (SIZE, SIZE, 0, 0, 2.5)]
    for sigma, following in pairwise(levels()[2:]):
        predicted = [
            refining.unet(
                x / (sigma**2 + 1) ** 0.5,
                TABLE.timestep(sigma),
                each.data,
                added_cond_kwargs={"text_embeds": each.pooled, "time_ids": torch.tensor([numbers])},
            ).sample
            for each, numbers in zip(words, scores, strict=True)
        ]
        epsilon = predicted[1] + 5.0 * (predicted[0] - predicted[1])
        x = x + epsilon * (following - sigma)
    assert error(ours, x) < 1e-4


def test_a_conditioning_of_another_model_is_refused(nodes, parts):
    words = both(nodes, parts)
    bare = [Conditioning(each.data) for each in words]
    with pytest.raises(ValueError, match="has 0 pooled states, this UNet takes 64 beside 6 sizes, or 72 beside 5"):
        nodes.sample(parts, *bare)
    with pytest.raises(ValueError, match="widths 96 \\+ 64 and 64 \\+ 64 are of different models"):
        conditioning.combine(words[0], both(nodes, nodes.load("refiner"))[0])


def test_pictures_of_a_batch_are_those_made_alone(nodes, parts):
    words = both(nodes, parts)
    together = nodes.sample(parts, *words, count=3)
    recipe = noise.seeded(seed=SEED + 2)
    start = nodes.nothing(parts)
    alone = sample(
        parts.unet, words[0], start, recipe, nodes.context, negative=words[1], steps=STEPS, cfg=5.0, sampler="euler"
    )
    assert error(together[2:], alone.data) < 1e-4


def test_align_your_steps_takes_the_levels_of_the_models_family(nodes, parts, root):
    def made(of, schedule, **more):
        return nodes.sample(of, *both(nodes, of), schedule=schedule, **more)

    assert torch.equal(made(parts, "align_your_steps"), made(parts, "align_your_steps_xl"))
    plain(root / "one")
    one = nodes.load("one")
    levels = options.options(levels=(14.615, 6.475, 3.861, 2.697, 1.886, 1.396, 0.963, 0.652, 0.399, 0.152, 0.029))
    listed = made(one, "custom", options=levels, steps=11)
    assert torch.equal(made(one, "align_your_steps", steps=11), listed)
    assert error(made(one, "align_your_steps_xl", steps=11), listed) > 1e-3
