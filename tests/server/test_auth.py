"""The gate: no foreign name, no foreign web page, no stranger and no strange body gets through to the application."""

import asyncio
import hmac
import json
import os
from urllib.parse import urlsplit

import pytest
from fastapi import FastAPI
from hypothesis import given
from hypothesis import strategies as st

from server import auth
from server.auth import LONGEST_PATH, Guard
from server.problem import Refusal, install
from server.settings import Settings

ANN, BOB = "the-secret-token-of-ann", "the-secret-token-of-bob"
HERE = b"localhost:8420"
PAGE = "https://pages.example.org"
JSON = {"Content-Type": "application/json"}


@pytest.fixture(autouse=True)
def _plain(tmp_path, monkeypatch):
    for name in [name for name in os.environ if name.startswith("CALOTYPE_")]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)


class Recorder:
    """An application that notes which requests reach it, reads their bodies, and answers with `fields`."""

    def __init__(self, *fields):
        self.fields = fields
        self.seen = []
        self.body = None

    async def __call__(self, scope, receive, send):
        self.seen.append(scope)
        if scope["type"] != "http":
            return
        self.body = b""
        while True:
            message = await receive()
            self.body += message.get("body", b"")
            if not message.get("more_body"):
                break
        await send({"type": "http.response.start", "status": 200, "headers": list(self.fields)})
        await send({"type": "http.response.body", "body": b"reached"})


class Answer:
    """What was sent back."""

    def __init__(self, messages):
        self.status = messages[0]["status"]
        self.fields = [(name.decode(), value.decode()) for name, value in messages[0]["headers"]]
        self.headers = dict(self.fields)
        self.body = b"".join(message.get("body", b"") for message in messages[1:])

    @property
    def kind(self):
        """Kind of the problem document, or None."""
        if self.headers.get("content-type") != "application/problem+json":
            return None
        return json.loads(self.body)["type"].rpartition(":")[2]


def ask(app, method="GET", path="/", headers=None, *, host=HERE, parts=(b"",), pause=None, raw=None):
    """One request to an application, its body in `parts`; `pause` is awaited before each of them."""
    fields = [(b"host", host)] if host is not None else []
    fields += [(name.lower().encode(), value.encode("latin-1")) for name, value in (headers or {}).items()]
    fields += raw or []
    left = list(parts)
    sent = []

    async def receive():
        if pause:
            await pause()
        return {"type": "http.request", "body": left.pop(0), "more_body": bool(left)}

    async def send(message):
        sent.append(message)

    scope = {"type": "http", "method": method, "path": path, "raw_path": path.encode(), "headers": fields, "state": {}}
    asyncio.run(app(scope, receive, send))
    return Answer(sent)


def post(app, body=b"{}", headers=JSON, **options):
    """One POST with a body of this length."""
    length = {"Content-Length": str(len(body))}
    return ask(app, "POST", headers=headers | length, parts=[body], **options)


def guard(app=None, **settings):
    return Guard(app or Recorder(), Settings(**settings), uploads={"/v1/blobs"})


def glued(*pieces):
    """Bytes made of these pieces and of what separates them in addresses."""
    odd = [b":", b"8420", b":8420", b".", b"@", b"/", b"\\", b"#", b"?", b" ", b"%00", b"\t", b",", b"-", b"[", b"]"]
    return st.lists(st.sampled_from([*pieces, *odd]), min_size=1, max_size=5).map(b"".join)


# Names


@pytest.mark.parametrize(
    "host", ["localhost", "localhost:8420", "127.0.0.1:8420", "[::1]:8420", "LocalHost:8420", "127.0.0.1:9000"]
)
def test_the_machine_itself_is_known_by_its_loopback_names(host):
    assert ask(guard(), host=host.encode()).status == 200


@pytest.mark.parametrize(
    "host",
    [
        "evil.org",
        "evil.org:8420",
        "localhost.evil.org",
        "evil-localhost",
        "localhost:8420@evil.org",
        "localhost:",
        "localhost:x",
        "localhost:123456",
        "127.0.0.1.evil.org",
        "127.0.0.2",
        "192.168.1.5",
        "[::2]",
        "::1",
        "localhost ",
        "localhost\t:8420",
        "localhost, evil.org",
        "localhost/",
        "*",
    ],
)
def test_a_foreign_name_is_refused_as_misdirected(host):
    app = Recorder()
    answer = ask(guard(app), host=host.encode())
    assert (answer.status, answer.kind, app.seen) == (421, "bad-host", [])


