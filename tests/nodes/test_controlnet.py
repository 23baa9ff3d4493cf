"""ControlNets beside diffusers' pipelines, and what shares a UNet call with them."""

from types import SimpleNamespace

import diffusers
import numpy as np
import PIL.Image
import pytest
import torch
from company import together
from diffusers import UNet2DConditionModel
from pipelines import (
    ONE,
    SEED,
    SIZE,
    STEPS,
    TABLE,
    UP,
    XL,
    Nodes,
    controlnet,
    error,
    levels,
    plain,
    seeded,
    xl,
)
from safetensors.torch import save_file
from single_file import renamed

from nodes import controlnet as nets
from nodes import mask, noise
from nodes.diffusion import original
from nodes.diffusion.noise import draw
from nodes.files import ControlNetFile
from nodes.options import options
from nodes.types import Image, Latent

pytestmark = pytest.mark.filterwarnings("ignore:__array_:DeprecationWarning")  # diffusers and numpy 2
NOISE = draw([SEED], (4, SIZE // 8, SIZE // 8))


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    (folder / "controlnet").mkdir()
    return folder


@pytest.fixture(scope="module")
def lines(root):
    return controlnet(root / "controlnet/lines")


@pytest.fixture(scope="module")
def depth(root):
    return controlnet(root / "controlnet/depth", seed=4)


@pytest.fixture(scope="module")
def pipeline(root):
    return plain(root / "one")


@pytest.fixture(scope="module")
def nodes(root, pipeline, lines, depth):
    return Nodes(root)


@pytest.fixture(scope="module")
def parts(nodes):
    return nodes.load("one")


@pytest.fixture(scope="module")
def picture():
    return PIL.Image.fromarray(np.random.default_rng(0).integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8))


@pytest.fixture(scope="module")
def applied(nodes, picture):
    def apply(name, others=None, image=picture, **more):
        net = nets.load(nodes.files.resolve(ControlNetFile, name))
        return nets.apply(net, Image.of(image), others, **more)

    return apply


@pytest.fixture(scope="module")
def words(nodes, parts):
    return nodes.words(parts, "a fox"), nodes.words(parts, "a cat", negative=True)


def asked(**more):
    run = {"num_inference_steps": STEPS, "sigmas": levels(), "guidance_scale": 5.0, "output_type": "latent"}
    return {"prompt": "a fox", "negative_prompt": "a cat", "latents": NOISE} | run | more


@pytest.fixture(scope="module")
def controlled(pipeline):
    def make(net, kind=diffusers.StableDiffusionControlNetPipeline, source=pipeline):
        parts = dict(source.components)
        return kind(**parts, controlnet=net)

    return make


@pytest.fixture(scope="module")
def bench(nodes, parts, words, applied, controlled):
    """All that a comparison needs."""
    return SimpleNamespace(nodes=nodes, parts=parts, words=words, applied=applied, controlled=controlled)


def test_one_controlnet_is_diffusers(bench, lines, picture):
    nodes, parts, words, controlled, applied = bench.nodes, bench.parts, bench.words, bench.controlled, bench.applied
    pipe = controlled(lines)
    pipe.set_progress_bar_config(disable=True)
    theirs = pipe(**asked(image=picture, controlnet_conditioning_scale=0.7)).images
    ours = nodes.sample(parts, *words, control=applied("lines", strength=0.7))
    assert error(ours, theirs) < 1e-4
    assert error(nodes.sample(parts, *words), theirs) > 1e-2


def test_two_controlnets_add_up_as_in_diffusers(bench, lines, depth, picture):
    nodes, parts, words, controlled, applied = bench.nodes, bench.parts, bench.words, bench.controlled, bench.applied
    pipe = controlled([lines, depth])
    pipe.set_progress_bar_config(disable=True)
    flipped = picture.transpose(PIL.Image.Transpose.FLIP_LEFT_RIGHT)
    theirs = pipe(**asked(image=[picture, flipped], controlnet_conditioning_scale=[0.7, 1.5])).images
    both = applied("depth", applied("lines", strength=0.7), image=flipped, strength=1.5)
    assert error(nodes.sample(parts, *words, control=both), theirs) < 1e-4


def test_one_network_may_read_two_pictures(bench, lines, picture):
    nodes, parts, words, controlled, applied = bench.nodes, bench.parts, bench.words, bench.controlled, bench.applied
    pipe = controlled([lines, lines])
    pipe.set_progress_bar_config(disable=True)
    flipped = picture.transpose(PIL.Image.Transpose.FLIP_LEFT_RIGHT)
    theirs = pipe(**asked(image=[picture, flipped], controlnet_conditioning_scale=[0.7, 1.0])).images
    both = applied("lines", applied("lines", strength=0.7), image=flipped)
    assert error(nodes.sample(parts, *words, control=both), theirs) < 1e-4


def test_an_inpainting_controlnet_does_not_see_what_is_masked(bench, lines, picture):
    nodes, parts, words, controlled, applied = bench.nodes, bench.parts, bench.words, bench.controlled, bench.applied
    pipe = controlled(lines)
    pipe.set_progress_bar_config(disable=True)
    hidden = mask.rectangle(SIZE, SIZE, x=8, y=16, w=24, h=32)
    hint = torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None] / 255
    theirs = pipe(**asked(image=torch.where(hidden.data >= 128, -1.0, hint))).images
    assert error(nodes.sample(parts, *words, control=applied("lines", mask=hidden)), theirs) < 1e-4


