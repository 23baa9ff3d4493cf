"""Graphs that are changed late on their way: which nodes run, and how many UNet calls they make."""

import copy

import pytest
import torch

import pocket
from engine.context import CancelToken
from engine.device import Device
from engine.engine import Engine
from engine.errors import Cancelled
from engine.event import NodeMeasured, NodeProgress
from engine.file import Files
from engine.graph import Graph
from engine.registry import Registry
from nodes import NODES

PAINT = {
    "type": "sample",
    "params": {"steps": 8, "cfg": 3.0, "sampler": "euler_ancestral"},
    "inputs": {"unet": "model.unet", "positive": "text", "negative": "nothing", "latent": "empty", "noise": "noise"},
}
PICTURE = {
    "model": {"type": "model.load", "params": {"checkpoint": "pocket", "precision": "float32"}},
    "text": {"type": "text.encode", "params": {"text": "a fox"}, "inputs": {"encoder": "model.text"}},
    "nothing": {"type": "text.encode", "inputs": {"encoder": "model.text"}},
    "noise": {"type": "noise.seeded", "params": {"seed": 5}},
    "empty": {"type": "latent.empty", "params": {"width": 32, "height": 32}, "inputs": {"vae": "model.vae"}},
    "paint": PAINT,
    "decoded": {"type": "vae.decode", "inputs": {"vae": "model.vae", "latent": "paint"}},
}


def picture(**changes):
    """The whole graph of a picture, with other nodes where that is said."""
    nodes = copy.deepcopy({**PICTURE, **changes})
    expose = {"prompt": "text.text", "seed": "noise.seed", "last": "paint.last"}
    outputs = {"image": "decoded", "latent": "paint"}
    return Graph.parse({"format": "calotype/1", "nodes": nodes, "expose": expose, "outputs": outputs})


def refined():
    """A picture that is begun under one prompt and ended under another one, as with a refiner."""
    begin, end = copy.deepcopy(PAINT), copy.deepcopy(PAINT)
    begin["params"] |= {"last": 5, "leftover": True}
    end["params"] |= {"first": 5}
    end["inputs"] |= {"latent": "base", "options": "quiet", "positive": "finish"}
    quiet = {"type": "sample.options", "params": {"noise_multiplier": 0.0}}
    return picture(base=begin, paint=end, quiet=quiet, finish=PICTURE["text"])


@pytest.fixture(scope="module", params=["fast", "exact"])
def house(request):
    """An engine, which is strict."""
    files, exact = Files(named={"pocket": pocket.FOLDER}), request.param == "exact"
    with Engine(Registry(NODES), device=Device(), files=files, memory=1 << 30, exact=exact, strict=True) as made:
        yield made


@pytest.fixture
def engine(house):
    """The engine without any memory but that of models."""
    house.clear()
    return house


def run(engine, graph, outputs=None, **options):
    """Run a graph; returns the result, and the latents of each UNet call."""
    latents = []

    def listen(event):
        if isinstance(event, NodeMeasured) and event.name == "unet_calls":
            latents.append(event.value)

    return engine.run(graph, outputs, listener=listen, **options), latents


def from_scratch(engine, graph):
    """The latent that a graph gives where nothing is remembered, and the latents of each UNet call."""
    engine.clear()
    result, latents = run(engine, graph)
    return result["latent"].data, latents


def test_an_edited_prompt_is_sampled_from_where_it_changes(engine):
    run(engine, picture().set(prompt="a [fox:dog:0.5]"))
    changed = picture().set(prompt="a [fox:cat:0.5]")
    result, calls = run(engine, changed)
    assert result.ran() == ["text", "paint", "decoded"]
    assert calls == [2, 2, 2]
    assert result.report()["nodes"]["paint"]["reason"] == "input changed (positive); 5 of 8 steps recalled"
    scratch, calls = from_scratch(engine, changed)
    assert calls == [2] * 8
    assert torch.equal(result["latent"].data, scratch)


