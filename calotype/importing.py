"""From the WebUI's `parameters` text to a graph, with a word on everything that the text does not tell."""

import os
import re
import shlex
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from hashlib import md5
from pathlib import Path
from typing import Any

import PIL.Image

from calotype import labels, recipes
from calotype.embedded import read
from calotype.infotext import Parameters, parse
from calotype.library import Library
from calotype.picture import folders_of, read_graph
from engine.errors import FileError, GraphError, Problem
from engine.file import File, Files
from engine.graph import Graph
from nodes.diffusion import prompt
from nodes.files import CheckpointFile, EmbeddingFile, LoraFile, VaeFile

SHOWN = 60
"""Characters of a value that are shown."""
IMAGE, MASK = "init-image.png", "mask.png"
"""Names that stand for pictures that the text does not hold."""


@dataclass(frozen=True)
class Imported:
    """A graph made from a text: what it had to assume, what of the text it leaves out, and which files it needs.

    A picture that Calotype made has its own graph, `ours`, and nothing is assumed.
    """

    graph: Graph
    assumed: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()
    needed: tuple[str, ...] = ()
    ours: bool = False

    def report(self) -> Iterator[str]:
        """What a person has to know, line by line."""
        if self.ours:
            yield "made by Calotype: this is the graph that made it"
        headed = {
            "assumed, because the text does not say": self.assumed,
            "in the text, but not in the graph": self.left_out,
            "needed": self.needed,
        }
        for head, lines in headed.items():
            yield from (f"{head}:", *(f"  {line}" for line in lines)) if lines else ()


def import_file(
    path: Path, files: Files, *, beside: Path = Path(), image: Path | None = None, mask: Path | None = None
) -> Imported:
    """The graph of a picture, or of a text file. Raises GraphError.

    `image` and `mask` are the pictures that the text does not hold; the graph names them as seen from the folder
    `beside`, or in full where they do not lie in it.
    """
    graph = own(path, beside)
    if graph is not None:
        if image or mask:
            message = f"{path} carries its graph: run it with --set source=FILE instead"
            raise GraphError([Problem("--image" if image else "--mask", message, "ours")])
        return Imported(graph, ours=True)
    found = [None if picture is None else _named(picture, beside) for picture in (image, mask)]
    return imported(read(path), files, image=found[0], mask=found[1])


def own(path: Path, beside: Path = Path()) -> Graph | None:
    """The graph in a picture that Calotype made; None where it made another one."""
    try:
        graph = read_graph(path, Library(path.parent))
    except GraphError as error:
        if any(problem.code in ("no_graph", "unreadable") for problem in error.problems):
            return None
        raise
    folders = [os.path.relpath(folder, beside) for folder in folders_of(graph, path)]
    return graph.replace(meta={**graph.document.meta, "folders": folders})


def _named(picture: Path, beside: Path) -> Path:
    full = picture.resolve()
    return full.relative_to(beside.resolve()) if full.is_relative_to(beside.resolve()) else full


def _refusal(message: str) -> GraphError:
    return GraphError([Problem("", message, "no_parameters")])


def imported(text: str, files: Files, *, image: Path | None = None, mask: Path | None = None) -> Imported:
    """The graph that a text describes. Raises GraphError with everything in it that cannot be followed.

    `files` says where models are looked for. `image` and `mask` are the pictures that the text does not hold.
    """
    parameters = parse(text)
    if not parameters.fields:
        raise _refusal("no parameters in the text: its last line should be `Steps: 20, Sampler: DPM++ 2M, ...`")
    graph = _Reading(_renamed(parameters), files, image, mask).result()
    meta = {**graph.graph.document.meta, "title": f"{graph.graph.title()}, imported", "parameters": text.strip()}
    return replace(graph, graph=graph.graph.replace(meta=meta))


