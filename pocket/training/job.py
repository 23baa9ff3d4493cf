"""Where a training session finds and leaves things, on what device it runs, and for how long."""

import json
import shutil
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Generator, Tensor

from pocket import FOLDER
from pocket.training import checkpoint, network, sampling, vocabulary
from pocket.training.diffusion import Painter
from pocket.training.loop import Journal, Plan
from pocket.training.lot import generator
from pocket.training.network import Shape
from pocket.training.scene import FULL, LEAN
from pocket.training.source import Source

CPU = torch.device("cpu")

LEARNT = "training.json"
"""The file of a model's folder that says how far training came."""


@dataclass(frozen=True)
class Span:
    """Minutes of a stage in this session, compiling included, and in all sessions, over which its rate falls."""

    minutes: float = 1.0
    total: float = 0.0


@dataclass(frozen=True)
class Job:
    """One session. What travels is left in `work`/pieces and, if given, in `out`; nothing else leaves `work`."""

    work: Path
    out: Path | None = None
    start: Path | None = None
    """A folder in diffusers' layout to take parts from that `work` does not have."""
    to: Path = FOLDER
    """Where the finished model is written."""
    device: torch.device = CPU
    compiled: bool = False
    spans: Mapping[str, Span] = field(default_factory=dict)
    """How long each training stage takes; a minute where nothing is said."""
    batch: int = 0
    """Pictures a step; 0 leaves that to the stage."""
    concepts: int = 0
    """How many to draw; 0 leaves that to the timing."""
    seed: int = 0
    lean: bool = False
    """Whether a CPU shall do: fewer things, drawn more alike, from latents that were encoded beforehand."""
    crew: tuple[int, int] = (0, 1)
    """Which of how many processes this is that train one UNet together."""
    shape: Shape = network.POCKET

    def names(self, stage: str) -> tuple[str, list[str]]:
        """What this process keeps a stage's checkpoints under, and the others that train the same part."""
        me, crew = self.crew
        names = [stage, *(f"{stage}{number}" for number in range(1, crew))]
        return names[me], [name for name in names if name != names[me]]

    @property
    def archive(self) -> Path:
        """The data."""
        return self.work / "data" / "emoji.tar"

    @property
    def vocabulary(self) -> Path:
        """The tokenizer's folder."""
        return self.work / "data" / "tokenizer"

    @property
    def pieces(self) -> Path:
        """What travels."""
        return self.work / "pieces"

    @property
    def latents(self) -> Path:
        """Pictures that were encoded beforehand."""
        return self.work / "latents"

    @property
    def full(self) -> Path:
        """Checkpoints with everything, for the same machine."""
        return self.work / "full"

    @cached_property
    def journal(self) -> Journal:
        """The session's log."""
        return Journal((self.out or self.pieces) / "log.jsonl")

    @cached_property
    def tokenizer(self) -> Any:
        """The tokenizer that was learnt."""
        return vocabulary.load(self.vocabulary)

    @cached_property
    def source(self) -> Source:
        """The data, on the device."""
        recipe = LEAN if self.lean else FULL
        return Source.open(self.archive, self.tokenizer, self.device, recipe=recipe, seed=self.seed)

    def plan(self, stage: str, rate: float, warmup: int = 200) -> Plan:
        """The schedule of a stage that begins now."""
        span = self.spans.get(stage, Span())
        return Plan(time.monotonic() + 60 * span.minutes, max(span.total, span.minutes), rate, warmup)

    def autocast(self) -> AbstractContextManager[Any]:
        """Bf16 where a GPU computes it fast."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda")

    def generator(self, number: int) -> Generator:
        """The random numbers of step `number`, other than those that its pictures are drawn with."""
        return generator(self.device, "step", self.seed, number)

    def faster(self, part: Any, complaints: Callable[[Any], Sequence[str]]) -> Any:
        """A compiled form of a module, for one shape of inputs, unless there are complaints about it."""
        if not self.compiled:
            return part
        torch._dynamo.config.suppress_errors = True  # what cannot be compiled runs as it is
        began, compiled = time.monotonic(), torch.compile(part, dynamic=False)
        wrong = complaints(compiled)
        self.journal.note("compiled", seconds=round(time.monotonic() - began), wrong=len(wrong), such_as=wrong[:3])
        return part if wrong else compiled

    def picture(self, name: str, pictures: Tensor) -> None:
        """Leave a grid of pictures where it travels from."""
        path = self.pieces / f"{name}.png"
        sampling.save_grid(pictures, path)
        self._hand_out([path])

    def publish(self, name: str, tensors: Mapping[str, Tensor], about: Mapping[str, Any] | None = None) -> None:
        """Leave a checkpoint where it travels from."""
        self._hand_out(checkpoint.save(self.pieces, name, tensors, about))

    def publish_file(self, name: str, tensors: dict[str, Tensor], about: dict[str, str]) -> None:
        """Leave one safetensors file where it travels from."""
        path = self.pieces / f"{name}.safetensors"
        save_file(tensors, path, about)
        self._hand_out([path])

    def vae(self) -> Any:
        """The trained VAE, frozen."""
        vae = network.vae(self.shape)
        if checkpoint.exists(self.pieces, "vae"):
            vae.load_state_dict(checkpoint.load(self.pieces, "vae")[0])
        elif self.start:
            vae.load_state_dict(type(vae).from_pretrained(self.start / "vae").state_dict())
        else:
            raise FileNotFoundError(f"{self.pieces}: expected a VAE; train one first, or name a model to start from")
        return vae.to(self.device).eval().requires_grad_(requires_grad=False)

    def painter(self) -> Painter:
        """A text encoder and a UNet, untrained unless there is a model to start from."""
        painter = Painter(network.text_encoder(self.shape, self.tokenizer), network.unet(self.shape))
        if self.start:
            for part, folder in ((painter.text, "text_encoder"), (painter.unet, "unet")):
                part.load_state_dict(type(part).from_pretrained(self.start / folder).state_dict())
        return painter.to(self.device)

    def trained(self) -> Painter:
        """The text encoder and UNet that were trained, frozen."""
        painter = self.painter()
        if checkpoint.exists(self.pieces, "unet"):
            tensors = checkpoint.load(self.pieces, "unet")[0]
            painter.load_state_dict({name.removeprefix("average."): value for name, value in tensors.items()})
        elif not self.start:
            raise FileNotFoundError(f"{self.pieces}: expected a UNet; train one first, or name a model to start from")
        return painter.eval().requires_grad_(requires_grad=False)

    def learnt(self) -> dict[str, Any]:
        """How far the UNet's training came, in `work` or in the model to start from."""
        if checkpoint.exists(self.pieces, "unet"):
            return checkpoint.load(self.pieces, "unet")[1]
        told = self.start / LEARNT if self.start else None
        return dict(json.loads(told.read_text(encoding="utf-8"))) if told and told.exists() else {}

    def _hand_out(self, paths: Iterable[Path]) -> None:
        if self.out:
            self.out.mkdir(parents=True, exist_ok=True)
            for path in paths:
                shutil.copy(path, self.out)
