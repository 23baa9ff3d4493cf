"""What the service does when the disk, its folders or its settings are not as they should be: it refuses or goes on
with less, says why, spoils nothing, and recovers when the trouble is over."""

import contextlib
import hashlib
import io
import re
import resource
import signal
import sqlite3
import threading
from contextlib import closing, contextmanager

import PIL.Image
import pytest
from nursery import Hatched, Nursery
from serving import Serving, mask_graph, sample_graph

HUMBLE = """
import ctypes

class Header(ctypes.Structure):
    _fields_ = [("version", ctypes.c_uint32), ("pid", ctypes.c_int)]

libc, header, sets = ctypes.CDLL(None, use_errno=True), Header(0x20080522, 0), (ctypes.c_uint32 * 6)()
assert libc.capget(ctypes.byref(header), sets) == 0
for number in range(3):
    sets[number] &= ~0b110
assert libc.capset(ctypes.byref(header), sets) == 0
"""
"""Gives up root's right to pass over the permissions of files, so that they count whoever runs the tests."""
HASTY_END = """
from server.service import Service

Service.close.__defaults__ = (0.2,)
"""
"""Runs that are under way get a fifth of a second when the service stops."""
LONG = sample_graph(7, steps=60)
"""A few seconds of sampling."""


@pytest.fixture(scope="module")
def nursery():
    found = Nursery()
    yield found
    found.close()


@pytest.fixture
def hatch(nursery, tmp_path):
    """Makes the server of this test, which has not been started yet."""
    with contextlib.ExitStack() as living:

        def made(*, twist="", **settings):
            server = Hatched(nursery, tmp_path, twist=twist, device="cpu", **settings)
            living.callback(server.__exit__)
            return server

        yield made


# What is looked at


def health(server):
    with server.client() as client:
        return client.get("/healthz").json()


def refused(server):
    """What a server says that does not start, and its exit status."""
    before = server.log.stat().st_size if server.log.exists() else 0
    server.start(wait=False)
    status = server.process.wait()
    return server.log.read_text()[before:], status


def until(server, condition, path="/healthz"):
    """Ask again and again until the answer is as it should be, and return it."""
    with server.client() as client:
        for _ in range(2000):
            answer = client.get(path).json()
            if condition(answer):
                return answer
            threading.Event().wait(0.02)
    raise AssertionError(f"{path} stays as it is: {answer}")


def submitted(server, body, **headers):
    """The answer to a submission."""
    with server.client() as client:
        return client.post("/v1/runs", json=body, headers=headers)


def finished(server, run):
    """A run's document, once it has ended."""
    return until(server, lambda document: document["finished"], f"/v1/runs/{run}")


def digest_of(document):
    return document["outputs"]["mask"]["pictures"][0]["digest"]


def fetched(server, digest):
    with server.client() as client:
        return client.get(f"/v1/blobs/{digest}")


def intact(server):
    """SQLite finds nothing wrong with the database of a stopped server."""
    with closing(sqlite3.connect(server.folder / "data" / "service.sqlite")) as database:
        return database.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


def problem(answer):
    """Status and type of a refusal."""
    return answer.status_code, answer.json()["type"].removeprefix("urn:calotype:problem:")


@contextmanager
def full_disk(server):
    """No file of a running server can grow or be written."""
    _, hard = resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE)
    resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE, (0, hard))
    try:
        yield
    finally:
        resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE, (hard, hard))


@contextmanager
def read_only(*folders):
    """Nothing can be created in these folders."""
    modes = {folder: folder.stat().st_mode for folder in folders}
    for folder in folders:
        folder.chmod(0o500)
    try:
        yield
    finally:
        for folder, mode in modes.items():
            folder.chmod(mode)


# A disk that is full


def test_on_a_full_disk_a_submission_is_refused_and_the_same_key_is_accepted_when_there_is_room(hatch):
    server = hatch().start()
    body = {"graph": mask_graph(3)}
    with full_disk(server):
        answer = submitted(server, body, **{"Idempotency-Key": "one"})
        assert problem(answer) == (507, "storage")
        assert "service.sqlite" in answer.json()["detail"]
        with server.client() as client:
            assert client.get("/v1/runs").json()["runs"] == []
    accepted = submitted(server, body, **{"Idempotency-Key": "one"})
    assert accepted.status_code == 202
    assert finished(server, accepted.json()["id"])["state"] == "done"
    server.stop()
    assert intact(server)


