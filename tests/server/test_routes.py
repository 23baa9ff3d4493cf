"""What every route does, asked of real servers over HTTP."""

import http.server
import io
import json
import threading
import time
from contextlib import contextmanager
from itertools import pairwise
from queue import Queue

import httpx2
import PIL.Image
import pytest
from serving import Serving, free_port, mask_graph, sample_graph

from server import signature

SECRET = "a-secret-that-signs-the-calls-of-tests"
ANN, BOB = {"Authorization": "Bearer " + "a" * 40}, {"Authorization": "Bearer " + "b" * 40}
SMALL = {
    "limits__body": 40_000,
    "limits__nodes": 18,
    "limits__depth": 1,
    "limits__pixels": 10_000,
    "limits__steps": 5,
    "limits__batch": 2,
    "limits__cells": 3,
    "limits__queued": 5,
    "limits__queued_by_client": 3,
    "limits__upload": 3000,
    "limits__subscribers": 1,
}


@pytest.fixture(scope="module")
def hook():
    """A server that is told of the ends of runs: its port, and what it was told as (headers, body)."""
    told = Queue()

    class Receiver(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            told.put((dict(self.headers), self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(204)
            self.end_headers()

        def log_message(self, *args):
            """Say nothing."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", free_port()), Receiver) as receiver:
        threading.Thread(target=receiver.serve_forever, daemon=True).start()
        yield receiver.server_address[1], told
        receiver.shutdown()


@pytest.fixture(scope="module")
def server(tmp_path_factory, hook):
    webhooks = {"webhooks__allow": json.dumps([f"127.0.0.1:{hook[0]}"]), "webhooks__secret": SECRET}
    with Serving(tmp_path_factory.mktemp("routes"), device="cpu", **webhooks) as found:
        yield found


@pytest.fixture
def client(server):
    with server.client() as found:
        yield found
        found.patch("/v1/queue", json={"paused": False})


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A server with tight limits and two clients, whose queue stands still."""
    tokens = json.dumps({"ann": "a" * 40, "bob": "b" * 40})
    serving = Serving(tmp_path_factory.mktemp("small"), device="cpu", tokens=tokens, **SMALL)
    serving.settings["CALOTYPE_TOKEN"] = "c" * 40
    with serving as found:
        yield found


@contextmanager
def still(client):
    """A queue that stands still."""
    assert client.patch("/v1/queue", json={"paused": True}).json()["paused"]
    try:
        yield
    finally:
        client.patch("/v1/queue", json={"paused": False})


def submit(client, body, seconds=0, **headers):
    answer = client.post(f"/v1/runs?wait={seconds}", json=body, headers=headers)
    assert answer.status_code in {200, 202}, answer.text
    return answer.json()


def ended(client, run):
    """A run when it has ended."""
    found = client.get(f"/v1/runs/{run['id']}", params={"wait": 60}).json()
    assert found["state"] in {"done", "failed", "cancelled"}, found
    return found


def kind(answer):
    assert answer.headers["content-type"] == "application/problem+json", answer.text
    document = answer.json()
    assert document["status"] == answer.status_code
    return document["type"].removeprefix("urn:calotype:problem:")


def frames(text):
    """Events of a stream as (id, name, data)."""
    for block in text.split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.split("\n") if ": " in line)
        if "event" in fields:
            yield fields.get("id"), fields["event"], json.loads(fields["data"])


def figures(client):
    """The service's figures, by name."""
    lines = [line for line in client.get("/metrics").text.splitlines() if not line.startswith("#")]
    return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines)}


def picture(color="red", size=(20, 10), form="PNG"):
    stream = io.BytesIO()
    PIL.Image.new("RGB", size, color).save(stream, form)
    return stream.getvalue()


def uploaded(client, data):
    answer = client.post("/v1/blobs", content=data, headers={"Content-Type": "image/png"})
    assert answer.status_code in {200, 201}, answer.text
    return answer.json()


