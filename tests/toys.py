"""A small node pack without torch: every call is logged, so tests can assert exactly what ran."""

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, ClassVar, Literal, NamedTuple

from accelerators import Ref
from annotated_types import Ge, Le

from engine.context import Context
from engine.digest import digest
from engine.engine import Engine
from engine.file import File
from engine.graph import Graph
from engine.node import node
from engine.registry import Registry
from engine.socket import Float, Int, Socket, Text

LOG: list[str] = []
"""Types of the nodes that were called since it was last cleared."""


GROUPS: list[int] = []
"""How many calls of `toy.scale` were on their way together, round by round."""

MADE: list[str] = []
"""Ways that `toy.climb` went a step further on, since it was last cleared."""


def mixed(*parts):
    """Eight characters that depend on all parts and on their order."""
    return hashlib.blake2b(repr(parts).encode(), digest_size=4).hexdigest()


@dataclass(frozen=True)
class Blob(Socket):
    """Known by content."""

    text: str
    weight: int = 100

    def nbytes(self):
        return self.weight


@dataclass(frozen=True)
class Wave(Socket):
    """Known by recipe."""

    by_value = False

    text: str
    weight: int = 100

    def nbytes(self):
        return self.weight


@dataclass(frozen=True, slots=True)
class Book(File):
    """A kind of file with a folder of its own."""

    kind: ClassVar[str] = "book"
    folder: ClassVar[str] = "books"
    suffixes: ClassVar[tuple[str, ...]] = (".txt",)


@dataclass(frozen=True, slots=True)
class Poem(File):
    """A text that mentions books: every word that is the name of one."""

    kind: ClassVar[str] = "poem"
    literal_counts: ClassVar[bool] = True
    books: tuple[Book, ...] = ()

    @classmethod
    def resolved(cls, files, literal):
        known = files.names(Book)
        books = tuple(files.find_mentioned(Book, word) for word in literal.split() if word in known)
        return cls(literal, Path(), digest("books", [[book.name, book.digest] for book in books]), books=books)

    @property
    def parts(self):
        return self.books


class Parts(NamedTuple):
    head: Blob
    tail: Wave


@node("toy.number", version=1)
def number(value: int = 0) -> Int:
    """A number."""
    LOG.append("toy.number")
    return Int(value)


@node("toy.load", version=1)
def load(source: File) -> Blob:
    """The content of a file."""
    LOG.append("toy.load")
    return Blob(source.read().decode())


@node("toy.recite", version=1)
def recite(poem: Poem) -> Blob:
    """A text with all that stands in the books that it mentions."""
    LOG.append("toy.recite")
    return Blob(mixed("recite", poem.name, *(book.read() for book in poem.books)))


@node("toy.blob", version=1)
def blob(text: str = "a", weight: Annotated[int, Ge(1)] = 100) -> Blob:
    """A blob."""
    LOG.append("toy.blob")
    return Blob(text, weight)


@node("toy.encode", version=1)
def encode(blob: Blob, weight: int = 100) -> Wave:
    """Blob to wave."""
    LOG.append("toy.encode")
    return Wave(mixed("encode", blob.text, weight), weight)


@node("toy.mix", version=1)
def mix(
    a: Wave,
    b: Wave | None = None,
    amount: Annotated[float, Ge(0), Le(1)] = 0.5,
    seed: int = 0,
    mode: Literal["add", "mul"] = "add",
) -> Wave:
    """Two waves, or one and nothing."""
    LOG.append("toy.mix")
    return Wave(mixed("mix", a.text, b and b.text, amount, seed, mode))


@node("toy.decode", version=1)
def decode(wave: Wave) -> Blob:
    """Wave to blob."""
    LOG.append("toy.decode")
    return Blob(mixed("decode", wave.text))


@node("toy.classify", version=1)
def classify(blob: Blob, classes: Annotated[int, Ge(1), Le(9)] = 2) -> Blob:
    """One of few blobs: different inputs often give the same."""
    LOG.append("toy.classify")
    return Blob(f"class {sum(blob.text.encode()) % classes}")


@node("toy.join", version=1)
def join(blobs: tuple[Blob, ...]) -> Blob:
    """Several blobs in order."""
    LOG.append("toy.join")
    return Blob(mixed("join", *(item.text for item in blobs)))


