"""Real nodes on a device whose budget is too small for their models: the picture is the same, and memory is not."""

import copy
import shutil
from dataclasses import replace

import pytest
import torch
from pretend import Pretend
from safetensors.torch import save_file
from single_file import everything, tiny_clip, tiny_unet, tiny_vae

import pocket
from engine.engine import Engine
from engine.event import NodeProgress, Outcome, Trouble
from engine.file import Files
from engine.graph import Graph
from engine.models import ModelPool
from engine.registry import Registry
from nodes import NODES, model
from nodes.files import CheckpointFile
from nodes.types import Unet, Vae

MB = 1 << 20
PAINT = {
    "type": "sample",
    "params": {"steps": 2, "cfg": 3.0},
    "inputs": {"unet": "model.unet", "positive": "text", "negative": "nothing", "latent": "empty", "noise": "noise"},
}
PICTURE = {
    "model": {"type": "model.load", "params": {"checkpoint": "pocket", "precision": "float32"}},
    "text": {"type": "text.encode", "params": {"text": "a fox"}, "inputs": {"encoder": "model.text"}},
    "nothing": {"type": "text.encode", "inputs": {"encoder": "model.text"}},
    "noise": {"type": "noise.seeded", "params": {"seed": 5}},
    "empty": {"type": "latent.empty", "params": {"width": 32, "height": 32}, "inputs": {"vae": "model.vae"}},
    "paint": PAINT,
    "decoded": {"type": "vae.decode", "inputs": {"vae": "model.vae", "latent": "paint"}},
}


def picture(**changes):
    """The whole graph of a picture, with other nodes where that is said."""
    nodes = copy.deepcopy({**PICTURE, **changes})
    return Graph.parse({"format": "calotype/1", "nodes": nodes, "outputs": {"image": "decoded"}})


def refined():
    """A picture that one UNet begins and another one ends, as a refiner does."""
    begin, end = copy.deepcopy(PAINT), copy.deepcopy(PAINT)
    begin["params"] |= {"steps": 4, "last": 2, "leftover": True}
    end["params"] |= {"steps": 4, "first": 2}
    end["inputs"] |= {"unet": "refiner.unet", "latent": "base", "options": "quiet"}
    refiner = {"type": "model.load", "params": {"checkpoint": "refiner", "precision": "float32"}}
    quiet = {"type": "sample.options", "params": {"noise_multiplier": 0.0}}
    return picture(base=begin, paint=end, refiner=refiner, quiet=quiet)


def patched():
    """Two pictures' worth of work for one UNet: with a LoRA, and without."""
    first, second = copy.deepcopy(PAINT), copy.deepcopy(PAINT)
    first["inputs"]["unet"] = "lora.unet"
    second["inputs"] |= {"latent": "lora_paint"}
    lora = {
        "type": "model.lora",
        "params": {"source": "fox.safetensors"},
        "inputs": {"unet": "model.unet", "text": "model.text"},
    }
    return picture(lora=lora, lora_paint=first, paint=second)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    made, name = torch.Generator().manual_seed(1), "lora_unet_mid_block_attentions_0_proj_in"
    tensors = {
        f"{name}.lora_down.weight": torch.randn(2, 160, 1, 1, generator=made),
        f"{name}.lora_up.weight": torch.randn(160, 2, 1, 1, generator=made),
        f"{name}.alpha": torch.tensor(2.0),
    }
    (folder / "loras").mkdir()
    save_file(tensors, folder / "loras" / "fox.safetensors")
    shutil.copytree(pocket.FOLDER, folder / "refiner")
    with (folder / "refiner" / "model_index.json").open("a") as index:
        index.write(" ")  # other bytes, so it is another model
    return folder


@pytest.fixture
def house(root):
    """Makes an engine on an accelerator with so many bytes, and so many on its host."""

    def made(memory, host=1 << 40, device=None):
        files = Files([root], named={"pocket": pocket.FOLDER, "refiner": root / "refiner"})
        device = device or Pretend()
        return Engine(Registry(NODES), device=device, files=files, memory=memory, host_memory=host)

    return made


@pytest.fixture
def loaded(monkeypatch):
    """Types of the models that were loaded from files or made of another, in order."""
    found, load = [], ModelPool._load

    def watched(pool, key, ref, place):
        found.append(type(ref).__name__)
        return load(pool, key, ref, place)

    monkeypatch.setattr(ModelPool, "_load", watched)
    return found


@pytest.fixture(scope="module")
def sizes(root):
    """Bytes of the parts of the embedded model, in float32."""
    found = {}
    files = Files(named={"pocket": pocket.FOLDER})
    engine = Engine(Registry(NODES), device=Pretend(), files=files, memory=1 << 40, host_memory=0)
    engine.run(picture())
    for held in engine._resources.models._models.values():
        found[type(held.module).__name__] = held.size
    return found


