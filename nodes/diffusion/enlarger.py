"""What every upscale model is."""

from torch import nn


class Enlarger(nn.Module):
    """An upscale model: levels from 0 to 1, (N, 3, H, W), to (N, 3, scale H, scale W).

    H and W must be multiples of `grain`.
    """

    scale: int
    grain: int = 1
