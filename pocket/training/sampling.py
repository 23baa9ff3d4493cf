"""Looking at what a model draws while it learns."""

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from pocket.training.network import DOWNSCALE, LATENTS, kept
from pocket.training.phrase import POSITIONS

PROMPTS = (
    "smiling face",
    "crying face",
    "neutral face",
    "angry face",
    "red apple",
    "green apple",
    "fox",
    "a rocket on a blue background",
    "cat face on a pink background",
    "pizza on a black background",
    "blue heart on a yellow background",
    "house on a light green background",
    "owl on a purple and dark blue gradient background",
    "a fox on the left and a red apple on the right",
    "a rose left of a sun on a light blue background",
    "ghost, snowman and star on a dark blue background",
    "line drawing of a fox",
    "line drawing of a rocket",
    "pixel art of an owl on a blue background",
    "photo negative of a rose",
    "tulip on the left",
    "fire engine",
    "soccer ball on a green background",
    "birthday cake",
)
STEPS, CFG, SIDE = 25, 5.0, 128


@torch.no_grad()
def sample(painter: Any, vae: Any, ids: Tensor, seed: int = 0) -> Tensor:
    """Draw one picture for each row of token ids (2, B, 77), those of nothing first: (B, 3, 128, 128) from -1 to 1.

    DDIM without noise: Song et al. 2020, equation 12 (https://arxiv.org/abs/2010.02502).
    """
    count, left = ids.shape[1], kept(ids.device)
    shape = (count, LATENTS, SIDE // DOWNSCALE, SIDE // DOWNSCALE)
    latents = torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(ids.device)
    ids = ids.flatten(0, 1)
    steps = torch.linspace(len(left) - 1, 0, STEPS + 1).long().tolist()
    for step, following in pairwise(steps):
        both = torch.cat([latents, latents]).contiguous(memory_format=torch.channels_last)
        without, given = painter(both, torch.full((2 * count,), step, device=ids.device), ids).float().chunk(2)
        noise = without + CFG * (given - without)
        clean = (latents - (1 - left[step]).sqrt() * noise) / left[step].sqrt()
        latents = left[following].sqrt() * clean + (1 - left[following]).sqrt() * noise
    drawn: Tensor = vae.decode(latents / vae.config.scaling_factor).sample.float()
    return drawn.clamp(-1, 1)


def tokenised(tokenizer: Any, prompts: Sequence[str], device: torch.device) -> Tensor:
    """Token ids of nothing and of prompts, (2, B, 77)."""
    texts = [*[""] * len(prompts), *prompts]
    ids = tokenizer(texts, padding="max_length", max_length=POSITIONS, truncation=True, return_tensors="pt")
    found: Tensor = ids["input_ids"].view(2, len(prompts), POSITIONS).to(device)
    return found


def save_grid(pictures: Tensor, path: Path, columns: int = 8) -> None:
    """Write pictures (B, 3, H, W) from -1 to 1 side by side as a PNG; B is a multiple of the columns."""
    count, channels, height, width = pictures.shape
    rows = count // columns
    cells = pictures[: rows * columns].reshape(rows, columns, channels, height, width).permute(0, 3, 1, 4, 2)
    pixels = ((cells.reshape(rows * height, columns * width, channels) + 1) * 127.5).round().clamp(0, 255).byte()
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels.cpu().numpy()).save(path)