def test_a_request_without_a_name_is_malformed():
    assert ask(guard(), host=None).kind == "malformed"
    assert ask(guard(), host=b"").kind == "malformed"


@given(glued(b"localhost", b"127.0.0.1", b"[::1]", b"LOCALHOST", b"evil.org"))
def test_whatever_name_gets_through_is_ours_to_another_parser_of_addresses_too(host):
    if ask(guard(), host=host).status == 200:
        assert urlsplit(b"http://" + host).hostname in {b"localhost", b"127.0.0.1", b"::1"}


@given(
    st.sampled_from(["localhost", "127.0.0.1", "[::1]", "pictures.example.org"]),
    st.text(st.characters(codec="latin-1", exclude_characters=":"), min_size=1),
)
def test_our_name_with_anything_before_or_after_it_is_foreign(name, more):
    known = guard(hosts=["pictures.example.org"])
    for host in (name + more, more + name, f"{name}.{more}", f"{name}@{more}", f"{name}:80{more}x"):
        assert ask(known, host=host.encode("latin-1")).kind == "bad-host"


def test_other_names_can_be_allowed_with_any_port_or_with_one():
    known = guard(hosts=["pictures.example.org", "other.org:81"])
    accepted = [b"pictures.example.org", b"pictures.example.org:443", b"other.org:81", b"PICTURES.example.org"]
    assert [ask(known, host=host).status for host in accepted] == [200] * 4
    assert [ask(known, host=host).kind for host in (b"other.org", b"other.org:82")] == ["bad-host"] * 2


def test_a_service_bound_to_one_address_is_known_by_it():
    known = guard(host="192.168.1.5", token=ANN)
    token = {"X-Calotype-Token": ANN}
    assert ask(known, headers=token, host=b"192.168.1.5:8420").status == 200
    assert ask(known, headers=token, host=b"localhost:8420").kind == "bad-host"


@pytest.mark.parametrize("bound", ["0.0.0.0", "::"])
def test_a_service_bound_everywhere_is_known_by_addresses_but_not_by_names(bound):
    known = guard(host=bound, token=ANN)
    token = {"X-Calotype-Token": ANN}
    accepted = [b"localhost", b"192.168.1.5:8420", b"10.0.0.1", b"[fd00::1]:80"]
    assert [ask(known, headers=token, host=host).status for host in accepted] == [200] * 4
    refused = [b"evil.org", b"10.1", b"0x7f.1", b"2130706433", b"010.0.0.1", b"[fe80::1%25eth0]"]
    assert [ask(known, headers=token, host=host).kind for host in refused] == ["bad-host"] * 6


def test_a_refused_name_cannot_put_anything_odd_into_the_answer():
    detail = json.loads(ask(guard(), host=b"evil\xff\x01" * 90).body)["detail"]
    assert detail.isascii()
    assert detail.isprintable()
    assert len(detail) < 800


# Web pages


@pytest.mark.parametrize("method", ["GET", "POST", "DELETE", "OPTIONS", "HEAD"])
@pytest.mark.parametrize(
    "origin",
    [
        "null",
        "",
        "https://evil.org",
        "http://localhost",
        "http://localhost:3000",
        "http://127.0.0.1:8420",
        "http://localhost:8420.evil.org",
        "http://localhost:8420/",
        "https:http://localhost:8420",
        "file://localhost:8420",
        "//localhost:8420",
        "localhost:8420",
        "https://pages.example.org:444",
        "https://pages.example.org.evil.org",
        "http://pages.example.org",
    ],
)
def test_a_foreign_page_is_refused_whatever_it_does(method, origin):
    app = Recorder()
    answer = ask(guard(app, origins=[PAGE]), method, headers={"Origin": origin})
    assert (answer.status, answer.kind, app.seen) == (403, "bad-origin", [])
    assert "access-control-allow-origin" not in answer.headers


@pytest.mark.parametrize("origin", ["http://localhost:8420", "https://localhost:8420", "HTTP://LOCALHOST:8420"])
def test_a_page_of_the_service_itself_may_use_it(origin):
    answer = ask(guard(), headers={"Origin": origin})
    assert answer.status == 200
    assert "access-control-allow-origin" not in answer.headers


