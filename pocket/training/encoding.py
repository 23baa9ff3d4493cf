"""The stage that trains the VAE."""

import copy
from typing import Any

import torch
from torch import Tensor, nn

from pocket.training import autoencoder, checkpoint, network
from pocket.training.autoencoder import Autoencoder
from pocket.training.gradient import disagreements
from pocket.training.job import Job
from pocket.training.learner import Learner
from pocket.training.loop import Alarm, Found, train

RATE = 1.5e-3
AVERAGE = 0.999
BATCH = 256
MEASURED = 128
"""Held-out pictures that the VAE is measured on."""
SAVED = 120
"""Seconds between checkpoints."""


def vae(job: Job) -> None:
    """Learn to encode pictures of all concepts but the reserved ones, which the VAE is measured on."""
    plan = job.plan("vae", RATE)
    torch.manual_seed(job.seed)
    model = Autoencoder(network.vae(job.shape)).to(job.device)
    learner = Learner("vae", model, average=AVERAGE)
    learner.resume(job.full)

    def complaints(compiled: Any) -> list[str]:
        return disagreements(model, lambda: loss(job, 0, model).loss, lambda: loss(job, 0, compiled).loss)

    forward = job.faster(model, complaints)
    train(
        learner,
        lambda number: loss(job, number, forward),
        plan=plan,
        journal=job.journal,
        figures=autoencoder.FIGURES,
        alarms=[Alarm(SAVED, lambda: keep(job, learner), again=True)],
    )
    keep(job, learner)


def loss(job: Job, number: int, forward: nn.Module) -> Found:
    """The loss of batch `number`."""
    pictures = job.source.batch(number, job.batch or BATCH).pictures.contiguous(memory_format=torch.channels_last)
    count, _, height, width = pictures.shape
    shape = (count, network.LATENTS, height // network.DOWNSCALE, width // network.DOWNSCALE)
    noise = torch.randn(shape, generator=job.generator(number), device=job.device)
    with job.autocast():
        got = forward(pictures, autoencoder.BLUR * noise)
    value, figures = autoencoder.loss(pictures, got)
    return Found(value, count, figures)


def keep(job: Job, learner: Learner) -> None:
    """Save a checkpoint and the folded average, and say how good it is."""
    learner.save(job.full)
    averaged = learner.average.model
    assert isinstance(averaged, Autoencoder)
    folded = copy.deepcopy(averaged.vae)
    autoencoder.fold(folded, job.source.batch(-1, MEASURED).pictures)
    job.publish("vae", checkpoint.halved(folded.state_dict()))
    unseen = job.source.held_out(MEASURED)
    job.journal.note("vae", psnr=round(autoencoder.error(folded, unseen), 2), seen=learner.progress.seen)
    job.picture("vae", torch.stack([unseen[:16], decoded(folded, unseen[:16])], 1).flatten(0, 1))


@torch.no_grad()
def decoded(vae: Any, pictures: Tensor) -> Tensor:
    """What is left of pictures after encoding and decoding."""
    shown: Tensor = vae.decode(vae.encode(pictures).latent_dist.mean).sample
    return shown
