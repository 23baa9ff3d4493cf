"""Graphs for what the WebUI's tabs do, built from the saved graphs, with the names and defaults that people know.

    from calotype import Engine, recipes

    graph = recipes.img2img(image="face.png", prompt="a smiling face", denoising_strength=0.6, width=128, height=128)
    Engine().run(graph)["image"].pil().save("smiling.png")

Names are those of the WebUI's HTTP API, what they mean is what its tabs mean by them, and their defaults are the tabs'.
Choices go by the tabs' labels, by the graphs' words, or by the API's numbers; `inpaint_full_res` is called `area`.
The graphs count steps, fade masks and round levels as the WebUI does, and say so: nothing is hidden in settings.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from os import PathLike, fspath
from secrets import randbelow
from typing import Any, TypedDict, TypeVar, Unpack

from calotype import labels
from calotype.library import SAVED, Library
from engine.errors import GraphError, Problem
from engine.graph import Graph, suggest
from engine.registry import Registry

T = TypeVar("T")
FileName = str | PathLike[str]
SEEDS = 2**32
"""Seeds that are drawn here lie below."""
MAX_BATCHES = 1000
MAX_SIDE = 16384
CELL = 8
"""Sides are cut to multiples of so many pixels, as the WebUI's latents are."""


class Common(TypedDict, total=False):
    """What every recipe can be told. What is left out is as on the WebUI's tab.

    | Name | Meaning | Default |
    | --- | --- | --- |
    | `prompt`, `negative_prompt` | the WebUI's syntax: emphasis, editing, `AND`, `BREAK`, `<lora:name:1>` | empty |
    | `styles` | names in the styles' CSV file | none |
    | `styles_file` | that file | `styles.csv` |
    | `sampler_name` | `DPM++ 2M`, `dpmpp_2m`, `DPM++ 2M Karras`, ... | `DPM++ 2M` |
    | `scheduler` | `Karras`, `karras`, ...; `Automatic`: what the sampler is made for | `Automatic` |
    | `steps` | 1..1000 | 20 |
    | `cfg_scale` | 0..100 | 7 |
    | `width`, `height` | of what is sampled, in px, cut to multiples of 8 | 512 |
    | `seed` | 0..2^64 - 1, or -1 for another one each time | -1 |
    | `subseed`, `subseed_strength` | variation seed, and its share 0..1 | -1, 0 |
    | `seed_resize_from_w`, `seed_resize_from_h` | size that the seed's noise is made for, in px; 0: this one | 0 |
    | `batch_size` | pictures of one node, 1..64, with seeds that count up | 1 |
    | `n_iter` | batch count, 1..1000: each batch is a node of its own, with the next seeds | 1 |
    | `checkpoint`, `vae` | files; without `vae` the checkpoint's own | `pocket` |
    | `clip_skip` | layers of the text encoder left out, counted from 1, 1..12 | 1 |
    | `emphasis` | `Original`, `No norm`, `Ignore`, `None` | `Original` |
    | `eta` | ancestral noise's share, 0..1 | the sampler's own |
    | `s_churn`, `s_tmin`, `s_tmax`, `s_noise` | stochasticity of Euler and Heun | the sampler's own |
    | `sigma_min`, `sigma_max`, `rho` | of the schedule | the model's and schedule's own |
    | `discard_penultimate_sigma` | true or false | the sampler's own |
    | `s_min_uncond` | negative guidance minimum sigma: every second call below spares the negative prompt | 0 |
    | `s_min_uncond_all` | whether each call below it does | false |
    | `skip_early_cond` | share of a run, from its beginning, that spares the negative prompt, 0..1 | 0 |
    | `ensd` | eta noise seed delta, added to the seed of a sampler's own noise | 0 |
    | `rounding` | of levels to 8 bits: `truncate`, as the WebUI does, or `nearest` | `truncate` |
    | `rng` | source of noise: `NV` (as CUDA draws, on any machine) or `CPU` | `NV` |
    """

    prompt: str
    negative_prompt: str
    styles: Sequence[str]
    styles_file: FileName
    sampler_name: str
    scheduler: str | None
    steps: int
    cfg_scale: float
    width: int
    height: int
    seed: int
    subseed: int
    subseed_strength: float
    seed_resize_from_w: int
    seed_resize_from_h: int
    batch_size: int
    n_iter: int
    checkpoint: FileName
    vae: FileName | None
    clip_skip: int
    emphasis: str
    eta: float | None
    s_churn: float | None
    s_tmin: float | None
    s_tmax: float | None
    s_noise: float | None
    sigma_min: float | None
    sigma_max: float | None
    rho: float | None
    discard_penultimate_sigma: bool | None
    s_min_uncond: float | None
    s_min_uncond_all: bool | None
    skip_early_cond: float | None
    ensd: int | None
    rounding: str
    rng: str


