# ruff: noqa: N802 - methods are called what ComfyUI's nodes are called
"""Graphs of ComfyUI, in our nodes, give its latents and pictures.

The golden folder, named by the environment variable CALOTYPE_GOLDEN, holds cases that ComfyUI 0.3.64 made on a CPU in
float32 with an SD 1.5 checkpoint of random weights, and the script that writes this checkpoint (2.1 GB).
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
from safetensors.torch import load_file

from calotype import Engine

pytestmark = pytest.mark.slow

CASES = [
    "vae_roundtrip_64",
    "imagescale_bilinear",
    "imagescale_lanczos",
    "latentupscale_area",
    "latentupscale_bislerp",
    "i2i64_euler_normal_seed0",
    "i2i64_euler_ancestral_normal_seed0",
    "i2i64_dpmpp_2m_karras_seed0",
    "i2i64_ddim_ddim_uniform_seed0",
    "i2i64x_dpm_2_normal",
    "i2i64x_dpmpp_2s_ancestral_karras",
    "i2i64x_dpmpp_2m_sde_karras",
    "i2i64x_euler_beta",
    "i2i64x_heun_normal",
    "i2i128_dpmpp_2m_karras_seed0",
    "t2i64_cfg1",
    "t2i64_dpmpp_2m_karras",
    "batch2_i2i_euler",
    "clip_skip2",
    "prompt_weight",
    "prompt_long",
    "cond_combine",
    "cond_area",
    "inpaint_setnoisemask_dpmpp_2m",
    "inpaint_vaeencodeforinpaint_euler",
    "lora_0.8_0.6",
    "hiresfix_bislerp_2x",
    "ksampleradvanced_split",
]
LATENT_ERROR = 1e-3
LEVELS = 2


@pytest.fixture(scope="session")
def golden():
    folder = os.environ.get("CALOTYPE_GOLDEN")
    if not folder:
        pytest.skip("CALOTYPE_GOLDEN names no folder with ComfyUI's results")
    return Path(folder)


@pytest.fixture(scope="session")
def checkpoint(golden, tmp_path_factory):
    made = tmp_path_factory.mktemp("models") / "sd15_random.safetensors"
    subprocess.run([sys.executable, str(golden / "make_checkpoint.py"), str(made)], check=True)
    yield made
    made.unlink()


@pytest.fixture(scope="session")
def engine(golden, checkpoint):
    with Engine(device="cpu", roots=[golden / "inputs", golden, checkpoint.parent]) as house:
        yield house


def cases():
    """The known cases, and whatever else the folder holds."""
    folder = os.environ.get("CALOTYPE_GOLDEN")
    found = {path.parent.name for path in Path(folder).glob("*/graph.json")} if folder else set()
    return sorted(found | set(CASES))


@pytest.mark.parametrize("case", cases())
def test_a_graph_of_comfyui_gives_its_latents_and_pictures_here(engine, golden, case):
    saved = ComfyGraph(json.loads((golden / case / "graph.json").read_text()))
    result = engine.run(saved.document())
    assert saved.outputs()
    for name, node in saved.outputs().items():
        if saved.kind(name) == "SaveLatent":
            theirs = load_file(golden / case / f"{name}_0.latent")["latent_tensor"]
            ours = result[name].data / result[name].space.scaling
            error = ((ours - theirs).norm() / theirs.norm()).item()
            print(f"{case} {name}: relative error {error:.1e}")
            assert error <= LATENT_ERROR, node
        else:
            for index in range(len(result[name].data)):
                theirs = np.asarray(PIL.Image.open(golden / case / f"{name}_{index}.png").convert("RGB"), np.int16)
                apart = np.abs(np.asarray(result[name].pil(index), np.int16) - theirs).max()
                print(f"{case} {name} {index}: {apart} levels")
                assert apart <= LEVELS, node


class ComfyGraph:
    """A graph in ComfyUI's API format, said in our nodes.

    A latent there carries the mask it is to be repainted in; here the sampler has the link. A batch there is one of
    latents; here the noise says how many pictures there are.
    """

    def __init__(self, nodes):
        self.nodes = nodes

    def document(self):
        made = {}
        for name, node in self.nodes.items():
            translated = getattr(self, node["class_type"], None)
            if translated is not None:
                made |= translated(name, node["inputs"])
        return {"format": "calotype/1", "nodes": made, "outputs": self.outputs()}

    def outputs(self):
        sources = {"SaveLatent": "samples", "SaveImage": "images"}
        return {
            name: self.link(node["inputs"][sources[node["class_type"]]])
            for name, node in self.nodes.items()
            if node["class_type"] in sources
        }

    def kind(self, name):
        return self.nodes[name]["class_type"]

    def link(self, source):
        name, slot = source
        through = {"SetLatentNoiseMask": "samples", "RepeatLatentBatch": "samples"}
        if self.kind(name) in through:
            return self.link(self.nodes[name]["inputs"][through[self.kind(name)]])
        ports = {"CheckpointLoaderSimple": ("unet", "text", "vae"), "LoraLoader": ("unet", "text")}
        several = ports.get(self.kind(name))
        return f"{name}.{several[slot]}" if several else name

    def upstream(self, source):
        """The nodes that a latent comes through, from the last to the first."""
        while source is not None:
            name, _ = source
            yield name
            inputs = self.nodes[name]["inputs"]
            source = inputs.get("samples") or inputs.get("latent_image")

    def count(self, source):
        """How many pictures a latent is."""
        inputs = [self.nodes[name]["inputs"] for name in self.upstream(source)]
        return int(np.prod([given.get("amount", 1) * given.get("batch_size", 1) for given in inputs]))

    def mask(self, source):
        """The mask that a latent carries, if any."""
        for name in self.upstream(source):
            if self.kind(name) == "SetLatentNoiseMask":
                return self.link(self.nodes[name]["inputs"]["mask"])
            if self.kind(name) == "VAEEncodeForInpaint":
                return f"{name}_grown"
        return None

    def CheckpointLoaderSimple(self, name, given):
        return {name: made("model.load", checkpoint=given["ckpt_name"])}

    def LoraLoader(self, name, given):
        return {
            name: made(
                "model.lora",
                {"unet": self.link(given["model"]), "text": self.link(given["clip"])},
                source=given["lora_name"],
                unet_strength=given["strength_model"],
                text_strength=given["strength_clip"],
            )
        }

    def CLIPSetLastLayer(self, name, given):
        return {name: made("text.clip_skip", {"encoder": self.link(given["clip"])}, skip=-given["stop_at_clip_layer"])}

    def CLIPTextEncode(self, name, given):
        return {name: made("text.encode", {"encoder": self.link(given["clip"])}, text=given["text"], weighting="comfy")}

    def ConditioningCombine(self, name, given):
        """All prompts count alike, however many of them were combined before."""
        one, other = given["conditioning_1"], given["conditioning_2"]
        share = self.prompts(other) / (self.prompts(one) + self.prompts(other))
        return {name: made("conditioning.combine", {"a": self.link(one), "b": self.link(other)}, share=share)}

    def prompts(self, source):
        """How many prompts a conditioning is."""
        given = self.nodes[source[0]]["inputs"]
        if self.kind(source[0]) == "ConditioningCombine":
            return self.prompts(given["conditioning_1"]) + self.prompts(given["conditioning_2"])
        inner = given.get("conditioning") or given.get("conditioning_to")
        return self.prompts(inner) if inner else 1

    def changed(self, name, given, kind, **params):
        return {name: made(kind, {"conditioning": self.link(given["conditioning"])}, **params)}

    def ConditioningSetArea(self, name, given):
        place = {side: given[side] for side in ("x", "y", "width", "height")}
        return self.changed(name, given, "conditioning.area", strength=given["strength"], **place)

    def ConditioningSetAreaPercentage(self, name, given):
        place = {side: given[side] for side in ("x", "y", "width", "height")}
        return self.changed(name, given, "conditioning.area", strength=given["strength"], unit="share", **place)

    def ConditioningSetAreaStrength(self, name, given):
        return self.changed(name, given, "conditioning.area", strength=given["strength"])

    def ConditioningSetMask(self, name, given):
        links = {"conditioning": self.link(given["conditioning"]), "mask": self.link(given["mask"])}
        bounds = given["set_cond_area"] != "default"
        return {name: made("conditioning.mask", links, strength=given["strength"], bounds=bounds)}

    def ConditioningSetTimestepRange(self, name, given):
        return self.changed(name, given, "conditioning.span", start=given["start"], end=given["end"])

    def ConditioningZeroOut(self, name, given):
        return self.changed(name, given, "conditioning.zero")

    def ConditioningAverage(self, name, given):
        links = {"a": self.link(given["conditioning_to"]), "b": self.link(given["conditioning_from"])}
        return {name: made("conditioning.average", links, share=1 - given["conditioning_to_strength"])}

    def ConditioningConcat(self, name, given):
        links = {"a": self.link(given["conditioning_to"]), "b": self.link(given["conditioning_from"])}
        return {name: made("conditioning.concat", links)}

    def LoadImage(self, name, given):
        return {name: made("image.load", source=given["image"])}

    def LoadImageMask(self, name, given):
        assert given["channel"] == "red"  # of a grey picture
        return {name: made("mask.load", source=given["image"])}

    def ImageScale(self, name, given):
        """The same filters as Pillow's as long as a picture becomes larger."""
        (width, height), scaled = self.size(given["image"]), (given["width"], given["height"])
        trimmed, x, y = f"{name}_trimmed", 0, 0
        if given["crop"] == "center":
            aspect, wanted = width / height, scaled[0] / scaled[1]
            x = round((width - width * (wanted / aspect)) / 2) if aspect > wanted else 0
            y = round((height - height * (aspect / wanted)) / 2) if aspect < wanted else 0
        box = {"x": x, "y": y, "width": width - 2 * x, "height": height - 2 * y}
        size = {"width": scaled[0], "height": scaled[1]}
        return {
            trimmed: made("image.crop", {"image": self.link(given["image"])}, **box),
            name: made("image.resize", {"image": trimmed}, filter=given["upscale_method"], **size),
        }

    def size(self, source):
        """(width, height) of a picture."""
        given = self.nodes[source[0]]["inputs"]
        if self.kind(source[0]) == "LoadImage":
            with PIL.Image.open(Path(os.environ["CALOTYPE_GOLDEN"]) / "inputs" / given["image"]) as picture:
                return picture.size
        assert self.kind(source[0]) == "ImageScale"
        return given["width"], given["height"]

    def VAEEncode(self, name, given):
        return {name: made("vae.encode", {"vae": self.link(given["vae"]), "image": self.link(given["pixels"])})}

    def VAEEncodeForInpaint(self, name, given):
        mask = self.link(given["mask"])
        links = {"vae": self.link(given["vae"]), "image": self.link(given["pixels"]), "hidden": mask}
        return {
            name: made("vae.encode", links),
            f"{name}_grown": made("mask.grow", {"mask": mask}, by=given["grow_mask_by"], shape="kernel"),
        }

    def VAEDecode(self, name, given):
        links = {"vae": self.link(given["vae"]), "latent": self.link(given["samples"])}
        return {name: made("vae.decode", links, rounding="truncate")}

    def EmptyLatentImage(self, name, given):
        [loader] = [other for other in self.nodes if self.kind(other) == "CheckpointLoaderSimple"]
        return {name: made("latent.empty", {"vae": f"{loader}.vae"}, width=given["width"], height=given["height"])}

    def LatentUpscaleBy(self, name, given):
        width, height = self.pixels((name, 0))
        links = {"latent": self.link(given["samples"])}
        return {name: made("latent.resize", links, filter=given["upscale_method"], width=width, height=height)}

    def pixels(self, source):
        """(width, height) of the picture that a latent is of."""
        given = self.nodes[source[0]]["inputs"]
        if self.kind(source[0]) == "LatentUpscaleBy":
            return tuple(8 * round(side / 8 * given["scale_by"]) for side in self.pixels(given["samples"]))
        if "width" in given:
            return given["width"], given["height"]
        return (
            self.size(given["pixels"])
            if "pixels" in given
            else self.pixels(given.get("samples") or given["latent_image"])
        )

    def LatentUpscale(self, name, given):
        assert given["crop"] == "disabled"
        size = {"width": given["width"], "height": given["height"]}
        return {
            name: made("latent.resize", {"latent": self.link(given["samples"])}, filter=given["upscale_method"], **size)
        }

    def KSampler(self, name, given):
        return self.sampled(name, given, seed=given["seed"], denoise=given["denoise"])

    def KSamplerAdvanced(self, name, given):
        nodes = self.sampled(
            name,
            given,
            seed=given["noise_seed"],
            first=given["start_at_step"],
            last=given["end_at_step"],
            leftover=given["return_with_leftover_noise"] == "enable",
        )
        if given["add_noise"] == "disable":
            nodes[f"{name}_options"] = made("sample.options", noise_multiplier=0.0)
            nodes[name]["inputs"]["options"] = f"{name}_options"
        return nodes

    def sampled(self, name, given, *, seed, **params):
        count, mask = self.count(given["latent_image"]), self.mask(given["latent_image"])
        links = {
            "unet": self.link(given["model"]),
            "positive": self.link(given["positive"]),
            "negative": self.link(given["negative"]),
            "latent": self.link(given["latent_image"]),
            "noise": f"{name}_noise",
        }
        links |= {"mask": mask} if mask else {}
        sampler, schedule = given["sampler_name"], given["scheduler"]
        params |= {"steps": given["steps"], "cfg": given["cfg"], "sampler": sampler, "convention": "comfy"}
        return {
            f"{name}_noise": made("noise.seeded", seed=seed, count=count, shared=count > 1),
            name: made("sample", links, schedule="beta_timestep" if schedule == "beta" else schedule, **params),
        }


def made(kind, inputs=None, /, **params):
    return {"type": kind, "params": params, "inputs": inputs or {}}
