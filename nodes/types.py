"""What travels on the wires. Every convention is stated once, here, in its type's docstring."""

import sys
from collections.abc import Callable, Collection
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, NamedTuple, Self, TypeVar

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
from nodes.diffusion import embedding, expected, lending, load, lora, preview, upscale
from nodes.diffusion import vae as coding
from nodes.diffusion.enlarger import Enlarger
from nodes.diffusion.noise import Source
from nodes.diffusion.prompt import Part
from nodes.diffusion.table import NoiseSchedule, Prediction
from nodes.diffusion.tower import Tower

M = TypeVar("M")

MAX_SIDE = 16384
"""Longest side of an image, in pixels."""

Side = Annotated[int, Ge(1), Le(MAX_SIDE), Unit("px")]
"""Width or height of a canvas."""
Offset = Annotated[int, Ge(-MAX_SIDE), Le(MAX_SIDE), Unit("px")]
"""A position on a canvas; 0 is left or top."""
Pixels = Annotated[int, Ge(0), Le(512), Unit("px")]
"""A distance in pixels."""
Sigma = Annotated[float, Ge(0), Le(256), Unit("px")]
"""Standard deviation of a Gaussian."""
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


@dataclass(frozen=True, slots=True)
class Prompt(Socket):
    """A prompt without tags, and the embeddings that it may mention: (name, sha256 in hex) of each. Known by content.

    A negative prompt is not split at AND.
    """

    text: str
    embeddings: tuple[tuple[str, str], ...] = ()
    negative: bool = False

    def nbytes(self) -> int:
        """Bytes that this value keeps in memory."""
        return sys.getsizeof(self.text) + 256 * len(self.embeddings)


@dataclass(frozen=True, slots=True)
class Loras(Socket):
    """LoRAs to apply in this order: (sha256 in hex, strength on the text encoder, strength on the UNet) of each."""

    entries: tuple[tuple[str, float, float], ...] = ()

    def nbytes(self) -> int:
        """Bytes that this value keeps in memory."""
        return 64 + 256 * len(self.entries)


def _nothing() -> torch.Tensor:
    return torch.empty(0, 0)


@dataclass(frozen=True, eq=False)
class Conditioning(TensorSocket):
    """What a prompt means to a UNet: float32, U x (77 k) x D hidden states. Known by recipe.

    A row stands for one text; a prompt that changes while it is sampled has several. The parts are the prompts joined
    by AND, each with its weight, with the rows of its texts, and with its scope: where, when and for which size it
    counts. So it does not depend on the number of steps. `pooled`, U x P in float32, is what SDXL takes beside; empty
    for other models. `masks`, uint8 1 x 1 x H x W each, are those that scopes name.
    """

    by_value = False

    data: torch.Tensor
    parts: tuple[Part, ...] = (Part(),)
    pooled: torch.Tensor = field(default_factory=_nothing)
    masks: tuple[torch.Tensor, ...] = ()

    def check(self) -> None:
        """Rank, dtype, no NaN, and parts that name rows and masks that there are."""
        if self.data.ndim != 3 or self.data.dtype != torch.float32 or not bool(torch.isfinite(self.data).all()):
            raise ValueError(f"expected finite float32 U x L x D, got {self.data.dtype} {tuple(self.data.shape)}")
        named = {row for part in self.parts for _, row in part.rows}
        if named != set(range(len(self.data))):
            raise ValueError(f"expected a text for each of {len(self.data)} rows, got parts with rows {sorted(named)}")
        if self.pooled.numel() and (self.pooled.ndim != 2 or len(self.pooled) != len(self.data)):
            raise ValueError(f"expected pooled states {len(self.data)} x P, got {tuple(self.pooled.shape)}")
        for mask in self.masks:
            _rank(mask, torch.uint8, 1)
        beyond = [part.scope.mask for part in self.parts if (part.scope.mask or 0) >= max(1, len(self.masks))]
        if beyond:
            raise ValueError(f"expected masks 0..{len(self.masks) - 1}, got a part with mask {beyond[0]}")

    def at(self, call: int, calls: int) -> tuple[tuple[Part, int], ...]:
        """Each part, and its row, at model call `call` (from 0) of `calls`."""
        return tuple((part, part.row(call, calls)) for part in self.parts)

    def scoped(self, **changes: Any) -> Self:
        """The same with other scopes in all parts."""
        parts = tuple(replace(part, scope=replace(part.scope, **changes)) for part in self.parts)
        return replace(self, parts=parts)


