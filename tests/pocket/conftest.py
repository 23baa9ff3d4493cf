"""A tiny world: eight shapes of plain colours, a tokenizer for their names, and a model of next to no size."""

import io

import pytest
import torch
from PIL import Image, ImageDraw

from pocket.training import archive, encoding, sampling, vocabulary
from pocket.training.caption import Author
from pocket.training.concept import Concept
from pocket.training.job import Job, Span
from pocket.training.network import Shape
from pocket.training.source import Source

TINY = Shape(vae=(8, 8, 8, 16), unet=(32, 32), layers=1, groups=8, width=32, text_layers=1)
COLOURS = ("red", "green", "blue", "yellow", "purple", "orange", "cyan", "navy")


def concept(number, colour):
    return Concept(f"1f60{number}", f"{colour} ball", ("ball", "toy"), 0, mirrored=number != 3, reserved=number == 7)


def webp(colour):
    picture = Image.new("RGBA", (64, 64))
    ImageDraw.Draw(picture).ellipse((4, 4, 60, 60), fill=colour)
    buffer = io.BytesIO()
    picture.save(buffer, "WEBP", lossless=True)
    return buffer.getvalue()


@pytest.fixture(scope="session")
def concepts():
    return [concept(number, colour) for number, colour in enumerate(COLOURS)]


@pytest.fixture(scope="session")
def work(tmp_path_factory, concepts):
    """A folder as the stages `data` and `tokenizer` leave it."""
    job = Job(work=tmp_path_factory.mktemp("pocket"))
    archive.write(job.archive, concepts, {each.code: webp(each.label.split()[0]) for each in concepts})
    vocabulary.learn(Author(concepts, torch.device("cpu")).lessons(), job.vocabulary)
    return job.work


@pytest.fixture(scope="session")
def tokenizer(work):
    return vocabulary.load(Job(work=work).vocabulary)


@pytest.fixture(scope="session")
def sprites(work):
    return archive.read(Job(work=work).archive, 32)[1]


@pytest.fixture
def source(concepts, sprites, tokenizer):
    return Source(concepts, sprites, tokenizer)


@pytest.fixture(autouse=True)
def one_thread():
    """Two threads that wait for a core that something else holds are slower than one."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def job(work, monkeypatch):
    """A session of half a second that looks at its results only briefly."""
    monkeypatch.setattr(encoding, "MEASURED", 16)
    monkeypatch.setattr(sampling, "STEPS", 2)
    return Job(work=work, spans=dict.fromkeys(("vae", "unet", "lora", "embedding"), Span(0.01)), batch=4, shape=TINY)
