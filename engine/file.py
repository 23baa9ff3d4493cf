"""Files as parameters: named by people, known to the cache by the digest of their content."""

import difflib
import hashlib
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from engine.digest import Digest, digest
from engine.errors import FileChanged, FileError

RACY_NS = 2_000_000_000
"""A file touched less than this before it was digested may change again within one tick of its clock."""


@dataclass(frozen=True, slots=True)
class File:
    """A file parameter as a node receives it: the name that was written, where it lies, the sha256 that was planned."""

    kind: ClassVar[str] = "file"
    name: str
    path: Path
    digest: Digest
    verify: Callable[[], None] = field(default=lambda: None, compare=False, repr=False)
    """Raises FileChanged unless the path still holds what was planned: call it after reading in other ways."""

    def read(self) -> bytes:
        """The content. Raises FileChanged when it is not what the plan digested."""
        try:
            data = self.path.read_bytes()
        except OSError as error:
            raise FileChanged(f"{self.name}: {error.strerror} ({self.path})") from error
        if hashlib.sha256(data).digest() != self.digest:
            raise FileChanged(f"{self.name} changed while the graph ran ({self.path})")
        return data


@dataclass(frozen=True, slots=True)
class ModelFile(File):
    """A model: one file, or a folder in diffusers' layout. Its digest covers the relevant files of the folder."""

    kind: ClassVar[str] = "model"


MODEL_SUFFIXES = frozenset({".json", ".safetensors", ".txt", ".model"})

Stamp = tuple[str, int, int, int, int]
"""(path, inode, size, mtime in ns, ctime in ns): what a remembered digest is valid for."""


def stamp(path: str) -> Stamp:
    """What the file system says about `path` now."""
    stat = os.stat(path)  # noqa: PTH116  paths are text here, for speed
    return (path, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)


class DigestMemory:
    """Digests of files that did not change since; a subclass may keep them over restarts."""

    def __init__(self) -> None:
        self._known: dict[Stamp, Digest] = {}

    def get(self, stamp: Stamp) -> Digest | None:
        """The remembered digest."""
        return self._known.get(stamp)

    def put(self, stamp: Stamp, value: Digest) -> None:
        """Remember a digest."""
        self._known[stamp] = value


