"""The stage that trains the VAE."""

import copy
import time
from typing import Any

import torch
from torch import Generator, Tensor, nn

from pocket.training import autoencoder, bank, checkpoint, diffusion, network
from pocket.training.autoencoder import Autoencoder, Decoder
from pocket.training.bank import Bank
from pocket.training.gradient import disagreements
from pocket.training.job import Job
from pocket.training.learner import BLENDED, Learner
from pocket.training.loop import Alarm, Found, train
from pocket.training.scene import canvas_of, samples

RATE, DECODER_RATE = 1.5e-3, 8e-4
"""The second where less is to be learnt, or by fewer pictures a step."""
AVERAGE, BRIEF = 0.999, 0.997
"""How slow the average is, and where there are few steps."""
BATCH = 256
MEASURED = 64
"""Held-out pictures that the VAE is measured on."""
WHOLE = 3
"""Every so many batches a decoder sees whole pictures."""
ENCODED, AT_ONCE = 360, 24
"""Pictures in a file of latents, and how many are encoded together."""
SAVED = 120
"""Seconds between checkpoints."""


def vae(job: Job) -> None:
    """Learn to encode pictures of all concepts but the reserved ones, which the VAE is measured on."""
    plan = job.plan("vae", DECODER_RATE if job.lean else RATE, warmup=50 if job.lean else 200)
    torch.manual_seed(job.seed)
    model = Autoencoder(beginning(job), steady=job.lean).to(job.device)
    name, others = job.names("vae")
    learner = Learner(name, model, average=BRIEF if job.lean else AVERAGE)
    learner.resume(job.full)
    alarms = [Alarm(SAVED, lambda: keep(job, learner), again=True)]
    if others:
        alarms.append(Alarm(BLENDED, lambda: learner.blend(job.full, others), again=True))

    def complaints(compiled: Any) -> list[str]:
        return disagreements(model, lambda: loss(job, 0, model).loss, lambda: loss(job, 0, compiled).loss)

    forward = job.faster(model, complaints)
    train(
        learner,
        lambda number: loss(job, number, forward),
        plan=plan,
        journal=job.journal,
        figures=autoencoder.FIGURES,
        alarms=alarms,
    )
    keep(job, learner)


def beginning(job: Job) -> Any:
    """A VAE that has learnt nothing, or as much as the model to start from."""
    if not job.start:
        return network.vae(job.shape)
    begun = job.vae().requires_grad_().train()
    autoencoder.unfold(begun)
    return begun


def decoder(job: Job) -> None:
    """Go on with the decoder alone, so that latents stay what they are."""
    plan = job.plan("decoder", DECODER_RATE, warmup=30)
    model = Decoder(job.vae().to(memory_format=torch.channels_last))
    learner = Learner("decoder", model, average=BRIEF)
    learner.resume(job.full)

    if job.concepts:
        job.source.limit(job.concepts)

    def look() -> None:
        learner.save(job.full)
        averaged = learner.average.model
        assert isinstance(averaged, Decoder)
        show(job, averaged.vae, learner)

    train(
        learner,
        lambda number: part(job, number, model),
        plan=plan,
        journal=job.journal,
        figures=autoencoder.FIGURES,
        alarms=[Alarm(SAVED, look, again=True)],
    )
    look()


def part(job: Job, number: int, model: Decoder) -> Found:
    """The loss of a decoder on batch `number`: mostly on a window of it, which is where things are."""
    lots = job.generator(number)
    pictures = job.source.batch(number, job.batch or BATCH).pictures
    latents = diffusion.encode(model.vae, pictures)
    step = network.DOWNSCALE
    top, left, side = window(latents.shape[-1], number, lots)
    latents = latents[:, :, top : top + side, left : left + side]
    noise = torch.randn(latents.shape, generator=lots, device=job.device)
    wanted = pictures[:, :, step * top : step * (top + side), step * left : step * (left + side)]
    value, figures = autoencoder.loss(wanted, model(latents + autoencoder.BLUR * noise))
    return Found(value, len(pictures), figures)


def window(whole: int, number: int, lots: Generator) -> tuple[int, int, int]:
    """What batch `number` shows of its pictures: top, left and side, of `whole`; every `WHOLE` batches all of it."""
    side = whole if number % WHOLE == 0 else whole * 3 // 4
    top, left = torch.randint(whole - side + 1, (2,), generator=lots).tolist()
    return top, left, side


def loss(job: Job, number: int, forward: nn.Module) -> Found:
    """The loss of batch `number` of this process; where a CPU shall do, mostly of a window of it."""
    me, crew = job.crew
    number = crew * number + me
    lots = job.generator(number)
    pictures = job.source.batch(number, job.batch or BATCH).pictures
    if job.lean:
        step = network.DOWNSCALE
        top, left, side = (step * each for each in window(pictures.shape[-1] // step, number, lots))
        pictures = pictures[:, :, top : top + side, left : left + side]
    pictures = pictures.contiguous(memory_format=torch.channels_last)
    count, _, height, width = pictures.shape
    shape = (count, network.LATENTS, height // network.DOWNSCALE, width // network.DOWNSCALE)
    noise = torch.randn(shape, generator=lots, device=job.device)
    with job.autocast():
        got = forward(pictures, autoencoder.BLUR * noise)
    value, figures = autoencoder.loss(pictures, got)
    return Found(value, count, figures)


def keep(job: Job, learner: Learner) -> None:
    """Save a checkpoint and the folded average, and say how good it is."""
    learner.save(job.full)
    if job.crew[0] > 0:
        return
    averaged = learner.average.model
    assert isinstance(averaged, Autoencoder)
    folded = copy.deepcopy(averaged.vae)
    autoencoder.fold(folded, job.source.batch(-1, MEASURED).pictures)
    show(job, folded, learner)


def show(job: Job, vae: Any, learner: Learner) -> None:
    """Publish a folded VAE and say how good it is, on pictures of things that it learnt and of others."""
    job.publish("vae", checkpoint.halved(vae.state_dict()))
    seen, unseen = job.source.batch(-2, MEASURED).pictures, job.source.held_out(MEASURED)
    psnr, apart = (round(autoencoder.error(vae, pictures), 2) for pictures in (unseen, seen))
    job.journal.note("vae", psnr=psnr, learnt=apart, seen=learner.progress.seen)
    shown = torch.cat([seen[:8], unseen[:8]])
    job.picture("vae", torch.stack([shown, decoded(vae, shown)], 1).flatten(0, 1))


@torch.no_grad()
def decoded(vae: Any, pictures: Tensor) -> Tensor:
    """What is left of pictures after encoding and decoding."""
    shown: Tensor = vae.decode(vae.encode(pictures).latent_dist.mean).sample
    return shown


def latents(job: Job) -> None:
    """Encode pictures beforehand for so many minutes; files that are there already stay."""
    plan, vae, sizes = job.plan("latents", 0.0), job.vae(), job.source.recipe.canvases
    job.source.limit(job.concepts or len(job.source.concepts))
    began = number = sum(len(bank.files(job.latents, canvas)) for canvas in sizes)
    while number == began or time.monotonic() < plan.until:
        canvas = canvas_of(number, job.seed, job.source.recipe)
        batch = job.source.batch(number, samples(ENCODED, canvas), canvas)
        encoded = torch.cat([diffusion.encode(vae, few) for few in torch.split(batch.pictures, AT_ONCE)])
        captions = job.source.reworded(batch.scenes, number, bank.WORDED)
        bank.deposit(job.latents, canvas, number, Bank(encoded, captions))
        number += 1
    job.journal.note("latents", files=number)
