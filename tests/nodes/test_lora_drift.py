"""LoRAs come and go a hundred times through the engine: no bit of the model changes, and no memory stays behind."""

import gc

import pytest
import torch
from safetensors.torch import save_file
from single_file import CLIP, UNET, everything, tiny_clip, tiny_unet, tiny_vae

from calotype import Engine
from engine.file import Files
from nodes.diffusion import original
from nodes.files import CheckpointFile
from nodes.model import load

TIMES = 100
SAID = {"checkpoint": "tiny", "width": 16, "height": 16, "steps": 1, "sampler": "euler", "cfg": 1.0}


def low_rank(module, part, seed, fields=("lora_down.weight", "lora_up.weight")):
    """A change for the layers of a module that make queries and values."""
    made, tensors = torch.Generator().manual_seed(seed), {}
    for name, inner in module.named_modules():
        if name.endswith(("to_q", "to_v", "q_proj", "v_proj")):
            out, into = inner.weight.shape
            for field, shape in zip(fields, ((1, into), (out, 1)), strict=True):
                tensors[f"{part}{name.replace('.', '_')}.{field}"] = torch.randn(shape, generator=made) * 0.1
    return tensors


@pytest.fixture(scope="module")
def checkpoint():
    torch.manual_seed(0)
    parts = tiny_unet(), tiny_vae(), tiny_clip()
    return everything(*parts), parts


@pytest.fixture
def root(tmp_path, checkpoint):
    tensors, (unet, _, encoder) = checkpoint
    for folder in ("checkpoints", "loras"):
        (tmp_path / folder).mkdir()
    save_file(tensors, tmp_path / "checkpoints/tiny.safetensors")
    for seed, name in enumerate(("fox", "owl")):
        both = low_rank(unet, "lora_unet_", seed) | low_rank(encoder, "lora_te_text_model_", seed)
        save_file(both, tmp_path / f"loras/{name}.safetensors")
    lengths = {
        f"{key.rpartition('.lora_')[0]}.dora_scale": 1 + tensor.abs() for key, tensor in both.items() if "_up" in key
    }
    save_file(both | lengths, tmp_path / "loras/dora.safetensors")
    return tmp_path


@pytest.fixture
def files(root):
    return Files([root], anywhere=False)


def prompts(times):
    """Prompts with another stack of LoRAs each."""
    for turn in range(times):
        strength = turn / 10 - 5
        stack = [
            f"<lora:fox:{strength}>",
            f"<lora:owl:{-strength}:0.5>",
            "<lora:dora:0:0.3>",
            f"<lora:dora:{strength / 9}>",
        ]
        yield "a fox" + "".join(stack[turn % 4 :][: 1 + turn % 3])


def base(engine, files):
    """The tensors of the model without LoRAs that the engine holds, under their names in the file."""
    parts, pool = load(files.resolve(CheckpointFile, "tiny")), engine._resources.models
    unet, encoder = pool.acquire(parts.unet, "cpu").unet, text_of(pool.acquire(parts.text, "cpu"))
    pool.release(parts.unet)
    pool.release(parts.text)
    return {
        prefix + place: module.state_dict()[name]
        for module, spelling, prefix in ((unet, original.unet, UNET), (encoder, original.clip, CLIP))
        for name, place in original.tensors(module.state_dict(), spelling).items()
    }


def text_of(model):
    return model.towers[0].encoder


def test_after_a_hundred_runs_with_other_stacks_every_bit_is_the_files(files, checkpoint):
    with Engine(device="cpu", files=files) as engine:
        plain = engine.run("text2img", set=SAID | {"prompt": "a fox"})["image"]
        pictures = [engine.run("text2img", set=SAID | {"prompt": prompt})["image"] for prompt in prompts(TIMES)]
        held = base(engine, files)
        engine.store.clear()
        again = engine.run("text2img", set=SAID | {"prompt": "a fox"})
    assert all(torch.equal(held[name], checkpoint[0][name].reshape(held[name].shape)) for name in held)
    assert len(held) > 100
    assert torch.equal(again["image"].data, plain.data)
    assert len({picture.data.numpy().tobytes() for picture in pictures}) > TIMES / 2


def test_under_a_small_budget_patched_copies_go_and_leave_nothing_behind(files, checkpoint):
    unet, _, encoder = checkpoint[1]
    own = sum(inner.weight.nbytes for name, inner in unet.named_modules() if name.endswith(("to_q", "to_v")))
    memory = 2 * sum(weight.nbytes for module in (unet, encoder) for weight in module.parameters())
    with Engine(device="cpu", files=files, memory=memory) as engine:
        engine.run("text2img", set=SAID | {"prompt": "a fox"})
        before = left(engine)
        for prompt in prompts(30):
            engine.run("text2img", set=SAID | {"prompt": prompt})
            assert engine._resources.ledger.used() <= memory
        assert left(engine) - before < own


def left(engine):
    """Bytes of all tensors that there are once the engine gave up what it could, each memory counted once."""
    engine._resources.ledger.free_everything()
    gc.collect()
    tensors = (thing for thing in gc.get_objects() if issubclass(type(thing), torch.Tensor))
    return sum({tensor.data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}.values())
