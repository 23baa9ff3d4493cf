"""Saved graphs that need models of one's own, on tiny ones under the names that they ask for."""

import pytest
from pipelines import controlnet, photograph, plain, refiner, xl
from safetensors.torch import save_file
from upscalers import compact, newest, rrdbnet

from calotype import Engine, find
from nodes.types import Unet

QUICK = {"steps": 3, "width": 64, "height": 64}


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    root = tmp_path_factory.mktemp("own")
    (root / "checkpoints").mkdir()
    (root / "controlnet").mkdir()
    (root / "upscale").mkdir()
    xl(root / "checkpoints/sd_xl_base_1.0")
    refiner(root / "checkpoints/sd_xl_refiner_1.0")
    plain(root / "checkpoints/v1-5-pruned-emaonly")
    for seed, name in enumerate(("v11p_sd15_canny", "v11p_sd15_inpaint", "v11f1e_sd15_tile")):
        controlnet(root / "controlnet" / f"control_{name}", seed=seed)
    photograph(48).save(root / "photo.png")
    save_file(newest(rrdbnet()), root / "upscale/RealESRGAN_x4plus.safetensors")
    save_file(newest(compact(2)), root / "upscale/other.safetensors")
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


def test_an_upscale_model_enlarges_by_a_factor_and_another_model_or_factor_enlarges_again(engine):
    graph = find("upscale").set(source="photo.png", factor=1.5)
    assert engine.run(graph)["image"].size == (72, 72)
    assert engine.run(graph).ran() == []
    assert engine.run(graph.set(tile=0)).ran() == ["larger"]
    assert engine.run(graph.set(factor=2.0)).ran() == ["larger"]
    assert sorted(engine.run(graph.set(upscaler="other")).ran()) == ["larger", "upscaler"]


def test_what_an_upscale_model_made_of_a_first_pass_is_painted_once_more(engine):
    graph = find("hires_upscaler").set({"steps": 2, "hires_steps": 2, "width": 64, "height": 64, "factor": 1.3})
    first = engine.run(graph, ["image", "before", "larger/larger"])
    assert (first["before"].size, first["larger/larger"].size) == ((64, 64), (83, 83))
    assert first["image"].size == (80, 80), "sides that can be encoded"
    again = ["decoded", "fitted", "larger/larger", "repaint", "start"]
    assert sorted(engine.run(graph.set(factor=1.5)).ran()) == again
    assert sorted(engine.run(graph.set(strength=0.3)).ran()) == ["decoded", "repaint"]


def test_an_inpainting_controlnet_paints_under_the_mask_alone_and_sees_nothing_of_what_was_there(engine):
    graph = find("controlnet_inpaint").set(QUICK | {"mask_x": 16, "mask_y": 16, "mask_w": 32, "mask_h": 32})
    first = engine.run(graph, ["image", "fitted", "soft", "control"])
    changed = (first["image"].data.int() - first["fitted"].data.int()).abs().amax(1, keepdim=True)
    assert changed[first["soft"].data == 0].max() == 0
    assert changed[first["soft"].data == 255].max() > 20
    assert first["control"].masks[0].shape == (1, 1, 64, 64)
    assert engine.run(graph).ran() == []
    assert sorted(engine.run(graph.set(blur=2.0)).ran()) == ["pasted", "soft"]
    moved = engine.run(graph.set(mask_x=24))
    assert sorted(moved.ran()) == ["control", "decoded", "drawn", "paint", "pasted", "soft"]


def test_a_controlnet_for_tiles_reads_the_picture_without_its_detail(engine):
    graph = find("controlnet_tile").set(QUICK)
    first = engine.run(graph, ["image", "before", "coarse"])
    assert (first["coarse"].data == first["before"].data).all()
    coarser = graph.set(down_sampling_rate=4.0)
    second = engine.run(coarser, ["image", "coarse"])
    assert sorted(second.ran()) == ["coarse", "control", "decoded", "paint"]
    assert second["coarse"].data.float().std() < first["coarse"].data.float().std()
    assert (second["image"].data != first["image"].data).any()


def test_of_two_controlnets_each_changes_the_picture_and_the_first_is_not_read_again(engine):
    graph = find("controlnet_two").set(QUICK | {"seed": 5})
    first = engine.run(graph)
    assert engine.run(graph).ran() == []
    alone = engine.run(graph.set(second_strength=0.0))
    assert sorted(alone.ran()) == ["coloured", "decoded", "paint"]
    other = engine.run(graph.set(control_strength=0.0))
    assert sorted(other.ran()) == ["coloured", "decoded", "outlined", "paint"]
    pictures = [each["image"].data for each in (first, alone, other)]
    assert all((one != two).any() for one, two in zip(pictures, [*pictures[1:], pictures[0]], strict=True))


def test_a_checkpoint_without_marks_is_told_to_predict_v_from_outside(engine):
    graph = find("text2img").set(QUICK | {"checkpoint": "v1-5-pruned-emaonly", "prompt": "a fox"})
    plain = engine.run(graph, ["image", "prompted/patched.unet"])
    assert plain["prompted/patched.unet"] == Unet(plain["prompted/patched.unet"].digest)
    again = engine.run(graph.set(prediction="v_prediction"), ["image", "prompted/patched.unet"])
    assert sorted(again.ran()) == ["decoded", "paint", "prompted/patched", "prompted/trained"]
    told = again["prompted/patched.unet"]
    assert (told.prediction, told.zero_snr) == ("v_prediction", False)
    assert (again["image"].data != plain["image"].data).any()
    third = engine.run(graph.set(prediction="v_prediction", zero_snr=True), ["image", "prompted/patched.unet"])
    assert third["prompted/patched.unet"].zero_snr
    assert (third["image"].data != again["image"].data).any()
