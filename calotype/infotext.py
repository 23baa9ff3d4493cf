"""The `parameters` text that the WebUI writes into its pictures, made from a graph.

It is a courtesy to other programs: it cannot hold masks, chains or sweeps. The graph beside it in the file can.
"""

import json
from collections.abc import Iterator, Mapping
from typing import Any

from calotype import __version__
from engine.program import Port, Program, Step

SAMPLERS = {
    "dpmpp_2m": "DPM++ 2M",
    "euler": "Euler",
    "euler_ancestral": "Euler a",
    "heun": "Heun",
    "ddim": "DDIM",
}
SCHEDULES = {"karras": "Karras", "normal": "Uniform", "exponential": "Exponential", "sgm_uniform": "SGM Uniform"}


def infotext(
    program: Program, output: Port, size: tuple[int, int], digests: Mapping[str, str], index: int = 0
) -> str | None:
    """The text for picture `index` of an output, from the sample node nearest to it; None where there is none.

    `size` is (width, height) in px, left out for a sheet of many pictures; `digests` maps `node.param` to the sha256
    of the file it names.
    """
    step = _nearest(program, output, "sample")
    if step is None:
        return None
    prompt, negative = (_text(program, step, name) for name in ("positive", "negative"))
    sheet = program.steps[output.step].definition.gathers
    fields = dict(_fields(program, step, digests, index), Size=None if sheet else f"{size[0]}x{size[1]}")
    line = ", ".join(f"{name}: {_quoted(value)}" for name, value in fields.items() if value is not None)
    return "\n".join([prompt, *([f"Negative prompt: {negative}"] if negative else []), line])


def _fields(program: Program, step: Step, digests: Mapping[str, str], index: int) -> Iterator[tuple[str, Any]]:
    noise, model = _source(program, step, "noise"), _source(program, step, "unet")
    yield "Steps", literal(program, step, "steps")
    yield "Sampler", SAMPLERS.get(literal(program, step, "sampler"))
    yield "Schedule type", SCHEDULES.get(literal(program, step, "schedule"))
    yield "CFG scale", literal(program, step, "cfg")
    variation = literal(program, noise, "variation") if noise else None
    yield "Seed", _counted(program, noise, "seed", 0 if variation else index)
    yield "Size", None  # keeps the customary place
    if model is not None and "checkpoint" in model.files:
        yield "Model hash", digests.get(f"{model.id}.checkpoint", "")[:10] or None
        yield "Model", model.files["checkpoint"][1].rsplit("/", 1)[-1]
    if variation:
        yield "Variation seed", _counted(program, noise, "variation_seed", index)
        yield "Variation seed strength", variation
    denoise = literal(program, step, "denoise")
    yield "Denoising strength", None if denoise == 1 else denoise
    yield "Version", f"Calotype {__version__}"


def _counted(program: Program, noise: Step | None, name: str, index: int) -> int | None:
    """The seed of picture `index`: seeds count up along a batch."""
    seed = literal(program, noise, name) if noise else None
    return None if seed is None else int(seed) + index


def literal(program: Program, step: Step, name: str) -> Any:
    """A parameter's value, also where it is linked to a constant; None where it is computed."""
    if name in step.values:
        return step.values[name]
    constant = _source(program, step, name)
    return None if constant is None else constant.values.get("value")


def _text(program: Program, step: Step, name: str) -> str:
    encode = _source(program, step, name)
    return str(literal(program, encode, "text") or "") if encode else ""


def _source(program: Program, step: Step, name: str) -> Step | None:
    found = next((source for source in step.sources if source.name == name), None)
    return None if found is None else program.steps[found.ports[0].step]


def _nearest(program: Program, output: Port, type_: str) -> Step | None:
    level, seen = [output.step], {output.step}
    while level:
        for position in level:
            if program.steps[position].definition.type == type_:
                return program.steps[position]
        level = [port.step for position in level for port in program.steps[position].needs if port.step not in seen]
        seen.update(level)
    return None


def _quoted(value: Any) -> str:
    text = f"{value:g}" if isinstance(value, float) else str(value)
    return json.dumps(text, ensure_ascii=False) if any(sign in text for sign in ",:\n") else text