def test_a_run_whose_results_find_no_room_waits_degraded_and_is_done_when_there_is(hatch):
    server = hatch().start()
    run = submitted(server, LONG).json()["id"]
    until(server, lambda document: document["state"] == "running", f"/v1/runs/{run}")
    with full_disk(server):
        degraded = until(server, lambda view: view["status"] == "degraded" and view["queued"] + view["running"])
        assert any("disk" in reason for reason in degraded["reasons"])
        with server.client() as client:
            assert client.get(f"/v1/runs/{run}").json()["state"] == "running"
    assert finished(server, run)["state"] == "done"
    server.stop()
    assert intact(server)


def test_a_server_that_is_stopped_on_a_full_disk_goes_on_with_what_waited(hatch):
    server = hatch(twist=HASTY_END).start()
    run = submitted(server, LONG).json()["id"]
    until(server, lambda document: document["state"] == "running", f"/v1/runs/{run}")
    with full_disk(server):
        until(server, lambda view: view["status"] == "degraded")
        server.process.send_signal(signal.SIGTERM)
        server.process.wait()
        server.start()
    assert finished(server, run)["state"] == "done"
    server.stop()
    assert intact(server)


def test_a_run_that_joined_another_waits_with_it_for_the_next_start(hatch):
    server = hatch(twist=HASTY_END).start()
    runs = []
    for seed in (21, 22):
        runs.append(submitted(server, sample_graph(seed, steps=100)).json()["id"])
        until(server, lambda document: document["state"] == "running", f"/v1/runs/{runs[-1]}")
    server.stop()
    server.start()
    assert [finished(server, run)["state"] for run in runs] == ["done", "done"]
    server.stop()
    assert intact(server)


def test_an_upload_that_finds_no_room_is_refused_and_leaves_nothing_behind(hatch):
    server = hatch().start()
    stream = io.BytesIO()
    PIL.Image.new("RGB", (32, 32), "red").save(stream, "PNG")
    upload = {"content": stream.getvalue(), "headers": {"Content-Type": "image/png"}}
    with server.client() as client:
        with full_disk(server):
            assert problem(client.post("/v1/blobs", **upload)) == (507, "storage")
        assert [*(server.folder / "data" / "blobs").rglob("*")] == []
        assert client.post("/v1/blobs", **upload).status_code == 201


def test_what_is_cached_is_refused_too_on_a_full_disk_and_looks_are_answered(hatch):
    server = hatch().start()
    body = {"graph": mask_graph(3)}
    run = server.run(body)
    with full_disk(server), server.client() as client:
        assert problem(client.post("/v1/runs", json=body)) == (507, "storage")
        assert client.get(f"/v1/runs/{run['id']}").json() == run
        assert fetched(server, digest_of(run)).status_code == 200
        assert [client.get(path).status_code for path in ("/healthz", "/metrics", "/v1/queue")] == [200, 200, 200]
    assert server.run(body)["outputs"] == run["outputs"]


# Folders that cannot be written


def test_results_that_cannot_be_written_hold_the_queue_up_until_they_can(hatch):
    server = hatch(twist=HUMBLE).start()
    with read_only(server.folder / "data" / "blobs"):
        run = submitted(server, {"graph": mask_graph(3)}).json()["id"]
        degraded = until(server, lambda view: view["status"] == "degraded")
        assert any("Permission denied" in reason for reason in degraded["reasons"])
    assert finished(server, run)["state"] == "done"
    assert health(server)["status"] == "ok"


def test_a_cached_result_whose_files_cannot_be_written_again_is_refused_until_they_can(hatch):
    server = hatch(twist=HUMBLE).start()
    first = server.run({"graph": mask_graph(3)})
    server.stop()
    for path in (server.folder / "data" / "blobs").glob("??/*"):
        path.unlink()
    server.start()
    with read_only(*(server.folder / "data" / "blobs").rglob("*"), server.folder / "data" / "blobs"):
        assert problem(submitted(server, {"graph": mask_graph(3)})) == (507, "storage")
    again = server.run({"graph": mask_graph(3)})
    assert again["outputs"] == first["outputs"]
    assert fetched(server, digest_of(again)).status_code == 200


def test_with_a_cache_folder_that_cannot_be_written_runs_are_done_and_health_says_what_is_missing(hatch):
    server = hatch(twist=HUMBLE).start()
    with read_only(server.folder / "data" / "cache"):
        document = server.run({"graph": mask_graph(3)})
        assert document["state"] == "done"
        assert fetched(server, digest_of(document)).status_code == 200
        view = until(server, lambda view: view["status"] == "degraded")
        assert any(str(server.folder / "data" / "cache") in reason for reason in view["reasons"])
        server.stop()
    server.start()
    assert server.run({"graph": mask_graph(3)})["outputs"] == document["outputs"]
    assert health(server)["status"] == "ok"


