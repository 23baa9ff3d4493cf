"""The `parameters` text of a picture, read off the graph that made it.

What cannot be known without running is left out, never guessed.
"""

import csv
import io
from collections.abc import Iterator, Mapping
from dataclasses import fields
from typing import Any

from calotype import __version__, labels
from calotype.infotext import Parameters, dump
from calotype.reader import Reader
from engine.file import File
from engine.graph import Graph
from engine.program import Port, Program, Step
from nodes.diffusion.load import unet_inputs
from nodes.diffusion.sampler import SAMPLERS
from nodes.types import SampleOptions

Field = tuple[str, Any]
AXES: Mapping[tuple[str, str], str] = {
    ("noise.seeded", "seed"): "Seed",
    ("noise.seeded", "variation_seed"): "Var. seed",
    ("noise.seeded", "variation"): "Var. strength",
    ("sample", "steps"): "Steps",
    ("sample", "cfg"): "CFG Scale",
    ("sample", "denoise"): "Denoising",
    ("sample", "sampler"): "Sampler",
    ("sample", "schedule"): "Schedule type",
    ("sample.options", "eta"): "Eta",
    ("sample.options", "noise_multiplier"): "Initial noise multiplier",
    ("sample.options", "extra_noise"): "Extra noise",
    ("sample.options", "ngms"): "Negative Guidance minimum sigma",
    ("inpaint.conditioning", "strength"): "Cond. Image Mask Weight",
    ("model.load", "checkpoint"): "Checkpoint name",
    ("vae.load", "source"): "VAE",
    ("text.clip_skip", "skip"): "Clip skip",
    ("prompt", "styles"): "Styles",
}
"""What the WebUI calls the axes of its X/Y/Z plot, by node type and parameter."""
LISTED: Mapping[str, labels.Words] = {"Sampler": labels.SAMPLERS, "Schedule type": labels.SCHEDULES}
"""Axes whose values have labels."""
AUTOMATIC = ("karras", "exponential")
"""Schedules that the WebUI writes down where a sampler came to them by itself."""
PLOTTED = ("x", "y", "z")
LATENT_CHANNELS = 4
KEEPS_SIZE = frozenset({"vae.decode", "image.match_colour", "image.composite", "image.pick", "image.blur"})
"""Nodes whose pictures are as large as what was sampled."""


def caption(
    program: Program,
    output: Port,
    size: tuple[int, int],
    files: Mapping[str, File],
    *,
    index: int = 0,
    graph: Graph | None = None,
) -> str | None:
    """The text for picture `index` of an output, from the sample node nearest to it; None where there is none.

    `size` is (width, height) of the picture in px; `files` maps `node.param` to what the run read. For the sheet of a
    sweep, `graph` says what its axes are, and the rest is that of the first cell.
    """
    reader = Reader(program, files)
    step = reader.nearest(output.step, "sample")
    if step is None:
        return None
    sheet = program.steps[output.step].definition.gathers
    prompt, negative = (reader.prompt(step, name) for name in ("positive", "negative"))
    found = [*_fields(reader, step, index), *(_plot(graph) if sheet and graph else ())]
    known = {"Size": _size(reader, step, None if sheet or not _kept(reader, output, step) else size)}
    every = {**dict(found), **known, "Version": f"Calotype {__version__}"}
    return dump(
        Parameters(prompt, negative, {name: _text(value) for name, value in every.items() if value is not None})
    )


def _fields(reader: Reader, step: Step, index: int) -> Iterator[Field]:
    """Everything but the size and the version, in the WebUI's order."""
    first = _first_pass(reader, step)
    begun = first or step
    noise = reader.source(begun, "noise")
    yield "Steps", reader.known(begun, "steps")
    yield from _sampler(reader, begun)
    yield "CFG scale", reader.known(begun, "cfg")
    variation = reader.known(noise, "variation")
    yield "Seed", _counted(reader, noise, "seed", 0 if variation else index)
    yield "Size", None  # keeps the customary place
    yield from _models(reader, step)
    if variation:
        yield "Variation seed", _counted(reader, noise, "variation_seed", index)
        yield "Variation seed strength", variation
    sides = [reader.known(noise, f"resize_from_{side}") for side in ("width", "height")]
    yield "Seed resize from", "x".join(map(str, sides)) if all(sides) else None
    yield "Denoising strength", None if _blank(reader, step) else reader.known(step, "denoise")
    yield from _conditioning(reader, step)
    skip = reader.known(_encoder(reader, begun), "skip")
    yield "Clip skip", skip if skip and skip > 1 else None
    yield "ENSD", reader.known(reader.source(begun, "options"), "seed_delta") or None
    yield "RNG", labels.RNG.get(reader.known(noise, "source"))
    yield from _masking(reader, step)
    yield from _options(reader, begun)
    weighting = reader.known(reader.source(begun, "positive"), "weighting")
    yield "Emphasis", None if weighting == "a1111" else labels.EMPHASIS.get(weighting)
    yield from _mentioned(reader, begun)
    yield from _soft(reader, step)
    if first:
        yield from _hires(reader, step, first)


