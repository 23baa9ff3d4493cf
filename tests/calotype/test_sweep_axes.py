"""Axes from the command line: what `NAME=VALUES` becomes in a graph, by the type of the parameter."""

import json

import PIL.Image
import pytest

from calotype import Engine, find
from calotype.meaning import parameters
from calotype.sweep import Wanted, everything, swept
from engine.errors import GraphError
from engine.file import Files
from engine.graph import Graph

DOCUMENT = {
    "format": "calotype/1",
    "nodes": {
        "photo": {"type": "image.load", "params": {"source": "a.png"}},
        "hole": {"type": "mask.load", "params": {"source": "masks/a.png"}},
        "small": {
            "type": "image.resize",
            "params": {"width": 16, "height": 12},
            "inputs": {"image": "photo"},
        },
        "soft": {"type": "image.blur", "params": {"radius": 1.0}, "inputs": {"image": "small"}},
        "noise": {"type": "noise.seeded", "params": {"seed": 7}},
        "words": {"type": "text", "params": {"value": "a cat, a red cat"}},
        "others": {"type": "text", "params": {"value": "no cat"}},
        "sheet": {"type": "image.grid", "inputs": {"images": ["soft"]}},
    },
    "expose": {
        "width": "small.width",
        "height": "small.height",
        "filter": "small.filter",
        "mode": "small.mode",
        "radius": "soft.radius",
        "seed": "noise.seed",
        "prompt": "words.value",
        "negative": "others.value",
        "source": "photo.source",
        "labels": "sheet.x_labels",
    },
    "outputs": {"image": "soft"},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    (folder / "masks").mkdir()
    for number, name in enumerate(("a", "b", "odd [1]")):
        PIL.Image.new("RGB", (16, 12), (number, 0, 0)).save(folder / f"{name}.png")
        PIL.Image.new("L", (16, 12)).save(folder / "masks" / f"{name}.jpg")
    PIL.Image.new("L", (16, 12)).save(folder / "masks" / "a.png")
    return folder


@pytest.fixture(scope="module")
def engine(folder):
    with Engine(files=Files([folder])) as engine:
        yield engine


@pytest.fixture
def read(engine):
    """The sweep that some axes become."""

    def read(*vary, document=DOCUMENT, **axes):
        return swept(engine, Graph.parse(document), Wanted(axes, vary)).dump()["sweep"]

    return read


def refused(read, *vary, **axes):
    with pytest.raises(GraphError) as error:
        read(*vary, **axes)
    return str(error.value)


class TestValues:
    @pytest.mark.parametrize(
        ("text", "values"),
        [
            ("width=16,32", [16, 32]),
            ("width=16-64 (+16)", [16, 32, 48, 64]),
            ("width=16,,32-33,", [16, 32, 33]),
            ("radius=0-2 [3]", [0.0, 1.0, 2.0]),
            ("radius=1,2.5", [1, 2.5]),
            ("filter=nearest, lanczos", ["nearest", "lanczos"]),
            ("prompt=1-5", ["1-5"]),
            ('prompt="a, b",c', ["a, b", "c"]),
            ("soft.radius=1", [1]),
            ("labels=one,,two", [["one"], [], ["two"]]),
        ],
    )
    def test_values_are_read_by_their_parameters_type(self, read, text, values):
        assert read(x=text) == {"x": {text.split("=")[0]: values}}

    def test_an_asterisk_is_every_choice(self, read):
        assert {"nearest", "lanczos", "bicubic"} <= set(read(x="filter=*")["x"]["filter"])

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("width=0", "--x width: must be greater than or equal to 1, got 0"),
            ("width=many", '--x width: must be a valid integer, got "many"'),
            ("widht=1", '--x widht: neither an exposed name nor node.param, did you mean "width"?'),
            ("width=", "--x width: no values"),
            ("width", "--x width: expected NAME=VALUE,VALUE,..."),
            ("prompt:repalce=a,b", "expected prompt:replace or prompt:order, got prompt:repalce"),
            ("prompt:replace=cat", "expected the word that stands there, and at least one more"),
            ("width+height=16x32x48", "expected 2 values joined by"),
            ("width:order=3,2", "holds no words to put into another order"),
            ("radius=1e999-1e999", "--x radius: '1e999-1e999' leads beyond the numbers that there are"),
            ("source=~of-nobody/*", "--x source: '~of-nobody/*': Could not determine home directory"),
            ("mode=Crop and resize", 'got "Crop and resize"; "Crop and resize" is crop here'),
        ],
    )
    def test_what_is_wrong_is_said_of_the_option(self, read, text, message):
        assert message in refused(read, x=text)

    def test_everything_that_is_wrong_is_said_at_once(self, read):
        assert len(refused(read, x="width=0", y="radius=red").splitlines()) == 2


