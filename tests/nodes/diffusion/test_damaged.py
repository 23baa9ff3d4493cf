"""Files that were cut short: whatever they were, they are refused by name, at whatever byte they end."""

import pytest
import torch
from safetensors.torch import save_file
from single_file import everything, renamed, tiny_clip, tiny_controlnet, tiny_unet, tiny_vae
from upscalers import newest, rrdbnet

from nodes.diffusion import embedding, load, lora, original, recognition, upscale
from nodes.diffusion.load import LoadError

KEY = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"
TENSORS = {
    "embedding": lambda: {"emb_params": torch.ones(2, 768)},
    "VAE": lambda: renamed(tiny_vae(), original.vae, ""),
    "ControlNet": lambda: renamed(tiny_controlnet(tiny_unet()), original.controlnet, "control_model."),
    "LoRA": lambda: {f"{KEY}.lora_down.weight": torch.ones(4, 32), f"{KEY}.lora_up.weight": torch.ones(32, 4)},
    "upscaler": lambda: newest(rrdbnet()),
    "checkpoint": lambda: everything(tiny_unet(), tiny_vae(), tiny_clip()),
}
LOADERS = {
    "embedding": [embedding.read, embedding.described],
    "VAE": [load.vae, load.latent_space, load.described],
    "ControlNet": [load.controlnet, load.described],
    "LoRA": [lora.read, lora.described],
    "upscaler": [upscale.scale, lambda path: upscale.network(path, torch.float32, "cpu")],
    "checkpoint": [load.unet, load.vae, load.text_encoder, load.schedule, load.latent_space, load.unet_inputs],
}
CUTS = {
    "everything": lambda *_: 0,
    "all but a few bytes": lambda *_: 5,
    "within the header": lambda _, header: 8 + header // 2,
    "all weights": lambda _, header: 8 + header,
    "the second half": lambda whole, _: whole // 2,
    "the last byte": lambda whole, _: whole - 1,
}


@pytest.fixture(scope="module")
def intact(tmp_path_factory):
    """A file of each kind."""
    folder = tmp_path_factory.mktemp("intact")
    torch.manual_seed(0)
    for kind, make in TENSORS.items():
        save_file({name: tensor.contiguous() for name, tensor in make().items()}, folder / f"{kind}.safetensors")
    return folder


@pytest.mark.parametrize("kind", LOADERS)
def test_an_intact_file_is_read_by_all_of_them(intact, kind):
    path = intact / f"{kind}.safetensors"
    assert all(read(path) is not None for read in (*LOADERS[kind], recognition.recognise))


@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("kind", LOADERS)
def test_a_file_that_was_cut_short_is_refused_by_name(intact, tmp_path, kind, cut):
    data = (intact / f"{kind}.safetensors").read_bytes()
    path = tmp_path / f"{kind}.safetensors"
    path.write_bytes(data[: CUTS[cut](len(data), int.from_bytes(data[:8], "little"))])
    for read in (*LOADERS[kind], recognition.recognise):
        with pytest.raises(LoadError, match=rf"{kind}\.safetensors: expected a safetensors file, found a damaged one"):
            read(path)
