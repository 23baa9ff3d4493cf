"""Folders in diffusers' layout: a config for each part, and its weights in one file or several."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from nodes.diffusion import original
from nodes.diffusion.filling import filled
from nodes.diffusion.parts import REMEDY, Kind, Part
from nodes.diffusion.tensors import PICKLES, LoadError, Span, refusing, some, spans

if TYPE_CHECKING:
    from transformers import CLIPTokenizer

CONVERSION = (
    "a pickle can run code when it is opened, so it is not loaded; where you trust it, convert it once with "
    "diffusers: {opened}.save_pretrained(new_folder, safe_serialization=True)"
)
VARIANTS = ("", "fp16", "bf16", "fp32")
"""Names for number formats in names of files; the first that is there is taken."""


@dataclass(frozen=True)
class Component:
    """One part of a model: its folder, the library and class that run it, and what its files of weights are called.

    `own` is what no tensor that the class does not have may begin with.
    """

    folder: str
    library: str
    kind: str
    stem: str
    own: tuple[str, ...] = ()


UNET = Component("unet", "diffusers", "UNet2DConditionModel", "diffusion_pytorch_model", ("",))
VAE = Component("vae", "diffusers", "AutoencoderKL", "diffusion_pytorch_model", ("",))
CONTROLNET = Component("controlnet", "diffusers", "ControlNetModel", "diffusion_pytorch_model", ("",))
TEXT_ENCODER = Component("text_encoder", "transformers", "CLIPTextModel", "model")
TEXT_ENCODER_2 = Component("text_encoder_2", "transformers", "CLIPTextModelWithProjection", "model")


def module(component: Component, path: Path, dtype: torch.dtype, device: torch.device | str, **changed: Any) -> Any:
    """Load a part from its folder, with `changed` in its config; raises LoadError for one that does not fit."""
    config = checked(component, path) | changed
    found = stored(component, path)
    place = next(iter({span.path for span in found.values()}), path)
    part = Part(place, Kind(component.kind, ("",), "", component.own), "", found)
    return filled(lambda: _made(component, config), part, original.stored(found), dtype, device)


def part(model: Path, name: str) -> Path:
    """Return the folder of one part of a model."""
    if not (model / name).is_dir():
        raise LoadError(model / name, f"the {name} folder of a diffusers model", "nothing")
    return model / name


def checked(component: Component, path: Path) -> dict[str, Any]:
    """Read a part's config, and refuse one of another class than the one Calotype runs."""
    config = read(path / "config.json")
    kind = config.get("_class_name") or (config.get("architectures") or [None])[0]
    if kind != component.kind:
        raise LoadError(path / "config.json", f"class {component.kind}", repr(kind))
    return config


def stored(component: Component, path: Path) -> dict[str, Span]:
    """Find the weights of a part: in one file, in several that an index lists, or in one of another number format.

    Raises LoadError where there are none.
    """
    for variant in VARIANTS:
        ending = f".{variant}" if variant else ""
        whole = path / f"{component.stem}{ending}.safetensors"
        if whole.is_file():
            return spans(whole, REMEDY)
        index = path / f"{component.stem}.safetensors.index{ending}.json"
        if index.is_file():
            return _sharded(index)
    pickles = sorted(file.name for pattern in PICKLES for file in path.glob(pattern))
    opened = f"StableDiffusionPipeline.from_pretrained({str(path.parent)!r})"
    found = f"{some(pickles)}; {CONVERSION.format(opened=opened)}" if pickles else "nothing"
    raise LoadError(path / f"{component.stem}.safetensors", "a safetensors file", found)


def tokenizer(path: Path, **options: Any) -> CLIPTokenizer:
    """Load a tokenizer from its folder, or one with other options from its words."""
    if not options:
        _check_tokenizer(path)
    with quiet(), refusing(path, "a CLIP tokenizer"):
        return import_module("transformers").CLIPTokenizer.from_pretrained(path, local_files_only=True, **options)


def read(path: Path) -> dict[str, Any]:
    """Read a config file."""
    if not path.is_file():
        raise LoadError(path, "a config file", "nothing")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise LoadError(path, "JSON", f"something else ({error})") from error
    if not isinstance(content, dict):
        raise LoadError(path, "a JSON object", type(content).__name__)
    return content


@contextmanager
def quiet() -> Iterator[None]:
    """Silence the libraries' logs and progress bars while they load; they have one switch for the whole process."""
    logs = [import_module(f"{library}.utils.logging") for library in ("diffusers", "transformers")]
    before = [(log, log.get_verbosity(), log.is_progress_bar_enabled()) for log in logs]
    for log in logs:
        log.set_verbosity_error()
        log.disable_progress_bar()
    try:
        yield
    finally:
        for log, verbosity, bars in before:
            log.set_verbosity(verbosity)
            if bars:
                log.enable_progress_bar()


def _made(component: Component, config: dict[str, Any]) -> Any:
    """Build what a config says; what it says of the number format is left to the caller."""
    library = import_module(component.library)
    kind = getattr(library, component.kind)
    with quiet():
        if component.library == "diffusers":
            return kind.from_config(config)
        kept = {name: value for name, value in config.items() if name not in ("torch_dtype", "dtype")}
        return kind(library.CLIPTextConfig.from_dict(kept))


def _sharded(index: Path) -> dict[str, Span]:
    """Find the weights in the files of an index, which lie beside it."""
    listed = read(index).get("weight_map")
    if not isinstance(listed, dict) or not listed:
        raise LoadError(index, "a weight_map from names to files", "none")
    found = dict[str, Span]()
    for name in sorted(set(map(str, listed.values()))):
        if Path(name).name != name or not (index.parent / name).is_file():
            raise LoadError(index, "files beside it", f"{name!r}, which is not there")
        found |= spans(index.parent / name, REMEDY)
    return found


def _check_tokenizer(path: Path) -> None:
    """Refuse a tokenizer of another kind, or without its words: transformers would make one of two tokens."""
    kind = read(path / "tokenizer_config.json").get("tokenizer_class")
    if kind not in ("CLIPTokenizer", "CLIPTokenizerFast"):
        raise LoadError(path / "tokenizer_config.json", "tokenizer_class 'CLIPTokenizer'", repr(kind))
    if (path / "tokenizer.json").is_file():
        read(path / "tokenizer.json")
        return
    read(path / "vocab.json")
    if not (path / "merges.txt").is_file():
        raise LoadError(path / "merges.txt", "the tokenizer's merges", "nothing")
