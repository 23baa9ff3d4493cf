"""Connections that never finish asking are closed, and nobody else is: real sockets, a real server."""

import asyncio
import contextlib
import socket
import threading

import pytest
import uvicorn

from server.protocol import HEADER_BYTES, impatient

SECONDS = 0.3
LONG = 3 * SECONDS
REQUEST = b"GET /whole HTTP/1.1\r\nHost: here\r\n\r\n"


class Application:
    """Answers with the number of bytes of the body; `/early` without reading it, `/wait` when `go` is set."""

    def __init__(self):
        self.paths = []
        self.waiting = threading.Event()
        self.go = threading.Event()

    async def __call__(self, scope, receive, send):
        self.paths.append(scope["path"])
        size, more = 0, scope["path"] != "/early"
        while more:
            message = await receive()
            size += len(message.get("body", b""))
            more = message.get("more_body", False)
        if scope["path"] == "/wait":
            self.waiting.set()
            await asyncio.to_thread(self.go.wait)
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"7")]})
        await send({"type": "http.response.body", "body": b"%7d" % size})


@contextlib.contextmanager
def serving(app, loop="asyncio", *, seconds=SECONDS):
    """Address of a server in a thread."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        http = impatient(seconds)
        config = uvicorn.Config(app, http=http, loop=loop, ws="none", lifespan="off", log_config=None, access_log=False)
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        try:
            yield listening.getsockname()
        finally:
            app.go.set()
            server.should_exit = True
            thread.join()


@pytest.fixture
def app():
    return Application()


@pytest.fixture
def address(app):
    with serving(app) as found:
        yield found


@pytest.fixture
def client(address):
    with socket.create_connection(address, timeout=30) as found:
        yield found


def rest(client):
    """Everything that still comes until the server closes."""
    parts = []
    with contextlib.suppress(ConnectionResetError):
        while part := client.recv(65536):
            parts.append(part)
    return b"".join(parts)


def answer(client):
    """One whole answer of the application: status and body."""
    received = b""
    while b"\r\n\r\n" not in received or len(received.partition(b"\r\n\r\n")[2]) < 7:
        part = client.recv(1)
        assert part, received
        received += part
    return int(received.split()[1]), int(received.partition(b"\r\n\r\n")[2])


def dribble(client, data, pause=SECONDS / 10):
    """Send byte by byte until the server answers or closes; True when it did before all was sent."""
    for number in range(len(data)):
        client.settimeout(pause)
        with contextlib.suppress(TimeoutError):
            client.recv(1, socket.MSG_PEEK)
            client.settimeout(30)
            return True
        try:
            client.sendall(data[number : number + 1])
        except (BrokenPipeError, ConnectionResetError):
            return True
    client.settimeout(30)
    return False


def silence(client, seconds):
    """Whether nothing comes, not even the end, for some time."""
    client.settimeout(seconds)
    try:
        client.recv(1, socket.MSG_PEEK)
    except TimeoutError:
        return True
    else:
        return False
    finally:
        client.settimeout(30)


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_requests_in_time_are_answered_on_one_connection(app, loop):
    with serving(app, loop) as address, socket.create_connection(address, timeout=30) as client:
        for _ in range(3):
            client.sendall(REQUEST)
            assert answer(client) == (200, 0)
    assert app.paths == ["/whole"] * 3


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_headers_that_dribble_are_given_up_with_a_word(app, loop):
    with serving(app, loop) as address, socket.create_connection(address, timeout=30) as client:
        assert dribble(client, REQUEST * 9)
        told = rest(client)
    assert told.startswith(b"HTTP/1.1 408 ")
    assert told.endswith(b"have not arrived within 0.3 seconds.")
    assert app.paths == []


@pytest.mark.parametrize("start", [b"G", b"GET / HTTP/1.1\r\n", b"GET / HTTP/1.1\r\nHost: h", REQUEST[:-1]])
def test_a_request_that_stops_anywhere_in_its_headers_is_given_up(client, start):
    client.sendall(start)
    assert rest(client).startswith(b"HTTP/1.1 408 ")


def test_a_connection_that_says_nothing_is_closed_without_a_word(client):
    assert rest(client) == b""


def test_blank_lines_are_nothing(client):
    assert dribble(client, b"\r\n" * 200)
    assert rest(client) == b""


def test_blank_lines_after_an_answer_are_nothing_either(client):
    client.sendall(REQUEST)
    assert answer(client) == (200, 0)
    assert dribble(client, b"\r\n" * 200)
    assert rest(client) == b""


@pytest.mark.parametrize("together", [True, False])
def test_a_further_request_has_the_same_time(client, together):
    half = REQUEST[:-5]
    client.sendall(REQUEST + (half if together else b""))
    assert answer(client) == (200, 0)
    if not together:
        client.sendall(half)
    assert rest(client).startswith(b"HTTP/1.1 408 ")


def test_a_request_in_pieces_that_comes_in_time_is_answered(app):
    with serving(app, seconds=30) as address, socket.create_connection(address, timeout=30) as client:
        for _ in range(2):
            assert not dribble(client, REQUEST, pause=0.001)
            assert answer(client) == (200, 0)


def test_an_answer_may_take_longer_than_a_request(app, client):
    client.sendall(REQUEST.replace(b"whole", b"wait"))
    assert silence(client, LONG)
    app.go.set()
    assert answer(client) == (200, 0)


def test_half_a_request_does_not_cut_off_the_answer_to_the_one_before(app, client):
    client.sendall(REQUEST.replace(b"whole", b"wait") + REQUEST[:-5])
    assert silence(client, LONG)
    app.go.set()
    assert answer(client) == (200, 0)
    assert rest(client).startswith(b"HTTP/1.1 408 ")


def test_pipelined_requests_are_answered_in_order(app, client):
    client.sendall(REQUEST.replace(b"whole", b"wait") + REQUEST * 2)
    assert app.waiting.wait(30)
    app.go.set()
    assert [answer(client) for _ in range(3)] == [(200, 0)] * 3
    assert app.paths == ["/wait", "/whole", "/whole"]


def test_a_slow_body_is_not_a_matter_of_headers(client):
    client.sendall(b"POST /whole HTTP/1.1\r\nHost: here\r\nContent-Length: 5\r\n\r\nab")
    assert silence(client, LONG)
    client.sendall(b"cde")
    assert answer(client) == (200, 5)


def test_a_client_answered_early_may_finish_its_body_and_ask_again(app):
    with serving(app, seconds=30) as address, socket.create_connection(address, timeout=30) as client:
        client.sendall(b"POST /early HTTP/1.1\r\nHost: here\r\nContent-Length: 300000\r\n\r\n")
        assert answer(client) == (200, 0)
        client.sendall(b"x" * 300_000 + REQUEST)
        assert answer(client) == (200, 0)


def test_a_client_that_finished_its_body_late_may_think_before_it_asks_again(client):
    client.sendall(b"POST /early HTTP/1.1\r\nHost: here\r\nContent-Length: 3\r\n\r\n")
    assert answer(client) == (200, 0)
    client.sendall(b"abc")
    assert silence(client, LONG)
    client.sendall(REQUEST)
    assert answer(client) == (200, 0)


def test_a_client_answered_early_that_never_finishes_its_body_is_closed(client):
    client.sendall(REQUEST)
    assert answer(client) == (200, 0)
    client.sendall(b"POST /early HTTP/1.1\r\nHost: here\r\nContent-Length: 300000\r\n\r\n")
    assert answer(client) == (200, 0)
    assert dribble(client, b"x" * 300)
    assert rest(client) == b""


@pytest.mark.parametrize(
    "headers",
    [
        b"Big: " + b"x" * HEADER_BYTES,
        b"Big: " + b"x" * 10 * HEADER_BYTES,
        b"\r\n".join(b"A%d: b" % number for number in range(HEADER_BYTES // 8)),
        b"B" * HEADER_BYTES + b": x",
    ],
)
def test_headers_that_are_too_large_are_refused(app, client, headers):
    client.sendall(b"GET /whole HTTP/1.1\r\nHost: here\r\n" + headers + b"\r\n\r\n")
    assert b" 431 " in rest(client)[:16]
    assert app.paths == []


def test_an_address_that_is_too_large_is_refused(app, client):
    client.sendall(b"GET /" + b"x" * HEADER_BYTES + b" HTTP/1.1\r\nHost: here\r\n\r\n")
    assert rest(client).startswith(b"HTTP/1.1 431 ")
    assert app.paths == []


def test_a_header_without_end_is_refused_before_its_end(app):
    with serving(app, seconds=30) as address, socket.create_connection(address, timeout=30) as client:
        client.sendall(b"GET /whole HTTP/1.1\r\nBig: ")
        with pytest.raises((BrokenPipeError, ConnectionResetError)):
            for _ in range(1000):
                client.sendall(b"x" * 10_000)
    assert app.paths == []


def test_headers_up_to_the_limit_are_fine(client):
    room = HEADER_BYTES - len(b"/whole") - len(b"Hosthere") - len(b"Big") - 2 * 4
    client.sendall(REQUEST[:-2] + b"Big: " + b"x" * room + b"\r\n\r\n")
    assert answer(client) == (200, 0)
    client.sendall(REQUEST[:-2] + b"Big: " + b"x" * (room + 1) + b"\r\n\r\n")
    assert rest(client).startswith(b"HTTP/1.1 431 ")


def test_headers_of_several_requests_are_not_added_up(app):
    with serving(app, seconds=30) as address, socket.create_connection(address, timeout=30) as client:
        for _ in range(3):
            client.sendall(REQUEST[:-2] + b"Big: " + b"x" * (HEADER_BYTES // 2))
            assert silence(client, 0.05)
            client.sendall(b"\r\n\r\n")
            assert answer(client) == (200, 0)


def test_headers_count_alone_when_they_come_together_with_a_body(app):
    body = b"x" * 5 * HEADER_BYTES
    head = b"POST /whole HTTP/1.1\r\nHost: here\r\nContent-Length: %d\r\n\r\n" % len(body)
    with serving(app, seconds=30) as address, socket.create_connection(address, timeout=30) as client:
        client.sendall(head + body + REQUEST[:-1])
        assert answer(client) == (200, len(body))
        client.sendall(REQUEST[-1:])
        assert answer(client) == (200, 0)


def test_what_is_no_request_is_refused(client):
    client.sendall(b"\x16\x03\x01 hello\r\n\r\n")
    assert rest(client).startswith(b"HTTP/1.1 400 ")


def test_what_is_no_request_does_not_end_up_in_the_answer_to_another(app, client):
    client.sendall(REQUEST.replace(b"whole", b"wait"))
    assert app.waiting.wait(30)
    client.sendall(b"\x16\x03\x01 hello\r\n\r\n")
    assert rest(client) == b""


def test_dawdlers_do_not_keep_others_waiting(app, address):
    with contextlib.ExitStack() as stack:
        dawdlers = [stack.enter_context(socket.create_connection(address, timeout=30)) for _ in range(100)]
        for dawdler in dawdlers:
            dawdler.sendall(REQUEST[:-1])
        client = stack.enter_context(socket.create_connection(address, timeout=30))
        client.sendall(REQUEST)
        assert answer(client) == (200, 0)
        assert all(rest(dawdler).startswith(b"HTTP/1.1 408 ") for dawdler in dawdlers)
