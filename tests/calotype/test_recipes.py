"""Recipes: the WebUI's names and defaults, and graphs that run."""

import pytest

from calotype import Engine, labels, recipes
from calotype.recipes import Common, Image2Image, Inpaint, Text2Image, img2img, inpaint_sketch, sketch, text2img
from engine.errors import GraphError
from engine.program import validate

FEW = {"width": 128, "height": 128, "steps": 2, "seed": 5, "prompt": "smiling face"}
MADE = {
    "text2img": text2img,
    "hires": lambda **given: text2img(enable_hr=True, hr_scale=1.5, **given),
    "img2img": lambda **given: img2img("face.png", **given),
    "inpaint": lambda **given: img2img("face.png", "face-mask.png", **given),
    "masked": lambda **given: img2img("face.png", "face-mask.png", area="Only masked", **given),
    "soft": lambda **given: img2img("face.png", "face-mask.png", soft_inpainting={"contrast": 8}, **given),
    "sketch": lambda **given: sketch("face.png", "face-strokes.png", **given),
    "inpaint_sketch": lambda **given: inpaint_sketch("face.png", "face-painted.png", **given),
}
BLIND = {"text2img", "hires"}
"""Recipes that begin with no picture."""


@pytest.fixture(scope="module")
def engine():
    with Engine(device="cpu") as house:
        yield house


def literal(graph, name):
    """What stands at the end of an exposed name."""
    head, _, tail = name.partition("/")
    if tail:
        return literal(graph.subgraphs[head], tail)
    node, param = graph.document.expose.get(name, name).split(".")
    if node in graph.subgraphs:
        stated = graph.document.nodes[node].params
        return stated[param] if param in stated else literal(graph.subgraphs[node], param)
    return graph.document.nodes[node].params.get(param)


def refused(made, **given):
    with pytest.raises(GraphError) as error:
        made(**given)
    return {problem.path: problem.message for problem in error.value.problems}


@pytest.mark.parametrize("name", MADE)
def test_without_a_word_everything_is_as_on_the_webuis_tab(name):
    graph = MADE[name]()
    tab = {"steps": 20, "cfg": 7, "sampler": "dpmpp_2m", "schedule": "automatic", "width": 512, "height": 512}
    if name not in ("sketch", "inpaint_sketch"):
        tab |= {"decoded.rounding": "truncate", "noise.source": "nv"}
    tab |= {"seed": -1, "count": 1, "clip_skip": 1, "checkpoint": "pocket", "prompt": "", "weighting": "a1111"}
    assert {each: literal(graph, each) for each in tab} == tab
    if name not in BLIND:
        tab = {"strength": 0.75, "resize": "stretch", "convention": "a1111", "colour_correction": 0}
        assert {each: literal(graph, each) for each in tab} == tab
    if name in ("inpaint", "inpaint_sketch"):
        tab = {"blur": 4, "area": "whole", "padding": 32, "content": "original", "invert": False, "edge": "a1111"}
        assert {each: literal(graph, each) for each in tab} == tab
        assert literal(graph, "round_mask")
    assert validate(graph, recipes._registry(), list(graph.document.arguments)) == []


@pytest.mark.parametrize("table", [Common, Text2Image, Image2Image, Inpaint])
def test_every_name_is_described(table):
    own = table.__annotations__.keys() - (Common.__annotations__ if table is not Common else {}).keys()
    assert [name for name in own if f"`{name}`" not in "".join(each.__doc__ for each in table_and_parents(table))] == []


def table_and_parents(table):
    return [each for each in (Common, Image2Image, table) if each.__doc__]


def test_every_name_leads_somewhere():
    elsewhere = {"sampler_name", "scheduler", "n_iter", "soft_inpainting", "enable_hr"}
    led = {*recipes.COMMON, *recipes.IMAGE, *recipes.INPAINT, *recipes.HIRES, *elsewhere}
    names = {name for table in (Common, Text2Image, Image2Image, Inpaint) for name in table.__annotations__}
    assert {name for name in names - led if not name.startswith("hr_")} == set()


