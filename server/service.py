"""The service: everything that belongs to one data folder, from its opening to its end."""

import asyncio
import contextlib
import fcntl
import logging
import os
import time
from collections.abc import AsyncIterable
from pathlib import Path

import httpx2

from engine.engine import Engine
from engine.errors import CalotypeError
from server.blobs import Blobs, Upload
from server.front import Front
from server.garbage import Collector
from server.history import Blob, History, HistoryError
from server.metrics import Metrics
from server.problem import Refusal
from server.runs import Runs
from server.settings import Settings
from server.signature import key
from server.stream import Streams
from server.views import dumped, whole
from server.webhooks import Courier

TIDY = 60.0
"""Seconds between two looks for what may be deleted."""
GRACE = 10.0
"""Seconds that running graphs may take to end when the service stops."""
_log = logging.getLogger("calotype.server")


class FolderTaken(CalotypeError):
    """Another process serves this data folder."""


class Service:
    """One data folder, one engine."""

    def __init__(self, settings: Settings, engine: Engine, front: Front) -> None:
        """Raises FolderTaken, and HistoryError where the folder cannot be used."""
        self.settings = settings
        self.engine = engine
        self.front = front
        self._taken = _take(settings.data)
        self.history = History(settings.data / "service.sqlite")
        self.blobs = Blobs(settings.data / "blobs")
        self.metrics = Metrics()
        self.streams = Streams(settings.limits.subscribers)
        self.runs = Runs(
            settings,
            engine,
            front=front,
            history=self.history,
            blobs=self.blobs,
            streams=self.streams,
            metrics=self.metrics,
        )
        self.metrics.gauges(self._depth, engine.held)
        self._garbage = Collector()
        self._tasks: list[asyncio.Task[None]] = []

    async def open(self) -> None:
        """Go on where the last process stopped."""
        self.blobs.sweep()
        self.runs.open()
        self._tasks = [asyncio.create_task(self._tidy())]
        secret = self.settings.webhooks.secret
        if self.settings.webhooks.allow and secret is not None:
            self._client = httpx2.AsyncClient(follow_redirects=False, trust_env=False)
            self.courier = Courier(
                self._client,
                key(secret.get_secret_value()),
                self.history,
                self._told,
                self.settings.webhooks.allow,
            )
            self.runs.notify = self.courier.wake
            self._tasks.append(asyncio.create_task(self.courier.run()))
        self._garbage.open()

    def stop(self) -> None:
        """Take no more runs, and answer everybody who waits or listens, so that connections can end."""
        self.runs.stop()
        self.streams.end()

    async def close(self, grace: float = GRACE) -> None:
        """Stop: what runs ends or waits for the next start, everything is written."""
        for task in self._tasks:
            task.cancel()
        for task in self._tasks:
            with contextlib.suppress(asyncio.CancelledError):
                await task
        await self.runs.close(grace)
        self._garbage.close()
        if hasattr(self, "_client"):
            await self._client.aclose()
        await asyncio.to_thread(self.history.close)
        self.blobs.close()
        await asyncio.to_thread(self.engine.close)
        os.close(self._taken)

    async def upload(self, chunks: AsyncIterable[bytes]) -> tuple[Blob, bool]:
        """Take a picture in; whether it is new. Raises Refusal."""
        limits, now = self.settings.limits, time.time()
        with Upload(self.blobs) as upload:
            digest = await upload.receive(chunks, limits.upload)
            picture = await upload.examine(limits.pixels)
            if self.history.blob_bytes() + upload.size > self.settings.blobs.quota:
                await asyncio.to_thread(self._make_room)
            if self.history.blob_bytes() + upload.size > self.settings.blobs.quota:
                raise Refusal(
                    "quota",
                    f"Uploads and results take {self.settings.blobs.quota} bytes already (blobs.quota), and runs "
                    "refer to all of them; let fewer runs be kept, or raise the quota.",
                    setting="blobs.quota",
                )
            blob = Blob(digest, upload.size, picture.type, picture.width, picture.height, now, now, upload=True)
            return blob, await asyncio.to_thread(self._keep, upload, blob)

    def _make_room(self) -> None:
        try:
            self._delete_old()
        except HistoryError as error:
            raise Refusal("storage", str(error)) from None

    def _keep(self, upload: Upload, blob: Blob) -> bool:
        """Under the shelf's lock, so that nobody deletes the file before the index has it."""
        with self.runs.lane.shelf:
            upload.keep()
            try:
                return self.history.add_blob(blob).result()
            except HistoryError as error:
                raise Refusal("storage", str(error)) from None

    def content(self, digest: str) -> bytes | None:
        """Content of a blob; where it is missing or damaged, the index forgets it, and the next result makes it again.

        Blocks.
        """
        data = self.blobs.read(digest)
        if data is None:
            with self.runs.lane.shelf, contextlib.suppress(HistoryError):
                if self.blobs.read(digest) is None:
                    self.history.forget_blob(digest).result()
        return data

    def hindrances(self) -> list[str]:
        """What keeps the service from working as it should."""
        return [trouble for trouble in (self.runs.lane.trouble, *self.engine.troubles()) if trouble]

    def _depth(self) -> dict[str, int]:
        return {"queued": len(self.runs.lane), "running": len(self.runs.lane.running())}

    def _told(self, run: str) -> bytes | None:
        """What a webhook is told of a run."""
        found = self.history.run(run)
        return dumped(whole(found, self.history)) if found else None

    async def _tidy(self) -> None:
        while True:
            try:
                await asyncio.to_thread(self._delete_old)
                if self.runs.idle():
                    self._garbage.collect()
            except HistoryError as error:
                _log.warning("nothing could be tidied up: %s", error)
            await asyncio.sleep(TIDY)

    def _delete_old(self) -> None:
        """Runs first, so that what only they referred to can go too."""
        keep, blobs, now = self.settings.history, self.settings.blobs, time.time()
        self.history.prune(now, keep.runs, keep.days).result()
        with self.runs.lane.shelf:
            gone = self.history.expire(now, blobs.hours, blobs.quota).result()
            if gone:
                self.runs.preparer.forget_answers()
            for digest in gone:
                self.blobs.delete(digest)


def _take(folder: Path) -> int:
    """Lock a data folder for this process; the lock ends with the process, however it ends."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle = os.open(folder / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise FolderTaken(
            f"data folder {folder}: {error.strerror}; name another with --data or CALOTYPE_DATA"
        ) from None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(handle)
        raise FolderTaken(
            f"data folder {folder} is served by another process; stop it, or name another with --data or CALOTYPE_DATA"
        ) from None
    return handle
