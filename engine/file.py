"""Files as parameters: named by people, known to the cache by the digest of their content."""

import difflib
import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from pathlib import Path, PurePosixPath
from types import MappingProxyType
from typing import ClassVar, NamedTuple, Self, TypeVar

from engine.content import Contents, members
from engine.digest import Digest
from engine.errors import FileChanged, FileError
from engine.listing import Listings, TooMany, Top, Visit, named_in


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
    marks: ClassVar[frozenset[str]] = frozenset()
    """A whole folder may stand for a file of this kind if it holds a file of one of these names."""
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

    @classmethod
    def elsewhere(cls, name: str) -> "tuple[Path, Path] | None":  # noqa: ARG003  a subclass says
        """Where a name leads that no folder has, and the folder that nothing there may lead out of; None: nowhere."""
        return None

    @classmethod
    def remedy(cls, name: str) -> str:  # noqa: ARG003  a subclass says
        """What else there is to say to somebody whose name leads nowhere."""
        return ""

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
    marks: ClassVar[frozenset[str]] = frozenset({"model_index.json", "config.json"})


F = TypeVar("F", bound=File)

Place = tuple[Path, Path | None]
"""(path, the root within which its name led to it; None where it has a place of its own)."""


class Folder(NamedTuple):
    """A folder of files of one kind, what nothing in it may lead out of, and the root that it belongs to, if any."""

    path: Path
    within: Path
    root: Path | None


class Listed(NamedTuple):
    """The files in all folders of a kind: every one, the one that each name stands for, the last parts of names."""

    all: Sequence[tuple[str, Path]]
    first: Mapping[str, Path]
    last: frozenset[str]