@given(glued(b"http://", b"https://", b"localhost", b"pages.example.org", b"evil.org", b"null"))
def test_whatever_page_gets_through_is_ours_or_allowed(origin):
    if ask(guard(origins=[PAGE]), raw=[(b"origin", origin)]).status == 200:
        assert origin in {PAGE.encode(), b"http://localhost:8420", b"https://localhost:8420"}


def test_an_allowed_page_may_read_the_answer():
    answer = ask(guard(origins=[PAGE]), headers={"Origin": PAGE})
    assert answer.status == 200
    assert answer.headers["access-control-allow-origin"] == PAGE
    assert "X-Request-Id" in answer.headers["access-control-expose-headers"]
    assert answer.headers["vary"] == "Origin"


def test_an_allowed_page_may_read_refusals_too():
    answer = ask(guard(origins=[PAGE], token=ANN), headers={"Origin": PAGE})
    assert (answer.kind, answer.headers["access-control-allow-origin"]) == ("unauthorized", PAGE)


def test_answers_vary_by_origin_wherever_an_origin_is_allowed():
    assert ask(guard(origins=[PAGE])).headers["vary"] == "Origin"
    both = ask(guard(Recorder((b"vary", b"Accept")), origins=[PAGE])).fields
    assert [value for name, value in both if name == "vary"] == ["Accept", "Origin"]
    assert "vary" not in ask(guard()).headers


def test_an_allowed_page_gets_its_preflight_answered_without_a_token():
    app = Recorder()
    asked = {"Origin": PAGE, "Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "content-type"}
    answer = ask(guard(app, origins=[PAGE], token=ANN), "OPTIONS", headers=asked)
    assert (answer.status, answer.body, app.seen) == (204, b"", [])
    assert answer.headers["access-control-allow-origin"] == PAGE
    assert "DELETE" in answer.headers["access-control-allow-methods"]
    allowed = answer.headers["access-control-allow-headers"].split(", ")
    assert {"Authorization", "Content-Type", "Idempotency-Key", "Last-Event-ID"} <= set(allowed)
    assert "access-control-allow-credentials" not in answer.headers


def test_a_preflight_of_a_foreign_page_is_refused():
    answer = ask(guard(), "OPTIONS", headers={"Origin": PAGE, "Access-Control-Request-Method": "POST"})
    assert answer.kind == "bad-origin"


def test_only_options_is_a_preflight():
    asked = {"Origin": PAGE, "Access-Control-Request-Method": "POST"}
    assert ask(guard(origins=[PAGE], token=ANN), "GET", headers=asked).kind == "unauthorized"


@pytest.mark.parametrize("site", ["cross-site", "same-site"])
def test_a_page_that_hides_its_origin_may_look_but_not_act(site):
    assert ask(guard(), "POST", headers={"Sec-Fetch-Site": site}).kind == "bad-origin"
    assert ask(guard(), "DELETE", headers={"Sec-Fetch-Site": site}).kind == "bad-origin"
    assert ask(guard(), "GET", headers={"Sec-Fetch-Site": site}).status == 200
    assert ask(guard(origins=[PAGE]), "POST", headers={"Sec-Fetch-Site": site, "Origin": PAGE}).status == 200


@pytest.mark.parametrize("site", ["same-origin", "none"])
def test_the_person_at_the_browser_may_act(site):
    assert ask(guard(), "POST", headers={"Sec-Fetch-Site": site}).status == 200


# Tokens


def test_without_tokens_everybody_is_local():
    app = Recorder()
    ask(guard(app), headers={"X-Calotype-Token": "whatever"})
    assert app.seen[0]["state"]["client"] == "local"


@pytest.mark.parametrize("header", ["Authorization", "X-Calotype-Token"])
def test_a_token_tells_the_client_apart(header):
    app = Recorder()
    for token in (ANN, BOB):
        value = f"Bearer {token}" if header == "Authorization" else token
        assert ask(guard(app, tokens={"ann": ANN, "bob": BOB}), headers={header: value}).status == 200
    assert [scope["state"]["client"] for scope in app.seen] == ["ann", "bob"]


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Authorization": "Bearer wrong"},
        {"Authorization": f"Bearer {ANN}x"},
        {"Authorization": f"Bearer {ANN[:-1]}"},
        {"Authorization": f"Basic {ANN}"},
        {"Authorization": ANN},
        {"Authorization": "Bearer"},
        {"Authorization": "Bearer "},
        {"Authorization": ""},
        {"X-Calotype-Token": ""},
        {"X-Calotype-Token": " "},
        {"X-Calotype-Token": "wr\xf6ng"},
        {"Cookie": f"token={ANN}"},
    ],
)
@pytest.mark.parametrize("path", ["/", "/healthz", "/metrics", "/docs", "/openapi.json", "/nowhere"])
def test_without_the_right_token_nothing_is_reachable(path, headers):
    app = Recorder()
    answer = ask(guard(app, tokens={"ann": ANN, "bob": BOB}), path=path, headers=headers)
    assert (answer.status, answer.kind, app.seen) == (401, "unauthorized", [])
    assert answer.headers["www-authenticate"] == "Bearer"


