"""Clients that mean harm, over real sockets: each is refused by name, and everybody else goes on being served."""

import asyncio
import contextlib
import gzip
import json
import re
import socket
import struct
import zlib

import httpx2
import psutil
import pytest
from serving import Serving, mask_graph

TOKEN = "a-token-of-forty-characters-for-hostiles"
GROWTH = 100 << 20
"""Bytes by which a server may have grown after all of this."""
PROMPT = 5.0
"""Seconds in which a server that is being attacked still answers."""
SLOW = 3
"""Seconds that headers and bodies may take to arrive."""
JSON = "Content-Type: application/json"
UPLOAD = "Content-Type: image/png"


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    limits = {"limits__header_seconds": SLOW, "limits__body_seconds": SLOW, "limits__wait": 30}
    with Serving(tmp_path_factory.mktemp("hostile"), token=TOKEN, device="cpu", **limits) as found:
        found.run({"graph": mask_graph()})
        yield found


@pytest.fixture(autouse=True)
def _unharmed(server):
    """After every attack, the server answers promptly, still works, and has not grown."""
    process = psutil.Process(server.process.pid)
    before = process.memory_info().rss
    yield
    with server.client() as client:
        assert client.get("/healthz", timeout=PROMPT).json()["reasons"] == []
        assert client.post("/v1/runs", json={"graph": mask_graph()}, timeout=PROMPT).json()["state"] == "done"
    assert process.memory_info().rss - before < GROWTH


class Answer:
    """What came back: status 0 where the connection was closed without a word."""

    def __init__(self, data):
        head, _, self.body = data.partition(b"\r\n\r\n")
        self.status = int(head.split(b" ", 2)[1]) if head else 0
        self.text = head.decode("latin-1").lower()
        self.count = len(re.findall(rb"HTTP/1\.1 \d\d\d ", data))

    @property
    def kind(self):
        """Kind of the problem document."""
        assert "content-type: application/problem+json" in self.text, self.text
        return json.loads(self.body)["type"].rpartition(":")[2]


def request(server, line, *fields, host=None, token=True):
    """The head of a request."""
    lines = [f"{line} HTTP/1.1", f"Host: {host or f'127.0.0.1:{server.port}'}", *fields]
    lines += [f"Authorization: Bearer {TOKEN}"] if token else []
    return ("\r\n".join(lines) + "\r\n\r\n").encode("utf-8", "surrogateescape")


