"""Loading: the parts of a Stable Diffusion 1.x or 2.x model, from a folder in diffusers' layout or a single file.

Nothing is fetched, reported or unpickled: only local safetensors files are read, and what does not fit is refused.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import torch
from safetensors import SafetensorError, safe_open

from nodes.diffusion import checkpoint
from nodes.diffusion.table import NoiseSchedule
from nodes.diffusion.tensors import PICKLES, LoadError, refusing, some
from nodes.diffusion.tower import Tower

if TYPE_CHECKING:
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTokenizer

CONVERSION = (
    "a pickle can run code when it is opened, so it is not loaded; where you trust it, convert it once with "
    "diffusers: {opened}.save_pretrained(new_folder, safe_serialization=True)"
)


@dataclass(frozen=True)
class Component:
    """One part of a model: its folder, the library and class that run it, and the file with its weights."""

    folder: str
    library: str
    kind: str
    weights: str


Family: TypeAlias = Literal["sd1", "sd2", "sdxl", "refiner"]

UNET = Component("unet", "diffusers", "UNet2DConditionModel", "diffusion_pytorch_model.safetensors")
VAE = Component("vae", "diffusers", "AutoencoderKL", "diffusion_pytorch_model.safetensors")
TEXT_ENCODER = Component("text_encoder", "transformers", "CLIPTextModel", "model.safetensors")
TEXT_ENCODER_2 = Component("text_encoder_2", "transformers", "CLIPTextModelWithProjection", "model.safetensors")


def unet(
    model: Path | str, *, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
) -> UNet2DConditionModel:
    """Load `model`/unet, or the UNet of a checkpoint: eval mode, no gradients, on `device` in `dtype`.

    Like every loader here it raises LoadError if a file is missing, damaged, a pickle or of an unsupported class.
    """
    if Path(model).is_file():
        return checkpoint.unet(Path(model), dtype, device)
    path = _part(model, UNET.folder)
    unet_inputs(model)
    config = _json(path / "config.json")
    if config.get("addition_embed_type") is not None:
        found = f"{config['addition_embed_type']!r}: SDXL is not supported"
        raise LoadError(path / "config.json", "addition_embed_type null", found)
    return _load(UNET, path, dtype, device)


def unet_inputs(model: Path | str) -> int:
    """Read how many channels the UNet in `model`/unet takes.

    They are those of the latent (4) or, of an inpainting model, those of mask, masked latent and latent (9).
    """
    if Path(model).is_file():
        return checkpoint.inputs(Path(model))
    path = _part(model, UNET.folder) / "config.json"
    config = _json(path)
    inputs, outputs = (config.get(name, 0) for name in ("in_channels", "out_channels"))
    if inputs not in (outputs, 2 * outputs + 1):
        expected = "as many channels in as out, or for inpainting twice as many and one"
        raise LoadError(path, expected, f"{inputs} in and {outputs} out")
    return int(inputs)


def vae(model: Path | str, *, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu") -> AutoencoderKL:
    """Load `model`/vae, or the VAE of a checkpoint; `model` may also be a VAE itself."""
    if Path(model).is_file():
        return checkpoint.vae(Path(model), dtype, device)
    path = _vae_folder(model)
    if _json(path / "config.json").get("latents_mean") is not None:
        raise LoadError(path / "config.json", "latents_mean null", "a mean per channel, which is not supported")
    return _load(VAE, path, dtype, device)


def latent_space(model: Path | str) -> dict[str, Any]:
    """Read `channels`, `downscale` in pixels, `scaling` and `shift` of the latents, without the weights."""
    if Path(model).is_file():
        return checkpoint.latent_space(Path(model))
    path = _vae_folder(model) / "config.json"
    config = _json(path)
    absent = [name for name in ("latent_channels", "block_out_channels", "scaling_factor") if name not in config]
    if absent:
        raise LoadError(path, "a VAE's config", f"none of {some(absent)}")
    return {
        "channels": config["latent_channels"],
        "downscale": 2 ** (len(config["block_out_channels"]) - 1),
        "scaling": float(config["scaling_factor"]),
        "shift": float(config.get("shift_factor") or 0.0),
    }


def text_encoder(
    model: Path | str, *, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
) -> CLIPTextModel:
    """Load `model`/text_encoder, or the text encoder of a checkpoint."""
    if Path(model).is_file():
        return checkpoint.text_encoder(Path(model), dtype, device)
    return _load(TEXT_ENCODER, _part(model, TEXT_ENCODER.folder), dtype, device)


def family(model: Path | str) -> Family:
    """Say of which family a model is: how many text encoders it has, and what its UNet takes beside their states."""
    if Path(model).is_file():
        return checkpoint.family(Path(model))
    config = _json(_part(model, UNET.folder) / "config.json")
    if config.get("addition_embed_type") is None:
        return "sd2" if config.get("use_linear_projection") else "sd1"
    return "sdxl" if (Path(model) / TEXT_ENCODER.folder).is_dir() else "refiner"


def towers(
    model: Path | str, *, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
) -> tuple[Tower, ...]:
    """Load a model's text encoders, each with its tokenizer, in the order in which their states stand side by side.

    One of SD 1.x and 2.x, two of SDXL (CLIP's L, then OpenCLIP's bigG), one of its refiner (bigG).
    """
    if Path(model).is_file():
        return (Tower(tokenizer(model), text_encoder(model, dtype=dtype, device=device)),)
    kinds = [kind for kind in (TEXT_ENCODER, TEXT_ENCODER_2) if (Path(model) / kind.folder).is_dir()]
    return tuple(_tower(kind, Path(model), dtype, device) for kind in kinds or [TEXT_ENCODER])


def tokenizer(model: Path | str) -> CLIPTokenizer:
    """Load `model`/tokenizer, or the tokenizer that a checkpoint was trained with."""
    if Path(model).is_file():
        return _tokenizer(checkpoint.TOKENIZER, **checkpoint.tokenizer_options(Path(model)))
    return _folder_tokenizer(_part(model, "tokenizer"))


def _tower(component: Component, model: Path, dtype: torch.dtype, device: torch.device | str) -> Tower:
    encoder = _load(component, _part(model, component.folder), dtype, device)
    return Tower(_folder_tokenizer(_part(model, component.folder.replace("text_encoder", "tokenizer"))), encoder)


def _folder_tokenizer(path: Path) -> CLIPTokenizer:
    kind = _json(path / "tokenizer_config.json").get("tokenizer_class")
    if kind not in ("CLIPTokenizer", "CLIPTokenizerFast"):
        raise LoadError(path / "tokenizer_config.json", "tokenizer_class 'CLIPTokenizer'", repr(kind))
    _check_vocabulary(path)
    return _tokenizer(path)


def schedule(model: Path | str) -> NoiseSchedule:
    """Read the noise levels the model was trained on from `model`/scheduler, or what a checkpoint tells of them."""
    if Path(model).is_file():
        return checkpoint.schedule(Path(model))
    path = _part(model, "scheduler") / "scheduler_config.json"
    with refusing(path, "a supported noise schedule"):
        return NoiseSchedule.from_config(_json(path))


def _tokenizer(path: Path, **options: Any) -> CLIPTokenizer:
    with _quiet(), refusing(path, "a CLIP tokenizer"):
        return import_module("transformers").CLIPTokenizer.from_pretrained(path, local_files_only=True, **options)


def _load(component: Component, path: Path, dtype: torch.dtype, device: torch.device | str) -> Any:
    """Check a component's files, then load it."""
    _check_kind(component, path / "config.json")
    _check_weights(path / component.weights)
    module, report = _pretrained(component, path, dtype)
    wrong = [*report["missing_keys"], *report["mismatched_keys"]]
    if wrong:
        raise LoadError(path / component.weights, f"all weights of {component.kind}", f"none that fit {some(wrong)}")
    with _quiet():
        return module.to(device, dtype).requires_grad_(requires_grad=False)