@pytest.mark.parametrize("label", [*labels.SAMPLERS.values(), *labels.SAMPLERS])
def test_samplers_go_by_the_webuis_labels_and_by_our_names(label):
    graph = text2img(sampler_name=label.lower())
    assert label in (literal(graph, "sampler"), labels.SAMPLERS[literal(graph, "sampler")])


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"sampler_name": "DPM++ 2M Karras"}, ("dpmpp_2m", "karras")),
        ({"sampler_name": "DPM++ 2M SDE Heun Exponential"}, ("dpmpp_2m_sde_heun", "exponential")),
        ({"sampler_name": "Euler a", "scheduler": "SGM Uniform"}, ("euler_ancestral", "sgm_uniform")),
        ({"sampler_name": "DPM++ 2M Karras", "scheduler": "Exponential"}, ("dpmpp_2m", "exponential")),
        ({"sampler_name": "DPM++ SDE SGM Uniform", "scheduler": None}, ("dpmpp_sde", "sgm_uniform")),
    ],
)
def test_a_schedule_may_stand_in_the_samplers_name(given, expected):
    graph = text2img(**given)
    assert (literal(graph, "sampler"), literal(graph, "schedule")) == expected


def test_choices_go_by_labels_by_words_and_by_the_apis_numbers():
    for resize, fill, area in (
        ("Resize and fill", "latent noise", "Only masked"),
        ("fill", "noise", "masked"),
        (2, 2, 1),
    ):
        graph = img2img("face.png", "face-mask.png", resize_mode=resize, inpainting_fill=fill, area=area)
        assert [literal(graph, name) for name in ("resize", "content", "area")] == ["fill", "noise", "masked"]


def test_sides_are_cut_to_whole_cells():
    graph = text2img(width=515, height=64)
    assert (literal(graph, "width"), literal(graph, "height")) == (512, 64)


def test_everything_that_does_not_fit_is_named():
    problems = refused(
        lambda **given: img2img("face.png", "face-mask.png", **given),
        steps=0,
        cfg_scale="much",
        sampler_name="DPM+ 2M",
        denoising_strength=1.5,
        resize_mode="bend",
        width="wide",
        n_iter=0,
        mask_blr=3,
        styles="night",
    )
    assert problems.keys() == {
        *("steps", "cfg_scale", "sampler_name", "denoising_strength", "resize_mode", "width", "n_iter", "mask_blr"),
        "styles",
    }
    assert problems["steps"] == "must be greater than or equal to 1, got 0 (range 1..1000)"
    assert problems["sampler_name"] == "no sampler is called 'DPM+ 2M', did you mean \"DPM++ 2M\"?"
    assert problems["mask_blr"] == 'no such name, did you mean "mask_blur"?'
    assert problems["width"] == "expected a whole number from 8 to 16384, got 'wide'"
    assert problems["resize_mode"].endswith("'Just resize (latent upscale)', got 'bend'")
    assert "soft_inpainting.hardness" in refused(
        lambda **given: img2img("face.png", "face-mask.png", **given), soft_inpainting={"hardness": 1}
    )


def batch(graph):
    return graph.dump().get("sweep", {}).get("batch")


def test_batches_have_seeds_that_count_up_over_all_pictures():
    assert batch(text2img(seed=10)) is None
    assert batch(text2img(seed=10, n_iter=3)) == {"seed": [10, 11, 12]}
    graph = text2img(seed=10, n_iter=3, batch_size=2)
    assert batch(graph) == {"seed": [10, 12, 14]}
    assert literal(graph, "count") == 2
    assert batch(text2img(seed=2**64 - 1, n_iter=2)) == {"seed": [2**64 - 1, 0]}


def test_with_a_variation_the_seed_stays_and_the_variations_count_up():
    graph = img2img("face.png", seed=10, subseed=100, subseed_strength=0.25, n_iter=3, batch_size=4)
    assert batch(graph) == {"variation_seed": [100, 104, 108]}
    assert (literal(graph, "seed"), literal(graph, "variation")) == (10, 0.25)


