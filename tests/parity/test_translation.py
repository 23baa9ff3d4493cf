"""Graphs of ComfyUI said in our nodes: what they become, and what is refused. They run on the pocket model."""

import copy

import numpy as np
import PIL.Image
import pytest
import torch
from comfyui import ComfyGraph, NoCounterpart
from diffusers import ControlNetModel
from scipy import ndimage

import pocket
from calotype import Engine
from nodes.diffusion import load

SIDE = 64
ODD = (70, 67)
"""A picture's size that is no number of whole cells: 3 and 1 px are cut off at the left and at the top."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("inputs")
    drawn = np.random.default_rng(0)

    def save(name, levels):
        PIL.Image.fromarray(levels).save(made / name)

    colours = drawn.integers(0, 256, (ODD[1], ODD[0], 3), dtype=np.uint8)
    spot = np.zeros((ODD[1], ODD[0]), np.uint8)
    spot[20:40, 25:50], spot[44:52, 10:20] = 255, 100
    save("odd.png", colours)
    save("odd_mask.png", spot)
    save("photo.png", np.ascontiguousarray(colours[1 : SIDE + 1, 3 : SIDE + 3]))
    save("mask.png", np.ascontiguousarray(spot[1 : SIDE + 1, 3 : SIDE + 3]))
    save("glass.png", np.dstack([colours[:SIDE, :SIDE], spot[:SIDE, :SIDE]]))
    torch.manual_seed(0)
    for name in ("lines", "depth"):
        net = ControlNetModel.from_unet(load.unet(pocket.FOLDER), conditioning_embedding_out_channels=(8, 8, 16, 16))
        for weight in net.parameters():
            weight.data += 0.02 * torch.randn(weight.shape)
        net.save_pretrained(made / "controlnet" / name)
    return made


@pytest.fixture(scope="module")
def engine(folder):
    with Engine(device="cpu", roots=[folder]) as house:
        yield house


def node(kind, **inputs):
    return {"class_type": kind, "inputs": inputs}


BEGIN = {
    "ckpt": node("CheckpointLoaderSimple", ckpt_name="pocket"),
    "pos": node("CLIPTextEncode", clip=["ckpt", 1], text="a grinning face"),
    "neg": node("CLIPTextEncode", clip=["ckpt", 1], text="a cat"),
    "img": node("LoadImage", image="photo.png"),
    "mask": node("LoadImageMask", image="mask.png", channel="red"),
    "enc": node("VAEEncode", pixels=["img", 0], vae=["ckpt", 2]),
    "empty": node("EmptyLatentImage", width=SIDE, height=SIDE, batch_size=1),
    "ks": node(
        "KSampler",
        model=["ckpt", 0],
        positive=["pos", 0],
        negative=["neg", 0],
        latent_image=["enc", 0],
        seed=3,
        steps=2,
        cfg=4.0,
        sampler_name="euler_ancestral",
        scheduler="normal",
        denoise=0.75,
    ),
    "save": node("SaveLatent", samples=["ks", 0]),
}


@pytest.fixture
def translated(folder):
    """A graph of ComfyUI: what always stands in it, further nodes, and other links of the sampler's."""

    def make(more=None, /, **links):
        nodes = copy.deepcopy(BEGIN) | (more or {})
        nodes["ks"]["inputs"] |= links
        return ComfyGraph(nodes, folder)

    return make


@pytest.fixture
def sampled(engine, translated):
    """The latents that a graph gives."""
    return lambda more=None, /, **links: engine.run(translated(more, **links).document())["save"].data


@pytest.fixture
def shown(engine, folder):
    """The levels of a mask of a graph."""

    def make(nodes, name):
        graph = ComfyGraph(nodes | {"save": node("SaveImage", images=[name, 0])}, folder)
        return engine.run(graph.document())["save"].data[0, 0].numpy()

    return make


# What is refused


def test_a_node_that_nobody_translated_is_named(translated):
    odd = {"odd": node("FreeU", model=["ckpt", 0], b1=1.1, b2=1.2, s1=0.9, s2=0.2)}
    with pytest.raises(NoCounterpart, match="node odd: no translation of FreeU is known"):
        translated(odd, model=["odd", 0]).document()