class Text2Image(Common, total=False):
    """What text to image can be told beside that.

    | Name | Meaning | Default |
    | --- | --- | --- |
    | `enable_hr` | hires fix: enlarge the latent and sample once more | false |
    | `denoising_strength` | of that second pass, 0..1 | 0.7 |
    | `hr_scale` | how much larger, cut to multiples of 8 px | 2 |
    | `hr_resize_x`, `hr_resize_y` | width or height in px instead; 0: as the other one wants it | 0 |
    | `hr_upscaler` | `Latent`, `Latent (bicubic)`, ... | `Latent` |
    | `hr_second_pass_steps` | 0: as many as the first pass | 0 |
    | `hr_cfg`, `hr_sampler_name`, `hr_scheduler` | of the second pass | the first pass's |
    """

    enable_hr: bool
    denoising_strength: float
    hr_scale: float
    hr_resize_x: int
    hr_resize_y: int
    hr_upscaler: str
    hr_second_pass_steps: int
    hr_cfg: float | None
    hr_sampler_name: str | None
    hr_scheduler: str | None


class Image2Image(Common, total=False):
    """What image to image can be told beside that.

    | Name | Meaning | Default |
    | --- | --- | --- |
    | `denoising_strength` | how much may change, 0..1 | 0.75 |
    | `exact_steps` | do exactly so many steps: the setting of that name | false |
    | `resize_mode` | `Just resize`, `Crop and resize`, `Resize and fill`, `Just resize (latent upscale)` | the \
first |
    | `scale_by` | resize by this factor, 0.05..4, instead of to `width` and `height` | none |
    | `background` | colour behind transparent pictures | `#ffffff` |
    | `colour_correction` | true, or a share 0..1 | false |
    | `initial_noise_multiplier` | 0..1.5 | 1 |
    | `extra_noise` | share of noise added to the latent beside the sampler's, 0..1 | 0 |
    """

    denoising_strength: float
    exact_steps: bool
    resize_mode: str
    scale_by: float | None
    background: str
    colour_correction: bool | float
    initial_noise_multiplier: float | None
    extra_noise: float | None


class Inpaint(Image2Image, total=False):
    """What inpainting can be told beside that.

    | Name | Meaning | Default |
    | --- | --- | --- |
    | `mask_blur` | standard deviation in px, 0..64 | 4 |
    | `inpainting_mask_invert` | repaint what the mask leaves out | false |
    | `inpainting_fill` | masked content: `fill`, `original`, `latent noise`, `latent nothing` | `original` |
    | `area` | `Whole picture` or `Only masked`, or `whole`, `masked` | `Whole picture` |
    | `inpaint_full_res_padding` | around the mask, for `Only masked`, in px, 0..256 | 32 |
    | `mask_round` | round the mask to black and white, and to whole latent cells | true, unless soft |
    | `inpainting_mask_weight` | how much of the masked part an inpainting model does not see, 0..1 | 1 |
    | `soft_inpainting` | numbers of soft inpainting by name (see the node `inpaint.soft`), {} for its defaults | off |
    """

    mask_blur: float
    inpainting_mask_invert: bool
    inpainting_fill: str
    area: str
    inpaint_full_res_padding: int
    mask_round: bool
    inpainting_mask_weight: float
    soft_inpainting: Mapping[str, float] | None


def text2img(**controls: Unpack[Text2Image]) -> Graph:
    """A picture from a prompt; `Common` and `Text2Image` say what it can be told.

    Raises GraphError that lists every name that is not known and every value that does not fit.
    """
    enlarged = bool(controls.get("enable_hr"))
    cook = _Cook(_saved("hires_fix" if enlarged else "text2img"), controls)
    cook.follow(COMMON, ignored=Text2Image.__annotations__)
    if enlarged:
        cook.enlarge()
    return cook.served()