@node("toy.choose", version=1)
def choose(left: Blob | None = None, right: Blob | None = None) -> Blob:
    """One of two, and which."""
    LOG.append("toy.choose")
    return Blob(mixed("choose", left and left.text, right and right.text))


@node("toy.split", version=1)
def split(blob: Blob) -> Parts:
    """Two outputs, one of each kind."""
    LOG.append("toy.split")
    return Parts(Blob(blob.text[:2]), Wave(mixed("tail", blob.text)))


@node("toy.label", version=1)
def label(blob: Blob) -> Text:
    """The text of a blob."""
    LOG.append("toy.label")
    return Text(blob.text)


@node("toy.grid", version=1, gathers=True)
def grid(blobs: tuple[Blob, ...], columns: int, x_labels: list[str], y_labels: list[str]) -> Blob:
    """A sheet."""
    LOG.append("toy.grid")
    return Blob(mixed("grid", columns, x_labels, y_labels, *(item.text for item in blobs)))


def scale_many(calls):
    """Calls of `toy.scale`, each of one to three rounds, by the number that it scales by; others may join."""
    flying, count = {}, 0
    while calls or flying:
        flying |= {number: [call, 1 + int(call["by"].value) % 3] for number, call in enumerate(calls, count)}
        count += len(calls)
        GROUPS.append(len(flying))
        for waiting in flying.values():
            waiting[1] -= 1
        over = [number for number, (_, left) in flying.items() if not left]
        calls = yield {number: scale(**flying.pop(number)[0]) for number in over}


@node("toy.scale", version=1, many=scale_many)
def scale(by: Float, wave: Wave) -> Wave:
    """A wave times a number."""
    LOG.append("toy.scale")
    return Wave(mixed("scale", by.value, wave.text))


@node("toy.steps", version=1)
def steps(wave: Wave, count: int, context: Context) -> Wave:
    """Something that takes time and reports it."""
    LOG.append("toy.steps")
    for done in range(count):
        context.progress(done, count)
    return Wave(mixed("steps", wave.text, count))


def stop(wave, way):
    """What is known of a place on a way: where it began, and the way up to there."""
    return digest(wave.text, way)


def walked(word, wave, way, context):
    """A way taken step by step; what was reached at each is kept, and found again."""
    here, recalled = wave, 0
    for length in range(1, len(way) + 1):
        key = stop(wave, way[:length])
        found = context.recall(key)
        recalled += found is not None
        if found is None:
            found = Wave(mixed(word, here.text, way[length - 1]))
            context.keep(key, found, 1.0)
            MADE.append(way[:length])
        here = found
        context.progress(length, len(way))
    context.resume(recalled, len(way))
    return Wave(here.text)


@node("toy.climb", version=1)
def climb(wave: Wave, context: Context, way: str = "ab") -> Wave:
    """Goes on where it was before."""
    LOG.append("toy.climb")
    return walked("climb", wave, way, context)


@node("toy.model", version=1)
def model(name: str = "unet", size: Annotated[int, Ge(4)] = 200) -> Ref:
    """Refer to a model."""
    LOG.append("toy.model")
    return Ref(name, size)


@node("toy.patch", version=1)
def patch(model: Ref, name: str = "fox") -> Ref:
    """Put something on a model."""
    LOG.append("toy.patch")
    return replace(model, patches=(*model.patches, name))


@node("toy.through", version=1)
def through(model: Ref, wave: Wave, context: Context) -> Wave:
    """What a model makes of a wave."""
    LOG.append("toy.through")
    module = context.model(model)
    assert module.places() == {context.device}
    return Wave(mixed("through", module.name, wave.text))


MODELS = (model, patch, through)
PACK = (number, load, blob, encode, mix, decode, classify, join, choose, split, label, grid, scale, steps, recite)
PACK += (*MODELS, climb)
REGISTRY = Registry(PACK)


def graph(outputs, nodes, **more):
    """A graph document from `{id: (type, params, inputs)}`."""
    listed = {}
    for name, (type_, *rest) in nodes.items():
        params, inputs = (*rest, {}, {})[:2]
        listed[name] = {"type": type_, "params": params, "inputs": inputs}
    return Graph.parse({"format": "calotype/1", "nodes": listed, "outputs": outputs, **more})


def engine(*more, **options):
    """A strict engine over the pack."""
    return Engine(REGISTRY.with_nodes(*more) if more else REGISTRY, **{"strict": True, "memory": 1 << 30, **options})