def run(engine, graph):
    """The picture, most bytes of models while the UNet works, and what was said."""
    working, said = [], []

    def listen(event):
        if isinstance(event, NodeProgress):
            working.append(engine.held()["models"])
        elif isinstance(event, Trouble):
            said.append(event)

    result = engine.run(graph, listener=listen)
    return result["image"].data, max(working, default=0), said


@pytest.mark.parametrize("graph", [refined(), patched()], ids=["refined", "patched"])
def test_the_picture_is_the_same_whatever_the_budgets(house, graph):
    expected, most, _ = run(house(1 << 40), graph)
    for memory, host in [(30 * MB, 1 << 40), (0, 4 * MB)]:
        found, working, _ = run(house(memory, host), graph)
        assert torch.equal(found, expected), (memory, host)
        assert working < most


def test_what_a_node_used_is_gone_when_the_next_one_works_where_both_do_not_fit(house, sizes, loaded):
    largest = max(sizes.values())
    assert sum(sizes.values()) > 1.4 * largest
    engine = house(largest + MB)
    _, working, said = run(engine, picture())
    assert (working, said, loaded) == (largest, [], ["TextEncoder", "Unet", "Vae"])
    assert engine.held()["host_models"] >= largest


def test_the_text_encoder_is_gone_before_the_unet_is_loaded_where_both_do_not_fit(house, sizes, monkeypatch):
    engine, load, seen = house(max(sizes.values()) + MB), Unet.load, []

    def watched(ref, files, place):
        seen.append(engine.held()["models"])
        return load(ref, files, place)

    monkeypatch.setattr(Unet, "load", watched)
    engine.run(picture())
    assert seen == [0]


@pytest.mark.parametrize("layout", ["folder", "file"])
def test_what_a_part_will_take_is_known_before_it_is_loaded(layout, tmp_path):
    if layout == "file":
        save_file(everything(tiny_unet(), tiny_vae(), tiny_clip()), tmp_path / "model.safetensors")
    files = Files([tmp_path], named={"pocket": pocket.FOLDER})
    checkpoint = files.resolve(CheckpointFile, "pocket" if layout == "folder" else "model.safetensors")
    for ref in model.load(checkpoint, "float32")[:3]:
        taken = ref.module_bytes(ref.load(files, "cpu"))
        assert 0.99 * taken <= ref.expected_bytes(files, "cpu") <= 1.01 * taken
        assert replace(ref, precision="float16").expected_bytes(files, "cpu") * 2 == ref.expected_bytes(files, "cpu")


def test_another_picture_is_made_of_copies_and_nothing_is_loaded_again(house, sizes, loaded):
    engine = house(max(sizes.values()) + MB)
    run(engine, picture())
    loaded.clear()
    other = picture().set({"noise.seed": 6, "text.text": "an owl"})
    found, _, _ = run(engine, other)
    assert loaded == []
    assert torch.equal(found, run(house(1 << 40), other)[0])


def test_base_and_refiner_in_one_graph_are_never_together_in_a_budget_for_one(house, sizes):
    engine, together = house(max(sizes.values()) + MB), []
    residents = engine._resources.models

    def listen(event):
        if isinstance(event, NodeProgress):
            here = [key for key in residents._models if key in residents.here]
            together.append(sum(type(residents._models[key].module).__name__ == "UnetModel" for key in here))

    result = engine.run(refined(), listener=listen)
    assert (result.nodes["paint"].outcome, set(together)) == (Outcome.RAN, {1})


def test_where_even_one_model_exceeds_the_budget_it_is_used_and_said(house):
    engine = house(1 * MB)
    found, _, said = run(engine, picture())
    assert torch.equal(found, run(house(1 << 40), picture())[0])
    assert sorted(event.node for event in said) == ["decoded", "nothing", "paint", "text"]
    assert all("more than its budget: values" in event.message for event in said)
    assert engine.held()["models"] <= 1 * MB


@pytest.mark.parametrize("short", [Unet, Vae])
def test_where_the_device_really_has_no_room_the_node_fails_with_the_ledger(house, monkeypatch, short):
    def full(ref, files, place):
        raise torch.OutOfMemoryError(f"no room for {short.__name__}")

    monkeypatch.setattr(short, "load", full)
    result = house(30 * MB).run(picture(), check=False)
    reason = result.nodes["paint" if short is Unet else "decoded"].reason
    assert reason.startswith("OutOfMemory: out of memory on cpu:0 after freeing ")
    assert "models 0 B, budget 31.5 MB" in reason


def test_where_room_is_found_by_moving_everything_else_away_the_node_runs(house, monkeypatch):
    engine, load, tried = house(1 << 40), Vae.load, []

    def crowded(ref, files, place):
        tried.append(engine.held()["models"])
        if tried[-1]:
            raise torch.OutOfMemoryError("no room beside others")
        return load(ref, files, place)

    monkeypatch.setattr(Vae, "load", crowded)
    found, _, _ = run(engine, picture())
    monkeypatch.setattr(Vae, "load", load)
    assert torch.equal(found, run(house(1 << 40), picture())[0])
    assert (len(tried), tried[1], engine.held()["host_models"] > 30 * MB) == (2, 0, True)