def img2img(image: FileName, mask: FileName | None = None, **controls: Unpack[Inpaint]) -> Graph:
    """A picture repainted, under a mask where it is white; `Common`, `Image2Image` and `Inpaint` say what can be told.

    `image` and `mask` are files; in Python they may be bound to pictures instead, when the graph is run. Without a mask
    what only concerns masks is ignored, as on the tab. Raises GraphError that lists every name that is not known and
    every value that does not fit.
    """
    if mask is None:
        cook = _Cook(_saved("img2img"), {**controls, "image": image})
        cook.follow(IMAGE, ignored=Inpaint.__annotations__)
        return cook.served()
    soft = controls.get("soft_inpainting")
    graph = _with_mask(_saved("inpaint" if soft is None else "inpaint_soft"))
    cook = _Cook(graph, {"mask_round": soft is None, **controls, "image": image, "mask": mask})
    cook.follow(INPAINT, ignored=Inpaint.__annotations__)
    cook.soften(soft or {})
    for name in ("drawn.threshold", "begun.round_mask"):
        cook.put("mask_round", name, cook.given["mask_round"])
    return cook.served()


def sketch(image: FileName, strokes: FileName, **controls: Unpack[Image2Image]) -> Graph:
    """A picture repainted with strokes over it: `strokes` is a transparent picture of the same size.

    Raises GraphError as `img2img` does.
    """
    cook = _Cook(_saved("sketch"), {**controls, "image": image, "strokes": strokes}, inner="painted/")
    cook.follow({**IMAGE, "strokes": Control("strokes", None, fspath)})
    return cook.served()


def inpaint_sketch(
    image: FileName, painted: FileName, *, mask_transparency: float = 0.0, **controls: Unpack[Inpaint]
) -> Graph:
    """What differs between a picture and the same picture, `painted` over, repainted; the paint says what comes there.

    `mask_transparency` is in percent: so much of the picture shines through the paint, and from 50 on nothing is
    repainted. Raises GraphError as `img2img` does.
    """
    given = {**controls, "image": image, "painted": painted, "mask_transparency": mask_transparency}
    cook = _Cook(_saved("inpaint_sketch"), given, inner="inpainted/")
    cook.follow(PAINTED)
    if controls.get("mask_round") is False:
        cook.put("mask_round", "begun.round_mask", value=False)
    return cook.served()


@dataclass(frozen=True)
class Control:
    """Where a name of the WebUI's leads in a saved graph, what it is when nobody says, and how it is read there.

    Without a default, the graph's own literal stays.
    """

    name: str
    default: Any = None
    read: Callable[[Any], Any] = lambda value: value


def _names(styles: Sequence[str]) -> list[str]:
    if isinstance(styles, str):
        raise TypeError(f"expected a list of names, got {styles!r}")
    return list(styles)


def _convention(exact: bool) -> str:  # noqa: FBT001  a value like any other
    return "exact" if exact else "a1111"


def _percent(value: float) -> float:
    return 1 - value / 100


def _words(words: labels.Words, name: str, default: str) -> Control:
    return Control(name, default, partial(labels.word_of, words))


