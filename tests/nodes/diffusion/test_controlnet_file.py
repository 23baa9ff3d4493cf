"""ControlNets: files in either layout and folders, for every family, and what looks like one and is none."""

import pytest
import torch
from diffusers import ControlNetModel
from diffusers.loaders import single_file_utils as judge
from safetensors.torch import save_file
from single_file import (
    interleaved,
    renamed,
    same,
    shaken,
    tiny_controlnet,
    tiny_unet,
    tiny_vae,
    tiny_xl_unet,
    told,
)

from nodes.diffusion import load, original
from nodes.diffusion.load import LoadError

UNETS = {
    "SD 1.x": tiny_unet,
    "SD 2.x": lambda: tiny_unet(use_linear_projection=True, attention_head_dim=1),
    "SDXL": tiny_xl_unet,
    "SDXL without attention": lambda: tiny_xl_unet(
        down_block_types=("DownBlock2D",) * 3, up_block_types=("UpBlock2D",) * 3, mid_block_type="UNetMidBlock2D"
    ),
}


@pytest.fixture(scope="module", params=UNETS)
def family(request):
    return request.param


@pytest.fixture(scope="module")
def net(family):
    torch.manual_seed(0)
    if family == "SDXL without attention":
        config = dict(tiny_controlnet(tiny_xl_unet()).config) | {
            "down_block_types": ("DownBlock2D",) * 3,
            "mid_block_type": "UNetMidBlock2D",
        }
        return shaken(ControlNetModel.from_config(config))
    return shaken(tiny_controlnet(UNETS[family]()))


@pytest.fixture
def write(tmp_path):
    def written(tensors):
        path = tmp_path / "made.safetensors"
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)
        return path

    return written


def original_names(net, prefix):
    return renamed(net, original.controlnet, prefix)


LAYOUTS = {
    "original": lambda net: original_names(net, "control_model."),
    "original without prefix": lambda net: original_names(net, ""),
    "diffusers": lambda net: net.state_dict(),
}


@pytest.fixture(params=LAYOUTS)
def file(request, net, write):
    return write(LAYOUTS[request.param](net))


def test_it_is_what_it_was_made_of(file, net, family):
    assert same(load.controlnet(file), net.state_dict())
    assert load.described(file) == f"ControlNet for {family.removesuffix(' without attention')}"


def test_it_computes_what_the_module_computes(file, net):
    latent, hint = torch.randn(1, 4, 16, 16), torch.rand(1, 3, 32, 32)
    context = torch.randn(1, 77, net.config.cross_attention_dim)
    given = told(net) if net.config.addition_embed_type else {}
    with torch.no_grad():
        made, expected = (each(latent, 7, context, hint, **given) for each in (load.controlnet(file), interleaved(net)))
    assert torch.equal(made.mid_block_res_sample, expected.mid_block_res_sample)
    pairs = zip(made.down_block_res_samples, expected.down_block_res_samples, strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)


def test_it_is_what_diffusers_converts_the_file_to():
    """Of the full number of blocks, which that conversion expects."""
    net = shaken(
        tiny_controlnet(tiny_unet()).from_unet(tiny_unet(), conditioning_embedding_out_channels=(8, 16, 16, 32))
    )
    tensors = original_names(net, "control_model.")
    assert "control_model.input_hint_block.14.weight" in tensors
    assert same(net, judge.convert_controlnet_checkpoint(dict(tensors), dict(net.config)))


def test_a_folder_is_read(net, tmp_path, family):
    net.save_pretrained(tmp_path / "folder")
    made = load.controlnet(tmp_path / "folder", dtype=torch.bfloat16)
    assert same(made, {name: weight.bfloat16() for name, weight in net.state_dict().items()})
    assert load.described(tmp_path / "folder") == f"ControlNet for {family.removesuffix(' without attention')}"


def test_a_checkpoint_is_no_controlnet(write):
    path = write(renamed(tiny_unet(), original.unet, "model.diffusion_model."))
    with pytest.raises(
        LoadError, match=r"a ControlNet of .*, found a checkpoint \(UNet\); load it with the node model"
    ):
        load.controlnet(path)


def test_a_vae_is_no_controlnet(write):
    with pytest.raises(LoadError, match=r"a ControlNet of .*, found a VAE alone"):
        load.controlnet(write(renamed(tiny_vae(), original.vae, "")))


@pytest.mark.parametrize(
    ("added", "found"),
    [
        ("lora_controlnet", "a ControlLoRA"),
        ("task_embedding", "a ControlNet-Union"),
        ("adapter.body.0.resnets.0.block1.weight", "a T2I-Adapter"),
        ("body.0.block1.weight", "a T2I-Adapter"),
        ("down_blocks.0.motion_modules.0.temporal_transformer.norm.bias", "AnimateDiff"),
    ],
)
def test_what_looks_like_one_is_named(write, added, found):
    torch.manual_seed(0)
    path = write(dict(tiny_controlnet(tiny_unet()).state_dict()) | {added: torch.zeros(1)})
    for part in (load.controlnet, load.described):
        with pytest.raises(LoadError, match=rf"found {found}.*which is not supported"):
            part(path)


def test_a_missing_tensor_is_named(write):
    tensors = original_names(tiny_controlnet(tiny_unet()), "control_model.")
    del tensors["control_model.zero_convs.1.0.bias"]
    with pytest.raises(LoadError, match=r"found \d+ of them, without control_model.zero_convs.1.0.bias$"):
        load.controlnet(write(tensors))
