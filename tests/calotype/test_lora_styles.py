"""The saved graph of LoRA strengths: each strength is a model of its own, and nothing else is made twice."""

from collections import Counter

import pytest
import torch
from safetensors.torch import save_file

import pocket
from calotype import Engine
from nodes.diffusion import load


@pytest.fixture
def engine(tmp_path, monkeypatch):
    """With a random LoRA for the embedded model in place of the one that comes with it."""
    monkeypatch.setattr(pocket, "PLACES", {"loras": tmp_path / "loras"})
    (tmp_path / "loras").mkdir()
    made, tensors = torch.Generator().manual_seed(0), {}
    for name, inner in load.unet(pocket.FOLDER).named_modules():
        if name.endswith(("attn1.to_q", "attn2.to_v")):
            key = f"lora_unet_{name.replace('.', '_')}"
            tensors[f"{key}.lora_down.weight"] = torch.randn(2, inner.in_features, generator=made)
            tensors[f"{key}.lora_up.weight"] = torch.randn(inner.out_features, 2, generator=made)
    save_file(tensors, tmp_path / "loras/blueprint.safetensors")
    with Engine(device="cpu", strict=True) as house:
        yield house


def ran(engine, **said):
    result = engine.run("lora_styles", set={"steps": 1} | said)
    return result, Counter(result.nodes[node].type for node in result.ran())


def test_prompts_are_encoded_once_for_all_strengths_and_each_cell_is_a_picture_of_its_own(engine):
    result, types = ran(engine)
    assert (types["model.lora"], types["text.encode"], types["sample"], types["vae.decode"]) == (4, 3, 8, 8)
    cells = {name: node for name, node in result.nodes.items() if node.type == "vae.decode"}
    assert len(cells) == 8
    assert ran(engine)[1] == {}


def test_another_strength_of_the_text_encoder_changes_nothing_of_a_lora_without_one(engine):
    before, _ = ran(engine)
    after, types = ran(engine, lora_text_strength=0.5)
    assert torch.equal(before["image"].data, after["image"].data)
    assert types["text.encode"] == 3
