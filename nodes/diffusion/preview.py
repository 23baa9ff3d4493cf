"""Previews: what colour a latent cell has, as far as one affine map can tell. The VAE itself is asked for the map."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from nodes.diffusion.vae import downscale, encode

if TYPE_CHECKING:
    from diffusers import AutoencoderKL

LEVELS = 4
"""Levels of red, green and blue whose combinations stand on the colour chart."""
GREYS = 16
"""Greys that stand on it besides: what most of a photo is close to."""
ROWS = 8
"""Rows of patches; they hold all of the LEVELS ** 3 + GREYS colours."""
PATCH = 4
"""Cells along a patch. Only those that no other patch touches are looked at: the VAE sees beyond a cell."""
DETAIL = 0.01
"""Variance that a picture's detail adds to each channel, whose own is about 1: the map amplifies no faint channel."""


@dataclass(frozen=True, eq=False)
class ColourMap:
    """The affine map from latents to levels of 0 to 255: `matrix` is (C, 3), `offset` is (3,), both float32."""

    matrix: Tensor
    offset: Tensor

    @property
    def nbytes(self) -> int:
        """Bytes of both."""
        return self.matrix.nbytes + self.offset.nbytes

    def picture(self, latents: Tensor) -> Tensor:
        """Show clean latents, float (N, C, h, w), as pictures of a pixel per cell, uint8 (N, 3, h, w)."""
        colours = latents.float().movedim(1, -1) @ self.matrix + self.offset
        return colours.clamp(0, 255).round().to(torch.uint8).movedim(-1, 1).contiguous()


def fit(vae: AutoencoderKL) -> ColourMap:
    """Find the map that fits best, by least squares, how `vae` encodes a chart of plain colours.

    The map is on the VAE's device, for latents as `encode` returns them. The fit is a ridge regression (Hoerl and
    Kennard 1970), by `DETAIL`.
    """
    colours = _colours()
    cells = _middles(encode(_chart(colours, PATCH * downscale(vae)), vae)[0].double().cpu())
    around, spread = cells.mean(0), cells - cells.mean(0)
    covariance = spread.T @ spread / len(cells) + DETAIL * torch.eye(cells.shape[1], dtype=torch.float64)
    matrix = torch.linalg.solve(covariance, spread.T @ (colours - colours.mean(0)) / len(cells))
    offset = colours.mean(0) - around @ matrix
    return ColourMap(matrix.float().to(vae.device), offset.float().to(vae.device))


def _colours() -> Tensor:
    """Return the chart's colours, (N, 3) levels of 0 to 255, row by row."""
    cube = list(product(torch.linspace(0, 255, LEVELS).round().tolist(), repeat=3))
    greys = [(level,) * 3 for level in torch.linspace(0, 255, GREYS).round().tolist()]
    return torch.tensor(cube + greys, dtype=torch.float64)


def _chart(colours: Tensor, side: int) -> Tensor:
    """Return a picture of square patches of `side` px, uint8 (1, 3, H, W)."""
    patches = colours.to(torch.uint8).T.reshape(1, 3, ROWS, -1)
    return patches.repeat_interleave(side, dim=2).repeat_interleave(side, dim=3)


def _middles(latent: Tensor) -> Tensor:
    """Return what stands in the middle of each patch of an encoded chart (C, h, w), as (N, C)."""
    patches = latent.reshape(len(latent), ROWS, PATCH, -1, PATCH)
    return patches[:, :, 1:-1, :, 1:-1].mean((2, 4)).flatten(1).T