def loading(source):
    """A graph that does nothing but load a picture."""
    nodes = {"photo": {"type": "image.load", "params": {"source": source}}}
    return {"format": "calotype/1", "nodes": nodes, "outputs": {"photo": "photo"}}


# Submission


def test_a_document_runs_and_its_result_is_a_picture(client):
    run = submit(client, {"graph": mask_graph(101)}, 60)
    assert (run["state"], run["client"], run["attempts"]) == ("done", "local", 1)
    (found,) = run["outputs"]["mask"]["pictures"]
    data = client.get(found["url"])
    assert (data.headers["content-type"], len(data.content)) == ("image/png", found["bytes"])
    with PIL.Image.open(io.BytesIO(data.content)) as image:
        assert image.size == (found["width"], found["height"]) == (32, 32)


def test_a_submission_that_is_not_waited_for_says_where_the_run_is(client):
    with still(client):
        answer = client.post("/v1/runs", json={"graph": mask_graph(102)})
        assert answer.status_code == 202
        assert answer.json()["state"] == "queued"
        assert answer.headers["location"] == answer.json()["url"]
    assert ended(client, answer.json())["state"] == "done"


def test_what_is_known_is_answered_at_once_even_where_the_queue_stands_still(client):
    submit(client, {"graph": mask_graph(103)}, 60)
    with still(client):
        run = submit(client, {"graph": mask_graph(103)})
        assert run["state"] == "done"
        found = client.get(run["url"]).json()
    assert {node["outcome"] for node in found["nodes"].values()} <= {"hit", "unneeded"}
    assert found["outputs"]["mask"]["pictures"]
    assert found["started"] == found["submitted"]


def test_a_saved_graph_runs_by_name_with_other_literals(client):
    run = submit(client, sample_graph(7, steps=2, prompt="red apple") | {"labels": {"who": "tests"}}, 60)
    assert (run["state"], run["title"], run["labels"]) == ("done", "Text to image", {"who": "tests"})
    graph = client.get(f"{run['url']}/graph").json()
    assert graph["nodes"]["noise"]["params"]["seed"] == 7
    assert graph["nodes"]["prompted"]["params"]["prompt"] == "red apple"


def test_only_the_outputs_that_are_asked_for_are_computed(client):
    run = submit(client, {"graph": mask_graph(side=104, more=2), "outputs": ["n1"]}, 60)
    assert list(run["outputs"]) == ["n1"]
    outcomes = {name: node["outcome"] for name, node in run["nodes"].items()}
    assert outcomes["n1"] == "ran"
    assert outcomes.get("n3", "unneeded") == "unneeded"


def test_a_sweep_gives_a_sheet_and_every_cell_alone(client):
    body = sample_graph(steps=1)
    run = submit(client, body | {"sweep": {"x": {"seed": [1, 2, 3]}, "y": {"cfg": [1.0, 2.0]}}}, 60)
    cells = run["outputs"]["image"]["cells"]
    assert [cell["set"] for cell in cells] == [{"seed": seed, "cfg": cfg} for cfg in (1.0, 2.0) for seed in (1, 2, 3)]
    digests = {cell["pictures"][0]["digest"] for cell in cells}
    assert len(digests) == 6
    (sheet,) = run["outputs"]["image"]["pictures"]
    assert sheet["width"] > 3 * 64
    assert sheet["digest"] not in digests
    body["set"] |= {"seed": 2, "cfg": 2.0}
    alone = submit(client, body, 60)
    assert {node["outcome"] for node in alone["nodes"].values()} <= {"hit", "unneeded"}


def test_a_batch_gives_pictures_beside_one_another(client):
    body = sample_graph(steps=2) | {"sweep": {"batch": {"seed": [1, 2]}, "vary": {"seed": ["batch"]}}}
    run = submit(client, body | {"outputs": ["image"]}, 60)
    assert [(name, output["set"]) for name, output in run["outputs"].items()] == [
        ("image-1", {"seed": 1}),
        ("image-2", {"seed": 3}),
    ]
    assert all(len(output["pictures"]) == 1 and "cells" not in output for output in run["outputs"].values())
    data = client.get(run["outputs"]["image-2"]["pictures"][0]["url"]).content
    document = json.loads(PIL.Image.open(io.BytesIO(data)).text["calotype"])
    assert "sweep" not in document
    alone = submit(client, {"graph": document}, 60)["outputs"]["image"]
    assert alone["pictures"][0]["digest"] == run["outputs"]["image-2"]["pictures"][0]["digest"]


