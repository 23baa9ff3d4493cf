"""Models of the Hugging Face hub: found in its local cache, and fetched only where that is allowed.

The cache is the one that `hf download` and diffusers fill; `HF_HOME` says where it is. A model is a repository in
diffusers' layout, named `owner/name`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from importlib import import_module
from pathlib import Path, PurePosixPath
from typing import Any

from nodes.diffusion.folder import CONTROLNET, TEXT_ENCODER, TEXT_ENCODER_2, UNET, VAE, VARIANTS
from nodes.diffusion.tensors import LoadError, refusing

FETCH = "CALOTYPE_FETCH"
"""The environment variable that allows fetching where it is 1."""
SMALL = (".json", ".txt", ".model")
"""Endings of what a model has beside its weights."""
FOLDERS = ("", "unet", "vae", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2", "scheduler")
INDICES = ("model_index.json", "config.json")
"""One of these is in every model."""
_WORD = r"[A-Za-z0-9]([\w.-]{0,94}\w)?"
_NAME = re.compile(f"{_WORD}/{_WORD}", re.ASCII)


def is_name(text: str) -> bool:
    """Whether a text could name a model of the hub: an owner and a name, and nothing that leads elsewhere."""
    strange = "--" in text or ".." in text or text.endswith(".git")
    return _NAME.fullmatch(text) is not None and not strange


def cached(name: str, cache: Path | None = None) -> Path | None:
    """Return the folder of a model in the hub's local cache, or None. Opens no connection.

    `cache` is another folder than the one that the environment names.
    """
    if not is_name(name):
        return None
    hub, _ = _library()
    indices = (hub.try_to_load_from_cache(name, index, cache_dir=cache) for index in INDICES)
    return next((Path(index).parent for index in indices if isinstance(index, str)), None)


def located(name: str, cache: Path | None = None) -> Path:
    """Return the folder of a model, fetching it where `CALOTYPE_FETCH` is 1.

    Raises LoadError, which says how to fetch it, for one that is not there and must not or cannot be fetched.
    """
    if found := cached(name, cache):
        return found
    if not is_name(name) or os.environ.get(FETCH) != "1":
        remedy = f"fetch it once with `hf download {name}`, or allow that with {FETCH}=1"
        raise LoadError(Path(name), "a file, a folder, or a model in the hub's local cache", f"none; {remedy}")
    return fetched(name, cache)


def fetched(name: str, cache: Path | None = None) -> Path:
    """Fetch what is needed of a model from the hub into its cache, and return the folder.

    Raises LoadError where no hub is reachable, and for a repository that has no weights in diffusers' layout.
    """
    hub, errors = _library()
    with refusing(Path(name), "a model of a hub that can be reached"):
        try:
            wanted = needed([each.rfilename for each in hub.model_info(name).siblings or ()])
            if not any(file.endswith(".safetensors") for file in wanted):
                raise LoadError(Path(name), "safetensors files in diffusers' layout", "none in that repository")
            return Path(hub.snapshot_download(name, cache_dir=cache, allow_patterns=wanted))
        except errors.HfHubHTTPError.__bases__ as error:
            raise LoadError(Path(name), "a model of a hub that can be reached", str(error)) from error


def needed(files: Iterable[str]) -> list[str]:
    """Return what of a repository's files a model is loaded from: configs, tokenizers, and each part's weights once."""
    files = [file for file in files if _folder(file) in FOLDERS]
    small = [file for file in files if file.endswith(SMALL)]
    parts = [(part.folder, part.stem) for part in (UNET, VAE, TEXT_ENCODER, TEXT_ENCODER_2)]
    chosen = [_weights(files, *part) for part in [*parts, ("", CONTROLNET.stem)]]
    return [*small, *(file for each in chosen for file in each)]


def _library() -> tuple[Any, Any]:
    """The hub's own library, and its errors."""
    return import_module("huggingface_hub"), import_module("huggingface_hub.errors")


def _folder(file: str) -> str:
    parent = str(PurePosixPath(file).parent)
    return "" if parent == "." else parent


def _weights(files: Iterable[str], folder: str, stem: str) -> list[str]:
    """The files of the first variant of a part's weights that is there."""
    beginning = f"{folder}/{stem}" if folder else stem
    for variant in VARIANTS:
        ending = f".{variant}" if variant else ""
        shard = re.compile(re.escape(f"{beginning}{ending}") + r"(-\d+-of-\d+)?\.safetensors")
        if found := [file for file in files if shard.fullmatch(file)]:
            return found
    return []