COMMON: Mapping[str, Control] = {
    "prompt": Control("prompt", ""),
    "negative_prompt": Control("negative", ""),
    "styles": Control("styles", (), _names),
    "styles_file": Control("styles_file", None, fspath),
    "steps": Control("steps", 20),
    "cfg_scale": Control("cfg", 7.0),
    "width": Control("width", 512, lambda side: _cut(_whole(side, CELL, MAX_SIDE))),
    "height": Control("height", 512, lambda side: _cut(_whole(side, CELL, MAX_SIDE))),
    "seed": Control("seed", -1),
    "subseed": Control("variation_seed", -1),
    "subseed_strength": Control("variation", 0.0),
    "seed_resize_from_w": Control("noise.resize_from_width"),
    "seed_resize_from_h": Control("noise.resize_from_height"),
    "batch_size": Control("count", 1),
    "checkpoint": Control("checkpoint", "pocket", fspath),
    "vae": Control("vae", None, fspath),
    "clip_skip": Control("clip_skip", 1),
    "emphasis": _words(labels.EMPHASIS, "weighting", "Original"),
    "eta": Control("options.eta"),
    "s_churn": Control("options.churn"),
    "s_tmin": Control("options.churn_min"),
    "s_tmax": Control("options.churn_max"),
    "s_noise": Control("options.noise_scale"),
    "sigma_min": Control("options.sigma_min"),
    "sigma_max": Control("options.sigma_max"),
    "rho": Control("options.rho"),
    "discard_penultimate_sigma": Control("options.discard_penultimate"),
    "s_min_uncond": Control("options.ngms"),
    "s_min_uncond_all": Control("options.ngms_all"),
    "skip_early_cond": Control("options.skip_early"),
    "ensd": Control("options.seed_delta"),
    "rounding": Control("decoded.rounding", "truncate"),
    "rng": _words(labels.RNG, "noise.source", "NV"),
}
IMAGE: Mapping[str, Control] = {
    **COMMON,
    "image": Control("source", None, fspath),
    "denoising_strength": Control("strength", 0.75),
    "exact_steps": Control("convention", default=False, read=_convention),
    "resize_mode": _words(labels.RESIZE, "resize", "Just resize"),
    "scale_by": Control("factor"),
    "background": Control("background"),
    "colour_correction": Control("colour_correction", default=False, read=float),
    "initial_noise_multiplier": Control("options.noise_multiplier"),
    "extra_noise": Control("options.extra_noise"),
}
INPAINTED: Mapping[str, Control] = {
    **IMAGE,
    "mask_blur": Control("blur", 4.0),
    "inpainting_mask_invert": Control("invert", default=False),
    "inpainting_fill": _words(labels.CONTENT, "content", "original"),
    "area": _words(labels.AREA, "area", "Whole picture"),
    "inpaint_full_res_padding": Control("padding", 32),
    "mask_round": Control("round_mask", default=True),
    "inpainting_mask_weight": Control("conditioning", 1.0),
}
INPAINT: Mapping[str, Control] = {
    **INPAINTED,
    "mask": Control("mask", None, fspath),
}
PAINTED: Mapping[str, Control] = {
    **INPAINTED,
    "painted": Control("sketch", None, fspath),
    "mask_transparency": Control("opacity", 0.0, _percent),
}


HIRES: Mapping[str, Control] = {
    "denoising_strength": Control("strength", 0.7),
    "hr_upscaler": _words(labels.UPSCALERS, "upscaler", "Latent"),
}


