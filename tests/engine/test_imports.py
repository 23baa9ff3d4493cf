"""Imports point one way: calotype -> server -> nodes -> engine. DESIGN, section 3."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
HOUSE = ("calotype", "server", "nodes", "engine")
FORBIDDEN = {
    "engine": {"calotype", "server", "nodes", "graphs", "pocket", "torch", "diffusers", "transformers"},
    "nodes": {"calotype", "server"},
    "nodes/diffusion": {"calotype", "server", "engine", "nodes"},
    "server": {"calotype"},
    "server/routes": {"calotype", "nodes"},
}
"""What no module under a folder may import, at the top or anywhere else."""
ALLOWED = {"engine/device.py": "torch", "nodes/diffusion": "nodes.diffusion"}


def imported(source, package):
    """Every module that a source imports, also within functions and under TYPE_CHECKING; relative ones resolved."""
    for part in ast.walk(ast.parse(source)):
        if isinstance(part, ast.Import):
            yield from (alias.name for alias in part.names)
        elif isinstance(part, ast.ImportFrom):
            around = package.split(".")[: len(package.split(".")) + 1 - part.level] if part.level else []
            yield ".".join([*around, *([part.module] if part.module else [])])
            if part.level and not part.module:
                yield from (".".join([*around, alias.name]) for alias in part.names)


def breaks(path, name):
    """Whether a module at `path` may not import `name`."""
    if any(path.startswith(place) and f"{name}.".startswith(f"{allowed}.") for place, allowed in ALLOWED.items()):
        return False
    return any(path.startswith(f"{folder}/") and name.split(".")[0] in names for folder, names in FORBIDDEN.items())


def violations(sources):
    """`file imports module` wherever the rule is broken."""
    return [
        f"{path} imports {name}"
        for path, source in sources.items()
        for name in imported(source, ".".join(Path(path).parts[:-1]))
        if breaks(path, name)
    ]


def test_imports_point_one_way():
    sources = {
        str(path.relative_to(ROOT)): path.read_text(encoding="utf-8")
        for package in HOUSE
        for path in (ROOT / package).rglob("*.py")
    }
    assert {"engine/device.py", "engine/run.py", "nodes/image.py"} <= sources.keys()
    assert violations(sources) == []


@pytest.mark.parametrize(
    ("path", "source", "name"),
    [
        ("engine/run.py", "import torch", "torch"),
        ("engine/run.py", "def f():\n    from torch.nn import functional", "torch.nn"),
        ("engine/run.py", "from nodes.types import Image", "nodes.types"),
        ("engine/device.py", "import torch\nimport server", "server"),
        ("nodes/image.py", "if TYPE_CHECKING:\n    import calotype", "calotype"),
        ("nodes/diffusion/sampler.py", "from engine.socket import Socket", "engine.socket"),
        ("nodes/diffusion/sampler.py", "import os, server.app", "server.app"),
        ("nodes/diffusion/sampler.py", "from nodes.types import Image", "nodes.types"),
        ("nodes/diffusion/sampler.py", "from ..types import Image", "nodes.types"),
        ("server/app.py", "import calotype.front", "calotype.front"),
        ("server/routes/runs.py", "from nodes import NODES", "nodes"),
    ],
)
def test_a_module_that_breaks_the_rule_is_named(path, source, name):
    assert violations({path: source}) == [f"{path} imports {name}"]


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("engine/device.py", "import torch"),
        ("engine/run.py", "import torchlight\nfrom engine.node import node\n'import torch'"),
        ("nodes/image.py", "import torch\nfrom engine.node import node\nfrom . import types"),
        (
            "nodes/diffusion/sampler.py",
            "import torch, diffusers, transformers\nfrom .schedule import sigmas",
        ),
        ("server/app.py", "import nodes, engine.engine"),
        ("server/routes/runs.py", "from server.schema import Run"),
        ("calotype/front.py", "import server, nodes, engine"),
    ],
)
def test_what_the_rule_allows_is_left_alone(path, source):
    assert violations({path: source}) == []
