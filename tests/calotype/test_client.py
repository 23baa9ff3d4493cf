"""The client, against a real service, and against what goes wrong on the way."""

import asyncio
import contextlib
import inspect
import io
import json
import socket
import subprocess
import sys
import threading

import httpx2
import PIL.Image
import pytest
from serving import Serving, mask_graph

import calotype.client
from calotype import naming
from calotype.client import AsyncClient, AsyncRun, Client, Run, RunEnded, ServiceError, State, Unreachable
from calotype.client.events import Feed, bearing, told
from calotype.client.exchange import BUSY, LONGEST, Call, Deadline, Dialogue, Done, Pause, proceed
from calotype.client.record import Record
from engine.event import NodeFinished, NodeStarted, Outcome, RunFinished, RunStarted
from engine.graph import Graph
from server import signature
from server.schema import RunView
from server.stream import replay

TOKEN = "token-of-the-tests-0123456789"
TINY = {"steps": 2, "width": 64, "height": 64}


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    with Serving(tmp_path_factory.mktemp("served"), token=TOKEN) as serving:
        yield serving


@pytest.fixture
def client(served):
    with Client(served.url, TOKEN) as client:
        yield client


@pytest.fixture
def held(client):
    """The queue stands still as long as the test runs."""
    client.pause()
    yield
    for run in client.runs(state="queued"):
        run.cancel()
    client.resume()


def tried(exchange, *replies):
    """The steps of an exchange that gets these replies to its calls."""
    steps, waiting, reply = [], list(replies), None
    while True:
        step = proceed(exchange, reply)
        steps.append(step)
        if isinstance(step, Done):
            return steps
        reply = None if isinstance(step, Pause) else waiting.pop(0)


def answer(status, document=None, **headers):
    fields = {name.replace("_", "-"): value for name, value in headers.items()}
    request = httpx2.Request("GET", "http://service/v1/runs")
    return httpx2.Response(status, json=document or {}, headers=fields, request=request)


# Submitting, waiting, saving


def test_a_graph_is_submitted_waited_for_and_saved(client, tmp_path):
    run = client.submit("text2img", set={"seed": 1, **TINY}, labels={"for": "a test"})
    (picture,) = run.result()["image"].pictures
    assert (run.state, run.view.labels, picture.width) == (State.DONE, {"for": "a test"}, 64)
    paths = run.download(tmp_path / "new" / "folder")
    assert paths == {"image": [tmp_path / "new" / "folder" / "text2img-image-00001.png"]}
    with PIL.Image.open(paths["image"][0]) as saved:
        assert saved.tobytes() == run.picture().tobytes() == client.run(run.id).picture("image", 0).tobytes()
        assert "calotype" in saved.text


def test_saving_again_replaces_nothing_and_leaves_nothing_half_written(client, tmp_path):
    run = client.submit(mask_graph(1))
    first, second = run.download(tmp_path), run.download(tmp_path)
    assert [path.name for path in (*first["mask"], *second["mask"])] == [
        "untitled-mask-00001.png",
        "untitled-mask-00002.png",
    ]
    assert sorted(tmp_path.iterdir()) == sorted(first["mask"] + second["mask"])


def test_a_graph_whose_nodes_are_all_known_is_done_as_it_is_submitted(client):
    client.submit(mask_graph(2)).wait()
    again = client.submit(mask_graph(2))
    assert again.state is State.DONE
    assert again.outputs == {}, "nothing was heard of them yet"
    assert list(again.result()) == ["mask"]


def test_graphs_documents_and_files_all_mean_the_same_run(client, tmp_path):
    whole = client.submit(mask_graph(3)).result()["mask"].pictures[0].digest
    inner, outer = tmp_path / "inner.json", tmp_path / "outer.json"
    inner.write_text(json.dumps(mask_graph(3)))
    node = {"type": "graph", "graph": "inner.json"}
    outer.write_text(json.dumps({"format": "calotype/1", "nodes": {"all": node}, "outputs": {"mask": "all"}}))
    pixels = client.submit(mask_graph(3)).picture("mask").tobytes()
    assert client.submit(Graph.parse(mask_graph(3))).result()["mask"].pictures[0].digest == whole
    assert client.submit(inner).result()["mask"].pictures[0].digest == whole
    nested = client.submit(outer)
    assert nested.picture("mask").tobytes() == pixels
    (saved,) = nested.download(tmp_path)["mask"]
    assert saved.name == "outer-mask-00001.png"
    assert client.submit(saved).picture("mask").tobytes() == pixels


