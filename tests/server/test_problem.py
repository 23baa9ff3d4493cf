"""Every answer that is not a success is a problem document, says what to do, and tells nothing of the inside."""

import asyncio
import json
import logging
from typing import Annotated

import httpx2
import pytest
from fastapi import Body, FastAPI, Request
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.responses import StreamingResponse

from engine.errors import CalotypeError, GraphError, Problem
from server.problem import CLIPPED, KINDS, LISTED, Refusal, install

SECRET = "swordfish"


class Submission(BaseModel):
    """Something with a nested list, for paths."""

    steps: list[int]


def application():
    """One route per way of failing."""
    app = FastAPI(openapi_url=None)
    install(app)

    @app.post("/typed")
    async def typed(body: Annotated[Submission, Body(embed=True)]):
        return body

    @app.post("/refuse/{kind}")
    async def refuse(kind: str):
        raise Refusal(kind, "no", headers={"X-Why": "because"}, setting="limits.steps")

    @app.post("/graph")
    async def graph():
        raise GraphError([Problem("nodes.a", "no such type", "unknown-type"), Problem("", "empty")])

    @app.post("/crash")
    async def crash():
        raise RuntimeError(SECRET)

    @app.post("/crash-later")
    async def crash_later():
        async def parts():
            yield b"first"
            raise RuntimeError(SECRET)

        return StreamingResponse(parts())

    @app.post("/read")
    async def read(request: Request):
        return len(await request.body())

    @app.post("/teapot")
    async def teapot():
        raise HTTPException(418, "short and stout")

    return app


def post(path, *, app=None, method="POST", **options):
    """Answer of the application, without a server."""

    async def ask():
        transport = httpx2.ASGITransport(app or application())
        async with httpx2.AsyncClient(transport=transport, base_url="http://here") as client:
            return await client.request(method, path, **options)

    return asyncio.run(ask())


def document(answer, kind):
    """Problem document of an answer, which is of this kind."""
    found = answer.json()
    assert answer.headers["content-type"] == "application/problem+json"
    assert found["type"] == f"urn:calotype:problem:{kind}"
    assert (found["status"], found["title"]) == (answer.status_code, KINDS[kind].title)
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_refusal_becomes_a_problem_document(kind):
    answer = post(f"/refuse/{kind}")
    found = document(answer, kind)
    assert answer.status_code == KINDS[kind].status
    assert (found["detail"], found["setting"], found["instance"]) == ("no", "limits.steps", f"/refuse/{kind}")
    assert answer.headers["x-why"] == "because"


@pytest.mark.parametrize(
    ("kind", "header", "value"),
    [
        ("unauthorized", "WWW-Authenticate", "Bearer"),
        ("queue-full", "Retry-After", "5"),
        ("timeout", "Connection", "close"),
    ],
)
def test_a_kind_brings_the_headers_that_its_status_demands(kind, header, value):
    assert Refusal(kind, "no").response().headers[header] == value


def test_a_refusal_may_name_its_own_retry_time():
    assert Refusal("queue-full", "no", headers={"Retry-After": "30"}).response().headers["retry-after"] == "30"


def test_a_refusal_is_a_calotype_error_that_reads_as_its_detail():
    with pytest.raises(CalotypeError, match=r"^no more$"):
        raise Refusal("quota", "no more")


def test_an_unknown_kind_is_a_mistake_in_the_program():
    with pytest.raises(KeyError):
        Refusal("nonsense", "no")


def test_a_refused_graph_lists_everything_wrong_with_it():
    found = document(post("/graph"), "invalid-graph")
    assert found["problems"] == [
        {"path": "nodes.a", "message": "no such type", "code": "unknown-type"},
        {"path": "", "message": "empty", "code": "invalid"},
    ]
    assert found["detail"] == "2 things are wrong with the graph; the first: nodes.a: no such type"


def test_a_body_of_the_wrong_shape_is_refused_with_dotted_paths():
    found = document(post("/typed", json={"body": {"steps": [1, "x", 2.5]}}), "invalid-request")
    assert [(problem["path"], problem["code"]) for problem in found["problems"]] == [
        ("body.body.steps.1", "int_parsing"),
        ("body.body.steps.2", "int_from_float"),
    ]


