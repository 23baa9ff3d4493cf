"""A UNet call, with and without what is done to make it faster."""

import copy
import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.measure import Answer, Beside, Goal, Row, medians, timed
from benchmarks.subject import Subject
from engine import heap
from nodes.diffusion import load
from nodes.diffusion.moments import Embeddings, Moments
from nodes.diffusion.said import Conversation

QUESTION = "What does each of the things bring that are done to make a UNet call faster?"
LATENTS = (2, 16)
"""In a call: one picture with CFG, and eight."""
CELLS = 16
"""Of a latent's side: pictures of 128 x 128 pixels."""
ROUNDS = {"pocket": 15, "sd15": 3, "sdxl": 3}
PROCESSES = 3
NO_WORSE = Goal(1.03, of="ratio")


def answer(subject: Subject) -> Answer:
    counts = LATENTS if subject.model == "pocket" else LATENTS[:1]
    return Answer(QUESTION, [row for count in counts for row in _rows(subject, count)], notes=_notes(subject))


def _rows(subject: Subject, count: int) -> Iterator[Row]:
    unet = load.unet(subject.folder)
    stored = copy.deepcopy(unet).to(memory_format=torch.contiguous_format)
    inputs = _inputs(unet, count)
    conversation = Conversation()
    conversation.begin()
    said = conversation.said(torch.split(inputs[2], 1), inputs[2].shape[1])

    moments = Moments(inputs[1].tolist(), inputs[1].device, Embeddings())

    def remembering() -> None:
        with said.to(unet) as told:
            _call(unet, inputs[0], inputs[1], told)

    def dated() -> None:
        with moments.to(unet) as timesteps:
            _call(unet, inputs[0], timesteps, inputs[2])

    ways: dict[str, Callable[[], object]] = {
        "ours": remembering,
        "anew": partial(_call, unet, *inputs),
        "stored": partial(_call, stored, *inputs),
        "time": dated,
    }
    costs = medians({name: partial(timed, way) for name, way in ways.items()}, ROUNDS[subject.model])
    what, anew = f"{count} latents", costs["anew"]
    yield Row(f"{what}: keys and values of prompts known", costs["ours"], Beside("computed anew", anew), NO_WORSE)
    yield Row(f"{what}: timesteps known", costs["time"], Beside("embedded anew", anew), NO_WORSE)
    yield Row(f"{what}: channels side by side", anew, Beside("as they are stored", costs["stored"]), NO_WORSE)
    kept, given = (_in_processes(subject, count, keep=keep) for keep in (True, False))
    yield Row(f"{what}: freed memory kept", kept, Beside("given back, as glibc does", given), NO_WORSE)


def _inputs(unet: Any, count: int) -> tuple[Tensor, Tensor, Tensor]:
    made = torch.Generator().manual_seed(0)
    x = torch.randn(count, 4, CELLS, CELLS, generator=made)
    tokens = torch.randn(count, 77, unet.config.cross_attention_dim, generator=made)
    return x, torch.full((count,), 500.0), tokens


def _call(unet: Callable[..., object], *inputs: Tensor) -> None:
    with torch.no_grad():
        unet(*inputs, return_dict=False)


def _in_processes(subject: Subject, count: int, *, keep: bool) -> float:
    """The median of processes of their own: the heap is the process's."""
    command = [sys.executable, "-m", "benchmarks.unet", str(subject.folder), str(count), str(torch.get_num_threads())]
    environment = {name: value for name, value in os.environ.items() if name not in heap.SETTINGS}
    told = [
        subprocess.run(
            [*command, "keep" if keep else "give"], env=environment, capture_output=True, text=True, check=True
        ).stdout
        for _ in range(PROCESSES)
    ]
    return statistics.median(map(float, told))


def _alone(folder: str, count: str, threads: str, way: str) -> float:
    """Seconds of a call in this process."""
    torch.set_num_threads(int(threads))
    if way == "keep":
        heap.keep()
    unet: nn.Module = load.unet(folder)
    inputs = _inputs(unet, int(count))
    _call(unet, *inputs)
    return statistics.median(timed(partial(_call, unet, *inputs)) for _ in range(5))


def _notes(subject: Subject) -> tuple[str, ...]:
    return (
        f"{subject.model}, {8 * CELLS} x {8 * CELLS} pixels, float32, on the CPU; UNet calls alone.",
        "How memory is kept is measured in processes of their own, one after the other.",
    )


if __name__ == "__main__":
    print(_alone(*sys.argv[1:]))
