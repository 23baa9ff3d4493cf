"""Decoding a latent in every number format: how long it takes, and how far the picture is from that in float32."""

import copy
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import numpy as np
import PIL.Image
import torch
from torch import Tensor

from benchmarks.measure import Answer, Beside, Goal, Row, digits, medians
from benchmarks.png import photograph
from benchmarks.subject import Subject
from nodes.diffusion import load, vae

QUESTION = "How long does a VAE take for a picture in each number format, and how many levels does it miss by?"
DTYPES = (torch.float16, torch.bfloat16)
SIDES = {"cpu": {"pocket": 128, "sd15": 256, "sdxl": 256}, "cuda": {"pocket": 128, "sd15": 512, "sdxl": 1024}}
ROUNDS = {"cpu": {"pocket": 3, "sd15": 1, "sdxl": 1}, "cuda": {"pocket": 21, "sd15": 11, "sdxl": 11}}
PRECISE = 1
"""By how many of 256 levels a format may miss float32 anywhere."""


def answer(subject: Subject) -> Answer:
    models = {_word(dtype): _loaded(subject, dtype) for dtype in (torch.float32, *DTYPES)}
    other = _other_layout(models["float32"])
    latent = _latent(subject, models["float32"])
    with torch.no_grad():
        ways = {name: partial(_decoded, latent, model) for name, model in {**models, "other": other}.items()}
        pictures = {name: decode() for name, decode in ways.items()}
        rounds = ROUNDS[subject.device][subject.model]
        costs = medians({name: partial(subject.timed, decode) for name, decode in ways.items()}, rounds)
    rows = [*_layout(costs, models["float32"]), *_formats(costs, pictures)]
    return Answer(QUESTION, rows, _details(pictures), _notes(subject))


def _loaded(subject: Subject, dtype: torch.dtype) -> Any:
    return load.vae(subject.folder, dtype=dtype, device=subject.device)


def _other_layout(model: Any) -> Any:
    """The same VAE with its convolutions laid out in the way in which they are not loaded."""
    layout = torch.contiguous_format if _is_interleaved(model) else torch.channels_last
    return copy.deepcopy(model).to(memory_format=layout)


def _is_interleaved(model: Any) -> bool:
    return not model.decoder.conv_in.weight.is_contiguous()


def _latent(subject: Subject, model: Any) -> Tensor:
    """That of a photograph."""
    side = SIDES[subject.device][subject.model]
    pixels = np.asarray(photograph().resize((side, side), PIL.Image.Resampling.LANCZOS))
    with torch.no_grad():
        return vae.encode(torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None].to(subject.device), model)


def _decoded(latent: Tensor, model: Any) -> Tensor | None:
    """The picture; None where it overflows, which is computed again in float32 by the nodes."""
    try:
        return vae.decode(latent, model)
    except FloatingPointError:
        return None


def _layout(costs: Mapping[str, float], model: Any) -> Iterator[Row]:
    ours, other = costs["float32"], costs["other"]
    if _is_interleaved(model):
        yield Row("float32, channels side by side", ours, Beside("one after the other", other))
    else:
        yield Row("float32, channels one after the other", ours, Beside("side by side", other))


def _formats(costs: Mapping[str, float], pictures: Mapping[str, Tensor | None]) -> Iterator[Row]:
    for name in map(_word, DTYPES):
        yield Row(name, costs[name], Beside("float32", costs["float32"]))
        if (missed := _missed(pictures, name)) is not None:
            yield Row(f"{name}: levels missed at most", int(missed.max()), None, Goal(PRECISE), counted=True)


def _missed(pictures: Mapping[str, Tensor | None], name: str) -> Tensor | None:
    made, exact = pictures[name], pictures["float32"]
    return None if made is None or exact is None else (made.int() - exact.int()).abs()


def _details(pictures: Mapping[str, Tensor | None]) -> list[tuple[str, ...]]:
    names = {**{_word(dtype): _word(dtype) for dtype in DTYPES}, "other": "float32, the other layout"}
    return [
        ("beside float32", "levels missed at most", "on average", "share of values that differ"),
        *((said, *_told(_missed(pictures, name))) for name, said in names.items()),
    ]


def _told(missed: Tensor | None) -> tuple[str, str, str]:
    if missed is None:
        return "overflowed", "", ""
    differing = float((missed > 0).float().mean())
    return str(int(missed.max())), digits(float(missed.float().mean())), f"{differing:.2%}"


def _word(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _notes(subject: Subject) -> tuple[str, ...]:
    side = SIDES[subject.device][subject.model]
    random = "" if subject.model == "pocket" else " Weights are random: its seconds mean something, its levels do not."
    return (
        f"{subject.model}, {side} x {side} pixels, on {subject.device}, one picture at a time.{random}",
        "Weights stay as they are stored because the other layout brings a full-size VAE nothing on a CPU.",
        "The precision is a part of what a VAE is known by. By itself it is float32, on every device.",
    )
