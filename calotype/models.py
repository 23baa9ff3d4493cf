"""The models that graphs can name: the embedded one, and what lies in the folders of each kind."""

from collections.abc import Iterator, Mapping
from operator import itemgetter
from pathlib import Path
from typing import Any, NamedTuple

from calotype.front import MODELS
from engine.errors import FileChanged
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
PICKLE = "a pickle, which is not loaded; docs/models.md says how to convert it"


class Model(NamedTuple):
    """One file, or folder, that can be named, unless a problem says that it cannot.

    `kind` is one of KINDS, `what` it is by its tensors; `size` is in bytes, and `digest` the sha256 in hex that it is
    known by, None where it would have to be read for it. Problems do not name the path.
    """

    kind: str
    name: str
    what: str
    size: int
    digest: str | None
    path: Path
    problems: tuple[str, ...]
    hidden_by: Path | None = None
    """The file that its name stands for instead."""

    @property
    def written_size(self) -> str:
        """The size for people."""
        return f"{self.size / 1e9:.2f} GB" if self.size >= 1e9 else f"{self.size / 1e6:.1f} MB"

    @property
    def note(self) -> str:
        """All that is wrong with it."""
        return "; ".join([*self.problems, *([f"hidden by {self.hidden_by}"] if self.hidden_by else [])])

    def document(self) -> dict[str, Any]:
        """As JSON values."""
        places = {"path": str(self.path), "hidden_by": str(self.hidden_by) if self.hidden_by else None}
        return {**self._asdict(), **places, "problems": list(self.problems)}


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
        what, problems = _judged(KINDS[kind], path)
        size = sum(held.stat().st_size for held in (path.rglob("*") if path.is_dir() else [path]) if held.is_file())
        digest = files.digest(path) if digests else files.remembered(path)
    except (OSError, FileChanged) as error:
        said = str(error).removeprefix(f"{path}: ") if isinstance(error, FileChanged) else error.strerror
        return Model(kind, name, KINDS[kind].kind, 0, None, path, (f"cannot be read: {said}",))
    return Model(kind, name, what, size, digest.hex() if digest else None, path, problems)


def _judged(kind: type[File], path: Path) -> tuple[str, tuple[str, ...]]:
    """What a file is, and what is wrong with it."""
    if path.suffix in PICKLES:
        return kind.kind, (PICKLE,)
    try:
        what, folder = recognise(path)
    except LoadError as error:
        return kind.kind, (str(error).removeprefix(f"{path}: ").replace(str(path), path.name),)
    if folder is not None and folder != kind.folder:
        return what, (f"it lies among {kind.folder}, and belongs into a folder for {folder}",)
    return what, ()
