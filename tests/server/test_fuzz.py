"""Requests that no person would send: what the description allows and forbids, and graphs bent out of shape."""

import asyncio
import copy
import hashlib
import json
import time
from collections import Counter
from random import Random

import psutil
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schemathesis.config import SchemathesisConfig
from schemathesis.engine import events, from_schema
from serving import ROOT, Serving, mask_graph

from calotype.service import build
from server.app import application
from server.problem import KINDS
from server.settings import Settings

TOGETHER = 10
"""Documents made of one seed."""
EFFORT = 5.0
"""Seconds of computing in which every request is answered."""
HANG = 120.0
"""Seconds in which it is answered on a machine that has other things to do."""
GROWTH = 300 << 20
"""Bytes by which the process may grow while it takes them all."""
TOKEN = "a-token-of-forty-characters-for-the-fuzz"
ACCEPTABLE = ["2xx", "401", "403", "404", "409", "410", "422", "503"]
"""What well-formed requests get: a graph that fits the description may still be no good graph."""


# Requests made from the OpenAPI document


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    small = {"limits__steps": 2, "limits__pixels": 4096, "limits__wait": 1, "device": "cpu", "token": TOKEN}
    with Serving(tmp_path_factory.mktemp("fuzz"), **small) as found:
        yield found


def described(server, examples):
    """The service's own description as schemathesis reads it, and what it shall do with it."""
    config = SchemathesisConfig.from_dict(
        {
            "seed": 1,
            "continue-on-failure": True,
            "headers": server.headers,
            "request-timeout": HANG,
            "generation": {"max-examples": examples, "deterministic": True, "database": "none"},
            "checks": {"positive_data_acceptance": {"expected-statuses": ACCEPTABLE}},
        }
    )
    return schemathesis.openapi.from_url(f"{server.url}/openapi.json", config=config, headers=server.headers)


def failures(event):
    """What is wrong with the answers of one scenario."""
    for number, checks in event.recorder.checks.items():
        for check in checks:
            if check.failure_info:
                failure = check.failure_info.failure
                answer = event.recorder.interactions[number].response
                yield f"{check.name}: {failure.title}: {failure.message}\n{check.failure_info.code_sample}\n{answer}"


def test_the_description_is_a_valid_openapi_document(server):
    schema = described(server, 1)
    schema.validate()
    assert {operation.ok().label for operation in schema.get_all_operations()} >= {
        "POST /v1/runs",
        "GET /v1/runs/{run}/events",
        "POST /v1/blobs",
    }


def test_every_answer_is_as_the_description_says(server):
    wrong, cases, phases = [], 0, {}
    for event in from_schema(described(server, 25)).execute():
        match event:
            case events.ScenarioFinished():
                cases += len(event.recorder.cases)
                wrong += failures(event)
            case events.PhaseFinished():
                phases[event.phase.name.value] = event.status.value
            case events.NonFatalError() | events.FatalError():
                wrong.append(repr(event))
    assert not wrong, "\n\n".join(wrong[:5])
    assert cases > 800
    assert {phases[name] for name in ("examples", "coverage", "fuzzing", "stateful")} == {"success"}
    with server.client() as client:
        assert client.get("/healthz").json()["reasons"] == []


# Graphs bent out of shape

