"""What is sampled with: a model on a device, and the same weights in diffusers' pipelines, called as their docs do.

`pocket` is the embedded model. `sd15` and `sdxl` have the true shapes of Stable Diffusion 1.5 and SDXL and random
weights, made in a temporary folder: how long a step takes does not depend on the values.
"""

import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from torch import nn

import pocket
from benchmarks import loading
from calotype.front import Engine
from calotype.library import find
from engine.graph import Graph
from nodes.diffusion.checkpoint import TOKENIZER
from nodes.diffusion.folder import quiet

SIDES = {"pocket": 128, "sd15": 512, "sdxl": 1024}
"""Pixels of a picture's side by model."""
STEPS = {"cpu": {"pocket": 20, "sd15": 2, "sdxl": 1}, "cuda": {"pocket": 20, "sd15": 20, "sdxl": 20}}
"""Steps by device and model: full-size models are slow on a CPU."""
PROMPT = "smiling face, blue background"

XL_UNET = {
    "sample_size": 128,
    "cross_attention_dim": 2048,
    "block_out_channels": (320, 640, 1280),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": (1, 2, 10),
    "attention_head_dim": (5, 10, 20),
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}
XL_VAE = {**loading.VAE, "scaling_factor": 0.13025}
BIG_G = {
    "hidden_size": 1280,
    "intermediate_size": 5120,
    "num_attention_heads": 20,
    "num_hidden_layers": 32,
    "projection_dim": 1280,
    "hidden_act": "gelu",
}
BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}


@dataclass(frozen=True)
class Subject:
    """A model in diffusers' layout, and where it runs."""

    model: str
    device: str
    folder: Path

    @property
    def side(self) -> int:
        """Pixels of a picture's side."""
        return SIDES[self.model]

    @property
    def steps(self) -> int:
        """Steps of a run."""
        return STEPS[self.device][self.model]

    def engine(self, *, compiled: bool = False) -> Engine:
        """An engine on the device."""
        return Engine(device=self.device, compiled=compiled)

    def graph(self, name: str, **settings: Any) -> Graph:
        """A saved graph with this model at its size."""
        checkpoint = "pocket" if self.model == "pocket" else str(self.folder)
        sides = {"width": self.side, "height": self.side}
        return find(name).set(sides | {"checkpoint": checkpoint, "steps": self.steps, "prompt": PROMPT} | settings)

    def pipeline(self, kind: str = "") -> Any:
        """A pipeline of diffusers with DPM++ 2M Karras; `kind` is "" or "Img2Img"."""
        family = "StableDiffusionXL" if self.model == "sdxl" else "StableDiffusion"
        more = {} if self.model == "sdxl" else {"safety_checker": None, "requires_safety_checker": False}
        dtype = torch.float32 if self.device == "cpu" else torch.float16
        diffusers.utils.logging.set_verbosity_error()
        with quiet():
            made = getattr(diffusers, f"{family}{kind}Pipeline").from_pretrained(self.folder, dtype=dtype, **more)
        made.scheduler = diffusers.DPMSolverMultistepScheduler.from_config(
            made.scheduler.config, use_karras_sigmas=True
        )
        made.set_progress_bar_config(disable=True)
        return made.to(self.device)

    def timed(self, action: Callable[[], object]) -> float:
        """Seconds that an action takes, until the device has done all of it."""
        self.settle()
        began = time.perf_counter()
        action()
        self.settle()
        return time.perf_counter() - began

    def settle(self) -> None:
        """Wait for the device."""
        if self.device != "cpu":
            torch.cuda.synchronize()

    def __str__(self) -> str:
        """As a title or a note says it."""
        device = "the CPU" if self.device == "cpu" else torch.cuda.get_device_name()
        weights = "" if self.model == "pocket" else " with random weights"
        return f"{self.model}{weights}, {self.side} x {self.side} pixels, {self.steps} steps, on {device}"


@contextmanager
def opened(model: str, device: str) -> Iterator[Subject]:
    """The model by its name; one that is not there is made in a temporary folder, and is gone afterwards."""
    if model == "pocket":
        yield Subject(model, device, pocket.FOLDER)
        return
    with tempfile.TemporaryDirectory() as folder:
        _write(model, Path(folder))
        yield Subject(model, device, Path(folder))


def _write(model: str, folder: Path) -> None:
    """Save a pipeline of random weights, float16."""
    torch.manual_seed(0)
    tokenizer = transformers.CLIPTokenizer.from_pretrained(TOKENIZER)
    clip = _random(lambda: transformers.CLIPTextModel(transformers.CLIPTextConfig(**loading.CLIP)))
    parts = {"tokenizer": tokenizer, "text_encoder": clip, "scheduler": diffusers.EulerDiscreteScheduler(**BETAS)}
    parts |= _sd15() if model == "sd15" else _sdxl()
    with quiet():
        _made(model, parts).save_pretrained(folder)


def _made(model: str, parts: Mapping[str, Any]) -> Any:
    if model == "sdxl":
        return diffusers.StableDiffusionXLPipeline(**parts, add_watermarker=False)
    nothing = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    return diffusers.StableDiffusionPipeline(**parts, **nothing)


def _sd15() -> dict[str, Any]:
    return {
        "unet": _random(lambda: diffusers.UNet2DConditionModel(**loading.UNET)),
        "vae": _random(lambda: diffusers.AutoencoderKL(**loading.VAE)),
    }


def _sdxl() -> dict[str, Any]:
    config = transformers.CLIPTextConfig(**BIG_G)
    return {
        "unet": _random(lambda: diffusers.UNet2DConditionModel(**XL_UNET)),
        "vae": _random(lambda: diffusers.AutoencoderKL(**XL_VAE)),
        "tokenizer_2": transformers.CLIPTokenizer.from_pretrained(TOKENIZER, pad_token="!"),
        "text_encoder_2": _random(lambda: transformers.CLIPTextModelWithProjection(config)),
    }


def _random(make: Callable[[], nn.Module]) -> nn.Module:
    """A module with small random weights; what it counts with itself, such as positions, stays as it is."""
    with torch.device("meta"):
        made = make()
    made = made.half().to_empty(device="cpu")
    for weight in made.parameters():
        weight.data.uniform_(-0.04, 0.04)
    for name, buffer in made.named_buffers():
        if name.endswith("position_ids"):
            buffer.copy_(torch.arange(buffer.numel()).view_as(buffer))
    return made
