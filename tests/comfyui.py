# ruff: noqa: N802 - methods are called what ComfyUI's nodes are called
"""Graphs in ComfyUI's API format, said in our nodes: what its results are compared by."""

import math

import PIL.Image

from calotype import labels

SAVED = {"SaveLatent": "samples", "SaveImage": "images"}
THROUGH = {"SetLatentNoiseMask": "samples", "RepeatLatentBatch": "samples", "LatentFromBatch": "samples"}
"""Nodes that change nothing in the latents themselves here, and what they pass on."""
PAIRS = ("positive", "negative")
PAIRED = ("ControlNetApplyAdvanced", "InpaintModelConditioning")
"""Nodes whose first two outputs are the conditionings that came in."""
PORTS = {
    "CheckpointLoaderSimple": ("unet", "text", "vae"),
    "LoraLoader": ("unet", "text"),
    "LoraLoaderModelOnly": ("unet",),
}
CELL = 8
"""Pixels of a latent cell."""


class NoCounterpart(LookupError):
    """A graph asks for what none of our nodes does as ComfyUI does it."""


class ComfyGraph:
    """A graph in ComfyUI's API format, said in our nodes.

    A latent there carries the mask it is to be repainted in; here the sampler has the link, as for ControlNets and for
    what an inpainting UNet sees, which there lie on the conditionings. A batch there is one of latents; here the noise
    says how many pictures there are. Only what the saved outputs need is looked at. Raises NoCounterpart, which names
    the node, for whatever else.
    """

    def __init__(self, nodes, inputs):
        """`inputs` is the folder of the pictures that the graph loads."""
        self.nodes, self.folder = nodes, inputs

    def document(self):
        made = {}
        for name in self.needed():
            if self.kind(name) in SAVED or self.kind(name) in THROUGH:
                continue
            translate = getattr(self, self.kind(name), None) if self.kind(name)[:1].isupper() else None
            if translate is None:
                raise NoCounterpart(f"node {name}: no translation of {self.kind(name)} is known")
            made |= translate(name, self.given(name))
        return {"format": "calotype/1", "nodes": made, "outputs": self.outputs()}

    def outputs(self):
        return {
            name: self.link(self.given(name)[SAVED[self.kind(name)]]) for name in self.nodes if self.kind(name) in SAVED
        }

    def needed(self):
        """The nodes that what is saved depends on, in the graph's order."""
        found, waiting = set(), [name for name in self.nodes if self.kind(name) in SAVED]
        while waiting:
            name = waiting.pop()
            if name not in found:
                found.add(name)
                waiting += [given[0] for given in self.given(name).values() if isinstance(given, list)]
        return [name for name in self.nodes if name in found]

    def kind(self, name):
        return self.nodes[name]["class_type"]

    def given(self, name):
        return self.nodes[name]["inputs"]

    def refuse(self, name, why):
        raise NoCounterpart(f"node {name}, {self.kind(name)}: {why}")

    def link(self, source):
        name, slot = source
        kind, given = self.kind(name), self.given(name)
        if kind in THROUGH:
            return self.link(given[THROUGH[kind]])
        if kind == "ControlNetApply":
            return self.link(given["conditioning"])
        if kind in PAIRED and slot < len(PAIRS):
            return self.link(given[PAIRS[slot]])
        if kind == "LoadImage" and slot == 1:
            return f"{name}_transparent"
        return f"{name}.{PORTS[kind][slot]}" if kind in PORTS else name

    # Models

    def CheckpointLoaderSimple(self, name, given):
        return {name: made("model.load", checkpoint=given["ckpt_name"])}

    def loader(self):
        """The checkpoint, of which a graph has one."""
        [found] = [other for other in self.nodes if self.kind(other) == "CheckpointLoaderSimple"]
        return found

    def VAELoader(self, name, given):
        return {name: made("vae.load", {"vae": f"{self.loader()}.vae"}, source=given["vae_name"])}

    def LoraLoader(self, name, given):
        links = {"unet": self.link(given["model"]), "text": self.link(given["clip"])}
        strengths = {"unet_strength": given["strength_model"], "text_strength": given["strength_clip"]}
        return {name: made("model.lora", links, source=given["lora_name"], **strengths)}

    def LoraLoaderModelOnly(self, name, given):
        links = {"unet": self.link(given["model"]), "text": f"{self.loader()}.text"}
        strengths = {"unet_strength": given["strength_model"], "text_strength": 0.0}
        return {name: made("model.lora", links, source=given["lora_name"], **strengths)}

    def ModelSamplingDiscrete(self, name, given):
        known = {"eps": "epsilon", "v_prediction": "v_prediction"}
        if given["sampling"] not in known:
            self.refuse(name, f"there is no prediction {given['sampling']}")
        told = {"prediction": known[given["sampling"]], "zero_snr": given["zsnr"]}
        return {name: made("model.sampling", {"unet": self.link(given["model"])}, **told)}

    def CLIPSetLastLayer(self, name, given):
        return {name: made("text.clip_skip", {"encoder": self.link(given["clip"])}, skip=-given["stop_at_clip_layer"])}

    def ControlNetLoader(self, name, given):
        return {name: made("controlnet.load", source=given["control_net_name"])}

    # Conditionings

    def CLIPTextEncode(self, name, given):
        return {name: made("text.encode", {"encoder": self.link(given["clip"])}, text=given["text"], weighting="comfy")}

    def ConditioningCombine(self, name, given):
        """All prompts count alike, however many of them were combined before."""
        one, other = given["conditioning_1"], given["conditioning_2"]
        share = self.prompts(other) / (self.prompts(one) + self.prompts(other))
        return {name: made("conditioning.combine", {"a": self.link(one), "b": self.link(other)}, share=share)}

    def prompts(self, source):
        """How many prompts a conditioning is."""
        return sum(map(self.prompts, self.inner(source))) or 1

    def inner(self, source):
        """The conditionings that a conditioning is made of, with all that they carry; the second of two is not."""
        name, slot = source
        given = self.given(name)
        if self.kind(name) == "ConditioningCombine":
            return [given["conditioning_1"], given["conditioning_2"]]
        port = PAIRS[slot] if self.kind(name) in PAIRED else "conditioning"
        found = given.get(port) or given.get("conditioning_to")
        return [found] if found else []

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

    # What lies on conditionings there

    def ControlNetApply(self, name, given):
        return self.controlled(name, given, ["conditioning"])

    def ControlNetApplyAdvanced(self, name, given):
        return self.controlled(name, given, PAIRS, start=given["start_percent"], end=given["end_percent"])

    def controlled(self, name, given, ports, **span):
        links = {"controlnet": self.link(given["control_net"]), "image": self.link(given["image"])}
        before = [self.carried(given[port], "ControlNetApply") for port in ports]
        if any(each != before[0] for each in before):
            self.refuse(name, "its two conditionings carry other ControlNets already")
        links |= {"others": before[0][-1]} if before[0] else {}
        return {name: made("controlnet.apply", links, strength=given["strength"], **span)}

    def carried(self, source, kind):
        """The nodes of a kind (or whose kinds begin so) that a conditioning came through, the first one first."""
        name, _ = source
        ways = [self.carried(inner, kind) for inner in self.inner(source)]
        if any(way != ways[0] for way in ways):
            self.refuse(name, f"only a part of its prompts has a {kind}")
        return [*(ways[0] if ways else []), *([name] if self.kind(name).startswith(kind) else [])]

    def steered(self, name, given):
        """The last ControlNet of a sampler, if any: they steer the prompt and the negative one alike."""
        positive, negative = (self.carried(given[port], "ControlNetApply") for port in PAIRS)
        spread = not negative and all(self.kind(each) == "ControlNetApply" for each in positive)
        if positive != negative and not spread:
            self.refuse(name, "prompt and negative prompt have other ControlNets")
        return {"control": positive[-1]} if positive else {}

    def InpaintModelConditioning(self, name, given):
        """The latent; what the UNet sees is made for each sampler, since only that knows which UNet it is."""
        nodes, picture = self.whole(f"{name}_image", given["pixels"])
        more, mask = self.covering(f"{name}_mask", given["mask"], given["pixels"])
        made_of = {"vae": self.link(given["vae"]), "image": picture}
        return {**nodes, **more, name: made("vae.encode", made_of), **self.kept(f"{name}_kept", mask)}

    def shown(self, name, given):
        """What an inpainting UNet sees at a sampler; others take no notice."""
        ways = [self.carried(given[port], "InpaintModelConditioning") for port in PAIRS]
        if ways[0] != ways[1]:
            self.refuse(name, "prompt and negative prompt show an inpainting model different pictures")
        if not ways[0]:
            return {}, {}
        seen = self.given(ways[0][-1])
        _, picture = self.whole(f"{ways[0][-1]}_image", seen["pixels"])
        links = {"unet": self.link(given["model"]), "vae": self.link(seen["vae"])}
        links |= {"image": picture, "mask": f"{ways[0][-1]}_kept"}
        return {f"{name}_seen": made("inpaint.conditioning", links)}, {"inpaint": f"{name}_seen"}

    # Pictures and masks

    def LoadImage(self, name, given):
        """Its colours, also where it is transparent, which its mask is."""
        return {
            name: made("image.load_layer", source=given["image"]),
            f"{name}_transparent": made("mask.invert", {"mask": f"{name}.mask"}),
        }

    def LoadImageMask(self, name, given):
        if given["channel"] == "alpha":
            layer = f"{name}_layer"
            loaded = made("image.load_layer", source=given["image"])
            return {layer: loaded, name: made("mask.invert", {"mask": f"{layer}.mask"})}
        with PIL.Image.open(self.folder / given["image"]) as picture:
            red, green, blue = picture.convert("RGB").split()
        if not red.tobytes() == green.tobytes() == blue.tobytes():
            self.refuse(name, f"a single channel of a coloured picture, {given['image']}")
        return {name: made("mask.load", source=given["image"])}

    def InvertMask(self, name, given):
        return {name: made("mask.invert", {"mask": self.link(given["mask"])})}

    def GrowMask(self, name, given):
        """One pixel after another along rows and columns, with the corners too where they are not tapered."""
        by, mask = given["expand"], self.link(given["mask"])
        if not given["tapered_corners"]:
            return {name: made("mask.grow", {"mask": mask}, by=by, shape="square")}
        way = 1 if by > 0 else -1
        steps = [*(f"{name}_{number}" for number in range(1, abs(by))), name]
        return {
            step: made("mask.grow", {"mask": before}, by=way if by else 0, shape="round")
            for before, step in zip([mask, *steps], steps, strict=False)
        }

    def ThresholdMask(self, name, given):
        level = min(254, math.floor(given["value"] * 255 + 1e-4))
        return {name: made("mask.threshold", {"mask": self.link(given["mask"])}, level=level)}

    def SolidMask(self, name, given):
        if given["value"] not in (0, 1):
            self.refuse(name, f"a grey mask, {given['value']}")
        canvas = {"width": given["width"], "height": given["height"]}
        box = {"x": 0 if given["value"] else -1, "y": 0, "w": given["width"] if given["value"] else 1}
        return {name: made("mask.rectangle", **canvas, **box, h=given["height"])}

    def CropMask(self, name, given):
        box = {side: given[side] for side in ("x", "y", "width", "height")}
        return {name: made("mask.crop", {"mask": self.link(given["mask"])}, **box)}

    def ImageInvert(self, name, given):
        return {name: made("image.invert", {"image": self.link(given["image"])})}

    def ImageScale(self, name, given):
        """The same filters as Pillow's as long as a picture becomes larger."""
        (width, height), scaled = self.size(given["image"]), self.size((name, 0))
        trimmed, x, y = f"{name}_trimmed", 0, 0
        if given["crop"] == "center":
            aspect, wanted = width / height, scaled[0] / scaled[1]
            x = round((width - width * (wanted / aspect)) / 2) if aspect > wanted else 0
            y = round((height - height * (aspect / wanted)) / 2) if aspect < wanted else 0
        box = {"x": x, "y": y, "width": width - 2 * x, "height": height - 2 * y}
        return {
            trimmed: made("image.crop", {"image": self.link(given["image"])}, **box),
            name: self.scaled(name, trimmed, (box["width"], box["height"]), scaled),
        }

    def ImageScaleBy(self, name, given):
        return {name: self.scaled(name, self.link(given["image"]), self.size(given["image"]), self.size((name, 0)))}

    def scaled(self, name, picture, size, target):
        """A picture at another size, where Pillow's filter does what torch's does there."""
        method = self.given(name)["upscale_method"]
        larger = all(after >= before for before, after in zip(size, target, strict=True))
        whole = all(before % after == 0 for before, after in zip(size, target, strict=True))
        filters = {"lanczos": "lanczos", "nearest-exact": "nearest"}
        filters |= {"bilinear": "bilinear"} if larger else {}
        filters |= {"area": "box"} if whole else {}
        if method not in filters:
            self.refuse(name, f"no filter does what {method} does from {size} to {target} px")
        return made("image.resize", {"image": picture}, filter=filters[method], width=target[0], height=target[1])

    def size(self, source):
        """(width, height) of a picture or mask."""
        name, _ = source
        kind, given = self.kind(name), self.given(name)
        if kind in ("LoadImage", "LoadImageMask"):
            with PIL.Image.open(self.folder / given["image"]) as picture:
                return picture.size
        if kind == "ImageScaleBy":
            return tuple(round(side * given["scale_by"]) for side in self.size(given["image"]))
        if kind == "ImageScale":
            return proportional(self.size(given["image"]), given["width"], given["height"], least=1)
        if kind in ("VAEDecode", "VAEDecodeTiled"):
            return self.pixels(given["samples"])
        if "width" in given:
            return given["width"], given["height"]
        return self.size(given.get("image") or given["mask"])

    def whole(self, name, source):
        """A picture without what is beyond whole cells, half of it at either side."""
        box = centre(self.size(source))
        if (box["width"], box["height"]) == self.size(source):
            return {}, self.link(source)
        return {name: made("image.crop", {"image": self.link(source)}, **box)}, name

    def covering(self, name, source, picture):
        """A mask stretched over a picture and cut as that is."""
        nodes, mask = {}, self.link(source)
        width, height = size = self.size(picture)
        if self.size(source) != size:
            stretched = made("mask.resize", {"mask": mask}, width=width, height=height, filter="bilinear")
            nodes, mask = {f"{name}_stretched": stretched}, f"{name}_stretched"
        box = centre(size)
        if (box["width"], box["height"]) == size:
            return nodes, mask
        return nodes | {name: made("mask.crop", {"mask": mask}, **box)}, name

    def kept(self, name, mask):
        """A mask under a name of its own."""
        return {name: made("mask.grow", {"mask": mask}, by=0)}

    # Latents

    def upstream(self, source):
        """The nodes that a latent comes through, from the last to the first."""
        while source is not None:
            name, _ = source
            yield name
            inputs = self.given(name)
            source = inputs.get("samples") or inputs.get("latent_image")

    def count(self, source):
        """How many pictures a latent, or a picture, is."""
        name, _ = source
        kind, given = self.kind(name), self.given(name)
        inner = next((given[port] for port in ("samples", "latent_image", "pixels", "image") if port in given), None)
        count = self.count(inner) if isinstance(inner, list) else given.get("batch_size", 1)
        if kind == "LatentFromBatch":
            return min(given["length"], count - given["batch_index"])
        return count * (given["amount"] if kind == "RepeatLatentBatch" else 1)

    def alike(self, source):
        """Whether the pictures of a latent all begin as one."""
        names = list(self.upstream(source))
        begun = self.given(names[-1])
        sampled = any(self.kind(name).startswith("KSampler") and self.count((name, 0)) > 1 for name in names)
        return not sampled and ("pixels" not in begun or self.count(begun["pixels"]) == 1)

    def mask(self, source):
        """The mask that a latent carries, if any."""
        for name in self.upstream(source):
            if self.kind(name) == "SetLatentNoiseMask":
                return self.link(self.given(name)["mask"])
            if self.kind(name) == "VAEEncodeForInpaint":
                return f"{name}_grown"
            if self.kind(name) == "InpaintModelConditioning":
                return f"{name}_kept" if self.given(name).get("noise_mask", True) else None
        return None

    def VAEEncode(self, name, given):
        nodes, picture = self.whole(f"{name}_image", given["pixels"])
        return {**nodes, name: made("vae.encode", {"vae": self.link(given["vae"]), "image": picture})}

    def VAEEncodeForInpaint(self, name, given):
        """What is masked is black or white, and repainted a little beyond."""
        nodes, picture = self.whole(f"{name}_image", given["pixels"])
        more, mask = self.covering(f"{name}_mask", given["mask"], given["pixels"])
        links = {"vae": self.link(given["vae"]), "image": picture, "hidden": mask}
        return {
            **nodes,
            **more,
            name: made("vae.encode", links),
            f"{name}_hard": made("mask.threshold", {"mask": mask}, level=127),
            f"{name}_grown": made("mask.grow", {"mask": f"{name}_hard"}, by=given["grow_mask_by"], shape="kernel"),
        }

    def VAEDecode(self, name, given):
        links = {"vae": self.link(given["vae"]), "latent": self.link(given["samples"])}
        return {name: made("vae.decode", links, rounding="truncate")}

    def EmptyLatentImage(self, name, given):
        size = {side: given[side] // CELL * CELL for side in ("width", "height")}
        return {name: made("latent.empty", {"vae": f"{self.loader()}.vae"}, **size)}

    def LatentUpscaleBy(self, name, given):
        return self.enlarged(name, given)

    def LatentUpscale(self, name, given):
        (width, height), (after, high) = self.pixels(given["samples"]), self.pixels((name, 0))
        if given["crop"] != "disabled" and width * high != height * after:
            self.refuse(name, "no node cuts a latent")
        return self.enlarged(name, given)

    def enlarged(self, name, given):
        width, height = self.pixels((name, 0))
        links = {"latent": self.link(given["samples"])}
        return {name: made("latent.resize", links, filter=given["upscale_method"], width=width, height=height)}

    def pixels(self, source):
        """(width, height) of the picture that a latent is of."""
        name, _ = source
        kind, given = self.kind(name), self.given(name)
        if kind == "LatentUpscaleBy":
            return tuple(CELL * round(side / CELL * given["scale_by"]) for side in self.pixels(given["samples"]))
        if kind == "LatentUpscale":
            target = proportional(self.pixels(given["samples"]), given["width"], given["height"], least=64)
        elif "pixels" in given:
            target = self.size(given["pixels"])
        elif "width" in given:
            target = given["width"], given["height"]
        else:
            return self.pixels(given.get("samples") or given["latent_image"])
        return tuple(side // CELL * CELL for side in target)

    # Sampling

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
        count, mask = self.batch(given["latent_image"]), self.mask(given["latent_image"])
        links = {
            "unet": self.link(given["model"]),
            "positive": self.link(given["positive"]),
            "negative": self.link(given["negative"]),
            "latent": self.link(given["latent_image"]),
            "noise": f"{name}_noise",
        }
        nodes, seen = self.shown(name, given)
        links |= self.steered(name, given) | seen | ({"mask": mask} if mask else {})
        schedule = labels.schedule_of(given["scheduler"])
        params |= {"schedule": "beta_timestep" if schedule == "beta" else schedule, "convention": "comfy"}
        params |= {"steps": given["steps"], "cfg": given["cfg"], "sampler": labels.sampler_of(given["sampler_name"])[0]}
        noise = made("noise.seeded", seed=seed, count=count, shared=count > 1)
        return {**nodes, f"{name}_noise": noise, name: made("sample", links, **params)}

    def batch(self, source):
        """How many pictures a sampler makes of a latent; refused where they would not be those of a batch here."""
        for name in self.upstream(source):
            given = self.given(name)
            if self.kind(name) in ("LatentFromBatch", "RepeatLatentBatch") and not self.alike(given["samples"]):
                self.refuse(name, "no node takes latents out of a batch, or repeats several")
            if self.kind(name) == "LatentFromBatch" and given["batch_index"]:
                self.refuse(name, f"no noise is that of picture {given['batch_index']} of a batch alone")
        return self.count(source)


def proportional(size, width, height, *, least):
    """A target size of which 0 keeps the aspect, and twice 0 the size."""
    if not width and not height:
        return size
    if not width:
        width = round(size[0] * max(least, height) / size[1])
    elif not height:
        height = round(size[1] * max(least, width) / size[0])
    return max(least, width), max(least, height)


def centre(size):
    """The box of whole cells in the middle of a picture."""
    (x, width), (y, height) = ((side % CELL // 2, side // CELL * CELL) for side in size)
    return {"x": x, "y": y, "width": width, "height": height}


def made(kind, inputs=None, /, **params):
    return {"type": kind, "params": params, "inputs": inputs or {}}