def test_a_file_where_the_cache_keeps_its_values_costs_the_cache_alone(hatch, tmp_path):
    server = hatch()
    (tmp_path / "data" / "cache").mkdir(parents=True)
    (tmp_path / "data" / "cache" / "values").write_text("in the way")
    server.start()
    assert server.run({"graph": mask_graph(3)})["state"] == "done"
    view = until(server, lambda view: view["status"] == "degraded")
    assert any("values" in reason for reason in view["reasons"])
    assert server.run({"graph": mask_graph(4)})["state"] == "done"


def test_a_cache_folder_that_is_deleted_meanwhile_costs_no_result(hatch, tmp_path):
    server = hatch().start()
    first = server.run({"graph": mask_graph(3)})
    for path in sorted((tmp_path / "data" / "cache").rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    (tmp_path / "data" / "cache").rmdir()
    assert server.run({"graph": mask_graph(3)})["outputs"] == first["outputs"]
    assert server.run({"graph": mask_graph(5)})["state"] == "done"
    server.stop()
    server.start()
    assert server.run({"graph": mask_graph(3)})["outputs"] == first["outputs"]
    assert health(server)["status"] == "ok"


def test_a_data_folder_that_cannot_be_written_refuses_the_start_and_names_it(hatch, tmp_path):
    server = hatch(twist=HUMBLE)
    (tmp_path / "data").mkdir()
    with read_only(tmp_path / "data"):
        said, status = refused(server)
    assert status == 1
    assert str(tmp_path / "data") in said
    assert "Permission denied" in said
    assert "Traceback" not in said


def test_a_cache_that_is_a_file_refuses_the_start_and_names_it(hatch, tmp_path):
    (tmp_path / "cache").write_text("not a folder")
    said, status = refused(hatch(cache=tmp_path / "cache"))
    assert status == 1
    assert str(tmp_path / "cache") in said
    assert "Traceback" not in said


# Blobs that somebody damaged


@pytest.mark.parametrize("damage", ["deleted", "cut short", "other bytes", "emptied"])
def test_a_damaged_result_is_never_served_and_is_made_again_with_the_next_submission(hatch, damage):
    server = hatch().start()
    body = {"graph": mask_graph(3)}
    first = server.run(body)
    server.run(body)
    digest = digest_of(first)
    path = server.folder / "data" / "blobs" / digest[:2] / digest
    whole = path.read_bytes()
    spoiled = {"cut short": whole[:50], "other bytes": whole[:-9] + b"123456789", "emptied": b""}
    if damage == "deleted":
        path.unlink()
    else:
        path.write_bytes(spoiled[damage])
    assert problem(fetched(server, digest)) == (404, "not-found")
    again = server.run(body)
    assert again["outputs"] == first["outputs"]
    assert again["nodes"]["n1"]["outcome"] in {"hit", "unneeded"}
    assert hashlib.sha256(fetched(server, digest).content).hexdigest() == digest


def test_a_graph_that_names_a_lost_upload_is_refused_until_it_is_uploaded_again(hatch):
    server = hatch().start()
    stream = io.BytesIO()
    PIL.Image.new("RGB", (32, 32), "red").save(stream, "PNG")
    upload = {"content": stream.getvalue(), "headers": {"Content-Type": "image/png"}}
    digest = hashlib.sha256(stream.getvalue()).hexdigest()
    load = {"type": "image.load", "params": {"source": f"blob:{digest}"}}
    body = {"graph": {"format": "calotype/1", "nodes": {"photo": load}, "outputs": {"image": "photo.out"}}}
    with server.client() as client:
        assert client.post("/v1/blobs", **upload).status_code == 201
        (server.folder / "data" / "blobs" / digest[:2] / digest).unlink()
        answer = client.post("/v1/runs", json=body)
        assert answer.status_code in {410, 422}
        assert "upload" in answer.text
        assert client.post("/v1/blobs", **upload).status_code in {200, 201}
    assert server.run(body)["state"] == "done"


# Databases that are none, folders that are taken


def test_a_file_that_is_no_database_refuses_the_start_and_stays_as_it_is(hatch, tmp_path):
    path = tmp_path / "data" / "service.sqlite"
    path.parent.mkdir()
    path.write_bytes(b"my diary, volume one " * 500)
    said, status = refused(hatch())
    assert status == 1
    assert str(path) in said
    assert "Traceback" not in said
    assert path.read_bytes() == b"my diary, volume one " * 500


def test_a_history_of_a_newer_layout_refuses_the_start_and_stays_as_it_is(hatch, tmp_path):
    server = hatch().start()
    server.run({"graph": mask_graph(3)})
    server.stop()
    path = tmp_path / "data" / "service.sqlite"
    with closing(sqlite3.connect(path)) as database:
        (layout,) = database.execute("PRAGMA user_version").fetchone()
        database.execute(f"PRAGMA user_version = {layout + 1}")
    before = path.read_bytes()
    said, status = refused(server)
    assert status == 1
    assert f"expected layout {layout}, got layout {layout + 1}" in said
    assert path.read_bytes() == before


def test_a_second_server_on_the_same_data_folder_is_refused_and_the_first_goes_on(hatch, tmp_path):
    with Serving(tmp_path, device="cpu").start() as first:
        said, status = refused(hatch())
        assert status == 1
        assert str(tmp_path / "data") in said
        assert "another process" in said
        assert "Traceback" not in said
        assert first.run({"graph": mask_graph(3)})["state"] == "done"


# Wrong settings


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"port": "99999"}, "port"),
        ({"limits__body": "much"}, "limits.body"),
        ({"host": "0.0.0.0"}, "token"),
        ({"webhooks__allow": '["example.org"]'}, "webhooks.secret"),
        ({"queue__attempts": "-1"}, "queue.attempts"),
    ],
)
def test_wrong_settings_refuse_the_start_and_are_named(hatch, settings, named):
    server = hatch()
    server.settings |= {f"CALOTYPE_{name.upper()}": value for name, value in settings.items()}
    if "port" in settings:
        server.port = settings["port"]
    said, status = refused(server)
    assert status == 2
    assert named in said
    assert "Traceback" not in said


