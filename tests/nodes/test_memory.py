"""Real nodes on a device whose budget is too small for their models: the picture is the same, and memory is not."""

import copy
import json
import shutil
from dataclasses import replace

import pipelines
import pytest
import torch
from diffusers import ControlNetModel
from pretend import Pretend
from safetensors.torch import load_file, save_file
from single_file import everything, renamed, tiny_clip, tiny_controlnet, tiny_unet, tiny_vae
from upscalers import compact, first, loud, newest, rrdbnet

import pocket
from engine.engine import Engine
from engine.event import NodeProgress, Outcome, Trouble
from engine.file import Files
from engine.graph import Graph
from engine.models import ModelPool
from engine.registry import Registry
from nodes import NODES, controlnet, model, upscale
from nodes.diffusion import load, original
from nodes.diffusion.upscale import RRDBNet
from nodes.files import CheckpointFile, ControlNetFile, EmbeddingFile, UpscaleFile
from nodes.types import ControlNet, Embedding, Unet, Upscaler, Vae

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


def controlled():
    """A picture whose UNet works beside a ControlNet."""
    paint = copy.deepcopy(PAINT)
    paint["inputs"] |= {"control": "control"}
    return picture(
        paint=paint,
        photo={"type": "image.load", "params": {"source": "photo.png"}},
        net={"type": "controlnet.load", "params": {"source": "net", "precision": "float32"}},
        control={"type": "controlnet.apply", "inputs": {"controlnet": "net", "image": "photo"}},
    )


def enlarged():
    """A picture that a model enlarges."""
    return picture(
        small=PICTURE["decoded"],
        net={"type": "upscale.load", "params": {"source": "x2", "precision": "float32"}},
        decoded={"type": "image.upscale", "inputs": {"image": "small", "upscaler": "net"}},
    )


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
    pipelines.photograph(32).save(folder / "photo.png")
    unet = load.unet(pocket.FOLDER)
    net = pipelines.seeded(lambda: ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=(8, 16, 32, 32)))
    net.save_pretrained(folder / "controlnet/net")
    (folder / "upscale").mkdir()
    save_file(newest(loud(RRDBNet(32, 16, 4, 1, 1))), folder / "upscale/x2.safetensors")
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
    """Bytes of the parts of the embedded model, of the ControlNet and of the upscaler, in float32."""
    found = {}
    files = Files([root], named={"pocket": pocket.FOLDER})
    engine = Engine(Registry(NODES), device=Pretend(), files=files, memory=1 << 40, host_memory=0)
    for graph in (picture(), controlled(), enlarged()):
        engine.run(graph)
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


def at_loading(kind, engine, monkeypatch):
    """Bytes of models that are on the device whenever one of a kind is loaded there."""
    load, seen = kind.load, []

    def watched(ref, files, place):
        seen.append(engine.held()["models"])
        return load(ref, files, place)

    monkeypatch.setattr(kind, "load", watched)
    return seen


@pytest.mark.parametrize("graph", [refined, patched, controlled, enlarged])
def test_the_picture_is_the_same_whatever_the_budgets(house, graph):
    graph = graph()
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
    engine = house(max(sizes.values()) + MB)
    seen = at_loading(Unet, engine, monkeypatch)
    engine.run(picture())
    assert seen == [0]


def test_the_text_encoder_is_gone_before_a_controlnet_is_loaded_where_it_does_not_fit_too(house, sizes, monkeypatch):
    engine = house(sizes["UnetModel"] + sizes["ControlNetModel"] + MB)
    seen = at_loading(ControlNet, engine, monkeypatch)
    _, working, said = run(engine, controlled())
    assert (seen, said) == ([sizes["UnetModel"]], [])
    assert working == sizes["UnetModel"] + sizes["ControlNetModel"]


def test_the_vae_is_gone_before_an_upscaler_is_loaded_where_both_do_not_fit(house, sizes, monkeypatch):
    engine = house(sizes["AutoencoderKL"] + MB)
    assert sizes["RRDBNet"] > MB
    seen = at_loading(Upscaler, engine, monkeypatch)
    engine.run(enlarged())
    assert seen == [0]


def whole(folder):
    """A checkpoint in one file."""
    save_file(everything(tiny_unet(), tiny_vae(), tiny_clip()), folder / "model.safetensors")
    return folder / "model.safetensors"


def embedded(folder):
    """A copy of the embedded model, and the files of its weights."""
    shutil.copytree(pocket.FOLDER, folder / "model")
    return folder / "model", sorted((folder / "model").glob("*/*model.safetensors"))


def half(folder):
    """A folder in which the weights of a variant lie."""
    made, files = embedded(folder)
    for file in files:
        file.rename(file.with_suffix(".fp16.safetensors"))
    return made


def half_and_full(folder):
    """A folder in which each part's weights lie twice, of which one is loaded."""
    made, files = embedded(folder)
    for file in files:
        shutil.copy(file, file.with_suffix(".fp16.safetensors"))
    return made