def test_an_uploaded_picture_is_named_by_its_content(client, tmp_path):
    picture = PIL.Image.new("RGB", (40, 30), "red")
    stream = io.BytesIO()
    picture.save(stream, "PNG")
    (tmp_path / "red.png").write_bytes(stream.getvalue())
    names = {client.upload(each) for each in (picture, stream.getvalue(), tmp_path / "red.png", f"{tmp_path}/red.png")}
    (name,) = names
    nodes = {"photo": {"type": "image.load", "params": {"source": "fox.png"}}}
    graph = {
        "format": "calotype/1",
        "nodes": nodes,
        "expose": {"source": "photo.source"},
        "outputs": {"image": "photo"},
    }
    assert client.submit(graph, set={"source": name}).picture().tobytes() == picture.tobytes()


def test_a_file_here_is_not_sent_silently(client, tmp_path):
    with pytest.raises(TypeError, match="a picture is not sent by itself: give what `upload` returns"):
        client.submit("img2img", set={"source": tmp_path / "secret.png"})


def test_a_sweep_gives_its_cells(client):
    nodes = {
        "photo": {"type": "image.load", "params": {"source": "fox.png"}},
        "small": {"type": "image.resize", "params": {"factor": 0.5}, "inputs": {"image": "photo"}},
    }
    graph = {"format": "calotype/1", "nodes": nodes, "outputs": {"image": "small"}}
    sweep = {"x": {"small.factor": [0.2, 0.4]}}
    cells = client.submit(graph, sweep=sweep).result()["image"].cells
    assert [cell.set for cell in cells] == [{"small.factor": 0.2}, {"small.factor": 0.4}]
    assert client.blob(cells[0].pictures[0].digest).startswith(b"\x89PNG")
    assert client.submit(graph, sweep=sweep, outputs=["small[x0]"]).result().keys() == {"small[x0]"}


def test_a_run_that_does_not_end_done_says_why(client, held):
    run = client.submit(mask_graph(7)).cancel()
    with pytest.raises(RunEnded, match=f"run {run.id}: cancelled") as caught:
        run.result()
    assert caught.value.state == "cancelled"
    with pytest.raises(RunEnded, match="it has no picture 0 of 'mask'"):
        run.picture("mask")


def test_a_failed_run_lists_its_problems(client):
    graph = mask_graph(8)
    graph["nodes"]["side"] = {"type": "integer", "params": {"value": 20_000}}
    graph["nodes"]["n0"]["inputs"] = {"width": "side"}
    del graph["nodes"]["n0"]["params"]["width"]
    run = client.submit(graph).wait()
    assert (run.state, [problem.path for problem in run.problems]) == (State.FAILED, ["nodes.n0"])
    with pytest.raises(RunEnded, match=r"nodes\.n0: "):
        run.result()


@pytest.mark.parametrize("progress", [False, True, lambda _: None], ids=["quiet", "shown", "told"])
def test_a_wait_that_takes_too_long_ends_and_the_run_goes_on(client, held, progress):
    run = client.submit(mask_graph(9))
    with pytest.raises(TimeoutError, match="has not ended in time; it goes on"):
        run.wait(0.2, progress=progress)
    assert run.refresh().state is State.QUEUED


def test_progress_shows_what_every_node_does(client, capsys):
    client.submit("text2img", set={"seed": 2, **TINY}).result(progress=True)
    lines = capsys.readouterr().err.splitlines()
    assert [line.split()[0] for line in lines if " paint " in line] == ["ran"]


def test_waiting_runs_can_be_listed_moved_and_cancelled(client, held):
    low, high = client.submit(mask_graph(10)), client.submit(mask_graph(11), priority=5)
    assert client.queue().waiting == [high.id, low.id]
    assert low.move(priority=7).view.priority == 7
    assert client.queue().waiting == [low.id, high.id]
    last = client.submit(mask_graph(12), priority=7)
    assert last.move(place="first") is last
    assert client.queue().waiting == [last.id, low.id, high.id]
    low.move(before=last.id)
    assert [run.id for run in client.runs(state=State.QUEUED, page=1)] == [last.id, high.id, low.id]
    assert client.queue().waiting == [low.id, last.id, high.id]


