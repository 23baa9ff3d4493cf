"""What folders hold by name: each is looked through once, and again when something in it came or went.

A folder is known to be as it was by its inode and its times, which change with every entry that comes, goes or is
renamed. What a link leads to can change without them, so every link is looked at anew.
"""

import os
import time
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

RACY_NS = 2_000_000_000
"""What was touched less than this before it was looked at may change again within one tick of its clock."""

MAX_LISTED = 20_000
"""Files, and folders, that the folder of one kind may hold, so that looking for a name stays quick."""

Links = tuple[tuple[str, bool], ...]
"""(name, whether it leads to a folder) of every link that leads somewhere."""


class TooMany(Exception):
    """A folder holds more than MAX_LISTED; `folder` says which."""

    def __init__(self, folder: str) -> None:
        super().__init__(f"{folder} holds more than {MAX_LISTED} files")
        self.folder = folder


class Listing(NamedTuple):
    """The entries of one folder by name; of links, only another look says what they are."""

    files: frozenset[str] = frozenset()
    folders: tuple[str, ...] = ()
    links: tuple[str, ...] = ()


class Visit(NamedTuple):
    """A folder, what it holds, and whether the whole of it is one thing with a name. Equal visits, equal names."""

    folder: str
    held: Listing
    links: Links
    whole: bool


class Top(NamedTuple):
    """A folder to look through, whether a path in it may be followed, and the paths that are left out."""

    folder: str
    enters: Callable[[str], bool]
    apart: frozenset[str]


class Listings:
    """Listings of folders that did not change since."""

    def __init__(self) -> None:
        self._known: dict[str, tuple[tuple[int, ...], Listing]] = {}

    def of(self, folder: str) -> Listing:
        """The entries of a folder; none where it cannot be looked through."""
        try:
            before, began = _stamp(folder), time.time_ns()
            known = self._known.get(folder)
            if known is not None and known[0] == before:
                return known[1]
            found = _scanned(folder)
            if began - max(before[2:]) > RACY_NS and _stamp(folder) == before:
                self._known[folder] = (before, found)
        except (OSError, ValueError):  # gone, forbidden, a circle of links, a null byte
            return Listing()
        return found

    def visits(self, top: Top, marks: frozenset[str]) -> Iterator[Visit]:
        """The folders from `top` down, circles of links once; those with a file of `marks` are whole, not entered.

        Raises TooMany.
        """
        waiting, seen, count = [top.folder], {os.path.realpath(top.folder)}, 0
        while waiting:
            folder = waiting.pop()
            count += 1
            if count > MAX_LISTED:
                raise TooMany(top.folder)
            held = self.of(folder)
            links = tuple(_links(top, folder, held.links))
            whole = folder != top.folder and _marked(held, links, marks)
            yield Visit(folder, held, links, whole)
            if not whole:
                waiting += _below(top, folder, held.folders)
                linked = [name for name, leads_to_folder in links if leads_to_folder]
                waiting += [path for path in _below(top, folder, linked) if _new(path, seen)]


def named_in(top: str, visits: Iterable[Visit], suffixes: tuple[str, ...]) -> list[tuple[str, str]]:
    """(name, path) of the files that end so and of whole folders: the endings that come first, then the alphabet.

    A name is the path from `top` without its ending. Raises TooMany.
    """
    found: list[tuple[int, str, str]] = []
    start = len(os.path.join(top, ""))  # noqa: PTH118  paths are text here, for speed
    for visit in visits:
        if visit.whole:
            found.append((0, visit.folder, visit.folder[start:]))
            continue
        files = [*visit.held.files, *(name for name, leads_to_folder in visit.links if not leads_to_folder)]
        for name in files:
            for rank, suffix in enumerate(suffixes):
                if name.endswith(suffix):
                    path = os.path.join(visit.folder, name)  # noqa: PTH118  paths are text here, for speed
                    found.append((rank, path, path[start : -len(suffix)]))
                    break
        if len(found) > MAX_LISTED:
            raise TooMany(top)
    return [(name, path) for _, path, name in sorted(found)]


def _stamp(folder: str) -> tuple[int, ...]:
    stat = os.stat(folder)  # noqa: PTH116  paths are text here, for speed
    return (stat.st_dev, stat.st_ino, stat.st_mtime_ns, stat.st_ctime_ns)


def _scanned(folder: str) -> Listing:
    files, folders, links = [], [], []
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_symlink():
                links.append(entry.name)
            elif entry.is_dir(follow_symlinks=False):
                folders.append(entry.name)
            elif entry.is_file(follow_symlinks=False):
                files.append(entry.name)
    return Listing(frozenset(files), tuple(sorted(folders)), tuple(sorted(links)))


def _links(top: Top, folder: str, links: Iterable[str]) -> Iterator[tuple[str, bool]]:
    for name in links:
        path = os.path.join(folder, name)  # noqa: PTH118  paths are text here, for speed
        leads_to_folder = os.path.isdir(path)  # noqa: PTH112
        if (leads_to_folder or os.path.isfile(path)) and top.enters(path):  # noqa: PTH113
            yield name, leads_to_folder


def _marked(held: Listing, links: Links, marks: frozenset[str]) -> bool:
    linked = {name for name, leads_to_folder in links if not leads_to_folder}
    return not marks.isdisjoint(held.files) or not marks.isdisjoint(linked)


def _below(top: Top, folder: str, names: Iterable[str]) -> list[str]:
    paths = [os.path.join(folder, name) for name in names]  # noqa: PTH118  paths are text here, for speed
    return [path for path in paths if path not in top.apart]


def _new(link: str, seen: set[str]) -> bool:
    real = os.path.realpath(link)
    if real in seen:
        return False
    seen.add(real)
    return True
