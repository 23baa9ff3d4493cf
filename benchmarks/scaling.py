"""A UNet call of 1 to 32 latents, eager, compiled, and recorded as a CUDA graph."""

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, TypeAlias

import torch
from torch import Tensor

from benchmarks.measure import Answer, Beside, Row, medians
from benchmarks.subject import Subject
from nodes.diffusion import load
from nodes.diffusion.compiling import CompiledUnet
from nodes.diffusion.recording import RECORDED_AT, forget, recordings

QUESTION = "What does a latent cost in a UNet call of many, eager, compiled and graphed, and does it come out the same?"
COUNTS = {"cuda": (1, 2, 4, 8, 16, 32), "cpu": (1, 2, 4, 8, 16)}
"""Latents of a call by device; on a CPU full-size models take the first two."""
ROUNDS = {"pocket": 9, "sd15": 3, "sdxl": 3}
TOKENS = 77

Way: TypeAlias = Callable[..., tuple[Tensor, ...]]
Inputs: TypeAlias = Mapping[str, Any]


def answer(subject: Subject) -> Answer:
    whole = subject.device == "cuda" or subject.model == "pocket"
    counts = COUNTS[subject.device][: None if whole else 2]
    dtype = torch.float32 if subject.device == "cpu" else torch.float16
    unet: Any = load.unet(subject.folder, dtype=dtype, device=subject.device)
    ways = _ways(unet)
    rows: list[Row] = []
    details = [("latents", *(f"differs, {way}" for way in ways))]
    try:
        with torch.no_grad():
            alone = _costs(subject, ways, _inputs(subject, unet, 1))
            for count in counts:
                inputs = _inputs(subject, unet, count)
                costs = alone if count == 1 else _costs(subject, ways, inputs)
                rows += _rows(count, costs, alone)
                details.append((f"{count}", *(f"{_difference(way, inputs, count):.1e}" for way in ways.values())))
    finally:
        forget()
    return Answer(QUESTION, rows, details, _notes(subject, dtype))


def _ways(unet: Any) -> dict[str, Way]:
    """The UNet as it is, compiled, and, where the device can, recorded besides."""
    ways: dict[str, Way] = {"eager": unet, "compiled": CompiledUnet(unet)}
    recorded = recordings(next(unet.parameters()).device)
    if recorded is not None:
        graphed = ways["graphed"] = CompiledUnet(unet, recorded)
        graphed.renew()
    return ways


def _inputs(subject: Subject, unet: Any, count: int) -> Inputs:
    """What a UNet is called with; the first latents of two counts are the same."""
    made = torch.Generator().manual_seed(0)
    cells, config = subject.side // 8, unet.config
    rows = [
        (
            torch.randn(4, cells, cells, generator=made),
            torch.randn(TOKENS, config.cross_attention_dim, generator=made),
            torch.randn(1280, generator=made),
        )
        for _ in range(count)
    ]
    x, words, pooled = (torch.stack(each).to(subject.device, unet.dtype) for each in zip(*rows, strict=True))
    inputs = {"sample": x, "timestep": torch.full((count,), 500.0, device=subject.device)}
    inputs["encoder_hidden_states"] = words
    if config.addition_embed_type != "text_time":
        return inputs
    sizes = torch.tensor([[subject.side, subject.side, 0, 0, subject.side, subject.side]] * count)
    return {**inputs, "added_cond_kwargs": {"text_embeds": pooled, "time_ids": sizes.to(x.device)}}


def _costs(subject: Subject, ways: Mapping[str, Way], inputs: Inputs) -> dict[str, float]:
    """Seconds of a call, once it is compiled and recorded."""
    calls = {name: partial(way, **inputs, return_dict=False) for name, way in ways.items()}
    for call in calls.values():
        for _ in range(RECORDED_AT):
            call()
    return medians({name: partial(subject.timed, call) for name, call in calls.items()}, ROUNDS[subject.model])


def _rows(count: int, costs: Mapping[str, float], alone: Mapping[str, float]) -> Iterator[Row]:
    """The share of one latent in a call, beside a call of its own, and beside the way before."""
    before = None
    for way, seconds in costs.items():
        what, each = f"{count} latent{'s' if count > 1 else ''}, {way}: each", seconds / count
        if count > 1:
            yield Row(what, each, Beside("1 latent", alone[way]))
        if before is not None or count == 1:
            yield Row(what, each, None if before is None else Beside(before, costs[before] / count))
        before = way


def _difference(way: Way, inputs: Inputs, count: int) -> float:
    """How far latents in company come out from the same ones alone, at most, as a share of the largest number."""
    together = way(**inputs, return_dict=False)[0].float()
    alone = [way(**_row(inputs, number), return_dict=False)[0].float() for number in range(count)]
    return float((together - torch.cat(alone)).abs().max() / together.abs().max())


def _row(inputs: Inputs, number: int) -> Inputs:
    return {
        name: _row(value, number) if isinstance(value, Mapping) else value[number : number + 1]
        for name, value in inputs.items()
    }


def _notes(subject: Subject, dtype: torch.dtype) -> tuple[str, ...]:
    return (
        f"{subject}; UNet calls alone, {str(dtype).removeprefix('torch.')}. Compiled as by `Engine(compiled=True)`.",
        "`differs`: the same latents in one call and alone, the largest difference as a share of the largest number.",
        "CUDA graphs, `graphed`, stand there on a GPU only.",
    )