def test_plans_validation_and_lists_come_as_values(client):
    assert [(item.node, item.verdict) for item in client.plan(mask_graph(13), outputs=["n0"])] == [
        ("n0", "run"),
        ("n1", "unneeded"),
    ]
    (problem,) = client.validate("text2img", set={"step": 3})
    assert (problem.path, problem.code) == ("step", "unknown_name")
    assert client.validate("text2img") == []
    assert client.graph("text2img")["format"] == "calotype/1"
    assert "text2img" in {graph.name for graph in client.graphs()}
    assert client.nodes()["mask.grow"]["outputs"] == {"out": "Mask"}
    assert client.health().status == "ok"


# Events


def test_events_tell_the_run_from_its_beginning_to_its_end(client):
    run = client.submit(mask_graph(14))
    events = list(run.events())
    assert (events[0].name, events[-1].name) == ("run.started", "run.finished")
    assert [event.data["node"] for event in events if event.name == "node.finished"] == ["n0", "n1"]
    assert [event.name for event in run.events()] == [event.name for event in events]


def test_a_feed_goes_on_after_the_last_event_that_it_saw():
    data = b"".join(replay([("trouble", {"node": "a", "message": "one\u2028two\x85"}), ("x", {})], 3, None))
    feed = Feed("1" * 32, 0)
    assert feed.headers == {}
    stream = httpx2.Response(
        200,
        content=data,
        headers={"Content-Type": "text/event-stream"},
        request=httpx2.Request("GET", f"http://service{feed.path}"),
    )
    source = httpx2.EventSource(stream)
    events = [feed.take(event) for event in source if bearing(event)]
    assert [event.data.get("message") for event in events] == ["one\u2028two\x85", None]
    assert feed.headers == {"Last-Event-ID": "3-2"}
    with pytest.raises(Unreachable, match="the events ended before the run did"):
        feed.broke_off()


def test_events_become_those_of_the_engine(client):
    run = client.submit(mask_graph(15)).wait()
    kinds = [type(known) for event in run.events() for known in told(event, run.id)]
    assert kinds == [RunStarted, NodeStarted, NodeFinished, NodeStarted, NodeFinished, RunFinished]
    reused = [known for event in client.submit(mask_graph(15)).events() for known in told(event, run.id)]
    assert [known.outcome for known in reused if isinstance(known, NodeFinished)] == [Outcome.HIT] * 2


def test_a_run_is_followed_and_waited_for_across_a_death_of_the_service(served):
    with Client(served.url, TOKEN, tries=60) as client:
        run, waited = client.submit("text2img", set={"seed": 3, **TINY, "steps": 30}), []
        waiter = threading.Thread(target=lambda: waited.append(client.run(run.id).wait().state))
        waiter.start()
        attempts, killed = [], False
        for event in run.events():
            attempts.append(event.id.partition("-")[0])
            if event.name == "progress" and not killed:
                served.kill()
                served.start()
                killed = True
        waiter.join()
        assert sorted(attempts) == attempts
        assert (event.name, event.data["state"]) == ("run.finished", "done")
        assert set(attempts) == {"1", "2"}
        assert (waited, run.wait().view.attempts) == ([State.DONE], 2)


# What goes wrong


class Lossy:
    """A way to the service on which the first `lost` answers get lost after the service has given them."""

    def __init__(self, port, lost):
        self.lost, self.port = lost, port
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self):
        with contextlib.suppress(OSError):
            while True:
                threading.Thread(target=self._carry, args=(self.listener.accept()[0],), daemon=True).start()

    def _carry(self, near):
        with near, socket.create_connection(("127.0.0.1", self.port)) as far, contextlib.suppress(OSError):
            threading.Thread(target=self._pump, args=(near, far), daemon=True).start()
            while data := far.recv(65536):
                if self.lost:
                    self.lost -= 1
                    near.shutdown(socket.SHUT_RDWR)
                    return
                near.sendall(data)

    def _pump(self, near, far):
        with contextlib.suppress(OSError):
            while data := near.recv(65536):
                far.sendall(data)


def test_a_submission_whose_answers_get_lost_runs_once(served, client):
    before = len(list(client.runs()))
    way = Lossy(served.port, lost=3)
    with way.listener, Client(way.url, TOKEN) as unlucky:
        run = unlucky.submit(mask_graph(17))
        assert way.lost == 0
        assert run.result()
    assert len(list(client.runs())) == before + 1


