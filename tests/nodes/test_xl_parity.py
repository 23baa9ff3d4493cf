"""SDXL from pictures, from one file and under embeddings, beside diffusers' pipelines."""

from copy import deepcopy

import diffusers
import pytest
import torch
from pipelines import SEED, SIZE, STEPS, Nodes, apart, by_mean, error, levels, photograph, scheduler, xl
from safetensors.torch import save_file
from single_file import everything_xl, shaken, tiny_big_g, tiny_clip, tiny_vae, tiny_xl_unet
from transformers import CLIPTokenizer

from nodes import model, text
from nodes.diffusion import load, original
from nodes.diffusion.checkpoint import TOKENIZER
from nodes.diffusion.noise import draw
from nodes.files import LoraFile, PromptText

pytestmark = pytest.mark.filterwarnings("ignore:__array_:DeprecationWarning")  # diffusers and numpy 2
PROMPTS = "a fox in the snow, (sharp)", "a cat"
NOISE = draw([SEED], (4, SIZE // 8, SIZE // 8))
FORMS = ["folder", "file.safetensors"]
LAYERS = tuple(
    f"{layer}.weight" for layer in ("to_q", "to_v", "to_out.0", "proj_in", "ff.net.2", "conv1", "q_proj", "fc1")
)
"""Those that the LoRA changes."""


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    (folder / "embeddings").mkdir()
    (folder / "loras").mkdir()
    return folder


@pytest.fixture(scope="module")
def pipeline(root):
    """SDXL with the widths of heads of the true one, in both forms."""
    torch.manual_seed(4)
    unet, vae = tiny_xl_unet(sample_size=SIZE // 8), tiny_vae(4, scaling_factor=0.13025)
    unet, vae, first, second = map(shaken, (unet, vae, tiny_clip(), tiny_big_g()))
    made = diffusers.StableDiffusionXLPipeline(
        unet=unet,
        vae=vae,
        text_encoder=first,
        text_encoder_2=second,
        tokenizer=CLIPTokenizer.from_pretrained(TOKENIZER),
        tokenizer_2=CLIPTokenizer.from_pretrained(TOKENIZER, pad_token="!"),
        scheduler=scheduler(),
        add_watermarker=False,
    )
    made.set_progress_bar_config(disable=True)
    made.save_pretrained(root / FORMS[0])
    tensors = everything_xl(unet, vae, first, second)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, root / FORMS[1])
    return made


@pytest.fixture(scope="module")
def onward(pipeline):
    """The same that begins with a picture."""
    return by_mean(diffusers.StableDiffusionXLImg2ImgPipeline(**pipeline.components, add_watermarker=False))


@pytest.fixture(scope="module")
def embedded(root):
    """A pipeline that was taught a word of two vectors, which lies in our folder too."""
    pipeline = xl(root / "embedded")
    made = torch.Generator().manual_seed(6)
    vectors = {name: 0.1 * torch.randn(2, width, generator=made) for name, width in (("clip_l", 32), ("clip_g", 64))}
    save_file(vectors, root / "embeddings/vulpes.safetensors")
    sides = ((pipeline.text_encoder, pipeline.tokenizer), (pipeline.text_encoder_2, pipeline.tokenizer_2))
    for tensor, (encoder, tokenizer) in zip(vectors.values(), sides, strict=True):
        pipeline.load_textual_inversion(
            {"<vulpes>": tensor}, token="<vulpes>", text_encoder=encoder, tokenizer=tokenizer
        )
    return pipeline


@pytest.fixture(scope="module")
def merged(root, pipeline):
    """The pipeline with a LoRA in its weights, which lies in our folder as kohya's trainer writes it for SDXL.

    The UNet's layers have their first names there, those of the text encoders the ones that transformers has.
    """
    changed = diffusers.StableDiffusionXLPipeline(
        **{name: deepcopy(each) for name, each in pipeline.components.items()}, add_watermarker=False
    )
    changed.set_progress_bar_config(disable=True)
    made, tensors = torch.Generator().manual_seed(5), {}
    first = original.tensors(pipeline.unet.state_dict(), original.unet)
    for part, prefix, strength in (
        ("unet", "unet", 0.8),
        ("text_encoder", "te1", -0.6),
        ("text_encoder_2", "te2", -0.6),
    ):
        for name, weight in getattr(changed, part).named_parameters():
            if not name.endswith(LAYERS):
                continue
            place = first[name] if part == "unet" else f"text_model.{name.removeprefix('text_model.')}"
            down = 0.2 * torch.randn(2, *weight.shape[1:], generator=made)
            up = 0.2 * torch.randn(len(weight), 2, *[1] * (weight.ndim - 2), generator=made)
            key = f"lora_{prefix}_{place.removesuffix('.weight').replace('.', '_')}"
            tensors |= {f"{key}.lora_down.weight": down, f"{key}.lora_up.weight": up, f"{key}.alpha": torch.tensor(1.5)}
            weight.data += strength * 1.5 / 2 * torch.einsum("or,r...->o...", up.flatten(1), down)
    save_file(tensors, root / "loras/ink.safetensors")
    return changed


@pytest.fixture(scope="module")
def nodes(root, pipeline, embedded, merged):
    return Nodes(root)


def asked(**more):
    run = {"num_inference_steps": STEPS, "sigmas": levels(), "guidance_scale": 5.0, "output_type": "latent"}
    return dict(zip(("prompt", "negative_prompt"), PROMPTS, strict=True)) | run | more


@pytest.mark.parametrize("form", FORMS)
def test_text_to_image_is_diffusers(nodes, pipeline, form):
    parts = nodes.load(form)
    ours = nodes.sample(parts, *nodes.both(parts, PROMPTS))
    assert error(ours, pipeline(**asked(latents=NOISE)).images) < 1e-4
    assert apart(nodes.decode(parts, ours), pipeline(**asked(latents=NOISE, output_type="pt")).images) <= 1


@pytest.mark.parametrize("form", FORMS)
def test_image_to_image_is_diffusers(nodes, onward, form):
    """From the pixels: diffusers runs the last half of twice the steps."""
    parts, picture = nodes.load(form), photograph()
    run = asked(image=picture, strength=0.5, sigmas=levels(steps=2 * STEPS), num_inference_steps=2 * STEPS)
    theirs = onward(**run, generator=torch.Generator().manual_seed(SEED)).images
    start = nodes.encode(parts, picture)
    ours = nodes.sample(parts, *nodes.both(parts, PROMPTS), latent=start, denoise=0.5)
    assert error(ours, theirs) < 1e-4
    assert error(start.data, theirs) > 1e-2


def test_the_file_gives_the_folders_very_bits(root, nodes):
    assert load.described(root / FORMS[1]) == "SDXL"
    made = [nodes.load(form) for form in FORMS]
    assert made[0].vae.space == made[1].vae.space
    words = [nodes.both(parts, PROMPTS) for parts in made]
    for one, other in zip(*words, strict=True):
        assert torch.equal(one.data, other.data)
        assert torch.equal(one.pooled, other.pooled)
    ours, theirs = (nodes.sample(parts, *pair) for parts, pair in zip(made, words, strict=True))
    assert torch.equal(ours, theirs)
    assert torch.equal(*(nodes.decode(parts, ours) for parts in made))


def test_an_embedding_is_what_diffusers_puts_into_both_encoders(nodes, embedded):
    parts = nodes.load("embedded")
    prompt, said = "a {} in the snow", {}
    for word in ("embedding:vulpes", "vulpes"):
        read = nodes.files.resolve(PromptText, prompt.format(word))
        said[word] = text.encode(parts.text, nodes.context, text=read, weighting="none")
    theirs, _, pooled, _ = embedded.encode_prompt(
        prompt.format("<vulpes>"), device="cpu", do_classifier_free_guidance=False
    )
    for ours in said.values():
        assert error(ours.data, theirs) < 1e-5
        assert error(ours.pooled, pooled) < 1e-5
    words = nodes.words(parts, prompt.format("wolf"))
    assert min(error(words.data[..., part], theirs[..., part]) for part in (slice(32), slice(32, 96))) > 1e-2
    assert error(words.pooled, pooled) > 1e-2


def test_a_picture_under_an_embedding_is_diffusers(nodes, embedded):
    parts = nodes.load("embedded")
    read = nodes.files.resolve(PromptText, "a vulpes in the snow")
    positive = text.encode(parts.text, nodes.context, text=read, weighting="none")
    ours = nodes.sample(parts, positive, nodes.both(parts, PROMPTS)[1])
    run = asked(prompt="a <vulpes> in the snow", latents=NOISE, height=SIZE, width=SIZE)
    assert error(ours, embedded(**run).images) < 1e-4


@pytest.mark.parametrize("form", FORMS)
def test_a_lora_under_the_first_names_is_weights_that_were_merged(nodes, merged, form):
    parts, source = nodes.load(form), nodes.files.resolve(LoraFile, "ink")
    made = model.lora(parts.unet, parts.text, source, 0.8, -0.6)
    under = parts._replace(unet=made.unet, text=made.text)
    words = nodes.both(under, PROMPTS)
    theirs, _, pooled, _ = merged.encode_prompt(PROMPTS[0], device="cpu", do_classifier_free_guidance=False)
    assert error(words[0].data, theirs) < 1e-5
    assert error(words[0].pooled, pooled) < 1e-5
    ours = nodes.sample(under, *words)
    assert error(ours, merged(**asked(latents=NOISE)).images) < 1e-4
    assert error(ours, nodes.sample(parts, *nodes.both(parts, PROMPTS))) > 1e-2