def _sampler(reader: Reader, step: Step) -> Iterator[Field]:
    """Sampler and schedule by the WebUI's names."""
    sampler, schedule = (reader.known(step, name) for name in ("sampler", "schedule"))
    if schedule == "automatic" and sampler in SAMPLERS and SAMPLERS[sampler].schedule in AUTOMATIC:
        schedule = SAMPLERS[sampler].schedule
    yield "Sampler", labels.SAMPLERS.get(sampler)
    yield "Schedule type", labels.SCHEDULES.get(schedule)


def _models(reader: Reader, step: Step) -> Iterator[Field]:
    model = reader.upstream(reader.source(step, "unet"), "model.load", "unet")
    yield "Model hash", _hash(reader.file(model, "checkpoint"), 10)
    yield "Model", _stem(reader.literal(model, "checkpoint")) or None
    vae = reader.upstream(_decoder(reader, step), "vae.load", "vae")
    yield "VAE hash", _hash(reader.file(vae, "source"), 10)
    yield "VAE", reader.literal(vae, "source").rsplit("/", 1)[-1] or None


def _decoder(reader: Reader, step: Step) -> Step | None:
    """The first decode that is fed by a step."""
    position = reader.program.index[step.id]
    fed = (reader.program.steps[number] for number in reader.program.consumers[position])
    return next((found for found in fed if found.definition.type == "vae.decode"), None)


def _counted(reader: Reader, noise: Step | None, name: str, index: int) -> int | None:
    """The seed of picture `index`: seeds count up along a batch."""
    seed = reader.known(noise, name)
    return None if seed is None else int(seed) + index


def _conditioning(reader: Reader, step: Step) -> Iterator[Field]:
    """Only of a model that is made for inpainting; others do not look at the mask."""
    model = reader.file(reader.upstream(reader.source(step, "unet"), "model.load", "unet"), "checkpoint")
    hint = reader.source(step, "inpaint")
    if model is not None and hint is not None and unet_inputs(model.path) > LATENT_CHANNELS:
        yield "Conditional mask weight", reader.known(hint, "strength")


def _encoder(reader: Reader, step: Step) -> Step | None:
    return reader.upstream(reader.source(step, "positive"), "text.clip_skip", "encoder", "text")


def _masking(reader: Reader, step: Step) -> Iterator[Field]:
    frame = reader.upstream(reader.source(step, "mask"), "inpaint.frame", "mask")
    yield "Mask mode", "Inpaint not masked" if reader.known(frame, "invert") else None
    yield "Mask blur", reader.known(frame, "blur") or None
    close = reader.known(frame, "area") == "masked"
    yield "Inpaint area", "Only masked" if close else None
    yield "Masked area padding", reader.known(frame, "padding") if close else None
    content = reader.upstream(reader.source(step, "latent"), "latent.content", "latent")
    filled = reader.known(content, "content")
    yield "Masked content", None if filled == "original" else labels.CONTENT.get(filled)


USUAL: Mapping[str, Any] = {option.name: option.default for option in fields(SampleOptions)}
"""Options at which the WebUI leaves them out."""


def _options(reader: Reader, step: Step) -> Iterator[Field]:
    options = reader.source(step, "options")
    deterministic = reader.known(step, "sampler") == "ddim"
    for name, key in labels.OPTIONS.items():
        value = reader.known(options, name)
        if name == "eta":
            yield (f"{key} DDIM" if deterministic else key), None if value == (0 if deterministic else 1) else value
        else:
            yield key, None if value == USUAL[name] else value


def _mentioned(reader: Reader, step: Step) -> Iterator[Field]:
    """Names and hashes of the LoRAs and embeddings that the prompts mention, and of LoRAs that nodes name."""
    texts = [text for side in ("positive", "negative") for text in reader.texts(step, side)]
    loras: dict[str, File] = {name: file for text in texts for name, file in text.loras.items()}
    patched = reader.upstream(reader.source(step, "unet"), "model.lora", "unet")
    while patched is not None:
        if file := reader.file(patched, "source"):
            loras.setdefault(_stem(file.name), file)
        patched = reader.upstream(reader.source(patched, "unet"), "model.lora", "unet")
    yield "Lora hashes", _hashes(loras)
    yield "TI hashes", _hashes({name: file for text in texts for name, file in text.embeddings.items()})