@dataclass(frozen=True, slots=True)
class Soft(Socket):
    """How soft inpainting reads the grey levels of a mask; the node `inpaint.soft` says what each number does."""

    bias: float = 1.0
    preservation: float = 0.5
    contrast: float = 4.0
    influence: float = 0.0
    threshold: float = 0.5
    difference_contrast: float = 2.0


@dataclass(frozen=True, eq=False)
class InpaintConditioning(TensorSocket):
    """What an inpainting UNet sees beside the latent: float32, N x channels x h x w. Known by recipe.

    The mask on the latent grid, 1 = repaint, then the latent of the picture without what is masked; no channels at all
    for a UNet that takes none.
    """

    by_value = False

    data: torch.Tensor

    def check(self) -> None:
        """Rank, dtype, and no NaN."""
        if self.data.ndim != 4 or self.data.dtype != torch.float32 or not bool(torch.isfinite(self.data).all()):
            raise ValueError(f"expected finite float32 N x C x h x w, got {self.data.dtype} {tuple(self.data.shape)}")


@dataclass(frozen=True, slots=True)
class Noise(Socket):
    """A recipe for noise, one seed and one generator per image, so image i of a batch equals the same image alone.

    `strength` mixes in the variation seeds (0 = not at all, 1 = only them). Numbers come from the `source`: torch's
    generator on the CPU, or "nv", those of a CUDA device. `resized_from`, (width, height) in px, is the size of another
    picture whose noise stands in the middle; empty where there is none. Pictures with equal seeds may share a
    generator, each at its place (position, how many they are) in every draw; empty where each has its own.
    """

    seeds: tuple[int, ...]
    variations: tuple[int, ...] = ()
    strength: float = 0.0
    source: Source = "cpu"
    resized_from: tuple[int, ...] = ()
    places: tuple[tuple[int, int], ...] = ()

    def check(self) -> None:
        """At least one image, a variation seed and a place for each where there are any, and no or two sides."""
        if not self.seeds or (self.variations and len(self.variations) != len(self.seeds)):
            raise ValueError(f"expected as many variation seeds as seeds, got {self.variations} for {self.seeds}")
        if len(self.resized_from) not in {0, 2}:
            raise ValueError(f"expected a width and a height, got {self.resized_from}")
        inside = all(0 <= position < count for position, count in self.places)
        if (self.places and len(self.places) != len(self.seeds)) or not inside:
            raise ValueError(f"expected a place (position, count) for each of {len(self.seeds)}, got {self.places}")


@dataclass(frozen=True, slots=True)
class SampleOptions(Socket):
    """How a sampler is to run beside what everybody sets; the node `sample.options` says what each number does."""

    eta: float | None = None
    churn: float = 0.0
    churn_min: float = 0.0
    churn_max: float = 0.0
    noise_scale: float = 1.0
    order: int | None = None
    r: float = 0.5
    max_stage: int = 3
    sde_min: float = 0.0
    sde_max: float = 0.0
    rtol: float = 0.05
    atol: float = 0.0078
    sigma_min: float = 0.0
    sigma_max: float = 0.0
    rho: float = 0.0
    levels: tuple[float, ...] = ()
    discard_penultimate: bool = False
    noise_multiplier: float = 1.0
    extra_noise: float = 0.0
    seed_delta: int = 0
    cfg_rescale: float = 0.0
    ngms: float = 0.0
    ngms_all: bool = False
    skip_early: float = 0.0


