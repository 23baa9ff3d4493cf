"""Upscale models of architectures that are not our own, through spandrel (MIT) where that is installed.

Of spandrel only networks are used: it is given tensors that were read from safetensors, and never a file.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nodes.diffusion.enlarger import Enlarger
from nodes.diffusion.tensors import LoadError, refusing

OURS = "an upscale model: RRDBNet (ESRGAN, Real-ESRGAN) or SRVGGNetCompact, from 3 channels to 3"
INSTALL = 'pip install "calotype[upscalers]"'
EXPECTED = "an upscale model from 3 channels to 3 that spandrel knows"


class Foreign(Enlarger):
    """A network of spandrel's, with what must be done around it."""

    def __init__(self, found: Any) -> None:
        super().__init__()
        self.network = found.model
        self.scale = found.scale
        self.grain = found.size_requirements.multiple_of
        self._found = found

    def forward(self, x: Tensor) -> Tensor:
        """Enlarge; what is smaller than the network takes is continued, and cut again."""
        made: Tensor = self._found(x)
        return made


def network(path: Path, weights: Mapping[str, Tensor], dtype: torch.dtype, told: str) -> Enlarger:
    """Build the network that has these weights, on the CPU, and give it them as `dtype`.

    Raises LoadError, in which `told` says what the file is to us, where spandrel is not installed, does not know such
    a network, or says that it does not compute in `dtype`.
    """
    library = _library(path, told)
    try:
        with refusing(path, EXPECTED):
            found = library.ModelLoader("cpu").load_from_state_dict(dict(weights))
            if not isinstance(found, library.ImageModelDescriptor):
                raise LoadError(path, EXPECTED, f"one for {found.purpose.lower()}, which takes a mask too")
            if (found.input_channels, found.output_channels) != (3, 3):
                raise LoadError(path, EXPECTED, f"one from {found.input_channels} channels to {found.output_channels}")
            return Foreign(found.to(dtype))
    except library.UnsupportedModelError as error:
        raise LoadError(path, EXPECTED, told) from error
    except library.UnsupportedDtypeError as error:
        raise LoadError(path, f"a network that computes in {str(dtype).removeprefix('torch.')}", str(error)) from error


def _library(path: Path, told: str) -> Any:
    try:
        return import_module("spandrel")
    except ImportError as error:
        name, _, _ = (error.name or "").partition(".")
        missing = "" if name == "spandrel" else f", which is here without {name}"
        found = f"{told}; others than those need spandrel{missing}: {INSTALL}"
        raise LoadError(path, OURS, found) from error