def test_numbers_and_texts_stand_in_the_document(client):
    nodes = {"n": {"type": "integer", "params": {"value": 41}}}
    graph = {"format": "calotype/1", "nodes": nodes, "outputs": {"n": "n"}}
    assert submit(client, {"graph": graph}, 60)["outputs"]["n"] == {"type": "Int", "value": 41}


def test_a_fresh_seed_is_drawn_for_every_submission(client):
    first, second = (submit(client, sample_graph(-1, steps=1), 60) for _ in range(2))
    seeds = {client.get(f"{run['url']}/graph").json()["nodes"]["noise"]["params"]["seed"] for run in (first, second)}
    assert len(seeds) == 2
    assert -1 not in seeds


def test_a_wait_that_is_too_short_gives_the_brief_answer(client):
    with still(client):
        answer = client.post("/v1/runs?wait=0.01", json={"graph": mask_graph(105)})
        assert (answer.status_code, answer.json()["state"]) == (202, "queued")
    assert kind(client.post("/v1/runs?wait=abc", json={"graph": "text2img"})) == "invalid-request"
    assert kind(client.post("/v1/runs?wait=nan", json={"graph": "text2img"})) == "invalid-request"


@pytest.mark.parametrize(
    ("body", "expected", "path"),
    [
        ({"graph": "tex2img"}, "invalid-graph", "graph"),
        ({"graph": mask_graph(), "set": {"nowhere": 1}}, "invalid-graph", "nowhere"),
        ({"graph": mask_graph(), "outputs": ["nowhere"]}, "invalid-graph", "nowhere"),
        ({"graph": mask_graph(), "sweep": {"x": {"nowhere": [1]}}}, "invalid-graph", "sweep.x.nowhere"),
        ({"graph": mask_graph(), "sweep": {"w": {"x": [1]}}}, "invalid-request", "sweep.w"),
        ({"graph": mask_graph(), "priority": 101}, "invalid-request", "priority"),
        ({"graph": mask_graph(), "labels": {"": "x"}}, "invalid-request", "labels..[key]"),
        ({"graph": mask_graph(), "more": 1}, "invalid-request", "more"),
        ({}, "invalid-request", "graph"),
        ([], "invalid-request", None),
    ],
)
def test_what_is_wrong_with_a_submission_is_said_where_it_is(client, body, expected, path):
    answer = client.post("/v1/runs", json=body)
    assert kind(answer) == expected
    assert path is None or path in {problem["path"] for problem in answer.json()["problems"]}, answer.text


# Idempotency


def test_the_same_key_and_body_make_one_run(client):
    answers = [
        client.post("/v1/runs", json={"graph": mask_graph(110)}, headers={"Idempotency-Key": "once"}) for _ in range(3)
    ]
    assert len({answer.json()["id"] for answer in answers}) == 1
    assert [answer.headers.get("idempotency-replayed") for answer in answers] == [None, "true", "true"]


def test_the_same_key_with_another_body_is_refused(client):
    submit(client, {"graph": mask_graph(111)}, **{"Idempotency-Key": "twice"})
    answer = client.post("/v1/runs", json={"graph": mask_graph(112)}, headers={"Idempotency-Key": "twice"})
    assert kind(answer) == "idempotency-conflict"