# A stop in the middle


def named(stream):
    """Id and name of each event that lasts."""
    return re.findall(r"id: (\S+)\nevent: (\S+)\n", stream)


def test_a_stop_in_the_middle_of_a_run_has_it_wait_and_its_attempt_does_not_count(hatch):
    server = hatch(twist=HASTY_END).start()
    run = submitted(server, LONG).json()["id"]
    until(server, lambda document: document["state"] == "running", f"/v1/runs/{run}")
    assert server.stop() == -signal.SIGTERM
    with closing(sqlite3.connect(server.folder / "data" / "service.sqlite")) as database:
        assert database.execute("SELECT id, state, attempts FROM runs").fetchall() == [(run, "queued", 1)]
    server.start()
    document = finished(server, run)
    assert (document["state"], document["attempts"]) == ("done", 2)


def test_followers_of_a_stopped_server_are_let_go_and_go_on_with_the_next(hatch):
    server = hatch(twist=HASTY_END).start()
    run = submitted(server, LONG).json()["id"]
    until(server, lambda document: document["state"] == "running", f"/v1/runs/{run}")
    with server.client() as client, client.stream("GET", f"/v1/runs/{run}/events") as stream:
        text, first = stream.iter_text(), ""
        while not named(first):
            first += next(text)
        server.process.send_signal(signal.SIGTERM)
        heard = named(first + "".join(text))
    server.stop()
    assert "run.finished" not in [name for _, name in heard]
    server.start()
    with server.client() as client:
        had = {"Last-Event-ID": heard[-1][0]} if heard else {}
        rest = named(client.get(f"/v1/runs/{run}/events", headers=had).text)
    assert rest[-1][1] == "run.finished"
    assert [name for _, name in rest if name == "run.started"] == ["run.started"]
    assert {id_.partition("-")[0] for id_, _ in heard} == {"1"}
    assert {id_.partition("-")[0] for id_, _ in rest} == {"2"}
    assert finished(server, run)["state"] == "done"


def test_whoever_waits_for_a_run_when_the_server_stops_finds_it_at_the_next(hatch):
    server = hatch(twist=HASTY_END).start()
    key = {"Idempotency-Key": "mine"}
    told = []

    def wait():
        with server.client() as client:
            told.append(client.post("/v1/runs?wait=60", json=LONG, headers=key))

    waiting = threading.Thread(target=wait)
    waiting.start()
    until(server, lambda view: view["running"])
    server.stop()
    waiting.join()
    assert [answer.status_code for answer in told] == [202]
    server.start()
    again = submitted(server, LONG, **key)
    assert again.headers["Idempotency-Replayed"] == "true"
    assert finished(server, again.json()["id"])["state"] == "done"
    with server.client() as client:
        assert len(client.get("/v1/runs").json()["runs"]) == 1
