"""Models of the Hugging Face hub: found in its local cache; nothing is fetched.

The cache is the one that `hf download` and diffusers fill; `HF_HOME` says where it is. A model is a repository in
diffusers' layout, named `owner/name`.
"""

from __future__ import annotations

import re
from importlib import import_module
from pathlib import Path

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
    hub = import_module("huggingface_hub")
    indices = (hub.try_to_load_from_cache(name, index, cache_dir=cache) for index in INDICES)
    return next((Path(index).parent for index in indices if isinstance(index, str)), None)
