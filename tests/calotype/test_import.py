"""From `parameters` texts to graphs, and from graphs to texts and back."""

import io
import json
import sys
from hashlib import md5
from pathlib import Path

import PIL.Image
import pytest
from PIL.PngImagePlugin import PngInfo

from calotype import Engine, __version__, find, recipes
from calotype.__main__ import main
from calotype.caption import caption
from calotype.embedded import read
from calotype.importing import imported
from calotype.infotext import parse
from calotype.library import INPUTS
from calotype.picture import save
from engine.errors import GraphError
from engine.file import Files

TEXT = "a fox ü\nNegative prompt: dog\nSteps: 20, Sampler: DPM++ 2M Karras, CFG scale: 7, Seed: 1, Size: 512x768"
FACE, MASK = str(INPUTS / "face.png"), str(INPUTS / "face-mask.png")


@pytest.fixture(scope="module")
def engine():
    with Engine(device="cpu") as house:
        yield house


def captioned(engine, graph, size=(128, 128), output="image", index=0):
    """The text of a picture that a graph would make."""
    graph = engine.settle(graph)
    program = engine.program(graph)
    files = {
        f"{step.id}.{name}": engine.files.resolve(*named)
        for step in program.steps
        for name, named in step.files.items()
    }
    return caption(program, program.port(output), size, files, index=index, graph=graph)


def imports(text, engine, **pictures):
    return imported(text, engine.files, **{name: Path(path) for name, path in pictures.items()})


def literals(graph, engine):
    """What the flat nodes of a graph are set to."""
    return {
        step.id: (step.definition.type, dict(step.values), dict(step.files)) for step in engine.program(graph).steps
    }


class TestRead:
    def test_png_holds_it_as_a_text(self, tmp_path):
        chunks = PngInfo()
        chunks.add_itxt("parameters", TEXT)
        PIL.Image.new("RGB", (8, 8)).save(tmp_path / "a.png", pnginfo=chunks)
        assert read(tmp_path / "a.png") == TEXT

    @pytest.mark.parametrize("suffix", ["jpg", "webp"])
    @pytest.mark.parametrize(
        "comment",
        [
            b"UNICODE\0" + TEXT.encode("utf-16-be"),
            b"UNICODE\0" + TEXT.encode("utf-16-le"),
            b"\0" * 8 + TEXT.encode(),
            TEXT.encode(),
        ],
        ids=["big", "little", "undefined", "bare"],
    )
    def test_jpeg_and_webp_hold_it_as_a_users_comment(self, tmp_path, suffix, comment):
        exif = PIL.Image.Exif()
        exif.get_ifd(0x8769)[0x9286] = comment
        PIL.Image.new("RGB", (8, 8)).save(tmp_path / f"a.{suffix}", exif=exif)
        assert read(tmp_path / f"a.{suffix}") == TEXT

    def test_gif_holds_it_as_a_comment(self, tmp_path):
        PIL.Image.new("P", (8, 8)).save(tmp_path / "a.gif", comment=TEXT.encode())
        assert read(tmp_path / "a.gif") == TEXT

    def test_a_text_file_is_it(self, tmp_path):
        (tmp_path / "a.txt").write_text(f"\ufeff{TEXT}", encoding="utf-8")
        assert read(tmp_path / "a.txt") == TEXT

    def test_a_workflow_of_comfyui_is_told_apart(self, tmp_path):
        chunks = PngInfo()
        chunks.add_text("workflow", "{}")
        PIL.Image.new("RGB", (8, 8)).save(tmp_path / "a.png", pnginfo=chunks)
        with pytest.raises(GraphError, match="a workflow of ComfyUI"):
            read(tmp_path / "a.png")

    def test_what_holds_none_is_refused(self, tmp_path):
        PIL.Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
        (tmp_path / "b.bin").write_bytes(b"\0\1\2")
        for name, message in (
            ("a.png", "holds no parameters"),
            ("b.bin", "neither a picture nor a text"),
            ("c", "cannot"),
        ):
            with pytest.raises(GraphError, match=message):
                read(tmp_path / name)