def _hashes(files: Mapping[str, File]) -> str | None:
    return ", ".join(f"{name}: {_hash(file, 12)}" for name, file in files.items()) or None


def _soft(reader: Reader, step: Step) -> Iterator[Field]:
    soft = reader.source(step, "soft")
    if soft is not None:
        yield labels.SOFTLY, True
        for name, key in labels.SOFT.items():
            yield key, reader.known(soft, name)


def _first_pass(reader: Reader, step: Step) -> Step | None:
    """The sample node whose latent a second one enlarges."""
    resized = reader.source(step, "latent")
    found = reader.source(resized, "latent") if resized and resized.definition.type == "latent.resize" else None
    return found if found and found.definition.type == "sample" else None


def _hires(reader: Reader, step: Step, first: Step) -> Iterator[Field]:
    resized = reader.source(step, "latent")
    sides = [reader.known(resized, side) for side in ("width", "height")]
    yield "Hires resize", "x".join(map(str, sides)) if all(sides) else None
    steps = reader.known(step, "steps")
    yield "Hires steps", None if steps == reader.known(first, "steps") else steps
    yield "Hires upscaler", labels.UPSCALERS.get(reader.known(resized, "filter"))
    same = dict(_sampler(reader, first))
    for name, value in _sampler(reader, step):
        yield f"Hires {name.lower()}", None if value == same[name] else value
    cfg = reader.known(step, "cfg")
    yield "Hires CFG Scale", None if cfg == reader.known(first, "cfg") else cfg


def _blank(reader: Reader, step: Step) -> bool:
    """Whether a latent begins with nothing, as in text to image."""
    return reader.upstream(reader.source(step, "latent"), "latent.empty", "latent") is not None and not _first_pass(
        reader, step
    )


def _size(reader: Reader, step: Step, picture: tuple[int, int] | None) -> str | None:
    """The size that was sampled, of the first pass where there are two; the picture's own where that is as large."""
    found = _sampled_size(reader, reader.source(_first_pass(reader, step) or step, "latent"))
    size = found or (None if _first_pass(reader, step) else picture)
    return None if size is None else f"{size[0]}x{size[1]}"


def _sampled_size(reader: Reader, step: Step | None) -> tuple[int, int] | None:
    """What a latent's sides are said to be where it comes from, in px."""
    while step is not None:
        if step.definition.type in SIDES:
            sides = [reader.known(step, name) for name in ("width", "height")]
            if all(sides) and reader.known(step, "factor") is None:
                cut = reader.known(step, "multiple") or 1
                return sides[0] // cut * cut, sides[1] // cut * cut
            return None
        step = reader.source(step, "latent", "image")
    return None


SIDES = frozenset({"latent.empty", "image.resize", "inpaint.frame", "image.tiles"})
"""Nodes that say how large a picture is that is sampled."""


def _kept(reader: Reader, output: Port, step: Step) -> bool:
    """Whether an output is as large as what was sampled."""
    behind: Step | None = reader.program.steps[output.step]
    while behind is not None and behind is not step:
        frame = reader.source(behind, "overlay")
        whole = behind.definition.type == "inpaint.paste" and reader.known(frame, "area") == "whole"
        if not whole and behind.definition.type not in KEEPS_SIZE:
            return False
        behind = reader.source(behind, "latent", "over", "image")
    return behind is step


def _plot(graph: Graph) -> Iterator[Field]:
    """The axes of a sweep, as the WebUI writes those of its X/Y/Z plot; names without an axis there keep their own."""
    sweep = graph.document.sweep
    axes = {name: axis for name, axis in sweep.axes() if name in PLOTTED} if sweep else {}
    if axes:
        yield "Script", "X/Y/Z plot"
    for letter, axis in axes.items():
        name, values = next(iter(axis.items()))
        replaced = sweep is not None and letter in sweep.replace
        if replaced or len(axis) == 1:
            label = "Prompt S/R" if replaced else AXES.get(_target(graph, name), name)
            yield f"{letter.upper()} Type", label
            yield f"{letter.upper()} Values", _listed(LISTED.get(label, {}).get(str(value), value) for value in values)


def _target(graph: Graph, name: str) -> tuple[str, str]:
    node, param = graph.locate(name)
    return graph.node_type(node), param


def _listed(values: Iterator[Any]) -> str:
    stream = io.StringIO()
    csv.writer(stream, lineterminator="").writerow([_text(value) for value in values])
    return stream.getvalue()


def _hash(file: File | None, digits: int) -> str | None:
    return None if file is None else file.digest.hex()[:digits]


def _stem(name: str) -> str:
    return name.rsplit("/", 1)[-1].removesuffix(".safetensors")


def _text(value: Any) -> str:
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
        return str(int(value))
    return str(value)