def test_keys_that_come_at_the_same_time_make_one_run(server):
    ids = Queue()

    def once():
        with server.client() as client:
            ids.put(submit(client, {"graph": mask_graph(113)}, **{"Idempotency-Key": "together"})["id"])

    threads = [threading.Thread(target=once) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({ids.get() for _ in threads}) == 1


@pytest.mark.parametrize("key", ["", "a" * 256, "a\tb"])
def test_a_key_that_is_no_key_is_refused(client, key):
    answer = client.post("/v1/runs", json={"graph": mask_graph()}, headers={"Idempotency-Key": key})
    assert kind(answer) == "invalid-request"


# Looking


def test_runs_are_listed_newest_first_page_by_page(client):
    made = [submit(client, {"graph": mask_graph(120 + number)}, 60)["id"] for number in range(3)]
    first = client.get("/v1/runs?limit=2").json()
    assert [run["id"] for run in first["runs"]] == made[:0:-1]
    second = client.get(first["next"]).json()
    assert second["runs"][0]["id"] == made[0]
    assert not {run["id"] for run in second["runs"]} & {run["id"] for run in first["runs"]}


def test_runs_are_listed_by_state(client):
    with still(client):
        waiting = submit(client, {"graph": mask_graph(125)})["id"]
        assert [run["id"] for run in client.get("/v1/runs?state=queued").json()["runs"]] == [waiting]
        assert waiting not in {run["id"] for run in client.get("/v1/runs?state=done").json()["runs"]}
        assert client.get("/v1/runs?of=nobody").json() == {"runs": [], "next": None}


@pytest.mark.parametrize("query", ["state=nowhere", "limit=0", "limit=201", "limit=x", "after=nonsense"])
def test_a_list_that_cannot_be_is_refused(client, query):
    assert kind(client.get(f"/v1/runs?{query}")) == "invalid-request"


@pytest.mark.parametrize("path", ["/v1/runs/{}", "/v1/runs/{}/graph", "/v1/runs/{}/events", "/v1/nowhere/{}"])
def test_what_is_not_there_is_not_found(client, path):
    assert kind(client.get(path.format("0" * 32))) == "not-found"
    assert kind(client.delete("/v1/runs/" + "0" * 32)) == "not-found"


def test_a_method_that_a_route_has_not_is_refused_with_those_that_it_has(client):
    answer = client.put("/v1/runs", json={})
    assert kind(answer) == "method-not-allowed"
    assert answer.headers["allow"] == "GET, POST"


# The queue


def test_a_waiting_run_is_cancelled_at_once(client):
    with still(client):
        run = submit(client, {"graph": mask_graph(130)})
        assert client.delete(run["url"]).json()["state"] == "cancelled"
        assert client.get("/v1/queue").json()["waiting"] == []
        assert kind(client.patch(run["url"], json={"first": True})) == "conflict"
    assert client.delete(run["url"]).json()["state"] == "cancelled"


def test_a_running_run_is_cancelled_and_an_ended_one_stays_as_it_is(client):
    run = submit(client, sample_graph(131, steps=200))
    with client.stream("GET", run["events"]) as stream:
        for line in stream.iter_lines():
            if line == "event: progress":
                client.delete(run["url"])
                break
    found = ended(client, run)
    assert found["state"] == "cancelled"
    assert client.delete(run["url"]).json()["finished"] == found["finished"]


def test_waiting_runs_are_moved_and_the_queue_shows_the_order(client):
    with still(client):
        a, b, c = (submit(client, {"graph": mask_graph(140 + number)}) for number in range(3))
        order = lambda: client.get("/v1/queue").json()["waiting"]  # noqa: E731
        assert order() == [a["id"], b["id"], c["id"]]
        client.patch(c["url"], json={"first": True})
        assert order() == [c["id"], a["id"], b["id"]]
        client.patch(c["url"], json={"before": b["id"]})
        assert order() == [a["id"], c["id"], b["id"]]
        client.patch(a["url"], json={"last": True})
        assert order() == [c["id"], b["id"], a["id"]]
        assert client.patch(a["url"], json={"priority": 5}).json()["priority"] == 5
        assert order() == [a["id"], c["id"], b["id"]]
        assert kind(client.patch(a["url"], json={"first": True, "last": True})) == "invalid-request"
        assert kind(client.patch(a["url"], json={"before": "0" * 32})) == "conflict"
        assert kind(client.patch(a["url"], json={"priority": 101})) == "invalid-request"
    ends = sorted((ended(client, run)["started"], run["id"]) for run in (a, b, c))
    assert ends[0][1] == a["id"]


def test_a_queue_that_stands_still_does_so_after_a_restart(tmp_path):
    with Serving(tmp_path, device="cpu") as server:
        with server.client() as client:
            client.patch("/v1/queue", json={"paused": True})
            run = submit(client, {"graph": mask_graph(), "priority": 3})
        server.stop()
        server.start()
        with server.client() as client:
            assert client.get("/v1/queue").json() == {"paused": True, "waiting": [run["id"]], "running": []}
            client.patch("/v1/queue", json={"paused": False})
            assert ended(client, run)["state"] == "done"


def test_runs_that_are_taken_together_share_the_calls_of_the_network(client):
    def calls(seeds):
        before = figures(client)
        with still(client):
            runs = [submit(client, sample_graph(seed, steps=6)) for seed in seeds]
        assert {ended(client, run)["state"] for run in runs} == {"done"}
        after = figures(client)
        return [after[name] - before[name] for name in ("calotype_unet_calls_total", "calotype_unet_latents_total")]

    (alone, latents), (together, more) = calls([150]), calls([151, 152, 153])
    assert more == 3 * latents
    assert together == alone


def test_figures_tell_what_was_saved(client):
    submit(client, sample_graph(160, steps=3), 60)
    before = figures(client)
    submit(client, sample_graph(160, steps=3), 60)
    after = figures(client)
    assert after["calotype_saved_seconds_total"] > before["calotype_saved_seconds_total"]
    assert after['calotype_runs_total{state="done"}'] == before['calotype_runs_total{state="done"}'] + 1
    assert after["calotype_unet_calls_total"] == before["calotype_unet_calls_total"]
    assert {'calotype_queue_depth{state="queued"}', 'calotype_nodes_total{outcome="ran"}'} <= after.keys()


# Events


def test_whoever_listens_sees_progress_and_previews_and_whoever_does_not_gets_none(client):
    run = submit(client, sample_graph(170, steps=30))
    live = list(frames(client.get(run["events"]).text))
    names = [name for _, name, _ in live]
    assert {"progress", "preview", "node.started", "node.finished"} <= set(names)
    assert (names[0], names[-1]) == ("run.started", "run.finished")
    assert live[-1][2]["state"] == "done"
    data = next(data for _, name, data in live if name == "preview")
    assert (data["type"], data["node"]) == ("image/jpeg", "paint")
    assert all(identifier is None for identifier, name, _ in live if name in {"progress", "preview"})
    again = list(frames(client.get(run["events"]).text))
    assert again == [frame for frame in live if frame[0] is not None]


def test_a_stream_goes_on_after_the_last_event_that_was_seen(client):
    run = submit(client, {"graph": mask_graph(171)}, 60)
    all_ = list(frames(client.get(run["events"]).text))
    for position, (identifier, _, _) in enumerate(all_):
        rest = client.get(run["events"], headers={"Last-Event-ID": identifier}).text
        assert list(frames(rest)) == all_[position + 1 :]
    assert list(frames(client.get(run["events"], headers={"Last-Event-ID": "9-9"}).text)) == all_


def test_a_run_in_which_nothing_ran_has_a_story_too(client):
    submit(client, {"graph": mask_graph(172)}, 60)
    run = submit(client, {"graph": mask_graph(172)})
    assert [name for _, name, _ in frames(client.get(run["events"]).text)] == [
        "run.started",
        "nodes.reused",
        "run.finished",
    ]


# Graphs and nodes


def test_a_plan_says_what_would_run_and_runs_nothing(client):
    body = {"graph": mask_graph(180, more=1)}
    first = client.post("/v1/plan", json=body).json()["nodes"]
    assert {node["verdict"] for node in first} <= {"run", "may run"}
    assert client.post("/v1/plan", json=body).json()["nodes"] == first
    submit(client, body, 60)
    again = client.post("/v1/plan", json=body).json()["nodes"]
    assert {node["verdict"] for node in again} <= {"hit", "unneeded"}
    assert kind(client.post("/v1/plan", json={"graph": "nowhere"})) == "invalid-graph"


def test_validation_lists_everything_that_is_wrong(client):
    graph = mask_graph()
    graph["nodes"]["n0"]["type"] = "mask.elipse"
    graph["nodes"]["n1"]["params"]["radiu"] = 1
    found = client.post("/v1/graphs/validate", json={"graph": graph}).json()
    assert not found["valid"]
    assert {problem["path"].split(".")[1] for problem in found["problems"]} == {"n0", "n1"}
    assert 'did you mean "mask.ellipse"' in str(found)
    assert client.post("/v1/graphs/validate", json={"graph": mask_graph()}).json() == {"valid": True, "problems": []}


def test_saved_graphs_are_listed_and_read(client):
    listed = {graph["name"]: graph for graph in client.get("/v1/graphs").json()["graphs"]}
    assert {"text2img", "img2img", "inpaint", "inpaint_after_img2img"} <= listed.keys()
    assert "seed" in listed["text2img"]["exposes"]
    assert client.get(listed["text2img"]["url"]).json()["format"] == "calotype/1"
    assert kind(client.get("/v1/graphs/text2im")) == "not-found"


def test_models_are_listed_by_kind(client):
    listed = client.get("/v1/models").json()["models"]
    shipped = [("models", "pocket"), ("loras", "blueprint"), ("embeddings", "afterglow")]
    assert [(each["kind"], each["name"]) for each in listed] == shipped
    assert all(each["problems"] == [] and "path" not in each for each in listed)
    assert client.get("/v1/models?kind=loras").json() == {"models": listed[1:2]}
    assert client.get("/v1/models?kind=vae").json() == {"models": []}
    answer = client.get("/v1/models?kind=lora")
    assert (answer.status_code, answer.json()["type"]) == (422, "urn:calotype:problem:invalid-request")


def test_node_types_are_listed_and_read(client):
    nodes = client.get("/v1/nodes").json()["nodes"]
    assert {"sample", "image.load", "mask.blur"} <= nodes.keys()
    assert client.get("/v1/nodes/mask.blur").json() == nodes["mask.blur"]
    answer = client.get("/v1/nodes/mask.blurr")
    assert kind(answer) == "not-found"
    assert "mask.blur" in answer.json()["detail"]


# Blobs


def test_an_upload_is_kept_once_and_named_by_a_graph(client):
    first = client.post("/v1/blobs", content=picture(), headers={"Content-Type": "image/png"})
    second = client.post("/v1/blobs", content=picture(), headers={"Content-Type": "image/png"})
    assert (first.status_code, second.status_code) == (201, 200)
    assert first.json() == second.json()
    assert first.headers["location"] == first.json()["url"]
    run = submit(client, {"graph": loading(first.json()["source"])}, 60)
    assert run["outputs"]["photo"]["pictures"][0]["width"] == 20


@pytest.mark.parametrize(("form", "suffix"), [("PNG", "png"), ("JPEG", "jpg"), ("WEBP", "webp"), ("BMP", "bmp")])
def test_a_blob_is_served_as_what_it_is_and_as_nothing_else(client, form, suffix):
    data = picture("blue", form=form)
    answer = client.post("/v1/blobs", content=data, headers={"Content-Type": "image/x-anything"})
    found = client.get(answer.json()["url"])
    assert found.content == data
    assert found.headers["content-type"] == f"image/{form.lower()}"
    assert found.headers["x-content-type-options"] == "nosniff"
    assert found.headers["content-disposition"].endswith(f'.{suffix}"')
    assert "sandbox" in found.headers["content-security-policy"] or "'none'" in found.headers["content-security-policy"]


def test_a_blob_that_is_known_is_not_sent_again(client):
    blob = uploaded(client, picture("green"))
    tag = client.get(blob["url"]).headers["etag"]
    again = client.get(blob["url"], headers={"If-None-Match": tag})
    assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", tag)
    assert client.get(blob["url"], headers={"If-None-Match": '"other"'}).status_code == 200


def test_a_blob_that_is_not_there_is_not_found(client):
    assert kind(client.get("/v1/blobs/" + "0" * 64)) == "not-found"
    assert kind(client.post("/v1/runs", json={"graph": loading("blob:" + "0" * 64)})) == "invalid-graph"


def test_files_are_named_within_the_inputs_and_no_link_leads_out(server, client, tmp_path):
    inputs = server.folder / "data" / "inputs"
    (tmp_path / "secret.png").write_bytes(picture("black"))
    (inputs / "mine.png").write_bytes(picture("white"))
    (inputs / "link.png").symlink_to(tmp_path / "secret.png")
    (inputs / "folder").symlink_to(tmp_path)
    assert submit(client, {"graph": loading("mine.png")}, 60)["state"] == "done"
    for name in ("link.png", "folder/secret.png", str(tmp_path / "secret.png"), "../service.sqlite"):
        assert kind(client.post("/v1/runs", json={"graph": loading(name)})) == "invalid-graph", name


# Cache and health


def test_the_cache_is_emptied_and_runs_keep_their_results(client):
    run = submit(client, {"graph": mask_graph(190)}, 60)
    assert sum(client.get("/v1/cache").json()["tiers"].values()) > 0
    client.delete("/v1/cache")
    assert client.get(run["outputs"]["mask"]["pictures"][0]["url"]).status_code == 200
    again = submit(client, {"graph": mask_graph(190)}, 60)
    assert {node["outcome"] for node in again["nodes"].values()} == {"ran"}


def test_health_says_what_there_is(client):
    found = client.get("/healthz").json()
    assert (found["status"], found["reasons"], found["device"]) == ("ok", [], "cpu")


# Webhooks


def test_the_end_of_a_run_is_told_signed(client, hook):
    port, told = hook
    run = submit(client, {"graph": mask_graph(200), "webhook": f"http://127.0.0.1:{port}/told?of=it"})
    headers, body = told.get(timeout=60)
    assert signature.verify(signature.key(SECRET), headers, body)
    assert json.loads(body)["id"] == run["id"]
    assert json.loads(body)["state"] == "done"
    with pytest.raises(signature.BadSignature):
        signature.verify(b"another secret", headers, body)


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1:1/", "http://example.org/", "file:///etc/passwd", "ftp://127.0.0.1/"]
)
def test_a_webhook_elsewhere_is_refused(client, url):
    assert kind(client.post("/v1/runs", json={"graph": mask_graph(), "webhook": url})) == "webhook-refused"


