"""The command line, as a stranger would use it."""

import hashlib
import io
import json
import re
import subprocess
import sys
import xml.etree.ElementTree as ET

import PIL.Image
import pytest
import torch
from safetensors.torch import save_file

import pocket
from calotype import __version__
from calotype.__main__ import main
from calotype.library import INPUTS, find

QUICK = ["--set", "steps=3"]
FACE = {
    "format": "calotype/1",
    "nodes": {
        "photo": {"type": "image.load", "params": {"source": "face.png"}},
        "small": {
            "type": "image.resize",
            "params": {"width": 48, "height": 32, "mode": "crop"},
            "inputs": {"image": "photo.out"},
        },
    },
    "expose": {"width": "small.width"},
    "outputs": {"image": "small"},
}


@pytest.fixture
def call(monkeypatch, capsys, tmp_path):
    """Run a command line in an empty folder; gives (exit code, standard output, standard error)."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("CALOTYPE_CACHE", raising=False)

    def called(*arguments, stdin=""):
        monkeypatch.setattr(sys, "argv", ["calotype", *map(str, arguments)])
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin.encode())))
        with pytest.raises(SystemExit) as done:
            main()
            sys.exit(0)
        said = capsys.readouterr()
        return done.value.code or 0, said.out, said.err

    return called


@pytest.fixture
def face(tmp_path):
    path = tmp_path / "face.json"
    path.write_text(json.dumps(FACE))
    return path


class TestRun:
    def test_pictures_and_report_are_written(self, call, tmp_path):
        code, out, _ = call("run", "img2img", *QUICK, "--report", "report.json", "--out", "pictures")
        assert code == 0
        report = json.loads((tmp_path / "report.json").read_text())
        assert report.keys() == {"run", "seconds", "nodes", "outputs"}
        assert report["outputs"] == {"image": ["pictures/img2img-image-00001.png"]}
        paint = report["nodes"]["paint"]
        assert (paint["type"], paint["outcome"], paint["reason"]) == ("sample", "ran", "first run")
        assert paint["seconds"] > 0
        prompts = ["prompted/negative", "prompted/patched", "prompted/positive"]
        assert sorted(paint["needs"]) == ["noise", "options", *prompts, "sized"]
        assert "image: pictures/img2img-image-00001.png" in out
        with PIL.Image.open(tmp_path / "pictures/img2img-image-00001.png") as picture:
            assert picture.size == (128, 128)

    def test_a_second_process_finds_what_the_first_computed(self, call, face):
        assert "2 ran" in call("run", face, "--cache", "cache")[1]
        code, out, err = call("run", face, "--cache", "cache", "--set", "width=64", "--report", "r.json")
        assert code == 0
        assert "1 ran, 1 hit" in out
        assert "parameter changed (width: 48 → 64)" in err
        assert "2 hit" in call("run", face, "--cache", "cache")[1]

    def test_the_environment_names_the_cache_too(self, call, face, monkeypatch):
        monkeypatch.setenv("CALOTYPE_CACHE", "elsewhere")
        call("run", face)
        assert "2 hit" in call("run", face)[1]

    def test_a_picture_is_repeated_bit_for_bit_from_itself(self, call, tmp_path):
        call("run", "text2img", *QUICK, "--set", "seed=-1", "--set", "count=2")
        code, out, _ = call("run", "out/text2img-image-00001.png", "--out", "again")
        assert code == 0
        for number in ("00001", "00002"):
            made = (tmp_path / f"out/text2img-image-{number}.png").read_bytes()
            assert made == (tmp_path / f"again/text2img-image-{number}.png").read_bytes()

    def test_a_chain_is_repeated_from_its_picture_without_the_saved_graphs(self, call, tmp_path):
        few = ["--set", "first/paint.steps=2", "--set", "second/paint.steps=2"]
        call("run", "inpaint_after_img2img", *few)
        with PIL.Image.open(tmp_path / "out/inpaint_after_img2img-image-00001.png") as picture:
            document = json.loads(picture.text["calotype"])
        assert document["nodes"]["first"]["params"]["steps"] == 2
        assert document["nodes"]["first"]["graph"]["nodes"]["paint"]["type"] == "sample"
        code, _, _ = call("run", "out/inpaint_after_img2img-image-00001.png", "--out", "again")
        assert code == 0
        made = (tmp_path / "out/inpaint_after_img2img-image-00001.png").read_bytes()
        assert made == (tmp_path / "again/inpaint_after_img2img-image-00001.png").read_bytes()

    def test_pictures_carry_the_parameters_text(self, call, tmp_path):
        call("run", "img2img", *QUICK, "--set", "prompt=a fox, smiling", "--set", "negative=blurry", "--set", "seed=5")
        with PIL.Image.open(tmp_path / "out/img2img-image-00001.png") as picture:
            prompt, negative, line = picture.text["parameters"].splitlines()
        assert prompt == "a fox, smiling"
        assert negative == "Negative prompt: blurry"
        assert line.startswith(
            "Steps: 3, Sampler: DPM++ 2M, Schedule type: Karras, CFG scale: 5, Seed: 5, Size: 128x128, "
        )
        assert "Model: pocket, Denoising strength: 0.75, RNG: CPU, Version: Calotype" in line

    def test_a_picture_finds_the_files_that_lay_beside_its_graph(self, call, face, tmp_path, monkeypatch):
        for name in ("mine", "face"):
            with PIL.Image.open(INPUTS / "fox.png") as picture:
                picture.save(tmp_path / f"{name}.png")
        (tmp_path / "mine.json").write_text(face.read_text().replace("face.png", "mine.png"))
        elsewhere = tmp_path / "elsewhere"
        elsewhere.mkdir()
        monkeypatch.chdir(elsewhere)
        for name in ("mine", "face"):
            assert call("run", tmp_path / f"{name}.json", "--out", "made")[0] == 0
            assert call("run", f"made/{name}-image-00001.png", "--out", "again")[0] == 0
            made = (elsewhere / f"made/{name}-image-00001.png").read_bytes()
            again = (elsewhere / f"again/{name}-image-00001.png").read_bytes()
            assert made == again

    def test_another_file_under_the_name_is_refused_unless_it_is_asked_for(self, call, face, tmp_path):
        with PIL.Image.open(INPUTS / "face.png") as picture:
            picture.save(tmp_path / "face.png")
        call("run", face)
        with PIL.Image.open(INPUTS / "fox.png") as picture:
            picture.save(tmp_path / "face.png")
        code, _, err = call("run", "out/face-image-00001.png")
        assert code == 2
        assert "'face.png' is not the file that the picture was made with; --set photo.source=FILE takes another" in err
        assert call("run", "out/face-image-00001.png", "--set", "photo.source=face.png")[0] == 0

    def test_a_table_of_styles_counts_only_where_a_style_is_asked_for(self, call, tmp_path):
        table = tmp_path / "styles.csv"
        call("run", "img2img", *QUICK, "--out", "plain")
        table.write_text("name,prompt,negative_prompt\nnight,dark,\n")
        assert call("run", "plain/img2img-image-00001.png")[0] == 0
        call("run", "img2img", *QUICK, "--set", 'styles=["night"]', "--out", "styled")
        table.write_text("name,prompt,negative_prompt\nnight,black,\n")
        code, _, err = call("run", "styled/img2img-image-00001.png")
        assert code == 2
        assert "'styles.csv' is not the file that the picture was made with" in err

    def test_a_picture_finds_the_embeddings_that_its_prompt_mentions_and_insists_on_them(
        self, call, tmp_path, monkeypatch
    ):
        (tmp_path / "embeddings").mkdir()
        save_file({"emb_params": torch.ones(1, 128)}, tmp_path / "embeddings/scarlet.safetensors")
        call("run", "img2img", *QUICK, "--set", "prompt=a scarlet face", "--out", "out")
        made = tmp_path / "out/img2img-image-00001.png"
        elsewhere = tmp_path / "elsewhere"
        elsewhere.mkdir()
        monkeypatch.chdir(elsewhere)
        assert call("run", made, "--out", "again")[0] == 0
        with PIL.Image.open(made) as one, PIL.Image.open(elsewhere / "again/img2img-image-00001.png") as again:
            assert one.tobytes() == again.tobytes()
        save_file({"emb_params": torch.zeros(1, 128)}, tmp_path / "embeddings/scarlet.safetensors")
        code, _, err = call("run", made)
        assert code == 2
        assert "a file that 'a scarlet face' mentions is not what it was for the picture; --set" in err
        assert call("run", made, "--set", "prompt=a scarlet face")[0] == 0

    def test_existing_pictures_are_never_replaced(self, call, face, tmp_path):
        for _ in range(3):
            call("run", face)
        assert len(list((tmp_path / "out").iterdir())) == 3

    def test_standard_input_is_a_graph(self, call):
        code, out, _ = call("run", "-", stdin=json.dumps(FACE))
        assert code == 0
        assert "2 ran" in out

    def test_outputs_that_are_no_pictures_are_printed(self, call, tmp_path):
        document = {
            "format": "calotype/1",
            "nodes": {"t": {"type": "text", "params": {"value": "hello"}}},
            "outputs": {"t": "t"},
        }
        code, out, _ = call("run", "-", "--report", "r.json", stdin=json.dumps(document))
        assert code == 0
        assert "t: hello" in out
        assert json.loads((tmp_path / "r.json").read_text())["outputs"] == {"t": []}

    def test_only_the_requested_output_runs(self, call, face):
        code, out, _ = call("run", face, "--output", "photo.out")
        assert code == 0
        assert "1 ran, 1 unneeded" in out


class TestRefusals:
    def test_every_problem_is_printed(self, call, face, tmp_path):
        document = json.loads(face.read_text())
        document["nodes"]["small"]["type"] = "image.reszie"
        document["outputs"]["other"] = "smal"
        face.write_text(json.dumps(document))
        code, out, err = call("run", face)
        assert code == 2
        assert "refused, 2 problems:" in err
        assert 'nodes.small.type: unknown node type "image.reszie", did you mean "image.resize"?' in err
        assert "outputs.other: no node 'smal', did you mean \"small\"?" in err
        assert not list(tmp_path.glob("out/*"))

    def test_values_are_judged_by_the_parameters_type(self, call):
        code, _, err = call("run", "img2img", "--set", "strength=1.5", "--set", "steps=many", "--set", "colour=red")
        assert code == 2
        said = {line.split(":")[0].strip(): line for line in err.splitlines()}
        assert "got 1.5 (range 0..1)" in said["strength"]
        assert 'got "many" (range 1..1000)' in said["steps"]
        assert "neither an exposed name nor node.param" in said["colour"]

    def test_text_stays_text(self, call):
        assert call("validate", "img2img", "--set", "prompt=7")[0] == 0

    @pytest.mark.parametrize(
        ("arguments", "said"),
        [
            (("run", "img2imgg"), "no saved graph 'img2imgg', did you mean \"img2img.json\"?"),
            (("run", "img2img", "--set", "strength"), "expected NAME=VALUE"),
            (("run", "img2img", "--device", "tpu"), "no device 'tpu' here"),
            (("run", "img2img", "--set", "source=nowhere.png"), "nodes.photo.params.source: no file 'nowhere.png'"),
            (("nodes", "image.lod"), "no node type 'image.lod', did you mean \"image.load\"?"),
            (("sweep", "img2img"), "name at least one axis"),
            (("fly",), "No such command"),
            (("run", "img2img", "--set", "sampler=Euler a"), '"Euler a" is euler_ancestral here'),
            (("run", "img2img", "--set", "sampler=DPM++ 2M Karras"), "is dpmpp_2m here, with the schedule karras"),
            (("run", "img2img", "--cache", __file__), "cache folder"),
            (("run", "x" * 5000), "is not the name of a graph"),
            (("sweep", "img2img", "--x", "strength=2-1 (+1)"), "does not lead from 2 to 1"),
            (("sweep", "img2img", "--x", "steps=1,2", "--vary", "seed=y"), "sweep.vary.seed: this sweep has no axis y"),
            (("sweep", "img2img", "--x", "steps=1,2", "--x", "cfg=1,2"), "--x stands 2 times"),
            (("sweep", "img2img", "--x", "strenght=1,2"), 'did you mean "strength"?'),
        ],
    )
    def test_wrong_arguments_exit_with_2(self, call, arguments, said):
        code, _, err = call(*arguments)
        assert code == 2
        assert said in err

    def test_a_picture_without_a_graph(self, call):
        code, _, err = call("run", INPUTS / "fox.png")
        assert code == 2
        assert "carries no graph" in err

    def test_places_that_cannot_be_written_to_are_refused_before_any_work(self, call, face, tmp_path):
        (tmp_path / "afile").write_text("")
        code, out, err = call("run", face, "--out", "afile", "--report", tmp_path)
        assert code == 2
        assert "--out: afile is not a folder that can be written to" in err
        assert f"--report: {tmp_path} is a folder; name a file" in err
        assert "ran" not in err

    @pytest.mark.parametrize("value", ["!!bool maybe", "!!float [1]", "!!timestamp foo"])
    def test_yaml_that_is_no_plain_data(self, call, value):
        code, _, err = call(
            "validate", "-", stdin=f"format: calotype/1\nnodes: {{a: {{type: number, params: {{value: {value}}}}}}}"
        )
        assert code == 2
        assert "refused" in err

    def test_a_failing_node_exits_with_1_and_is_reported(self, call, face, tmp_path):
        document = json.loads(face.read_text())
        document["nodes"]["cut"] = {
            "type": "image.crop",
            "params": {"x": 40, "y": 0, "width": 20, "height": 20},
            "inputs": {"image": "small"},
        }
        document["outputs"]["cut"] = "cut"
        face.write_text(json.dumps(document))
        code, out, err = call("run", face, "--report", "report.json")
        assert code == 1
        assert "cut (image.crop): ValueError" in err
        report = json.loads((tmp_path / "report.json").read_text())
        assert report["nodes"]["cut"]["outcome"] == "failed"
        assert list(report["outputs"]) == ["image"]


class TestLookingAround:
    def test_a_plan_says_what_would_run_and_why(self, call, face):
        call("run", face, "--cache", "cache")
        code, out, _ = call("plan", face, "--cache", "cache", "--set", "width=64")
        assert code == 0
        assert out.splitlines() == [
            "hit\tphoto\timage.load\thit",
            "run\tsmall\timage.resize\tparameter changed (width: 48 → 64)",
        ]
        assert "2 hit" in call("run", face, "--cache", "cache")[1]

    def test_cells_and_sheets_are_saved_on_request_and_named_after_their_place(self, call, face, tmp_path):
        axes = ["--x", "width=16,32", "--y", "small.height=16,24", "--z", "small.filter=nearest,lanczos"]
        code, out, _ = call("sweep", face, *axes, "--cells", "--sheets", "--no-legend", "--margin", "2")
        assert code == 0
        names = {path.stem.removesuffix("-00001") for path in (tmp_path / "out").iterdir()}
        places = [f"x{x}-y{y}-z{z}" for x in (0, 1) for y in (0, 1) for z in (0, 1)]
        assert names == {f"face-image{each}" for each in ("", "-z0", "-z1", *(f"-{place}" for place in places))}
        sizes = {"": (4 * 32 + 3 * 2, 2 * 24 + 2), "-z1": (66, 50), "-x0-y0-z0": (16, 16), "-x1-y0-z1": (32, 16)}
        for name, size in sizes.items():
            with PIL.Image.open(tmp_path / f"out/face-image{name}-00001.png") as picture:
                assert picture.size == size

    def test_a_cell_is_repeated_bit_for_bit_from_its_picture(self, call, face, tmp_path):
        call("sweep", face, "--x", "width=16,32", "--y", "small.filter=nearest,lanczos", "--cells")
        code, out, _ = call("run", "out/face-image-x1-y1-00001.png", "--out", "again")
        assert code == 0
        made = (tmp_path / "out/face-image-x1-y1-00001.png").read_bytes()
        assert made == (tmp_path / "again/face-image-00001.png").read_bytes()
        with PIL.Image.open(tmp_path / "out/face-image-x1-y1-00001.png") as picture:
            document = json.loads(picture.text["calotype"])
        assert "sweep" not in document
        assert (
            document["nodes"]["small"]["params"] | {"width": 32, "filter": "lanczos"}
            == document["nodes"]["small"]["params"]
        )
        assert document["meta"]["files"].keys() == {"photo.source"}

    def test_another_file_in_a_cell_is_refused_by_its_picture(self, call, face, tmp_path):
        for name in ("one.png", "two.png"):
            with PIL.Image.open(INPUTS / "fox.png") as picture:
                picture.save(tmp_path / name)
        call("sweep", face, "--x", "photo.source=???.png", "--cells")
        with PIL.Image.open(INPUTS / "face.png") as picture:
            picture.save(tmp_path / "one.png")
        code, _, err = call("run", "out/face-image-x0-00001.png")
        assert (code, "'one.png' is not the file that the picture was made with" in err) == (2, True)
        assert call("run", "out/face-image-x1-00001.png")[0] == 0

    def test_a_batch_gives_pictures_beside_one_another_each_with_its_own_graph(self, call, face, tmp_path):
        code, out, _ = call("run", face, "--batch", "small.filter=nearest,lanczos,bicubic")
        assert code == 0
        names = [f"face-image-{number}-00001.png" for number in (1, 2, 3)]
        assert [f"image-{index + 1}: out/{name}" in out for index, name in enumerate(names)] == [True] * 3
        call("run", f"out/{names[1]}", "--out", "again")
        assert (tmp_path / "out" / names[1]).read_bytes() == (tmp_path / "again/face-image-00001.png").read_bytes()

    def test_a_dry_run_says_what_it_costs_and_writes_nothing(self, call, tmp_path):
        arguments = ["sweep", "img2img", "--x", "strength=0.5,0.75", "--y", "seed=1,2,3", "--set", "steps=4"]
        code, out, _ = call(*arguments, "--set", "sampler=heun", "--dry-run")
        assert code == 0
        assert "may run\tsample\t6" in out
        nodes, *sampled = out.splitlines()[-1].removeprefix("6 cells; ").split("; ")
        assert re.fullmatch(r"at most \d+ nodes to run", nodes)
        assert sampled == ["6 pictures to sample, 84 UNet evaluations in about 7 calls"]
        assert list(tmp_path.iterdir()) == []

    def test_the_negative_counts_where_it_is_asked_for_whatever_the_cfg(self, call):
        for sampler, evaluations in (("euler", 4), ("euler_cfg_pp", 8)):
            told = ["--set", "steps=4", "--set", "cfg=1", "--set", f"sampler={sampler}", "--dry-run"]
            out = call("sweep", "text2img", "--x", "seed=1", *told)[1]
            assert f"1 picture to sample, {evaluations} UNet evaluations in about 4 calls" in out

    def test_only_what_would_run_counts(self, call):
        axes = ["--x", "seed=1,2", "--set", "steps=3", "--cache", "cache"]
        assert "2 pictures to sample, 12 UNet evaluations in about 3 calls" in call("sweep", "text2img", *axes)[1]
        axes[1] = "seed=1-3"
        out = call("sweep", "text2img", *axes)[1]
        assert "3 cells; at most 4 nodes to run; 1 picture to sample, 6 UNet evaluations in about 3 calls" in out
        assert "0 nodes to run; 0 pictures to sample\n" in call("sweep", "text2img", *axes, "--dry-run")[1]

    def test_a_sweep_makes_one_sheet(self, call, face, tmp_path):
        code, out, _ = call("sweep", face, "--x", "width=16,32", "--y", "small.filter=nearest,lanczos")
        assert code == 0
        assert "6 ran" in out
        assert len(list((tmp_path / "out").iterdir())) == 1

    def test_saved_graphs_nodes_and_models_are_listed(self, call):
        assert "inpaint_after_img2img" in call("graphs")[1]
        assert "image.resize\tResize to" in call("nodes")[1]
        assert call("models")[1].startswith("pocket\t")
        assert "denoise" in call("nodes", "sample")[1]

    def test_loras_embeddings_and_vaes_are_listed_with_what_they_are_known_by(self, call, tmp_path, monkeypatch):
        monkeypatch.setattr(pocket, "PLACES", {})
        for folder, name in (
            ("checkpoints", "real.safetensors"),
            ("loras/old", "fox.safetensors"),
            ("embeddings", "easy.pt"),
            ("vae/mine", "config.json"),
        ):
            (tmp_path / folder).mkdir(parents=True)
            (tmp_path / folder / name).write_text("x" * 100_000)
        listed = [line.split("\t") for line in call("models", "--digest")[1].splitlines()]
        digest = hashlib.sha256(b"x" * 100_000).hexdigest()[:12]
        assert [row[:3] for row in listed[1:]] == [
            ["real", "model", "100.0 kB"],
            ["old/fox", "lora", "100.0 kB"],
            ["easy", "embedding", "100.0 kB"],
            ["mine", "VAE", "100.0 kB"],
        ]
        assert [row[3] for row in listed[1:4]] == [digest] * 3
        assert [row[4] for row in listed[1:3]] == ["checkpoints/real.safetensors", "loras/old/fox.safetensors"]
        damaged = (
            "expected a safetensors file, found a damaged one (Error while deserializing header: header too large)"
        )
        pickle = "a pickle, which is not loaded; docs/models.md says how it is converted"
        no_json = "mine/config.json: expected JSON, found something else (Expecting value: line 1 column 1 (char 0))"
        assert [row[5] for row in listed[1:]] == [damaged, damaged, pickle, no_json]

    def test_a_graph_is_drawn(self, call):
        assert call("show", "inpaint_after_img2img")[1].startswith("flowchart LR")
        drawn = call("show", "inpaint_after_img2img", "--as", "svg")[1]
        texts = [element.text for element in ET.fromstring(drawn).iter("{http://www.w3.org/2000/svg}text")]
        assert "second/paint" in texts

    def test_an_empty_graph_is_drawn(self, call):
        code, out, _ = call("show", "-", "--as", "svg", stdin='{"format": "calotype/1", "nodes": {}}')
        assert code == 0
        assert out.startswith("<svg")

    def test_a_cache_is_shown_and_cleared(self, call, face):
        call("run", face, "--cache", "cache")
        assert "5 values" in call("cache", "--cache", "cache")[1]
        assert call("cache", "clear", "--cache", "cache")[0] == 0
        assert "0 values" in call("cache", "--cache", "cache")[1]
        assert "2 ran" in call("run", face, "--cache", "cache")[1]
        assert call("cache", "--cache", "nowhere")[0] == 2

    def test_validate_counts_nodes_or_lists_problems(self, call):
        code, out, _ = call("validate", "inpaint")
        assert code == 0
        assert "valid" in out
        code, _, err = call("validate", "-", stdin='{"format": "calotype/1", "nodes": {"a": {"type": "nothing"}}}')
        assert code == 2
        assert 'nodes.a.type: unknown node type "nothing"' in err


def test_a_fully_cached_run_loads_neither_diffusers_nor_transformers(tmp_path):
    arguments = ["run", "text2img", "--set", "steps=2", "--cache", "cache"]
    probe = f"""
import sys
sys.argv = ["calotype", *{arguments!r}]
from calotype.__main__ import main
try:
    main()
except SystemExit as done:
    assert not done.code
print("loaded:", sorted({{"diffusers", "transformers"}} & set(sys.modules)))
"""
    said = [
        subprocess.run([sys.executable, "-c", probe], check=True, capture_output=True, text=True, cwd=tmp_path).stdout
        for _ in range(2)
    ]
    assert "loaded: ['diffusers', 'transformers']" in said[0]
    assert "loaded: []" in said[1]
    assert find("text2img").title() == "Text to image"


@pytest.mark.parametrize(("main", "found"), [("from calotype.__main__ import main", ""), ("main = sys.exit", "looked")])
def test_a_command_ends_without_looking_for_garbage(main, found):
    probe = f"""
import sys
sys.argv = ["calotype", "--version"]
{main}

class Garbage:
    def __del__(self, said=sys.__stdout__.write):
        said("looked")

def left():
    garbage = Garbage()
    garbage.itself = garbage

try:
    main()
except SystemExit:
    left()
"""
    said = subprocess.run([sys.executable, "-c", probe], check=True, capture_output=True, text=True).stdout
    assert said.removeprefix(f"calotype {__version__}").strip() == found
