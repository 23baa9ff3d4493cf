"""A model whose file changes between the moment that it is there and the moment that it is the process's own."""

from functools import cache

import pytest
import torch
from safetensors.torch import save_file
from single_file import everything, tiny_clip, tiny_unet, tiny_vae

from calotype import Engine, Graph
from engine.context import Context
from engine.event import Trouble
from engine.file import Files
from nodes.diffusion.lending import Loan
from nodes.diffusion.tensors import LoadError


def graph(*, prompt="a red fox", lora=""):
    """A prompt, encoded."""
    nodes = {
        "model": {"type": "model.load", "params": {"checkpoint": "tiny"}},
        "prompts": {"type": "prompt", "params": {"text": prompt + lora}},
        "patched": {
            "type": "model.loras",
            "inputs": {"unet": "model.unet", "text": "model.text", "loras": "prompts.loras"},
        },
        "encoded": {"type": "text.encode", "inputs": {"encoder": "patched.text", "prompt": "prompts.positive"}},
    }
    return Graph.parse({"format": "calotype/1", "nodes": nodes, "outputs": {"encoded": "encoded"}})


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """The bytes of two checkpoints of one layout, in float32, and of a LoRA for both."""
    made = []
    for seed in range(2):
        torch.manual_seed(seed)
        path = tmp_path_factory.mktemp("made") / "tiny.safetensors"
        save_file(everything(tiny_unet(), tiny_vae(), tiny_clip()), path)
        made.append(path.read_bytes())
    return made


@pytest.fixture
def root(tmp_path, files):
    for folder in ("checkpoints", "loras"):
        (tmp_path / folder).mkdir()
    (tmp_path / "checkpoints/tiny.safetensors").write_bytes(files[0])
    layer = "lora_te_text_model_encoder_layers_0_mlp_fc1"
    width, wide = tiny_clip().config.hidden_size, tiny_clip().config.intermediate_size
    tensors = {f"{layer}.lora_down.weight": torch.ones(1, width), f"{layer}.lora_up.weight": torch.ones(wide, 1)}
    save_file(tensors, tmp_path / "loras/fox.safetensors")
    return tmp_path


@pytest.fixture
def engine(root):
    with Engine(device="cpu", files=Files([root], anywhere=False)) as made:
        yield made


@pytest.fixture
def interrupted(monkeypatch):
    """Has something done once a model is there, and weights read only after that."""
    waiting, begin, model = [], Loan.begin, Context.model

    def write(self, ref):
        module = model(self, ref)
        while waiting:
            waiting.pop()()
        return module

    def read_late(self):
        begun = cache(lambda: begin(self))

        def own(name):
            begun()
            return Loan.own(self, name)

        def wait():
            begun()()

        monkeypatch.setattr(self, "own", own)
        return wait

    monkeypatch.setattr(Context, "model", write)
    monkeypatch.setattr(Loan, "begin", read_late)
    return waiting.append


def overwrite(path, content):
    with path.open("r+b") as stream:
        stream.write(content)


def encoded(engine, **said):
    return engine.run(graph(**said)).outputs["encoded"].data


def from_scratch(root, **said):
    with Engine(device="cpu", files=Files([root], anywhere=False)) as engine:
        return encoded(engine, **said)


def test_what_is_made_is_of_one_file_or_the_other(engine, root, files, interrupted):
    old = from_scratch(root)
    interrupted(lambda: overwrite(root / "checkpoints/tiny.safetensors", files[1]))
    heard = []
    report = engine.run(graph(), listener=heard.append)
    new = from_scratch(root)
    assert not torch.equal(old, new)
    assert torch.equal(report.outputs["encoded"].data, new)
    (trouble,) = [event.message for event in heard if isinstance(event, Trouble)]
    assert "tiny.safetensors changed while" in trouble
    overwrite(root / "checkpoints/tiny.safetensors", files[0])
    assert torch.equal(encoded(engine), old)
    assert torch.equal(encoded(engine, prompt="an owl"), from_scratch(root, prompt="an owl"))


def test_what_is_patched_is_all_of_the_file_that_was_there_first(engine, root, files, interrupted):
    lora = "<lora:fox:1>"
    old = from_scratch(root, lora=lora)
    interrupted(lambda: overwrite(root / "checkpoints/tiny.safetensors", files[1]))
    assert torch.equal(encoded(engine, lora=lora), old)
    new = encoded(engine, lora=lora)
    assert not torch.equal(old, new)
    assert torch.equal(new, from_scratch(root, lora=lora))


def test_without_waiting_it_would_be_of_neither(engine, root, files, interrupted, monkeypatch):
    """The twin of the test above: what it finds, it finds because the engine waits."""
    monkeypatch.setattr(Context, "settle", lambda _: None)
    interrupted(lambda: overwrite(root / "checkpoints/tiny.safetensors", files[1]))
    engine.run(graph())
    overwrite(root / "checkpoints/tiny.safetensors", files[0])
    assert not torch.equal(encoded(engine), from_scratch(root))


def test_afterwards_the_file_may_become_anything(engine, root, files):
    encoded(engine)
    with (root / "checkpoints/tiny.safetensors").open("r+b") as stream:
        stream.truncate(0)
    (root / "checkpoints/tiny.safetensors").write_bytes(files[0])
    assert torch.equal(encoded(engine, prompt="an owl"), from_scratch(root, prompt="an owl"))


def test_a_file_that_gets_shorter_has_the_run_planned_again(engine, root, files, interrupted, monkeypatch):
    path, own = root / "checkpoints/tiny.safetensors", Loan.own
    failed, heard = [], []

    def mend(self, name):
        try:
            return own(self, name)
        except LoadError as error:
            failed.append(error)
            path.write_bytes(files[0])
            raise

    interrupted(lambda: path.write_bytes(files[0][:100]))
    monkeypatch.setattr(Loan, "own", mend)
    report = engine.run(graph(), listener=heard.append)
    assert "which got shorter" in str(failed[0])
    assert any("planned again" in event.message for event in heard if isinstance(event, Trouble))
    assert torch.equal(report.outputs["encoded"].data, from_scratch(root))
