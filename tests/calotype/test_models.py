"""Folders of models: what the command line and the engine find in them, and the list of all that is there."""

import io
import json
import os
import sys

import pytest
import torch
from safetensors.torch import save_file

import pocket
from calotype import Engine
from calotype.__main__ import main
from calotype.front import MODELS, files_in
from calotype.models import KINDS, models
from calotype.service import Painting
from engine.errors import FileError
from engine.file import Files
from nodes.files import CheckpointFile, ControlNetFile, EmbeddingFile, LoraFile, Styles, UpscaleFile, VaeFile
from server.places import Places
from server.source import SettingsError

READER = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k"
LORA = {f"{READER}.lora_down.weight": (4, 768), f"{READER}.lora_up.weight": (320, 4)}
TOLD = "LoRA for SD 1.x, rank 4, UNet"
EMBEDDING = {"emb_params": (2, 768)}
UPSCALERS = ("ESRGAN", "RealESRGAN", "SwinIR", "DAT", "HAT")
"""Folders of the WebUI for upscale models."""


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    """An empty current folder, beside those of models, and an environment without settings."""
    for name in [name for name in os.environ if name.startswith("CALOTYPE_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "here"


@pytest.fixture
def call(monkeypatch, capsys):
    """Run a command line; gives (exit code, standard output, standard error)."""

    def called(*arguments):
        monkeypatch.setattr(sys, "argv", ["calotype", *map(str, arguments)])
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO()))
        with pytest.raises(SystemExit) as done:
            main()
            sys.exit(0)
        said = capsys.readouterr()
        return done.value.code or 0, said.out, said.err

    return called


def put(path, shapes):
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: torch.zeros(shape) for name, shape in shapes.items()}, path)
    return path


def found(**options):
    told = []
    return files_in((), tell=told.append, **options), told