FORMER: Mapping[str, str] = {
    "Guidance Scale": "CFG scale",
    "Strength": "Denoising strength",
    "Scheduler": "Schedule type",
    "Eta DDIM": "Eta",
}
"""What other programs call some fields."""
WEIGHT = "Conditional mask weight"
"""Of inpainting models alone, with a mask or without."""
MASKED = frozenset({"Mask blur", "Mask mode", "Masked content", "Inpaint area", "Masked area padding", labels.SOFTLY})
"""Fields that only a picture with a mask has."""
ENLARGED = frozenset({"Hires upscale", "Hires resize", "Hires upscaler"})
"""Fields that only hires fix writes."""
SILENT = frozenset(
    {"Version", "Batch size", "Batch pos", "Created Date", "User", "Template", "Negative Template", "Init image hash"}
)
"""Fields that say nothing about how this picture is made."""
UNDONE: Mapping[str, str] = {
    "Face restoration": "Calotype restores no faces",
    "Tiling": "Calotype makes no pictures that repeat",
    "Image CFG scale": "Calotype knows no instruct-pix2pix models",
    "Refiner": "one model paints from beginning to end; chain two graphs for another",
    "Refiner switch at": "see Refiner",
    "Token merging ratio": "tokens are not merged",
    "Token merging ratio hr": "tokens are not merged",
    "FP8 weight": "set `precision` for weights of less bits",
    "Cache FP16 weight for LoRA": "LoRAs are put on the weights as they are",
    "Hires checkpoint": "the second pass has the model of the first",
    "Hires prompt": "the second pass has the prompts of the first",
    "Hires negative prompt": "the second pass has the prompts of the first",
    "Script": "a script made the picture, from more than this text",
}
"""Fields that Calotype does not follow, and why."""
PLOTTED: Mapping[str, str] = {
    "Steps": "steps",
    "CFG Scale": "cfg",
    "Denoising": "strength",
    "Seed": "seed",
    "Var. seed": "variation_seed",
    "Var. strength": "variation",
    "Sampler": "sampler",
    "Schedule type": "schedule",
    "Checkpoint name": "checkpoint",
    "VAE": "vae",
    "Clip skip": "clip_skip",
    "Styles": "styles",
    "Size": "size",
    "Prompt S/R": "prompt:replace",
    "Prompt order": "prompt:order",
    "Cond. Image Mask Weight": "conditioning",
    "Negative Guidance minimum sigma": "options.ngms",
}
"""Axes of an X/Y/Z plot, by the names of `calotype sweep`."""


def _renamed(parameters: Parameters) -> Parameters:
    return replace(parameters, fields={FORMER.get(name, name): value for name, value in parameters.fields.items()})


def _switch(text: str) -> bool:
    if text.casefold() not in ("true", "false"):
        raise ValueError("expected True or False")
    return text.casefold() == "true"


def _inverted(text: str) -> bool:
    modes = ("Inpaint masked", "Inpaint not masked")
    if text not in modes:
        raise ValueError(f"expected {' or '.join(map(repr, modes))}")
    return text == modes[1]


def _level(text: str) -> float | None:
    """A noise level, or a rho; 0 stands for the schedule's own."""
    return float(text) or None


def _source_of_noise(text: str) -> str:
    return "NV" if text == "GPU" else text