ROUND = {
    "text2img": (recipes.text2img, {}),
    "ancestral": (
        recipes.text2img,
        {"sampler_name": "Euler a", "scheduler": "Automatic", "eta": 0.5, "ensd": 31337, "clip_skip": 2, "rng": "cpu"},
    ),
    "restless": (
        recipes.text2img,
        {
            "sampler_name": "Heun",
            "scheduler": "Exponential",
            "s_churn": 2.0,
            "s_tmin": 0.5,
            "s_tmax": 9.0,
            "s_noise": 1.01,
        }
        | {"sigma_min": 0.1, "sigma_max": 10.0, "rho": 5.0, "discard_penultimate_sigma": True, "emphasis": "No norm"},
    ),
    "sparing": (
        recipes.text2img,
        {"s_min_uncond": 2.5, "s_min_uncond_all": True, "skip_early_cond": 0.125},
    ),
    "varied": (
        recipes.text2img,
        {"subseed": 9, "subseed_strength": 0.125, "seed_resize_from_w": 256, "seed_resize_from_h": 192},
    ),
    "hires": (
        recipes.text2img,
        {"enable_hr": True, "hr_resize_x": 192, "hr_second_pass_steps": 5, "hr_cfg": 3.5, "denoising_strength": 0.55}
        | {"hr_upscaler": "Latent (nearest-exact)", "hr_sampler_name": "Euler", "hr_scheduler": "SGM Uniform"},
    ),
    "img2img": (
        lambda **given: recipes.img2img(FACE, **given),
        {"denoising_strength": 1.0, "initial_noise_multiplier": 0.5, "extra_noise": 0.25},
    ),
    "inpaint": (
        lambda **given: recipes.img2img(FACE, MASK, **given),
        {"mask_blur": 8.5, "inpainting_mask_invert": True, "inpainting_fill": "nothing"},
    ),
    "masked": (
        lambda **given: recipes.img2img(FACE, MASK, **given),
        {"area": "masked", "inpaint_full_res_padding": 16, "inpainting_fill": "fill", "width": 256, "height": 64},
    ),
    "soft": (
        lambda **given: recipes.img2img(FACE, MASK, **given),
        {"soft_inpainting": {"bias": 2.0, "preservation": 1.5, "threshold": 0.25}},
    ),
}
ALWAYS = {"prompt": "a fox,\n(red:1.2)", "negative_prompt": "dog: no", "steps": 7, "cfg_scale": 4.5, "seed": 11}


@pytest.mark.parametrize("name", ROUND)
def test_what_is_written_into_a_picture_is_imported_again(engine, name):
    made, controls = ROUND[name]
    graph = made(
        **{"width": 128, "height": 96, "sampler_name": "DPM++ SDE", "scheduler": "Karras", **ALWAYS, **controls}
    )
    size = (256, 256) if name == "masked" else (128, 96)
    text = captioned(engine, graph, size)
    assert parse(text).fields["Size"] == ("256x64" if name == "masked" else "128x96")
    pictures = {"image": FACE} if name in ("img2img", "inpaint", "masked", "soft") else {}
    pictures |= {"mask": MASK} if "image" in pictures and name != "img2img" else {}
    found = imports(text, engine, **pictures)
    assert found.left_out == ()
    assert literals(found.graph, engine) == literals(graph, engine)


def test_a_picture_that_was_saved_is_imported_with_the_parameters_that_made_it(engine, tmp_path):
    graph = recipes.img2img("face.png", prompt="smiling face", width=64, height=64, steps=2, seed=3, batch_size=2)
    [first, second] = save(engine.run(graph), engine, tmp_path)["image"]
    fields = dict(parse(read(Path(first))).fields)
    assert len(fields.pop("Model hash")) == 10
    assert fields == {
        "Steps": "2",
        "Sampler": "DPM++ 2M",
        "Schedule type": "Karras",
        "CFG scale": "7",
        "Seed": "3",
        "Size": "64x64",
        "Model": "pocket",
        "Denoising strength": "0.75",
        "RNG": "NV",
        "Version": f"Calotype {__version__}",
    }
    assert parse(read(Path(second))).fields["Seed"] == "4"
    found = imports(read(Path(second)), engine, image="face.png")
    alone = recipes.img2img(
        "face.png", prompt="smiling face", width=64, height=64, steps=2, seed=4, sampler_name="DPM++ 2M Karras"
    )
    assert literals(found.graph, engine) == literals(alone, engine)