def test_a_token_in_the_address_does_not_count():
    app = Recorder()
    wrapped = guard(app, token=ANN)

    async def queried(scope, receive, send):
        scope["query_string"] = f"token={ANN}&access_token={ANN}".encode()
        await wrapped(scope, receive, send)

    assert ask(queried).kind == "unauthorized"


def test_the_scheme_is_spelled_as_one_likes():
    assert ask(guard(token=ANN), headers={"Authorization": f"bEARER  {ANN} "}).status == 200


def test_two_ways_of_sending_a_token_at_once_are_malformed():
    headers = {"Authorization": f"Bearer {ANN}", "X-Calotype-Token": ANN}
    assert ask(guard(token=ANN), headers=headers).kind == "malformed"


def test_every_token_is_compared_in_constant_time_as_a_digest_whichever_is_right(monkeypatch):
    compared = []

    def noting(known, given):
        compared.append((len(known), len(given)))
        return hmac.compare_digest(known, given)

    monkeypatch.setattr(auth, "compare_digest", noting)
    many = guard(tokens={f"client-{number}": f"the-token-of-client-{number:02}" for number in range(9)})
    for token in ("the-token-of-client-00", "the-token-of-client-08", "x", "y" * 5000):
        compared.clear()
        ask(many, headers={"X-Calotype-Token": token})
        assert compared == [(32, 32)] * 9


def test_no_refusal_repeats_a_token():
    for headers in ({"X-Calotype-Token": ANN + "x"}, {"Authorization": f"Bearer {ANN}x"}):
        answer = ask(guard(token=ANN), headers=headers)
        assert ANN not in str(answer.fields) + answer.body.decode()


# Bodies


@pytest.mark.parametrize(
    "given",
    ["application/json", "application/json; charset=utf-8", 'Application/JSON ;charset="UTF-8"', "application/json;"],
)
def test_json_is_taken(given):
    app = Recorder()
    if given.endswith(";"):
        assert post(guard(app), headers={"Content-Type": given}).kind == "unsupported-media-type"
    else:
        assert post(guard(app), b'{"a": 1}', {"Content-Type": given}).status == 200
        assert app.body == b'{"a": 1}'


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE", "GET"])
@pytest.mark.parametrize(
    "given",
    [
        None,
        "",
        "text/plain",
        "application/x-www-form-urlencoded",
        "multipart/form-data; boundary=x",
        "application/json; charset=latin-1",
        "application/jsonp",
        "text/json",
        "image/png",
        "application/json, text/plain",
    ],
)
def test_any_other_type_is_refused_because_web_pages_can_send_it_unasked(method, given):
    app = Recorder()
    headers = {"Content-Length": "2"} | ({} if given is None else {"Content-Type": given})
    answer = ask(guard(app), method, headers=headers, parts=[b"{}"])
    assert (answer.status, answer.kind, app.seen) == (415, "unsupported-media-type", [])


@pytest.mark.parametrize("length", [{}, {"Content-Length": "0"}])
def test_a_request_without_a_body_needs_no_type(length):
    assert ask(guard(), "POST", headers=length).status == 200


@pytest.mark.parametrize("given", ["image/png", "image/jpeg", "image/webp", "IMAGE/BMP", "image/svg+xml; x=y"])
def test_uploads_are_pictures_of_any_kind_for_the_route_to_judge(given):
    assert post(guard(), b"pixels", {"Content-Type": given}, path="/v1/blobs").status == 200
    assert post(guard(), b"pixels", {"Content-Type": given}, path="/v1/runs").kind == "unsupported-media-type"


