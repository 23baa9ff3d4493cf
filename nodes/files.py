"""Kinds of files that nodes take, and texts that mention files: known by all that they mention."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import ClassVar, NamedTuple, Self, TypeVar

from engine.digest import Digest, digest
from engine.errors import FileError
from engine.file import File, Files, ModelFile
from nodes import style
from nodes.diffusion import hub, prompt
from nodes.style import Style

K = TypeVar("K", bound=File)

PICKLES = (".pt", ".bin", ".ckpt", ".pth")
"""Endings of files that are found, so that whoever names them is told how to convert them."""


@dataclass(frozen=True, slots=True)
class HubFile(ModelFile):
    """A model that may also be named by its id on the Hugging Face hub, whose files are in the hub's cache here."""

    @classmethod
    def elsewhere(cls, name: str) -> tuple[Path, Path] | None:
        """The snapshot in the cache; its links lead to blobs that belong to the same model."""
        path = hub.cached(name)
        if path is None:
            return None
        return path, path.parents[1] if path.parent.name == "snapshots" else path

    @classmethod
    def remedy(cls, name: str) -> str:
        """How a model of the hub comes into its cache."""
        if not hub.is_name(name):
            return ""
        return f"nor is it a model in the local cache of the hub; where it is one of the hub's: hf download {name}"


@dataclass(frozen=True, slots=True)
class CheckpointFile(HubFile):
    """A model: a file or a folder in diffusers' layout, by its name in a folder `checkpoints`, by path or hub id."""

    folder: ClassVar[str] = "checkpoints"
    suffixes: ClassVar[tuple[str, ...]] = (".safetensors", *PICKLES)


@dataclass(frozen=True, slots=True)
class LoraFile(File):
    """A LoRA, by its name in a folder `loras` or by its path."""

    kind: ClassVar[str] = "lora"
    folder: ClassVar[str] = "loras"
    suffixes: ClassVar[tuple[str, ...]] = (".safetensors", *PICKLES)


@dataclass(frozen=True, slots=True)
class EmbeddingFile(File):
    """An embedding made by textual inversion, by its name in a folder `embeddings` or by its path."""

    kind: ClassVar[str] = "embedding"
    folder: ClassVar[str] = "embeddings"
    suffixes: ClassVar[tuple[str, ...]] = (".safetensors", *PICKLES)


@dataclass(frozen=True, slots=True)
class VaeFile(HubFile):
    """A VAE, or that of a model: a file or a folder, by its name in a folder `vae`, by its path or by its hub id."""

    kind: ClassVar[str] = "VAE"
    folder: ClassVar[str] = "vae"
    suffixes: ClassVar[tuple[str, ...]] = (".safetensors", *PICKLES)


@dataclass(frozen=True, slots=True)
class ControlNetFile(HubFile):
    """A ControlNet: a file or a folder, by its name in a folder `controlnet`, by its path or by its hub id."""

    kind: ClassVar[str] = "ControlNet"
    folder: ClassVar[str] = "controlnet"
    suffixes: ClassVar[tuple[str, ...]] = (".safetensors", *PICKLES)


@dataclass(frozen=True, slots=True)
class UpscaleFile(File):
    """A network that enlarges pictures, by its name in a folder `upscale` or by its path."""

    kind: ClassVar[str] = "upscaler"
    folder: ClassVar[str] = "upscale"
    suffixes: ClassVar[tuple[str, ...]] = (".safetensors", *PICKLES)


class Mentioned(NamedTuple):
    """The files that texts mention, by the names that stand in them."""

    loras: Mapping[str, LoraFile]
    embeddings: Mapping[str, EmbeddingFile]

    @property
    def parts(self) -> tuple[File, ...]:
        """All of them."""
        return (*self.loras.values(), *self.embeddings.values())

    @property
    def digest(self) -> Digest:
        """Changes when a file that is mentioned changes, comes or goes."""
        named = [{name: file.digest for name, file in sorted(files.items())} for files in self]
        return digest("mentioned", *named)


NOTHING = Mentioned({}, {})