def test_a_missing_body_is_refused_naming_it():
    found = document(post("/typed"), "invalid-request")
    assert found["detail"].startswith("One thing is wrong with the request: body")


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b'{"body": ', "not JSON: Expecting value at character 9"),
        (b'{"body": "\xff"}', "not JSON in UTF-8"),
        (b"[" * 100_000, "nested too deeply"),
    ],
)
def test_a_body_that_is_not_json_is_malformed(body, words):
    answer = post("/typed", content=body, headers={"Content-Type": "application/json"})
    assert words in document(answer, "malformed")["detail"]


def test_a_refusal_raised_while_the_body_is_read_stays_what_it_is():
    inner = application()

    async def app(scope, receive, send):
        async def refusing():
            raise Refusal("too-large", "no more than 3 bytes")

        await inner(scope, refusing, send)

    answer = post("/typed", app=app, json={"body": 1})
    assert document(answer, "too-large")["detail"] == "no more than 3 bytes"


def test_an_unknown_path_is_a_problem():
    assert "/nowhere" in document(post("/nowhere"), "not-found")["detail"]


def test_an_unknown_method_is_a_problem_that_keeps_what_is_allowed():
    answer = post("/typed", method="DELETE")
    assert document(answer, "method-not-allowed")["detail"] == "DELETE is not possible here; allowed: POST."
    assert answer.headers["allow"] == "POST"


def test_a_status_without_a_kind_is_malformed():
    assert document(post("/teapot"), "malformed")["detail"] == "short and stout"


def test_a_crash_tells_the_client_nothing_but_the_incident_that_the_log_explains(caplog):
    with caplog.at_level(logging.ERROR, "calotype.server"):
        answer = post("/crash")
    found = document(answer, "internal")
    (record,) = caplog.records
    assert SECRET not in answer.text
    assert "RuntimeError" not in answer.text
    assert f"incident {found['incident']}: POST /crash" in record.getMessage()
    assert record.exc_info[1].args == (SECRET,)


def test_a_crash_in_the_middle_of_an_answer_is_logged_and_leaves_it_incomplete(caplog):
    sent = []

    async def receive():
        await asyncio.sleep(3600)

    async def send(message):
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": "/crash-later", "headers": [], "query_string": b""}
    with caplog.at_level(logging.ERROR, "calotype.server"):
        asyncio.run(application()(scope, receive, send))
    assert [message.get("body") for message in sent] == [None, b"first"]
    assert sent[-1]["more_body"]
    assert [record.getMessage().split(": ")[1] for record in caplog.records] == ["POST /crash-later"]


def test_a_client_that_leaves_is_no_incident(caplog):
    sent = []

    async def receive():
        return {"type": "http.disconnect"}

    async def send(message):
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": "/read", "headers": [], "query_string": b""}
    asyncio.run(application()(scope, receive, send))
    assert (sent, caplog.records) == ([], [])


def test_problems_beyond_a_hundred_are_counted_instead_of_listed():
    document = Refusal("invalid-graph", "no", problems=[Problem("a", "b")] * (LISTED + 7)).document()
    assert (len(document["problems"]), document["omitted"]) == (LISTED, 7)


def test_texts_in_megabytes_are_clipped():
    document = Refusal("invalid-graph", "x" * 10**6, problems=[Problem("a" * 10**6, "b" * 10**6)]).document()
    assert len(json.dumps(document)) < 4 * CLIPPED


@given(st.text(), st.text())
def test_any_text_survives_the_encoding_unless_it_is_clipped(detail, path):
    body = Refusal("invalid-graph", detail, problems=[Problem(path, detail)]).response("/x").body
    assert json.loads(body)["detail"] == detail
    assert json.loads(body)["problems"][0]["path"] == path


def test_a_lone_surrogate_can_be_answered():
    assert json.loads(Refusal("malformed", "\ud800").response().body)["detail"] == "\ud800"
