"""Keepers: what keeps a part of a latent as it was, while the rest is repainted."""

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor


class Keeper(Protocol):
    """What keeps a part of a latent as it was: `Repaint` fits, and soft inpainting."""

    def enter(self, x: Tensor, sigma: float) -> Tensor:
        """Return what the UNet is to see of the noisy latent `x` at noise level `sigma`."""

    def blend(self, clean: Tensor, sigma: float) -> Tensor:
        """Return the clean latent predicted at noise level `sigma` with the kept part put back."""

    def finish(self, clean: Tensor) -> Tensor:
        """Return the result of a run with the kept part put back."""


@dataclass(frozen=True, eq=False)
class Repaint:
    """Which part of a latent may change.

    `mask` is (1 or N, 1, h, w), from 0 (keep) to 1 (repaint); `kept` the clean latent to keep, (1 or N, C, h, w).
    """

    mask: Tensor
    kept: Tensor

    def enter(self, x: Tensor, sigma: float) -> Tensor:
        """Show all of it."""
        return x

    def blend(self, clean: Tensor, sigma: float) -> Tensor:
        """Do at every noise level what is done at the end."""
        return self.finish(clean)

    def finish(self, clean: Tensor) -> Tensor:
        """Return `clean` where the mask is 1, `kept` where it is 0, and their mix between."""
        return clean * self.mask + self.kept * (1 - self.mask)


@dataclass(frozen=True, eq=False)
class NoisyRepaint:
    """Which part of a latent may change, as ComfyUI keeps the rest.

    `mask` and `kept` are `Repaint`'s, `noise` is the run's initial one. The UNet sees the kept part with that noise at
    the level of the call, whatever the sampler made of it.
    """

    mask: Tensor
    kept: Tensor
    noise: Tensor

    def enter(self, x: Tensor, sigma: float) -> Tensor:
        """Mix `x` with the noisy kept latent by the mask."""
        return x * self.mask + (self.kept + self.noise * sigma) * (1 - self.mask)

    def blend(self, clean: Tensor, sigma: float) -> Tensor:
        """Return `clean` where the mask is 1, `kept` where it is 0, and their mix between."""
        return clean * self.mask + self.kept * (1 - self.mask)

    def finish(self, clean: Tensor) -> Tensor:
        """Leave the result alone: what is grey was mixed on the way."""
        return clean
