"""Webhook calls are signed, go only where they may, are tried again for a day, and tell the log no secrets."""

import asyncio
import base64
import contextlib
import json
import logging
import socket
import threading
from concurrent.futures import Future
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise
from urllib.parse import urlsplit

import httpx2
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from server import webhooks
from server.problem import Refusal
from server.rows import Delivery
from server.signature import ID, SIGNATURE, TIMESTAMP, BadSignature, key, sign, verify
from server.webhooks import DELAYS, HORIZON, TOGETHER, Courier, allowed

SECRET = b"correct horse battery staple"
HUSH = "hush-hush"


class Receiver(ThreadingHTTPServer):
    """A client's server: it keeps what it was sent, and answers with the statuses that it was told, then with 204."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self):
        self.calls, self.answers, self.release = [], [], threading.Event()
        super().__init__(("127.0.0.1", 0), Answering)

    @property
    def host(self):
        return f"127.0.0.1:{self.server_port}"

    def paths(self):
        return [path for path, _, _ in self.calls]


class Answering(BaseHTTPRequestHandler):
    """One answer: a status, `silence`, or `flood`."""

    def do_POST(self):
        body = self.rfile.read(int(self.headers["content-length"]))
        self.server.calls.append((self.path, {name.lower(): value for name, value in self.headers.items()}, body))
        answer = self.server.answers.pop(0) if self.server.answers else 204
        if answer == "silence" or self.path == "/slow":
            self.server.release.wait()
            return
        self.send_response(200 if answer == "flood" else answer)
        if answer == 302:
            self.send_header("Location", f"http://{self.server.host}/elsewhere")
        self.end_headers()
        with contextlib.suppress(ConnectionError):
            while answer == "flood":
                self.wfile.write(b"x" * 65536)

    def log_message(self, *_):
        """Say nothing."""


@pytest.fixture
def receiver():
    server = Receiver()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.release.set()
    server.shutdown()
    thread.join()
    server.server_close()


class Owed:
    """Calls that are owed, in memory; everything that becomes of one is told to `outcomes`."""

    def __init__(self, *deliveries):
        self.rows = {delivery.id: delivery for delivery in deliveries}
        self.outcomes = asyncio.Queue()
        self.broken = False
        self.asked = 0

    def due(self, now, limit):
        self.asked += 1
        return sorted((row for row in self.rows.values() if row.next <= now), key=lambda row: row.next)[:limit]

    def delivered(self, delivery):
        return self.settled("delivered", delivery)

    def give_up(self, delivery):
        return self.settled("given up", delivery)

    def settled(self, word, delivery):
        del self.rows[delivery]
        return self.told((word, delivery))

    def retry(self, delivery, next_, error):
        if not self.broken:
            row = self.rows[delivery]
            self.rows[delivery] = replace(row, tries=row.tries + 1, next=next_, error=error)
        return self.told(("retry", delivery, next_, error))

    def told(self, outcome):
        future = Future()
        if self.broken:
            future.set_exception(OSError("disk full"))
        else:
            future.set_result(True)
        self.outcomes.put_nowait(outcome)
        return future

    async def outcome(self):
        return await asyncio.wait_for(self.outcomes.get(), 30)


class Clock:
    """A clock that stands still."""

    now = 1_700_000_000.0

    def __call__(self):
        return self.now


def owed(receiver, run, path="/hook", **others):
    return Delivery(
        **{
            "id": run,
            "run": run,
            "url": f"http://{receiver.host}{path}",
            "tries": 0,
            "next": 0.0,
            "error": "",
            **others,
        }
    )


def told(run):
    return json.dumps({"run": run}).encode() if run != "gone" else None


@contextlib.asynccontextmanager
async def courier(history, *allow, clock=None):
    """A courier at work."""
    async with httpx2.AsyncClient(trust_env=False) as client:
        found = Courier(client, SECRET, history, told, allow, clock=clock or Clock(), chance=lambda: 0.5)
        task = asyncio.create_task(found.run())
        try:
            yield found
        finally:
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task


def delivering(receiver, *deliveries, count=None, allow=None):
    """Outcomes of calls that are all due."""

    async def run():
        history = Owed(*deliveries)
        async with courier(history, allow or receiver.host):
            return [await history.outcome() for _ in range(count or len(deliveries))]

    return asyncio.run(run())


# Delivering


def test_a_call_tells_of_the_run_and_is_signed(receiver):
    assert delivering(receiver, owed(receiver, "a1")) == [("delivered", "a1")]
    ((path, headers, body),) = receiver.calls
    assert (path, body, headers["content-type"]) == ("/hook", b'{"run": "a1"}', "application/json")
    assert verify(SECRET, headers, body, now=Clock.now) == "a1"
    with pytest.raises(BadSignature):
        verify(b"another", headers, body, now=Clock.now)


def test_a_call_that_failed_is_made_again_when_its_delay_is_over(receiver):
    receiver.answers = [500]

    async def run():
        clock = Clock()
        history = Owed(owed(receiver, "a"))
        async with courier(history, receiver.host, clock=clock) as found:
            assert await history.outcome() == ("retry", "a", clock.now + 11, "answered 500")
            clock.now += 10.9
            history.rows["b"] = owed(receiver, "b", "/other")
            found.wake()
            assert await history.outcome() == ("delivered", "b")
            assert receiver.paths() == ["/hook", "/other"]
            clock.now += 0.2
            found.wake()
            assert await history.outcome() == ("delivered", "a")
            verify(SECRET, receiver.calls[0][1], receiver.calls[0][2], now=clock.now - 11.1)
            verify(SECRET, receiver.calls[2][1], receiver.calls[2][2], now=clock.now)

    asyncio.run(run())
    first, second = receiver.calls[0][1], receiver.calls[2][1]
    assert first[ID] == second[ID]
    assert int(second[TIMESTAMP]) - int(first[TIMESTAMP]) == 11


def test_what_is_due_soon_is_delivered_without_being_woken(receiver):
    async def run():
        history = Owed()
        loop = asyncio.get_running_loop()
        history.rows["a"] = owed(receiver, "a", next=loop.time() + 0.05)
        async with courier(history, receiver.host, clock=loop.time):
            return await history.outcome()

    assert asyncio.run(run()) == ("delivered", "a")


def test_delays_grow_until_it_is_given_up(receiver):
    receiver.answers = [503] * 20

    async def run():
        clock = Clock()
        history = Owed(owed(receiver, "a"))
        delays = []
        async with courier(history, receiver.host, clock=clock) as found:
            while (outcome := await history.outcome())[0] == "retry":
                delays.append(outcome[2] - clock.now)
                clock.now = outcome[2]
                found.wake()
        return delays, outcome

    delays, outcome = asyncio.run(run())
    assert outcome == ("given up", "a")
    assert len(receiver.calls) == 8
    assert delays == pytest.approx([delay * 1.1 for delay in DELAYS])
    assert all(sooner < later for sooner, later in pairwise(delays))


def test_a_redirect_is_not_followed(receiver):
    receiver.answers = [302]
    ((word, _, _, error),) = delivering(receiver, owed(receiver, "a"))
    assert (word, error) == ("retry", "answered 302")
    assert receiver.paths() == ["/hook"]


def test_an_endless_answer_is_not_read(receiver):
    receiver.answers = ["flood"]
    assert delivering(receiver, owed(receiver, "a")) == [("delivered", "a")]


def test_silence_is_a_failure(receiver, monkeypatch):
    monkeypatch.setattr(webhooks, "TIMEOUT", 0.05)
    receiver.answers = ["silence"]
    assert delivering(receiver, owed(receiver, "a"))[0][3] == "no answer within 0.05 seconds"


def test_nobody_there_is_a_failure(receiver):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        place = f"127.0.0.1:{unused.getsockname()[1]}"
        outcome = delivering(receiver, owed(receiver, "a", url=f"http://{place}/"), allow=place)[0]
    assert outcome[3] == "no answer (ConnectError)"


def test_a_host_that_cannot_be_looked_up_is_a_failure(receiver):
    outcome = delivering(receiver, owed(receiver, "a", url="http://x..invalid/"), allow="*.invalid")[0]
    assert outcome[0] == "retry"


def test_a_host_that_is_no_longer_allowed_is_not_called(receiver):
    assert delivering(receiver, owed(receiver, "a"), allow="hooks.example.org") == [("given up", "a")]
    assert receiver.calls == []


def test_a_run_that_is_gone_is_not_told_of(receiver):
    assert delivering(receiver, owed(receiver, "gone")) == [("given up", "gone")]
    assert receiver.calls == []


def test_a_slow_receiver_holds_up_nobody(receiver):
    others = [owed(receiver, f"b{number}", next=1.0) for number in range(3 * TOGETHER)]
    outcomes = delivering(receiver, owed(receiver, "a", "/slow"), *others, count=len(others))
    assert sorted(outcomes) == sorted(("delivered", other.id) for other in others)


def test_every_call_is_made_once_while_it_succeeds(receiver):
    deliveries = [owed(receiver, f"a{number}", f"/{number}") for number in range(5 * TOGETHER)]
    delivering(receiver, *deliveries)
    assert sorted(receiver.paths()) == sorted(f"/{number}" for number in range(5 * TOGETHER))


def test_calls_that_cannot_be_recorded_are_not_made_over_and_over(receiver):
    receiver.answers = [500]

    async def run():
        clock = Clock()
        history = Owed(owed(receiver, "a"))
        history.broken = True
        async with courier(history, receiver.host, clock=clock) as found:
            await history.outcome()
            for _ in range(10):
                await asyncio.sleep(0)
            asked = history.asked
            found.wake()
            for _ in range(10):
                await asyncio.sleep(0)
            assert (history.asked, len(receiver.calls)) == (asked, 1)
            history.broken = False
            clock.now += HORIZON
            found.wake()
            return await history.outcome()

    assert asyncio.run(run()) == ("delivered", "a")


def test_a_history_that_cannot_be_read_is_asked_again_later(receiver):
    class Unreadable(Owed):
        """Fails the first time."""

        failed = asyncio.Event()

        def due(self, now, limit):
            if not self.asked:
                self.asked += 1
                self.failed.set()
                raise OSError("disk error")
            return super().due(now, limit)

    async def run():
        clock = Clock()
        history = Unreadable(owed(receiver, "a"))
        async with courier(history, receiver.host, clock=clock) as found:
            await history.failed.wait()
            clock.now += HORIZON
            found.wake()
            return await history.outcome()

    assert asyncio.run(run()) == ("delivered", "a")


def test_the_log_tells_of_failures_and_no_secrets(receiver, caplog):
    caplog.set_level(logging.INFO)
    receiver.answers = [500, 204]
    secretive = f"/{HUSH}?token={HUSH}"
    delivering(receiver, owed(receiver, "a", secretive))
    delivering(receiver, owed(receiver, "b", secretive))
    delivering(receiver, owed(receiver, "c", secretive, tries=len(DELAYS)), allow="hooks.example.org")
    assert f"webhook of run a at http://{receiver.host}: answered 500; again in 11 s" in caplog.messages
    assert "run c" in caplog.text
    assert HUSH not in caplog.text
    assert SECRET.decode() not in caplog.text


# Where calls may go

PATTERNS = ("hooks.example.org", "*.example.net", "localhost:9000", "[::1]:9000", "10.0.0.7")


@pytest.mark.parametrize(
    "url",
    [
        "https://hooks.example.org/a?b=c",
        "http://hooks.example.org",
        "https://HOOKS.Example.org:443/",
        "http://a.example.net/",
        "https://a.b.example.net/",
        "http://localhost:9000/x",
        "http://[::1]:9000/",
        "http://10.0.0.7:80/",
    ],
)
def test_a_host_that_is_listed_may_be_called(url):
    allowed(url, PATTERNS)


@pytest.mark.parametrize(
    "url",
    [
        "",
        "hooks.example.org",
        "//hooks.example.org/",
        "ftp://hooks.example.org/",
        "file:///etc/passwd",
        "javascript:alert(1)",
        "http:hooks.example.org",
        "https://hooks.example.org:8443/",
        "https://hooks.example.org:80/",
        "https://hooks.example.org.evil.com/",
        "https://evil.com/hooks.example.org",
        "https://evilhooks.example.org/",
        "https://user@hooks.example.org/",
        "https://user:password@hooks.example.org/",
        "https://hooks.example.org@evil.com/",
        "https://evil.com\\@hooks.example.org/",
        "https://hooks.example.org\\.evil.com/",
        "https://evil.com#hooks.example.org",
        "https://hooks.example.org/#",
        "https://hooks.example.org/\n",
        "https://hooks%2eexample.org/",
        "https://example.net/",
        "https://evilexample.net/",
        "http://localhost/",
        "http://127.0.0.1:9000/",
        "http://[::1]/",
        "http://0x7f.1/",
        "http://10.0.0.7:99999/",
        "http://10.0.7/",
        "https://[::1/",
        "https://\ud800.example.net\ud800/",
    ],
)
def test_any_other_url_is_refused(url):
    with pytest.raises(Refusal) as caught:
        allowed(url, PATTERNS)
    assert caught.value.kind == "webhook-refused"
    assert "password" not in caught.value.detail or "without" in caught.value.detail


def test_nothing_may_be_called_when_nothing_is_listed():
    with pytest.raises(Refusal):
        allowed("https://hooks.example.org/", ())


PIECES = [
    "good.example",
    "evil.example",
    "@",
    ":",
    "/",
    "\\",
    "#",
    "?",
    "%2e",
    ".",
    "[",
    "]",
    "80",
    " ",
    "\t",
    "//",
    "%40",
    ";",
    "。",
]


@given(st.lists(st.sampled_from(PIECES) | st.text(max_size=2), max_size=6).map("".join))
@example("good.example\\@evil.example")
def test_another_parser_sees_the_same_allowed_host(rest):
    url = f"http://{rest}"
    with contextlib.suppress(Refusal):
        allowed(url, ("good.example",))
        assert urlsplit(url).hostname == "good.example"


# Signatures


def test_the_signature_is_that_of_standard_webhooks():
    secret = key("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
    signature = sign(secret, "msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, b'{"test": 2432232314}')
    assert signature == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


def test_any_other_secret_stands_for_itself():
    assert key("swordfish") == b"swordfish"
    with pytest.raises(ValueError, match="expected base64"):
        key("whsec_not base64")


def signed(now=1000, message="m", body=b"body"):
    return {ID: message, TIMESTAMP: str(now), SIGNATURE: sign(SECRET, message, now, body)}


@given(st.text(st.characters(codec="utf-8")), st.integers(0, 1 << 40), st.binary())
def test_what_was_signed_is_verified(message, now, body):
    assert verify(SECRET, signed(now, message, body), body, now=now) == message


@given(st.binary(max_size=20))
def test_another_body_is_refused(body):
    if body != b"body":
        with pytest.raises(BadSignature, match="no signature fits"):
            verify(SECRET, signed(), body, now=1000)


@pytest.mark.parametrize("name", [ID, TIMESTAMP])
def test_every_signed_header_counts(name):
    with pytest.raises(BadSignature, match="no signature fits"):
        verify(SECRET, {**signed(), name: "1001"}, b"body", now=1000)


@pytest.mark.parametrize("name", [ID, TIMESTAMP, SIGNATURE])
def test_a_missing_header_is_named(name):
    headers = signed()
    del headers[name]
    with pytest.raises(BadSignature, match=name):
        verify(SECRET, headers, b"body", now=1000)


def test_header_names_may_be_written_in_any_case():
    headers = {name.title(): value for name, value in signed().items()}
    assert verify(SECRET, headers, b"body", now=1000) == "m"


def test_one_fitting_signature_among_several_is_enough():
    headers = signed()
    other = f"v1,{base64.b64encode(b'x' * 32).decode()}"
    headers[SIGNATURE] = f"v1a,öö {other} {headers[SIGNATURE]}"
    assert verify(SECRET, headers, b"body", now=1000) == "m"
    with pytest.raises(BadSignature):
        verify(SECRET, {**headers, SIGNATURE: other}, b"body", now=1000)


@pytest.mark.parametrize("away", [-301, 301])
def test_a_call_from_another_time_is_refused(away):
    assert verify(SECRET, signed(), b"body", now=1000 + away, tolerance=301) == "m"
    with pytest.raises(BadSignature, match="check both clocks"):
        verify(SECRET, signed(), b"body", now=1000 + away)


@pytest.mark.parametrize("stamp", ["", "soon", "1e3", "-5", " 1000", "1_000", "9" * 400, "\u0661"])
def test_a_timestamp_that_is_none_is_refused(stamp):
    with pytest.raises(BadSignature, match="Unix seconds"):
        verify(SECRET, {**signed(), TIMESTAMP: stamp}, b"body", now=1000)


def test_without_a_time_the_clock_of_the_machine_counts():
    with pytest.raises(BadSignature, match="check both clocks"):
        verify(SECRET, signed(), b"body")
