"""Soft inpainting: a mask's grey levels say how much of a picture may change, not how two pictures are mixed.

After the WebUI's script of that name: https://github.com/AUTOMATIC1111/stable-diffusion-webui/pull/14208.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

SMALLEST = 1e-5
REACH = 2
"""Cells that the filters look to each side."""
WIDTH = 1.5
"""Width of their Gaussian, in cells, which is lowered so that it ends at `REACH` + 1."""


@dataclass(frozen=True, eq=False)
class SoftRepaint:
    """Pulls a latent towards what it was, the more the darker the mask and the noisier the latent.

    `mask`, (1 or N, 1, h, w) from 0 (keep) to 1 (repaint), is raised to the power of `preservation` * sigma ** `bias`.
    Mixing two latents makes them paler, so the mix is given back its length over the channels: the power mean of both
    lengths with the exponent `contrast` >= 1, with which the longer one wins more.
    """

    mask: Tensor
    kept: Tensor
    bias: float = 1.0
    preservation: float = 0.5
    contrast: float = 4.0

    def enter(self, x: Tensor, sigma: float) -> Tensor:
        """Show all of it."""
        return x

    def blend(self, clean: Tensor, sigma: float) -> Tensor:
        """Mix the clean latent predicted at `sigma` with the kept one; computed in float64."""
        share: Tensor = self.mask.double() ** (self.preservation * sigma**self.bias)
        kept, new = self.kept.double(), clean.double()
        mixed = kept * (1 - share) + new * share
        powers = _length(kept) ** self.contrast * (1 - share) + _length(new) ** self.contrast * share
        scale: Tensor = powers ** (1 / self.contrast) / (_length(mixed) + SMALLEST)
        return (mixed * scale).to(clean.dtype)

    def finish(self, clean: Tensor) -> Tensor:
        """Leave the result alone: it was pulled all the way down."""
        return clean


def changed(
    before: Tensor,
    after: Tensor,
    mask: Tensor,
    *,
    preservation: float,
    influence: float,
    threshold: float,
    contrast: float,
) -> Tensor:
    """Say where sampling changed a latent enough to be shown: from 0 (the original) to 1, float64 (N, 1, h, w).

    The distance of both latents over the channels, freed of outliers by two percentile filters, is held against the
    distance of half opacity: `threshold`, which by `influence` (0 to 1) also depends on the mask, and is passed the
    more steeply the larger `contrast`.
    """
    distance = _length(after.double() - before.double())
    distance = percentiles(percentiles(distance, 0.9, 1.0), 0.25, 0.75)
    kept = 0.5 * (1 - influence) + (1 - mask.double() ** (preservation / 2)) * influence
    half = threshold * kept / (1.00001 - kept)
    ratio = torch.where(distance > 0, distance / half, 0)
    same = 1 / (1 + ratio**contrast)
    return 1 - same**3 * (same * (6 * same - 15) + 10)


def percentiles(values: Tensor, low: float, high: float) -> Tensor:
    """Average around each cell what lies between two weighted percentiles, `low` < `high` from 0 to 1.

    `values` are float64 (N, 1, h, w). A cell sees 5 x 5 cells, fewer at the border, each with the weight that the
    lowered Gaussian gives its distance. The window between the percentiles is at least as wide as the weight of the
    cell itself, and moved inside of what is there.
    """
    height, width = values.shape[2:]
    side = 2 * REACH + 1
    seen = functional.unfold(values, side, padding=REACH)
    weights = functional.unfold(torch.ones_like(values), side, padding=REACH) * _weights(values.device)
    seen, order = seen.sort(dim=1)
    weights = weights.gather(1, order)
    ends = weights.cumsum(dim=1)
    total = ends[:, -1:]
    size = ((high - low) * total).clamp(min=1.0)
    start = torch.minimum(((high + low) * total - size).clamp(min=0) / 2, total - size)
    share = (torch.minimum(ends, start + size) - torch.maximum(ends - weights, start)).clamp(min=0)
    return ((seen * share).sum(dim=1) / share.sum(dim=1)).view(-1, 1, height, width)


def _weights(device: torch.device) -> Tensor:
    """Return the filters' weights, (1, 25, 1): 1 in the middle."""
    line = torch.arange(-REACH, REACH + 1, dtype=torch.float64, device=device)
    gaussian = torch.exp(-(line[:, None] ** 2 + line[None, :] ** 2) / WIDTH**2)
    end = math.exp(-((REACH + 1) ** 2) / WIDTH**2)
    return ((gaussian - end) / (1 - end)).view(1, -1, 1)


def _length(latent: Tensor) -> Tensor:
    """Return the Euclidean norm over the channels, (N, 1, h, w)."""
    length: Tensor = torch.linalg.vector_norm(latent, dim=1, keepdim=True)
    return length
