"""Where models lie: what calotype.yaml says, who else reads it, and where ComfyUI and the WebUI keep theirs."""

import os
from pathlib import Path

import pytest

from server.installation import COMFYUI, WEBUI
from server.places import Places
from server.settings import Settings, places
from server.source import SettingsError


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """An empty current folder and an environment without settings."""
    for name in [name for name in os.environ if name.startswith("CALOTYPE_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    return here


def write(text, path="calotype.yaml"):
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text(text, "utf-8")


def refusal(config=None):
    with pytest.raises(SettingsError) as caught:
        places(config)
    return [str(problem) for problem in caught.value.problems]


class TestFile:
    def test_without_a_file_there_are_no_folders(self):
        found = places()
        assert found.folders() == dict.fromkeys(COMFYUI, ())
        assert (found.roots, found.tables, list(found.warnings())) == ((), (), [])

    def test_the_named_file_comes_before_that_of_the_folder_before_that_of_the_user(self, tmp_path, monkeypatch):
        write("loras: /user", tmp_path / "config/calotype/calotype.yaml")
        assert places().loras == (Path("/user"),)
        write("loras: /here")
        assert places().loras == (Path("/here"),)
        write("loras: /environment", tmp_path / "environment.yaml")
        monkeypatch.setenv("CALOTYPE_CONFIG", str(tmp_path / "environment.yaml"))
        assert places().loras == (Path("/environment"),)
        write("loras: /option", tmp_path / "option.yaml")
        assert places(tmp_path / "option.yaml").loras == (Path("/option"),)
        assert Settings.load(config=tmp_path / "option.yaml").loras == (Path("/option"),)
        monkeypatch.setenv("CALOTYPE_LORAS", "/a,/b")
        assert places(tmp_path / "option.yaml").loras == (Path("/a"), Path("/b"))

    def test_a_named_file_that_is_missing_is_an_error(self):
        said = "gone.yaml: the file that --config names cannot be read: No such file or directory; correct it"
        assert refusal(Path("gone.yaml")) == [said]

    def test_relative_paths_start_in_the_folder_of_the_file(self, tmp_path, folder, monkeypatch):
        monkeypatch.setenv("HOME", "/home/ann")
        write(
            "loras: [a, ../b, /c, ~/d]\nvae: x,y\ndata: data\ngraphs: [g]", tmp_path / "config/calotype/calotype.yaml"
        )
        home = tmp_path / "config/calotype"
        assert places().loras == (home / "a", home / "../b", Path("/c"), Path("/home/ann/d"))
        assert places().vae == (home / "x", home / "y")
        settings = Settings.load(inputs="i")
        assert (settings.data, settings.graphs, settings.inputs) == (home / "data", (home / "g",), (Path("i"),))

    def test_one_folder_need_not_be_a_list(self):
        write("loras: one\nvae: [two, three]\ncomfyui: four\n")
        found = places()
        assert (found.loras, found.vae, found.comfyui) == (
            (Path("one"),),
            (Path("two"), Path("three")),
            (Path("four"),),
        )

    @pytest.mark.parametrize(
        ("text", "problem"),
        [
            ("lora: x", 'lora: there is no such setting, did you mean "loras"? (calotype.yaml)'),
            ("prot: 1", 'prot: there is no such setting, did you mean "port"? (calotype.yaml)'),
            ("checkpoints: x", "checkpoints: there is no such setting (calotype.yaml)"),
            ("loras: 3", "loras: Input should be a valid tuple, got 3 (calotype.yaml). More folders of LoRAs. "),
            ("loras: {a: b}", "loras: Input should be a valid tuple, got {'a': 'b'} (calotype.yaml)."),
            ("vae: [3]", "vae.0: Input is not a valid path for <class 'pathlib.Path'>, got 3 (calotype.yaml)."),
            ("- loras", "calotype.yaml: expected lines of `setting: value`"),
        ],
    )
    def test_what_is_wrong_is_told_with_its_place(self, text, problem):
        write(text)
        assert refusal()[0].startswith(problem)
        with pytest.raises(SettingsError):
            Settings.load()

    def test_what_only_the_service_reads_does_not_stop_others(self):
        write("port: many\nhost: 0.0.0.0\nloras: x\nlimits: {stpes: 1}\n")
        assert places().loras == (Path("x"),)
        with pytest.raises(SettingsError):
            Settings.load()

    def test_the_service_has_the_same_folders(self):
        write("port: 1\nmodels: m\nloras: x\ncomfyui: c\nwebui: w\n")
        assert Settings.load().folders() == places().folders()
        assert Settings.load().roots == places().roots == (Path("m").absolute(),)
        assert issubclass(Settings, Places)


class TestFolders:
    def test_those_of_a_kind_come_before_those_of_installations_and_all_are_absolute(self, folder):
        write("loras: [a, b, a]\nmodels: m\ncomfyui: c\nwebui: [w, v]\n")
        found = places().folders()
        assert found["loras"] == tuple(
            folder / name
            for name in (
                "a",
                "b",
                "c/models/loras",
                *(f"{w}/models/{name}" for w in "wv" for name in ("Lora", "LyCORIS")),
            )
        )
        assert found["checkpoints"] == tuple(
            folder / name
            for name in ("m", "c/models/checkpoints", "w/models/Stable-diffusion", "v/models/Stable-diffusion")
        )

    def test_every_kind_has_its_folders_in_both_installations(self, folder):
        write("comfyui: c\nwebui: w\n")
        found = places().folders()
        assert found.keys() == COMFYUI.keys() == WEBUI.keys()
        for kind, paths in found.items():
            expected = [*(f"c/{path}" for path in COMFYUI[kind]), *(f"w/{path}" for path in WEBUI[kind])]
            assert list(paths) == [folder / path for path in expected]

    def test_the_webui_has_a_table_of_styles(self, folder):
        write("webui: [w, v]")
        assert places().tables == (folder / "w/styles.csv", folder / "v/styles.csv")


class TestExtraPaths:
    """ComfyUI's own file of folders elsewhere."""

    @pytest.fixture
    def extra(self, folder):
        (folder / "c/models").mkdir(parents=True)
        write("comfyui: c")
        return folder / "c/extra_model_paths.yaml"

    def test_its_folders_follow_those_of_the_installation(self, extra, folder, monkeypatch):
        monkeypatch.setenv("STORE", "/store")
        write(
            "a111:\n  base_path: /webui\n  loras: |\n    models/Lora\n    models/LyCORIS\n  upscale_models: up\n"
            "  hypernetworks: h\nother:\n  is_default: true\n  checkpoints: $STORE/here\n  vae: beside\n",
            extra,
        )
        found = places().folders()
        assert found["loras"][1:] == (Path("/webui/models/Lora"), Path("/webui/models/LyCORIS"))
        assert found["upscale"][1:] == (Path("/webui/up"),)
        assert found["checkpoints"][1:] == (Path("/store/here"),)
        assert found["vae"][1:] == (folder / "c/beside",)
        assert list(places().warnings()) == []

    @pytest.mark.parametrize(
        ("text", "problem"),
        [
            ("a: b", "expected sections of `kind: folders`"),
            ("- a", "expected sections of `kind: folders`"),
            ("a: {", "cannot be read: "),
            (f"# {'x' * (1 << 20)}", "expected at most 1 MiB"),
        ],
    )
    def test_one_that_is_something_else_is_told_and_left_out(self, extra, folder, text, problem):
        write(text, extra)
        assert places().folders()["loras"] == (folder / "c/models/loras",)
        (said,) = places().warnings()
        assert said.startswith(f"comfyui: c/extra_model_paths.yaml: {problem}")
        assert said.endswith("; the folders that it names are left out")


def test_folders_that_are_not_there_are_told_and_do_no_harm(folder):
    (folder / "models").mkdir()
    (folder / "file").touch()
    (folder / "empty").mkdir()
    write("models: [models, gone]\nloras: file\nwebui: empty\ncomfyui: nowhere\n")
    assert list(places().warnings()) == [
        "models: there is no folder gone; make it, or correct the setting",
        "loras: there is no folder file; make it, or correct the setting",
        "comfyui: there is no folder nowhere; make it, or correct the setting",
        "webui: empty has no folder models, so it is no installation; correct the setting",
    ]
