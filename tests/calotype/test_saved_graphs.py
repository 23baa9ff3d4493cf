"""Every saved graph runs, and re-runs only what an edit concerns."""

import PIL.Image
import pytest

from calotype import Engine, Image, find
from calotype.library import INPUTS, SAVED, graphs_in

NAMES = [path.stem for path in graphs_in(SAVED)]


@pytest.fixture(scope="module")
def engine():
    with Engine(device="cpu", strict=True) as house:
        yield house


def quick(graph):
    """The graph at three steps a sampler."""
    flat = [name for name in ("paint", "first/paint", "second/paint") if _has(graph, name)]
    return graph.set({f"{name}.steps": 3 for name in flat})


def _has(graph, name):
    try:
        return graph.node_type(name) == "sample"
    except KeyError:
        return False


def test_the_saved_graphs_are_those_that_are_promised():
    assert NAMES == ["denoise_sweep", "img2img", "inpaint", "inpaint_after_img2img", "text2img"]


@pytest.mark.parametrize("name", NAMES)
def test_a_saved_graph_runs_and_running_it_again_runs_nothing(engine, name):
    graph = quick(find(name))
    assert graph.document.meta["title"]
    assert graph.exposed()
    first = engine.run(graph)
    assert isinstance(first["image"], Image)
    assert first["image"].data.float().std() > 10
    assert engine.run(graph).ran() == []


@pytest.mark.parametrize("name", NAMES)
def test_every_exposed_name_of_a_saved_graph_leads_to_a_parameter(engine, name):
    graph = find(name)
    for exposed in graph.exposed():
        node, param = graph.locate(exposed)
        assert param in engine.registry[graph.node_type(node)].params, exposed


def ran_after(engine, graph, **settings):
    engine.run(graph)
    return engine.run(graph.set(settings)).ran()


CHAINED = {
    "inpaint_prompt": ("smiling face", ["second/positive", "second/paint", "second/decoded", "second/pasted"]),
    "inpaint_strength": (0.5, ["second/paint", "second/decoded", "second/pasted"]),
    "inpaint_seed": (99, ["second/noise", "second/paint", "second/decoded", "second/pasted"]),
    "inpaint_cfg": (2.5, ["second/paint", "second/decoded", "second/pasted"]),
    "mask_x": (
        40,
        ["area", "second/area", "second/soft", "second/edge", "second/paint", "second/decoded", "second/pasted"],
    ),
    "strength": (
        0.4,
        [
            "first/paint",
            "first/decoded",
            "second/fitted",
            "second/start",
            "second/paint",
            "second/decoded",
            "second/pasted",
        ],
    ),
}


@pytest.mark.parametrize("name", CHAINED)
def test_in_the_chain_an_edit_runs_exactly_what_depends_on_it(engine, name):
    value, expected = CHAINED[name]
    assert sorted(ran_after(engine, quick(find("inpaint_after_img2img")), **{name: value})) == sorted(expected)


def test_a_sweep_encodes_once_and_samples_once_for_each_cell(engine):
    graph = (
        quick(find("img2img"))
        .set(prompt="a prompt of its own")
        .replace(sweep={"x": {"strength": [0.4, 0.8]}, "y": {"cfg": [2.0, 4.0]}})
    )
    result = engine.run(graph)
    counts = {}
    for report in result.nodes.values():
        counts[report.type] = counts.get(report.type, 0) + 1
    assert counts["sample"] == counts["vae.decode"] == 4
    assert counts["vae.encode"] == 1
    assert result["image"].size[0] > 256


def test_pixels_outside_of_the_mask_are_the_pictures_own(engine):
    result = engine.run(quick(find("inpaint_after_img2img")), ["image", "before", "area"])
    outside = result["area"].data[0, 0] == 0
    difference = (result["image"].data.int() - result["before"].data.int()).abs().amax(dim=1)[0]
    assert int(difference[outside].max()) == 0
    assert int(difference[~outside].max()) > 20


def test_a_picture_of_ones_own_can_be_bound(engine):
    picture = Image.of(PIL.Image.open(INPUTS / "fox.png"))
    result = engine.run(quick(find("img2img")), arguments={"image": picture})
    assert result["image"].size == (128, 128)
    assert "photo" not in result.ran()
