"""Latents that are encoded once and learnt from many times, for a machine that encodes no faster than it learns."""

from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Generator, Tensor

from pocket.training.scene import Canvas

WORDED = 6
"""Captions that are kept of each picture."""


@dataclass(frozen=True, eq=False)
class Bank:
    """Scaled latents (N, 4, h, w) of one size of pictures, and captions of each as token ids (N, WORDED, 77)."""

    latents: Tensor
    ids: Tensor

    def drawn(self, count: int, generator: Generator) -> tuple[Tensor, Tensor]:
        """So many pictures by lot, (B, 4, h, w), and a caption of each, (B, 77)."""
        rows = torch.randint(len(self.latents), (count,), generator=generator)
        words = torch.randint(self.ids.shape[1], (count,), generator=generator)
        return self.latents[rows].float(), self.ids[rows, words].long()


def deposit(folder: Path, canvas: Canvas, number: int, kept: Bank) -> None:
    """Add a file of pictures to `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    unfinished = folder / "unfinished"
    save_file({"latents": kept.latents.half().contiguous(), "ids": kept.ids.short().contiguous()}, unfinished)
    unfinished.replace(folder / f"{_size(canvas)}-{number}.safetensors")


def files(folder: Path, canvas: Canvas) -> list[Path]:
    """The files of one size of pictures."""
    return sorted(folder.glob(f"{_size(canvas)}-*.safetensors"))


def opened(folder: Path, canvas: Canvas) -> Bank | None:
    """All pictures of one size, if there are any."""
    parts = [load_file(path) for path in files(folder, canvas)]
    if not parts:
        return None
    return Bank(torch.cat([part["latents"] for part in parts]), torch.cat([part["ids"] for part in parts]))


def _size(canvas: Canvas) -> str:
    return f"{canvas.width}x{canvas.height}"
