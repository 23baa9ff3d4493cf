"""SD 2.x that predicts v, from a folder and from a file in the original layout, beside diffusers' pipelines."""

import diffusers
import pytest
import torch
from pipelines import SEED, STEPS, Nodes, apart, by_mean, error, levels, photograph, scheduler
from safetensors.torch import save_file
from single_file import UNET, VAE, open_clip, renamed, shaken, tiny_clip, tiny_unet, tiny_vae
from transformers import CLIPTokenizer

from nodes import model, text
from nodes.diffusion import load, original
from nodes.diffusion.checkpoint import TOKENIZER, V_BIAS
from nodes.diffusion.noise import draw

pytestmark = pytest.mark.filterwarnings("ignore:__array_:DeprecationWarning")  # diffusers and numpy 2
PROMPTS = "a fox in the snow, (sharp)", "a cat"
SIDE = 128
"""Of less a tiny UNet with four levels leaves too little on the deepest, whose norms then magnify last bits."""
NOISE = draw([SEED], (4, SIDE // 8, SIDE // 8))
FORMS = ["folder", "file.safetensors"]
SIZES = {
    "sample_size": SIDE // 8,
    "block_out_channels": (32, 32, 64, 64),
    "layers_per_block": 2,
    "attention_head_dim": (1, 1, 1, 1),
    "use_linear_projection": True,
    "upcast_attention": True,
    "down_block_types": (*["CrossAttnDownBlock2D"] * 3, "DownBlock2D"),
    "up_block_types": ("UpBlock2D", *["CrossAttnUpBlock2D"] * 3),
}
"""The blocks of SD 2.x, narrow."""


@pytest.fixture(scope="module")
def pipeline():
    """All is random; one bias of the UNet deviates so much as in those that were trained to predict v."""
    torch.manual_seed(2)
    unet, vae, encoder = map(shaken, (tiny_unet(**SIZES), tiny_vae(4), tiny_clip(hidden_act="gelu")))
    telling = dict(original.tensors(unet.state_dict(), original.unet))
    [name] = [name for name, place in telling.items() if place == V_BIAS]
    unet.get_parameter(name).data = 0.2 * torch.tensor([1.0, -1.0]).repeat(16)
    made = diffusers.StableDiffusionPipeline(
        unet=unet,
        vae=vae,
        text_encoder=encoder,
        tokenizer=CLIPTokenizer.from_pretrained(TOKENIZER, pad_token="!"),
        scheduler=scheduler(prediction_type="v_prediction"),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    made.set_progress_bar_config(disable=True)
    return made


@pytest.fixture(scope="module")
def onward(pipeline):
    """The same that begins with a picture."""
    return by_mean(diffusers.StableDiffusionImg2ImgPipeline(**pipeline.components, requires_safety_checker=False))


@pytest.fixture(scope="module")
def root(tmp_path_factory, pipeline):
    folder = tmp_path_factory.mktemp("models")
    pipeline.save_pretrained(folder / "folder")
    tensors = {
        **renamed(pipeline.unet, original.unet, UNET),
        **renamed(pipeline.vae, original.vae, VAE),
        **open_clip(pipeline.text_encoder, unused=1),
    }
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "file.safetensors")
    return folder


@pytest.fixture(scope="module")
def nodes(root):
    return Nodes(root)


def drawn(nodes, parts):
    """Text to image."""
    return nodes.sample(parts, *nodes.both(parts, PROMPTS), latent=nodes.nothing(parts, SIDE, SIDE))


def asked(**more):
    run = {"num_inference_steps": STEPS, "sigmas": levels(), "guidance_scale": 5.0, "output_type": "latent"}
    return dict(zip(("prompt", "negative_prompt"), PROMPTS, strict=True)) | run | more


def test_both_forms_are_recognised(root, nodes):
    assert load.described(root / FORMS[1]) == "SD 2.x"
    for form in FORMS:
        found = nodes.context.model(nodes.load(form).unet)
        assert found.table.prediction == "v_prediction"


@pytest.mark.parametrize("form", FORMS)
def test_conditionings_are_the_pipelines(nodes, pipeline, form):
    positive, negative = pipeline.encode_prompt(
        PROMPTS[0], "cpu", num_images_per_prompt=1, do_classifier_free_guidance=True, negative_prompt=PROMPTS[1]
    )
    for ours, theirs in zip(nodes.both(nodes.load(form), PROMPTS), (positive, negative), strict=True):
        assert error(ours.data, theirs) < 1e-6


@pytest.mark.parametrize("form", FORMS)
def test_text_to_image_is_stable_diffusion_pipeline(nodes, pipeline, form):
    parts = nodes.load(form)
    theirs = pipeline(**asked(latents=NOISE)).images
    ours = drawn(nodes, parts)
    assert error(ours, theirs) < 1e-4
    assert apart(nodes.decode(parts, ours), pipeline(**asked(latents=NOISE, output_type="pt")).images) <= 1


@pytest.mark.parametrize("form", FORMS)
def test_image_to_image_is_stable_diffusion_img2img_pipeline(nodes, onward, form):
    """From the pixels: diffusers runs the last half of twice the steps."""
    parts, picture = nodes.load(form), photograph(SIDE)
    run = asked(image=picture, strength=0.5, sigmas=levels(steps=2 * STEPS), num_inference_steps=2 * STEPS)
    theirs, shown = (
        onward(**run | {"generator": torch.Generator().manual_seed(SEED), "output_type": kind}).images
        for kind in ("latent", "pt")
    )
    start = nodes.encode(parts, picture)
    ours = nodes.sample(parts, *nodes.both(parts, PROMPTS), latent=start, denoise=0.5)
    assert error(ours, theirs) < 1e-4
    assert error(start.data, theirs) > 1e-2
    assert apart(nodes.decode(parts, ours), shown) <= 1


def test_the_file_gives_the_folders_very_bits(nodes):
    made = [nodes.load(form) for form in FORMS]
    ours, theirs = (drawn(nodes, parts) for parts in made)
    assert torch.equal(ours, theirs)
    assert torch.equal(*(nodes.decode(parts, ours) for parts in made))


def test_it_is_not_taken_for_one_that_predicts_noise(nodes, pipeline):
    parts = nodes.load("folder")
    other = parts._replace(unet=model.sampling(parts.unet, prediction="epsilon"))
    plain = diffusers.StableDiffusionPipeline(
        **pipeline.components | {"scheduler": scheduler()},
        requires_safety_checker=False,
    )
    plain.set_progress_bar_config(disable=True)
    ours = drawn(nodes, other)
    assert error(ours, plain(**asked(latents=NOISE)).images) < 1e-4
    assert error(ours, drawn(nodes, parts)) > 0.1


@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize(("skip", "layer"), [(1, -1), (2, -1), (3, -2)])
def test_clip_skip_begins_at_the_last_layer_but_one_as_the_last_is_never_loaded(nodes, pipeline, name, skip, layer):
    """So 2 is ComfyUI's -2, and 3 its -3; `layer` is one of those that are left."""
    words = text.encode(text.clip_skip(nodes.load(name).text, skip), nodes.context, text="a fox")
    told = pipeline.tokenizer("a fox", padding="max_length", return_tensors="pt").input_ids
    states = pipeline.text_encoder(told, output_hidden_states=True).hidden_states[layer]
    assert error(words.data, pipeline.text_encoder.final_layer_norm(states)) < 1e-6


def test_a_clip_skip_counts_the_layer_that_is_not_loaded_too(nodes):
    with pytest.raises(ValueError, match=r"clip skip 4: this text encoder has 3 layers, expected 1\.\.3"):
        text.encode(text.clip_skip(nodes.load("folder").text, 4), nodes.context, text="a fox")
