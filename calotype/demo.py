"""`make demo`: inpaint after img2img from a saved graph, then the same graph with one parameter changed.

Each act is a process of its own, and shows what ran and what was found in the cache folder.
"""

import subprocess
import sys
from pathlib import Path

import PIL.Image
from PIL import ImageChops

GRAPH = "inpaint_after_img2img"
OUT = Path("out/demo")
CACHE = OUT / "cache"
CHANGE = "inpaint_strength=0.5"


def main() -> None:
    """Run the three acts; stops at the first that fails."""
    _say("1. A saved graph: the whole picture is repainted, then the mouth once more under a mask.")
    _calotype("cache", "--cache", str(CACHE), "clear", quietly=True)
    _calotype("run", GRAPH)
    _look()
    _say(f"2. One parameter changed ({CHANGE}), in another process: only what depends on it runs.")
    _calotype("run", GRAPH, "--set", CHANGE)
    _say("3. And back again: nothing runs.")
    _calotype("run", GRAPH)
    _say("4. Sixteen pictures over two axes, on one sheet; what no axis reaches is found.")
    _calotype("sweep", GRAPH, "--x", "inpaint_strength=0.4,0.6,0.8,1", "--y", "inpaint_seed=7,8,9,10")
    print(f"\nLook at the pictures in {OUT}.")


def _calotype(*arguments: str, quietly: bool = False) -> None:
    command = [sys.executable, "-m", "calotype", *arguments]
    if not quietly:
        shown = " ".join(arguments)
        print(f"$ calotype {shown} --cache {CACHE} --out {OUT}", flush=True)
        command += ["--cache", str(CACHE), "--out", str(OUT)]
    done = subprocess.run(command, check=False, capture_output=quietly)
    if done.returncode and not quietly:
        sys.exit(done.returncode)


def _look() -> None:
    """Compare the pictures before and after the inpaint, outside of the mask."""
    before, after = (_newest(f"{GRAPH}-{name}-?????.png") for name in ("before", "image"))
    with PIL.Image.open(before) as one, PIL.Image.open(after) as other:
        box, size = ImageChops.difference(one.convert("RGB"), other.convert("RGB")).getbbox(), one.size
    _say(f"{before.name} and {after.name} differ only within {box} of {size}: the rest is untouched, to the last bit.")


def _newest(pattern: str) -> Path:
    return max(OUT.glob(pattern), key=lambda path: path.stat().st_mtime_ns)


def _say(text: str) -> None:
    print(f"\n{text}", flush=True)


if __name__ == "__main__":
    main()