# Limits


@pytest.fixture
def ann(small):
    with small.client() as found:
        found.patch("/v1/queue", json={"paused": True})
        found.headers.update(ANN)
        yield found
        for run in found.get("/v1/runs?state=queued").json()["runs"]:
            found.delete(run["url"])
        found.patch("/v1/queue", json={"paused": False})


def inner(depth):
    """A graph within graphs."""
    graph = mask_graph()
    for _ in range(depth):
        graph = {"format": "calotype/1", "nodes": {"n": {"type": "graph", "graph": graph}}}
        graph["outputs"] = {"mask": "n.mask"}
    return graph


def batched(count):
    return {"graph": "text2img", "set": {"count": count, "width": 64, "height": 64, "steps": 2}}


@pytest.mark.parametrize(
    ("body", "expected", "setting"),
    [
        ({"graph": mask_graph(), "labels": {"a": "b" * 50_000}}, "too-large", "limits.body"),
        ({"graph": mask_graph(more=20)}, "limit-nodes", "limits.nodes"),
        (sample_graph(steps=2) | {"sweep": {"x": {"seed": [1, 2, 3]}}}, "limit-nodes", "limits.nodes"),
        ({"graph": inner(2)}, "limit-depth", "limits.depth"),
        ({"graph": mask_graph(side=128)}, "limit-pixels", "limits.pixels"),
        (sample_graph(steps=6), "limit-steps", "limits.steps"),
        (batched(3), "limit-batch", "limits.batch"),
        (
            {"graph": mask_graph(), "sweep": {"x": {"x": [1, 2]}, "y": {"n1.radius": [1, 2]}}},
            "limit-sweep",
            "limits.cells",
        ),
    ],
)
def test_every_limit_has_its_own_refusal_and_names_its_setting(ann, body, expected, setting):
    answer = ann.post("/v1/runs", json=body)
    assert (kind(answer), answer.json()["setting"]) == (expected, setting)
    assert setting in answer.json()["detail"]