Precision = Literal["auto", "float32", "float16", "bfloat16"]
"""Number format of a model's weights; `auto` is float32 on a CPU and float16 on a GPU.

The VAE stays float32, which alone is precise to one level of 256 with every model: SDXL's overflows in float16, and
misses by up to three in bfloat16. SD 1.x's does well in float16, which has to be asked for.
"""


def _number_format(precision: Precision, place: str) -> torch.dtype:
    if precision != "auto":
        found: torch.dtype = getattr(torch, precision)
        return found
    return torch.float32 if place == "cpu" else torch.float16


@dataclass(frozen=True, slots=True)
class _Part(ModelRef[Any]):
    """A model, or one part of a checkpoint, known by the sha256 of the files."""

    part: ClassVar[expected.ModelPart | None] = None

    digest: str
    precision: Precision = "auto"

    def module_bytes(self, module: object) -> int:
        """Bytes of the weights, without those that it shares with its base."""
        assert isinstance(module, torch.nn.Module)
        return _own_bytes(module, None)

    def expected_bytes(self, files: Files, place: str) -> int:
        """Bytes of the weights that are loaded; what is made of a base is known when it is made."""
        if self.part is None or self.base is not None:
            return 0
        return expected.weight_bytes(self._folder(files), self.part, self._dtype(place))

    def paths(self, files: Files) -> list[Path]:
        """The files that its weights are taken from."""
        return [] if self.part is None else expected.weight_files(self._folder(files), self.part)

    def _folder(self, files: Files) -> Path:
        return files.locate(bytes.fromhex(self.digest))

    def _dtype(self, place: str) -> torch.dtype:
        return _number_format(self.precision, place)

    def _loaded(self, files: Files, make: Callable[[Path], M]) -> M:
        """What is loaded from the files, now that it is certain that they did not change meanwhile."""
        with lending.postponed() as waiting:
            module = make(self._folder(files))
        for wait in waiting:
            files.later(wait)
        self._folder(files)
        return module


Patches = tuple[tuple[str, float], ...]
"""LoRAs on a model: the sha256 of each file, and its strength."""


def _patched(
    module: Any, part: lora.Part, patches: Patches, files: Files, parts: Collection[lora.Part]
) -> tuple[Any, tuple[str, ...]]:
    """The module with LoRAs, sharing all other weights with it, and the names of the weights of its own.

    `parts` are those of its model.
    """
    places = [files.locate(bytes.fromhex(digest)) for digest, _ in patches]
    loras = [(lora.read(path), strength) for path, (_, strength) in zip(places, patches, strict=True)]
    for digest, _ in patches:
        files.locate(bytes.fromhex(digest))
    return lora.patched(module, part, loras, parts)


@dataclass(frozen=True)
class UnetModel:
    """A UNet that can predict, with the noise levels that it was trained on.

    `own` names the weights that it does not share with the model that it was made of; None where it was loaded.
    """

    unet: Any
    table: NoiseSchedule
    own: tuple[str, ...] | None = None

    @property
    def wide(self) -> bool:
        """Whether it is one of SDXL's, which are told pooled text and sizes."""
        return getattr(self.unet.config, "addition_embed_type", None) == "text_time"


@dataclass(frozen=True)
class TextModel:
    """The text encoders of a model with their tokenizers; `own` as in UnetModel, for each."""

    towers: tuple[Tower, ...]
    own: tuple[tuple[str, ...] | None, ...]


def _own_bytes(module: torch.nn.Module, own: tuple[str, ...] | None) -> int:
    weights = module.parameters() if own is None else map(module.get_parameter, own)
    return sum(weight.nbytes for weight in weights)


