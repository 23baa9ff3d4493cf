"""The stage that trains the text encoder and the UNet."""

import random
from typing import Any

import torch
from torch import Tensor, nn

from pocket.training import diffusion, gradient, sampling
from pocket.training.job import Job
from pocket.training.learner import Learner, Progress
from pocket.training.loop import Alarm, Found, Plan, train
from pocket.training.lot import seed_of
from pocket.training.scene import Canvas
from pocket.training.source import CANVASES, SQUARE

RATE = 1e-3
AVERAGE = 0.9995
BATCH = 512
EACH = 6000
"""Samples that a concept needs; the timing divides what there will be by this."""
LEAST = 184
"""The first tier: what is learnt however slow the machine is, and before that is known."""
TIMED, JUDGED, SAVED = 60, 180, 120
"""Seconds until the timing and until the grid that decides go or no-go; between checkpoints."""


def unet(job: Job) -> None:
    """Learn to draw what captions say."""
    plan = job.plan("unet", RATE)
    torch.manual_seed(job.seed)
    painter = job.painter()
    learner = Learner("unet", painter, average=AVERAGE)
    if not learner.resume(job.full) and not learner.resume(job.pieces):
        learner.progress = Progress(**job.learnt())
    studio = Studio(job, painter, learner, plan)
    studio.hasten()
    alarms = [
        Alarm(TIMED, studio.time),
        Alarm(JUDGED, studio.show),
        Alarm(SAVED, studio.keep, again=True),
    ]
    train(
        learner,
        studio.loss,
        plan=plan,
        journal=job.journal,
        figures=diffusion.FIGURES,
        alarms=alarms,
    )
    studio.keep()
    studio.show()


class Studio:
    """Makes losses from batches, and looks at what comes of it."""

    def __init__(self, job: Job, painter: diffusion.Painter, learner: Learner, plan: Plan) -> None:
        self._job, self._painter, self._learner, self._plan = job, painter, learner, plan
        self._vae = job.vae()
        self._encoder: Any = self._vae.encoder
        self._unet: Any = painter.unet
        self._before = (learner.progress.seen, learner.progress.seconds)
        self._decided = job.concepts or learner.progress.concepts
        self._limit(self._decided or LEAST)

    def hasten(self) -> None:
        """Compile what may be compiled, for square pictures; the others are too few to be worth it."""
        self._encoder = self._job.faster(self._vae.encoder, self._misencoded)
        self._unet = self._job.faster(self._painter.unet, self._mislearnt)

    def loss(self, number: int) -> Found:
        """The loss of batch `number`."""
        canvas = canvas_of(number, self._job.seed)
        return self._loss(number, canvas, self._unet if canvas == SQUARE else self._painter.unet)

    def time(self) -> None:
        """Decide from the speed so far how many concepts there is time for."""
        progress = self._learner.progress
        speed = (progress.seen - self._before[0]) / max(progress.seconds - self._before[1], 1e-6)
        expected = progress.seen + speed * max(60 * self._plan.total - progress.seconds, 0)
        self._job.journal.note("timing", speed=round(speed, 1), expected=round(expected))
        if not self._decided:
            self._limit(min(max(int(expected / EACH), LEAST), len(self._job.source.concepts)))

    def keep(self) -> None:
        """Save a checkpoint."""
        self._learner.save(self._job.full)
        self._job.publish("unet", self._learner.averaged(), vars(self._learner.progress))

    def show(self) -> None:
        """Draw a grid of prompts with the average."""
        ids = sampling.tokenised(self._job.tokenizer, sampling.PROMPTS, self._job.device)
        self._job.picture("unet", sampling.sample(self._learner.average.model, self._vae, ids))

    def _misencoded(self, encoder: Any) -> list[str]:
        pictures = self._job.source.batch(0, self._job.batch or BATCH).pictures
        pictures = pictures.contiguous(memory_format=torch.channels_last)
        with self._job.autocast():
            right, found = (diffusion.encode(self._vae, pictures, each) for each in (self._vae.encoder, encoder))
        return ["latents"] if (right - found).norm() > gradient.UNLIKE * right.norm() else []

    def _mislearnt(self, unet: Any) -> list[str]:
        def first(chosen: Any) -> Tensor:
            return self._loss(0, SQUARE, chosen).loss

        return gradient.disagreements(self._painter, lambda: first(self._painter.unet), lambda: first(unet))

    def _limit(self, concepts: int) -> None:
        self._learner.progress.concepts = concepts
        drawn = self._job.source.limit(concepts)
        self._job.journal.note("concepts", most=concepts, drawn=drawn)

    def _loss(self, number: int, canvas: Canvas, unet: nn.Module) -> Found:
        job, count = self._job, samples(self._job.batch or BATCH, canvas)
        batch, generator = job.source.batch(number, count, canvas), job.generator(number)
        order = torch.rand(count, generator=generator, device=job.device).argsort()
        pictures = batch.pictures[order].contiguous(memory_format=torch.channels_last)
        with job.autocast():
            latents = diffusion.encode(self._vae, pictures, self._encoder if canvas == SQUARE else None)
            task = diffusion.task(latents, generator)
            predicted = self._painter(task.noisy, task.steps, batch.ids[order], unet)
        value, figures = diffusion.loss(task, predicted)
        return Found(value, count, figures)


def canvas_of(number: int, seed: int) -> Canvas:
    """The size that batch `number` has."""
    lots = random.Random(seed_of("canvas", seed, number))  # noqa: S311  # they are no secret
    return lots.choices(list(CANVASES), list(CANVASES.values()))[0]


def samples(batch: int, canvas: Canvas) -> int:
    """How many pictures of a size cost as much as `batch` square ones."""
    return max(1, batch * SQUARE.width * SQUARE.height // (canvas.width * canvas.height))