def test_what_is_within_the_limits_is_taken(ann):
    for body in (mask_graph(more=9), inner(1), mask_graph(side=100)):
        assert submit(ann, {"graph": body})["state"] == "queued"


def test_an_upload_over_the_limits_is_refused(ann):
    png = {"Content-Type": "image/png"}
    answer = ann.post("/v1/blobs", content=bytes(4000), headers=png)
    assert (kind(answer), answer.json()["setting"]) == ("too-large", "limits.upload")
    answer = ann.post("/v1/blobs", content=picture(size=(200, 100)), headers=png)
    assert (kind(answer), answer.json()["setting"]) == ("limit-pixels", "limits.pixels")


def test_a_linked_parameter_over_a_limit_fails_the_run(ann):
    graph = mask_graph(211)
    graph["nodes"]["wide"] = {"type": "integer", "params": {"value": 5000}}
    del graph["nodes"]["n0"]["params"]["width"]
    graph["nodes"]["n0"]["inputs"] = {"width": "wide"}
    run = submit(ann, {"graph": graph})
    ann.patch("/v1/queue", json={"paused": False})
    found = ended(ann, run)
    assert (found["state"], found["problems"][0]["code"]) == ("failed", "limit-pixels")
    assert "limits.pixels" in found["problems"][0]["message"]
    assert found["problems"][0]["path"] == "nodes.n0"


