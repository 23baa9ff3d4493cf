"""One picture, from a prompt to a PNG."""

import io
from collections.abc import Callable, Iterator
from functools import partial
from itertools import count
from typing import Any

import torch

from benchmarks.measure import Answer, Beside, Goal, Row, medians
from benchmarks.subject import PROMPT, Subject
from calotype.picture import document_of, encode

QUESTION = "How long does one picture take, from the prompt to the PNG, with the model loaded?"
CFG = 5.0
ROUNDS = {"pocket": 9, "sd15": 3, "sdxl": 3}
GOALS = {("pocket", "cpu"): 1.0, ("sd15", "cuda"): 1 / 1.6, ("sdxl", "cuda"): 1 / 1.25}


def answer(subject: Subject) -> Answer:
    ways: dict[str, Callable[[], bytes]] = {
        "ours": Ours(subject),
        "eager": Theirs(subject),
        "ours, compiled": Ours(subject, compiled=True),
        "compiled": Theirs(subject, compiled=True),
    }
    for way in ways.values():
        way()
    costs = medians(
        {name: partial(subject.timed, way) for name, way in ways.items()},
        ROUNDS[subject.model],
    )
    return Answer(QUESTION, list(_rows(subject, costs)), notes=_notes(subject))


class Ours:
    """A saved graph on an engine, with other prompts and another seed each time: only its models are there already."""

    def __init__(self, subject: Subject, *, compiled: bool = False) -> None:
        self._engine = subject.engine(compiled=compiled)
        self._graph = subject.graph("text2img", cfg=CFG)
        self._numbers = count(1)

    def __call__(self) -> bytes:
        """Make a picture."""
        number = next(self._numbers)
        news = {"seed": number, "prompt": f"{PROMPT}, {number}", "negative": f"{number}"}
        result = self._engine.run(self._graph.set(news))
        picture: Any = result["image"]
        return encode(picture.pil(), document_of(result), None)


class Theirs:
    """A pipeline of diffusers, called for a picture."""

    def __init__(self, subject: Subject, *, compiled: bool = False) -> None:
        self._pipeline = subject.pipeline()
        self._subject = subject
        if compiled:
            self._pipeline.unet = torch.compile(self._pipeline.unet)
        self._seeds = count(1)

    def __call__(self) -> bytes:
        """Make a picture."""
        subject = self._subject
        picture = self._pipeline(
            PROMPT,
            num_inference_steps=subject.steps,
            guidance_scale=CFG,
            width=subject.side,
            height=subject.side,
            generator=torch.Generator().manual_seed(next(self._seeds)),
        ).images[0]
        stream = io.BytesIO()
        picture.save(stream, "PNG")
        return stream.getvalue()


def _rows(subject: Subject, costs: dict[str, float]) -> Iterator[Row]:
    most = GOALS.get((subject.model, subject.device))
    goal = None if most is None else Goal(most, of="ratio")
    yield Row("a picture", costs["ours"], Beside("diffusers, eager", costs["eager"]), goal)
    compiled = Beside("diffusers, torch.compile", costs["compiled"])
    yield Row("a picture, compiled", costs["ours, compiled"], compiled, goal if subject.device == "cpu" else None)


def _notes(subject: Subject) -> tuple[str, ...]:
    return (
        f"{subject}; DPM++ 2M Karras, CFG {CFG:g}; the prompts are encoded anew, the PNG holds graph and seed.",
        (
            "Compiled: `Engine(compiled=True)`, and `torch.compile` of the pipeline's UNet, its defaults. The first "
            "picture, which compiles, is not counted."
        ),
    )