Convert = Callable[[str], Any]
FIELDS: Mapping[str, tuple[str, Convert]] = {
    "Steps": ("steps", int),
    "Sampler": ("sampler_name", str),
    "Schedule type": ("scheduler", str),
    "CFG scale": ("cfg_scale", float),
    "Seed": ("seed", int),
    "Variation seed": ("subseed", int),
    "Variation seed strength": ("subseed_strength", float),
    "Denoising strength": ("denoising_strength", float),
    WEIGHT: ("inpainting_mask_weight", float),
    "Clip skip": ("clip_skip", int),
    "ENSD": ("ensd", int),
    "RNG": ("rng", _source_of_noise),
    "Mask mode": ("inpainting_mask_invert", _inverted),
    "Mask blur": ("mask_blur", float),
    "Inpaint area": ("area", str),
    "Masked area padding": ("inpaint_full_res_padding", int),
    "Masked content": ("inpainting_fill", str),
    "Noise multiplier": ("initial_noise_multiplier", float),
    "Extra noise": ("extra_noise", float),
    "Eta": ("eta", float),
    "Sigma churn": ("s_churn", float),
    "Sigma tmin": ("s_tmin", float),
    "Sigma tmax": ("s_tmax", _level),
    "Sigma noise": ("s_noise", float),
    "Schedule min sigma": ("sigma_min", _level),
    "Schedule max sigma": ("sigma_max", _level),
    "Schedule rho": ("rho", _level),
    "Discard penultimate sigma": ("discard_penultimate_sigma", _switch),
    "NGMS": ("s_min_uncond", float),
    "NGMS all steps": ("s_min_uncond_all", _switch),
    "Skip Early CFG": ("skip_early_cond", float),
    "Emphasis": ("emphasis", str),
    "Hires upscale": ("hr_scale", float),
    "Hires steps": ("hr_second_pass_steps", int),
    "Hires sampler": ("hr_sampler_name", str),
    "Hires schedule type": ("hr_scheduler", str),
    "Hires CFG Scale": ("hr_cfg", float),
}
"""Fields that lead to one control of a recipe each."""
SIZES: Mapping[str, tuple[str, str]] = {
    "Size": ("width", "height"),
    "Seed resize from": ("seed_resize_from_w", "seed_resize_from_h"),
    "Hires resize": ("hr_resize_x", "hr_resize_y"),
}
"""Fields of the form WIDTHxHEIGHT."""
EXPECTED = ("Steps", "Sampler", "CFG scale", "Seed", "Size")
"""Fields without which a text describes no picture; the tab's values stand for them."""


