"""Saved graphs that need models of one's own, on tiny ones under the names that they ask for."""

import pytest
from pipelines import controlnet, plain, refiner, xl

from calotype import Engine, find

QUICK = {"steps": 3, "width": 64, "height": 64}


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    root = tmp_path_factory.mktemp("own")
    (root / "checkpoints").mkdir()
    (root / "controlnet").mkdir()
    xl(root / "checkpoints/sd_xl_base_1.0")
    refiner(root / "checkpoints/sd_xl_refiner_1.0")
    plain(root / "checkpoints/v1-5-pruned-emaonly")
    controlnet(root / "controlnet/control_v11p_sd15_canny")
    with Engine(device="cpu", roots=[root], strict=True) as house:
        yield house


def test_sdxls_refiner_takes_the_last_steps_and_another_score_runs_those_alone(engine):
    graph = find("sdxl_base_refiner").set(QUICK | {"switch": 2})
    first = engine.run(graph)
    assert first["image"].size == (64, 64)
    assert {"painted", "refined"} <= set(first.ran())
    assert engine.run(graph).ran() == []
    assert sorted(engine.run(graph.set(score=8.0)).ran()) == ["decoded", "refined", "scored"]
    assert sorted(engine.run(graph.set(cfg=3.0)).ran()) == ["cfg", "decoded", "painted", "refined"]


def test_a_controlnet_follows_edges_and_another_strength_samples_again(engine):
    graph = find("controlnet_canny").set(QUICK)
    first = engine.run(graph)
    assert first["edges"].data.unique().tolist() == [0, 255]
    assert first["image"].size == (64, 64)
    assert engine.run(graph).ran() == []
    weaker = engine.run(graph.set(control_strength=0.2))
    assert sorted(weaker.ran()) == ["control", "decoded", "paint"]
    assert (weaker["image"].data != first["image"].data).any()