class _Cook:
    """Sets the literals of a saved graph, and remembers what does not fit."""

    def __init__(self, graph: Graph, given: Mapping[str, Any], inner: str = "") -> None:
        self.graph = graph
        self.given = {name: value for name, value in given.items() if value is not None}
        self.inner = inner
        self.settings: dict[str, Any] = {}
        self.problems: list[Problem] = []

    def follow(self, controls: Mapping[str, Control], ignored: Iterable[str] = ()) -> None:
        """Set everything in `controls`, and the sampler; names that are neither there nor `ignored` are problems."""
        known = {*controls, *Common.__annotations__, *ignored}
        for name in sorted(self.given.keys() - known):
            self.complain(name, f"no such name{suggest(name, known)}", "unknown_name")
        for name, control in controls.items():
            self.control(name, control)
        self.sampling(("sampler_name",), ("scheduler",))

    def enlarge(self) -> None:
        """Set what hires fix adds."""
        for name, control in HIRES.items():
            self.control(name, control)
        steps = self.given.get("hr_second_pass_steps") or self.given.get("steps", COMMON["steps"].default)
        self.put("hr_second_pass_steps", "hires_steps", steps)
        self.put("hr_cfg", "hires_cfg", self._first_of("hr_cfg", "cfg_scale") or COMMON["cfg_scale"].default)
        self.sampling(("hr_sampler_name", "sampler_name"), ("hr_scheduler", "scheduler"), "hires_")
        for name, side in (self.read("hr_scale", self._larger) or {}).items():
            self.put("hr_scale", name, side)

    def soften(self, numbers: Mapping[str, Any]) -> None:
        """Set the numbers of soft inpainting."""
        for name, value in numbers.items():
            if name in labels.SOFT:
                self.put(f"soft_inpainting.{name}", name, value)
            else:
                self.complain(f"soft_inpainting.{name}", f"no such number{suggest(name, labels.SOFT)}", "unknown_name")

    def served(self) -> Graph:
        """The graph, with its batches where there are several. Raises GraphError."""
        batch = self.read("n_iter", self._batches)
        if self.problems:
            raise GraphError(self.problems)
        graph = self.graph.set(self.settings)
        return graph.replace(sweep={"batch": batch}) if batch else graph

    def control(self, name: str, control: "Control") -> None:
        """Set what one control leads to, where it is given or has a default."""
        value = self.given.get(name, control.default)
        if value is not None:
            self.put(name, control.name, self.read(name, control.read, value))

    def sampling(self, samplers: Sequence[str], schedules: Sequence[str], prefix: str = "") -> None:
        """Set sampler and schedule to the first that are given. A schedule in the sampler's name stands for none."""
        name = self._first_of(*samplers) or "DPM++ 2M"
        sampler, ending = self.read(samplers[0], labels.sampler_of, name) or (None, None)
        schedule = self.read(schedules[0], labels.schedule_of, self._first_of(*schedules) or "Automatic")
        self.put(samplers[0], f"{prefix}sampler", sampler)
        if labels.divides_cfg(name):
            self.divide_cfg(prefix)
        self.put(schedules[0], f"{prefix}schedule", ending if ending and schedule == "automatic" else schedule)

    def divide_cfg(self, prefix: str) -> None:
        """Take the share of the cfg that the WebUI's DDIM CFG++ takes."""
        for where in {f"{prefix}cfg", f"{self.inner}{prefix}cfg"} & self.settings.keys():
            self.settings[where] *= labels.DDIM_CFG_PP_SHARE

    def put(self, parameter: str, name: str, value: Any) -> None:
        """Set a name of the graph, exposed or within, if the parameter it leads to takes the value."""
        if value is None:
            return
        where = name if name in self.graph.exposed() else f"{self.inner}{name}"
        node, param = self.graph.locate(where)
        if self.read(parameter, _registry()[self.graph.node_type(node)].params[param].parse, value) is not None:
            self.settings[where] = value

    def read(self, parameter: str, function: Callable[..., T], *arguments: Any) -> T | None:
        """What a function makes of a value; None, and a problem, where it refuses it."""
        try:
            return function(*arguments)
        except (ValueError, TypeError, OverflowError) as error:
            self.complain(parameter, str(error), "value")
            return None

    def complain(self, parameter: str, message: str, code: str) -> None:
        """Add a problem."""
        self.problems.append(Problem(parameter, message, code))

    def _first_of(self, *names: str) -> Any:
        given = (self.given[name] for name in names if name in self.given)
        return next((value for value in given if not str(value).startswith("Use same ")), None)

    def _larger(self) -> dict[str, int]:
        """The size of the second pass."""
        given = {side: self.given.get(side, COMMON[side].default) for side in ("width", "height")}
        width, height = (_whole(side, 1, MAX_SIDE) for side in given.values())
        across, down = (_whole(self.given.get(f"hr_resize_{axis}", 0), 0, MAX_SIDE) for axis in "xy")
        if across and down and across * height != down * width:
            raise ValueError(f"{across} x {down} px is another aspect than {width} x {height}; give only hr_resize_x")
        if not across and not down:
            scale = float(self.given.get("hr_scale", 2.0))
            return {"hires_width": _cut(int(width * scale)), "hires_height": _cut(int(height * scale))}
        sides = across or down * width // height, down or across * height // width
        return {"hires_width": _cut(sides[0]), "hires_height": _cut(sides[1])}

    def _batches(self) -> dict[str, list[int]] | None:
        """The seeds of each batch: seeds count up over all pictures, or, where there is a variation, its seeds do."""
        batches = _whole(self.given.get("n_iter", 1), 1, MAX_BATCHES)
        varied = bool(self.given.get("subseed_strength"))
        for name, drawn in (("seed", batches > 1), ("variation_seed", batches > 1 and varied)):
            if drawn and self.settings.get(name) == -1:
                self.settings[name] = randbelow(SEEDS)
        if not varied:
            self.settings.pop("variation_seed", None)
        counted = "variation_seed" if varied else "seed"
        if batches == 1 or self.problems:
            return None
        first, size = self.settings[counted], self.settings["count"]
        return {counted: [(first + number * size) % 2**64 for number in range(batches)]}


_registry = cache(Registry.installed)


def _saved(name: str) -> Graph:
    library = Library()
    library.folders = (SAVED,)
    return library(name)


def _with_mask(graph: Graph) -> Graph:
    """The graph with a mask from a file, as the WebUI reads it, in place of the one that is drawn."""
    document = graph.dump()
    nodes = {**document["nodes"], "drawn": {"type": "mask.from_alpha", "params": {"source": "mask.png"}}}
    expose = {name: target for name, target in document["expose"].items() if not target.startswith("drawn.")}
    return graph.replace(nodes=nodes, expose={**expose, "mask": "drawn.source"})


def _whole(value: object, least: int, most: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        raise ValueError(f"expected a whole number from {least} to {most}, got {value!r}")
    return value


def _cut(side: int) -> int:
    return side // CELL * CELL
