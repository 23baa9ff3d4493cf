"""What files hold: known by digests, remembered as long as nothing changes, and located by them to be read."""

import hashlib
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path

from engine.digest import Digest, digest
from engine.errors import FileChanged
from engine.listing import RACY_NS

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


class Reading:
    """What is read at a time: where its files were located, and what is left to do with them."""

    def __init__(self, check: Callable[[Path, Digest, list[Stamp]], None]) -> None:
        self.located: dict[Digest, tuple[Path, list[Stamp]]] = {}
        self.left: list[Callable[[], None]] = []
        self._check = check

    def check(self) -> None:
        """Raise FileChanged unless all files are what they were when they were located."""
        for value, (path, stamps) in self.located.items():
            self._check(path, value, stamps)

    def finish(self) -> None:
        """Do what is left. Raises FileChanged where a file changed until then, instead of whatever went wrong."""
        try:
            for work in self.left:
                work()
        finally:
            self.check()


class Contents:
    """The digest of what lies at a path, and the paths at which what has a digest was seen."""

    def __init__(self) -> None:
        self._memory = DigestMemory()
        self._folders: dict[tuple[tuple[str, Digest], ...], Digest] = {}
        self._places: dict[Digest, dict[Path, None]] = {}
        self._local = threading.local()
        self.aside: Callable[[], AbstractContextManager[None]] = nullcontext
        """Gives way to other threads while a file is digested, which may take a while."""

    def remember_in(self, memory: DigestMemory) -> None:
        """Keep digests of unchanged files there from now on."""
        self._memory = memory

    def remembered(self, path: Path) -> Digest | None:
        """The digest of what lies there, where nothing has to be read for it. Raises OSError."""
        if not path.is_dir():
            return self._memory.get(stamp(str(path)))
        known = [(member[len(str(path)) + 1 :], self._memory.get(stamp(member))) for member in members(str(path))]
        held = tuple((name, value) for name, value in known if value is not None)
        return self._folder(held) if len(held) == len(known) else None

    def digest(self, path: Path) -> Digest:
        """The digest of what lies there: a file, or a folder that stands for one. Raises OSError."""
        return self._digest_folder(str(path)) if path.is_dir() else self._digest(str(path))

    def noted(self, path: Path, value: Digest) -> None:
        """Remember that something with this digest lies there."""
        seen = self._places.setdefault(value, {})
        seen.pop(path, None)
        seen[path] = None

    @contextmanager
    def reading(self) -> Iterator["Reading"]:
        """While something is read: a digest is located in one place, whose files stay as they are until the end.

        Raises FileChanged where they did not, instead of whatever went wrong with the reading. What is left to do
        `later` goes on after that: `Reading.finish` sees to it, and the files stay as they are until then.
        """
        before = self._being_read()
        now = self._local.reading = Reading(self._check_untouched)
        try:
            yield now
        finally:
            self._local.reading = before
            now.check()

    def later(self, work: Callable[[], None]) -> None:
        """Leave work on what is being read to `Reading.finish`; where nobody reads, do it now."""
        reading = self._being_read()
        if reading is None:
            work()
        else:
            reading.left.append(work)

    def locate(self, value: Digest) -> Path:
        """Where a resolved digest lies: where it was seen last, else before. Raises FileChanged where it is gone."""
        reading = self._being_read()
        if reading is not None and value in reading.located:
            path, stamps = reading.located[value]
            self._check_untouched(path, value, stamps)
            return path
        path, stamps = self._still_there(value)
        if reading is not None:
            reading.located[value] = path, stamps
        return path

    def _being_read(self) -> "Reading | None":
        """What this thread reads."""
        return getattr(self._local, "reading", None)

    def _still_there(self, value: Digest) -> tuple[Path, list[Stamp]]:
        seen = self._places.get(value, {})
        trouble = FileChanged(f"no file with digest {value.hex()[:12]} has been resolved")
        for path in [*reversed(seen)]:
            try:
                stamps = _stamps(path)
                self.verify(path, value)
            except FileChanged as error:
                trouble = error
                seen.pop(path, None)
            else:
                return path, stamps
        raise trouble

    def _check_untouched(self, path: Path, value: Digest, stamps: list[Stamp]) -> None:
        self.verify(path, value)
        if _stamps(path) != stamps:
            raise FileChanged(f"{path} changed while it was read")

    def verify(self, path: Path, value: Digest) -> None:
        """Raise FileChanged unless `path` still holds what `value` says."""
        try:
            now = self.digest(path)
        except OSError as error:
            raise FileChanged(f"{path}: {error.strerror}") from error
        if now != value:
            raise FileChanged(f"{path} changed while the graph ran")

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
        return self._folder(tuple((member[len(path) + 1 :], self._digest(member)) for member in members(path)))

    def _folder(self, known: tuple[tuple[str, Digest], ...]) -> Digest:
        found = self._folders.get(known)
        if found is None:
            found = self._folders[known] = digest("folder", known)
        return found


def _stamps(path: Path) -> list[Stamp]:
    """What the file system says about a file, or about everything in a folder that counts."""
    try:
        return [stamp(member) for member in (members(str(path)) if path.is_dir() else [str(path)])]
    except OSError as error:
        raise FileChanged(f"{path}: {error.strerror}") from error


def members(folder: str) -> list[str]:
    """The files that make a model, also behind links, as the loaders see them; a circle of links is walked once."""
    return sorted(_within(folder, {os.path.realpath(folder)}))


def _within(folder: str, seen: set[str]) -> Iterator[str]:
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_file():
                if os.path.splitext(entry.name)[1] in MODEL_SUFFIXES:  # noqa: PTH122  paths are text here, for speed
                    yield entry.path
            elif entry.is_dir() and not (entry.is_symlink() and _seen(entry.path, seen)):
                yield from _within(entry.path, seen)


def _seen(link: str, seen: set[str]) -> bool:
    real = os.path.realpath(link)
    known = real in seen
    seen.add(real)
    return known
