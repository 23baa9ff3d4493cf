"""The grammar of the `parameters` text that the WebUI and many others write into their pictures.

    a fox in the snow, (soft light:1.2)
    Negative prompt: blurry
    Steps: 20, Sampler: DPM++ 2M, Schedule type: Karras, CFG scale: 7, Seed: 1, Size: 512x768, Lora hashes: "fox: 1a2b"

It holds no pictures, masks, chains or sweeps, so it is a courtesy to other programs; the graph beside it in a PNG says
everything.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

NEGATIVE = "Negative prompt:"
_PAIR = re.compile(r'(?<![\w \-/])[ \-/]*(\w[\w \-/]+):\s*("(?:\\.|[^\\"])*"|[^,]*)(?:,|$)')
_AFTER = re.compile(r"((?:Negative )?Template):\s*(.*)")
"""Lines that the dynamic-prompts extension writes below the fields."""
_SIZE = re.compile(r"\s*(\d+)\s*x\s*(\d+)\s*")
LEAST = 3
"""Fields that make a line the line of fields: fewer may be prose."""
DEFAULTS: Mapping[str, str] = {
    "Schedule type": "Automatic",
    "Clip skip": "1",
    "RNG": "GPU",
    "Mask mode": "Inpaint masked",
    "Masked content": "original",
    "Inpaint area": "Whole picture",
    "Masked area padding": "32",
    "Schedule min sigma": "0",
    "Schedule max sigma": "0",
    "Schedule rho": "0",
    "Emphasis": "Original",
    "VAE Encoder": "Full",
    "VAE Decoder": "Full",
    "Hires sampler": "Use same sampler",
}
"""What the WebUI means by fields that it leaves out."""


@dataclass(frozen=True)
class Parameters:
    """A parsed text: both prompts, and the fields in their order."""

    prompt: str = ""
    negative: str = ""
    fields: Mapping[str, str] = field(default_factory=dict)

    def get(self, name: str) -> str | None:
        """A field, or what its absence stands for; None where that is nothing."""
        return self.fields.get(name, DEFAULTS.get(name))

    def size(self, name: str = "Size") -> tuple[int, int] | None:
        """A field such as `512x768` as (width, height) in px. Raises ValueError where it is something else."""
        text = self.fields.get(name)
        if text is None:
            return None
        found = _SIZE.fullmatch(text)
        if found is None:
            raise ValueError(f"expected WIDTHxHEIGHT, got {text!r}")
        return int(found[1]), int(found[2])


def parse(text: str) -> Parameters:
    """Read a text. One without a line of fields is all prompt.

    The line of fields is the last one where that has at least three of them, else the last one that begins with
    `Steps:` and has as many. What follows it belongs to the dynamic-prompts extension (`Template:`), or to nobody.
    """
    lines = text.replace("\r\n", "\n").strip().split("\n")
    position = _line_of_fields(lines)
    fields = {} if position is None else {**dict(pairs(lines[position])), **_templates(lines[position + 1 :])}
    prompt, negative = _prompts(lines[:position])
    return Parameters(prompt, negative, fields)


def dump(parameters: Parameters) -> str:
    """Write a text, the inverse of `parse`. Values that hold `,`, `:` or a line's end are quoted as JSON."""
    lines = [parameters.prompt, f"{NEGATIVE} {parameters.negative}" if parameters.negative else ""]
    lines.append(", ".join(f"{name}: {_quoted(value)}" for name, value in parameters.fields.items()))
    return "\n".join(filter(None, lines))


def pairs(line: str) -> Iterator[tuple[str, str]]:
    """The fields of a line. A value is a JSON text, a bare JSON list or object (Civitai), or all up to the comma."""
    position = 0
    while found := _PAIR.search(line, position):
        name, value, position = found[1].strip(), found[2], found.end()
        if value.startswith(("[", "{")) and (end := _json_end(line, found.start(2))) is not None:
            value, position = line[found.start(2) : end], min(end + 1, len(line))
        yield name, _unquoted(value.strip())


def _line_of_fields(lines: Sequence[str]) -> int | None:
    if _has_fields(lines[-1]) and not _AFTER.match(lines[-1]):
        return len(lines) - 1
    found = (position for position in range(len(lines) - 1, -1, -1) if lines[position].startswith("Steps:"))
    return next((position for position in found if _has_fields(lines[position])), None)


def _has_fields(line: str) -> bool:
    return sum(1 for _ in pairs(line)) >= LEAST


def _prompts(lines: Sequence[str]) -> tuple[str, str]:
    prompt: list[str] = []
    negative: list[str] = []
    filled = prompt
    for line in lines:
        if line.startswith(NEGATIVE):
            filled = negative
        filled.append(line.removeprefix(NEGATIVE).strip() if filled is negative else line.strip())
    return "\n".join(prompt).strip(), "\n".join(negative).strip()


def _templates(lines: Sequence[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    name = None
    for line in lines:
        if begun := _AFTER.match(line):
            name, found[begun[1]] = begun[1], begun[2]
        elif name:
            found[name] += f"\n{line}"
    return {name: value.strip() for name, value in found.items()}


def _json_end(line: str, start: int) -> int | None:
    """Where a JSON value ends that begins at `start`; None where there is none that ends before a comma or the end."""
    try:
        _, end = json.JSONDecoder().raw_decode(line, start)
    except (ValueError, RecursionError):
        return None
    return end if line[end : end + 1] in ("", ",") else None


def _quoted(value: str) -> str:
    plain = value == value.strip() and not value.startswith('"') and not any(sign in value for sign in ",:\n\r")
    return value if plain else json.dumps(value, ensure_ascii=False)


def _unquoted(value: str) -> str:
    if len(value) < 2 or value[0] != '"' or value[-1] != '"':
        return value
    try:
        return str(json.loads(value))
    except ValueError:
        return value
