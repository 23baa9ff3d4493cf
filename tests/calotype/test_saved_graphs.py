"""Every saved graph runs, and re-runs only what an edit concerns."""

from collections import Counter

import PIL.Image
import pytest

from calotype import Engine, Image, find
from calotype.cost import cost
from calotype.library import INPUTS, SAVED, graphs_in
from engine.event import NodeMeasured

NAMES = [path.stem for path in graphs_in(SAVED)]
OWN = [name for name in NAMES if "needs" not in find(name).document.meta]
"""Graphs that run on the embedded model; the others are in test_own_models.py."""
MODES = ["img2img", "sketch", "inpaint", "inpaint_sketch", "inpaint_upload"]


@pytest.fixture(scope="module")
def engine():
    with Engine(device="cpu", strict=True) as house:
        yield house


def quick(graph, engine):
    """The graph at three steps a sampler."""
    steps = (step for step in engine.program(graph).steps if step.definition.type == "sample")
    names = {step.id.partition("[")[0] for step in steps}
    return graph.set({f"{name}.steps": 3 for name in sorted(names)})


def types(result, nodes):
    """How many nodes of each type, but for those that only handle numbers, names and sizes."""
    return Counter(result.nodes[node].type for node in nodes)


def test_the_saved_graphs_are_those_that_are_promised():
    assert NAMES == [
        "batch_img2img",
        "batch_inpaint",
        "controlnet_canny",
        "controlnet_inpaint",
        "controlnet_tile",
        "controlnet_two",
        "denoise_cfg_plot",
        "denoise_sweep",
        "embedding",
        "hires_fix",
        "hires_upscaler",
        "img2img",
        "inpaint",
        "inpaint_after_img2img",
        "inpaint_sketch",
        "inpaint_soft",
        "inpaint_upload",
        "loopback",
        "lora_styles",
        "outpaint",
        "regional_masks",
        "regional_prompts",
        "sd_upscale",
        "sdxl_base_refiner",
        "sketch",
        "text2img",
        "three_inpaints",
        "upscale",
    ]


@pytest.mark.parametrize("name", OWN)
def test_a_saved_graph_runs_and_running_it_again_runs_nothing(engine, name):
    graph = quick(find(name), engine)
    assert graph.document.meta["title"]
    assert graph.document.meta["description"].endswith(".")
    first = engine.run(graph)
    assert first.outputs
    for value in first.outputs.values():
        assert isinstance(value, Image)
        assert value.data.float().std() > 10
    assert engine.run(graph).ran() == []


@pytest.mark.parametrize("name", NAMES)
def test_every_exposed_name_of_a_saved_graph_leads_to_a_parameter(engine, name):
    graph = find(name)
    assert graph.exposed()
    for exposed in graph.exposed():
        node, param = graph.locate(exposed)
        assert param in engine.registry[graph.node_type(node)].params, exposed


@pytest.mark.parametrize("name", MODES)
def test_the_five_modes_expose_the_same_controls(name):
    controls = {"source", "prompt", "negative", "styles", "strength", "seed", "count", "steps", "cfg", "sampler"}
    controls |= {"schedule", "width", "height", "factor", "resize", "variation_seed", "variation", "checkpoint", "vae"}
    assert controls <= set(find(name).exposed())


EDITS = {
    "cfg": ("img2img", {"cfg": 2.5}, ["decoded", "matched", "paint"]),
    "prompt": (
        "img2img",
        {"prompt": "angry face"},
        ["decoded", "matched", "paint", "prompted/positive", "prompted/prompts"],
    ),
    "negative": (
        "img2img",
        {"negative": "blue"},
        ["decoded", "matched", "paint", "prompted/negative", "prompted/prompts"],
    ),
    "denoise": ("img2img", {"strength": 0.4}, ["decoded", "matched", "paint"]),
    "seed": ("img2img", {"seed": 99}, ["decoded", "matched", "noise", "paint"]),
    "clip skip": (
        "img2img",
        {"clip_skip": 2},
        ["decoded", "matched", "paint", "prompted/encoder", "prompted/negative", "prompted/positive"],
    ),
    "what is predicted": (
        "img2img",
        {"prediction": "v_prediction"},
        ["decoded", "matched", "paint", "prompted/patched", "prompted/trained"],
    ),
    "what is predicted, said as it is": ("img2img", {"prediction": None, "zero_snr": False}, []),
    "rounding": ("img2img", {"rounding": "truncate"}, ["decoded", "matched"]),
    "colour correction": ("img2img", {"colour_correction": 0.5}, ["matched"]),
    "inpaint's cfg": ("inpaint", {"cfg": 2.5}, ["decoded", "matched", "paint", "pasted"]),
    "inpaint's denoise": ("inpaint", {"strength": 0.4}, ["decoded", "matched", "paint", "pasted"]),
    "inpaint's seed": ("inpaint", {"seed": 98}, ["decoded", "matched", "noise", "paint", "pasted"]),
    "mask blur": (
        "inpaint",
        {"blur": 9.0},
        ["begun", "decoded", "filled", "frame", "hint", "matched", "paint", "pasted"],
    ),
    "edge": ("inpaint", {"edge": "inside"}, ["frame", "pasted"]),
    "grow that changes no pixel": ("inpaint", {"area.shape": "square"}, ["area"]),
    "the second prompt of a chain": (
        "inpaint_after_img2img",
        {"inpaint_prompt": "smiling face"},
        [
            "second/decoded",
            "second/matched",
            "second/paint",
            "second/pasted",
            "second/prompted/positive",
            "second/prompted/prompts",
        ],
    ),
    "the second seed of a chain": (
        "inpaint_after_img2img",
        {"inpaint_seed": 97},
        ["second/decoded", "second/matched", "second/noise", "second/paint", "second/pasted"],
    ),
    "the third of three inpaints": (
        "three_inpaints",
        {"third_strength": 0.6},
        ["third/decoded", "third/matched", "third/paint", "third/pasted"],
    ),
}


