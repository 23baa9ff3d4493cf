"""Sixteen pictures over strength and CFG: as one graph, and by a pipeline that is called for each."""

from dataclasses import dataclass
from itertools import product
from types import SimpleNamespace

import numpy as np
import PIL.Image
import torch

from benchmarks.measure import Answer, Beside, Goal, Row, medians
from benchmarks.subject import PROMPT, Subject
from engine.socket import Socket
from nodes.types import Image

QUESTION = "How long do 16 pictures of 4 strengths and 4 CFGs take, with the model loaded?"
CFGS = (1.0, 3.0, 5.0, 9.0)
SHARES = (0.25, 0.5, 0.75, 1.0)
"""Shares of the steps that run: diffusers' strength."""
SEED = 1
ROUNDS = {"pocket": 5, "sd15": 3, "sdxl": 2}
GOALS = {("pocket", "cpu"): 1 / 1.5, ("sd15", "cuda"): 1 / 4, ("sdxl", "cuda"): 1 / 1.6}


def answer(subject: Subject) -> Answer:
    ours = Ours(subject)
    theirs = Theirs(subject, ours.photo())
    apart = _apart(ours, theirs)
    costs = medians(
        {"ours": lambda: subject.timed(ours), "theirs": lambda: subject.timed(theirs)}, ROUNDS[subject.model]
    )
    most = GOALS.get((subject.model, subject.device))
    goal = None if most is None else Goal(most, of="ratio")
    row = Row(
        "16 pictures and their sheet", costs["ours"], Beside("diffusers img2img, 16 calls", costs["theirs"]), goal
    )
    return Answer(QUESTION, [row], notes=_notes(subject, apart))


class Ours:
    """One graph with a sweep, on an engine that forgets everything but its models before each run."""

    def __init__(self, subject: Subject) -> None:
        self._engine = subject.engine()
        self._steps = subject.steps
        self._graph = subject.graph("img2img", source="face.png", seed=SEED, convention="a1111")
        self._sweep = {"x": {"strength": [self._strength(share) for share in SHARES]}, "y": {"cfg": list(CFGS)}}

    def __call__(self) -> None:
        """Make all pictures, and the sheet."""
        self._engine.clear()
        self._engine.run(self._graph.replace(sweep=self._sweep))

    def photo(self) -> PIL.Image.Image:
        """The picture that all begin with, at its size."""
        return _image(self._engine.run(self._graph, ["fitted"])["fitted"])

    def picture(self, share: float, cfg: float) -> PIL.Image.Image:
        """One of the pictures; it is found, once all were made."""
        graph = self._graph.set(strength=self._strength(share), cfg=cfg)
        return _image(self._engine.run(graph)["image"])

    def _strength(self, share: float) -> float:
        """The WebUI's strength by which this share of the steps runs: it counts one more than int(strength * steps)."""
        return (round(share * self._steps) - 1) / self._steps


@dataclass
class Theirs:
    """diffusers' img2img pipeline."""

    subject: Subject
    photo: PIL.Image.Image

    def __post_init__(self) -> None:
        self._pipeline = self.subject.pipeline("Img2Img")

    def __call__(self) -> None:
        """Make all pictures."""
        for cfg, share in product(CFGS, SHARES):
            self.picture(share, cfg)

    def picture(self, share: float, cfg: float) -> PIL.Image.Image:
        """Make one of the pictures."""
        made: PIL.Image.Image = self._pipeline(
            PROMPT,
            image=self.photo,
            strength=share,
            num_inference_steps=self.subject.steps,
            guidance_scale=cfg,
            generator=torch.Generator().manual_seed(SEED),
        ).images[0]
        return made

    def by_mean(self, share: float, cfg: float) -> PIL.Image.Image:
        """One of the pictures, from the mean of what the VAE makes of the photo, as ours; else it draws from around."""
        vae = self._pipeline.vae
        vae.encode = lambda pixels: SimpleNamespace(latents=type(vae).encode(vae, pixels).latent_dist.mean)
        try:
            return self.picture(share, cfg)
        finally:
            del vae.encode


def _image(value: Socket) -> PIL.Image.Image:
    assert isinstance(value, Image)
    return value.pil()


def _apart(ours: Ours, theirs: Theirs) -> list[float]:
    """How many of 255 levels each of our pictures is from theirs, on average."""
    ours()
    return [_distance(ours.picture(*cell), theirs.by_mean(*cell)) for cell in product(SHARES, CFGS)]


def _distance(one: PIL.Image.Image, other: PIL.Image.Image) -> float:
    levels, others = (np.asarray(picture).astype(np.int16) for picture in (one, other))
    return float(np.abs(levels - others).mean())


def _notes(subject: Subject, apart: list[float]) -> tuple[str, ...]:
    return (
        f"{subject}; DPM++ 2M Karras, a picture as input, strengths by which a quarter to all of the steps run.",
        (
            f"The same noise levels and seeds on both sides. The pictures are {np.mean(apart):.2f} of 255 levels apart "
            f"on average, the most different {max(apart):.2f}: diffusers tells its UNet whole timesteps, Calotype "
            "exact ones. (For this diffusers' VAE is made to give its mean, as ours does.)"
        ),
        "Prompts and photo are encoded once by ours and for every picture by the pipeline; ours draws the sheet too.",
        (
            "ComfyUI samples one cell after the other: 16 cells on a full-size SD 1.5, 128 x 128 px, 10 steps, took it "
            "394 CPU-seconds as one graph, no call shared (0.3.64, CPU, a 2-core machine, 2026-11-22)."
        ),
    )