class Files(Contents):
    """Finds files by name and digests their content.

    `roots` are searched in order, then `places`: more folders of files of a kind, by the `folder` of the kind. A root
    may be a single file, which is found by its own name. `named` gives fixed names to models (the embedded one);
    `schemes` find what names such as `blob:...` stand for. With `anywhere`, absolute paths and paths that leave the
    roots are allowed too, as a person at the command line expects. Without it, nothing outside of roots and places is
    read, through links neither: what is found in one of them may not lead out of it. With `elsewhere`, a kind of file
    may know of names that no folder has.
    """

    def __init__(
        self,
        roots: Iterable[Path] = (),
        *,
        places: Mapping[str, Iterable[Path]] | None = None,
        named: Mapping[str, Path] | None = None,
        schemes: Mapping[str, Callable[[str], Path | None]] | None = None,
        anywhere: bool = True,
        elsewhere: bool = True,
    ) -> None:
        super().__init__()
        self.roots = tuple(dict.fromkeys(Path(root) for root in roots))
        self.places = {folder: tuple(dict.fromkeys(paths)) for folder, paths in (places or {}).items()}
        self.named = dict(named or {})
        self.schemes = dict(schemes or {})
        self.anywhere = anywhere
        self.elsewhere = elsewhere
        self._listings = Listings()
        self._listed: dict[type[File], tuple[Sequence[Sequence[Visit]], Listed]] = {}

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
        found = self._searched(kind, name, self._in_folders(kind, name))
        if found is None:
            raise FileError(self._not_found(kind, name))
        return self._file(kind, name, *found)

    def names(self, kind: type[File]) -> Mapping[str, Path]:
        """Everything in the folders of a kind by name: without its ending, `sub/name` in a subfolder, first root first.

        Raises FileError where there is more than MAX_LISTED.
        """
        return self.listed(kind).first

    def listed(self, kind: type[File]) -> Listed:
        """Everything in the folders of a kind, first root first, with what is hidden by another file of its name.

        What has not changed since the last look is not looked through again. Raises FileError as `names` does.
        """
        tops = list(self._tops(kind))
        try:
            visits = [tuple(self._listings.visits(top, kind.marks)) for top in tops]
            known = self._listed.get(kind)
            if known is None or known[0] != visits:
                names = [named_in(top.folder, held, kind.suffixes) for top, held in zip(tops, visits, strict=True)]
                known = self._listed[kind] = visits, _listed(chain.from_iterable(names))
        except TooMany as error:
            raise FileError(f"{error}; split it into several") from None
        return known[1]

    def _folders_of(self, kind: type[File]) -> list[Folder]:
        """The folders in which the files of a kind lie, the first one first."""
        if not kind.folder:
            return []
        own = [Folder(root / kind.folder, root, root) for root in self.roots]
        own += [Folder(place, place, None) for place in self.places.get(kind.folder, ())]
        return list({folder.path: folder for folder in reversed(own)}.values())[::-1]

    def _tops(self, kind: type[File]) -> Iterator[Top]:
        """The folders of a kind to look through, but for what lies in them and is a folder of some kind itself."""
        apart = {str(root / word) for root in self.roots for word in self.places}
        apart.update(str(place) for places in self.places.values() for place in places)
        for folder, within, _ in self._folders_of(kind):
            if self._inside(within, folder):
                yield Top(str(folder), partial(self._inside, within), frozenset(apart))

    def _file(self, kind: type[F], name: str, path: Path, root: Path | None) -> F:
        try:
            value = self.digest(path)
        except OSError as error:
            raise FileError(f"{name!r} cannot be read: {error.strerror} ({path})") from error
        self.noted(path, value)
        within = root is not None and path.is_relative_to(root) and not PurePosixPath(name).is_absolute()
        return kind(name, path, value, lambda: self.verify(path, value), root if within else None)

    def _find(self, kind: type[File], name: str) -> tuple[Path, Path | None]:
        """Where a file lies, and the root within which it was found."""
        if not name:
            raise FileError("'' is not a file name")
        if name in self.named and kind.marks:
            return self.named[name], None
        scheme, colon, rest = name.partition(":")
        if colon and scheme in self.schemes:
            found = self.schemes[scheme](rest)
            if found is None:
                raise FileError(f"{name!r} is not there (any more); upload it again")
            return found, None
        places = chain(self._in_folders(kind, name), self._by_path(kind, name))
        place = self._searched(kind, name, places) or self._elsewhere(kind, name)
        if place is None:
            places = chain(self._in_folders(kind, name), self._by_path(kind, name))
            raise FileError(_unmarked(kind, name, places) or self._not_found(kind, name))
        return place

    def _searched(self, kind: type[File], name: str, places: Iterable[Place]) -> Place | None:
        """The first of the places that holds a file, else the one file of that name further down in the folders."""
        try:
            for path, root in places:
                if path.is_file() or _stands(kind, path):
                    return path, root
        except (OSError, ValueError, RuntimeError) as error:  # too long, a null byte, no such home, a circle of links
            raise FileError(f"{name!r} is not a file name: {error}") from error
        listed = self.listed(kind)
        if name not in listed.last:
            return None
        below = {longer: path for longer, path in listed.first.items() if longer.endswith(f"/{name}")}
        if not below:  # it came just now
            return None
        if len(below) > 1:
            raise FileError(f"{len(below)} files are called {name!r}: write {' or '.join(sorted(below)[:3])}")
        path = next(iter(below.values()))
        return path, next(each.root for each in self._folders_of(kind) if path.is_relative_to(each.path))

    def _in_folders(self, kind: type[File], name: str) -> Iterator[Place]:
        for folder in self._folders_of(kind):
            for path in self._placed(kind, folder.within, folder.path / name):
                yield path, folder.root

    def _by_path(self, kind: type[File], name: str) -> Iterator[Place]:
        for root in self.roots:
            if root.is_file():
                yield from [(root, root)] if root.name == name else []
                continue
            for path in self._placed(kind, root, root / name):
                yield path, root
        if self.anywhere:
            for path in self._placed(kind, Path(), Path(name).expanduser()):
                yield path, Path()

    def _elsewhere(self, kind: type[File], name: str) -> Place | None:
        """What a name stands for that is in no folder."""
        path, within = (kind.elsewhere(name) if self.elsewhere else None) or (None, Path())
        return (path, None) if path is not None and self._allowed(kind, within, path) else None

    def _placed(self, kind: type[File], within: Path, path: Path) -> Iterator[Path]:
        """A path, and what it may be short for, as far as they may be read."""
        for suffix in ("", *kind.suffixes):
            candidate = path.with_name(path.name + suffix) if suffix and path.name else path
            if self._allowed(kind, within, candidate):
                yield candidate

    def _allowed(self, kind: type[File], within: Path, candidate: Path) -> bool:
        return self.anywhere or _within(kind, within.resolve(), candidate)

    def _inside(self, root: Path, path: Path | str) -> bool:
        """Whether a path itself, once all links are followed, may be looked at."""
        if self.anywhere:
            return True
        try:
            return Path(path).resolve().is_relative_to(root.resolve())
        except (OSError, RuntimeError):  # a circle of links
            return False

    def _not_found(self, kind: type[File], name: str) -> str:
        known = [*self.named] if kind.marks else []
        known += self.names(kind)
        for root in self.roots:
            known += sorted(entry.name for entry in root.iterdir()) if root.is_dir() else []
        near = difflib.get_close_matches(name, known, 1)
        folders = [folder.path for folder in self._folders_of(kind)] or self.roots
        searched = ", ".join(map(str, folders)) or "the current folder"
        hint = f", did you mean {near[0]!r}?" if near else f" (searched {searched})"
        said = kind.remedy(name) if self.elsewhere else ""
        return f"no {kind.kind} {name!r}{hint}{'; ' if said else ''}{said}"


def _stands(kind: type[File], folder: Path) -> bool:
    """Whether a whole folder stands for a file of this kind."""
    return any((folder / mark).is_file() for mark in kind.marks)


def _unmarked(kind: type[File], name: str, places: Iterable[Place]) -> str | None:
    """What is wrong with a folder that does not stand for a model."""
    if not kind.marks or not any(path.is_dir() for path, _ in places):
        return None
    marks = " or ".join(sorted(kind.marks))
    return f"{name!r} is a folder without {marks}, so it is no {kind.kind}; name what is in it"


def _within(kind: type[File], root: Path, candidate: Path) -> bool:
    """Whether a file, or everything in a folder that stands for one, lies under `root` once all links are followed."""
    if not candidate.resolve().is_relative_to(root):
        return False
    if not _stands(kind, candidate):
        return True
    return all(Path(member).resolve().is_relative_to(root) for member in members(str(candidate)))


def _listed(names: Iterable[tuple[str, str]]) -> Listed:
    every = tuple((name, Path(path)) for name, path in names)
    first = dict(reversed(every))
    ordered = {name: first[name] for name, _ in every}
    return Listed(every, MappingProxyType(ordered), frozenset(name.rpartition("/")[2] for name in ordered))