@pytest.mark.parametrize(
    "given", ["application/json", "text/html", "multipart/form-data", "image/", "x, image/png", ""]
)
def test_an_upload_of_something_else_is_refused(given):
    assert post(guard(), b"pixels", {"Content-Type": given}, path="/v1/blobs").kind == "unsupported-media-type"


def test_packed_bodies_are_refused():
    assert post(guard(), headers=JSON | {"Content-Encoding": "gzip"}).kind == "unsupported-media-type"
    assert post(guard(), headers=JSON | {"Content-Encoding": "Identity"}).status == 200


@pytest.mark.parametrize(
    ("path", "given", "setting"),
    [("/v1/runs", "application/json", "limits.body"), ("/v1/blobs", "image/png", "limits.upload")],
)
def test_a_body_announced_too_large_is_refused_without_reading_it(path, given, setting):
    limits = {"body": 100, "upload": 100}
    app = Recorder()

    async def never():
        raise AssertionError("the body was read")

    headers = {"Content-Type": given, "Content-Length": "101"}
    answer = ask(guard(app, limits=limits), "POST", path, headers, pause=never)
    assert (answer.status, answer.kind, app.seen) == (413, "too-large", [])
    assert (json.loads(answer.body)["setting"], json.loads(answer.body)["limit"]) == (setting, 100)
    assert post(guard(limits=limits), b"x" * 100, {"Content-Type": given}, path=path).status == 200


@pytest.mark.parametrize("parts", [[b"x" * 101], [b"x" * 60, b"x" * 60, b"never read"], [b"x"] * 101])
def test_a_body_of_unknown_length_is_counted_while_it_arrives(parts):
    app = Recorder()
    headers = JSON | {"Transfer-Encoding": "chunked"}
    answer = ask(guard(app, limits={"body": 100}), "POST", headers=headers, parts=parts)
    assert (answer.status, answer.kind) == (413, "too-large")
    assert len(app.body) <= 100


def test_a_body_of_unknown_length_that_fits_is_taken():
    app = Recorder()
    headers = JSON | {"Transfer-Encoding": "chunked"}
    assert ask(guard(app, limits={"body": 100}), "POST", headers=headers, parts=[b"x"] * 100).status == 200
    assert app.body == b"x" * 100


@pytest.mark.parametrize("length", ["-1", "+5", "5, 5", "0x5", "five", "", "1" * 30, "\xb2"])
def test_a_length_that_is_no_number_is_malformed(length):
    assert ask(guard(), "POST", headers=JSON | {"Content-Length": length}).kind == "malformed"


def test_a_body_that_dribbles_is_given_up_after_its_time_in_all():
    app = Recorder()

    async def slowly():
        await asyncio.sleep(0.02)

    headers = JSON | {"Content-Length": "1000"}
    wrapped = guard(app, limits={"body_seconds": 0.1})
    answer = ask(wrapped, "POST", headers=headers, parts=[b"x"] * 1000, pause=slowly)
    assert (answer.status, answer.kind) == (408, "timeout")
    assert answer.headers["connection"] == "close"
    assert 0 < len(app.body) < 1000


def test_a_body_that_never_comes_is_given_up():
    async def never():
        await asyncio.Event().wait()

    headers = JSON | {"Content-Length": "1000"}
    assert ask(guard(limits={"body_seconds": 0.05}), "POST", headers=headers, pause=never).kind == "timeout"


def test_waiting_for_the_client_to_leave_is_not_waiting_for_a_body():
    heard = []

    async def lingering(scope, receive, send):
        heard.extend([await receive(), await receive()])
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    async def scenario():
        messages = [{"type": "http.request", "body": b"{}", "more_body": False}, {"type": "http.disconnect"}]
        gone = asyncio.Event()

        async def receive():
            if len(messages) == 1:
                asyncio.get_running_loop().call_later(0.2, gone.set)
                await gone.wait()
            return messages.pop(0)

        async def send(message):
            pass

        headers = [(b"host", HERE), (b"content-type", b"application/json"), (b"content-length", b"2")]
        scope = {"type": "http", "method": "POST", "path": "/", "headers": headers, "state": {}}
        await guard(lingering, limits={"body_seconds": 0.05})(scope, receive, send)

    asyncio.run(scenario())
    assert [message["type"] for message in heard] == ["http.request", "http.disconnect"]


