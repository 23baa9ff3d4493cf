"""A LoRA for SDXL changes the UNet and both text encoders, as if their weights had been merged."""

import pytest
import torch
from pipelines import SEED, SIZE, STEPS, Nodes, error, levels, plain, refiner, xl
from safetensors.torch import save_file

from nodes import model
from nodes.diffusion.noise import draw
from nodes.diffusion.tensors import LoadError
from nodes.files import LoraFile
from nodes.types import Loras

pytestmark = pytest.mark.filterwarnings("ignore:__array_:DeprecationWarning")  # diffusers and numpy 2
PROMPT, NEGATIVE = "a fox in the snow", "a cat"
PREFIXES = {"unet": "lora_unet_", "text_encoder": "lora_te1_text_model_", "text_encoder_2": "lora_te2_text_model_"}
CHANGED = ("to_q", "to_v", "proj_in", "q_proj", "fc1", "conv1")
ALPHA, UNET, TEXT = 1.5, 0.8, -0.6


def low_rank(pipeline, parts=PREFIXES):
    """A LoRA of rank 2 in kohya's layout, and what it adds to each weight at full strength."""
    made, tensors, deltas = torch.Generator().manual_seed(1), {}, {}
    for part in parts:
        for name, inner in getattr(pipeline, part).named_modules():
            if not name.endswith(CHANGED):
                continue
            weight = inner.weight
            down = torch.randn(2, *weight.shape[1:], generator=made) * 0.2
            up = torch.randn(len(weight), 2, *[1] * (weight.ndim - 2), generator=made) * 0.2
            key = PREFIXES[part] + name.removeprefix("text_model.").replace(".", "_")
            tensors |= {
                f"{key}.lora_down.weight": down,
                f"{key}.lora_up.weight": up,
                f"{key}.alpha": torch.tensor(ALPHA),
            }
            deltas[part, name] = ALPHA / 2 * torch.einsum("or,r...->o...", up.flatten(1), down)
    return tensors, deltas


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    (folder / "loras").mkdir()
    return folder


@pytest.fixture(scope="module")
def merged(root):
    """SDXL whose weights were merged with the LoRA after it was saved."""
    pipeline = xl(root / "xl")
    tensors, deltas = low_rank(pipeline)
    save_file(tensors, root / "loras/ink.safetensors")
    second = {key: tensor for key, tensor in tensors.items() if key.startswith("lora_te2_")}
    save_file(second, root / "loras/second.safetensors")
    for (part, name), delta in deltas.items():
        strength = UNET if part == "unet" else TEXT
        getattr(pipeline, part).get_parameter(f"{name}.weight").add_(delta, alpha=strength)
    return pipeline


@pytest.fixture(scope="module")
def nodes(root, merged):
    plain(root / "plain")
    refiner(root / "refiner")
    return Nodes(root)


def patched(nodes, name, source="ink", unet=UNET, text=TEXT):
    """The parts of a model under a LoRA."""
    parts = nodes.load(name)
    made = model.lora(parts.unet, parts.text, nodes.files.resolve(LoraFile, source), unet, text)
    return parts._replace(unet=made.unet, text=made.text)


def test_states_of_both_encoders_and_the_pooled_ones_are_those_of_merged_weights(nodes, merged):
    theirs, _, pooled, _ = merged.encode_prompt(PROMPT, device="cpu", do_classifier_free_guidance=False)
    ours, bare = nodes.words(patched(nodes, "xl"), PROMPT), nodes.words(nodes.load("xl"), PROMPT)
    assert error(ours.data, theirs) < 1e-5
    assert error(ours.pooled, pooled) < 1e-5
    assert min(error(bare.data[..., :32], theirs[..., :32]), error(bare.data[..., 32:], theirs[..., 32:])) > 0.01
    assert error(bare.pooled, pooled) > 0.01


def test_a_picture_is_that_of_merged_weights(nodes, merged):
    parts = patched(nodes, "xl")
    ours = nodes.sample(parts, nodes.words(parts, PROMPT), nodes.words(parts, NEGATIVE, negative=True))
    theirs = merged(
        PROMPT,
        negative_prompt=NEGATIVE,
        latents=draw([SEED], (4, SIZE // 8, SIZE // 8)),
        num_inference_steps=STEPS,
        sigmas=levels(),
        guidance_scale=5.0,
        output_type="latent",
        width=SIZE,
        height=SIZE,
    ).images
    assert error(ours, theirs) < 1e-4


def test_each_part_shares_what_is_not_changed(nodes):
    below, above = (nodes.context.model(parts.text) for parts in (nodes.load("xl"), patched(nodes, "xl")))
    for base, made, own in zip(below.towers, above.towers, above.own, strict=True):
        weights = dict(base.encoder.named_parameters())
        changed = {name for name, weight in made.encoder.named_parameters() if weight is not weights[name]}
        assert changed == set(own)
        assert {name.split(".")[-2] for name in own} == {"q_proj", "fc1"}


def test_the_refiner_takes_what_is_for_the_second_encoder(nodes):
    words, bare = (nodes.words(parts, PROMPT) for parts in (patched(nodes, "refiner", "second"), nodes.load("refiner")))
    assert error(words.data, bare.data) > 0.01


@pytest.mark.parametrize(
    ("name", "source", "said"),
    [
        (
            "plain",
            "ink",
            "has UNet and text encoder alone .*, found changes of the second text encoder, as it is made for",
        ),
        (
            "plain",
            "second",
            "has UNet and text encoder alone .*, found changes of the second text encoder, as it is made",
        ),
        (
            "refiner",
            "ink",
            "has UNet and second text encoder alone .*, found changes of the text encoder, as it is made",
        ),
    ],
)
def test_one_for_a_text_encoder_that_a_model_lacks_is_refused(nodes, name, source, said):
    with pytest.raises(LoadError, match=rf"{source}\.safetensors: expected a LoRA for a model that {said}"):
        nodes.words(patched(nodes, name, source), PROMPT)


def test_one_for_another_unet_is_refused_though_its_text_encoders_are_left_alone(nodes):
    parts = patched(nodes, "plain", text=0.0)
    with pytest.raises(
        LoadError, match=r"ink\.safetensors: expected a LoRA for a model that has UNet and text encoder"
    ):
        nodes.context.model(parts.unet)


def test_tags_with_two_strengths_put_it_on_all_parts(nodes):
    parts, digest = nodes.load("xl"), nodes.files.resolve(LoraFile, "ink").digest.hex()
    assert model.loras(parts.unet, parts.text, Loras(((digest, TEXT, UNET),))) == patched(nodes, "xl")[:2]