def test_a_key_makes_two_submissions_one_and_each_has_its_own_without(client):
    first, second = (client.submit(mask_graph(18), key="of-the-test") for _ in range(2))
    assert first.id == second.id
    assert client.submit(mask_graph(18)).id != client.submit(mask_graph(18)).id
    with pytest.raises(ServiceError) as caught:
        client.submit(mask_graph(19), key="of-the-test")
    assert (caught.value.status, caught.value.kind) == (422, "idempotency-conflict")


def test_refusals_say_everything_that_is_wrong(client):
    with pytest.raises(ServiceError) as caught:
        client.submit("text2img", set={"step": 3, "sed": 1})
    error = caught.value
    assert (error.status, error.kind) == (422, "invalid-graph")
    assert [problem.path for problem in error.problems] == ["step", "sed"]
    assert str(error).splitlines()[0] == "The graph is refused:"
    assert 'did you mean "steps"?' in str(error)
    with pytest.raises(ServiceError, match="There is no run 0000") as caught:
        client.run("0" * 32)
    assert caught.value.kind == "not-found"


def test_the_token_comes_from_the_environment_unless_it_is_given(served, monkeypatch):
    monkeypatch.delenv("CALOTYPE_TOKEN", raising=False)
    with Client(served.url) as nobody, pytest.raises(ServiceError, match="Send the token") as caught:
        nobody.health()
    assert caught.value.status == 401
    monkeypatch.setenv("CALOTYPE_TOKEN", TOKEN)
    with Client(served.url) as known:
        assert known.health().status == "ok"


def test_a_service_that_is_not_there_is_named():
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    with Client(f"http://127.0.0.1:{port}", tries=1) as client, pytest.raises(Unreachable) as caught:
        client.health()
    assert f"http://127.0.0.1:{port} does not answer" in str(caught.value)
    assert isinstance(caught.value.__cause__, httpx2.ConnectError)


def test_an_answer_of_somebody_else_is_not_taken_for_the_service():
    page = httpx2.Response(200, html="<h1>Log in</h1>", request=httpx2.Request("GET", "http://service/healthz"))
    with pytest.raises(ServiceError, match="got '<h1>Log in"):
        tried(Dialogue(0, 60).read(RunView, "GET", "/healthz"), page)
    refused = httpx2.Response(403, html="<h1>No</h1>", request=httpx2.Request("GET", "http://service/healthz"))
    with pytest.raises(ServiceError, match="answered 403 Forbidden") as caught:
        tried(Dialogue(0, 60).ask(Call("GET", "/healthz")), refused)
    assert caught.value.kind == "unexpected"


@pytest.mark.parametrize("status", sorted(BUSY))
def test_what_has_no_time_is_asked_again_after_the_pause_that_it_names(status):
    first, pause, second, done = tried(
        Dialogue(3, 60).ask(Call("GET", "/x")), answer(status, retry_after="9"), answer(200)
    )
    assert first == second == Call("GET", "/x")
    assert pause.seconds == 9
    assert done.value.status_code == 200


def test_tries_are_bounded_and_their_pauses_grow():
    error = httpx2.ReadError("gone", request=httpx2.Request("GET", "http://service"))
    exchange, pauses = Dialogue(9, 60).ask(Call("GET", "/x")), []
    with pytest.raises(Unreachable):
        step = proceed(exchange, None)
        while True:
            if isinstance(step, Pause):
                pauses.append(step.seconds)
            step = proceed(exchange, None if isinstance(step, Pause) else error)
    assert len(pauses) == 9
    assert pauses[0] < pauses[-1] <= LONGEST


@pytest.mark.parametrize("status", [400, 401, 404, 409, 422, 500, 507])
def test_what_asking_again_does_not_help_is_not_asked_again(status):
    with pytest.raises(ServiceError) as caught:
        tried(Dialogue(9, 60).ask(Call("GET", "/x")), answer(status, {"type": "urn:calotype:problem:it"}))
    assert (caught.value.status, caught.value.kind) == (status, "it")


def test_nothing_is_tried_again_after_the_deadline():
    with pytest.raises(ServiceError):
        tried(Dialogue(9, 60).ask(Call("GET", "/x"), Deadline(0)), answer(503))


def test_a_wait_that_is_answered_early_pauses_before_it_asks_again():
    view = {
        "id": "1" * 32, "url": "", "events": "", "title": "", "client": "", "priority": 0, "attempts": 1, "labels": {},
        "submitted": 0, "started": 0, "finished": 0, "seconds": 0, "outputs": {},
    }  # fmt: skip
    running, done = answer(200, {**view, "state": "running"}), answer(200, {**view, "state": "done"})
    steps = tried(Dialogue(0, 60).ended("1" * 32, Deadline()), running, done)
    assert [type(step) for step in steps] == [Call, Pause, Call, Done]


