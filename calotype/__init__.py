"""Calotype: a typed node-graph engine for image diffusion in which nothing is ever computed twice.

    from calotype import Engine

    with Engine(cache="~/.cache/calotype") as engine:
        result = engine.run("inpaint_after_img2img", set={"inpaint_prompt": "crying face"})
        result["image"].pil().save("picture.png")

Names are loaded when they are first used, so that `calotype --help` does not wait for torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from calotype import recipes
    from calotype.front import Engine, Graph
    from calotype.library import find
    from engine.context import CancelToken, Context
    from engine.engine import Result
    from engine.errors import CalotypeError, Cancelled, GraphError, NodeFailed, Problem, RunFailed
    from engine.file import File, ModelFile
    from engine.models import ModelRef
    from engine.node import node
    from engine.registry import Registry
    from engine.socket import Bool, Float, Int, Socket, Text
    from nodes.types import Conditioning, Image, Latent, Mask, Noise

_HOMES = {
    "calotype.front": ("Engine", "Graph"),
    "calotype.library": ("find",),
    "engine.context": ("CancelToken", "Context"),
    "engine.engine": ("Result",),
    "engine.errors": ("CalotypeError", "Cancelled", "GraphError", "NodeFailed", "Problem", "RunFailed"),
    "engine.file": ("File", "ModelFile"),
    "engine.models": ("ModelRef",),
    "engine.node": ("node",),
    "engine.registry": ("Registry",),
    "engine.socket": ("Bool", "Float", "Int", "Socket", "Text"),
    "nodes.types": ("Conditioning", "Image", "Latent", "Mask", "Noise"),
}
_MODULES = ("recipes",)

__version__ = "0.1.0"
__all__ = [
    "Bool",
    "CalotypeError",
    "CancelToken",
    "Cancelled",
    "Conditioning",
    "Context",
    "Engine",
    "File",
    "Float",
    "Graph",
    "GraphError",
    "Image",
    "Int",
    "Latent",
    "Mask",
    "ModelFile",
    "ModelRef",
    "NodeFailed",
    "Noise",
    "Problem",
    "Registry",
    "Result",
    "RunFailed",
    "Socket",
    "Text",
    "find",
    "node",
    "recipes",
]


def __getattr__(name: str) -> object:
    """Import a public name on first use."""
    if name in _MODULES:
        return import_module(f"calotype.{name}")
    for home, names in _HOMES.items():
        if name in names:
            return getattr(import_module(home), name)
    raise AttributeError(f"module 'calotype' has no attribute {name!r}")


def __dir__() -> list[str]:
    """The public names."""
    return __all__