def _pretrained(component: Component, path: Path, dtype: torch.dtype) -> tuple[Any, Mapping[str, Any]]:
    """Let the library load the weights; return the module and the report of what did not fit."""
    ours = {"torch_dtype": dtype, "low_cpu_mem_usage": False} if component.library == "diffusers" else {"dtype": dtype}
    kind = getattr(import_module(component.library), component.kind)
    with _quiet(), refusing(path / component.weights, f"weights of {component.kind}"):
        module, report = kind.from_pretrained(
            path, local_files_only=True, use_safetensors=True, output_loading_info=True, **ours
        )
    return module, report


def _part(model: Path | str, name: str) -> Path:
    """Return the folder of one part of a model."""
    model = Path(model)
    if not (model / name).is_dir():
        raise LoadError(model / name, f"the {name} folder of a diffusers model", "nothing")
    return model / name


def _vae_folder(model: Path | str) -> Path:
    model = Path(model)
    alone = (model / "config.json").is_file() and not (model / VAE.folder).is_dir()
    return model if alone else _part(model, VAE.folder)


def _check_kind(component: Component, config: Path) -> None:
    """Refuse a component of another class than the one Calotype runs."""
    named = _json(config)
    kind = named.get("_class_name") or (named.get("architectures") or [None])[0]
    if kind != component.kind:
        raise LoadError(config, f"class {component.kind}", repr(kind))


def _check_vocabulary(path: Path) -> None:
    """Refuse a tokenizer without its words: transformers would make one of two tokens."""
    if (path / "tokenizer.json").is_file():
        _json(path / "tokenizer.json")
        return
    _json(path / "vocab.json")
    if not (path / "merges.txt").is_file():
        raise LoadError(path / "merges.txt", "the tokenizer's merges", "nothing")


def _check_weights(weights: Path) -> None:
    """Refuse weights that are missing, pickled or cut short."""
    if not weights.is_file():
        pickles = sorted(path.name for pattern in PICKLES for path in weights.parent.glob(pattern))
        opened = f"StableDiffusionPipeline.from_pretrained({str(weights.parent.parent)!r})"
        found = f"{some(pickles)}; {CONVERSION.format(opened=opened)}" if pickles else "nothing"
        raise LoadError(weights, "a safetensors file", found)
    try:
        with safe_open(weights, framework="pt"):
            pass
    except SafetensorError as error:
        raise LoadError(weights, "a safetensors file", f"a damaged one ({error})") from error


def _json(path: Path) -> dict[str, Any]:
    """Read a config file."""
    if not path.is_file():
        raise LoadError(path, "a config file", "nothing")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise LoadError(path, "JSON", f"something else ({error})") from error
    if not isinstance(content, dict):
        raise LoadError(path, "a JSON object", type(content).__name__)
    return content


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the libraries' logs and progress bars while they load; they have one switch for the whole process."""
    logs = [import_module(f"{library}.utils.logging") for library in ("diffusers", "transformers")]
    before = [(log, log.get_verbosity(), log.is_progress_bar_enabled()) for log in logs]
    for log in logs:
        log.set_verbosity_error()
        log.disable_progress_bar()
    try:
        yield
    finally:
        for log, verbosity, bars in before:
            log.set_verbosity(verbosity)
            if bars:
                log.enable_progress_bar()
