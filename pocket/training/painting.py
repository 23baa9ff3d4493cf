"""The stage that trains the text encoder and the UNet."""

from typing import Any

import torch
from torch import Tensor, nn

from pocket.training import bank, diffusion, gradient, sampling
from pocket.training.job import Job
from pocket.training.learner import BLENDED, Learner, Progress
from pocket.training.loop import Alarm, Found, Plan, train
from pocket.training.scene import Canvas, canvas_of, samples

RATE = 1e-3
AVERAGE, BRIEF = 0.9995, 0.99
"""How slow the average is, and where there are few steps."""
BATCH = 512
EACH = 6000
"""Samples that a concept needs; the timing divides what there will be by this."""
BIAS = 0.4
"""How much more noisy steps weigh where samples are few."""
VIEWS = 2
"""Noises that a picture encoded beforehand is shown with at once; its caption is read once."""
LEAST = 184
"""The first tier: what is learnt however slow the machine is, and before that is known."""
TIMED, JUDGED, SAVED = 60, 180, 120
"""Seconds until the timing and until the grid that decides go or no-go; between checkpoints."""


def unet(job: Job) -> None:
    """Learn to draw what captions say."""
    plan = job.plan("unet", RATE, warmup=30 if job.lean else 200)
    torch.manual_seed(job.seed)
    painter = job.painter()
    name, others = job.names("unet")
    learner = Learner(name, painter, average=BRIEF if job.lean else AVERAGE)
    if not learner.resume(job.full):
        if not any(learner.resume(folder, "unet") for folder in (job.full, job.pieces)):
            learner.progress = Progress(**job.learnt())
        if job.crew[0] > 0:
            learner.progress.seen = 0
    studio = Studio(job, painter, learner, plan)
    studio.hasten()
    alarms = [
        Alarm(TIMED, studio.time),
        Alarm(JUDGED, studio.show),
        Alarm(SAVED, studio.keep, again=True),
    ]
    if others:
        alarms.append(Alarm(BLENDED, lambda: learner.blend(job.full, others), again=True))
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
        self._open()
        self._decided = job.concepts or learner.progress.concepts
        self._limit(self._decided or LEAST)

    def hasten(self) -> None:
        """Compile what may be compiled, for square pictures; the others are too few to be worth it."""
        self._encoder = self._job.faster(self._vae.encoder, self._misencoded)
        self._unet = self._job.faster(self._painter.unet, self._mislearnt)

    def loss(self, number: int) -> Found:
        """The loss of batch `number` of this process."""
        me, crew = self._job.crew
        number = crew * number + me
        canvas = canvas_of(number, self._job.seed, self._job.source.recipe)
        if canvas in self._banks:
            return self._stored(number, canvas)
        return self._loss(number, canvas, self._unet if canvas == self._job.source.square else self._painter.unet)

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
        self._open()
        if self._job.crew[0] > 0:
            return
        self._job.publish("unet", self._learner.averaged(), vars(self._learner.progress))

    def show(self) -> None:
        """Draw a grid of prompts with the average."""
        if self._job.crew[0] > 0:
            return
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
            return self._loss(0, self._job.source.square, chosen).loss

        return gradient.disagreements(self._painter, lambda: first(self._painter.unet), lambda: first(unet))

    def _limit(self, concepts: int) -> None:
        self._learner.progress.concepts = concepts
        drawn = self._job.source.limit(concepts)
        self._job.journal.note("concepts", most=concepts, drawn=drawn)

    def _open(self) -> None:
        """Look at what was encoded beforehand."""
        sizes = self._job.source.recipe.canvases if self._job.lean else ()
        self._banks = {each: found for each in sizes if (found := bank.opened(self._job.latents, each))}

    def _stored(self, number: int, canvas: Canvas) -> Found:
        """The loss of latents that were encoded beforehand, each with `VIEWS` different noises."""
        count, generator = samples(self._job.batch or BATCH, canvas), self._job.generator(number)
        latents, ids = self._banks[canvas].drawn(count // VIEWS, generator)
        task = diffusion.task(latents.repeat(VIEWS, 1, 1, 1), generator, bias=BIAS)
        value, figures = diffusion.loss(task, self._painter(task.noisy, task.steps, ids))
        return Found(value, len(task.noisy), figures)

    def _loss(self, number: int, canvas: Canvas, unet: nn.Module) -> Found:
        job, count = self._job, samples(self._job.batch or BATCH, canvas)
        batch, generator = job.source.batch(number, count, canvas), job.generator(number)
        order = torch.rand(count, generator=generator, device=job.device).argsort()
        pictures = batch.pictures[order].contiguous(memory_format=torch.channels_last)
        with job.autocast():
            latents = diffusion.encode(self._vae, pictures, self._encoder if canvas == job.source.square else None)
            task = diffusion.task(latents, generator)
            predicted = self._painter(task.noisy, task.steps, batch.ids[order], unet)
        value, figures = diffusion.loss(task, predicted)
        return Found(value, count, figures)