def sharded(folder):
    """A folder in which each part's weights lie in two files."""
    made, files = embedded(folder)
    for file in files:
        tensors, where = load_file(file), {}
        for shard in range(2):
            here = {name: tensors[name] for name in list(tensors)[shard::2]}
            save_file(here, file.with_name(f"shard-{shard}.safetensors"))
            where |= dict.fromkeys(here, f"shard-{shard}.safetensors")
        file.with_suffix(".safetensors.index.json").write_text(json.dumps({"weight_map": where}))
        file.unlink()
    return made


def told(ref, files):
    """The bytes that are expected for a model, and those that it takes."""
    return ref.expected_bytes(files, "cpu"), ref.module_bytes(ref.load(files, "cpu"))


@pytest.mark.parametrize("layout", [None, whole, half, half_and_full, sharded])
def test_what_a_part_will_take_is_known_before_it_is_loaded(layout, tmp_path):
    files = Files([tmp_path], named={"pocket": pocket.FOLDER})
    checkpoint = files.resolve(CheckpointFile, str(layout(tmp_path)) if layout else "pocket")
    for ref in model.load(checkpoint, "float32")[:3]:
        expected, taken = told(ref, files)
        assert 0.99 * taken <= expected <= 1.01 * taken
        assert replace(ref, precision="float16").expected_bytes(files, "cpu") * 2 == expected


def test_of_a_folder_no_more_is_read_ahead_than_is_loaded(tmp_path):
    files = Files([tmp_path])
    made = half_and_full(tmp_path)
    parts = model.load(files.resolve(CheckpointFile, str(made)))[:3]
    assert [[str(path.relative_to(made)) for path in ref.paths(files)] for ref in parts] == [
        ["unet/diffusion_pytorch_model.safetensors"],
        ["text_encoder/model.safetensors"],
        ["vae/diffusion_pytorch_model.safetensors"],
    ]
    net = files.resolve(ControlNetFile, str(net_folder(tmp_path)))
    (path,) = controlnet.load(net).paths(files)
    assert path.name == "diffusion_pytorch_model.fp16.safetensors"


def net_folder(folder):
    """A ControlNet in diffusers' layout, as a variant."""
    pipelines.controlnet(folder / "whole").save_pretrained(folder / "net", variant="fp16")
    return folder / "net"


def net_file(folder):
    """A ControlNet in diffusers' layout in a file."""
    save_file(tiny_controlnet(tiny_unet()).state_dict(), folder / "net.safetensors")
    return folder / "net.safetensors"


def net_of_old(folder):
    """A ControlNet in the original layout, beside tensors of something else."""
    found = renamed(tiny_controlnet(tiny_unet()), original.controlnet, "control_model.")
    save_file(found | {"other.weight": torch.zeros(1000, 1000)}, folder / "net.safetensors")
    return folder / "net.safetensors"


@pytest.mark.parametrize("layout", [net_folder, net_file, net_of_old])
def test_what_a_controlnet_will_take_is_known_before_it_is_loaded(layout, tmp_path):
    files = Files([tmp_path])
    ref = controlnet.load(files.resolve(ControlNetFile, str(layout(tmp_path))), "float16")
    expected, taken = told(ref, files)
    assert taken == expected > 0
    assert replace(ref, precision="float32").expected_bytes(files, "cpu") == 2 * expected


@pytest.mark.parametrize("tensors", [newest(rrdbnet()), first(rrdbnet()), newest(compact(), "params.")])
def test_what_an_upscaler_will_take_is_known_before_it_is_loaded(tensors, tmp_path):
    save_file(
        tensors | {"step": torch.zeros(1)} if "params.body.0.weight" in tensors else tensors,
        tmp_path / "x4.safetensors",
    )
    files = Files([tmp_path])
    ref = upscale.load(files.resolve(UpscaleFile, "x4.safetensors"), "float32")
    expected, taken = told(ref, files)
    assert taken == expected > 0


@pytest.mark.parametrize(
    "tensors",
    [
        {"emb_params": torch.zeros(3, 768), "step": torch.zeros(1)},
        {"clip_l": torch.zeros(2, 768).half(), "clip_g": torch.zeros(2, 1280).half()},
    ],
)
def test_what_an_embedding_will_take_is_known_before_it_is_loaded(tensors, tmp_path):
    save_file(tensors, tmp_path / "word.safetensors")
    files = Files([tmp_path])
    ref = Embedding(files.resolve(EmbeddingFile, "word.safetensors").digest.hex())
    expected, taken = told(ref, files)
    assert taken == expected > 0


@pytest.mark.parametrize("kind", [ControlNet, Upscaler, Embedding])
def test_of_a_file_that_does_not_load_nothing_is_expected(kind, tmp_path):
    (tmp_path / "broken.safetensors").write_bytes(b"nothing")
    files = Files([tmp_path])
    ref = kind(files.resolve(EmbeddingFile, "broken.safetensors").digest.hex())
    assert ref.expected_bytes(files, "cpu") == 0


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
