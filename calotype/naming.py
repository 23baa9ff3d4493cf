"""Names of saved pictures: what they are called, and how a name is taken without replacing anybody's file."""

import os
import re
import threading
from collections.abc import Iterable
from itertools import count
from pathlib import Path

LONGEST = 200
"""Characters of a name before its number, at most."""


def stem(name: str, title: str, output: str, outputs: Iterable[str]) -> str:
    """What a graph's picture is called, without its number: letters, digits, `_` and `-`, so it leaves no folder.

    `name` is where the graph came from, such as a file; where it is empty, the graph's `title` stands for it.
    """
    name = re.sub(r"\.\w+$", "", name)
    known = "|".join(map(re.escape, outputs))
    name = re.sub(rf"-({known})(-[xyzb]?\d+)*-\d{{5}}$", "", name) or title
    return re.sub(r"[^A-Za-z0-9_-]+", "_", f"{name}-{output}").strip("_")[-LONGEST:]


def write(folder: Path, stem: str, data: bytes) -> Path:
    """Write a PNG under the next free number; the file appears whole or not at all."""
    taken = [
        int(found[1]) for path in folder.glob(f"{stem}-*.png") if (found := re.search(r"-(\d{5})\.png$", path.name))
    ]
    temporary = folder / f".{stem}.{os.getpid()}-{threading.get_ident()}.part"
    temporary.write_bytes(data)
    try:
        for number in count(max(taken, default=0) + 1):
            path = folder / f"{stem}-{number:05}.png"
            if _claim(temporary, path, data):
                return path
    finally:
        temporary.unlink()
    raise AssertionError


def _claim(temporary: Path, path: Path, data: bytes) -> bool:
    """Take a name unless somebody has it; some file systems know no links, so there the data is written again."""
    try:
        os.link(temporary, path)
    except FileExistsError:
        return False
    except OSError:
        try:
            with path.open("xb") as stream:
                stream.write(data)
        except FileExistsError:
            return False
    return True
