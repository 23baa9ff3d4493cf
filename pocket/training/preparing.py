"""The stages before training: data and vocabulary. They need the network, or seconds, but no GPU."""

import torch

from pocket.training import archive, vocabulary
from pocket.training.caption import Author
from pocket.training.few import few
from pocket.training.job import Job


def data(job: Job) -> None:
    """Fetch pictures and words from npm and write them as one archive."""
    found = archive.build(job.work / "npm", job.archive, few if job.lean else list)
    job.journal.note("data", concepts=len(found), mebibytes=round(job.archive.stat().st_size / 2**20, 1))


def tokenizer(job: Job) -> None:
    """Learn a vocabulary from all phrases that captions are made of."""
    concepts, _ = archive.read(job.archive, side=1)
    vocabulary.learn(Author(concepts, torch.device("cpu")).lessons(), job.vocabulary)
    job.journal.note("tokenizer", tokens=len(job.tokenizer))
