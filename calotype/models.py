"""The models that graphs can name: the embedded one, and what lies in the folders of each kind."""

from collections.abc import Iterator, Mapping
from functools import lru_cache
from operator import itemgetter
from pathlib import Path
from typing import Any, NamedTuple

from calotype.front import MODELS
from engine.content import Stamp, members, stamp
from engine.file import File, Files
from nodes.diffusion.recognition import recognise
from nodes.diffusion.tensors import LoadError
from nodes.files import PICKLES, CheckpointFile, ControlNetFile, EmbeddingFile, LoraFile, UpscaleFile, VaeFile

KINDS: Mapping[str, type[File]] = {
    "models": CheckpointFile,
    "loras": LoraFile,
    "embeddings": EmbeddingFile,
    "vae": VaeFile,
    "controlnet": ControlNetFile,
    "upscale": UpscaleFile,
}
"""What is listed, by the words of calotype.yaml."""
PICKLE = "a pickle, which is not loaded; docs/models.md says how it is converted"

UNITS = (("GB", 1e9), ("MB", 1e6), ("kB", 1e3))
REMEMBERED = 50_000
"""Files of which is remembered what they are."""


class Model(NamedTuple):
    """One file, or folder, that can be named, unless a problem says that it cannot.

    `kind` is one of KINDS, `what` it is by its tensors; `digest` is the sha256 in hex that it is
    known by, None where it would have to be read for it. Problems do not name the path.
    """

    kind: str
    name: str
    what: str
    bytes: int
    digest: str | None
    path: Path
    problems: tuple[str, ...]
    hidden_by: Path | None = None
    """The file that its name stands for instead."""

    @property
    def size(self) -> str:
        """How large it is, for people."""
        unit, size = next(((unit, size) for unit, size in UNITS if self.bytes >= size), UNITS[-1])
        return f"{self.bytes / size:.1f} {unit}"

    @property
    def note(self) -> str:
        """All that is wrong with it."""
        return "; ".join([*self.problems, *([f"hidden by {self.hidden_by}"] if self.hidden_by else [])])

    def document(self) -> dict[str, Any]:
        """As JSON values, without paths."""
        found = {**self._asdict(), "problems": list(self.problems)}
        return {name: value for name, value in found.items() if name not in ("path", "hidden_by")}


def models(files: Files, kind: str, *, digests: bool = False) -> Iterator[Model]:
    """Everything of a kind by name; with `digests`, files are read for them.

    Raises FileError where a folder holds too many files to be looked through.
    """
    for name, path in MODELS.items() if kind == "models" else ():
        yield _model(files, kind, name, path, digests=digests)
    listed = files.listed(KINDS[kind])
    for name, path in sorted(listed.all, key=itemgetter(0)):
        found = _model(files, kind, name, path, digests=digests)
        yield found if listed.first[name] == path else found._replace(hidden_by=listed.first[name])


def _model(files: Files, kind: str, name: str, path: Path, *, digests: bool) -> Model:
    try:
        stamps = tuple(stamp(member) for member in (members(str(path)) if path.is_dir() else [str(path)]))
        what, problems = _judged(kind, path, stamps)
        digest = files.digest(path) if digests else files.remembered(path)
    except OSError as error:
        return Model(kind, name, KINDS[kind].kind, 0, None, path, (f"cannot be read: {error.strerror}",))
    return Model(kind, name, what, sum(each[2] for each in stamps), digest.hex() if digest else None, path, problems)


@lru_cache(maxsize=REMEMBERED)
def _judged(kind: str, path: Path, stamps: tuple[Stamp, ...]) -> tuple[str, tuple[str, ...]]:  # noqa: ARG001
    """What a file is, and what is wrong with it; looked at again when its stamps are others."""
    said, its_folder = KINDS[kind].kind, KINDS[kind].folder
    if path.suffix in PICKLES:
        return said, (PICKLE,)
    try:
        what, folder = recognise(path, its_folder)
    except LoadError as error:
        return said, (str(error).removeprefix(f"{path}: ").replace(str(path), path.name),)
    if folder not in (None, its_folder):
        return what, (f"it lies among {its_folder}, and belongs into a folder for {folder}",)
    return what, ()
