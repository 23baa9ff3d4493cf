"""An accepted run is never lost and never run twice, however often the service is killed.

Clients submit without pause while the server is killed at random moments and started again. What they were told is
held against what the server says later, and against a server that nobody disturbs. Servers that are wrong on purpose
fail the same examination.
"""

import functools
import hashlib
import io
import json
import math
import random
import shutil
import signal
import sqlite3
import tempfile
import threading
import time
from collections import Counter
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx2
import PIL.Image
import pytest
from nursery import Hatched, Nursery
from serving import PATIENCE, Serving, mask_graph, sample_graph

CLIENTS = 4
AT_ONCE = 10
"""Runs of one client that may be unfinished before it waits."""
FINAL = {"done", "failed", "cancelled"}
SETTINGS = {"exact": "true", "queue__attempts": "1000", "device": "cpu"}
"""Fused calls would depend on their company, in their last bits."""


@pytest.fixture(scope="module")
def nursery():
    found = Nursery()
    yield found
    found.close()


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """A plain server that nobody kills, in a folder of its own."""
    with Serving(tmp_path_factory.mktemp("undisturbed"), **SETTINGS).start(wait=False) as server:
        yield server


# What is submitted


@functools.cache
def picture(number):
    """A small PNG of its own."""
    stream = io.BytesIO()
    PIL.Image.effect_mandelbrot((48, 40), (-2, -1.5, 1 + number / 8, 1.5), 20).save(stream, "PNG")
    return stream.getvalue()


def picture_graph(number, side):
    """A graph that loads an uploaded picture and scales it."""
    digest = hashlib.sha256(picture(number)).hexdigest()
    load = {"type": "image.load", "params": {"source": f"blob:{digest}"}}
    scale = {"type": "image.resize", "params": {"width": side, "height": side}, "inputs": {"image": "photo.out"}}
    return {"format": "calotype/1", "nodes": {"photo": load, "small": scale}, "outputs": {"image": "small"}}


@dataclass(frozen=True)
class Wish:
    """Something to submit, with the number of the picture that has to be uploaded before."""

    body: str
    upload: int | None = None