class TestFinding:
    @pytest.fixture
    def installations(self, tmp_path, here):
        """One of ComfyUI and one of the WebUI, and the file that names them."""
        comfyui, webui = tmp_path / "ComfyUI/models", tmp_path / "webui"
        for path in (
            comfyui / "checkpoints/anime/blue.safetensors",
            webui / "models/Stable-diffusion/real.safetensors",
            comfyui / "loras/style/foo.safetensors",
            comfyui / "loras/twice.safetensors",
            webui / "models/Lora/twice.safetensors",
            webui / "embeddings/easy.safetensors",
            comfyui / "vae/clear.safetensors",
            webui / "models/VAE/soft.safetensors",
            comfyui / "controlnet/canny.safetensors",
            webui / "models/ControlNet/depth.safetensors",
            webui / "extensions/sd-webui-controlnet/models/pose.safetensors",
            comfyui / "upscale_models/sharp.safetensors",
            *(webui / f"models/{name}/{name.lower()}.safetensors" for name in UPSCALERS),
        ):
            put(path, EMBEDDING)
        (webui / "styles.csv").write_text("name,prompt,negative_prompt\nforest,{prompt} in a forest,\n")
        (here / "calotype.yaml").write_text("comfyui: ../ComfyUI\nwebui: ../webui\n")
        return tmp_path

    @pytest.mark.parametrize(
        ("kind", "name", "path"),
        [
            (CheckpointFile, "anime/blue", "ComfyUI/models/checkpoints/anime/blue.safetensors"),
            (CheckpointFile, "blue", "ComfyUI/models/checkpoints/anime/blue.safetensors"),
            (CheckpointFile, "real.safetensors", "webui/models/Stable-diffusion/real.safetensors"),
            (LoraFile, "style/foo", "ComfyUI/models/loras/style/foo.safetensors"),
            (LoraFile, "twice", "ComfyUI/models/loras/twice.safetensors"),
            (EmbeddingFile, "easy", "webui/embeddings/easy.safetensors"),
            (VaeFile, "clear", "ComfyUI/models/vae/clear.safetensors"),
            (VaeFile, "soft", "webui/models/VAE/soft.safetensors"),
            (ControlNetFile, "canny", "ComfyUI/models/controlnet/canny.safetensors"),
            (ControlNetFile, "depth", "webui/models/ControlNet/depth.safetensors"),
            (ControlNetFile, "pose", "webui/extensions/sd-webui-controlnet/models/pose.safetensors"),
            (UpscaleFile, "sharp", "ComfyUI/models/upscale_models/sharp.safetensors"),
            *((UpscaleFile, name.lower(), f"webui/models/{name}/{name.lower()}.safetensors") for name in UPSCALERS),
        ],
    )
    def test_names_lead_into_installations(self, installations, kind, name, path):
        assert found()[0].find(kind, name).path == installations / "here/.." / path

    def test_a_file_here_comes_before_those_of_installations(self, installations, here):
        put(here / "loras/twice.safetensors", LORA)
        assert found()[0].find(LoraFile, "twice").path.absolute() == here / "loras/twice.safetensors"

    def test_the_webuis_styles_are_there_unless_there_are_others_here(self, installations, here):
        assert list(found()[0].resolve(Styles, "styles.csv").styles) == ["forest"]
        (here / "styles.csv").write_text("name,prompt,negative_prompt\nsea,{prompt} at sea,\n")
        assert list(found()[0].resolve(Styles, "styles.csv").styles) == ["sea"]

    def test_an_engine_finds_them(self, installations):
        with Engine(device="cpu") as engine:
            assert engine.files.find(LoraFile, "style/foo").read()

    def test_an_engine_takes_another_file_of_settings(self, installations, tmp_path):
        put(tmp_path / "mine/only.safetensors", LORA)
        (tmp_path / "other.yaml").write_text("loras: mine")
        with Engine(device="cpu", config=tmp_path / "other.yaml") as engine:
            assert engine.files.find(LoraFile, "only").path == tmp_path / "mine/only.safetensors"
            with pytest.raises(FileError):
                engine.files.find(LoraFile, "twice")

    def test_an_engine_warns_of_folders_that_are_not_there_and_refuses_nonsense(self, here):
        (here / "calotype.yaml").write_text("loras: gone")
        with pytest.warns(
            UserWarning, match=r"^loras: there is no folder gone; make it, or correct the setting$"
        ) as told:
            Engine(device="cpu").close()
        assert told[0].filename == __file__
        (here / "calotype.yaml").write_text("lora: gone")
        with pytest.raises(SettingsError, match='did you mean "loras"'):
            Engine(device="cpu")

    @pytest.mark.parametrize("command", ["run", "plan", "sweep", "validate", "show"])
    def test_every_command_reads_the_file(self, call, here, command):
        (here / "mine.yaml").write_text("lora: x")
        arguments = [
            command,
            "text2img",
            "--config",
            "mine.yaml",
            *(["--x", "steps=1,2"] if command == "sweep" else []),
        ]
        code, _, said = call(*arguments)
        assert (code, said.splitlines()[1]) == (
            2, '  lora: there is no such setting, did you mean "loras"? (mine.yaml)'
        )  # fmt: skip

    def test_a_plan_tells_of_a_missing_folder_and_names_what_it_found(self, call, here, tmp_path):
        put(tmp_path / "mine/fox.safetensors", LORA)
        (here / "calotype.yaml").write_text("loras: [../mine, gone]")
        code, out, said = call("plan", "text2img", "--set", "prompt=a <lora:fox:1>")
        assert (code, said) == (0, "loras: there is no folder gone; make it, or correct the setting\n")
        assert "prompted/positive" in out
        code, _, said = call("plan", "text2img", "--set", "prompt=a <lora:fix:1>")
        assert code == 2
        assert "no lora 'fix', did you mean 'fox'?" in said


