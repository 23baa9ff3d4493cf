"""What travels on the wires. Every convention is stated once, here, in its type's docstring."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

import numpy as np
import PIL.Image
import PIL.ImageColor
import torch
from annotated_types import Ge, Le
from pydantic import AfterValidator

from engine.device import TensorSocket
from engine.file import Files
from engine.models import ModelRef
from engine.param import Fresh, Unit
from engine.socket import Socket
from nodes.diffusion import load, preview
from nodes.diffusion.schedule import NoiseSchedule

M = TypeVar("M")

MAX_SIDE = 16384
"""Longest side of an image, in pixels."""

Side = Annotated[int, Ge(1), Le(MAX_SIDE), Unit("px")]
"""Width or height of a canvas."""
Offset = Annotated[int, Ge(-MAX_SIDE), Le(MAX_SIDE), Unit("px")]
"""A position on a canvas; 0 is left or top."""
Pixels = Annotated[int, Ge(0), Le(512), Unit("px")]
"""A distance in pixels."""
Fraction = Annotated[float, Ge(0), Le(1)]
"""A share between 0 and 1."""
Seed = Annotated[int, Ge(-1), Le(2**64 - 1), Fresh(when=-1, below=2**32)]
"""A seed; -1 draws a new one at each submission and writes it into the graph."""


def _colour(text: str) -> str:
    PIL.ImageColor.getrgb(text)
    return text


Colour = Annotated[str, AfterValidator(_colour), Unit("#rrggbb or a CSS name")]
"""A colour, as Pillow reads it."""


def _rank(tensor: torch.Tensor, dtype: torch.dtype, channels: int | None) -> None:
    shape = tuple(tensor.shape)
    if tensor.dtype != dtype:
        raise ValueError(f"expected {dtype}, got {tensor.dtype}")
    if len(shape) != 4 or 0 in shape or (channels is not None and shape[1] != channels):
        raise ValueError(f"expected N x {channels or 'C'} x H x W with no empty side, got {shape}")


@dataclass(frozen=True, eq=False)
class Image(TensorSocket):
    """Pictures: uint8, N x 3 x H x W, sRGB, all of one size. Known by content."""

    data: torch.Tensor

    def check(self) -> None:
        """Shape and dtype."""
        _rank(self.data, torch.uint8, 3)

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) in pixels."""
        return self.data.shape[3], self.data.shape[2]

    @classmethod
    def of(cls, picture: PIL.Image.Image) -> Self:
        """From Pillow; other modes are converted to RGB."""
        array = np.array(picture.convert("RGB"))
        return cls(torch.from_numpy(array).permute(2, 0, 1).unsqueeze(0).contiguous())

    def pil(self, index: int = 0) -> PIL.Image.Image:
        """Picture `index` for Pillow."""
        return PIL.Image.fromarray(self.data[index].permute(1, 2, 0).contiguous().cpu().numpy())


@dataclass(frozen=True, eq=False)
class Mask(TensorSocket):
    """Masks: uint8, N x 1 x H x W. 255 = repaint, 0 = keep, everywhere. Known by content."""

    data: torch.Tensor

    def check(self) -> None:
        """Shape and dtype."""
        _rank(self.data, torch.uint8, 1)

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) in pixels."""
        return self.data.shape[3], self.data.shape[2]

    @classmethod
    def of(cls, picture: PIL.Image.Image) -> Self:
        """From Pillow; other modes are converted to luminance."""
        return cls(torch.from_numpy(np.array(picture.convert("L")))[None, None].contiguous())

    def pil(self, index: int = 0) -> PIL.Image.Image:
        """Mask `index` for Pillow, mode L."""
        return PIL.Image.fromarray(self.data[index, 0].contiguous().cpu().numpy())


@dataclass(frozen=True, slots=True)
class LatentSpace:
    """Where latents live: channels, pixels per latent cell, and the factor and shift between VAE and UNet."""

    channels: int = 4
    downscale: int = 8
    scaling: float = 0.18215
    shift: float = 0.0


@dataclass(frozen=True, eq=False)
class Latent(TensorSocket):
    """Latents: float32, N x C x h x w, as the UNet wants them: (VAE mean - shift) * scaling. Known by recipe."""

    by_value = False

    data: torch.Tensor
    space: LatentSpace = LatentSpace()

    def check(self) -> None:
        """Shape, dtype, and no NaN."""
        _rank(self.data, torch.float32, self.space.channels)
        if not bool(torch.isfinite(self.data).all()):
            raise ValueError("the latent contains NaN or infinity; try a higher precision")


@dataclass(frozen=True, eq=False)
class Conditioning(TensorSocket):
    """What a prompt means to a UNet: float32, 1 x (77 k) x D hidden states. Known by recipe."""

    by_value = False

    data: torch.Tensor

    def check(self) -> None:
        """Rank, dtype, and no NaN."""
        if self.data.ndim != 3 or self.data.dtype != torch.float32 or not bool(torch.isfinite(self.data).all()):
            raise ValueError(f"expected finite float32 1 x L x D, got {self.data.dtype} {tuple(self.data.shape)}")


@dataclass(frozen=True, slots=True)
class Noise(Socket):
    """A recipe for noise, one seed and one generator per image, so image i of a batch equals the same image alone.

    `strength` mixes in the variation seeds (0 = not at all, 1 = only them). Numbers are drawn on the `source`.
    """

    seeds: tuple[int, ...]
    variations: tuple[int, ...] = ()
    strength: float = 0.0
    source: Literal["cpu"] = "cpu"

    def check(self) -> None:
        """At least one image, and a variation seed for each where there are any."""
        if not self.seeds or (self.variations and len(self.variations) != len(self.seeds)):
            raise ValueError(f"expected as many variation seeds as seeds, got {self.variations} for {self.seeds}")


Precision = Literal["auto", "float32", "float16", "bfloat16"]
"""Number format of a model's weights; `auto` is float32 on a CPU and float16 on a GPU (the VAE stays float32)."""