@pytest.mark.parametrize("edit", EDITS)
def test_an_edit_runs_exactly_what_depends_on_it(engine, edit):
    name, settings, expected = EDITS[edit]
    graph = quick(find(name), engine)
    engine.run(graph)
    assert sorted(engine.run(graph.set(settings)).ran()) == expected


def test_another_first_pass_of_a_chain_encodes_and_samples_twice(engine):
    graph = quick(find("inpaint_after_img2img"), engine)
    engine.run(graph)
    result = engine.run(graph.set(strength=0.45))
    ran = types(result, result.ran())
    assert (ran["sample"], ran["vae.decode"], ran["vae.encode"]) == (2, 2, 1)
    assert not ran.keys() & {"text.encode", "noise.seeded", "mask.ellipse", "model.load"}


def test_a_plot_encodes_once_and_shares_calls(engine):
    graph = quick(find("denoise_cfg_plot"), engine).set(prompt="a prompt of its own", negative="and its opposite")
    graph = graph.set(source="fox.png", resize="stretch")
    measured = []
    result = engine.run(
        graph, listener=lambda event: measured.append(event.value) if isinstance(event, NodeMeasured) else None
    )
    ran = types(result, result.ran())
    assert (ran["vae.encode"], ran["text.encode"], ran["sample"], ran["vae.decode"]) == (1, 2, 16, 16)
    assert len(measured) == 3, "three steps of sixteen trajectories"
    assert sum(measured) == 3 * (12 * 2 + 4), "a picture at cfg 1 needs no negative prompt"


@pytest.mark.parametrize(
    ("name", "given"),
    [
        ("img2img", {"sampler": "heun"}),
        ("img2img", {"strength": 0.0}),
        ("img2img", {"paint.first": 1, "paint.last": 2}),
        ("img2img", {"prompt": "a face AND blue :0.5", "count": 3}),
        ("hires_fix", {"rounding": "truncate"}),
        ("denoise_cfg_plot", {"steps": 4}),
    ],
)
def test_what_a_run_costs_is_known_before_it_and_whatever_was_there(engine, name, given):
    graph = quick(find(name), engine).set({"seed": 777, **given})
    expected = cost(engine, graph, None, engine.plan(graph))
    measured = []
    engine.run(graph, listener=lambda event: measured.append(event.value) if isinstance(event, NodeMeasured) else None)
    assert (expected.evaluations, expected.calls) == (sum(measured), len(measured))


def test_one_more_value_on_an_axis_runs_its_cells_alone(engine):
    plot = {"x": {"strength": [0.3, 0.5]}, "y": {"cfg": [2.0, 4.0]}}
    graph = quick(find("img2img"), engine).set(seed=5)
    engine.run(graph.replace(sweep=plot))
    result = engine.run(graph.replace(sweep={**plot, "x": {"strength": [0.3, 0.5, 0.8]}}))
    ran = types(result, result.ran())
    assert ran == {"sample": 2, "vae.decode": 2, "image.match_colour": 2, "image.grid": 1}


def test_a_batch_of_six_after_one_of_four_paints_two(engine):
    graph = quick(find("img2img"), engine)
    four = engine.run(graph.replace(sweep={"batch": {"seed": [41, 42, 43, 44]}}))
    assert list(four.outputs) == ["image-1", "image-2", "image-3", "image-4"]
    six = engine.run(graph.replace(sweep={"batch": {"seed": [41, 42, 43, 44, 45, 46]}}))
    assert types(six, six.ran()) == {"noise.seeded": 2, "sample": 2, "vae.decode": 2, "image.match_colour": 2}
    alone = engine.run(graph.set(seed=45))
    assert alone["image"].identity() == six["image-5"].identity()
    assert alone.ran() == []


