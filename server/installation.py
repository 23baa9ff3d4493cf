"""Where ComfyUI and the Stable Diffusion WebUI keep the models of each kind, from a look at an installation."""

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

Layout = Mapping[str, Sequence[str]]
"""Folder of a kind, as Calotype calls it -> where the files of that kind lie in an installation."""

COMFYUI: Layout = {
    "checkpoints": ("models/checkpoints",),
    "loras": ("models/loras",),
    "embeddings": ("models/embeddings",),
    "vae": ("models/vae",),
    "controlnet": ("models/controlnet",),
    "upscale": ("models/upscale_models",),
}
WEBUI: Layout = {
    "checkpoints": ("models/Stable-diffusion",),
    "loras": ("models/Lora", "models/LyCORIS"),
    "embeddings": ("embeddings",),
    "vae": ("models/VAE",),
    "controlnet": ("models/ControlNet", "extensions/sd-webui-controlnet/models"),
    "upscale": ("models/ESRGAN", "models/RealESRGAN", "models/SwinIR", "models/DAT", "models/HAT"),
}
STYLES = "styles.csv"
"""The WebUI's table of styles."""

_EXTRA = "extra_model_paths.yaml"
_EXTRA_BYTES = 1 << 20
_EXTRA_WORDS = {
    "checkpoints": "checkpoints",
    "loras": "loras",
    "embeddings": "embeddings",
    "vae": "vae",
    "controlnet": "controlnet",
    "upscale_models": "upscale",
}
"""ComfyUI's words for the kinds, and Calotype's."""


class InstallationError(ValueError):
    """A file of an installation cannot be read; says which, and what is wrong with it."""


def laid_out(layout: Layout, place: Path) -> Iterator[tuple[str, Path]]:
    """(kind's folder, path) of an installation, whether it is there or not."""
    for kind, folders in layout.items():
        for folder in folders:
            yield kind, place / folder


def additional(place: Path) -> list[tuple[str, Path]]:
    """(kind's folder, path) of what ComfyUI's extra_model_paths.yaml names, as far as Calotype has such a kind.

    It consists of sections of `kind: folders`, a folder a line, under the section's `base_path` if it has one. Raises
    InstallationError where it is something else.
    """
    path = place / _EXTRA
    if not path.is_file():
        return []
    try:
        if path.stat().st_size > _EXTRA_BYTES:
            raise InstallationError(f"{path}: expected at most {_EXTRA_BYTES >> 20} MiB")
        content = yaml.safe_load(path.read_text("utf-8"))
    except (OSError, UnicodeDecodeError, RecursionError, yaml.YAMLError) as error:
        raise InstallationError(f"{path}: cannot be read: {_reason(error)}") from None
    if not isinstance(content, dict) or not all(isinstance(section, dict) for section in content.values()):
        raise InstallationError(f"{path}: expected sections of `kind: folders`")
    return [found for section in content.values() for found in _section(path, section)]


def _section(path: Path, section: Mapping[Any, Any]) -> Iterator[tuple[str, Path]]:
    base = path.parent / _expanded(str(section.get("base_path") or ""))
    for word, kind in _EXTRA_WORDS.items():
        for line in str(section.get(word) or "").splitlines():
            if line.strip():
                yield kind, base / _expanded(line.strip())


def _expanded(text: str) -> str:
    return os.path.expandvars(os.path.expanduser(text))  # noqa: PTH111  as ComfyUI does, which leaves unknown homes


def _reason(error: Exception) -> str:
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark:
        return f"{error.problem} in line {error.problem_mark.line + 1}"
    return str(error.strerror) if isinstance(error, OSError) else type(error).__name__