def test_the_queue_is_full_for_one_client_before_it_is_for_all(ann):
    for number in range(3):
        submit(ann, {"graph": mask_graph(220 + number)})
    answer = ann.post("/v1/runs", json={"graph": mask_graph(229)})
    assert (kind(answer), answer.json()["setting"]) == ("queue-full", "limits.queued_by_client")
    assert int(answer.headers["retry-after"]) > 0
    runs = [submit(ann, {"graph": mask_graph(230 + number)}, **BOB) for number in range(2)]
    answer = ann.post("/v1/runs", json={"graph": mask_graph(239)}, headers=BOB)
    assert (kind(answer), answer.json()["setting"]) == ("queue-full", "limits.queued")
    for run in runs:
        assert client_of(ann, run) == "bob"


def client_of(client, run):
    return client.get(run["url"]).json()["client"]


def test_two_clients_take_turns(ann):
    first = [submit(ann, {"graph": mask_graph(240 + number)})["id"] for number in range(3)]
    second = [submit(ann, {"graph": mask_graph(250 + number)}, **BOB)["id"] for number in range(2)]
    waiting = ann.get("/v1/queue").json()["waiting"]
    assert [run for run in waiting if run in first] == first
    assert [run for run in waiting if run in second] == second
    owners = ["ann" if run in first else "bob" for run in waiting]
    assert all(a != b for a, b in pairwise(owners[:4])), owners


def test_there_are_no_more_streams_than_allowed(ann, small):
    run = submit(ann, {"graph": mask_graph(260)})
    with ann.stream("GET", run["events"]) as stream:
        lines = stream.iter_lines()  # closes the stream when it is let go of
        assert next(lines).startswith("retry")
        answer = httpx2.get(small.url + run["events"], headers=ANN, trust_env=False)
        assert (kind(answer), answer.json()["setting"]) == ("too-many-requests", "limits.subscribers")
    for _ in range(100):  # the server notices by and by that nobody listens any more
        with ann.stream("GET", run["events"]) as stream:
            if stream.status_code == 200:
                break
        time.sleep(0.05)
    assert stream.status_code == 200
