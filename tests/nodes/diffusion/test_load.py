import json
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import CLIPTextConfig, CLIPTextModelWithProjection

from nodes.diffusion import load
from nodes.diffusion.load import LoadError


@pytest.fixture
def model(pocket, tmp_path):
    """A copy of the pocket model whose files may be damaged."""
    return shutil.copytree(pocket, tmp_path / "model")


@pytest.fixture
def xl(model):
    """The same laid out as SDXL is: two text encoders, the second with a projection."""
    encoder = CLIPTextModelWithProjection(
        CLIPTextConfig(hidden_size=64, intermediate_size=64, num_hidden_layers=1, num_attention_heads=1)
    )
    encoder.save_pretrained(model / "text_encoder_2")
    shutil.copytree(model / "tokenizer", model / "tokenizer_2")
    edit(model / "unet" / "config.json", addition_embed_type="text_time")
    return model


def edit(path, **changed):
    path.write_text(json.dumps(json.loads(path.read_text()) | changed))


@pytest.mark.parametrize("part", [load.unet, load.vae, load.text_encoder])
def test_parts_come_ready_to_use(part, pocket):
    module = part(pocket, dtype=torch.bfloat16)
    assert not module.training
    assert {parameter.dtype for parameter in module.parameters()} == {torch.bfloat16}
    assert not any(parameter.requires_grad for parameter in module.parameters())


def test_the_default_is_float32_on_the_cpu(unet, vae, text_encoder):
    for module in (unet, vae, text_encoder):
        assert (module.dtype, module.device) == (torch.float32, torch.device("cpu"))


def test_the_schedule_is_read_from_the_scheduler_config(pocket, table):
    assert load.schedule(pocket) == table


def test_loading_is_silent_and_opens_no_connection(pocket, monkeypatch, capfd, caplog):
    def refuse(*_):
        raise AssertionError("a connection was opened")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    for part in (load.unet, load.vae, load.text_encoder, load.tokenizer, load.schedule):
        part(str(pocket))
    assert capfd.readouterr() == ("", "")
    assert caplog.records == []


def test_the_libraries_are_imported_only_when_something_is_loaded():
    modules = ["drive", "guidance", "load", "noise", "sampler", "schedule", "text", "vae"]
    imports = "; ".join(f"import nodes.diffusion.{module}" for module in modules)
    check = f"import sys; {imports}; assert not {{'diffusers', 'transformers'}} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", check], check=True, cwd=Path(__file__).parents[3])


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder", "tokenizer", "schedule"])
def test_a_missing_folder_is_named(part, tmp_path):
    folder = "scheduler" if part == "schedule" else part
    with pytest.raises(LoadError, match=rf"{folder}: expected the {folder} folder of a diffusers model, found nothing"):
        getattr(load, part)(tmp_path)


@pytest.mark.parametrize(
    ("part", "file", "changed", "problem"),
    [
        ("unet", "unet/config.json", {"_class_name": "SD3Transformer2DModel"}, "UNet2DConditionModel, found 'SD3Tr"),
        ("unet", "unet/config.json", {"in_channels": 8}, "for inpainting twice as many and one, found 8 in and 4 out"),
        ("unet", "unet/config.json", {"addition_embed_type": "image"}, "null or 'text_time', found 'image'"),
        ("vae", "vae/config.json", {"_class_name": "AutoencoderTiny"}, "AutoencoderKL, found 'AutoencoderTiny'"),
        ("vae", "vae/config.json", {"latents_mean": [0.0]}, "latents_mean null"),
        ("text_encoder", "text_encoder/config.json", {"architectures": ["T5EncoderModel"]}, "found 'T5EncoderModel'"),
        ("text_encoder", "text_encoder/config.json", {"architectures": None}, "class CLIPTextModel, found None"),
        ("tokenizer", "tokenizer/tokenizer_config.json", {"tokenizer_class": "T5Tokenizer"}, "found 'T5Tokenizer'"),
        ("schedule", "scheduler/scheduler_config.json", {"prediction_type": "sample"}, "prediction_type: expected one"),
        ("schedule", "scheduler/scheduler_config.json", {"beta_start": None}, "expected a supported noise schedule"),
    ],
)
def test_an_unsupported_config_is_named(part, file, changed, problem, model):
    edit(model / file, **changed)
    with pytest.raises(LoadError, match=problem) as refused:
        getattr(load, part)(model)
    assert refused.value.path == model / file


def test_an_inpainting_unet_takes_more_channels_than_it_gives(model):
    weights = model / "unet" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(weights)
    tensors["conv_in.weight"] = tensors["conv_in.weight"].repeat(1, 3, 1, 1)[:, :9].contiguous()
    save_file(tensors, weights)
    edit(model / "unet" / "config.json", in_channels=9)
    unet = load.unet(model)
    with torch.no_grad():
        assert unet(torch.zeros(1, 9, 8, 8), 5, torch.zeros(1, 77, 128)).sample.shape == (1, 4, 8, 8)
    assert load.unet_inputs(model) == 9