@dataclass(frozen=True, slots=True)
class _Part(ModelRef[Any]):
    """One part of a checkpoint, known by the sha256 of the checkpoint's files."""

    digest: str
    precision: Precision = "auto"

    def module_bytes(self, module: object) -> int:
        """Bytes of all weights."""
        weights = vars(module).values() if not isinstance(module, torch.nn.Module) else [module]
        modules = [part for part in weights if isinstance(part, torch.nn.Module)]
        return sum(weight.nbytes for part in modules for weight in part.parameters())

    def _folder(self, files: Files) -> Path:
        return files.locate(bytes.fromhex(self.digest))

    def _dtype(self, place: str) -> torch.dtype:
        if self.precision != "auto":
            found: torch.dtype = getattr(torch, self.precision)
            return found
        return torch.float32 if place == "cpu" else torch.float16

    def _unchanged(self, files: Files, module: M) -> M:
        """What was loaded, now that it is certain that the files did not change meanwhile."""
        self._folder(files)
        return module


@dataclass(frozen=True)
class UnetModel:
    """A UNet that can predict, with the noise levels that it was trained on."""

    unet: Any
    table: NoiseSchedule


@dataclass(frozen=True)
class TextModel:
    """A text encoder with its tokenizer."""

    tokenizer: Any
    encoder: Any


@dataclass(frozen=True, slots=True)
class Unet(_Part):
    """The UNet of a checkpoint. A model reference: loaded when a node asks for it."""

    def load(self, files: Files, place: str) -> UnetModel:
        """Load it, with its noise schedule."""
        folder, dtype = self._folder(files), self._dtype(place)
        return self._unchanged(files, UnetModel(load.unet(folder, dtype=dtype, device=place), load.schedule(folder)))


@dataclass(frozen=True, slots=True)
class TextEncoder(_Part):
    """The text encoder and tokenizer of a checkpoint. A model reference: loaded when a node asks for it."""

    def load(self, files: Files, place: str) -> TextModel:
        """Load both."""
        folder, dtype = self._folder(files), self._dtype(place)
        encoder = load.text_encoder(folder, dtype=dtype, device=place)
        return self._unchanged(files, TextModel(load.tokenizer(folder), encoder))


@dataclass(frozen=True, slots=True)
class Vae(_Part):
    """The VAE of a checkpoint and the latent space it speaks. A model reference: loaded when a node asks for it."""

    space: LatentSpace = LatentSpace()

    def load(self, files: Files, place: str) -> Any:
        """Load it."""
        dtype = torch.float32 if self.precision == "auto" else self._dtype(place)
        return self._unchanged(files, load.vae(self._folder(files), dtype=dtype, device=place))


@dataclass(frozen=True, slots=True)
class Colours(_Part):
    """How a checkpoint's latents look, roughly and without its VAE. A model reference: the VAE is asked for it once."""

    def load(self, files: Files, place: str) -> preview.ColourMap:
        """Load the VAE, learn the colours of its latents, and keep nothing else of it."""
        return preview.fit(Vae(self.digest, self.precision).load(files, place))

    def module_bytes(self, module: object) -> int:
        """A few numbers."""
        assert isinstance(module, preview.ColourMap)
        return module.nbytes
