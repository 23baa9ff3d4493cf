"""Runs from submission to result: accepted durably, answered at once where everything is known, else queued."""

import asyncio
import logging
import random
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import replace
from hashlib import sha256
from typing import TypeVar

from engine.engine import Engine, Result
from server.answers import Painter
from server.blobs import Blobs
from server.front import Front
from server.history import (
    Accepted,
    BlobMissing,
    Finished,
    History,
    HistoryError,
    IdempotencyConflict,
    Receipt,
    Run,
    State,
    StorageFull,
)
from server.lane import Lane
from server.metrics import Metrics
from server.problem import Refusal
from server.queue import Waiting
from server.schema import GraphRequest, MoveRequest, RunRequest
from server.settings import Settings
from server.stream import Streams
from server.submission import Answer, Prepared, Preparer, read
from server.webhooks import allowed

T = TypeVar("T")
PATIENCE = 0.002
"""Seconds that the event loop waits for the engine's books before a thread waits for them instead."""
_IDS = random.Random()  # noqa: S311  names, not secrets
_log = logging.getLogger("calotype.server")


class Runs:
    """All runs of a service. Lives on the event loop; the lane carries what has to be computed."""

    def __init__(
        self,
        settings: Settings,
        engine: Engine,
        *,
        front: Front,
        history: History,
        blobs: Blobs,
        streams: Streams,
        metrics: Metrics,
    ) -> None:
        self.settings = settings
        self.history = history
        self.streams = streams
        self.preparer = Preparer(engine, front, settings.limits)
        self.painter = Painter(front, blobs)
        self.lane = Lane(
            engine,
            front=front,
            history=history,
            preparer=self.preparer,
            painter=self.painter,
            metrics=metrics,
            together=settings.queue.together,
        )
        self._engine = engine
        self._metrics = metrics
        self._waiters: dict[str, set[asyncio.Future[None]]] = {}
        self._submitted = 0
        self.closing = False
        self.notify: Callable[[], None] = _nobody
        """Told of every end that a webhook waits for."""

    def open(self) -> None:
        """Take up what was left over when the service ended, and begin to work."""
        recovered = self.history.recover(self.settings.queue.attempts, time.time()).result()
        for run in recovered.failed:
            _log.error("brought the service down too often; failed", extra={"run": run})
        self.lane.open(asyncio.get_running_loop(), self.streams, self._ended)
        for queued in self.history.queued():
            waiting = Waiting(queued.id, queued.client, queued.priority, queued.rank, frozenset())
            self.lane.add(self._with_models(waiting), queued.attempts)
        if self.history.paused:
            self.lane.pause()
        self.lane.start()

    def stop(self) -> None:
        """Take no more runs, and let go of those who wait for one."""
        self.closing = True
        for run in list(self._waiters):
            self._wake(run)

    async def close(self, grace: float) -> None:
        """Let what runs end within `grace` seconds, else have it wait for the next start."""
        self.closing = True
        await asyncio.to_thread(self.lane.close, grace)

    def idle(self) -> bool:
        """Whether nothing runs, and nothing was submitted since this was asked last."""
        submitted, self._submitted = self._submitted, 0
        return not submitted and not self.lane.running()

    # Submission

    async def submit(self, body: bytes, client: str, key: str | None) -> tuple[Receipt, State]:
        """Accept a run; it is durable when this returns, and in that state. Raises Refusal and GraphError."""
        if self.closing:
            raise Refusal("unavailable", "The service is stopping; submit to it again in a moment.")
        self._submitted += 1
        digest = sha256(body).digest()
        known = self.preparer.known(digest)
        if known is None:
            request, prepared, result = await asyncio.to_thread(self._first, body, digest)
        else:
            request, prepared = known
            result = await self._recall(prepared)
        accepted = self._accepted(request, prepared, client, (key, digest) if key else None)
        if result is not None:
            receipt, state = await self._record(accepted, prepared, result), State.DONE
        else:
            receipt, state = await self._enqueue(accepted, prepared), State.QUEUED
        return receipt, self._state(receipt.id) if receipt.known else state

    def prepare(self, body: bytes, model: type[GraphRequest]) -> tuple[GraphRequest, Prepared]:
        """Read and judge a request. Raises Refusal and GraphError."""
        request = read(body, model)
        return request, self.preparer.prepare(self.preparer.graph(request), request.outputs)

    def _first(self, body: bytes, digest: bytes) -> tuple[RunRequest, Prepared, Result | None]:
        """A body that is new; its files may have to be digested, which takes a while."""
        request, prepared = self.prepare(body, RunRequest)
        assert isinstance(request, RunRequest)
        if request.webhook:
            allowed(request.webhook, self.settings.webhooks.allow)
        result = self._engine.recall(prepared.graph, prepared.wanted)
        if not prepared.drawn:
            self.preparer.remember(digest, request, prepared)
        return request, prepared, result

    async def _recall(self, prepared: Prepared) -> Result | None:
        try:
            return self._engine.recall(prepared.graph, prepared.wanted, timeout=PATIENCE)
        except TimeoutError:
            return await asyncio.to_thread(self._engine.recall, prepared.graph, prepared.wanted)

    def _accepted(
        self, request: RunRequest, prepared: Prepared, client: str, key: tuple[str, bytes] | None
    ) -> Accepted:
        return Accepted(
            new_id(),
            client,
            prepared.title,
            prepared.document,
            prepared.outputs,
            request.priority,
            time.time(),
            request.webhook,
            key,
            request.labels,
            prepared.blobs,
        )

    async def _record(self, accepted: Accepted, prepared: Prepared, result: Result) -> Receipt:
        """Everything is known already: the run is over as it comes."""
        answer = prepared.answer
        if answer is None or answer.identities != result.identities or answer.nodes != result.nodes:
            answer = await self._answered(prepared, result)
        finished = Finished(State.DONE, time.time(), round(result.seconds, 6), answer.outputs, answer.report)
        try:
            receipt = await durable(self.history.record(accepted, finished, answer.blobs))
        except BlobMissing as error:
            if set(error.digests) & set(accepted.blobs):
                raise Refusal("gone", str(error)) from None
            answer = await self._answered(prepared, result)
            receipt = await durable(self.history.record(accepted, finished, answer.blobs))
        if not receipt.known:
            self._metrics.submitted()
            self._metrics.nodes(result.nodes.values())
            self._metrics.ended("done", finished.finished - accepted.submitted)
        return receipt

    async def _answered(self, prepared: Prepared, result: Result) -> Answer:
        try:
            answer = await asyncio.to_thread(self.lane.shelve, prepared, result)
        except HistoryError as error:
            raise Refusal("storage", str(error)) from None
        prepared.answer = answer
        return answer

    async def _enqueue(self, accepted: Accepted, prepared: Prepared) -> Receipt:
        limits = self.settings.limits
        if len(self.lane) >= limits.queued:
            raise Refusal("queue-full", f"{limits.queued} runs wait already (limits.queued).", setting="limits.queued")
        if self.lane.by_client(accepted.client) >= limits.queued_by_client:
            raise Refusal(
                "queue-full",
                f"{limits.queued_by_client} runs of {accepted.client} wait already (limits.queued_by_client).",
                setting="limits.queued_by_client",
            )
        try:
            receipt = await durable(self.history.accept(accepted))
        except BlobMissing as error:
            raise Refusal("gone", str(error)) from None
        if not receipt.known:
            self._metrics.submitted()
            self.lane.add(Waiting(accepted.id, accepted.client, accepted.priority, receipt.rank, prepared.models))
        return receipt

    def _state(self, run: str) -> State:
        found = self.history.run(run)
        return found.state if found else State.QUEUED

    # Afterwards

    async def wait(self, run: str, seconds: float) -> None:
        """Wait until a run has ended, or for so many seconds."""
        done = asyncio.get_running_loop().create_future()
        waiters = self._waiters.setdefault(run, set())
        waiters.add(done)
        try:
            found = self.history.run(run)
            if found is not None and not found.state.final and not self.closing:
                await asyncio.wait_for(done, seconds)
        except TimeoutError:
            pass
        finally:
            waiters.discard(done)
            if not waiters:
                self._waiters.pop(run, None)

    async def cancel(self, run: str) -> Run:
        """Cancel a run: at once where it waits, within a step where it runs. Raises Refusal."""
        state = await durable(self.history.cancel(run))
        if state is None:
            raise Refusal("not-found", f"There is no run {run}.")
        self.lane.cancel(run)
        found = self.history.run(run)
        assert found is not None
        if found.state is State.CANCELLED and state is State.CANCELLED:
            self.lane.ended(run, State.CANCELLED, {})
        return found

    async def move(self, run: str, request: MoveRequest) -> None:
        """Give a waiting run another place. Raises Refusal."""
        if sum((request.before is not None, request.first, request.last)) > 1:
            raise Refusal("invalid-request", "At most one of before, first and last; send one.")
        try:
            ranks = self.lane.move(
                run, priority=request.priority, before=request.before, first=request.first, last=request.last
            )
        except KeyError:
            raise Refusal(
                "conflict", f"Run {run} does not wait, or the one before which it shall wait does not."
            ) from None
        except ValueError as error:
            raise Refusal("conflict", str(error)) from None
        others = [self.history.move(other, rank=rank) for other, rank in ranks.items() if other != run]
        moved = await durable(self.history.move(run, priority=request.priority, rank=ranks[run]))
        for other in others:
            await durable(other)
        if not moved:
            raise Refusal("conflict", f"Run {run} does not wait any more.")

    async def pause(self, *, paused: bool) -> None:
        """Have the queue stand still, or go on; what runs goes on."""
        await durable(self.history.pause(paused))
        if paused:
            self.lane.pause()
        else:
            self.lane.go_on()

    def _ended(self, run: str) -> None:
        self.notify()
        self._wake(run)

    def _wake(self, run: str) -> None:
        for done in self._waiters.pop(run, ()):
            if not done.done():
                done.set_result(None)

    def _with_models(self, waiting: Waiting) -> Waiting:
        """A waiting run with the models that it needs, as far as its graph can still be read."""
        text, row = self.history.graph_of(waiting.id), self.history.run(waiting.id)
        try:
            prepared = self.preparer.again(text or "", row.requested if row else None)
        except Exception:  # noqa: BLE001  whatever is wrong with it, it fails when its turn comes, and says why
            return waiting
        return replace(waiting, models=prepared.models)


def _nobody() -> None:
    """Nobody waits."""


async def durable(future: Future[T]) -> T:
    """Wait until a write is on the disk. Raises Refusal where the disk refuses it."""
    try:
        return await asyncio.wrap_future(future)
    except IdempotencyConflict as error:
        raise Refusal("idempotency-conflict", str(error)) from None
    except BlobMissing:
        raise
    except (StorageFull, HistoryError) as error:
        raise Refusal("storage", str(error)) from None


def new_id() -> str:
    """32 hex digits that sort by time: 48 bits of milliseconds since 1970, then random ones."""
    return f"{time.time_ns() // 1_000_000:012x}{_IDS.getrandbits(80):020x}"