@dataclass(frozen=True, slots=True)
class Unet(_Part):
    """The UNet of a checkpoint, with LoRAs. A model reference: loaded when a node asks for it.

    `inputs` is how many channels it takes: those of a latent, or more for an inpainting model. `prediction` is
    None where the checkpoint says it; with `zero_snr` the noise levels end without any signal, whatever it says.
    """

    part: ClassVar[expected.ModelPart | None] = "unet"

    inputs: int = 4
    patches: Patches = ()
    prediction: Prediction | None = None
    zero_snr: bool = False

    @property
    def base(self) -> Self | None:
        """The same as the checkpoint says, then without LoRAs."""
        if self.prediction is not None or self.zero_snr:
            return replace(self, prediction=None, zero_snr=False)
        return replace(self, patches=()) if self.patches else None

    def load(self, files: Files, place: str) -> UnetModel:
        """Load it, with its noise schedule."""
        dtype = self._dtype(place)
        return self._loaded(
            files,
            lambda folder: UnetModel(load.unet(folder, dtype=dtype, device=place), load.schedule(folder)),
        )

    def patched(self, module: UnetModel, files: Files, place: str) -> UnetModel:
        """Put the LoRAs on it, or other noise levels beside it."""
        if self.prediction is not None or self.zero_snr:
            return UnetModel(module.unet, self._table(module.table), ())
        parts = lora.PARTS if module.wide else lora.PARTS[:2]
        unet, own = _patched(module.unet, "unet", self.patches, files, parts)
        return UnetModel(unet, module.table, own)

    def _table(self, table: NoiseSchedule) -> NoiseSchedule:
        table = table if self.prediction is None else table.with_prediction(self.prediction)
        return table.with_zero_snr() if self.zero_snr else table

    def module_bytes(self, module: object) -> int:
        """Bytes of the weights that it shares with no other."""
        assert isinstance(module, UnetModel)
        return _own_bytes(module.unet, module.own)


@dataclass(frozen=True, slots=True)
class TextEncoder(_Part):
    """The text encoder and tokenizer of a checkpoint, with LoRAs. A model reference: loaded when a node asks for it.

    `clip_skip` counts from the end: 1 takes the states after the last layer, 2 those after the one before it.
    """

    part: ClassVar[expected.ModelPart | None] = "text"

    patches: Patches = ()
    clip_skip: int = 1

    @property
    def base(self) -> Self | None:
        """The same without skipping, then without LoRAs: neither needs a model of its own."""
        if self.clip_skip != 1:
            return replace(self, clip_skip=1)
        return replace(self, patches=()) if self.patches else None

    def load(self, files: Files, place: str) -> TextModel:
        """Load them all."""
        dtype = self._dtype(place)
        towers = self._loaded(files, lambda folder: load.towers(folder, dtype=dtype, device=place))
        return TextModel(towers, (None,) * len(towers))

    def patched(self, module: TextModel, files: Files, place: str) -> TextModel:
        """Put the LoRAs on them; layers are skipped by whoever uses them."""
        if self.clip_skip != 1:
            return replace(module, own=((),) * len(module.towers))
        made, own, parts = [], [], {"unet", *(lora.part_of(tower.encoder) for tower in module.towers)}
        for tower in module.towers:
            encoder, names = _patched(tower.encoder, lora.part_of(tower.encoder), self.patches, files, parts)
            made.append(replace(tower, encoder=encoder))
            own.append(names)
        return TextModel(tuple(made), tuple(own))

    def module_bytes(self, module: object) -> int:
        """Bytes of the weights that they share with no others."""
        assert isinstance(module, TextModel)
        return sum(_own_bytes(tower.encoder, own) for tower, own in zip(module.towers, module.own, strict=True))


@dataclass(frozen=True, slots=True)
class ControlNet(_Part):
    """A ControlNet, by the sha256 of its files. A model reference: loaded when a node asks for it."""

    part: ClassVar[expected.ModelPart | None] = "controlnet"

    def load(self, files: Files, place: str) -> Any:
        """Load it."""
        dtype = self._dtype(place)
        return self._loaded(files, lambda folder: load.controlnet(folder, dtype=dtype, device=place))