def test_what_nothing_that_is_saved_needs_is_not_looked_at(translated):
    assert translated({"odd": node("FreeU", model=["ckpt", 0])}).document() == translated().document()


@pytest.mark.parametrize(
    ("more", "links", "said"),
    [
        ({"mask": node("LoadImageMask", image="photo.png", channel="red")}, {"latent_image": ["set", 0]}, "coloured"),
        (
            {"half": node("ImageScaleBy", image=["img", 0], upscale_method="bilinear", scale_by=0.5)},
            {"latent_image": ["half_enc", 0]},
            r"no filter does what bilinear does from \(64, 64\) to \(32, 32\) px",
        ),
        (
            {
                "two": node("RepeatLatentBatch", samples=["enc", 0], amount=2),
                "one": node("LatentFromBatch", samples=["two", 0], batch_index=1, length=1),
            },
            {"latent_image": ["one", 0]},
            "no noise is that of picture 1 of a batch alone",
        ),
        (
            {"net": node("ControlNetLoader", control_net_name="lines"), "only": None},
            {"positive": ["only", 0]},
            "prompt and negative prompt have other ControlNets",
        ),
    ],
    ids=["channel", "filter", "picture", "ControlNet"],
)
def test_what_would_come_out_otherwise_is_refused(translated, more, links, said):
    told = {"control_net": ["net", 0], "image": ["img", 0], "strength": 1.0, "start_percent": 0.0, "end_percent": 1.0}
    there = {
        "set": node("SetLatentNoiseMask", samples=["enc", 0], mask=["mask", 0]),
        "half_enc": node("VAEEncode", pixels=["half", 0], vae=["ckpt", 2]),
        "only": node("ControlNetApplyAdvanced", positive=["pos", 0], negative=["neg", 0], **told),
    }
    with pytest.raises(NoCounterpart, match=said):
        translated(there | {name: each for name, each in more.items() if each}, **links).document()


# Samplers and batches


@pytest.mark.parametrize("name", ["dpmpp_sde", "dpmpp_2m_sde", "dpmpp_2m_sde_heun", "dpmpp_3m_sde"])
def test_a_sampler_that_draws_on_the_gpu_there_is_the_same(translated, name):
    plain, other = (translated(sampler_name=each).document() for each in (name, f"{name}_gpu"))
    assert plain == other
    assert plain["nodes"]["ks"]["params"]["sampler"] == name


def test_the_first_picture_of_a_batch_is_what_a_batch_begins_with(sampled):
    two = {"two": node("RepeatLatentBatch", samples=["enc", 0], amount=2)}
    one = two | {"one": node("LatentFromBatch", samples=["two", 0], batch_index=0, length=1)}
    first = sampled(one, latent_image=["one", 0], sampler_name="euler")
    batch = sampled(two, latent_image=["two", 0], sampler_name="euler")
    assert (len(first), len(batch)) == (1, 2)
    torch.testing.assert_close(first, batch[:1], rtol=1e-4, atol=1e-4)
    assert torch.equal(first, sampled(sampler_name="euler"))


# Inpainting


def test_a_mask_on_the_conditioning_is_one_on_the_latent(sampled):
    """An inpainting UNet would see more."""
    made_of = {"positive": ["pos", 0], "negative": ["neg", 0], "vae": ["ckpt", 2], "pixels": ["img", 0]}
    shown = {"in": node("InpaintModelConditioning", **made_of, mask=["mask", 0], noise_mask=True)}
    ours = {"positive": ["in", 0], "negative": ["in", 1], "latent_image": ["in", 2]}
    held = {"set": node("SetLatentNoiseMask", samples=["enc", 0], mask=["mask", 0])}
    masked = sampled(held, latent_image=["set", 0])
    assert torch.equal(sampled(shown, **ours), masked)
    assert not torch.equal(sampled(), masked)
    shown["in"]["inputs"]["noise_mask"] = False
    assert torch.equal(sampled(shown, **ours), sampled())


