"""The lane of one device: takes waiting runs, several together, has them run, and sees their results home."""

import asyncio
import contextlib
import logging
import secrets
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

from engine.engine import Engine, Order, Outcome, Result
from engine.errors import CalotypeError, Cancelled, GraphError, NodeFailed, Problem
from server.answers import Painter
from server.front import Front
from server.history import Blob, Finished, History, HistoryError, State
from server.limits import LimitExceeded
from server.metrics import Metrics
from server.problem import Refusal, listed
from server.queue import FairQueue, Waiting
from server.story import Lasting, Outbox, Story
from server.stream import Streams
from server.submission import Answer, Prepared, Preparer, compact
from server.turn import Job, Turn

FINISHING = 16
"""Results that may wait to be written; the engine pauses beyond that."""
AGAIN = 2.0
"""Seconds until a write is tried again that the disk refused."""
_log = logging.getLogger("calotype.server")


class Lane:
    """One device's queue and the thread that works it off. Methods may be called from any thread."""

    def __init__(
        self,
        engine: Engine,
        *,
        front: Front,
        history: History,
        preparer: Preparer,
        painter: Painter,
        metrics: Metrics,
        together: int,
    ) -> None:
        self.trouble: str | None = None
        """Why nothing goes on at present, if so."""
        self.shelf = threading.Lock()
        """Held while files of results are written or deleted."""
        self._engine = engine
        self._front = front
        self._history = history
        self._preparer = preparer
        self._painter = painter
        self._metrics = metrics
        self._together = together
        self._queue = FairQueue()
        self._running: dict[str, Job] = {}
        self._change = threading.Condition()
        self._paused = self._stopping = False
        self._thread = threading.Thread(target=self._work, name="calotype-lane", daemon=True)
        self._finishers = ThreadPoolExecutor(2, "calotype-finish")
        self._sketchers = ThreadPoolExecutor(1, "calotype-preview")
        self._room = threading.BoundedSemaphore(FINISHING)

    def open(self, loop: asyncio.AbstractEventLoop, streams: Streams, ended: Callable[[str], None]) -> None:
        """Tell events to these streams, and of ends to `ended`, on the loop's thread."""
        self._streams = streams
        self._told = ended
        self._outbox = Outbox(loop.call_soon_threadsafe)

    def start(self) -> None:
        """Begin to work."""
        self._thread.start()

    def close(self, grace: float) -> None:
        """Stop: what runs may end within `grace` seconds, what does not waits for the next start."""
        with self._change:
            self._stopping = True
            self._change.notify_all()
        self._thread.join(grace)
        for job in self.running():
            job.token.cancel()
        if self._thread.ident is not None:
            self._thread.join(max(grace, 10.0))
        self._finishers.shutdown(wait=True)
        self._sketchers.shutdown(wait=True)

    # The queue

    def add(self, waiting: Waiting, attempts: int = 0) -> None:
        """Put a run into the queue."""
        self._outbox.put(partial(self._streams.open, waiting.id, attempts + 1))
        with self._change:
            self._queue.add(waiting)
            self._change.notify_all()

    def cancel(self, run: str) -> None:
        """A client does not want a run any more."""
        with self._change:
            job = self._running.get(run)
            if job is not None:
                job.unwanted = True
                job.token.cancel()
            else:
                self._queue.remove(run)

    def move(self, run: str, **place: Any) -> dict[str, float]:
        """Give a waiting run another place; returns the ranks that changed. Raises KeyError and ValueError."""
        with self._change:
            return self._queue.move(run, **place)

    def pause(self) -> None:
        """Take no more runs."""
        with self._change:
            self._paused = True

    def go_on(self) -> None:
        """Take runs again."""
        with self._change:
            self._paused = False
            self._change.notify_all()

    @property
    def paused(self) -> bool:
        """Whether the queue stands still."""
        return self._paused

    def __len__(self) -> int:
        """How many runs wait."""
        return len(self._queue)

    def by_client(self, client: str) -> int:
        """How many runs of a client wait."""
        with self._change:
            return self._queue.by_client(client)

    def order(self) -> list[str]:
        """What waits, in the order in which it will be taken."""
        with self._change:
            return self._queue.order()

    def running(self) -> list[Job]:
        """What runs."""
        with self._change:
            return list(self._running.values())

    # Events

    def watched(self, run: str) -> bool:
        """Whether somebody watches a run."""
        return self._streams.watched(run)

    def publish(self, run: str, name: str, data: Mapping[str, Any], slot: str | None = None) -> None:
        """Send an event to those who watch a run."""
        self._outbox.put(partial(self._streams.publish, run, name, data, slot=slot))

    def later(self, call: Callable[[], None]) -> None:
        """Have something done on another thread that is no part of the work, such as a preview."""
        with contextlib.suppress(RuntimeError):  # the service stops
            self._sketchers.submit(call)

    def ended(self, run: str, state: State, data: Mapping[str, Any]) -> None:
        """Tell everybody that a run has ended."""
        self.publish(run, "run.finished", {"state": str(state), **data})
        self._outbox.put(partial(self._streams.close, run))
        self._outbox.put(partial(self._told, run))

    # The work

    def shelve(self, prepared: Prepared, result: Result) -> Answer:
        """Write the files of a result and enter them into the index."""
        with self.shelf:
            answer, made = self._painter.answer(prepared, result)
            for future in [self._history.add_blob(blob) for blob in made]:
                future.result()
        return answer

    def _work(self) -> None:
        while jobs := self._take():
            if ready := self._begin(jobs):
                self._run(Turn(ready[0].waiting.models), ready)
            elif self.trouble:
                self._rest()

    def _take(self) -> list[Job]:
        """The runs to take next, once there are any; none when the service stops."""
        with self._change:
            while not self._stopping and (self._paused or not len(self._queue)):
                self._change.wait()
            return [] if self._stopping else self._taken(self._together)

    def _taken(self, most: int, among: frozenset[str] | None = None) -> list[Job]:
        jobs = [
            Job(waiting, Story(waiting.id, self, self._front, self._metrics))
            for waiting in self._queue.take(most, among)
        ]
        self._running.update({job.id: job for job in jobs})
        return jobs

    def _begin(self, jobs: Sequence[Job]) -> list[Job]:
        """Write down that runs that were taken run now; returns those that can. The others end, or wait again."""
        try:
            started = set(self._history.start([job.id for job in jobs]).result())
            self.trouble = None
            for job in jobs:
                if job.id not in started:
                    self._drop(job)
            return [job for job in jobs if job.id in started and self._prepare(job)]
        except HistoryError as error:
            self._put_back(jobs, error)
        except Exception:  # noqa: BLE001  the lane goes on, whatever happened to these
            self._fail(jobs)
        return []

    def _run(self, turn: Turn, jobs: Sequence[Job]) -> None:
        """See runs to their end, and those that come meanwhile and can join them."""
        try:
            self._engine.together(turn.join(jobs), partial(self._hand_over, turn), partial(self._more, turn))
        except Exception:  # noqa: BLE001  the lane goes on, whatever happened to these
            left = turn.left()
            for job in left:
                self._leave(turn, job)
            self._fail(left)

    def _more(self, turn: Turn) -> list[Order]:
        """Runs that have come meanwhile, as long as the next one can join those that the engine has in hand."""
        with self._change:
            room = self._together - len(turn)
            if self._stopping or self._paused or self.trouble or room <= 0:
                return []
            jobs = self._taken(room, turn.models)
        return turn.join(self._begin(jobs)) if jobs else []

    def _leave(self, turn: Turn, job: Job) -> None:
        """A run is through: its client has used what it used."""
        seconds = turn.leave(job)
        with self._change:
            self._queue.charge(job.waiting.client, seconds)

    def _prepare(self, job: Job) -> bool:
        text, row = self._history.graph_of(job.id), self._history.run(job.id)
        try:
            job.prepared = self._preparer.again(text or "", row.requested if row else None)
        except (CalotypeError, ValueError) as error:
            self._end(job, State.FAILED, _problems(error))
            return False
        return True

    def _hand_over(self, turn: Turn, index: int, outcome: Outcome) -> None:
        """Have a finished run written down on another thread, so that the device need not wait."""
        job = turn[index]
        self._leave(turn, job)
        if isinstance(outcome, Cancelled) and not job.unwanted:
            self._requeue(job)
            return
        self._room.acquire()
        self._finishers.submit(self._see_home, job, outcome)

    def _see_home(self, job: Job, outcome: Outcome) -> None:
        try:
            if isinstance(outcome, Result):
                self._finish(job, outcome)
            elif isinstance(outcome, Cancelled):
                self._end(job, State.CANCELLED, [])
            else:
                self._end(job, State.FAILED, _problems(outcome))
        except Exception:  # noqa: BLE001  the lane goes on, whatever happened to this one
            self._fail([job])
        finally:
            self._room.release()

    def _finish(self, job: Job, result: Result) -> None:
        assert job.prepared is not None
        job.story.close()
        self._metrics.nodes(result.nodes.values())
        failed = [problem for node, error in result.failures.items() for problem in _failure(node, error)]
        state = State.FAILED if failed or result.outputs.keys() != set(job.prepared.wanted) else State.DONE
        self._insist(partial(self._write, job, state, failed, result))

    def _end(self, job: Job, state: State, problems: Sequence[Problem]) -> None:
        """A run ends without results."""
        self._insist(partial(self._close, job, state, problems))

    def _write(self, job: Job, state: State, problems: Sequence[Problem], result: Result) -> None:
        assert job.prepared is not None
        with self.shelf:
            answer, made = self._painter.answer(job.prepared, result)
            self._close(job, state, problems, answer=answer, made=made, seconds=result.seconds)

    def _insist(self, write: Callable[[], None]) -> None:
        """Write until the disk takes it, or the service stops: then the next start makes up for it."""
        while True:
            try:
                return write()
            except (HistoryError, Refusal) as error:
                if self.trouble is None:
                    _log.error("results cannot be written, trying again: %s", error)
                self.trouble = str(error)
            if self._rest():
                return None

    def _close(
        self,
        job: Job,
        state: State,
        problems: Sequence[Problem],
        *,
        answer: Answer | None = None,
        made: Sequence[Blob] = (),
        seconds: float = 0.0,
    ) -> None:
        """Write the end of a run down, then tell it. Raises HistoryError."""
        data = {
            "seconds": round(seconds, 6),
            **({"problems": [listed(problem) for problem in problems]} if problems else {}),
        }
        events: list[Lasting] = [*job.story.lasting, ("run.finished", {"state": str(state), **data})]
        finished = Finished(
            state,
            time.time(),
            round(seconds, 6),
            answer.outputs if answer else "{}",
            answer.report if answer else None,
            compact(events),
            compact([listed(problem) for problem in problems]) if problems else None,
        )
        self._history.finish(job.id, finished, answer.blobs if answer else (), made).result()
        self.trouble = None
        self._drop(job)
        row = self._history.run(job.id)
        self._metrics.ended(str(state), finished.finished - (row.submitted if row else finished.finished))
        self.ended(job.id, state, data)
        _log.info("%s in %.3f s", state, seconds, extra={"run": job.id, "client": job.waiting.client})

    def _put_back(self, jobs: Sequence[Job], error: HistoryError) -> None:
        if self.trouble is None:
            _log.error("runs cannot be started, trying again: %s", error)
        self.trouble = str(error)
        with self._change:
            for job in jobs:
                if self._running.pop(job.id, None):
                    self._queue.add(job.waiting)

    def _rest(self) -> bool:
        """Wait until it may be tried again; whether the service stops."""
        with self._change:
            return self._change.wait_for(lambda: self._stopping, AGAIN)

    def _requeue(self, job: Job) -> None:
        """A run that the end of the service interrupts waits for the next start."""
        try:
            self._history.requeue([job.id]).result()
        except HistoryError as error:
            _log.warning("not requeued now, but at the next start: %s", error, extra={"run": job.id})
        self._drop(job)

    def _fail(self, jobs: Sequence[Job]) -> None:
        """Something happened that nobody expected."""
        number = secrets.token_hex(8)
        _log.exception("incident %s", number, extra={"runs": [job.id for job in jobs]})
        text = f"The service failed in a way nobody expected; its log says more, under incident {number}."
        for job in jobs:
            if job.id in self._running:
                self._end(job, State.FAILED, [Problem("", text, "internal")])

    def _drop(self, job: Job) -> None:
        with self._change:
            self._running.pop(job.id, None)


def _problems(error: Exception) -> list[Problem]:
    if isinstance(error, (GraphError, Refusal)) and error.problems:
        return list(error.problems)
    return [Problem("", str(error), getattr(error, "kind", "failed"))]


def _failure(node: str, error: BaseException) -> list[Problem]:
    cause = error.__cause__ if isinstance(error, NodeFailed) else error
    code = cause.kind if isinstance(cause, LimitExceeded) else "node-failed"
    return [Problem(f"nodes.{node}", f"{type(cause).__name__}: {cause}", code)]
