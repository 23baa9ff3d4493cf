"""The sampler's loop beside the UNet calls that it makes."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from benchmarks.measure import Answer, Beside, Goal, Row, medians
from benchmarks.subject import PROMPT, Subject
from engine.context import Context
from engine.device import Device
from engine.file import Files
from engine.models import ModelPool
from nodes import latent, model, noise, sample, text
from nodes.files import CheckpointFile, PromptText
from nodes.types import Unet

QUESTION = "How much does sampling cost on top of the UNet calls that it makes?"
LIMIT = 1.03
ROUNDS = {"pocket": 9, "sd15": 2, "sdxl": 2}
PICTURES = {"cpu": (1, 8), "cuda": (1, 8)}
CFG = 5.0


def answer(subject: Subject) -> Answer:
    pictures = PICTURES[subject.device] if subject.model == "pocket" or subject.device == "cuda" else (1,)
    return Answer(QUESTION, [row for count in pictures for row in _rows(subject, count)], notes=_notes(subject))


def _rows(subject: Subject, count: int) -> Iterator[Row]:
    run = Sampling(subject, count)
    calls = run.recorded()
    bare = subject.pipeline().unet
    costs = medians(
        {
            "ours": lambda: subject.timed(run),
            "same": lambda: subject.timed(lambda: _called(run.unet, calls)),
            "bare": lambda: subject.timed(lambda: _called(bare, calls)),
        },
        ROUNDS[subject.model],
    )
    what = f"{count} picture{'s' if count > 1 else ''}, {len(calls)} calls of {len(calls[0].arguments[0])} latents"
    yield Row(what, costs["ours"], Beside("the same calls of the same UNet", costs["same"]), Goal(LIMIT, of="ratio"))
    yield Row(what, costs["ours"], Beside("the same calls of diffusers' as loaded", costs["bare"]))


@dataclass(frozen=True)
class Call:
    """What a UNet was called with."""

    arguments: tuple[Any, ...]
    named: dict[str, Any]


class Sampling:
    """The node `sample` with a model, prompts and noise."""

    def __init__(self, subject: Subject, count: int) -> None:
        files = Files(named={"subject": subject.folder})
        device = Device(subject.device)
        self._context = Context(device=device.name, models=ModelPool(files, device=device))
        parts = model.load(files.resolve(CheckpointFile, "subject"))
        self._settings: dict[str, Any] = {
            "positive": text.encode(parts.text, self._context, text=PromptText.plain(PROMPT)),
            "negative": text.encode(parts.text, self._context, negative=True),
            "latent": latent.empty(parts.vae, self._context, width=subject.side, height=subject.side),
            "noise": noise.seeded(seed=1, count=count),
            "steps": subject.steps,
            "cfg": CFG,
        }
        self._ref: Unet = parts.unet
        self.unet: nn.Module = self._context.model(parts.unet).unet

    def __call__(self) -> None:
        """Once from noise to a latent."""
        sample.sample(self._ref, context=self._context, **self._settings)

    def recorded(self) -> list[Call]:
        """The UNet calls that it makes."""
        calls: list[Call] = []
        seen = self.unet.register_forward_pre_hook(
            lambda _, arguments, named: calls.append(Call(arguments, named)), with_kwargs=True
        )
        self()
        seen.remove()
        return calls


def _called(unet: Callable[..., object], calls: list[Call]) -> None:
    with torch.no_grad():
        for call in calls:
            unet(*call.arguments, **call.named)


def _notes(subject: Subject) -> tuple[str, ...]:
    return (
        f"{subject}; DPM++ 2M Karras, CFG {CFG:g}.",
        (
            "Ours is the whole node: noise, schedule, guidance, sampler, and telling how far it is. Beside it stand "
            "the UNet's calls alone, with the very tensors that it was called with."
        ),
    )