class TestCaption:
    def test_a_batch_of_variations_shares_its_seed(self, engine):
        graph = recipes.text2img(seed=5, subseed=8, subseed_strength=0.5, batch_size=3, width=64, height=64)
        fields = parse(captioned(engine, graph, (64, 64), index=2)).fields
        assert (fields["Seed"], fields["Variation seed"]) == ("5", "10")

    def test_every_batch_has_its_own_seed(self, engine):
        graph = recipes.text2img(seed=5, n_iter=3, batch_size=2, width=64, height=64)
        assert parse(captioned(engine, graph, (64, 64), "image-3", index=1)).fields["Seed"] == "10"

    def test_automatic_is_what_it_stands_for_where_the_sampler_has_a_schedule_of_its_own(self, engine):
        said = {
            name: parse(captioned(engine, recipes.text2img(sampler_name=name))).fields["Schedule type"]
            for name in ("DPM++ 2M", "DPM++ 3M SDE", "Euler a", "DDIM")
        }
        assert said == {
            "DPM++ 2M": "Karras",
            "DPM++ 3M SDE": "Exponential",
            "Euler a": "Automatic",
            "DDIM": "Automatic",
        }

    def test_a_number_that_a_node_gives_is_followed_to_where_it_is_written(self, engine):
        graph = recipes.text2img(seed=5)
        nodes = graph.dump()["nodes"]
        nodes["first"] = {"type": "seed", "params": {"value": 40}}
        nodes["next"] = {"type": "integer.add", "params": {"b": 2}, "inputs": {"a": "first"}}
        nodes["noise"]["inputs"] = {"seed": "next"}
        del nodes["noise"]["params"]["seed"]
        assert parse(captioned(engine, graph.replace(nodes=nodes))).fields["Seed"] == "42"

    def test_what_was_sampled_is_as_large_as_the_picture_where_nothing_was_pasted(self, engine):
        for mask in (None, "face-mask.png"):
            graph = recipes.img2img("face.png", mask, scale_by=0.5)
            assert parse(captioned(engine, graph, (96, 160))).fields["Size"] == "96x160"

    def test_what_cannot_be_known_without_running_is_left_out(self, engine):
        fields = parse(
            captioned(engine, recipes.img2img("face.png", "face-mask.png", area="masked", scale_by=0.5))
        ).fields
        assert "Size" not in fields
        assert fields["Inpaint area"] == "Only masked"

    def test_styles_are_in_the_prompt(self, engine, tmp_path):
        (tmp_path / "styles.csv").write_text('name,prompt,negative_prompt\nnight,"{prompt} at night",day\n')
        graph = recipes.text2img(prompt="fox", styles=["night"], styles_file=tmp_path / "styles.csv")
        found = parse(captioned(engine, graph))
        assert (found.prompt, found.negative) == ("fox at night", "day")

    def test_a_sheet_says_what_its_axes_are(self, engine):
        sweep = {"x": {"strength": [0.5, 1.0]}, "y": {"sampler": ["euler", "dpmpp_2m"]}}
        graph = recipes.img2img("face.png", seed=1).replace(sweep=sweep)
        fields = parse(captioned(engine, graph)).fields
        said = {
            "Script": "X/Y/Z plot",
            "X Type": "Denoising",
            "X Values": "0.5,1",
            "Y Type": "Sampler",
            "Y Values": "Euler,DPM++ 2M",
            "Size": "512x512",
        }
        assert {name: fields.get(name) for name in said} == said
        assert imports(captioned(engine, graph), engine, image="face.png").left_out == (
            "the plot; to make it: calotype sweep GRAPH --x strength=0.5,1 --y sampler=euler,dpmpp_2m",
        )

    def test_a_sheet_of_replaced_words_says_so(self, engine):
        sweep = {"y": {"prompt": ["fox", "owl, grey"], "negative": ["fox", "owl, grey"]}, "replace": {"y": "fox"}}
        text = captioned(engine, recipes.img2img("face.png", prompt="a fox", seed=1).replace(sweep=sweep))
        fields = parse(text).fields
        assert (fields["Y Type"], fields["Y Values"]) == ("Prompt S/R", 'fox,"owl, grey"')
        assert imports(text, engine, image="face.png").left_out == (
            "the plot; to make it: calotype sweep GRAPH --y 'prompt:replace=fox,\"owl, grey\"'",
        )

    def test_models_are_named_with_their_hashes(self, engine, tmp_path):
        (tmp_path / "loras").mkdir()
        (tmp_path / "loras/winter.safetensors").write_bytes(b"winter")
        engine.files.search([tmp_path])
        fields = parse(captioned(engine, recipes.text2img(prompt="fox <lora:winter:0.5>"))).fields
        assert fields["Lora hashes"] == "winter: 30c5461fc27b"


