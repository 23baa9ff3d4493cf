"""The stages that train a LoRA and an embedding on the finished model."""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from pocket.training import adapter, diffusion, inversion, sampling
from pocket.training.adapter import Adapted
from pocket.training.caption import AFTERGLOW, BLUEPRINT
from pocket.training.diffusion import Painter
from pocket.training.inversion import Vocabulary
from pocket.training.job import Job
from pocket.training.learner import Learner
from pocket.training.loop import Found, train
from pocket.training.source import Batch
from pocket.training.style import blueprint

BATCH = 128
LORA_RATE, EMBEDDING_RATE = 2e-3, 1e-2
AVERAGE = 0.99
DRAWN = 500
"""Concepts that are shown."""
DUSK = ((0.36, 0.16, 0.52), (0.98, 0.56, 0.24))
"""What the embedding comes to mean: a gradient between these."""
BEGIN = "purple and orange gradient"
"""The words that the embedding starts from."""
SHOWN = ("fox", "star", "smiling face", "red apple", "cat", "blue heart", "angry face", "neutral face")


def lora(job: Job) -> None:
    """Learn the style of blueprints, which the model was never shown."""
    painter = job.trained()
    adapter.adapt(painter.unet)

    def drawn(number: int) -> Batch:
        return job.source.labelled(job.source.alone(number, job.batch or BATCH), blueprint, before=BLUEPRINT)

    best = _train(job, "lora", painter, drawn, LORA_RATE)
    adapters = {name: module for name, module in best.unet.named_modules() if isinstance(module, Adapted)}
    about = {"ss_network_module": "networks.lora", "ss_network_dim": str(adapter.RANK), "trigger": BLUEPRINT}
    job.publish_file("blueprint", adapter.kohya(adapters), about)
    job.picture("lora", _shown(job, best, [f"{BLUEPRINT} {prompt}" for prompt in SHOWN]))


def embedding(job: Job) -> None:
    """Learn the background that "afterglow" shall mean."""
    painter = job.trained()
    inversion.invert(painter.text, job.tokenizer, BEGIN)

    def drawn(number: int) -> Batch:
        scenes = job.source.alone(number, job.batch or BATCH)
        shades = torch.tensor(DUSK, device=job.device).expand(len(scenes), -1, -1)
        return job.source.labelled(replace(scenes, shades=shades), lambda pictures: pictures, behind=AFTERGLOW)

    best = _train(job, "embedding", painter, drawn, EMBEDDING_RATE)
    vocabulary = best.text.get_input_embeddings()
    assert isinstance(vocabulary, Vocabulary)
    job.publish_file("afterglow", inversion.a1111(vocabulary), {"name": "afterglow"})
    job.picture("embedding", _shown(job, best, [f"{prompt} {AFTERGLOW}" for prompt in SHOWN]))


def _train(job: Job, name: str, painter: Painter, drawn: Any, rate: float) -> Any:
    """Train what is free in `painter` and return the average."""
    plan = job.plan(name, rate, warmup=20)
    learner, vae = Learner(name, painter, average=AVERAGE), job.vae()
    job.source.limit(job.concepts or DRAWN)

    def loss(number: int) -> Found:
        batch, generator = drawn(number), job.generator(number)
        with job.autocast():
            task = diffusion.task(diffusion.encode(vae, batch.pictures), generator)
            predicted = painter(task.noisy, task.steps, batch.ids)
        value, figures = diffusion.loss(task, predicted)
        return Found(value, len(batch.ids), figures)

    train(learner, loss, plan=plan, journal=job.journal, figures=diffusion.FIGURES)
    return learner.average.model


def _shown(job: Job, painter: Painter, prompts: list[str]) -> Tensor:
    ids = sampling.tokenised(job.tokenizer, prompts, job.device)
    return sampling.sample(painter, job.vae(), ids)