def test_a_seed_that_is_to_be_drawn_is_drawn_once_for_all_batches():
    first, second = (batch(text2img(n_iter=2))["seed"] for _ in range(2))
    assert first[1] == first[0] + 1
    assert first != second
    graph = text2img(n_iter=2, subseed_strength=0.5)
    assert literal(graph, "seed") >= 0
    assert batch(graph)["variation_seed"][0] >= 0
    assert literal(text2img(subseed_strength=0.5), "variation_seed") == -1


@pytest.mark.parametrize(
    ("given", "size"),
    [
        ({}, (1024, 1536)),
        ({"hr_scale": 1.3}, (664, 992)),
        ({"hr_resize_x": 768}, (768, 1152)),
        ({"hr_resize_y": 1152}, (768, 1152)),
        ({"hr_resize_x": 768, "hr_resize_y": 1152}, (768, 1152)),
    ],
)
def test_hires_fix_enlarges_by_a_factor_or_to_a_size(given, size):
    graph = text2img(enable_hr=True, width=512, height=768, **given)
    assert (literal(graph, "hires_width"), literal(graph, "hires_height")) == size


def test_the_second_pass_is_as_the_first_unless_it_is_told():
    graph = text2img(enable_hr=True, steps=12, cfg_scale=3.0, sampler_name="Euler a")
    told = {"hires_steps": 12, "hires_cfg": 3, "hires_sampler": "euler_ancestral", "hires_schedule": "automatic"}
    assert {name: literal(graph, name) for name in told} == told
    graph = text2img(enable_hr=True, hr_second_pass_steps=5, hr_cfg=4.0, hr_sampler_name="Heun", hr_scheduler="Karras")
    told = {"hires_steps": 5, "hires_cfg": 4, "hires_sampler": "heun", "hires_schedule": "karras", "strength": 0.7}
    assert {name: literal(graph, name) for name in told} == told
    assert "another aspect" in refused(text2img, enable_hr=True, hr_resize_x=512, hr_resize_y=768)["hr_scale"]


@pytest.mark.parametrize("scale", [1e308, float("inf"), float("nan")])
def test_an_enlargement_beyond_all_sizes_is_refused(scale):
    assert refused(text2img, enable_hr=True, hr_scale=scale).keys() == {"hr_scale"}


def test_a_soft_mask_is_rounded_nowhere():
    places = ("round_mask", "begun.round_mask", "drawn.threshold")
    for given, rounded in (({}, True), ({"soft_inpainting": {}}, False), ({"mask_round": False}, False)):
        graph = img2img("face.png", "face-mask.png", **given)
        assert [literal(graph, name) for name in places] == [rounded] * 3


def test_the_masks_transparency_is_the_paints_share_the_other_way_round():
    assert literal(inpaint_sketch("face.png", "face-painted.png", mask_transparency=25), "opacity") == 0.75
    assert "mask_transparency" in refused(
        lambda **given: inpaint_sketch("face.png", "face-painted.png", **given), mask_transparency=101
    )


@pytest.mark.parametrize("name", MADE)
def test_a_recipe_runs(engine, name):
    size = {"hires": (192, 192), "masked": (256, 256)}.get(name, (128, 128))
    result = engine.run(MADE[name](**FEW), ["image"])
    assert result["image"].size == size
    assert result["image"].data.float().std() > 10


def test_a_picture_of_a_batch_is_the_picture_made_alone(engine):
    alone = engine.run(text2img(**{**FEW, "seed": 6}))["image"].data
    beside = engine.run(text2img(**FEW, batch_size=2))["image"].data
    after = engine.run(text2img(**FEW, n_iter=2))
    assert list(after.outputs) == ["image-1", "image-2"]
    for made in (beside[1:], after["image-2"].data):
        assert (made.int() - alone.int()).abs().max() <= 1


def test_only_what_is_masked_changes(engine):
    result = engine.run(MADE["masked"](**FEW, denoising_strength=1.0), ["image", "photo", "drawn"])
    difference = (result["image"].data.int() - result["photo"].data.int()).abs().amax(dim=1)[0]
    assert difference[0].max() == 0
    assert difference[result["drawn"].data[0, 0] == 255].max() > 20
