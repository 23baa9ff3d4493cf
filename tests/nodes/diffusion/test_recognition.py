"""What a file of weights is, by the names and shapes of its tensors alone."""

import json

import pytest
import single_file
import torch
from safetensors.torch import save_file

from nodes.diffusion import original
from nodes.diffusion.recognition import recognise
from nodes.diffusion.tensors import LoadError

ATTENTION = "down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k"
DOTTED = "down_blocks.0.attentions.0.transformer_blocks.0.attn2"


def pair(key, *into):
    """Both sides of a LoRA of rank 4."""
    return {key.format("down"): (4, *into), key.format("up"): (8, 4, *[1] * (len(into) - 1))}


@pytest.fixture
def told(tmp_path):
    """What a file with tensors of these shapes is, whatever it is called."""

    def recognised(shapes, among=None):
        save_file({name: torch.zeros(shape) for name, shape in shapes.items()}, tmp_path / "anything.safetensors")
        return recognise(tmp_path / "anything.safetensors", among)

    return recognised


@pytest.mark.parametrize(
    ("shapes", "words", "folder"),
    [
        (pair(f"lora_unet_{ATTENTION}.lora_{{}}.weight", 768), "LoRA for SD 1.x, rank 4, UNet", "loras"),
        (pair(f"unet.{DOTTED}.processor.to_k_lora.{{}}.weight", 1024), "LoRA for SD 2.x, rank 4, UNet", "loras"),
        (pair("lora_unet_conv_in.lora_{}.weight", 4, 3, 3), "LoRA, rank 4, UNet", "loras"),
        (
            {f"lora_unet_{ATTENTION}.lokr_w1": (4, 4), f"lora_unet_{ATTENTION}.lokr_w2": (8, 8)},
            "LoKr for SD 1.x or 2.x, UNet",
            "loras",
        ),
        ({"lora_unet_conv_norm_out.w_norm": (8,)}, "full differences, UNet", "loras"),
        ({"emb_params": (8, 768), "step": ()}, "embedding for SD 1.x, 8 vectors", "embeddings"),
        ({"<style>": (1024,)}, "embedding for SD 2.x, 1 vector", "embeddings"),
        ({"clip_l": (2, 768), "clip_g": (2, 1280)}, "embedding for SDXL, 2 vectors", "embeddings"),
        (
            {
                "control_model.input_hint_block.0.weight": (16, 3, 3, 3),
                "control_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight": (320, 768),
            },
            "ControlNet for SD 1.x",
            "controlnet",
        ),
        (
            {"controlnet_cond_embedding.conv_in.weight": (16, 3, 3, 3), f"{DOTTED}.to_k.weight": (320, 2048)},
            "ControlNet for SDXL",
            "controlnet",
        ),
        ({"input_hint_block.0.bias": (16,), "zero_convs.0.0.bias": (320,)}, "ControlNet", "controlnet"),
        ({"encoder.down_blocks.0.resnets.0.conv1.weight": (8, 8, 3, 3), "x": (1,)}, "VAE", "vae"),
        ({"first_stage_model.encoder.down.0.block.0.conv1.weight": (8, 8, 3, 3), "x": (1,)}, "VAE", "vae"),
        (
            {"model.0.weight": (64, 3, 3, 3), "model.1.sub.0.RDB1.conv1.0.weight": (32, 64)},
            "upscaler ESRGAN",
            "upscale",
        ),
        (
            {"conv_first.weight": (64, 3, 3, 3), "body.0.rdb1.conv1.weight": (32, 64)},
            "upscaler ESRGAN",
            "upscale",
        ),
        ({"body.0.weight": (64, 3, 3, 3), "body.1.weight": (64,)}, "upscaler compact ESRGAN", "upscale"),
        ({"params.body.0.weight": (64, 3, 3, 3), "params.body.1.weight": (64,)}, "upscaler compact ESRGAN", "upscale"),
        ({"params_ema.body.0.rdb1.conv1.weight": (32, 64), "x": (1,)}, "upscaler ESRGAN", "upscale"),
        (
            {"model.1.sub.0.RDB1.conv1.0.weight": (32, 64), "model.1.sub.0.RDB1.conv1x1.weight": (32, 64, 1, 1)},
            "upscaler ESRGAN+",
            "upscale",
        ),
        (
            {"conv_1.sk.weight": (48, 3, 1, 1), "block_1.c1_r.eval_conv.weight": (48, 48, 3, 3)},
            "upscaler SPAN",
            "upscale",
        ),
        (
            {"layers.0.residual_group.blocks.0.attn.relative_position_bias_table": (225, 6), "x": (1,)},
            "upscaler SwinIR",
            "upscale",
        ),
        ({"text_model.encoder.layers.0.mlp.fc1.weight": (8, 8), "x": (1,)}, "text encoder", None),
        ({"down_blocks.0.resnets.0.conv1.weight": (8, 8, 3, 3), "x": (1,)}, "UNet in diffusers' layout, without", None),
        ({"a": (1,), "b": (1,)}, "2 tensors of something else", None),
        ({}, "0 tensors of something else", None),
        ({"a": ()}, "1 tensors of something else", None),
    ],
)
def test_each_kind_is_told_by_its_tensors(told, shapes, words, folder):
    found = told(shapes)
    assert found.words.startswith(words)
    assert found.words == words or not words.startswith("upscaler")
    assert found.folder == folder
    assert (" for " in found.words) == (" for " in words)


