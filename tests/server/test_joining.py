"""A run that comes while another one samples joins it, if it is next and has the same models; else its turn comes."""

import io
import threading

import numpy as np
import PIL.Image
import pytest
from serving import Serving, mask_graph, sample_graph

STEPS = 50


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with Serving(tmp_path_factory.mktemp("joining"), device="cpu", queue__together=3) as found:
        yield found


@pytest.fixture
def client(server):
    with server.client() as found:
        yield found
        found.patch("/v1/queue", json={"paused": False})


def submit(client, body):
    answer = client.post("/v1/runs", json=body)
    assert answer.status_code == 202, answer.text
    return answer.json()["id"]


def document(client, run, **wait):
    return client.get(f"/v1/runs/{run}", params=wait).json()


def ended(client, run):
    found = document(client, run, wait=60)
    assert found["state"] == "done", found
    return found


def calls(client):
    """How often the UNet was called so far."""
    lines = [line for line in client.get("/metrics").text.splitlines() if line.startswith("calotype_unet_calls_total")]
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines)


@pytest.fixture
def long(client):
    """A run that samples, and how often the UNet was called before."""
    before = calls(client)
    run = submit(client, sample_graph(9000 + int(before), steps=STEPS))
    while calls(client) < before + 2:
        threading.Event().wait(0.01)
    yield run, before
    ended(client, run)


def test_it_shares_the_calls_of_the_network_and_is_done_when_its_own_steps_are(client, long):
    first, before = long
    second = ended(client, submit(client, sample_graph(7001, steps=3)))
    assert document(client, first)["state"] == "running"
    assert second["finished"] < ended(client, first)["finished"]
    assert calls(client) == before + STEPS


def test_its_picture_is_the_one_that_it_gives_alone(client, long):
    joined = pixels(client, ended(client, submit(client, sample_graph(7002, steps=4))))
    ended(client, long[0])
    client.delete("/v1/cache")
    alone = pixels(client, ended(client, submit(client, sample_graph(7002, steps=4))))
    assert np.abs(joined - alone).max() <= 1  # calls that are shared may differ in their last bits


def pixels(client, run):
    """The levels of a run's picture."""
    [picture] = run["outputs"]["image"]["pictures"]
    return np.asarray(PIL.Image.open(io.BytesIO(client.get(picture["url"]).content))).astype(int)


def test_one_of_other_models_is_not_passed_by_one_that_could_join(client, long):
    first, before = long
    other, late = submit(client, {"graph": mask_graph(71)}), submit(client, sample_graph(7003, steps=3))
    for run in (first, other, late):
        ended(client, run)
    assert calls(client) == before + STEPS + 3


def test_no_more_run_at_a_time_than_may(client, long):
    first, _ = long
    others = [submit(client, sample_graph(7010 + number, steps=STEPS)) for number in range(3)]
    while document(client, others[1])["state"] == "queued":
        threading.Event().wait(0.01)
    assert document(client, first)["state"] == "running"
    assert document(client, others[2])["state"] == "queued"
    for run in others:
        ended(client, run)


def test_none_joins_while_the_queue_stands_still(client, long):
    first, before = long
    client.patch("/v1/queue", json={"paused": True})
    late = submit(client, sample_graph(7020, steps=3))
    reached = calls(client)
    while calls(client) < reached + 3:
        threading.Event().wait(0.01)
    assert document(client, late)["state"] == "queued"
    client.patch("/v1/queue", json={"paused": False})
    ended(client, late)
    assert document(client, first)["state"] == "running"
    ended(client, first)
    assert calls(client) == before + STEPS


def test_one_that_joined_may_be_cancelled_and_the_other_repeats_nothing(client, long):
    first, before = long
    late = submit(client, sample_graph(7030, steps=2 * STEPS))
    while document(client, late)["state"] == "queued":
        threading.Event().wait(0.01)
    client.delete(f"/v1/runs/{late}")
    assert document(client, late, wait=60)["state"] == "cancelled"
    ended(client, first)
    assert calls(client) == before + STEPS