class TestImported:
    def test_old_sampler_names_are_a_sampler_and_a_schedule(self, engine):
        assert imports(TEXT, engine).graph.dump()["nodes"]["paint"]["params"]["schedule"] == "karras"

    def test_what_the_text_does_not_say_is_said(self, engine):
        text = f"{TEXT}, Model hash: 0123456789, Denoising strength: 0.6, Mask blur: 4"
        found = imports(text, engine)
        assert found.assumed == (
            "the model is not in the text (only its hash, 0123456789): pocket stands for it; --set checkpoint=NAME",
            "noise: as a CUDA device draws it (RNG is not in the text, so it was GPU)",
            "VAE: the checkpoint's own",
            "the picture it began with: init-image.png stands for it; --image FILE, or --set source=FILE",
            "the mask: mask.png stands for it; --mask FILE, or --set mask=FILE",
            "resize mode: Just resize",
            "colour correction: off",
            "exactly the amount of steps: off",
            "mask transparency: 0",
        )
        found = imports(text, engine, image=FACE, mask=MASK)
        assert not [line for line in found.assumed if "stands for it; --image" in line or "--mask" in line]
        assert "Steps: 20" in imports("fox\nSeed: 1, Size: 64x64, Model: pocket", engine).assumed

    def test_what_is_not_followed_is_named(self, engine):
        text = f'{TEXT}, Face restoration: CodeFormer, ADetailer model: face.pt, ControlNet 0: "Module: canny, a: b"'
        text += ", Denoising strength: 0.5, Hires upscale: 2, Hires upscaler: 4x-UltraSharp, Version: v1.10.1"
        assert imports(text, engine).left_out == (
            "Hires upscaler: 4x-UltraSharp is a model for pixels; the latent is enlarged instead",
            "Face restoration: Calotype restores no faces",
            "ADetailer model: face.pt, which Calotype does not know",
            "ControlNet 0: Module: canny, a: b, which Calotype does not know",
        )

    @pytest.mark.parametrize(("weight", "lines"), [("1.0", 0), ("0.5", 1)])
    def test_how_much_an_inpainting_model_sees_of_a_picture_without_a_mask_is_named_where_it_is_any(
        self, engine, weight, lines
    ):
        text = f"{TEXT}, Denoising strength: 0.5, Conditional mask weight: {weight}"
        said = "Conditional mask weight: only with a mask; without one an inpainting model sees no picture"
        assert imports(text, engine, image=FACE).left_out == (said,) * lines
        masked = imports(text, engine, image=FACE, mask=MASK)
        assert masked.left_out == ()
        assert masked.graph.dump()["nodes"]["hint"]["params"]["strength"] == float(weight)

    def test_negative_guidance_minimum_sigma_is_followed(self, engine):
        found = imports(f"{TEXT}, NGMS: 2.5, Skip Early CFG: 0.1", engine)
        told = found.graph.dump()["nodes"]["options"]["params"]
        assert (told["ngms"], told["skip_early"], found.left_out) == (2.5, 0.1, ())

    def test_files_that_are_needed_are_named_and_looked_for(self, tmp_path):
        (tmp_path / "dream.safetensors").write_bytes(b"dream")
        (tmp_path / "loras").mkdir()
        (tmp_path / "loras/here.safetensors").write_bytes(b"here")
        text = TEXT.replace("a fox", "a fox <lora:here:1> <lora:there:0.5>")
        text += ', Model hash: 0123456789, Model: dream, VAE: kl.ckpt, TI hashes: "easy negative: c74b4e810b03"'
        found = imported(text, Files([tmp_path], anywhere=False))
        another = ", but it is another one: its hash is 30fde358b3"
        assert found.needed == (
            f"checkpoint dream (hash 0123456789): found as dream{another}",
            "VAE kl.ckpt: not found here; --set vae=NAME takes another one",
            "lora here: found",
            "lora there: not found here; it belongs into a folder loras/",
            "embedding easy negative: not found here; it belongs into a folder embeddings/",
        )
        nodes = found.graph.dump()["nodes"]
        assert nodes["model"]["params"]["checkpoint"] == "dream"
        assert nodes["prompted"]["params"]["vae"] == "kl.ckpt"

    def test_the_picture_it_began_with_is_known_by_its_hash(self, engine):
        with PIL.Image.open(FACE) as picture:
            digest = md5(picture.convert("RGB").tobytes(), usedforsecurity=False).hexdigest()
        for name, told in (("face.png", False), ("fox.png", True)):
            found = imports(f"{TEXT}, Denoising strength: 0.5, Init image hash: {digest}", engine, image=name)
            assert any("Init image hash" in line for line in found.assumed) is told

    def test_everything_that_cannot_be_followed_is_listed(self, engine):
        text = "fox\nSteps: few, Sampler: DPM+ 2M, Schedule type: Kerras, CFG scale: 700, Seed: 7, Size: big, RNG: Dice"
        with pytest.raises(GraphError) as error:
            imports(text, engine)
        assert sorted(map(str, error.value.problems)) == [
            "CFG scale: must be less than or equal to 100, got 700.0 (range 0..100)",
            "RNG: expected 'NV' or 'CPU', got 'Dice'",
            "Sampler: no sampler is called 'DPM+ 2M', did you mean \"DPM++ 2M\"?",
            "Schedule type: no schedule is called 'Kerras', did you mean \"Karras\"?",
            "Size: expected WIDTHxHEIGHT, got 'big'",
            "Steps: expected a whole number, got 'few'",
        ]

    def test_a_text_without_fields_is_refused(self, engine):
        with pytest.raises(GraphError, match="no parameters in the text"):
            imports("just a prompt", engine)