def test_a_vae_may_stand_alone(model):
    expected = load.vae(model).state_dict()
    alone = (model / "vae").rename(model.parent / "alone")
    assert load.latent_space(alone) == {"channels": 4, "downscale": 8, "scaling": 0.18215, "shift": 0.0}
    assert all(torch.equal(expected[name], weight) for name, weight in load.vae(alone).state_dict().items())


@pytest.mark.parametrize(("content", "problem"), [("{", "expected JSON"), ("[]", "expected a JSON object, found list")])
def test_a_broken_config_is_named(content, problem, model):
    (model / "unet" / "config.json").write_text(content)
    with pytest.raises(LoadError, match=problem):
        load.unet(model)


def test_a_missing_config_is_named(model):
    (model / "vae" / "config.json").unlink()
    with pytest.raises(LoadError, match=r"vae/config.json: expected a config file, found nothing"):
        load.vae(model)


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder"])
def test_weights_cut_short_are_refused(part, model):
    [weights] = (model / part).glob("*.safetensors")
    weights.write_bytes(weights.read_bytes()[:100_000])
    with pytest.raises(LoadError, match="expected a safetensors file, found a damaged one"):
        getattr(load, part)(model)


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder"])
def test_weights_that_lack_a_tensor_are_refused(part, model):
    """Both libraries would otherwise fill it with random numbers."""
    [weights] = (model / part).glob("*.safetensors")
    tensors = load_file(weights)
    lost = min(tensors)
    del tensors[lost]
    save_file(tensors, weights, metadata={"format": "pt"})
    with pytest.raises(LoadError, match=lost.removeprefix("text_model.")):
        getattr(load, part)(model)


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder"])
def test_weights_of_another_shape_are_refused(part, model):
    [weights] = (model / part).glob("*.safetensors")
    tensors = load_file(weights)
    tensors[min(tensors)] = torch.zeros(7)
    save_file(tensors, weights, metadata={"format": "pt"})
    with pytest.raises(LoadError, match=weights.name):
        getattr(load, part)(model)


def test_absent_weights_are_named(model):
    (model / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(LoadError, match="expected a safetensors file, found nothing"):
        load.unet(model)


@pytest.mark.parametrize("pickle", ["diffusion_pytorch_model.bin", "model.ckpt", "weights.pt"])
def test_a_pickle_is_refused_and_its_conversion_shown(pickle, model):
    (model / "unet" / "diffusion_pytorch_model.safetensors").rename(model / "unet" / pickle)
    with pytest.raises(LoadError, match=rf"found {pickle}; a pickle can run code .* safe_serialization=True"):
        load.unet(model)


@pytest.mark.parametrize("content", ["", "{", "{}"])
def test_a_broken_tokenizer_is_refused(content, model):
    (model / "tokenizer" / "tokenizer.json").write_text(content)
    with pytest.raises(LoadError, match="tokenizer"):
        load.tokenizer(model)


def test_a_tokenizer_may_be_a_vocabulary_and_merges(model, tokenizer):
    (model / "tokenizer" / "tokenizer.json").unlink()
    assert load.tokenizer(model)("a grinning face").input_ids == tokenizer("a grinning face").input_ids


@pytest.mark.parametrize("lost", ["vocab.json", "merges.txt"])
def test_a_tokenizer_without_its_words_is_refused(lost, model):
    (model / "tokenizer" / "tokenizer.json").unlink()
    (model / "tokenizer" / lost).unlink()
    with pytest.raises(LoadError, match=f"{lost}: expected .*, found nothing"):
        load.tokenizer(model)


def test_a_model_with_one_text_encoder_has_one_tower(pocket, text_encoder, tokenizer):
    [tower] = load.towers(pocket)
    assert tower.tokenizer("a photo").input_ids == tokenizer("a photo").input_ids
    assert all(torch.equal(weight, tower.encoder.state_dict()[n]) for n, weight in text_encoder.state_dict().items())
    assert load.family(pocket) == "sd1"


def test_sdxl_has_two_towers_of_which_the_second_pools(xl):
    first, second = load.towers(xl)
    assert [type(tower.encoder).__name__ for tower in (first, second)] == [
        "CLIPTextModel",
        "CLIPTextModelWithProjection",
    ]
    assert second.encoder(torch.zeros(1, 77, dtype=torch.int64)).text_embeds.shape == (1, 512)
    assert load.family(xl) == "sdxl"


def test_a_refiner_has_the_second_alone(xl):
    shutil.rmtree(xl / "text_encoder")
    shutil.rmtree(xl / "tokenizer")
    [tower] = load.towers(xl)
    assert type(tower.encoder).__name__ == "CLIPTextModelWithProjection"
    assert load.family(xl) == "refiner"


def test_the_latent_space_is_read_without_the_weights(model):
    (model / "vae" / "diffusion_pytorch_model.safetensors").unlink()
    assert load.latent_space(model) == {"channels": 4, "downscale": 8, "scaling": 0.18215, "shift": 0.0}
