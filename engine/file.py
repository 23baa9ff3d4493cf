"""Files as parameters: named by people, known to the cache by the digest of their content."""

import difflib
import hashlib
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path, PurePosixPath
from typing import ClassVar, Self, TypeVar

from engine.digest import Digest, digest
from engine.errors import FileChanged, FileError

RACY_NS = 2_000_000_000
"""A file touched less than this before it was digested may change again within one tick of its clock."""

MAX_LISTED = 20_000
"""Files that the folders of one kind may hold, so that looking for a name stays quick."""


@dataclass(frozen=True, slots=True)
class File:
    """A file parameter as a node receives it: the name that was written, where it lies, the sha256 that was planned.

    A subclass is a kind of file with places of its own, or says itself (`resolved`) what its literals stand for.
    """

    kind: ClassVar[str] = "file"
    folder: ClassVar[str] = ""
    """Subfolder of the roots in which files of this kind are looked for first."""
    suffixes: ClassVar[tuple[str, ...]] = ()
    """Endings that a name may leave out, the one that counts first."""
    folders: ClassVar[bool] = False
    """Whether a whole folder may stand for a file."""
    literal_counts: ClassVar[bool] = False
    """Whether the literal enters the key beside the digest: a text that mentions files does, a name does not."""
    name: str
    path: Path
    digest: Digest
    verify: Callable[[], None] = field(default=lambda: None, compare=False, repr=False)
    """Raises FileChanged unless the path still holds what was planned: call it after reading in other ways."""
    root: Path | None = field(default=None, compare=False, repr=False)
    """The folder within which its name led to it; None where it has a place of its own."""

    @classmethod
    def resolved(cls, files: "Files", literal: str) -> Self:
        """What a literal stands for now, its digest covering everything that counts. Raises FileError."""
        return files.find(cls, literal)

    @property
    def parts(self) -> "tuple[File, ...]":
        """The files on disk that the literal led to: this one, or all that it mentions."""
        return (self,)

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
    folders: ClassVar[bool] = True


F = TypeVar("F", bound=File)