def test_refusals_while_reading_pass_through_a_fastapi_application_unchanged():
    inner = FastAPI()
    install(inner)

    @inner.post("/typed")
    async def typed(body: dict):
        return body

    headers = JSON | {"Transfer-Encoding": "chunked"}
    wrapped = guard(inner, limits={"body": 10})
    answer = ask(wrapped, "POST", "/typed", headers, parts=[b'{"a": "', b"x" * 10, b'"}'])
    assert (answer.status, answer.kind) == (413, "too-large")


# Requests that could be read in two ways


@pytest.mark.parametrize(
    "raw",
    [
        [(b"host", b"evil.org")],
        [(b"host", HERE)],
        [(b"content-length", b"1"), (b"content-length", b"2")],
        [(b"content-type", b"application/json"), (b"content-type", b"text/plain")],
        [(b"origin", PAGE.encode()), (b"origin", b"https://evil.org")],
        [(b"authorization", b"Bearer a"), (b"authorization", b"Bearer b")],
        [(b"content-type", b"application/json"), (b"content-length", b"2"), (b"transfer-encoding", b"chunked")],
    ],
)
def test_headers_that_contradict_are_malformed(raw):
    app = Recorder()
    answer = ask(guard(app), "POST", raw=raw)
    assert (answer.status, answer.kind, app.seen) == (400, "malformed", [])


def test_headers_that_may_come_twice_may():
    assert ask(guard(), raw=[(b"accept", b"a"), (b"accept", b"b"), (b"cookie", b"c"), (b"cookie", b"d")]).status == 200


@pytest.mark.parametrize("path", ["/a\0b", "/" + "a" * LONGEST_PATH])
def test_a_path_with_nul_or_without_end_is_malformed(path):
    assert ask(guard(), path=path).kind == "malformed"


def test_the_longest_path_is_fine():
    assert ask(guard(), path="/" + "a" * (LONGEST_PATH - 1)).status == 200


# Answers


@pytest.mark.parametrize("headers", [{}, {"Origin": "https://evil.org"}])
def test_every_answer_tells_the_browser_to_be_careful(headers):
    answer = ask(guard(), headers=headers).headers
    assert answer["x-content-type-options"] == "nosniff"
    assert answer["cache-control"] == "no-store"
    assert answer["referrer-policy"] == "no-referrer"
    assert answer["cross-origin-resource-policy"] == "same-origin"
    assert answer["content-security-policy"] == "default-src 'none'; frame-ancestors 'none'"


def test_a_route_may_set_its_own_caching_and_content_policy():
    own = [(b"cache-control", b"max-age=60"), (b"content-security-policy", b"default-src 'self'")]
    fields = ask(guard(Recorder(*own))).fields
    assert [value for name, value in fields if name == "cache-control"] == ["max-age=60"]
    assert [value for name, value in fields if name == "content-security-policy"] == ["default-src 'self'"]


def test_every_request_has_an_id_of_its_own_that_the_application_knows():
    app = Recorder()
    wrapped = guard(app)
    told = [ask(wrapped, headers={"X-Request-Id": "mine"}).headers["x-request-id"] for _ in range(50)]
    assert [scope["state"]["request"] for scope in app.seen] == told
    assert len(set(told)) == 50
    assert told[0] != ask(guard()).headers["x-request-id"]


def test_a_refusal_after_the_answer_has_begun_is_not_answered_twice():
    async def late(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        raise Refusal("too-large", "too late")

    with pytest.raises(Refusal, match="too late"):
        ask(guard(late))


# Not HTTP


def test_start_and_end_of_the_process_reach_the_application():
    app = Recorder()
    asyncio.run(guard(app, token=ANN)({"type": "lifespan"}, None, None))
    assert [scope["type"] for scope in app.seen] == ["lifespan"]


def test_websockets_are_closed_before_they_open():
    app = Recorder()
    sent = []

    async def send(message):
        sent.append(message)

    asyncio.run(guard(app)({"type": "websocket", "path": "/", "headers": []}, None, send))
    assert (sent, app.seen) == ([{"type": "websocket.close", "code": 1008}], [])
