"""Results and uploads as files that are named by the SHA-256 of their content."""

import asyncio
import contextlib
import hashlib
import os
import re
import secrets
import threading
from collections.abc import AsyncIterable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any, Self, TypeVar

from server.picture import Picture, examine
from server.problem import Refusal

PART = ".part"
CHUNK = 1 << 20
"""Bytes of an upload that are held in memory before they are written."""
WORKERS = 2
"""Uploads that are written or decoded at the same time: a picture takes some 20 bytes per pixel while it is decoded."""
_NAME = re.compile(r"[0-9a-f]{64}")
_T = TypeVar("_T")


class Blobs:
    """Content-addressed files in `folder`, which belongs to this process alone. Safe to use from several threads.

    A file gets its name only when its content is durable, so whatever a killed process leaves under a digest is whole.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.workers = ThreadPoolExecutor(WORKERS, "calotype-upload")
        self._placing = threading.Lock()

    def put(self, data: bytes) -> str:
        """Keep `data` and return its digest, once it is durable. What is there already is not written again.

        Refuses with `storage` when the disk is full or cannot be written.
        """
        digest = _digest(data)
        if not self.holds(digest, len(data)):
            with self.temporary() as stream:
                write(stream, data)
                self.place(stream, digest)
        return digest

    def holds(self, digest: str, size: int) -> bool:
        """Whether the content is there and durable; a file that has not `size` bytes is damaged and does not count."""
        with self._placing:
            try:
                return self.path(digest).stat().st_size == size
            except FileNotFoundError:
                return False

    @contextlib.contextmanager
    def temporary(self) -> Iterator[IO[bytes]]:
        """File to write before its digest is known; gone in the end unless `place` gave it its name."""
        with _storage():
            stream = (self.folder / f"{secrets.token_hex(16)}{PART}").open("xb")
        try:
            yield stream
        finally:
            Path(stream.name).unlink(missing_ok=True)
            with contextlib.suppress(OSError):  # what a full disk did not take is not wanted any more
                stream.close()

    def place(self, stream: IO[bytes], digest: str) -> None:
        """Make a temporary file's content durable, then give it its name. Refuses with `storage`."""
        target = self.path(digest)
        with _storage():
            os.fsync(stream.fileno())
            with self._placing:
                target.parent.mkdir(exist_ok=True)
                Path(stream.name).replace(target)
                _sync(target.parent)
                _sync(self.folder)

    def path(self, digest: str) -> Path:
        """Where the content lies, or would lie. KeyError unless `digest` is 64 lower-case hexadecimal digits."""
        if not _NAME.fullmatch(digest):
            raise KeyError(digest)
        return self.folder / digest[:2] / digest

    def read(self, digest: str) -> bytes | None:
        """Content of a digest; None where it is missing or was damaged, and then it is removed."""
        path = self.path(digest)
        data = _content(path)
        if data is None or _digest(data) == digest:
            return data
        with self._placing:  # it may have been put again meanwhile
            if _digest(_content(path) or b"") != digest:
                path.unlink(missing_ok=True)
        return None

    def delete(self, digest: str) -> None:
        """Forget a content, where it is there."""
        self.path(digest).unlink(missing_ok=True)

    def digests(self) -> Iterator[str]:
        """Digests of all contents, in no order."""
        return (path.name for path in self.folder.glob("??/*") if _NAME.fullmatch(path.name))

    def sweep(self) -> None:
        """Remove what a killed process left half-written. To be called before this process writes anything."""
        for path in self.folder.glob(f"*{PART}"):
            path.unlink(missing_ok=True)

    def close(self) -> None:
        """Wait for what the workers are doing, then let them go."""
        self.workers.shutdown()


class Upload:
    """A picture on its way into `blobs`: receive, examine, keep. Used with `with`, it leaves nothing else behind.

    One CHUNK is held in memory at most; writing, decoding and syncing happen on the workers of `blobs`.
    """

    def __init__(self, blobs: Blobs) -> None:
        self.size = 0
        self._blobs = blobs
        self._hash = hashlib.sha256()
        self._leaving = contextlib.ExitStack()

    def __enter__(self) -> Self:
        self._stream = self._leaving.enter_context(self._blobs.temporary())
        return self

    def __exit__(self, *failure: object) -> None:
        self._leaving.close()

    async def receive(self, chunks: AsyncIterable[bytes], limit: int) -> str:
        """Write what comes and return its digest. Refuses with `too-large` at the first byte beyond `limit`."""
        waiting = bytearray()
        async for chunk in chunks:
            waiting += chunk
            if self.size + len(waiting) > limit:
                detail = f"The upload has more than {limit} bytes, which is limits.upload. Send a smaller file."
                raise Refusal("too-large", detail, setting="limits.upload", limit=limit)
            if len(waiting) >= CHUNK:
                await self._work(self._write, bytes(waiting))
                waiting.clear()
        await self._work(self._write, bytes(waiting))
        return self._hash.hexdigest()

    async def examine(self, pixels: int) -> Picture:
        """Decode what was received. Refuses what `picture.examine` refuses."""
        return await self._work(examine, Path(self._stream.name), pixels)

    def keep(self) -> None:
        """Make what was received a blob, durably, unless it is one; blocks. Refuses with `storage`."""
        digest = self._hash.hexdigest()
        if not self._blobs.holds(digest, self.size):
            self._blobs.place(self._stream, digest)

    def _write(self, data: bytes) -> None:
        write(self._stream, data)
        self._hash.update(data)
        self.size += len(data)

    async def _work(self, function: Callable[..., _T], *arguments: Any) -> _T:
        return await asyncio.get_running_loop().run_in_executor(self._blobs.workers, function, *arguments)


def write(stream: IO[bytes], data: bytes) -> None:
    """Write to a temporary file, leaving nothing in the buffer. Refuses with `storage`."""
    with _storage():
        stream.write(data)
        stream.flush()


@contextlib.contextmanager
def _storage() -> Iterator[None]:
    """Make an error of the disk a refusal."""
    try:
        yield
    except OSError as error:
        detail = f"The service cannot store anything: {error.strerror}. Free space where its data lies, then try again."
        raise Refusal("storage", detail) from error


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _content(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None


def _sync(folder: Path) -> None:
    """Make the names in a folder durable."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