class TestWords:
    def test_a_word_is_replaced_in_both_prompts_and_labels_are_the_bare_words(self, read, engine):
        assert read(x="prompt:replace=cat,dog") == {
            "x": {"prompt": ["cat", "dog"], "negative": ["cat", "dog"]},
            "replace": {"x": "cat"},
        }
        graph = swept(engine, Graph.parse(DOCUMENT), Wanted({"batch": "prompt:replace=cat,dog"}))
        steps = {step.id: step.values.get("value") for step in engine.program(graph).steps}
        assert (steps["words[b1]"], steps["others[b1]"]) == ("a dog, a red dog", "no dog")

    def test_another_text_is_replaced_alone(self, read):
        assert read(x="others.value:replace=no,one")["x"] == {"others.value": ["no", "one"]}

    def test_two_axes_may_replace_words_of_one_prompt(self, read):
        found = read(x="prompt:replace=cat,dog", y="prompt:replace=red,blue")
        assert found["replace"] == {"x": "cat", "y": "red"}

    def test_a_word_that_stands_in_neither_is_refused(self, read):
        assert "sweep.replace.x: 'fox' stands nowhere in prompt, negative" in refused(read, x="prompt:replace=fox,owl")

    def test_words_take_every_order(self, read):
        found = read(y='prompt:order="a cat",a red')
        assert found["y"] == {"prompt": ["a cat, a red cat", "a red, a cat cat"]}
        assert found["labels"] == {"y": ["a cat, a red", "a red, a cat"]}


class TestTogether:
    def test_names_advance_together(self, read):
        assert read(x="width+height=16x32,48x64") == {
            "x": {"width": [16, 48], "height": [32, 64]},
            "labels": {"x": ["width+height: 16x32", "width+height: 48x64"]},
        }
        assert read(x="filter+radius=nearest:1,lanczos:2.5")["x"] == {
            "filter": ["nearest", "lanczos"],
            "radius": [1, 2.5],
        }

    def test_size_is_short_for_width_and_height(self, read):
        assert read(x="size=16x32")["x"] == {"width": [16], "height": [32]}
        assert read(x="size=16x32")["labels"] == {"x": ["size: 16x32"]}
        own = {**DOCUMENT, "expose": {**DOCUMENT["expose"], "size": "noise.count"}}
        assert read(x="size=2,3", document=own)["x"] == {"size": [2, 3]}


class TestFiles:
    def test_a_pattern_is_all_files_that_match(self, read):
        assert read(batch="source=*.png")["batch"] == {"source": ["a.png", "b.png", "odd [1].png"]}

    def test_an_absolute_pattern_gives_absolute_names(self, read, folder):
        assert read(batch=f"source={folder}/?.png")["batch"]["source"] == [f"{folder}/a.png", f"{folder}/b.png"]

    def test_a_folder_gives_the_file_of_the_same_name(self, read):
        assert read(batch="source+hole.source=*.png:masks/")["batch"] == {
            "source": ["a.png", "b.png", "odd [1].png"],
            "hole.source": ["masks/a.jpg", "masks/b.jpg", "masks/odd [1].jpg"],
        }

    def test_nothing_that_matches_is_refused(self, read):
        assert "--batch source: no file matches '*.tiff'" in refused(read, batch="source=*.tiff")
        assert "holes/ holds nothing that is called as 'a.png' is" in refused(
            read, batch="source+hole.source=a*.png:holes/"
        )


