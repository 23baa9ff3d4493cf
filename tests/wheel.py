"""Build the wheel, install it into an empty environment, and run a graph from it, away from the sources."""

import os
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def main() -> None:
    """Exit non-zero where any step fails."""
    with tempfile.TemporaryDirectory(prefix="calotype-wheel-") as folder:
        place = Path(folder)
        _call(sys.executable, "-m", "build", "--wheel", "--outdir", str(place), str(ROOT))
        (wheel,) = place.glob("*.whl")
        venv.create(place / "env", with_pip=True)
        binaries = place / "env" / "bin"
        _call(str(binaries / "python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check",
              "-c", str(ROOT / "constraints.txt"), str(wheel))  # fmt: skip
        calotype = str(binaries / "calotype")
        _call(calotype, "--version", cwd=place)
        _call(calotype, "validate", "inpaint_after_img2img", cwd=place)
        for _ in range(2):
            _call(calotype, "run", "inpaint_after_img2img", "--set", "first.steps=4", "--set", "second.steps=4",
                  "--cache", "cache", "--report", "report.json", cwd=place)  # fmt: skip
        _call(str(binaries / "python"), "-c", _CHECK, cwd=place)
    print("wheel: 1 passed, 0 failed")


_CHECK = """
import json, pathlib
report = json.load(open("report.json"))
outcomes = {node["outcome"] for node in report["nodes"].values()}
assert outcomes == {"hit", "unneeded"}, outcomes
assert all(pathlib.Path(path).is_file() for paths in report["outputs"].values() for path in paths)
import calotype
assert "site-packages" in calotype.__file__, calotype.__file__
from nodes.diffusion import checkpoint
assert {"vocab.json", "merges.txt", "LICENSE"} <= {path.name for path in checkpoint.TOKENIZER.iterdir()}
"""


def _call(*command: str, cwd: Path | None = None) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "VIRTUAL_ENV"))}
    subprocess.run(command, check=True, cwd=cwd, env=environment)


if __name__ == "__main__":
    main()