def exchange(server, *parts):
    """Send bytes, then read until the server closes."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=60) as connection:
        with contextlib.suppress(ConnectionError):
            for part in parts:
                connection.sendall(part)
        received = b""
        with contextlib.suppress(ConnectionError):
            while piece := connection.recv(65536):
                received += piece
        return Answer(received)


def ask(server, line, *fields, body=b"", host=None, token=True):
    """One request on a connection of its own."""
    length = [f"Content-Length: {len(body)}"] if body else []
    return exchange(server, request(server, line, "Connection: close", *length, *fields, host=host, token=token) + body)


def submitted(server, body):
    """Kind of the refusal of a body that claims to be a run."""
    return ask(server, "POST /v1/runs", JSON, body=body).kind


# Pictures


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width, height, *chunks, data=b""):
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + b"".join(chunks) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


ZEROS = zlib.compress(bytes(64 << 20), 9)
"""64 MiB in 64 kB."""


@pytest.mark.parametrize(
    ("kind", "data"),
    [
        ("limit-pixels", png(30_000, 30_000, data=ZEROS)),
        ("limit-pixels", png(2**31 - 1, 2**31 - 1)),
        ("limit-pixels", png(100_000, 200, data=ZEROS)),
        ("unreadable-picture", png(8, 8, chunk(b"zTXt", b"a\0\0" + ZEROS), data=zlib.compress(bytes(200)))[:-40]),
        ("unreadable-picture", png(8, 8, *[chunk(b"tEXt", b"")] * 20_000, data=zlib.compress(bytes(200)))),
        ("unreadable-picture", png(0, 0)),
        ("unreadable-picture", png(64, 64, data=b"not zlib at all")),
        ("unreadable-picture", b"GIF89a" + bytes(1000)),
        ("unreadable-picture", b"<svg xmlns='http://www.w3.org/2000/svg' onload='alert(1)'/>"),
        ("unreadable-picture", b"PK\x03\x04" + bytes(1000)),
        ("unreadable-picture", b"RIFF\xff\xff\xff\xffWEBPVP8X" + b"\xff" * 40),
        ("unreadable-picture", b"\xff\xd8\xff" + b"\xff\xda" * 5000),
        ("too-large", bytes((32 << 20) + 1)),
    ],
)
def test_a_picture_that_would_do_harm_is_refused(server, kind, data):
    answer = ask(server, "POST /v1/blobs", UPLOAD, body=data)
    assert answer.kind in ({kind, "limit-pixels"} if data.startswith(b"RIFF") else {kind})


def test_text_that_unpacks_to_much_does_no_harm(server):
    data = png(8, 8, chunk(b"zTXt", b"a\0\0" + ZEROS), data=zlib.compress(bytes(25 * 8)))
    assert ask(server, "POST /v1/blobs", UPLOAD, body=data).status in {201, 422}


# Bodies


def test_a_body_of_100_megabytes_is_refused_before_it_is_read(server):
    head = request(server, "POST /v1/runs", JSON, f"Content-Length: {100 << 20}", "Connection: close")
    assert exchange(server, head).kind == "too-large"


@pytest.mark.parametrize(("path", "type_"), [("/v1/runs", JSON), ("/v1/plan", JSON), ("/v1/blobs", UPLOAD)])
def test_a_body_of_100_megabytes_in_chunks_is_refused_while_it_comes(server, path, type_):
    def pieces():
        yield from [bytes(1 << 20)] * 100

    headers = {"Content-Type": type_.partition(": ")[2]}
    with server.client() as client:
        try:
            answer = client.post(path, content=pieces(), headers=headers)
        except httpx2.TransportError:
            return  # the server hung up while it was being talked at
        assert answer.json()["type"] == "urn:calotype:problem:too-large"
        assert answer.json()["setting"] in {"limits.body", "limits.upload"}


def test_a_body_that_dribbles_is_given_up(server):
    head = request(server, "POST /v1/runs", JSON, "Content-Length: 1000", "Connection: close")
    assert exchange(server, head, b"{").kind == "timeout"


@pytest.mark.parametrize("coding", ["gzip", "deflate", "br", "gzip, gzip"])
def test_a_packed_body_is_refused_and_never_unpacked(server, coding):
    body = gzip.compress(bytes(50 << 20))
    answer = ask(server, "POST /v1/runs", JSON, f"Content-Encoding: {coding}", body=body)
    assert answer.kind == "unsupported-media-type"


@pytest.mark.parametrize(
    "type_",
    [
        *("text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", "text/json", ""),
        *("application/json; charset=utf-16", "application/jsonx", "text/plain; application/json", "image/png"),
    ],
)
def test_a_body_that_a_web_page_could_send_without_asking_is_refused(server, type_):
    answer = ask(server, "POST /v1/runs", f"Content-Type: {type_}", body=b'{"graph": "text2img"}')
    assert answer.kind == "unsupported-media-type"


@pytest.mark.parametrize(
    "body",
    [
        b'{"graph": "text2img", "set": {"cfg": NaN}}',
        b'{"graph": "text2img", "set": {"cfg": -Infinity}}',
        b'{"graph": "text2img", "set": {"cfg": 1e400}}',
        b'{"graph": "text2img", "set": {"seed": ' + b"1" * 5000 + b"}}",
        b'{"graph": "text2img", "graph": "img2img"}',
        b'{"graph": "\xff\xfe"}',
        b'{"graph": "\xed\xa0\x80"}',
        b'{"graph": "\\ud800"}',
        '{"graph": "text2img"}'.encode("utf-16"),
        b'\xef\xbb\xbf{"graph": "text2img"}',
        b"[" * 200_000,
        b'{"graph":' * 50_000 + b"1" + b"}" * 50_000,
        b"\0" * 1000,
        b"{'graph': 'text2img'}",
        b'{"graph": "text2img"} trailing',
        b"<?xml version='1.0'?><!DOCTYPE a [<!ENTITY a SYSTEM 'file:///etc/passwd'>]><a>&a;</a>",
        b"!!python/object/apply:os.system ['true']",
    ],
)
def test_a_body_that_is_no_json_is_malformed(server, body):
    assert submitted(server, body) == "malformed"


def test_the_largest_graphs_are_answered_while_others_are_served(server):
    """Thousands of wrong words in a graph of thousands of names."""
    nodes = {f"n{i}": {"type": "mask.blur", "params": {"radiu": i}, "inputs": {"mask": f"m{i}"}} for i in range(9000)}
    graph = {"format": "calotype/1", "nodes": nodes, "outputs": {"m": "n1"}}
    assert submitted(server, json.dumps({"graph": graph}).encode()) == "invalid-graph"
    same = {f"s{i}": {"type": "graph", "graph": "text2img"} for i in range(9000)}
    graph = {"format": "calotype/1", "nodes": same}
    assert submitted(server, json.dumps({"graph": graph}).encode()) == "limit-nodes"
    links = {"n": {"type": "mask.blur", "inputs": {"mask": ["n"] * 800_000}}}
    graph = {"format": "calotype/1", "nodes": links}
    assert submitted(server, json.dumps({"graph": graph}).encode()) == "limit-nodes"


# Connections


async def crowd(server, count, first):
    """So many connections that each send something and then nothing; others are served meanwhile."""
    opened = [await asyncio.open_connection("127.0.0.1", server.port) for _ in range(count)]
    for _, writer in opened:
        writer.write(first)
    async with httpx2.AsyncClient(base_url=server.url, headers=server.headers, trust_env=False) as client:
        for _ in range(10):
            answer = await client.post("/v1/runs", json={"graph": mask_graph()}, timeout=PROMPT)
            assert answer.json()["state"] == "done"
    async with asyncio.timeout(60):
        answers = await asyncio.gather(*(reader.read() for reader, _ in opened))
    for _, writer in opened:
        writer.close()
    return answers


@pytest.mark.parametrize("first", [b"", b"G", b"POST /v1/runs HTTP/1.1\r\nHost: x\r\nX-A: ", b"\r\n\r\n\r\n"])
def test_hundreds_of_connections_that_never_ask_are_closed_and_hinder_nobody(server, first):
    answers = asyncio.run(crowd(server, 400, first))
    assert {Answer(answer).status for answer in answers} <= {0, 400, 408}


def test_hundreds_of_bodies_that_never_end_hinder_nobody(server):
    first = request(server, "POST /v1/runs", JSON, "Content-Length: 500", "Connection: close") + b'{"graph": "'
    answers = asyncio.run(crowd(server, 300, first))
    assert {Answer(answer).kind for answer in answers} == {"timeout"}


def test_headers_without_end_are_refused(server):
    flood = "".join(f"X-Header-{number}: {'a' * 60}\r\n" for number in range(5000)).encode()
    answer = exchange(server, b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\n" + flood)
    assert answer.status in {0, 431}
    assert ask(server, "GET /healthz", "X-Long: " + "a" * 100_000).status in {0, 431}


# Addresses


@pytest.mark.parametrize(
    ("path", "kinds"),
    [
        ("/v1/blobs/../../etc/passwd", {"not-found"}),
        ("/v1/blobs/..%2f..%2fetc%2fpasswd", {"not-found", "invalid-request"}),
        ("/v1/blobs/%2e%2e/service.sqlite", {"not-found", "invalid-request"}),
        ("/v1/blobs/" + "A" * 64, {"invalid-request"}),
        ("/v1/blobs/" + "0" * 64 + "%0a", {"invalid-request"}),
        ("/v1/graphs/..%2fpyproject", {"not-found"}),
        ("/v1/graphs/%2e%2e%2f%2e%2e%2fetc%2fpasswd", {"not-found"}),
        ("/v1/graphs/....//text2img", {"not-found"}),
        ("/v1/graphs/text2img.json%00", {"malformed"}),
        ("/v1/runs/%00", {"malformed"}),
        ("/" + "a" * 5000, {"malformed"}),
        ("//etc/passwd", {"not-found"}),
        ("/static/../server.log", {"not-found"}),
        ("/v1/nodes/image.load%2f..", {"not-found"}),
        ("/v1/nodes/__class__", {"not-found"}),
    ],
)
def test_no_address_leads_out(server, path, kinds):
    answer = ask(server, f"GET {path}")
    assert answer.kind in kinds
    assert b"root:" not in answer.body


@pytest.mark.parametrize(
    "name",
    [
        *(
            "../../etc/passwd",
            "/etc/passwd",
            "/dev/zero",
            "/dev/stdin",
            "/proc/self/environ",
            "~root/.bashrc",
            "~",
            "..",
        ),
        *("blob:../../service.sqlite", "blob:" + "0" * 64, "face.png\0", "a" * 5000, "../service.sqlite", "./../lock"),
        *("file:///etc/passwd", "http://127.0.0.1/", "\\\\host\\share", ""),
    ],
)
@pytest.mark.parametrize(("type_", "param"), [("image.load", "source"), ("model.load", "checkpoint")])
def test_no_file_parameter_leads_out(server, type_, param, name):
    graph = {"format": "calotype/1", "nodes": {"n": {"type": type_, "params": {param: name}}}, "outputs": {"n": "n"}}
    if type_ == "model.load":
        graph["outputs"] = {"n": "n.vae"}
    answer = ask(server, "POST /v1/runs", JSON, body=json.dumps({"graph": graph}).encode())
    assert answer.kind == "invalid-graph"
    assert b"root:" not in answer.body


def test_a_graph_within_a_graph_has_a_name_of_sensible_length(server):
    graph = {"format": "calotype/1", "nodes": {"n": {"type": "graph", "graph": "a" * 300}}}
    assert submitted(server, json.dumps({"graph": graph}).encode()) == "invalid-graph"


# Who asks


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example", "localhost.", "a b", "[::1"])
def test_a_name_that_is_not_ours_is_refused(server, host):
    kind = ask(server, "GET /v1/runs", host=host).kind
    assert kind == "bad-host"


@pytest.mark.parametrize(
    "origin", ["https://evil.example", "null", "http://127.0.0.1:1", "file://", "http://localhost.evil"]
)
@pytest.mark.parametrize("line", ["GET /v1/runs", "DELETE /v1/cache", "OPTIONS /v1/runs"])
def test_a_foreign_web_page_is_refused(server, origin, line):
    assert ask(server, line, f"Origin: {origin}").kind == "bad-origin"


@pytest.mark.parametrize(
    "parts",
    [
        ["Content-Length: 6", "Transfer-Encoding: chunked"],
        ["Content-Length: 6", "Content-Length: 5"],
        ["Content-Length: 6, 5"],
        ["Content-Length: +6"],
        ["Content-Length: 0x6"],
        ["Content-Length: -6"],
        ["Content-Length: 6 6"],
        ["Transfer-Encoding: chunked", "Transfer-Encoding: identity"],
        ["Transfer-Encoding: xchunked"],
        ["Transfer-Encoding : chunked"],
        ["Transfer-Encoding: chunked, identity"],
        ["Host: evil.example"],
    ],
)
def test_a_request_that_two_programs_would_read_differently_never_becomes_two(server, parts):
    smuggled = request(server, "DELETE /v1/cache", "Connection: close")
    head = request(server, "POST /v1/runs", JSON, *parts)
    answer = exchange(server, head + b"0\r\n\r\n" + smuggled)
    assert answer.status in {0, 400, 411, 415, 501}
    assert answer.count <= 1


def test_what_was_given_back_after_a_refusal_does_not_reach_another_request(server):
    """Bytes behind a refused body are not read as a request."""
    inner = request(server, "GET /healthz", "Connection: close")
    head = request(server, "POST /v1/runs", "Content-Type: text/plain", f"Content-Length: {len(inner)}")
    answer = exchange(server, head + inner + request(server, "GET /v1/queue", "Connection: close"))
    assert answer.status == 415
    assert b'"version"' not in answer.body


@pytest.mark.parametrize(
    "fields", [[], ["Authorization: Bearer wrong"], ["Authorization: Basic eDp5"], ["X-Calotype-Token: "]]
)
def test_nothing_is_answered_without_the_token(server, fields):
    with server.client() as client:
        paths = client.get("/openapi.json").json()["paths"]
    lines = [f"{method.upper()} {path}" for path, methods in paths.items() for method in methods]
    for line in [*lines, "GET /openapi.json", "GET /", "HEAD /v1/runs", "TRACE /v1/runs", "GET /nowhere"]:
        answer = ask(server, re.sub(r"\{\w+\}", "0" * 32, line), *fields, token=False)
        assert answer.status == 401, line
        assert "www-authenticate: bearer" in answer.text
    assert len(lines) > 15