class TestBatch:
    def test_a_number_counts_the_graphs_seed_up(self, read):
        assert read(batch="3") == {"batch": {"seed": [7, 8, 9]}}

    def test_a_fresh_seed_is_drawn_once(self, read):
        document = json.loads(json.dumps(DOCUMENT))
        document["nodes"]["noise"]["params"]["seed"] = -1
        first, *more = read(batch="3", document=document)["batch"]["seed"]
        assert first >= 0
        assert more == [first + 1, first + 2]

    def test_a_graph_without_a_seed_says_what_to_write(self, read):
        document = {**DOCUMENT, "expose": {"width": "small.width"}}
        assert "--batch NAME=VALUE,VALUE,..." in refused(read, batch="3", document=document)

    @pytest.mark.parametrize("count", ["0", "10001", "99999999999"])
    def test_a_number_of_pictures_that_no_sweep_takes_is_refused(self, read, count):
        assert f"--batch {count}: '{count}' stands for {count} values; 1 to 10000 are allowed" in refused(
            read, batch=count
        )

    def test_the_graphs_own_sweep_is_kept_beside_a_batch(self, read):
        document = {**DOCUMENT, "sweep": {"x": {"width": [1, 2]}, "margin": 4}}
        assert read(batch="2", document=document) == {**document["sweep"], "batch": {"seed": [7, 8]}}
        assert read(y="width=1,2", document=document) == {"y": {"width": [1, 2]}}


class TestVary:
    def test_a_number_counts_along_all_axes_or_those_that_are_named(self, read):
        assert read("seed", x="width=1,2", z="height=1,2")["vary"] == {"seed": ["x", "z"]}
        assert read("seed=z", x="width=1,2", z="height=1,2")["vary"] == {"seed": ["z"]}

    def test_a_batch_of_seeds_counts_on_where_the_cells_end(self, engine):
        graph = swept(engine, Graph.parse(DOCUMENT), Wanted({"x": "prompt=a,b", "batch": "2"}, ["seed"]))
        program = engine.program(graph)
        seeds = {step.id: step.values["seed"] for step in program.steps if step.id.startswith("noise")}
        assert seeds == {"noise[x0,b0]": 7, "noise[x1,b0]": 8, "noise[x0,b1]": 9, "noise[x1,b1]": 10}


def test_cells_and_sheets_are_asked_for_by_their_links(engine):
    graph = swept(engine, Graph.parse(DOCUMENT), Wanted({"x": "radius=1,2", "z": "width=8,16"}))
    program = engine.program(graph)
    assert everything(program, cells=False, sheets=False) == ["image"]
    assert everything(program, cells=True, sheets=True) == [
        "image",
        *(f"soft[x{x},z{z}].out" for z in (0, 1) for x in (0, 1)),
        "grid:image[z0].out",
        "grid:image[z1].out",
    ]


class TestConstants:
    """A name that leads to a constant is judged by what the constant feeds."""

    @pytest.fixture
    def content(self):
        with Engine(device="cpu") as engine:
            yield engine, find("inpaint")

    def test_every_word_of_the_parameter_that_it_feeds_is_a_value(self, content):
        engine, graph = content
        sweep = swept(engine, graph, Wanted({"x": "content=*"})).document.sweep
        assert sweep.x == {"content": ["fill", "original", "noise", "nothing"]}

    def test_a_word_that_nothing_understands_is_refused_before_anything_runs(self, content):
        engine, graph = content
        with pytest.raises(GraphError, match="must be 'fill', 'original', 'noise' or 'nothing'"):
            swept(engine, graph, Wanted({"x": "content=original,nonsense"}))

    def test_a_number_is_judged_by_all_that_it_feeds(self, content):
        engine, graph = content
        assert [param.name for param in parameters(engine, graph, "width")] == ["value", "width", "width"]
        assert [param.name for param in parameters(engine, graph, "strength")] == ["denoise"]