def outside(result, mask, before, after):
    kept = result[mask].data[0, 0] == 0
    difference = (result[after].data.int() - result[before].data.int()).abs().amax(dim=1)[0]
    return int(difference[kept].max()), int(difference[~kept].max())


@pytest.mark.parametrize("area", ["whole", "masked"])
def test_pixels_outside_of_the_masks_of_a_chain_are_the_first_pictures_own(engine, area):
    graph = quick(find("inpaint_after_img2img"), engine).set(inpaint_area=area)
    kept, painted = outside(engine.run(graph, ["image", "before", "area"]), "area", "before", "image")
    assert kept == 0
    assert painted > 20


def test_inpaint_keeps_what_its_overlay_keeps(engine):
    result = engine.run(quick(find("inpaint"), engine), ["image", "frame.base", "frame.overlay"])
    kept, painted = outside(result, "frame.overlay", "frame.base", "image")
    assert kept == 0
    assert painted > 20


def test_a_picture_of_ones_own_can_be_bound(engine):
    picture = Image.of(PIL.Image.open(INPUTS / "fox.png"))
    result = engine.run(quick(find("img2img"), engine), arguments={"image": picture})
    assert result["image"].size == (128, 128)
    assert "photo" not in result.ran()


def test_resize_by_goes_before_resize_to_and_gives_sides_that_can_be_encoded(engine):
    graph = quick(find("img2img"), engine).set(factor=0.45, resize="stretch")
    assert engine.run(graph)["image"].size == (112, 112)


def test_just_resize_latent_upscale_encodes_the_picture_at_its_own_size(engine):
    graph = quick(find("img2img"), engine).set(resize="latent", width=96, height=64)
    result = engine.run(graph, ["image", "fitted", "start", "sized"])
    assert result["fitted"].size == (256, 256)
    assert result["start"].data.shape[2:] == (32, 32)
    assert result["sized"].data.shape[2:] == (8, 12)
    assert result["image"].size == (96, 64)


@pytest.mark.parametrize("content", ["original", "fill", "noise"])
def test_a_mask_follows_the_picture_also_where_its_latent_is_resized(engine, content):
    graph = quick(find("inpaint"), engine).set(resize="latent", width=96, height=64, mask_y=20, content=content)
    result = engine.run(graph, ["image", "frame.base", "frame.overlay", "start"])
    assert result["start"].data.shape[2:] == (32, 32)
    assert result["image"].size == (96, 64)
    assert outside(result, "frame.overlay", "frame.base", "image")[0] == 0


def test_outpainting_in_one_direction_distorts_nothing(engine):
    graph = quick(find("outpaint"), engine).set(left=32, top=0, right=0, bottom=0)
    result = engine.run(graph, ["image", "before", "canvas.mask"])
    assert result["before"].size == result["image"].size == (128, 96)
    kept = result["before"].data[..., 64:]
    assert (result["image"].data[..., 64:] == kept).all()


def test_an_upscaled_picture_keeps_its_aspect(engine):
    graph = quick(find("sd_upscale"), engine).set(source="fox.png", factor=0.5)
    assert engine.run(graph)["image"].size == (192, 128)


def test_strokes_of_another_size_lie_over_the_whole_picture(engine):
    result = engine.run(find("sketch").set(source="fox.png"), ["before", "opacity"])
    assert result["before"].size == result["opacity"].size == (384, 256)


def test_a_prompt_counts_where_its_mask_is_white_and_the_other_where_it_is_black(engine):
    graph = quick(find("regional_masks"), engine).set(inside="star", prompt="fox")
    first = engine.run(graph, ["image", "soft"])
    assert first["soft"].data[0, 0, 64, :16].min() > 200
    assert first["soft"].data[0, 0, 64, 112:].max() < 55
    other = engine.run(graph.set(inside="owl"))
    assert sorted(other.ran()) == ["both", "decoded", "inside", "other", "paint"]
    moved = engine.run(graph.set(mask_x=64))
    assert {"drawn", "soft", "rest", "inside", "outside", "both", "paint", "decoded"} == set(moved.ran())
    assert (moved["image"].data != first["image"].data).any()


def test_an_embedding_makes_pictures_of_its_own_and_is_known_by_its_file(engine):
    graph = quick(find("embedding"), engine)
    single = graph.replace(sweep=None)
    pictures, given = [], []
    for prompt in ("a fox on an afterglow background", "a fox on an embedding:afterglow background", "a fox"):
        result = engine.run(single.set(prompt=prompt), ["image", "painted/prompted/prompts.positive"])
        pictures.append(result["image"].data)
        given.append(len(result["painted/prompted/prompts.positive"].embeddings))
    assert given == [1, 1, 0]
    assert (pictures[0] == pictures[1]).all()
    assert (pictures[0] != pictures[2]).any()
