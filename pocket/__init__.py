"""Pocket: the model that comes with Calotype, so that everything runs offline from the first day."""

from pathlib import Path

FOLDER = Path(__file__).parent / "model"
"""The checkpoint, a folder in diffusers' Stable Diffusion layout."""
PLACES = {kind: Path(__file__).parent / kind for kind in ("loras", "embeddings")}
"""Folders of what was trained on it: a LoRA and an embedding, by the folder of their kind."""