def test_a_damaged_file_is_refused():
    with pytest.raises(ServiceError, match="has another sha256") as caught:
        tried(Dialogue(0, 60).picture("0" * 64), answer(200))
    assert caught.value.kind == "damaged"


@pytest.mark.parametrize("output", ["../../etc/cron.d/evil", "/etc/passwd", "a\0b", "..", "\\\\host\\share"])
def test_no_name_leaves_the_folder(output, tmp_path):
    view = {
        "id": "1" * 32, "state": "done", "url": "", "events": "", "title": "../..", "client": "", "priority": 0,
        "attempts": 1, "labels": {}, "submitted": 0, "started": 0, "finished": 0, "seconds": 0,
        "outputs": {output: {"type": "Mask", "pictures": [
            {"digest": "d", "url": "", "type": "image/png", "width": 1, "height": 1, "bytes": 1}
        ]}},
    }  # fmt: skip
    (file,) = Record(RunView.model_validate(view))._files(tmp_path)
    assert naming.write(tmp_path, file[1], b"x").parent == tmp_path
    assert len(list(tmp_path.iterdir())) == 1


def test_long_names_are_cut_so_that_they_can_be_written(tmp_path):
    named = naming.stem("", "title " * 50, "output" * 50, ())
    assert naming.write(tmp_path, named, b"x").read_bytes() == b"x"


# The asynchronous client


def test_the_asynchronous_client_does_the_same(served, tmp_path):
    async def work():
        async with AsyncClient(served.url, TOKEN) as client:
            runs = await asyncio.gather(*(client.submit(mask_graph(20 + number)) for number in range(4)))
            names = [list(await run.result()) for run in runs]
            paths = await runs[0].download(tmp_path)
            told_of: list[str] = []
            await (await client.submit(mask_graph(24))).wait(30, progress=lambda event: told_of.append(event.name))
            listed = [run.id async for run in client.runs(page=2)]
            picture = await runs[0].picture("mask")
            source = await client.upload(picture)
            verdicts = await client.plan(mask_graph(20))
            followed = [event.name async for event in runs[1].events()]
            with pytest.raises(ServiceError, match="did you mean"):
                await client.submit("text2img", set={"step": 1})
            return names, paths, told_of, listed, {run.id for run in runs}, source, verdicts, followed

    names, paths, told_of, listed, submitted, source, verdicts, followed = asyncio.run(work())
    assert names == [["mask"]] * 4
    assert [path.name for path in paths["mask"]] == ["untitled-mask-00001.png"]
    assert told_of[-1] == followed[-1] == "run.finished"
    assert submitted <= set(listed)
    assert source.startswith("blob:")
    assert {item.verdict for item in verdicts} == {"hit"}


def test_an_asynchronous_wait_ends_in_time(served, held):
    async def work(progress):
        async with AsyncClient(served.url, TOKEN) as client:
            run = await client.submit(mask_graph(30))
            with pytest.raises(TimeoutError):
                await run.wait(0.2, progress=progress)

    asyncio.run(work(progress=False))
    asyncio.run(work(progress=True))


@pytest.mark.parametrize(("blocking", "awaited"), [(Client, AsyncClient), (Run, AsyncRun)])
def test_both_clients_take_the_same(blocking, awaited):
    def methods(kind):
        found = {name: getattr(kind, name) for name in dir(kind) if not name.startswith("_") or name == "__init__"}
        return {name: inspect.signature(made).parameters.keys() for name, made in found.items() if callable(made)}

    assert methods(blocking) == methods(awaited)


# The module


def test_the_client_needs_neither_torch_nor_an_engine():
    probe = "import calotype.client, sys; print(' '.join(sys.modules))"
    done = subprocess.run([sys.executable, "-c", probe], check=True, capture_output=True, text=True)
    assert not {"torch", "diffusers", "transformers", "fastapi", "engine.engine", "nodes"} & set(done.stdout.split())


def test_every_public_name_is_there():
    assert sorted(calotype.client.__all__) == calotype.client.__all__
    assert calotype.client.verify is signature.verify
    assert all(hasattr(calotype.client, name) for name in calotype.client.__all__)