def test_sdxl_has_controlnets_too(root, nodes, controlled, applied, picture):
    net = controlnet(root / "controlnet/wide", XL)
    pipe = controlled(net, diffusers.StableDiffusionXLControlNetPipeline, xl(root / "xl"))
    pipe.set_progress_bar_config(disable=True)
    theirs = pipe(**asked(image=picture)).images
    parts = nodes.load("xl")
    pair = nodes.words(parts, "a fox"), nodes.words(parts, "a cat", negative=True)
    assert error(nodes.sample(parts, *pair, control=applied("wide")), theirs) < 1e-4
    with pytest.raises(ValueError, match="this ControlNet is for another kind of model: its cross_attention_dim is 64"):
        nodes.sample(parts, *pair, control=applied("lines"))


def way(step):
    """How far down the model's timesteps the level of a step is, a half for one between two steps."""
    first, last = (TABLE.timestep(levels()[place]) for place in (int(step), int(step + 0.5)))
    return 1 - (first + last) / 2 / 999


@pytest.mark.parametrize(("first", "after"), [(0, 2), (0, 3), (1, 3), (2, 4), (3, 4)])
def test_from_start_to_end_it_is_diffusers(bench, lines, picture, first, after):
    """Diffusers counts steps, and ours the model's timesteps: both to where it is at work in these steps alone."""
    pipe = bench.controlled(lines)
    pipe.set_progress_bar_config(disable=True)
    span = {"control_guidance_start": first / STEPS, "control_guidance_end": after / STEPS}
    theirs = pipe(**asked(image=picture, **span)).images
    start, end = way(first - 0.5) if first else 0.0, way(after - 0.5) if after < STEPS else 1.0
    ours = bench.nodes.sample(bench.parts, *bench.words, control=bench.applied("lines", start=start, end=end))
    assert error(ours, theirs) < 1e-5
    whole = bench.nodes.sample(bench.parts, *bench.words, control=bench.applied("lines"))
    assert error(whole, theirs) > 1e-4


def test_two_with_spans_are_two_runs_one_after_another(bench):
    """The one at work in the first two steps, and the other in the last two."""
    nodes, parts, words, applied = bench.nodes, bench.parts, bench.words, bench.applied
    middle = way(1.5)
    both = applied("depth", applied("lines", end=middle), start=middle)
    half = nodes.sample(parts, *words, control=applied("lines"), last=2, leftover=True)
    begun = Latent(half, parts.vae.space)
    rest = {"latent": begun, "first": 2, "options": options(noise_multiplier=0.0)}
    ended = nodes.sample(parts, *words, control=applied("depth"), **rest)
    assert error(nodes.sample(parts, *words, control=both), ended) < 1e-5
    assert error(nodes.sample(parts, *words, control=applied("lines"), **rest), ended) > 1e-3