NUMBERS = (0, -1, 1, 2**31, 2**63, 2**64, -(2**200), 10**400, 0.5, -0.0, 1e-320, 1.7e308, float("nan"), float("inf"))
LONG = ("é" * 50_000, "x" * 100_000)
TEXTS = (
    *("", " ", "\0", "\ud800", "\udfff x", "\u202egnp.exe", "A\u0300" * 40, "x" * 300, "\U0001f600"),
    *("null", "photo", "$image", "a.b.c", ".", "..", "model.vae", "n0", "n1", "decoded", "n0.mask", "nowhere", "a/b"),
    *("../../etc/passwd", "/etc/passwd", "/dev/zero", "/dev/random", "/proc/self/mem", "~root/.ssh/id_rsa", "~", "-"),
    *("blob:", "blob:..", "blob:../../etc/passwd", f"blob:{'0' * 64}", f"blob:{'A' * 64}", "photo.png\0.txt"),
    *("file:///etc/passwd", "http://127.0.0.1/", "\\\\host\\share", "C:\\con", "x" * 5000, "pocket", "pocket/../.."),
    *("graph", "model.load", "image.load", "grid", "__class__", "__proto__", "{{7*7}}", "$(id)", "%s%n", "'; DROP --"),
    *("text2img", "inpaint", "img2img.json", "../text2img", "calotype/2", "euler", "image", "image.0"),
)
RAW = (
    *("1e400", "-1e400", "NaN", "-Infinity", "1" * 5000, "1e-400", "[1,]", "'x'", "0x10", "01", "+1", "tru", "\ufeff1"),
    *('"\\ud800"', '"\\u0000"', '"\\x"', '"\t"', '{"a":1,"a":2}', "/**/1", "[" * 5000 + "]" * 5000),
)
ROUTES = ("/v1/runs", "/v1/plan", "/v1/runs", "/v1/graphs/validate")
GRAPHS = ("invalid-graph", "limit-depth", "limit-sweep")
DEEP = (8, 40, 130, 300, 500, 900, 2000)
STRANGE = (None, True, False, [], {}, [[]], {"": {}}, [None], {"type": "graph"}, [{}] * 300, ["n0"] * 300)
BASES = (
    *[{"graph": json.loads(path.read_text())} for path in sorted((ROOT / "graphs").glob("*.json"))],
    {"graph": "text2img", "set": {"seed": 1, "steps": 4}, "sweep": {"x": {"cfg": [1.0, 2.0]}}, "outputs": ["image"]},
    {"graph": mask_graph(more=3), "labels": {"a": "b"}, "priority": 1, "webhook": None},
    {
        "graph": mask_graph() | {"sweep": {"x": {"x": [1, 2]}, "y": {"n1.radius": [0.5, 1.0]}}},
        "outputs": ["mask", "n0"],
    },
    {
        "graph": {
            "format": "calotype/1",
            "nodes": {
                "inner": {"type": "graph", "graph": mask_graph(), "params": {"x": 5}},
                "photo": {"type": "image.load", "params": {"source": "face.png"}},
                "blurred": {"type": "mask.blur", "params": {"radius": 1}, "inputs": {"mask": "inner.mask"}},
            },
            "outputs": {"mask": "blurred", "photo": "photo"},
        }
    },
)


class Raw(str):
    """Text that stands in the JSON as it is."""

    __slots__ = ()


def places(value, path=()):
    """Paths to everything within a JSON value."""
    yield path
    for key in value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
        yield from places(value[key], (*path, key))


def at(value, path):
    for key in path:
        value = value[key]
    return value


def nested(random):
    depth = random.choice(DEEP)
    opening, closing = random.choice((("[", "]"), ('{"a":', "}"), ('{"graph":', "}")))
    return Raw(opening * depth + "1" + closing * depth)


def strange(random, body):
    """A value that hardly belongs where it is put."""
    kind = random.randrange(7)
    if kind == 0:
        return random.choice(NUMBERS)
    if kind in (1, 2):
        return random.choice(TEXTS if random.randrange(30) else LONG)
    if kind == 3:
        return Raw(random.choice(RAW))
    if kind == 4:
        return nested(random)
    if kind == 5:
        return copy.deepcopy(random.choice(STRANGE))
    return copy.deepcopy(at(body, random.choice(list(places(body)))))  # something from elsewhere, or all of itself


def swept(random):
    """Axes with many values."""
    lengths = [random.choice((1, 3, 40, 1000, 5000)) for _ in range(random.randrange(1, 4))]
    names = [random.choice(("x", "seed", "cfg", "n0.x", "n1.radius", "nowhere")) for _ in lengths]
    return {axis: {name: list(range(length))} for axis, name, length in zip("xyz", names, lengths, strict=False)}


def mutated(random, body):
    """A body with one thing changed."""
    body = copy.deepcopy(body)
    path = random.choice([path for path in places(body) if path])
    *holder, key = path
    holder = at(body, holder)
    kind = random.randrange(9)
    if kind == 0:
        del holder[key]
    elif kind in (1, 2, 3):
        holder[key] = strange(random, body)
    elif kind == 4 and isinstance(holder, dict):
        holder[random.choice(TEXTS)] = holder.pop(key) if random.randrange(2) else holder[key]
    elif kind == 5 and isinstance(holder, dict):
        holder[Twice(key)] = holder[key]
    elif kind == 6:
        other = random.choice([path for path in places(body) if path])
        at(body, other[:-1])[other[-1]], holder[key] = copy.deepcopy(holder[key]), copy.deepcopy(at(body, other))
    elif kind == 7 and isinstance(body.get("graph"), dict):
        for _ in range(random.choice((1, 4, 9, 17, 30))):
            inner = {"type": "graph", "graph": body["graph"], "params": {"x": 3}}
            body["graph"] = {"format": "calotype/1", "nodes": {"n0": inner}, "expose": {"x": "n0.x"}}
    else:
        target = body if random.randrange(2) or not isinstance(body.get("graph"), dict) else body["graph"]
        target["sweep"] = swept(random)
    return body


