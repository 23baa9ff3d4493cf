"""Pages of the documentation as tests read them: fenced blocks, the Python and the shell in them, and what they say."""

import contextlib
import io
import json
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
FENCE = re.compile(r"^```(?P<info>[^\n`]*)\n(?P<body>.*?)^```$", re.MULTILINE | re.DOTALL)
MORE = "..."
SIZES = {"bytes", "device", "host", "disk"}
"""Names of numbers of bytes."""
_VOLATILE = re.compile(r"[0-9a-f]{12,}|\d+\.\d+(?:e[+-]\d+)?")
"""Ids, digests, and times: another one every time."""


@dataclass(frozen=True)
class Block:
    """A fenced block: what stands behind the fence, what stands within, and on which line it begins."""

    info: str
    body: str
    line: int


def blocks(text):
    """The fenced blocks of a page, in order."""
    return [
        Block(found["info"].strip(), found["body"], text.count("\n", 0, found.start("body")))
        for found in FENCE.finditer(text)
    ]


def printed(block, page, namespace):
    """Run a block of Python; a traceback shows its lines with the numbers that they have on the page."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        exec(compile("\n" * block.line + block.body, str(page), "exec"), namespace)
    return out.getvalue()


class Shell:
    """A shell in which one block after the other runs."""

    def __init__(self, folder, environment):
        self._process = subprocess.Popen(
            ["bash"],
            cwd=folder,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()

    def run(self, commands):
        """What the commands print. The last one must succeed."""
        self._process.stdin.write(f"{commands}\nprintf '\\n-- %d --\\n' $?\n")
        self._process.stdin.flush()
        lines = []
        for line in self._process.stdout:
            if found := re.fullmatch(r"-- (\d+) --\n", line):
                said = "".join(lines).removesuffix("\n")
                assert found[1] == "0", f"status {found[1]} of {commands}: {said}"
                return said
            lines.append(line)
        raise AssertionError(f"the shell ended during {commands}: {''.join(lines)}")


def unlike(shown, real, where="answer"):
    """In what an answer is not like the one that the page shows; None where it is.

    `"...": "..."` stands for other names, a last `"..."` in a list for more of it, `...` at the end of a text for its
    rest. Ids, digests and fractions, and numbers of bytes, only have to be some.
    """
    match shown, real:
        case dict(), dict():
            return _unlike_object(shown, real, where)
        case list(), list():
            if shown and shown[-1] == MORE:
                shown, real = shown[:-1], real[: len(shown) - 1]
            if len(shown) != len(real):
                return f"{where}: {len(shown)} entries shown, {len(real)} came: {real}"
            found = (unlike(*pair, f"{where}[{index}]") for index, pair in enumerate(zip(shown, real, strict=True)))
            return next(filter(None, found), None)
        case str(), str():
            return None if _line_fits(shown, real) else f"{where}: {shown!r} shown, {real!r} came"
        case (float(), int() | float()) | (int(), float()):
            return None
    return None if shown == real else f"{where}: {shown!r} shown, {real!r} came"


def _unlike_object(shown, real, where):
    names = shown.keys() - {MORE}
    if names != real.keys() and (MORE not in shown or names - real.keys()):
        return f"{where}: names {sorted(names)} shown, {sorted(real)} came"
    names -= {name for name in SIZES & names if isinstance(shown[name], int) and isinstance(real[name], int)}
    found = (unlike(shown[name], real[name], f"{where}.{name}") for name in shown if name in names)
    return next(filter(None, found), None)


def unlike_text(shown, real):
    """The first line of a text that does not come after the ones before it; None where all do. `...` skips lines."""
    coming = iter(real.splitlines())
    for line in shown.splitlines():
        if line != MORE and not any(_line_fits(line, other) for other in coming):
            return line
    return None


def _line_fits(shown, real):
    shown, real = _VOLATILE.sub("#", shown), _VOLATILE.sub("#", real)
    return real.startswith(shown.removesuffix(MORE)) if shown.endswith(MORE) else shown == real


def differs(block, said):
    """What is wrong with a block that shows an answer, given the real one; None where nothing is."""
    if block.info.startswith("json"):
        try:
            return unlike(json.loads(block.body), json.loads(said))
        except ValueError as error:
            return f"{error}: {said}"
    return unlike_text(block.body, said)