@dataclass
class _Reading:
    """A text being read, and what there is to say of it."""

    parameters: Parameters
    files: Files
    image: Path | None
    mask: Path | None
    controls: dict[str, Any] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    assumed: list[str] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    needed: list[str] = field(default_factory=list)
    taken: set[str] = field(default_factory=set)

    @property
    def fields(self) -> Mapping[str, str]:
        """The fields by the WebUI's names."""
        return self.parameters.fields

    @property
    def enlarged(self) -> bool:
        """Whether there was a second pass."""
        return bool(ENLARGED & self.fields.keys())

    @property
    def masked(self) -> bool:
        """Whether there was a mask, as far as one can tell."""
        return self.mask is not None or bool(MASKED & self.fields.keys())

    @property
    def painted_over(self) -> bool:
        """Whether it began with a picture."""
        return not self.enlarged and (self.masked or self.image is not None or "Denoising strength" in self.fields)

    def result(self) -> Imported:
        """The graph, and what is to be said of it. Raises GraphError with all problems."""
        self.controls |= {"prompt": self.parameters.prompt, "negative_prompt": self.parameters.negative}
        for name, (control, convert) in FIELDS.items():
            self.take(name, control, convert)
        for name, sides in SIZES.items():
            self.take_size(name, sides)
        self.take_upscaler()
        self.take_softness()
        self.take_models()
        self.name_files()
        self.assume()
        graph = self.cooked()
        self.leave_out()
        return Imported(graph, tuple(self.assumed), tuple(self.left_out), tuple(self.needed))

    def take(self, name: str, control: str, convert: Convert) -> None:
        """Give a field to a control of the recipe."""
        if name not in self.fields:
            return
        self.taken.add(name)
        try:
            self.controls[control] = convert(self.fields[name])
        except ValueError as error:
            said = {int: "expected a whole number", float: "expected a number", _level: "expected a number"}
            self.problems.append(Problem(name, f"{said.get(convert, error)}, got {self.fields[name]!r}", "value"))

    def take_size(self, name: str, sides: tuple[str, str]) -> None:
        """Give both sides of a size to two controls."""
        self.taken.add(name)
        try:
            self.controls.update(zip(sides, self.parameters.size(name) or (), strict=False))
        except ValueError as error:
            self.problems.append(Problem(name, str(error), "value"))

    def take_upscaler(self) -> None:
        """Take an upscaler that enlarges latents; one that is a model cannot be had."""
        if not self.enlarged:
            return
        name = self.fields.get("Hires upscaler", "Latent")
        self.taken.add("Hires upscaler")
        if name in labels.UPSCALERS.values():
            self.controls["hr_upscaler"] = name
        else:
            self.left_out.append(f"Hires upscaler: {name} is a model for pixels; the latent is enlarged instead")

    def take_softness(self) -> None:
        """Take the numbers of soft inpainting, where it was on."""
        self.taken |= {labels.SOFTLY, *labels.SOFT.values()}
        if self.fields.get(labels.SOFTLY) != "True":
            return
        self.controls["soft_inpainting"] = numbers = {}
        for name, key in labels.SOFT.items():
            try:
                numbers[name] = float(self.fields[key]) if key in self.fields else None
            except ValueError as error:
                self.problems.append(Problem(key, str(error), "value"))
        self.controls["soft_inpainting"] = {name: value for name, value in numbers.items() if value is not None}

    def take_models(self) -> None:
        """Name checkpoint and VAE, as they are called here where they are here."""
        self.taken |= {"Model", "Model hash", "VAE", "VAE hash"}
        name, vae = self.fields.get("Model"), self.fields.get("VAE")
        if name:
            self.controls["checkpoint"] = self.named(CheckpointFile, "checkpoint", name, self.fields.get("Model hash"))
        else:
            said = f" (only its hash, {self.fields['Model hash']})" if "Model hash" in self.fields else ""
            self.assumed.append(f"the model is not in the text{said}: pocket stands for it; --set checkpoint=NAME")
        if vae and vae not in ("None", "Automatic"):
            self.controls["vae"] = self.named(VaeFile, "VAE", vae, self.fields.get("VAE hash"))

    def named(self, kind: type[File], word: str, name: str, digits: str | None) -> str:
        """The name under which a file is found here, else as it is in the text; and say so."""
        said = f"{word} {name}{f' (hash {digits})' if digits else ''}"
        for candidate in dict.fromkeys((name, Path(name).stem, f"{name}.safetensors", f"{name}.ckpt")):
            try:
                found = self.files.resolve(kind, candidate)
            except FileError:
                continue
            other = digits and found.path.is_file() and not found.digest.hex().startswith(digits.lower())
            wrong = f", but it is another one: its hash is {found.digest.hex()[:10]}" if other else ""
            self.needed.append(f"{said}: found as {candidate}{wrong}")
            return candidate
        self.needed.append(f"{said}: not found here; --set {word.lower()}=NAME takes another one")
        return name

    def name_files(self) -> None:
        """List what the prompts mention."""
        self.taken |= {"Lora hashes", "TI hashes"}
        loras: dict[str, None] = {}
        for text in (self.parameters.prompt, self.parameters.negative):
            try:
                loras |= dict.fromkeys(lora.name for lora in prompt.tags(text)[1])
            except prompt.PromptError as error:
                self.problems.append(Problem("prompt", str(error), "value"))
        embeddings = [name for name, _ in _hashes(self.fields.get("TI hashes", ""))]
        for kind, names in ((LoraFile, loras), (EmbeddingFile, embeddings)):
            for name in names:
                try:
                    self.files.find_mentioned(kind, name)
                except FileError:
                    self.needed.append(f"{kind.kind} {name}: not found here; it belongs into a folder {kind.folder}/")
                else:
                    self.needed.append(f"{kind.kind} {name}: found")

    def assume(self) -> None:
        """Say what the text does not hold."""
        tab = {"Steps": 20, "Sampler": "DPM++ 2M", "CFG scale": 7, "Seed": "another one each time", "Size": "512x512"}
        self.assumed += [f"{name}: {value}" for name, value in tab.items() if name not in self.fields]
        if self.parameters.get("RNG") == "GPU":
            self.assumed.append("noise: as a CUDA device draws it (RNG is not in the text, so it was GPU)")
        if "VAE" not in self.fields:
            self.assumed.append("VAE: the checkpoint's own")
        if self.painted_over:
            self.assume_pictures()
        if _version(self.fields.get("Version", "")) < (1, 6) and "[" in self.parameters.prompt:
            self.assumed.append("prompt editing: by the rules of version 1.6 and later")

    def assume_pictures(self) -> None:
        """Say which pictures and choices of image to image the text does not hold."""
        if self.image is None:
            self.assumed.append(f"the picture it began with: {IMAGE} stands for it; --image FILE, or --set source=FILE")
        elif not self.began_with(self.image):
            self.assumed.append(f"{self.image} as the picture it began with, though its `Init image hash` is another")
        if self.masked and self.mask is None:
            self.assumed.append(f"the mask: {MASK} stands for it; --mask FILE, or --set mask=FILE")
        elif not self.masked:
            self.assumed.append("no mask")
        self.assumed += ["resize mode: Just resize", "colour correction: off", "exactly the amount of steps: off"]
        if self.masked:
            self.assumed.append("mask transparency: 0")

    def began_with(self, image: Path) -> bool:
        """Whether a picture's pixels are those that the text tells the hash of, where it does."""
        expected = self.fields.get("Init image hash")
        if expected is None:
            return True
        with PIL.Image.open(self.files.resolve(File, str(image)).path) as picture:
            forms = [picture, picture.convert("RGB"), picture.convert("RGBA")]
            return expected in [md5(form.tobytes(), usedforsecurity=False).hexdigest() for form in forms]

    def cooked(self) -> Graph:
        """The recipe's graph. Raises GraphError with everything that was found so far."""
        try:
            graph = self._cook()
        except GraphError as error:
            origin = {control: name for name, (control, _) in FIELDS.items()}
            origin |= {side: name for name, sides in SIZES.items() for side in sides}
            self.problems += [replace(item, path=origin.get(item.path, item.path)) for item in error.problems]
        if self.problems:
            raise GraphError(self.problems)
        return graph

    def _cook(self) -> Graph:
        if self.painted_over:
            mask = (self.mask or MASK) if self.masked else None
            if mask is None and self.controls.get("inpainting_mask_weight", 1) != 1:
                self.left_out.append(f"{WEIGHT}: only with a mask; without one an inpainting model sees no picture")
            return recipes.img2img(self.image or IMAGE, mask, **self.controls)
        known = {*recipes.Common.__annotations__, *(recipes.Text2Image.__annotations__ if self.enlarged else ())}
        for name, (control, _) in FIELDS.items():
            if control in self.controls and control not in known:
                self.left_out.append(f"{name}: only where a picture is painted over")
        controls = {name: value for name, value in self.controls.items() if name in known}
        return recipes.text2img(**{**controls, "enable_hr": self.enlarged})

    def leave_out(self) -> None:
        """Say what of the text nobody here follows."""
        axes = " ".join(self.plotted())
        if axes:
            self.left_out.append(f"the plot; to make it: calotype sweep GRAPH {axes}")
        for name, value in self.fields.items():
            if name not in self.taken and name not in SILENT:
                self.left_out.append(f"{name}: {UNDONE.get(name) or f'{_short(value)}, which Calotype does not know'}")

    def plotted(self) -> Iterator[str]:
        """The axes of an X/Y/Z plot, as `calotype sweep` takes them."""
        for letter in "XYZ":
            name = PLOTTED.get(self.fields.get(f"{letter} Type", ""))
            if name:
                self.taken |= {"Script", f"{letter} Type", f"{letter} Values", f"Fixed {letter} Values"}
                values = self.fields.get(f"{letter} Values", "")
                yield f"--{letter.lower()} {shlex.quote(f'{name}={_words(name, values)}')}"


def _words(name: str, values: str) -> str:
    """The values of an axis, samplers and schedules by our names."""
    words = {"sampler": labels.SAMPLERS, "schedule": labels.SCHEDULES}.get(name, {})
    names = {label: word for word, label in words.items()}
    return ",".join(names.get(value.strip(), value.strip()) for value in values.split(",")) if names else values


def _hashes(text: str) -> list[tuple[str, str]]:
    """`name: hash, name: hash` as pairs."""
    return [(name.strip(), digits) for name, digits in re.findall(r"([^:,]+):\s*([0-9a-fA-F]*)", text)]


def _version(text: str) -> tuple[int, ...]:
    """The WebUI's version, or a later one where it is not the WebUI's."""
    found = re.match(r"v?(\d+)\.(\d+)", text)
    return (int(found[1]), int(found[2])) if found else (9,)


def _short(text: str) -> str:
    return text if len(text) <= SHOWN else f"{text[: SHOWN - 3]}..."