def bent(random):
    """JSON of a body with some things changed."""
    body = random.choice(BASES)
    for _ in range(random.randint(1, 3)):
        body = mutated(random, body) if any(places(body)) else body
    return written(body)


class Twice(str):
    """A key that equals no other, and reads like one."""

    __slots__ = ()
    __hash__ = str.__hash__

    def __eq__(self, other):
        return self is other


def written(value):
    """JSON, in which Raw parts stand as they are."""
    if isinstance(value, Raw):
        return str(value)
    if isinstance(value, dict):
        return "{" + ",".join(f"{json.dumps(str(key))}:{written(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(written, value)) + "]"
    return json.dumps(value)


class Inside:
    """The whole service without sockets and with its queue standing still: graphs are judged and accepted, not run."""

    def __init__(self, folder):
        self._runner = asyncio.Runner()
        many = {"queued": 10**6, "queued_by_client": 10**6}
        self._service = build(Settings(data=folder, device="cpu", limits=many))
        self._app = application(self._service)

    def __enter__(self):
        self._runner.run(self._service.open())
        self._runner.run(self._service.runs.pause(paused=True))
        return self

    def __exit__(self, *exc):
        self._runner.run(self._service.close())
        self._runner.close()

    def post(self, path, body):
        """Status, content type and document of the answer."""
        return self._runner.run(self._post(path, body))

    async def _post(self, path, body):
        headers = [(b"host", b"127.0.0.1:8420"), (b"content-type", b"application/json")]
        headers.append((b"content-length", b"%d" % len(body)))
        scope = {"type": "http", "method": "POST", "path": path, "query_string": b"wait=0", "headers": headers}
        sent, came = [], [{"type": "http.request", "body": body}]

        async def receive():
            return came.pop() if came else {"type": "http.disconnect"}

        async def send(message):
            sent.append(message)

        began = time.process_time()
        async with asyncio.timeout(HANG):
            await self._app(scope, receive, send)
        assert time.process_time() - began < EFFORT, body[:1000]
        content_type = dict(sent[0]["headers"])[b"content-type"].decode()
        return sent[0]["status"], content_type, json.loads(b"".join(item.get("body", b"") for item in sent[1:]))


@pytest.fixture(scope="module")
def inside(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("nothing"))
        with Inside(tmp_path_factory.mktemp("inside")) as found:
            yield found


def check(path, status, content_type, document):
    """An answer is a success, or a refusal that says what it is."""
    if status < 300:
        assert content_type == "application/json"
        assert {"/v1/runs": "id", "/v1/plan": "nodes", "/v1/graphs/validate": "valid"}[path] in document
        return "accepted"
    assert content_type == "application/problem+json"
    kind = document["type"].removeprefix("urn:calotype:problem:")
    assert KINDS[kind].status == status == document["status"]
    assert status < 500 or kind in {"queue-full", "storage", "quota"}, document
    assert document["detail"]
    return kind


@pytest.mark.parametrize("documents", [2_000, pytest.param(10_000, marks=pytest.mark.slow)])
def test_bent_graphs_are_accepted_or_refused_for_a_reason(inside, documents):
    process, seen, kinds, before = psutil.Process(), set(), Counter(), []

    @settings(
        max_examples=documents // TOGETHER,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(st.integers(0, 2**64 - 1))
    def bend(seed):
        random, enough = Random(seed), len(seen) + TOGETHER
        while len(seen) < enough:
            text = bent(random).encode()
            path = ROUTES[len(seen) % len(ROUTES)]
            if (digest := hashlib.sha256(text).digest()) not in seen:
                kinds[path, check(path, *inside.post(path, text))] += 1
                seen.add(digest)
        if not before and len(seen) > 500:
            before.append(process.memory_info().rss)

    bend()
    print(len(seen), kinds, process.memory_info().rss - before[0])
    assert len(seen) >= documents
    assert process.memory_info().rss - before[0] < GROWTH
    for path in ("/v1/runs", "/v1/plan"):
        assert {(path, kind) for kind in ("accepted", "malformed", "invalid-request", *GRAPHS)} <= kinds.keys()