class Hint(NamedTuple):
    """How a ControlNet is used: how strongly, and between which shares of the noise's way down, 0 at the top."""

    net: ControlNet
    strength: float = 1.0
    start: float = 0.0
    end: float = 1.0


@dataclass(frozen=True, eq=False)
class Control(TensorSocket):
    """ControlNets at work, one after another: pictures to follow, uint8 N x 3 x H x W, and how. Known by content.

    Each has a mask, uint8 N x 1 x H x W with 255 where an inpainting ControlNet is to see nothing; 0 x 1 x 1 x 1 where
    there is none.
    """

    hints: tuple[Hint, ...]
    images: tuple[torch.Tensor, ...]
    masks: tuple[torch.Tensor, ...]

    def check(self) -> None:
        """A picture and a mask for each."""
        if not len(self.hints) == len(self.images) == len(self.masks):
            counts = f"{len(self.hints)}, {len(self.images)} and {len(self.masks)}"
            raise ValueError(f"expected as many ControlNets as pictures and masks, got {counts}")
        for image in self.images:
            _rank(image, torch.uint8, 3)


@dataclass(frozen=True, slots=True)
class Embedding(ModelRef[torch.Tensor]):
    """Vectors that stand for a word, by the sha256 of their file. A model reference: (N, D) in float32."""

    digest: str

    def load(self, files: Files, place: str) -> torch.Tensor:
        """Load them."""
        vectors = embedding.read(files.locate(bytes.fromhex(self.digest)))
        files.locate(bytes.fromhex(self.digest))
        return vectors.to(place)

    def module_bytes(self, module: object) -> int:
        """Bytes of the vectors."""
        assert isinstance(module, torch.Tensor)
        return module.nbytes

    def expected_bytes(self, files: Files, place: str) -> int:
        """Bytes of the vectors, which are float32."""
        return expected.weight_bytes(files.locate(bytes.fromhex(self.digest)), "embedding", torch.float32)


@dataclass(frozen=True, slots=True)
class Vae(_Part):
    """The VAE of a checkpoint and the latent space it speaks. A model reference: loaded when a node asks for it."""

    part: ClassVar[expected.ModelPart | None] = "vae"

    space: LatentSpace = LatentSpace()

    def load(self, files: Files, place: str) -> Any:
        """Load it."""
        dtype, space = self._dtype(place), asdict(self.space)
        return self._loaded(files, lambda folder: load.vae(folder, dtype=dtype, device=place, space=space))

    def _dtype(self, place: str) -> torch.dtype:
        return torch.float32 if self.precision == "auto" else _number_format(self.precision, place)


@dataclass(frozen=True, slots=True)
class Upscaler(_Part):
    """An upscale model, and how many times larger it makes a picture. A model reference: loaded when asked for."""

    part: ClassVar[expected.ModelPart | None] = "upscale"

    scale: int = 4

    def load(self, files: Files, place: str) -> Enlarger:
        """Load it."""
        return self._loaded(files, lambda folder: upscale.network(folder, self._dtype(place), place))


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


@dataclass(frozen=True, slots=True)
class Blank(_Part):
    """The latent of a middle grey picture. A model reference: the checkpoint's VAE is asked for it once for each size.

    `width` and `height` are the picture's, in px. Always in float32, in which no VAE overflows.
    """

    space: LatentSpace = LatentSpace()
    width: int = 512
    height: int = 512

    def load(self, files: Files, place: str) -> torch.Tensor:
        """Load the VAE, encode the picture, and keep nothing else: float32, 1 x C x h x w."""
        return coding.encode_signed(torch.zeros(1, 3, self.height, self.width), self._vae().load(files, place))

    def expected_bytes(self, files: Files, place: str) -> int:
        """Bytes of the VAE, for as long as it is asked."""
        return self._vae().expected_bytes(files, place)

    def module_bytes(self, module: object) -> int:
        """Bytes of the latent."""
        assert isinstance(module, torch.Tensor)
        return module.nbytes

    def _vae(self) -> Vae:
        return Vae(self.digest, "float32", self.space)
