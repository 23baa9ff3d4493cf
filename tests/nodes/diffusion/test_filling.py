"""Modules that are built without values: nothing is filled at random on the way, and all of it comes from the file."""

import torch
from safetensors.torch import save_file
from single_file import everything, tiny_clip, tiny_unet, tiny_vae
from torch import nn

from nodes.diffusion import load
from nodes.diffusion.filling import _Unfilled


def test_what_would_be_filled_at_random_stays_as_it_is():
    with _Unfilled():
        layer = nn.Linear(3, 4, device="meta")
        weight = nn.init.uniform_(torch.full((2, 2), 7.0))
        named = nn.init.normal_(tensor=torch.full((2, 2), 7.0))
    assert weight.tolist() == named.tolist() == [[7.0, 7.0], [7.0, 7.0]]
    assert layer.weight.is_meta
    assert nn.init.zeros_(torch.ones(2)).tolist() == [0, 0]
    assert nn.init.uniform_(torch.full((2, 2), 7.0)).max() < 7


def test_every_tensor_of_a_part_has_values_and_takes_no_gradient(tmp_path):
    path = tmp_path / "tiny.safetensors"
    modules = tiny_unet(), tiny_vae(), tiny_clip()
    save_file(everything(*modules), path)
    state = torch.get_rng_state()
    for made, module in zip((load.unet(path), load.vae(path), load.text_encoder(path)), modules, strict=True):
        wanted = module.state_dict()
        found = made.state_dict()
        assert found.keys() == wanted.keys()
        assert all(torch.equal(found[name], wanted[name]) for name in wanted)
        assert not any(weight.requires_grad for weight in made.parameters())
        assert not any(tensor.is_meta for tensor in (*made.parameters(), *made.buffers()))
        assert not made.training
    assert torch.equal(torch.get_rng_state(), state)