class Files:
    """Finds files by name and digests their content.

    `roots` are searched in order; `named` gives fixed names to places (the embedded model); `schemes` find what names
    such as `blob:...` stand for; with `anywhere`, absolute paths and paths that leave the roots are allowed too, as a
    person at the command line expects. Without it, nothing outside of the roots is read, through links neither.
    """

    def __init__(
        self,
        roots: Iterable[Path] = (),
        *,
        named: Mapping[str, Path] | None = None,
        schemes: Mapping[str, Callable[[str], Path | None]] | None = None,
        anywhere: bool = True,
    ) -> None:
        self.roots = tuple(Path(root) for root in roots)
        self.named = dict(named or {})
        self.schemes = dict(schemes or {})
        self.anywhere = anywhere
        self._memory = DigestMemory()
        self._folders: dict[tuple[tuple[str, Digest], ...], Digest] = {}
        self._places: dict[Digest, Path] = {}
        self.aside: Callable[[], AbstractContextManager[None]] = nullcontext
        """Gives way to other threads while a file is digested, which may take a while."""

    def remember_in(self, memory: DigestMemory) -> None:
        """Keep digests of unchanged files there from now on."""
        self._memory = memory

    def search(self, folders: Iterable[Path]) -> None:
        """Look in these folders too, before the others."""
        self.roots = (*folders, *self.roots)

    def resolve(self, kind: type[File], name: str) -> File:
        """The file that `name` stands for, with the digest of what it holds now. Raises FileError."""
        path = self._find(kind, name)
        try:
            value = self._digest_any(path)
        except OSError as error:
            raise FileError(f"{name!r} cannot be read: {error.strerror} ({path})") from error
        self._places[value] = path
        return kind(name, path, value, lambda: self.verify(path, value))

    def locate(self, value: Digest) -> Path:
        """Where a resolved digest was last seen. Raises FileChanged when it is not there any more."""
        path = self._places.get(value)
        if path is None:
            raise FileChanged(f"no file with digest {value.hex()[:12]} has been resolved")
        self.verify(path, value)
        return path

    def verify(self, path: Path, value: Digest) -> None:
        """Raise FileChanged unless `path` still holds what `value` says."""
        try:
            now = self._digest_any(path)
        except OSError as error:
            raise FileChanged(f"{path}: {error.strerror}") from error
        if now != value:
            raise FileChanged(f"{path} changed while the graph ran")

    def _find(self, kind: type[File], name: str) -> Path:
        if not name:
            raise FileError("'' is not a file name")
        if name in self.named and kind is ModelFile:
            return self.named[name]
        scheme, colon, rest = name.partition(":")
        if colon and scheme in self.schemes:
            found = self.schemes[scheme](rest)
            if found is None:
                raise FileError(f"{name!r} is not there (any more); upload it again")
            return found
        try:
            for candidate in self._candidates(name):
                if candidate.is_file() or (kind is ModelFile and candidate.is_dir()):
                    return candidate
        except (OSError, ValueError, RuntimeError) as error:  # too long, a null byte, no such home, a circle of links
            raise FileError(f"{name!r} is not a file name: {error}") from error
        raise FileError(self._not_found(kind, name))

    def _candidates(self, name: str) -> Iterable[Path]:
        for root in self.roots:
            candidate = root / name
            if self.anywhere or self._within(root.resolve(), candidate):
                yield candidate
        if self.anywhere:
            yield Path(name).expanduser()

    def _within(self, root: Path, candidate: Path) -> bool:
        """Whether a file, or everything in a folder, lies under `root` once all links are followed."""
        if not candidate.resolve().is_relative_to(root):
            return False
        if not candidate.is_dir():
            return True
        members = _members(str(candidate), {os.path.realpath(candidate)})
        return all(Path(member).resolve().is_relative_to(root) for member in members)

    def _not_found(self, kind: type[File], name: str) -> str:
        known = [*self.named] if kind is ModelFile else []
        for root in self.roots:
            known += sorted(entry.name for entry in root.iterdir()) if root.is_dir() else []
        near = difflib.get_close_matches(name, known, 1)
        searched = ", ".join(str(root) for root in self.roots) or "the current folder"
        hint = f", did you mean {near[0]!r}?" if near else f" (searched {searched})"
        return f"no {kind.kind} {name!r}{hint}"

    def _digest_any(self, path: Path) -> Digest:
        return self._digest_folder(str(path)) if path.is_dir() else self._digest(str(path))

    def _digest(self, path: str) -> Digest:
        before, began = stamp(path), time.time_ns()
        known = self._memory.get(before)
        if known is not None:
            return known
        with self.aside(), open(path, "rb") as stream:  # noqa: PTH123  paths are text here, for speed
            value = hashlib.file_digest(stream, "sha256").digest()
        quiet = began - max(before[3], before[4]) > RACY_NS
        if quiet and stamp(path) == before:
            self._memory.put(before, value)
        return value

    def _digest_folder(self, path: str) -> Digest:
        members = sorted(_members(path, {os.path.realpath(path)}))
        known = tuple((member[len(path) + 1 :], self._digest(member)) for member in members)
        found = self._folders.get(known)
        if found is None:
            found = self._folders[known] = digest("folder", known)
        return found


def _members(folder: str, seen: set[str]) -> Iterator[str]:
    """The files that make a model, also behind links, as the loaders see them; a circle of links is walked once."""
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_file():
                if os.path.splitext(entry.name)[1] in MODEL_SUFFIXES:  # noqa: PTH122  paths are text here, for speed
                    yield entry.path
            elif entry.is_dir() and not (entry.is_symlink() and _seen(entry.path, seen)):
                yield from _members(entry.path, seen)


def _seen(link: str, seen: set[str]) -> bool:
    real = os.path.realpath(link)
    known = real in seen
    seen.add(real)
    return known