Place = tuple[Path, Path]
"""(path, the root that it lies in)."""

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
        self.roots = tuple(dict.fromkeys(Path(root) for root in roots))
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
        self.roots = tuple(dict.fromkeys((*folders, *self.roots)))

    def resolve(self, kind: type[F], literal: str) -> F:
        """The file that a literal stands for, with the digest of what it holds now. Raises FileError."""
        return kind.resolved(self, literal)

    def find(self, kind: type[F], name: str) -> F:
        """The file of that name: in the folders of its kind first, then by its plain path. Raises FileError."""
        return self._file(kind, name, *self._find(kind, name))

    def find_mentioned(self, kind: type[F], name: str) -> F:
        """The file that a text mentions by name: in the folders of its kind, and nowhere else. Raises FileError."""
        path = PurePosixPath(name)
        if not path.name:
            raise FileError(f"{name!r} is not the name of a {kind.kind}")
        if path.is_absolute() or ".." in path.parts:
            raise FileError(f"{name!r} leads out of the folder {kind.folder}/; a text may only mention what lies in it")
        return self._file(kind, name, *self._searched(kind, name, self._in_folders(kind, name)))

    def names(self, kind: type[File]) -> Mapping[str, Path]:
        """Everything in the folders of a kind by name: without its ending, `sub/name` in a subfolder, first root first.

        Raises FileError where there is more than MAX_LISTED.
        """
        found: dict[str, Path] = {}
        for root in self.roots if kind.folder else ():
            top = root / kind.folder
            if self._inside(root, top):
                listed = self._listed(kind, root, str(top), {os.path.realpath(top)})
                for path in sorted(listed, key=lambda path: _rank(kind, path)):
                    found.setdefault(_bare_name(kind, path[len(str(top)) + 1 :]), Path(path))
        return found

    def _file(self, kind: type[F], name: str, path: Path, root: Path | None) -> F:
        try:
            value = self._digest_any(path)
        except OSError as error:
            raise FileError(f"{name!r} cannot be read: {error.strerror} ({path})") from error
        self._places[value] = path
        within = root is not None and path.is_relative_to(root) and not PurePosixPath(name).is_absolute()
        return kind(name, path, value, lambda: self.verify(path, value), root if within else None)

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

    def _find(self, kind: type[File], name: str) -> tuple[Path, Path | None]:
        """Where a file lies, and the root within which it was found."""
        if not name:
            raise FileError("'' is not a file name")
        if name in self.named and kind.folders:
            return self.named[name], None
        scheme, colon, rest = name.partition(":")
        if colon and scheme in self.schemes:
            found = self.schemes[scheme](rest)
            if found is None:
                raise FileError(f"{name!r} is not there (any more); upload it again")
            return found, None
        return self._searched(kind, name, chain(self._in_folders(kind, name), self._by_path(kind, name)))

    def _searched(self, kind: type[File], name: str, places: Iterable[Place]) -> tuple[Path, Path | None]:
        """The first of the places that holds a file, else the one file of that name further down in the folders."""
        try:
            for path, root in places:
                if path.is_file() or (kind.folders and path.is_dir()):
                    return path, root
        except (OSError, ValueError, RuntimeError) as error:  # too long, a null byte, no such home, a circle of links
            raise FileError(f"{name!r} is not a file name: {error}") from error
        below = {longer: path for longer, path in self.names(kind).items() if PurePosixPath(longer).name == name}
        if not below:
            raise FileError(self._not_found(kind, name))
        if len(below) > 1:
            raise FileError(f"{len(below)} files are called {name!r}: write {' or '.join(sorted(below)[:3])}")
        path = next(iter(below.values()))
        return path, next(root for root in self.roots if path.is_relative_to(root / kind.folder))

    def _in_folders(self, kind: type[File], name: str) -> Iterator[Place]:
        for root in self.roots if kind.folder else ():
            yield from self._placed(kind, root, root / kind.folder / name)

    def _by_path(self, kind: type[File], name: str) -> Iterator[Place]:
        for root in self.roots:
            yield from self._placed(kind, root, root / name)
        if self.anywhere:
            yield from self._placed(kind, Path(), Path(name).expanduser())

    def _placed(self, kind: type[File], root: Path, path: Path) -> Iterator[Place]:
        """A path, and what it may be short for, as far as they may be read."""
        for suffix in ("", *kind.suffixes):
            candidate = path.with_name(path.name + suffix) if suffix and path.name else path
            if self._allowed(root, candidate):
                yield candidate, root

    def _allowed(self, root: Path, candidate: Path) -> bool:
        return self.anywhere or self._within(root.resolve(), candidate)

    def _listed(self, kind: type[File], root: Path, folder: str, seen: set[str]) -> Iterator[str]:
        """Paths of the files of a kind within a folder, or of the folders in it that stand for one."""
        for entry in _entries(folder):
            if entry.is_symlink() and not self._inside(root, Path(entry.path)):
                continue
            if entry.is_dir() and not kind.folders:
                if not _seen(entry.path, seen):
                    yield from self._listed(kind, root, entry.path, seen)
            elif entry.is_dir() or entry.name.endswith(kind.suffixes):
                seen.add(entry.path)
                if len(seen) > MAX_LISTED:
                    raise FileError(f"{root / kind.folder} holds more than {MAX_LISTED} files; split it into roots")
                yield entry.path

    def _inside(self, root: Path, path: Path) -> bool:
        """Whether a path itself, once all links are followed, may be looked at."""
        if self.anywhere:
            return True
        try:
            return path.resolve().is_relative_to(root.resolve())
        except (OSError, RuntimeError):  # a circle of links
            return False

    def _within(self, root: Path, candidate: Path) -> bool:
        """Whether a file, or everything in a folder, lies under `root` once all links are followed."""
        if not candidate.resolve().is_relative_to(root):
            return False
        if not candidate.is_dir():
            return True
        members = _members(str(candidate), {os.path.realpath(candidate)})
        return all(Path(member).resolve().is_relative_to(root) for member in members)

    def _not_found(self, kind: type[File], name: str) -> str:
        known = [*self.named] if kind.folders else []
        known += self.names(kind)
        for root in self.roots:
            known += sorted(entry.name for entry in root.iterdir()) if root.is_dir() else []
        near = difflib.get_close_matches(name, known, 1)
        searched = ", ".join(str(root / kind.folder) for root in self.roots) or "the current folder"
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


def _entries(folder: str) -> list[os.DirEntry[str]]:
    """What can be reached in a folder; nothing where there is none."""
    try:
        with os.scandir(folder) as entries:
            return [entry for entry in entries if _there(entry)]
    except OSError:
        return []


def _there(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_file() or entry.is_dir()
    except OSError:  # a circle of links
        return False


def _rank(kind: type[File], path: str) -> tuple[int, str]:
    """Endings that count come first, then the alphabet."""
    return next((rank for rank, suffix in enumerate(kind.suffixes) if path.endswith(suffix)), 0), path


def _bare_name(kind: type[File], name: str) -> str:
    suffix = next((suffix for suffix in kind.suffixes if name.endswith(suffix)), "")
    return name.removesuffix(suffix)


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