class TestListing:
    @pytest.fixture(autouse=True)
    def nothing_shipped(self, monkeypatch):
        """No LoRA and no embedding that come with Pocket."""
        monkeypatch.setattr(pocket, "PLACES", {})

    def test_pocket_is_always_there(self):
        (found,) = models(Files(), "models")
        assert (found.name, found.path, found.digest, found.problems) == ("pocket", MODELS["pocket"], None, ())

    def test_every_kind_is_listed_with_what_is_wrong(self, call, here, tmp_path):
        put(here / "loras/b.safetensors", LORA)
        put(here / "embeddings/easy.safetensors", EMBEDDING)
        put(here / "checkpoints/wrong.safetensors", LORA)
        put(tmp_path / "mine/b.safetensors", LORA)
        (here / "loras/a.ckpt").write_bytes(b"PK")
        (here / "loras/cut.safetensors").write_bytes((here / "loras/b.safetensors").read_bytes()[:-10])
        (here / "upscale").mkdir()
        (here / "upscale/net.pth").write_bytes(b"PK")
        save_file({"head.weight": torch.zeros(8, 3, 3, 3), "b": torch.zeros(1)}, here / "upscale/new.safetensors")
        (here / "calotype.yaml").write_text("loras: ../mine")
        code, out, _ = call("models")
        assert code == 0
        rows = [line.split("\t") for line in out.splitlines()]
        pickle = "a pickle, which is not loaded; docs/models.md says how it is converted"
        assert [(row[0], row[1], row[3], row[5].partition(" (")[0]) for row in rows[1:]] == [
            ("wrong", TOLD, "-", "it lies among checkpoints, and belongs into a folder for loras"),
            ("a", "lora", "-", pickle),
            ("b", TOLD, "-", ""),
            ("b", TOLD, "-", "hidden by loras/b.safetensors"),
            ("cut", "lora", "-", "expected a safetensors file, found a damaged one"),
            ("easy", "embedding for SD 1.x, 2 vectors", "-", ""),
            ("net", "upscaler", "-", pickle),
            ("new", "upscaler of another sort, for spandrel", "-", ""),
        ]
        assert rows[4][4] == str(here / "../mine/b.safetensors")

    def test_one_kind_is_listed_as_json(self, call, here):
        path = put(here / "loras/style/fox.safetensors", LORA)
        code, out, _ = call("models", "loras", "--json")
        assert code == 0
        assert json.loads(out) == [
            {
                "kind": "loras",
                "name": "style/fox",
                "what": TOLD,
                "bytes": path.stat().st_size,
                "digest": None,
                "path": "loras/style/fox.safetensors",
                "problems": [],
                "hidden_by": None,
            }
        ]

    def test_another_kind_is_refused(self, call):
        code, _, said = call("models", "lora")
        assert code == 2
        assert "expected models, loras, embeddings, vae, controlnet, upscale, got 'lora'" in " ".join(said.split())

    def test_digests_are_computed_when_they_are_asked_for_and_remembered_with_the_cache(self, call, here):
        path = put(here / "loras/fox.safetensors", LORA)
        os.utime(path, (1, 1))
        known = Files().digest(path).hex()

        def told(*options):
            return [one["digest"] for one in json.loads(call("models", "loras", "--json", *options)[1])]

        assert told("--cache", "cache") == [None]
        assert told("--digest") == [known]
        assert told() == [None]
        assert told("--digest", "--cache", "cache") == [known]

    def test_a_file_that_goes_meanwhile_does_not_stop_the_list(self, here):
        for name in ("elk", "fox"):
            put(here / f"loras/{name}.safetensors", LORA)
        listed = models(Files([here]), "loras")
        assert next(listed).problems == ()
        (here / "loras/fox.safetensors").unlink()
        (fox,) = listed
        assert (fox.name, fox.bytes) == ("fox", 0)
        assert "No such file or directory" in fox.problems[0]

    def test_a_folder_with_too_many_files_does_not_stop_the_others(self, call, here, monkeypatch):
        put(here / "embeddings/easy.safetensors", EMBEDDING)
        for name in "abc":
            put(here / f"loras/{name}.safetensors", LORA)
        monkeypatch.setattr("engine.listing.MAX_LISTED", 2)
        code, out, said = call("models")
        assert code == 0
        assert "easy\t" in out
        assert "loras holds more than 2 files; split it into several" in said

    def test_the_kinds_have_the_words_of_the_settings(self):
        assert list(KINDS) == [name for name in Places.model_fields if name not in ("comfyui", "webui")]
        assert {kind.folder for kind in KINDS.values()} == Places().folders().keys()


class TestService:
    def test_it_lists_what_can_be_named_without_telling_where_it_lies(self, here, tmp_path):
        path = put(here / "loras/fox.safetensors", LORA)
        put(tmp_path / "more/fox.safetensors", EMBEDDING)
        (here / "loras/cut.safetensors").write_bytes(path.read_bytes()[:-10])
        (here / "vae/odd").mkdir(parents=True)
        (here / "vae/odd/config.json").write_text("no JSON")
        files = Files([here], places={"loras": [tmp_path / "more"]}, named=MODELS, anywhere=False)
        with Engine(device="cpu", files=files) as engine:
            painting = Painting((), engine)
            (cut, fox) = painting.models("loras")
            assert [one["name"] for one in painting.models(None)] == ["pocket", "cut", "fox", "odd"]
            (odd,) = painting.models("vae")
        bytes_ = path.stat().st_size
        told = {"kind": "loras", "name": "fox", "what": TOLD, "bytes": bytes_, "digest": None}
        assert fox == {**told, "problems": []}
        assert str(tmp_path) not in json.dumps([cut, odd])
        assert cut["problems"][0].startswith("expected a safetensors file, found a damaged one")
        assert odd["problems"][0].startswith("odd/config.json: expected JSON")

    def test_a_kind_of_which_there_are_too_many_is_left_out(self, here, monkeypatch, caplog):
        for name in "abc":
            put(here / f"loras/{name}.safetensors", LORA)
        monkeypatch.setattr("engine.listing.MAX_LISTED", 2)
        with Engine(device="cpu", files=Files([here])) as engine:
            assert [one["name"] for one in Painting((), engine).models(None)] == ["pocket"]
        assert "holds more than 2 files" in caplog.text