def test_what_an_inpainting_unet_sees_is_linked(translated):
    made_of = {"positive": ["pos", 0], "negative": ["neg", 0], "vae": ["ckpt", 2], "pixels": ["img", 0]}
    shown = {"in": node("InpaintModelConditioning", **made_of, mask=["mask", 0])}
    made = translated(shown, positive=["in", 0], negative=["in", 1], latent_image=["in", 2]).document()["nodes"]
    assert made["ks"]["inputs"]["inpaint"] == "ks_seen"
    links = {"unet": "ckpt.unet", "vae": "ckpt.vae", "image": "img", "mask": "in_kept"}
    assert made["ks_seen"] == {"type": "inpaint.conditioning", "params": {}, "inputs": links}


@pytest.mark.parametrize("kind", ["VAEEncodeForInpaint", "InpaintModelConditioning"])
def test_of_a_picture_that_is_no_whole_cells_the_middle_is_taken(sampled, kind):
    def run(**names):
        """The mask has greys below the middle, which are not repainted."""
        pictures = {
            "img": node("LoadImage", image=names["image"]),
            "mask": node("LoadImageMask", image=names["mask"], channel="red"),
        }
        made_of = {"vae": ["ckpt", 2], "pixels": ["img", 0], "mask": ["mask", 0]}
        if kind == "VAEEncodeForInpaint":
            return sampled(pictures | {"in": node(kind, **made_of, grow_mask_by=6)}, latent_image=["in", 0])
        both = node(kind, **made_of, positive=["pos", 0], negative=["neg", 0], noise_mask=True)
        return sampled(pictures | {"in": both}, positive=["in", 0], negative=["in", 1], latent_image=["in", 2])

    assert torch.equal(run(image="odd.png", mask="odd_mask.png"), run(image="photo.png", mask="mask.png"))


def test_of_a_picture_that_is_no_whole_cells_the_middle_is_encoded(sampled):
    assert torch.equal(sampled({"img": node("LoadImage", image="odd.png")}), sampled())


# Masks


@pytest.mark.parametrize("tapered", [True, False])
@pytest.mark.parametrize("by", [0, 1, 5, -2])
def test_a_mask_grows_pixel_by_pixel(shown, folder, by, tapered):
    mask = {
        "mask": node("LoadImageMask", image="mask.png", channel="green"),
        "grown": node("GrowMask", mask=["mask", 0], expand=by, tapered_corners=tapered),
    }
    levels = np.asarray(PIL.Image.open(folder / "mask.png"))
    way = ndimage.grey_dilation if by > 0 else ndimage.grey_erosion
    for _ in range(abs(by)):
        levels = way(
            levels, footprint=np.array([[not tapered, 1, not tapered], [1, 1, 1], [not tapered, 1, not tapered]])
        )
    assert np.array_equal(shown(mask, "grown"), levels)


def test_masks_are_inverted_cut_and_made_hard(shown, folder):
    levels = np.asarray(PIL.Image.open(folder / "mask.png"))
    load = {"mask": node("LoadImageMask", image="mask.png", channel="blue")}
    assert np.array_equal(shown(load | {"out": node("InvertMask", mask=["mask", 0])}, "out"), 255 - levels)
    hard = node("ThresholdMask", mask=["mask", 0], value=0.3)
    assert np.array_equal(shown(load | {"out": hard}, "out"), np.where(levels > 0.3 * 255, 255, 0))
    cut = node("CropMask", mask=["mask", 0], x=10, y=20, width=30, height=16)
    assert np.array_equal(shown(load | {"out": cut}, "out"), levels[20:36, 10:40])


def test_a_picture_has_its_transparent_part_as_a_mask(engine, folder):
    pictures = {"img": node("LoadImage", image="glass.png")}
    graph = ComfyGraph(pictures | {"save": node("SaveImage", images=["img", 0])}, folder).document()
    found = engine.run(graph | {"outputs": {"image": "img", "mask": "img_transparent"}})
    layer = np.asarray(PIL.Image.open(folder / "glass.png"))
    assert np.array_equal(found["image"].data[0].permute(1, 2, 0).numpy(), layer[..., :3])
    assert np.array_equal(found["mask"].data[0, 0].numpy(), 255 - layer[..., 3])


# Prompts, models and ControlNets