@dataclass(frozen=True, slots=True)
class PromptText(File):
    """A prompt, and the LoRAs and embeddings that it mentions: `<lora:name:1>`, `embedding:name`, or the bare name.

    A LoRA, and an embedding named outright, must be there; an embedding's bare name is only a word where it is not.
    The digest covers the files alone, as the text is part of the key by itself.
    """

    kind: ClassVar[str] = "text"
    literal_counts: ClassVar[bool] = True
    mentioned: Mentioned = NOTHING

    @classmethod
    def resolved(cls, files: Files, literal: str) -> Self:
        """Find everything that the text mentions. Raises FileError."""
        found = _mentioned(files, (literal,), strict=True)
        return cls(literal, Path(), found.digest, _verified(found.parts), mentioned=found)

    @classmethod
    def plain(cls, text: str) -> Self:
        """A text that mentions no files."""
        return cls(text, Path(), NOTHING.digest)

    @property
    def text(self) -> str:
        """The prompt as it was written."""
        return self.name

    @property
    def loras(self) -> Mapping[str, LoraFile]:
        """The LoRAs in it by name."""
        return self.mentioned.loras

    @property
    def embeddings(self) -> Mapping[str, EmbeddingFile]:
        """The embeddings that may occur in it by name; the tokens decide whether they do."""
        return self.mentioned.embeddings

    @property
    def parts(self) -> tuple[File, ...]:
        """The files that it mentions."""
        return self.mentioned.parts


NO_TEXT = PromptText.plain("")
"""The empty prompt."""


@dataclass(frozen=True, slots=True)
class Styles(File):
    """A table of styles as the WebUI keeps it: CSV with the columns name, prompt and negative_prompt.

    The digest covers the table and whatever its texts mention; what of that is missing counts only when a style with
    it is used. A table that is not there has no styles, and `missing` says where it was looked for.
    """

    kind: ClassVar[str] = "table of styles"
    styles: Mapping[str, Style] = field(default_factory=dict)
    mentioned: Mentioned = NOTHING
    missing: str = ""

    @classmethod
    def resolved(cls, files: Files, literal: str) -> Self:
        """Read the table, and find what it mentions. Raises FileError for something that is no such table."""
        try:
            table = files.find(cls, literal)
        except FileError as error:
            return cls(literal, Path(), digest("missing"), missing=str(error))
        styles = _styles(table)
        texts = tuple(text for each in styles.values() for text in each)
        found = _mentioned(files, texts, strict=False)
        value = digest("styles", table.digest, found.digest)
        verify = _verified((table, *found.parts))
        return replace(table, digest=value, verify=verify, styles=styles, mentioned=found)

    @property
    def loras(self) -> Mapping[str, LoraFile]:
        """The LoRAs in its texts by name, as far as they are there."""
        return self.mentioned.loras

    @property
    def embeddings(self) -> Mapping[str, EmbeddingFile]:
        """The embeddings that may occur in its texts by name."""
        return self.mentioned.embeddings

    @property
    def parts(self) -> tuple[File, ...]:
        """The table, and the files that it mentions."""
        return self.mentioned.parts if self.missing else (self, *self.mentioned.parts)


STYLES = Styles("styles.csv", Path(), digest("missing"), missing="no table of styles is given")
"""The table that is looked for where none is named."""


def _mentioned(files: Files, texts: tuple[str, ...], *, strict: bool) -> Mentioned:
    """Find what texts mention; without `strict`, leave out what is named outright and not there."""
    loras, outright, bare = _names(texts, files.listed(EmbeddingFile).last)
    return Mentioned(
        _found(files, LoraFile, loras, strict=strict),
        _found(files, EmbeddingFile, tuple(dict.fromkeys((*outright, *bare))), strict=strict),
    )


@lru_cache(maxsize=256)
def _names(texts: tuple[str, ...], known: frozenset[str]) -> tuple[list[str], list[str], list[str]]:
    """Names of LoRAs, of embeddings that are named outright, and of known embeddings, each once."""
    said = [prompt.mentions(text) for text in texts]
    loras = dict.fromkeys(name for each in said for name in each.loras)
    outright = dict.fromkeys(name for each in said for name in each.embeddings)
    bare = dict.fromkeys(name for text in texts for name in prompt.embedding_names(text, sorted(known)))
    return list(loras), list(outright), list(bare)


def _found(files: Files, kind: type[K], names: Iterable[str], *, strict: bool) -> dict[str, K]:
    found = {}
    for name in names:
        try:
            found[name] = files.find_mentioned(kind, name)
        except FileError:
            if strict:
                raise
    return found


def _verified(parts: tuple[File, ...]) -> Callable[[], None]:
    def verify() -> None:
        for part in parts:
            part.verify()

    return verify


def _styles(table: Styles) -> Mapping[str, Style]:
    try:
        return style.read(table.read())
    except style.StyleError as error:
        raise FileError(f"{table.name!r}, {error} ({table.path})") from error
