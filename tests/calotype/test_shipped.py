"""What was trained on the embedded model comes with it, and is found by name when nobody has another of that name."""

import pytest
import torch
from safetensors.torch import save_file

import pocket
from calotype.front import MODELS, files_in, with_own
from engine.errors import FileError
from engine.file import Files
from nodes.files import EmbeddingFile, LoraFile, PromptText


@pytest.fixture
def shipped(tmp_path, monkeypatch):
    """A LoRA and an embedding that come with Calotype; nothing else in the current folder."""
    places = {kind: tmp_path / "package" / kind for kind in pocket.PLACES}
    monkeypatch.setattr(pocket, "PLACES", places)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    for kind, name in (("loras", "ink"), ("embeddings", "dusk")):
        places[kind].mkdir(parents=True)
        save_file({"x": torch.zeros(1)}, places[kind] / f"{name}.safetensors")
    return places


def test_they_lie_beside_the_model():
    assert {kind: pocket.FOLDER.parent / kind for kind in ("loras", "embeddings")} == pocket.PLACES


def test_they_are_found_by_name_and_by_prompts(shipped):
    files = files_in((), tell=pytest.fail)
    assert files.find(LoraFile, "ink").path == shipped["loras"] / "ink.safetensors"
    said = PromptText.resolved(files, "a fox at dusk <lora:ink:0.5>")
    assert {file.path.name for file in said.parts} == {"ink.safetensors", "dusk.safetensors"}


def test_another_file_of_the_same_name_goes_before_them(shipped, tmp_path):
    own = tmp_path / "here" / "loras" / "ink.safetensors"
    own.parent.mkdir()
    save_file({"y": torch.zeros(1)}, own)
    assert files_in((), tell=pytest.fail).find(LoraFile, "ink").path.resolve() == own


def test_a_service_finds_them_too_and_nothing_else_in_their_package(shipped):
    files = Files([], places=with_own({"loras": (), "embeddings": (), "vae": ()}), named=MODELS, anywhere=False)
    assert files.find(EmbeddingFile, "dusk").path == shipped["embeddings"] / "dusk.safetensors"
    with pytest.raises(FileError, match="no lora 'dusk'"):
        files.find(LoraFile, "dusk")