@pytest.mark.parametrize(
    ("shapes", "words", "folder"),
    [
        ({"head.weight": (64, 3, 3, 3), "tail.bias": (3,)}, "upscaler of another sort, for spandrel", "upscale"),
        ({"a": (1,), "b": (1,)}, "2 tensors of something else", None),
        ({"body.0.rdb1.conv1.weight": (32, 64, 3, 3), "x": (1,)}, "upscaler ESRGAN", "upscale"),
        ({"down_blocks.0.conv.weight": (8, 8, 3, 3), "x": (1,)}, "UNet in diffusers' layout, without its", None),
        ({"encoder.down.0.block.0.conv1.weight": (8, 8, 3, 3), "x": (1,)}, "VAE", "vae"),
    ],
)
def test_a_network_that_nothing_else_is_told_of_is_an_upscaler_among_upscalers_alone(told, shapes, words, folder):
    assert told(shapes, "upscale").words.startswith(words)
    assert told(shapes, "upscale").folder == folder
    assert told(shapes, "loras") == told(shapes)
    assert "spandrel" not in told(shapes).words


@pytest.mark.parametrize(
    ("shapes", "problem"),
    [
        ({f"lora_unet_{ATTENTION}.lora_down.weight": (4, 768)}, "expected all that makes a change .* found down alone"),
        ({f"lora_unet_{ATTENTION}.oft_blocks": (4, 4, 4), "x": (1,)}, "found 2 keys of OFT"),
        (pair("transformer.single_transformer_blocks.0.attn.to_q.lora_{}.weight", 8), "a diffusion transformer"),
        ({"emb_params": (0, 768)}, "expected vectors of shape"),
    ],
)
def test_one_that_could_not_be_used_is_refused_with_the_reason(told, shapes, problem):
    with pytest.raises(LoadError, match=problem):
        told(shapes)


@pytest.mark.parametrize(
    ("unet", "words"),
    [
        (single_file.tiny_unet, "SD 1.x without VAE"),
        (lambda: single_file.tiny_unet(in_channels=9), "SD 1.x inpainting without VAE"),
        (single_file.tiny_xl_unet, "SDXL without VAE"),
        (single_file.tiny_refiner_unet, "SDXL refiner without VAE"),
    ],
    ids=["sd1", "inpainting", "sdxl", "refiner"],
)
def test_a_checkpoint_is_told_as_its_loader_would(tmp_path, unet, words):
    torch.manual_seed(0)
    tensors = single_file.renamed(unet(), original.unet, single_file.UNET)
    save_file(tensors, tmp_path / "lora.safetensors")
    found = recognise(tmp_path / "lora.safetensors")
    assert (found.words, found.folder) == (words, "checkpoints")


@pytest.mark.parametrize(
    ("index", "unet", "words"),
    [
        ({"_class_name": "StableDiffusionPipeline"}, {"cross_attention_dim": 768}, "SD 1.x in diffusers' layout"),
        ({"_class_name": "StableDiffusionXLPipeline"}, {"cross_attention_dim": 2048}, "SDXL in diffusers' layout"),
        ({"_class_name": "FluxPipeline"}, None, "FluxPipeline in diffusers' layout"),
        ({}, {"cross_attention_dim": [1]}, "model in diffusers' layout"),
    ],
)
def test_a_folder_is_told_by_its_configs(tmp_path, index, unet, words):
    (tmp_path / "unet").mkdir()
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    if unet is not None:
        (tmp_path / "unet/config.json").write_text(json.dumps(unet))
    assert recognise(tmp_path) == (words, "checkpoints")


@pytest.mark.parametrize(
    ("kind", "words", "folder"),
    [("AutoencoderKL", "VAE", "vae"), ("ControlNetModel", "ControlNet", "controlnet"), ("Odd", "Odd", None)],
)
def test_a_folder_of_one_part_is_told_by_its_config(tmp_path, kind, words, folder):
    (tmp_path / "config.json").write_text(json.dumps({"_class_name": kind}))
    assert recognise(tmp_path) == (f"{words} in diffusers' layout", folder)


@pytest.mark.parametrize("content", [b"", b"\xff", b"[]", b"{" * 100_000, b" " * (1 << 20) + b"{}"])
def test_a_config_that_is_none_is_refused(tmp_path, content):
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(LoadError, match=r"config\.json: expected "):
        recognise(tmp_path)


@pytest.mark.parametrize(
    "content", [b"", b"x" * 99, b"\xff" * 8, (1 << 40).to_bytes(8, "little") + b"{}", b"PK\x03\x04"]
)
def test_a_damaged_file_or_a_pickle_is_refused(tmp_path, content):
    (tmp_path / "a.safetensors").write_bytes(content)
    with pytest.raises(LoadError, match=r"a\.safetensors: expected a safetensors file, found a (damaged one|pickle)"):
        recognise(tmp_path / "a.safetensors")