def test_a_run_that_ends_sooner_makes_no_unet_call_and_one_that_ends_later_those_that_are_missing(engine):
    for last, made in ((3, 0), (7, 2)):
        engine.clear()
        run(engine, picture().set({"last": 5}))
        changed = picture().set({"last": last})
        result, calls = run(engine, changed)
        assert result.ran() == ["paint", "decoded"]
        assert len(calls) == made
        assert torch.equal(result["latent"].data, from_scratch(engine, changed)[0])


def test_what_was_begun_stays_when_only_the_refiner_is_told_something_else(engine):
    run(engine, refined())
    result, calls = run(engine, refined().set({"finish.text": "a cat"}))
    assert (result.ran(), len(calls)) == (["finish", "paint", "decoded"], 3)
    later = refined().set({"base.last": 6, "paint.first": 6})
    result, calls = run(engine, later)
    assert (result.ran(), len(calls)) == (["base", "paint", "decoded"], 1 + 2)


def test_a_run_that_was_cancelled_goes_on_where_it_stood(engine):
    token = CancelToken()

    def listener(event):
        if isinstance(event, NodeProgress) and event.done == 3:
            token.cancel()

    with pytest.raises(Cancelled):
        engine.run(picture(), listener=listener, token=token)
    result, calls = run(engine, picture())
    assert result.ran() == ["paint", "decoded"]
    assert calls == [2] * 4
    assert torch.equal(result["latent"].data, from_scratch(engine, picture())[0])


def test_two_more_pictures_of_a_batch_compute_two(engine):
    """Each is a node of its own; the fast mode samples both together."""

    def batch(count):
        return picture().replace(sweep={"batch": {"seed": list(range(5, 5 + count))}})

    result, calls = run(engine, batch(4), ["image"])
    assert sum(calls) == 4 * 2 * 8
    result, calls = run(engine, batch(6), ["image"])
    added = [f"{node}[b{place}]" for node in ("noise", "paint", "decoded") for place in (4, 5)]
    assert result.ran() == added
    assert calls == ([2] * 16 if engine.exact else [4] * 8)
    assert list(result.outputs) == [f"image-{number}" for number in range(1, 7)]
    alone, calls = run(engine, picture().set(seed=10), ["image"])
    assert (alone.ran(), calls) == ([], [])
    assert torch.equal(alone["image"].data, result["image-6"].data)


def test_pictures_of_a_batch_are_changed_late_together(engine):
    def batch(prompt):
        return picture().set(prompt=prompt).replace(sweep={"batch": {"seed": [5, 6]}})

    run(engine, batch("a [fox:dog:0.5]"))
    result, calls = run(engine, batch("a [fox:cat:0.5]"))
    assert result.ran() == ["text", "paint[b0]", "paint[b1]", "decoded[b0]", "decoded[b1]"]
    assert calls == ([2] * 6 if engine.exact else [4] * 3)


def test_cells_of_a_sweep_that_part_late_are_one_until_then(engine):
    prompts = [f"a [fox:{word}:0.5]" for word in ("dog", "cat", "owl")]
    result, calls = run(engine, picture().replace(sweep={"batch": {"prompt": prompts}}), ["image"])
    assert calls == ([2] * (8 + 3 + 3) if engine.exact else [2] * 5 + [6] * 3)
    alone = run(engine, picture().set(prompt=prompts[1]), ["image"])[0]
    assert torch.equal(alone["image"].data, result["image-2"].data)


def test_results_are_kept_and_steps_are_not_when_there_is_no_room(engine):
    """A step is no result: what it saves is made again."""
    run(engine, picture())
    for identity in list(engine.store.identities()):
        if engine.store.get(identity) is None:
            engine.store.drop_memory(identity)
    assert engine.held()["interim"] == 0
    assert run(engine, picture())[0].ran() == []
    _, calls = run(engine, picture().set({"last": 5}))
    assert len(calls) == 5
