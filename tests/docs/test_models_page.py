"""docs/models.md is true: its settings are read, its tables are those of the code, and the list is what is printed."""

import re
import sys

import pytest
import single_file
import torch
from pages import DOCS, blocks
from rich.console import Console
from safetensors.torch import save_file

import calotype.__main__
import pocket
from calotype.front import MODELS
from calotype.models import KINDS
from nodes.diffusion import original
from server.installation import COMFYUI, WEBUI
from server.places import Places

TEXT = (DOCS / "models.md").read_text(encoding="utf-8")
BLOCKS = blocks(TEXT)
READER = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_k"


def shown(info):
    return next(block.body for block in BLOCKS if block.info == info)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    return tmp_path


def test_the_settings_shown_are_all_there_are_and_are_read(folder):
    (folder / "calotype.yaml").write_text(shown("yaml"))
    read = Places.load()
    assert [line.partition(":")[0] for line in shown("yaml").splitlines() if re.match(r"\w", line)] == [
        *Places.model_fields
    ]
    assert read.comfyui == (folder / "home/ComfyUI",)
    assert read.loras[1].as_posix() == "../loras"


def test_the_tables_of_folders_are_those_that_are_looked_through():
    rows = re.findall(r"^\| `(\w+)` \| (`[^|]*`) \|$", TEXT, re.MULTILINE)
    listed = [(KINDS[kind].folder, tuple(re.findall(r"`([^`]+)`", folders))) for kind, folders in rows]
    assert listed == [*COMFYUI.items(), *WEBUI.items()]


def test_the_table_of_kinds_is_that_of_the_code():
    rows = re.findall(r"^\| `(\w+)` \| `(\w+)` \| (.*) \|$", TEXT, re.MULTILINE)
    assert [(kind, folder) for kind, folder, _ in rows] == [(kind, file.folder) for kind, file in KINDS.items()]


def test_the_list_shown_is_what_is_printed(folder, monkeypatch, capsys):
    torch.manual_seed(0)
    files = {
        "checkpoints/anime/blue": single_file.renamed(single_file.tiny_unet(), original.unet, single_file.UNET),
        "loras/ink": {f"{READER}.lora_down.weight": (8, 2048), f"{READER}.lora_up.weight": (1280, 8)},
        "embeddings/easy": {"emb_params": (4, 768)},
        "more/ink": {f"{READER}.lora_down.weight": (4, 768), f"{READER}.lora_up.weight": (1280, 4)},
    }
    for name, tensors in files.items():
        path = folder / f"{name}.safetensors"
        path.parent.mkdir(parents=True, exist_ok=True)
        made = {key: torch.zeros(each) if isinstance(each, tuple) else each for key, each in tensors.items()}
        save_file(made, path)
    (folder / "loras/old.pt").write_bytes(b"PK" * 4000)
    whole = (folder / "checkpoints/anime/blue.safetensors").read_bytes()
    (folder / "checkpoints/cut.safetensors").write_bytes(whole[:-9])
    (folder / "calotype.yaml").write_text("loras: more")
    for name in ("out", "err"):
        console = Console(width=300, force_terminal=True, no_color=True, stderr=name == "err")
        monkeypatch.setattr(calotype.__main__, name, console)
    monkeypatch.setattr(sys, "argv", ["calotype", "models"])
    with pytest.raises(SystemExit):
        calotype.__main__.main()
    said = capsys.readouterr()
    printed = re.sub(r"\x1b\[[0-9;]*m", "", said.out + said.err)
    shipped = [MODELS["pocket"], *(file for place in pocket.PLACES.values() for file in place.iterdir())]
    for path in shipped:
        printed = printed.replace(str(path), "(in the package)")
    plain = printed.replace(str(folder), "/home/ann")
    assert [line.rstrip() for line in plain.splitlines()] == shown("text models").splitlines()
