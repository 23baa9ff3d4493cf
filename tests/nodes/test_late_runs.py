"""Whole graphs that come while another one is sampled: the UNet calls that they share, and who is done when."""

import pytest
import torch

import pocket
from engine.context import CancelToken
from engine.device import Device
from engine.engine import Engine, Order
from engine.errors import Cancelled
from engine.event import NodeFinished, NodeMeasured, NodeStarted
from engine.file import Files
from engine.graph import Graph
from engine.registry import Registry
from nodes import NODES

INPUTS = {"unet": "model.unet", "positive": "text", "negative": "nothing", "latent": "empty", "noise": "noise"}
PICTURE = {
    "model": {"type": "model.load", "params": {"checkpoint": "pocket", "precision": "float32"}},
    "text": {"type": "text.encode", "params": {"text": "a fox"}, "inputs": {"encoder": "model.text"}},
    "nothing": {"type": "text.encode", "inputs": {"encoder": "model.text"}},
    "noise": {"type": "noise.seeded", "params": {"seed": 5}},
    "empty": {"type": "latent.empty", "params": {"width": 32, "height": 32}, "inputs": {"vae": "model.vae"}},
    "paint": {"type": "sample", "params": {"cfg": 3.0}, "inputs": INPUTS},
    "decoded": {"type": "vae.decode", "inputs": {"vae": "model.vae", "latent": "paint"}},
}


def picture(seed, steps, **set_):
    outputs = {"image": "decoded", "latent": "paint"}
    graph = Graph.parse({"format": "calotype/1", "nodes": PICTURE, "outputs": outputs})
    return graph.set({"noise.seed": seed, "paint.steps": steps, **set_})


@pytest.fixture(scope="module")
def house():
    files = Files(named={"pocket": pocket.FOLDER})
    with Engine(Registry(NODES), device=Device(), files=files, memory=1 << 30, strict=True) as made:
        yield made


@pytest.fixture
def engine(house):
    """The engine without any memory but that of models."""
    house.clear()
    return house


class Evening:
    """Graphs that are handed over one after another, and all that is heard of them, in order."""

    def __init__(self, engine):
        self.engine = engine
        self.calls, self.told, self.outcomes = [], [], {}
        self.meets = {}

    def order(self, name, graph, **options):
        def listen(event):
            if isinstance(event, NodeMeasured) and event.name == "unet_calls":
                self.calls.append(event.value)
                self.meets.pop(len(self.calls), lambda: None)()
            if isinstance(event, NodeStarted | NodeFinished):
                self.told.append((name, event.node, type(event) is NodeFinished, len(self.calls)))

        return Order(graph, listener=listen, **options)

    def run(self, first, late):
        """`late` are orders by the number of UNet calls before which they come, or more."""
        left = sorted(late.items())

        def more():
            return left.pop(0)[1] if left and left[0][0] <= len(self.calls) else []

        def done(index, outcome):
            self.outcomes[index] = outcome
            self.told.append((index, "done", True, len(self.calls)))

        self.engine.together(first, done, more)
        return [self.outcomes[index] for index in range(len(self.outcomes))]

    def at(self, name, node):
        """After how many UNet calls something was finished."""
        return next(calls for told, what, finished, calls in self.told if (told, what, finished) == (name, node, True))


@pytest.fixture
def evening(engine):
    return Evening(engine)


@pytest.fixture
def alone(house):
    """What a graph gives where nothing is remembered and nobody keeps it company."""

    def made(graph):
        house.clear()
        return house.run(graph)

    return made


def assert_alike(found, alone):
    difference = found["latent"].data - alone["latent"].data
    assert (difference.norm() / alone["latent"].data.norm()).item() < 1e-4


def test_late_pictures_join_are_decoded_and_handed_over_when_they_are_done_and_come_out_as_alone(evening, alone):
    graphs = [
        picture(1, 12),
        picture(2, 3, **{"text.text": "a red apple"}),
        picture(3, 4, **{"paint.sampler": "euler"}),
    ]
    orders = [evening.order(index, graph) for index, graph in enumerate(graphs)]
    outcomes = evening.run(orders[:1], {3: orders[1:2], 5: orders[2:]})
    assert evening.calls == [2, 2, 2, 4, 4, 6, 4, 4, 4, 2, 2, 2]
    assert [evening.at(index, "decoded") for index in range(3)] == [12, 6, 9]
    assert [evening.at(index, "done") for index in range(3)] == [12, 6, 9]
    assert "nothing" not in outcomes[1].ran()
    for outcome, graph in zip(outcomes, graphs, strict=True):
        assert_alike(outcome, alone(graph))


def test_a_picture_that_is_wanted_twice_is_sampled_once(evening):
    orders = [evening.order(index, picture(1, 6)) for index in range(2)]
    first, second = evening.run(orders[:1], {2: orders[1:]})
    assert evening.calls == [2] * 6
    assert second.ran() == []
    assert torch.equal(first["image"].data, second["image"].data)


def test_the_second_pass_of_one_picture_joins_the_first_of_another(evening, alone):
    """As with a picture that is sampled again at its own size."""
    again = {
        "type": "sample",
        "params": {"cfg": 3.0, "denoise": 0.5, "steps": 4},
        "inputs": {**INPUTS, "latent": "paint"},
    }
    document = picture(1, 3).dump()
    document["nodes"]["again"] = again
    twice = Graph.parse({**document, "outputs": {"latent": "again"}})
    outcomes = evening.run([evening.order(0, twice), evening.order(1, picture(2, 9))], {})
    assert evening.calls == [4] * 7 + [2, 2]
    assert_alike(outcomes[0], alone(twice))


def test_a_late_picture_that_is_cancelled_leaves_the_first_where_it_is(evening, alone):
    token = CancelToken()
    evening.meets = {4: token.cancel}
    first, late = evening.order(0, picture(1, 8)), evening.order(1, picture(2, 8), token=token)
    outcomes = evening.run([first], {2: [late]})
    assert evening.calls == [2, 2, 4, 4, 2, 2, 2, 2]
    assert isinstance(outcomes[1], Cancelled)
    assert_alike(outcomes[0], alone(picture(1, 8)))


def test_pictures_of_another_model_wait_until_the_first_are_through_however_many_come(evening):
    """The same weights in another precision are another model."""
    other = picture(9, 2, **{"model.precision": "bfloat16"})
    orders = {number: [evening.order(f"late {number}", picture(20 + number, 4))] for number in range(3, 20)}
    evening.run([evening.order("first", picture(1, 6)), evening.order("other", other)], orders)
    assert evening.calls[:8] == [2] * 8
    assert evening.at("other", "paint") == 8
    assert all(evening.outcomes[index]["image"] for index in range(3))
