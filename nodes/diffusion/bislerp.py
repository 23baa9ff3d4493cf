"""Resizing latents by turning vectors: bilinear, but for lengths and directions apart (ComfyUI's "bislerp")."""

import torch
from torch import Tensor

PARALLEL = 1e-5
"""How near to 1 the size of a cosine is when vectors have no angle to turn by."""


def bislerp(latent: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize latents (N, C, h, w) to `size` (height, width), along the width first.

    Cells lie as in bilinear interpolation, pixel centres on pixel centres. Between two of them the direction over the
    channels is turned evenly, and the length goes evenly. Of parallel ones the first is taken as it is, opposite ones
    are interpolated linearly.
    """
    return _along(_along(latent, 3, size[1]), 2, size[0])


def _along(latent: Tensor, dim: int, length: int) -> Tensor:
    """Resize one dimension."""
    old = latent.shape[dim]
    positions = (torch.arange(length, dtype=torch.float32, device=latent.device) + 0.5) * (old / length) - 0.5
    positions = positions.clamp(0, old - 1)
    low = positions.long()
    shape = [1] * latent.ndim
    shape[dim] = length
    before, after = (latent.index_select(dim, index) for index in (low, (low + 1).clamp(max=old - 1)))
    return _turned(before, after, (positions - low).view(shape))


def _turned(start: Tensor, end: Tensor, share: Tensor) -> Tensor:
    """Go from `start` to `end` by `share`, over the channels (dimension 1)."""
    long, far = (torch.linalg.vector_norm(vector, dim=1, keepdim=True) for vector in (start, end))
    one, other = (torch.where(length > 0, vector / length, 0) for vector, length in ((start, long), (end, far)))
    cosine = (one * other).sum(dim=1, keepdim=True)
    angle = cosine.clamp(-1, 1).acos()
    turned = (one * ((1 - share) * angle).sin() + other * (share * angle).sin()) / angle.sin()
    result = turned * (long * (1 - share) + far * share)
    result = torch.where(cosine > 1 - PARALLEL, start, result)
    return torch.where(cosine < PARALLEL - 1, start * (1 - share) + end * share, result)
