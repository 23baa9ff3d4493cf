"""Noise levels that end without any signal, beside diffusers' schedulers with `rescale_betas_zero_snr`.

Diffusers takes 2**-24 for what is left of the signal's variance, so that Euler's highest level is 4096; a folder that
says it is rescaled has that too. `model.sampling` takes ComfyUI's number, 4518.8, and agrees where diffusers is told
our levels. DDIM in diffusers begins at infinity, where only noise is seen: ours differ by what is left of the signal,
which is a share of 1 / 4518, times what the guidance makes of it.
"""

import diffusers
import pytest
import torch
from pipelines import BETAS, SEED, SIZE, STEPS, TABLE, Nodes, error, plain

from nodes import model, options
from nodes.diffusion.noise import draw
from nodes.diffusion.schedule import simple

pytestmark = pytest.mark.filterwarnings("ignore:__array_:DeprecationWarning")  # diffusers and numpy 2
PROMPTS = "a fox in the snow", "a cat"
NOISE = draw([SEED], (4, SIZE // 8, SIZE // 8))
V, ZERO = {"prediction_type": "v_prediction"}, {"rescale_betas_zero_snr": True}
TRAILING = {"timestep_spacing": "trailing", "steps_offset": 1}
RESCALED = TABLE.with_zero_snr()


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("models")


@pytest.fixture(scope="module")
def pipeline(root):
    """One that predicts v, whose folder says that it is rescaled; the same weights in a folder that says neither."""
    made = plain(root / "said")
    made.save_pretrained(root / "unsaid")
    made.scheduler = diffusers.EulerDiscreteScheduler(**BETAS | V | ZERO | TRAILING)
    made.save_pretrained(root / "said")
    return made


@pytest.fixture(scope="module")
def nodes(root, pipeline):
    return Nodes(root)


@pytest.fixture(scope="module")
def told(nodes):
    """The parts of the folder that says nothing, told."""
    parts = nodes.load("unsaid")
    return parts._replace(unet=model.sampling(parts.unet, prediction="v_prediction", zero_snr=True))


@pytest.fixture(scope="module")
def ask(pipeline):
    """What diffusers makes under a scheduler."""

    def run(scheduler, **more):
        parts = pipeline.components | {"scheduler": scheduler}
        made = diffusers.StableDiffusionPipeline(**parts, requires_safety_checker=False)
        made.set_progress_bar_config(disable=True)
        prompts = dict(zip(("prompt", "negative_prompt"), PROMPTS, strict=True))
        sizes = {"height": SIZE, "width": SIZE, "latents": NOISE, "num_inference_steps": STEPS}
        return made(**prompts, **sizes, guidance_scale=5.0, output_type="latent", **more).images

    return run


def made(nodes, parts, **more):
    return nodes.sample(parts, *nodes.both(parts, PROMPTS), **{"schedule": "simple"} | more)


def test_the_simple_schedule_is_diffusers_trailing_spacing():
    scheduler = diffusers.EulerDiscreteScheduler(**BETAS | TRAILING)
    for steps in (4, 5, 8, 20, 25, 50):
        scheduler.set_timesteps(steps)
        assert [round(TABLE.timestep(level)) for level in simple(TABLE, steps).tolist()[:-1]] == [
            round(timestep) for timestep in scheduler.timesteps.tolist()
        ]


@pytest.mark.parametrize("rescale", [0.0, 0.7])
def test_a_folder_that_says_it_is_diffusers_euler(nodes, ask, rescale):
    """At its own levels, those of trailing timesteps, the first of them 4096."""
    theirs = ask(diffusers.EulerDiscreteScheduler(**BETAS | V | ZERO | TRAILING), guidance_rescale=rescale)
    parts = nodes.load("said")
    ours = made(nodes, parts, options=options.options(cfg_rescale=rescale))
    assert nodes.context.model(parts.unet).table.sigma_max == pytest.approx(4096, rel=1e-4)
    assert error(ours, theirs) < 1e-4


def test_a_model_that_is_told_so_is_diffusers_euler_at_the_same_levels(nodes, told, ask):
    levels = simple(RESCALED, STEPS).tolist()
    assert levels[0] == pytest.approx(4518.8, abs=0.1)
    theirs = ask(diffusers.EulerDiscreteScheduler(**BETAS | V | ZERO | TRAILING), sigmas=levels)
    assert error(made(nodes, told), theirs) < 1e-4


def test_a_folder_that_says_it_may_be_told_so_once_more(nodes):
    parts = nodes.load("said")
    again = parts._replace(unet=model.sampling(parts.unet, zero_snr=True))
    assert torch.equal(made(nodes, again), made(nodes, parts))


def test_it_differs_from_diffusers_own_level_by_what_is_left_there(nodes, told):
    ours, theirs = made(nodes, told), made(nodes, nodes.load("said"))
    assert 0 < error(ours, theirs) < 5e-4


@pytest.mark.parametrize("sampler", ["ddim", "euler"])
def test_it_is_ddim_but_for_the_level_of_infinity(nodes, told, ask, sampler):
    """DDIM without noise is Euler in other words, so both of ours are meant."""
    scheduler = diffusers.DDIMScheduler(**BETAS | V | ZERO | TRAILING, clip_sample=False, set_alpha_to_one=True)
    assert error(made(nodes, told, sampler=sampler), ask(scheduler)) < 5e-4


def test_without_it_the_picture_is_another(nodes, told):
    parts = nodes.load("unsaid")
    half = parts._replace(unet=model.sampling(parts.unet, prediction="v_prediction"))
    assert error(made(nodes, half), made(nodes, told)) > 1e-2


def test_a_picture_may_begin_without_any_signal(nodes, told):
    """A latent of another brightness is not seen at the highest level, which a common schedule lets through."""
    words, start = nodes.both(told, PROMPTS), nodes.nothing(told)
    bright = type(start)(torch.full_like(start.data, 2.0), start.space)
    parts = nodes.load("unsaid")
    half = parts._replace(unet=model.sampling(parts.unet, prediction="v_prediction"))
    seen = [
        error(*(nodes.sample(one, *words, latent=each, schedule="simple") for each in (bright, start)))
        for one in (told, half)
    ]
    assert seen[0] < 2e-3
    assert seen[1] > 2e-2
