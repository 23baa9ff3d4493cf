"""Attention: torch's kernels beside one another, and the one chosen by measurement beside torch's own choice."""

import math
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor
from torch.nn.attention import SDPBackend

from benchmarks import loading
from benchmarks.measure import Answer, Beside, Goal, Row, duration, medians, timed
from nodes.diffusion.attention import HEADS, KERNELS, LATENTS, Attention, Example, Kernels, seconds_of

QUESTION = "Which of torch's kernels computes attention fastest, and what does it take to find out?"
WHOLE = {
    "SD 1.5, 512 x 512": ((40, 4096), (80, 1024), (160, 256), (160, 64)),
    "SDXL, 1024 x 1024": ((64, 4096), (64, 1024)),
}
"""Sizes of heads and lengths of latents on each level of a UNet."""
SMALL = {
    "SD 1.5, 256 x 256": ((40, 1024), (80, 256), (160, 64)),
    "SDXL, 256 x 256": ((64, 256), (64, 64)),
}
TOKENS = 77
DTYPES = {"cpu": (torch.float32,), "cuda": (torch.float16, torch.bfloat16, torch.float32)}
ROUNDS = {"cpu": 9, "cuda": 21}
CELLS = {"cpu": 16, "cuda": 64}
"""Of the side of the latents that a UNet's kernels are chosen for."""
NO_WORSE = Goal(1.05, of="ratio")
SOON = {"cpu": None, "cuda": Goal(0.05)}
"""On a CPU nothing is chosen but here."""


class Case(NamedTuple):
    """One kind of attention in one number format."""

    model: str
    attention: Attention
    dtype: torch.dtype

    def __str__(self) -> str:
        size, queries, keys = self.attention
        return f"{self.model}, {_word(self.dtype)}: heads of {size}, {queries} x {keys}"


def answer(device: str) -> Answer:
    place, kernels = torch.device(device), Kernels(device)
    cases = list(_cases(device))
    taken = {case: kernels.seconds(case.attention, case.dtype, place) for case in cases}
    rows = [_row(case, taken[case], place) for case in cases]
    return Answer(QUESTION, [*rows, *_choosing(place)], _details(taken, KERNELS[place.type]), _notes())


def _cases(device: str) -> Iterator[Case]:
    for dtype in DTYPES[device]:
        for model, levels in (SMALL if device == "cpu" else WHOLE).items():
            for size, length in levels:
                yield Case(model, Attention(size, length, length), dtype)
                yield Case(model, Attention(size, length, TOKENS), dtype)


def _row(case: Case, taken: Mapping[SDPBackend, float], place: torch.device) -> Row:
    example, fastest = Example(case.attention, case.dtype, place), min(taken, key=lambda kernel: taken[kernel])

    def ours() -> float:
        with example.trying(fastest):
            return seconds_of(example, place)

    costs = medians({"ours": ours, "own": partial(seconds_of, example, place)}, ROUNDS[place.type])
    return Row(f"{case}: {fastest.name}", costs["ours"], Beside("torch's own choice", costs["own"]), NO_WORSE)


def _choosing(place: torch.device) -> Iterator[Row]:
    """How long it takes to choose for a UNet, in a process that has run every kernel before."""
    with torch.device("meta"):
        unet: Any = UNet2DConditionModel(**loading.UNET)
    latents, dtype = _latents(place), DTYPES[place.type][0]
    Kernels(place.type).order(unet, latents, TOKENS, dtype)
    cost = timed(lambda: Kernels(place.type).order(unet, latents, TOKENS, dtype))
    yield Row(f"choosing for SD 1.5, {8 * CELLS[place.type]} x {8 * CELLS[place.type]}", cost, None, SOON[place.type])


def _latents(place: torch.device) -> Tensor:
    return torch.zeros(1, 4, CELLS[place.type], CELLS[place.type], device=place)


def _details(taken: Mapping[Case, Mapping[SDPBackend, float]], kernels: Sequence[SDPBackend]) -> list[tuple[str, ...]]:
    """What every kernel took, getting ready for the shape included as it counts in the choice."""
    head = ("attention", *(kernel.name for kernel in kernels))
    return [head, *((str(case), *(_shown(found.get(kernel)) for kernel in kernels)) for case, found in taken.items())]


def _shown(seconds: float | None) -> str:
    if seconds is None:
        return "cannot"
    if math.isinf(seconds):
        return "must not"
    return duration(seconds) if seconds else "alone"


def _word(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _notes() -> tuple[str, ...]:
    return (
        f"{LATENTS} latents of {HEADS} heads each, whatever the model has. The name is that of the kernel chosen.",
        (
            "A kernel that cannot compute an attention is left out; one that must not would keep all products;"
            " one that is alone is not timed."
        ),
        "On a GPU seconds include the wait for the host, as in a network that is neither compiled nor captured.",
    )
