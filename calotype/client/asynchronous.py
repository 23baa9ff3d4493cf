"""The client that lets others go on while it waits: the same as the blocking one, word for word, but to be awaited."""

import asyncio
import sys
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Self

import httpx2
import PIL.Image
from rich.console import Console

from calotype.client.connection import content, moved, opened, options
from calotype.client.events import Event, Feed, bearing, told
from calotype.client.exchange import (
    AnyGraph,
    Call,
    Deadline,
    Dialogue,
    Done,
    Exchange,
    Pause,
    Reply,
    T,
    asked,
    name_of,
    proceed,
)
from calotype.client.record import Record, page_address
from calotype.naming import write
from calotype.progress import Reporter
from engine.errors import Problem
from server.rows import State
from server.schema import (
    Brief,
    GraphList,
    GraphView,
    Health,
    NodeList,
    Output,
    PlanView,
    QueueView,
    RunList,
    RunView,
    Verdict,
)

Progress = bool | Callable[[Event], object]


class AsyncClient:
    """A service at `url`, as its client with this `token`.

    Without them, the environment variables CALOTYPE_URL and CALOTYPE_TOKEN count, and http://127.0.0.1:8420.

    Each try of a call takes at most `timeout` seconds, and there are up to `tries` more where no answer comes, or where
    the service has no time (status 429, 502, 503, 504). Raises ServiceError for what the service refuses, Unreachable
    where it does not answer. Lives on one event loop. Close it, or use it as an asynchronous context manager.
    """

    def __init__(
        self, url: str | None = None, token: str | None = None, *, timeout: float = 60.0, tries: int = 8
    ) -> None:
        self._http = httpx2.AsyncClient(**options(url, token, timeout))
        self._dialogue = Dialogue(tries, timeout)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close its connections."""
        await self._http.aclose()

    async def submit(
        self,
        graph: AnyGraph,
        *,
        set: Mapping[str, Any] | None = None,  # noqa: A002  the command line's word
        sweep: Mapping[str, Any] | None = None,
        outputs: Sequence[str] | None = None,
        priority: int = 0,
        labels: Mapping[str, str] | None = None,
        webhook: str | None = None,
        key: str | None = None,
    ) -> "AsyncRun":
        """Submit a graph; it is on the service's disk when this returns.

        `graph` is a Graph or a document, a `str` that names a graph saved at the service, or a `Path` of a file here,
        which is sent. Files that its parameters name are not sent: `upload` them, and `set` the name that comes back.
        With the same `key` and the same content within a day, it is the same run.
        """
        body = asked(graph, set=set, sweep=sweep, outputs=outputs, priority=priority, labels=labels, webhook=webhook)
        return AsyncRun(self, await self._do(self._dialogue.submit(body, key)), name_of(graph))

    async def run(self, id_: str) -> "AsyncRun":
        """The run with this id."""
        return AsyncRun(self, await self._do(self._dialogue.read(RunView, "GET", f"/v1/runs/{id_}")))

    async def runs(
        self, *, state: State | str | None = None, of: str | None = None, page: int = 50
    ) -> AsyncIterator["AsyncRun"]:
        """Runs in this state, of this client; the newest first. They are asked for `page` at a time."""
        address: str | None = page_address(state, of, page)
        while address:
            found = await self._do(self._dialogue.read(RunList, "GET", address))
            for view in found.runs:
                yield AsyncRun(self, view)
            address = found.next

    async def upload(self, picture: str | Path | bytes | PIL.Image.Image) -> str:
        """Upload a picture or a mask: a file, its content, or a picture of Pillow. Returns its name, to be set."""
        return await self._do(self._dialogue.upload(await asyncio.to_thread(content, picture)))

    async def blob(self, digest: str) -> bytes:
        """The file with this sha256."""
        return await self._do(self._dialogue.picture(digest))

    async def plan(self, graph: AnyGraph, **given: Any) -> list[Verdict]:
        """What a run would do with every node, and why; takes `set`, `sweep` and `outputs` as `submit` does."""
        return (await self._do(self._dialogue.read(PlanView, "POST", "/v1/plan", asked(graph, **given)))).nodes

    async def validate(self, graph: AnyGraph, **given: Any) -> list[Problem]:
        """Everything that is wrong with a graph; takes `set`, `sweep` and `outputs` as `submit` does."""
        return await self._do(self._dialogue.validate(asked(graph, **given)))

    async def graphs(self) -> list[GraphView]:
        """The graphs saved at the service."""
        return (await self._do(self._dialogue.read(GraphList, "GET", "/v1/graphs"))).graphs

    async def graph(self, name: str) -> dict[str, Any]:
        """The document of a graph saved at the service."""
        return await self._do(self._dialogue.look(f"/v1/graphs/{name}"))

    async def nodes(self) -> dict[str, dict[str, Any]]:
        """The node types of the service, in full."""
        return (await self._do(self._dialogue.read(NodeList, "GET", "/v1/nodes"))).nodes

    async def health(self) -> Health:
        """Whether the service works, and what hinders it."""
        return await self._do(self._dialogue.read(Health, "GET", "/healthz"))

    async def queue(self) -> QueueView:
        """What waits, what runs, and whether the queue stands still."""
        return await self._do(self._dialogue.read(QueueView, "GET", "/v1/queue"))

    async def pause(self) -> QueueView:
        """Have the queue stand still; what runs goes on."""
        return await self._do(self._dialogue.read(QueueView, "PATCH", "/v1/queue", {"paused": True}))

    async def resume(self) -> QueueView:
        """Let the queue go on."""
        return await self._do(self._dialogue.read(QueueView, "PATCH", "/v1/queue", {"paused": False}))

    async def _do(self, exchange: Exchange[T]) -> T:
        """Carry an exchange to its end."""
        step = proceed(exchange, None)
        while not isinstance(step, Done):
            step = proceed(exchange, await self._take(step))
        return step.value

    async def _take(self, step: Call | Pause) -> Reply:
        """Do what an exchange wants, and say what came of it."""
        if isinstance(step, Pause):
            await asyncio.sleep(step.seconds)
            return None
        try:
            return await self._http.request(step.method, step.path, content=step.content, headers=step.headers)
        except httpx2.TransportError as error:
            return error

    async def _follow(self, feed: Feed) -> AsyncIterator[Event]:
        while not feed.ended:
            async for event in self._stretch(feed):
                yield event
            if not feed.ended:
                await asyncio.sleep(feed.pause)

    async def _stretch(self, feed: Feed) -> AsyncIterator[Event]:
        """Events of one connection."""
        try:
            async with self._http.sse(
                feed.path, headers=feed.headers, timeout=feed.timeout, max_event_size=None
            ) as source:
                if not source.response.is_success:
                    await source.response.aread()
                    feed.refused(source.response)
                    return
                async for event in source:
                    if bearing(event):
                        yield feed.take(event)
                feed.broke_off()
        except httpx2.TransportError as error:
            feed.lost(error)


class AsyncRun(Record):
    """A run at a service. `state`, `outputs` and `problems` are as last heard: `refresh` or `wait` to hear more."""

    def __init__(self, client: AsyncClient, view: Brief, name: str = "") -> None:
        super().__init__(view, name)
        self._client = client

    async def refresh(self) -> Self:
        """Hear how it stands."""
        self._hear(await self._ask("GET"))
        return self

    async def wait(
        self,
        timeout: float | None = None,  # noqa: ASYNC109  the blocking client's word
        *,
        progress: Progress = False,
    ) -> Self:
        """Wait for its end, across restarts of the service. Raises TimeoutError after `timeout` seconds.

        `progress` shows on standard error what its nodes do, with a bar for each that has steps; or it is a function
        that is called with every event.
        """
        until = Deadline(timeout)
        if not self._whole():
            if progress is not False:
                await self._show(progress, None if timeout is None else until)
            self._hear(await self._client._do(self._client._dialogue.ended(self.id, until)))
        return self

    async def result(
        self,
        timeout: float | None = None,  # noqa: ASYNC109  the blocking client's word
        *,
        progress: Progress = False,
    ) -> Mapping[str, Output]:
        """Its outputs, once it is done. Raises RunEnded where it fails or is cancelled, and what `wait` raises."""
        return (await self.wait(timeout, progress=progress))._result()

    def events(self) -> AsyncIterator[Event]:
        """What has happened in it, then what happens, until it ends; across restarts of the service."""
        return self._client._follow(Feed(self.id, self._client._dialogue.tries))

    async def cancel(self) -> Self:
        """Cancel it: at once where it waits, within a step where it runs. What has ended stays as it is."""
        self._hear(await self._ask("DELETE"))
        return self

    async def move(
        self,
        *,
        priority: int | None = None,
        before: str | None = None,
        place: Literal["first", "last"] | None = None,
    ) -> Self:
        """Give it another priority, or another place among the waiting runs of its client."""
        body = moved(priority, before, place)
        self._hear(await self._ask("PATCH", body))
        return self

    async def picture(self, output: str = "image", index: int = 0) -> PIL.Image.Image:
        """A picture of an output, once it has ended. Raises RunEnded where there is none."""
        data = await self._client.blob((await self.wait())._picture(output, index).digest)
        return opened(data)

    async def download(self, folder: str | Path = "out") -> dict[str, list[Path]]:
        """Save the pictures of its outputs once it has ended, and return their paths.

        They are named as `calotype run` names them. Each file appears whole or not at all, and replaces none.
        """
        place = Path(folder)
        await self.wait()
        paths: dict[str, list[Path]] = {name: [] for name in self.outputs}
        for output, named, digest in self._files(place):
            paths[output].append(await asyncio.to_thread(write, place, named, await self._client.blob(digest)))
        return paths

    async def _ask(self, method: str, body: Mapping[str, Any] | None = None) -> RunView:
        return await self._client._do(self._client._dialogue.read(RunView, method, f"/v1/runs/{self.id}", body))

    async def _show(self, progress: Progress, until: Deadline | None) -> None:
        events = self._client._follow(Feed(self.id, self._client._dialogue.tries, until))
        if callable(progress):
            async for event in events:
                progress(event)
            return
        with Reporter(Console(file=sys.stderr)) as reporter:
            async for event in events:
                for known in told(event, self.id):
                    reporter(known)