def test_sd_2_that_predicts_v_has_controlnets_too(root, nodes, controlled, applied, picture):
    """From a file in the original layout, whose heads follow from its widths."""
    second = ONE | {"use_linear_projection": True, "attention_head_dim": 1}
    unet = seeded(lambda: UNet2DConditionModel(**second | UP), 6)
    pipe = controlled(
        controlnet(root / "unread", second, seed=7),
        source=plain(root / "second", unet, prediction_type="v_prediction"),
    )
    pipe.set_progress_bar_config(disable=True)
    tensors = renamed(pipe.controlnet, original.controlnet, "control_model.")
    save_file({name: each.contiguous() for name, each in tensors.items()}, root / "controlnet/second.safetensors")
    theirs = pipe(**asked(image=picture, controlnet_conditioning_scale=0.7)).images
    parts = nodes.load("second")
    pair = nodes.words(parts, "a fox"), nodes.words(parts, "a cat", negative=True)
    assert error(nodes.sample(parts, *pair, control=applied("second.safetensors", strength=0.7)), theirs) < 1e-4
    assert error(nodes.sample(parts, *pair), theirs) > 1e-2


def test_it_is_at_work_in_its_span_only(nodes, parts, words, applied):
    spanned = nodes.sample(parts, *words, control=applied("lines", end=0.5))
    assert error(spanned, nodes.sample(parts, *words)) > 1e-3
    assert error(spanned, nodes.sample(parts, *words, control=applied("lines"))) > 1e-3
    never = nodes.sample(parts, *words, control=applied("lines", strength=0.0))
    assert torch.equal(never, nodes.sample(parts, *words))


def test_calls_with_and_without_controlnets_share_unet_calls(nodes, parts, words, applied):
    controls = [None, applied("lines"), applied("depth", applied("lines", strength=0.3)), applied("lines", start=0.5)]
    call = {
        "unet": parts.unet,
        "positive": words[0],
        "negative": words[1],
        "latent": nodes.nothing(parts),
        "context": nodes.context,
        "steps": STEPS,
        "cfg": 5.0,
        "denoise": 1.0,
        "sampler": "euler",
        "schedule": "karras",
    }
    calls = [call | {"control": each, "noise": noise.seeded(seed=SEED + n)} for n, each in enumerate(controls)]
    made = together(calls)
    alone = [together([each])[0] for each in calls]
    for one, other in zip(made, alone, strict=True):
        assert error(one.data, other.data) < 1e-4
    assert error(made[1].data, made[3].data) > 1e-3


def test_a_picture_of_another_size_is_stretched(nodes, parts, words, applied, picture):
    larger = picture.resize((2 * SIZE, 2 * SIZE), PIL.Image.Resampling.NEAREST)
    ours = nodes.sample(parts, *words, control=applied("lines", image=larger))
    assert error(ours, nodes.sample(parts, *words, control=applied("lines"))) < 0.1


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"start": 0.5, "end": 0.5}, "it begins at 0.5 and ends at 0.5: expected an end after the start"),
        (
            {"mask": mask.rectangle(32, 32, x=0, y=0, w=8, h=8)},
            "the mask is 32 x 32 px: expected the size of the image, 64 x 64 px",
        ),
    ],
)
def test_what_makes_no_sense_is_refused(nodes, applied, more, said):
    with pytest.raises(ValueError, match=said):
        applied("lines", **more)


def test_a_control_survives_the_disk(applied):
    made = applied("depth", applied("lines", strength=0.7), mask=mask.rectangle(SIZE, SIZE, x=0, y=0, w=8, h=8))
    made.check()
    again = type(made).unpack(made.pack())
    assert again.hints == made.hints
    assert again.identity() == made.identity()
    assert [tuple(each.shape) for each in again.masks] == [(0, 1, 1, 1), (1, 1, SIZE, SIZE)]
