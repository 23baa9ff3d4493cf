"""Pocket: the model that comes with Calotype, so that everything runs offline from the first day."""

from pathlib import Path

FOLDER = Path(__file__).parent / "model"
"""The checkpoint, a folder in diffusers' Stable Diffusion layout."""
