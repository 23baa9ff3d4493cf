"""Styles: texts that are added to prompts by name, in a table as the Stable Diffusion WebUI keeps it."""

import csv
import difflib
import io
from collections.abc import Iterator, Mapping
from typing import NamedTuple

MAX_BYTES = 1_000_000
"""Size of a table."""
PLACEHOLDER = "{prompt}"
"""Where the prompt stands in the text of a style; without it the text comes after the prompt."""

_COLUMNS = ("name", "prompt", "negative_prompt")


class StyleError(ValueError):
    """A style that is not there, or a table that cannot be read: names the line, what was expected and what came."""


class Style(NamedTuple):
    """What a style adds to a prompt and to a negative prompt."""

    prompt: str
    negative: str


def read(data: bytes) -> dict[str, Style]:
    """Read a table: CSV in UTF-8, with or without a byte order mark, the columns name, prompt and negative_prompt.

    Empty rows, and rows whose name begins with #, are left out; of two styles of one name the last counts. Raises
    StyleError naming the line.
    """
    if len(data) > MAX_BYTES:
        raise StyleError(f"expected at most {MAX_BYTES:,} bytes, got {len(data):,}")
    return {row["name"]: Style(row["prompt"], row["negative_prompt"]) for row in _rows(_decoded(data))}


def pick(styles: Mapping[str, Style], name: str) -> Style:
    """The style of that name. Raises StyleError that lists the nearest names."""
    if name in styles:
        return styles[name]
    near = difflib.get_close_matches(name, styles, 3)
    hint = f"did you mean {' or '.join(map(repr, near))}?" if near else f"there are {', '.join(sorted(styles)[:8])}"
    raise StyleError(f"no style {name!r}, {hint if styles else 'nor any other'}")


def applied(prompt: str, added: str) -> str:
    """Add the text of a style to a prompt: in it where it says {prompt}, else after it and a comma."""
    if PLACEHOLDER in added:
        return added.replace(PLACEHOLDER, prompt)
    return ", ".join(filter(None, (prompt.strip(), added.strip())))


def _decoded(data: bytes) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise StyleError(f"line {line}: expected UTF-8, got the byte 0x{data[error.start]:02x}") from error


def _rows(text: str) -> Iterator[Mapping[str, str]]:
    rows = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        header = next(rows, None)
        if header is None:
            return
        columns = _columns(header)
        for row in rows:
            if row and not row[0].startswith("#"):
                yield _row(columns, row, rows.line_num)
    except csv.Error as error:
        raise StyleError(f"line {rows.line_num}: expected CSV, got something else ({error})") from error


def _columns(header: list[str]) -> list[str]:
    columns = ["prompt" if column.strip() == "text" else column.strip() for column in header]
    if "name" not in columns or "prompt" not in columns:
        raise StyleError(f"line 1: expected the columns {', '.join(_COLUMNS)}, got {', '.join(header)[:80]!r}")
    return columns


def _row(columns: list[str], row: list[str], line: int) -> Mapping[str, str]:
    if len(row) > len(columns):
        raise StyleError(f"line {line}: expected {len(columns)} columns, got {len(row)}; put commas between quotes")
    found = {**dict.fromkeys(_COLUMNS, ""), **dict(zip(columns, row, strict=False))}
    if not found["name"]:
        raise StyleError(f"line {line}: a style without a name")
    return found