def wish(rng, variety):
    """Any of many submissions, most of them cheap; what has come before is cached, so many kills need much variety."""
    kind, upload = rng.choices(("mask", "upload", "sample", "sweep"), (70, 15, 8, 7))[0], None
    if kind == "mask":
        body = {"graph": mask_graph(rng.randrange(variety // 2), side=64, more=rng.randrange(4))}
    elif kind == "sample":
        body = sample_graph(rng.randrange(variety // 8), steps=rng.randrange(2, 6))
    else:
        upload = rng.randrange(12)
        body = {"graph": picture_graph(upload, rng.choice((16, 24, 32)))}
        if kind == "sweep":
            body["sweep"] = {"x": {"small.height": rng.sample(range(16, 16 + variety), 3)}}
    return Wish(json.dumps(body), upload)


# Who submits


class Crowd:
    """Clients of one server. They remember what they were told, and complain when they are told otherwise later."""

    def __init__(self, server, seed, variety):
        self.server = server
        self.complaints = []
        self.enough = threading.Event()
        """No more submissions."""
        self.gone = threading.Event()
        """No more looks."""
        self.accepted = {}
        """Idempotency-Key -> id."""
        self.wishes = {}
        """Id -> what was submitted."""
        self.unwanted = {}
        """Id -> the state that the cancellation was answered with."""
        self.ended = {}
        """Id -> the document, when it was first seen at its end."""
        self.blobs = Counter()
        """Digest -> how often it was fetched whole."""
        self._seed = seed
        self._variety = variety
        self._patience = math.inf
        self._submitters = [threading.Thread(target=self._heard, args=(self._submit, n)) for n in range(CLIENTS)]
        self._readers = [threading.Thread(target=self._heard, args=(self._read, n)) for n in range(2)]

    def __enter__(self):
        for thread in (*self._submitters, *self._readers):
            thread.start()
        return self

    def __exit__(self, *failure):
        self.complaints += failure[1:2] if failure[1] else []
        self.finish()

    def finish(self):
        """Wait until every submission is accepted, and every run has been seen at its end."""
        self._patience = time.monotonic() + PATIENCE
        self.enough.set()
        for thread in self._submitters:
            thread.join()
        self.gone.set()
        for thread in self._readers:
            thread.join()

    def ask(self, client, method, url, **options):
        """An answer, however often the server has to be asked."""
        while not self.complaints:
            expect(time.monotonic() < self._patience, f"{method} {url}: nothing comes to an end")
            try:
                answer = client.request(method, url, **options)
            except httpx2.TransportError:
                self.gone.wait(0.01)
                continue
            if answer.status_code != 503:
                expect(answer.status_code < 300, f"{method} {url}: {answer.status_code} {answer.text[:300]}")
                return answer
            expect("unavailable" in answer.text, answer.text)
        raise Silenced

    def look(self, client, run, **options):
        """A run's document, which never changes once it has ended."""
        document = self.ask(client, "GET", f"/v1/runs/{run}", **options).json()
        if document["state"] in FINAL:
            first = self.ended.setdefault(run, document)
            expect(first == document, f"run {run} changed after its end: {first} became {document}")
        return document

    def _heard(self, work, number):
        try:
            with self.server.client() as client:
                work(client, random.Random(f"{self._seed} {work.__name__} {number}"), number)
        except Silenced:
            pass
        except Exception as error:  # noqa: BLE001  whatever it is, the test wants to know
            self.complaints.append(error)

    def _submit(self, client, rng, number):
        waiting = []
        while not self.enough.is_set():
            waiting.append(self._submitted(client, rng, f"client {number}, run {len(self.accepted)} {rng.random()}"))
            while len(waiting) >= AT_ONCE and not self.enough.is_set():
                waiting = [run for run in waiting if self.look(client, run)["state"] not in FINAL]
                self.enough.wait(0.02)
        for run in waiting:
            while self.look(client, run, params={"wait": 20})["state"] not in FINAL:
                pass

    def _submitted(self, client, rng, key):
        found = wish(rng, self._variety)
        if found.upload is not None:
            self.ask(client, "POST", "/v1/blobs", content=picture(found.upload), headers={"Content-Type": "image/png"})
        headers = {"Idempotency-Key": key, "Content-Type": "application/json"}
        submission = {"content": found.body, "headers": headers}
        run = self.ask(client, "POST", "/v1/runs", **submission).json()["id"]
        self.wishes[run] = found
        self.accepted[key] = run
        if rng.random() < 0.1:
            again = self.ask(client, "POST", "/v1/runs", **submission).json()["id"]
            expect(again == run, f"{key!r} made {run}, then {again}")
        if rng.random() < 0.08:
            self.unwanted[run] = self.ask(client, "DELETE", f"/v1/runs/{run}").json()["state"]
        return run

    def _read(self, client, rng, number):
        while not self.gone.is_set():
            known = list(self.accepted.values())
            if not known:
                self.gone.wait(0.02)
                continue
            document = self.look(client, rng.choice(known[-30:] if number else known))
            for digest in digests(document):
                content = self.ask(client, "GET", f"/v1/blobs/{digest}").content
                expect(hashlib.sha256(content).hexdigest() == digest, f"blob {digest} was served with other content")
                self.blobs[digest] += 1


class Silenced(Exception):
    """Somebody has complained already."""


def expect(kept, complaint):
    """What `assert` says in a test's own thread."""
    if not kept:
        raise AssertionError(complaint)


def digests(document):
    """Digests of a run's pictures, those of cells too."""
    for output in document["outputs"].values():
        for part in (output, *output.get("cells", ())):
            yield from (picture["digest"] for picture in part.get("pictures", ()))


# What it goes through


@dataclass
class Ordeal:
    """How a server was interrupted."""

    kills: int = 0
    busy: int = 0
    """Kills of a server that had answered, and left runs that had not ended."""
    running: int = 0
    """Kills that met runs in the middle."""
    early: int = 0
    """Kills before the server answered."""
    stops: int = 0
    seconds: float = 0.0

    def interrupt(self, crowd, rng, *, kills, busy):
        """Kill the server, and stop it now and then, until it was killed so often."""
        server = crowd.server
        while not crowd.complaints and self.kills < 2 * kills and (self.kills < kills or self.busy < busy):
            if server.process.poll() is not None:
                server.start(wait=False)
            if rng.random() < 0.15 and self.kills:
                crowd.gone.wait(rng.uniform(0, 0.3))
                self._kill(crowd, answered=False)
                continue
            server.wait()
            crowd.gone.wait(rng.choice((rng.uniform(0, 0.03), rng.uniform(0, 0.3), rng.uniform(0, 0.9))))
            if rng.random() < 0.2:
                self._stop(crowd)
            else:
                self._kill(crowd, answered=True)

    def _kill(self, crowd, *, answered):
        crowd.server.kill()
        self.kills += 1
        states = left_behind(crowd)
        if answered:
            self.busy += bool(states["queued"] + states["running"])
            self.running += bool(states["running"])
        else:
            self.early += 1

    def _stop(self, crowd):
        status = crowd.server.stop()
        assert status in {0, -signal.SIGTERM}, f"stopped with {status}: {crowd.server.log.read_text()[-2000:]}"
        self.stops += 1
        assert not left_behind(crowd)["running"], "a clean stop left runs behind that seem to run"


def left_behind(crowd):
    """How many runs a dead server left in each state: its files are copied first, so that the next one finds them as
    they are. Everything that was promised must be there."""
    promised, ended = dict(crowd.wishes), dict(crowd.ended)
    with copied(crowd.server) as database:
        assert database.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        runs = {run: rest for run, *rest in database.execute("SELECT id, state, finished FROM runs")}
    lost = promised.keys() - runs.keys()
    assert not lost, f"{len(lost)} runs were accepted and are lost"
    for run, document in ended.items():
        assert runs[run] == [document["state"], document["finished"]], f"run {run} had ended, and has not any more"
    return Counter(state for state, _ in runs.values())


@contextmanager
def copied(server):
    """A connection to a copy of a server's database."""
    with tempfile.TemporaryDirectory() as folder:
        for path in (server.folder / "data").glob("service.sqlite*"):
            if not path.name.endswith("-shm"):
                shutil.copy(path, folder)
        with closing(sqlite3.connect(Path(folder) / "service.sqlite")) as connection:
            yield connection


def examine(server, *, kills, busy, seed):
    """Submit, kill and start again; returns the crowd and the ordeal. Raises AssertionError for any broken promise."""
    ordeal, rng, began = Ordeal(), random.Random(f"{seed} kills"), time.monotonic()
    crowd = Crowd(server, seed, kills)
    with crowd:
        ordeal.interrupt(crowd, rng, kills=kills, busy=busy)
        if not crowd.complaints and server.process.poll() is not None:
            server.start()
    ordeal.seconds = time.monotonic() - began
    if crowd.complaints:
        raise crowd.complaints[0]
    recounted(crowd)
    return crowd, ordeal


def recounted(crowd):
    """The server's history holds exactly what was accepted, each run ended as it had to."""
    with crowd.server.client() as client:
        history = listed(client)
    assert Counter(run["id"] for run in history) == Counter(crowd.accepted.values())
    for run in history:
        known = crowd.unwanted.get(run["id"])
        allowed = {None: {"done"}, "queued": {"cancelled", "done"}, "running": {"cancelled", "done"}}
        assert run["state"] in allowed.get(known, {known}), (known, run)


def listed(client):
    """All runs."""
    found, address = [], "/v1/runs?limit=200"
    while address:
        page = client.get(address).json()
        found += page["runs"]
        address = page["next"]
    return found


def compared(crowd, undisturbed):
    """Results are what the undisturbed server gives, to the last bit; returns how many were compared."""
    wishes = {wish.body: wish for wish in crowd.wishes.values()}
    with undisturbed.client() as client:
        for number in {wish.upload for wish in wishes.values()} - {None}:
            client.post("/v1/blobs", content=picture(number), headers={"Content-Type": "image/png"}).raise_for_status()
        posted = {body: client.post("/v1/runs", json=json.loads(body)).json()["id"] for body in wishes}
        expected = {body: ended(client, run)["outputs"] for body, run in posted.items()}
    done = {run: document for run, document in crowd.ended.items() if document["state"] == "done"}
    for run, document in done.items():
        assert document["outputs"] == expected[crowd.wishes[run].body], crowd.wishes[run].body
    return len(done)


def ended(client, run):
    """The document of a run, at its end."""
    document = client.get(f"/v1/runs/{run}", params={"wait": 50}).json()
    assert document["state"] == "done", document
    return document


def leftovers(server):
    """Files of a stopped server that should not be there. Its cache may be shared: what a killed process left there
    waits for an hour, as somebody else might be writing it."""
    data = server.folder / "data"
    blobs = {path for path in (data / "blobs").glob("??/*") if len(path.name) == 64}
    expected = {data / "service.sqlite", data / "lock", *blobs, *(data / "cache").rglob("*")}
    return [path for path in data.rglob("*") if path.is_file() and path not in expected]


# The tests


@pytest.mark.parametrize(
    ("kills", "busy"), [(50, 35), pytest.param(200, 140, marks=pytest.mark.slow)], ids=["50 kills", "200 kills"]
)
def test_accepted_runs_survive_any_number_of_kills_and_end_exactly_once_with_the_same_bits(
    nursery, undisturbed, tmp_path, kills, busy
):
    with Hatched(nursery, tmp_path, **SETTINGS) as server:
        crowd, ordeal = examine(server, kills=kills, busy=busy, seed=kills)
        server.stop()
        undisturbed.wait()
        equal = compared(crowd, undisturbed)
    states = Counter(document["state"] for document in crowd.ended.values())
    print(ordeal, dict(states), f"{equal} results equal, {crowd.blobs.total()} downloads of {len(crowd.blobs)} blobs")
    assert ordeal.kills >= kills
    assert ordeal.busy >= busy
    assert crowd.ended.keys() == set(crowd.accepted.values())
    with closing(sqlite3.connect(tmp_path / "data" / "service.sqlite")) as database:
        assert database.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        assert database.execute("SELECT COUNT(*) FROM runs WHERE state IN ('running', 'queued')").fetchone() == (0,)
    assert leftovers(server) == []


HASTY = """
import threading, time
from server.ledger import Ledger

def commit(self, entries):
    self._connection.execute("BEGIN IMMEDIATE")
    for entry, result in zip(entries, self._together(entries), strict=True):
        self._answer(entry, result)
    time.sleep(0.05)
    self._connection.execute("COMMIT")

Ledger._commit = commit
"""
FORGETFUL = """
from server import lifecycle
from server.rows import Recovered

lifecycle.recover = lambda connection, attempts, now: Recovered((), ())
"""
SLOPPY = """
import time
from server.blobs import Blobs

def put(self, data):
    import hashlib
    digest = hashlib.sha256(data).hexdigest()
    path = self.path(digest)
    path.parent.mkdir(exist_ok=True)
    if not path.exists():
        with path.open("wb", buffering=0) as stream:
            stream.write(data[:40])
            time.sleep(0.1)
            stream.write(data[40:])
    return digest

Blobs.put = put
"""
ZEALOUS = """
from server import lifecycle

lifecycle._REQUEUE = lifecycle._REQUEUE.replace("AND state = 'running'", "")
whole = lifecycle.recover

def recover(connection, attempts, now):
    last = connection.execute("SELECT id FROM runs WHERE state = 'done' ORDER BY number DESC LIMIT 3").fetchall()
    for (run,) in last:
        connection.execute("UPDATE runs SET state = 'queued', finished = NULL WHERE id = ?", (run,))
    return whole(connection, attempts, now)

lifecycle.recover = recover
"""


@pytest.mark.parametrize(
    ("twist", "complaint"),
    [
        pytest.param(HASTY, "accepted and are lost|404|had ended", id="answers before the write is durable"),
        pytest.param(SLOPPY, "404|other content", id="writes results where they are read"),
        pytest.param(FORGETFUL, "seem to run", id="forgets what was running"),
        pytest.param(ZEALOUS, "had ended|changed after its end", id="runs again what has ended"),
    ],
)
def test_a_server_that_is_wrong_fails_the_same_examination(nursery, tmp_path, twist, complaint):
    with Hatched(nursery, tmp_path, twist=twist, **SETTINGS) as server, pytest.raises(AssertionError, match=complaint):
        examine(server, kills=50, busy=35, seed=1)