class TestCommand:
    @pytest.fixture
    def call(self, monkeypatch, capsys, tmp_path):
        monkeypatch.chdir(tmp_path)
        (tmp_path / "old.txt").write_text(f"{TEXT}, Model: pocket, Denoising strength: 0.5")

        def called(*arguments):
            monkeypatch.setattr(sys, "argv", ["calotype", *map(str, arguments)])
            monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"")))
            with pytest.raises(SystemExit) as done:
                main()
                sys.exit(0)
            said = capsys.readouterr()
            return done.value.code or 0, said.out, said.err

        return called

    def test_the_graph_is_printed_and_what_it_assumes_is_said_beside_it(self, call):
        code, out, err = call("import", "old.txt", "--image", FACE)
        assert code == 0
        assert json.loads(out)["nodes"]["photo"]["params"]["source"] == str(Path(FACE).resolve())
        assert json.loads(out)["meta"]["parameters"].startswith("a fox")
        assert "assumed, because the text does not say:\n  noise: as a CUDA device" in err
        assert "  no mask\n" in err

    def test_a_graph_is_written_where_there_is_none(self, call, tmp_path):
        assert call("import", "old.txt", "--out", "graph.json")[:2] == (0, "")
        assert call("validate", "graph.json")[0] == 0
        before = (tmp_path / "graph.json").read_bytes()
        code, _, err = call("import", "old.txt", "--out", "graph.json", "--image", FACE)
        assert (code, before) == (2, (tmp_path / "graph.json").read_bytes())
        assert "--out: graph.json is there already; --force overwrites it" in err
        assert call("import", "old.txt", "--out", "graph.json", "--image", FACE, "--force")[0] == 0
        assert before != (tmp_path / "graph.json").read_bytes()

    def test_a_picture_of_ones_own_folder_is_named_as_seen_from_the_graph(self, call, tmp_path):
        (tmp_path / "work").mkdir()
        PIL.Image.new("RGB", (64, 64)).save(tmp_path / "work/mine.png")
        assert call("import", "old.txt", "--out", "work/graph.json", "--image", "work/mine.png")[0] == 0
        assert find(str(tmp_path / "work/graph.json")).document.nodes["photo"].params["source"] == "mine.png"

    def test_a_picture_that_calotype_made_gives_its_own_graph(self, call, tmp_path, engine):
        graph = recipes.text2img(width=64, height=64, steps=1, seed=2)
        [picture] = save(engine.run(graph), engine, tmp_path / "out")["image"]
        code, out, err = call("import", picture)
        assert (code, err) == (0, "made by Calotype: this is the graph that made it\n")
        assert json.loads(out)["nodes"]["noise"]["params"]["seed"] == 2
        assert call("import", picture, "--image", FACE)[0] == 2

    def test_what_cannot_be_imported_is_refused_with_all_problems(self, call, tmp_path):
        (tmp_path / "bad.txt").write_text("fox\nSteps: few, Sampler: None at all, Seed: 1")
        code, _, err = call("import", "bad.txt")
        assert code == 2
        assert "refused, 2 problems:" in err
        PIL.Image.new("RGB", (8, 8)).save(tmp_path / "bare.png")
        assert call("import", "bare.png")[0] == 2
        assert call("import", "nowhere.png")[0] == 2