def test_prompts_are_mixed_by_the_share_of_the_second(translated):
    pair = {"conditioning_to": ["pos", 0], "conditioning_from": ["neg", 0]}
    mixed = {"mix": node("ConditioningAverage", **pair, conditioning_to_strength=0.75)}
    made = translated(mixed, positive=["mix", 0]).document()["nodes"]["mix"]
    assert made == {"type": "conditioning.average", "params": {"share": 0.25}, "inputs": {"a": "pos", "b": "neg"}}


def test_three_prompts_count_alike(translated):
    both = {
        "two": node("ConditioningCombine", conditioning_1=["pos", 0], conditioning_2=["neg", 0]),
        "three": node("ConditioningCombine", conditioning_1=["pos", 0], conditioning_2=["two", 0]),
    }
    made = translated(both, positive=["three", 0]).document()["nodes"]
    assert [made[name]["params"]["share"] for name in both] == [1 / 2, 2 / 3]


def applied(name, net, source, **more):
    told = {"control_net": [net, 0], "image": ["img", 0], "strength": 0.8}
    if more:
        pair = {"positive": [source, 0], "negative": [source, 1] if source != "pos" else ["neg", 0]}
        return {name: node("ControlNetApplyAdvanced", **pair, **told, **more)}
    return {name: node("ControlNetApply", conditioning=[source, 0], **told)}


NETS = {
    "lines": node("ControlNetLoader", control_net_name="lines"),
    "depth": node("ControlNetLoader", control_net_name="depth"),
}
WHOLE = {"start_percent": 0.0, "end_percent": 1.0}


def test_controlnets_are_chained_and_linked_to_the_sampler(sampled, translated):
    one = NETS | applied("first", "lines", "pos", **WHOLE)
    two = one | applied("second", "depth", "first", start_percent=0.2, end_percent=0.9)
    links = {"positive": ["second", 0], "negative": ["second", 1], "steps": 4}
    made = translated(two, **links).document()["nodes"]
    assert made["ks"]["inputs"] == made["ks"]["inputs"] | {"control": "second", "positive": "pos", "negative": "neg"}
    assert made["second"]["inputs"]["others"] == "first"
    assert made["second"]["params"] == {"strength": 0.8, "start": 0.2, "end": 0.9}
    alone = links | {"positive": ["first", 0], "negative": ["first", 1]}
    steered = [sampled(steps=4), sampled(one, **alone), sampled(two, **links)]
    assert len({each.sum().item() for each in steered}) == 3


def test_the_older_controlnet_node_steers_the_negative_prompt_too(sampled):
    both = sampled(NETS | applied("first", "lines", "pos", **WHOLE), positive=["first", 0], negative=["first", 1])
    assert torch.equal(sampled(NETS | applied("first", "lines", "pos"), positive=["first", 0]), both)


def test_a_vae_and_a_lora_of_the_unet_alone_take_the_checkpoints_other_parts(translated):
    more = {
        "vae": node("VAELoader", vae_name="other.safetensors"),
        "lora": node("LoraLoaderModelOnly", model=["ckpt", 0], lora_name="ink.safetensors", strength_model=0.7),
        "enc": node("VAEEncode", pixels=["img", 0], vae=["vae", 0]),
    }
    made = translated(more, model=["lora", 0]).document()["nodes"]
    assert made["vae"]["inputs"] == {"vae": "ckpt.vae"}
    assert made["lora"]["inputs"] == {"unet": "ckpt.unet", "text": "ckpt.text"}
    assert (made["lora"]["params"]["unet_strength"], made["lora"]["params"]["text_strength"]) == (0.7, 0.0)
    assert (made["ks"]["inputs"]["unet"], made["enc"]["inputs"]["vae"]) == ("lora.unet", "vae")


# Sizes


@pytest.mark.parametrize(
    ("width", "height", "size"), [(128, 96, (128, 96)), (0, 128, (128, 128)), (100, 0, (96, 96)), (8, 20, (64, 64))]
)
def test_a_latent_is_resized_to_whole_cells_and_0_keeps_the_aspect(translated, width, height, size):
    told = {"upscale_method": "bislerp", "width": width, "height": height, "crop": "disabled"}
    made = translated({"up": node("LatentUpscale", samples=["enc", 0], **told)}, latent_image=["up", 0]).document()
    params = made["nodes"]["up"]["params"]
    assert (params["width"], params["height"]) == size
