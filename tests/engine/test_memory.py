"""Models and values of a run under one budget: who holds what, when, and what is said where it does not fit."""

import pytest
from accelerators import LOADED, Accelerator, Ref
from toys import Blob, Wave, engine, graph

from engine import errors
from engine.context import Context
from engine.event import Trouble
from engine.node import node


@pytest.fixture(autouse=True)
def _nothing_loaded():
    LOADED.clear()


def house(memory, host=1 << 20, *more, **options):
    return engine(*more, device=Accelerator(), memory=memory, host_memory=host, **options)


def line(*names, text="a", size=1000):
    """One model after the other at work on one thing."""
    nodes, last = {"a": ("toy.blob", {"text": text}), "w": ("toy.encode", {}, {"blob": "a"})}, "w"
    for name in names:
        nodes[f"{name}_model"] = ("toy.model", {"name": name, "size": size})
        nodes[name] = ("toy.through", {}, {"model": f"{name}_model", "wave": last})
        last = name
    return graph({"out": last}, nodes)


def plenty(graph):
    """What a graph gives where there is memory for everything."""
    return house(1 << 40).run(graph)["out"]


def test_a_run_whose_models_do_not_fit_together_completes_within_its_budget():
    engine, most = house(29_000), []
    document = line("text", "unet", "vae", size=10_000)
    result = engine.run(document, listener=lambda _: most.append(engine.held()["models"]))
    assert (result["out"], max(most)) == (plenty(document), 20_000)


def test_what_a_node_used_is_gone_before_the_next_one_loads_where_both_do_not_fit(monkeypatch):
    engine, seen, load = house(1500), [], Ref.load

    def watched(ref, files, place):
        seen.append((ref.name, engine.held()["models"], engine.held()["host_models"]))
        return load(ref, files, place)

    monkeypatch.setattr(Ref, "load", watched)
    engine.run(line("text", "unet", "vae"))
    assert seen == [("text", 0, 0), ("unet", 0, 1000), ("vae", 0, 2000)]


def test_another_run_copies_its_models_from_the_host_and_loads_nothing():
    engine = house(1500)
    engine.run(line("text", "unet", "vae"))
    other = line("text", "unet", "vae", text="b")
    expected = plenty(other)
    LOADED.clear()
    assert engine.run(other)["out"] == expected
    assert (LOADED, engine.held()["models"], engine.held()["host_models"]) == ([], 1000, 2000)


def test_where_the_host_is_short_too_they_are_loaded_again():
    engine = house(1500, 500)
    engine.run(line("text", "unet", "vae"))
    other = line("text", "unet", "vae", text="b")
    expected = plenty(other)
    LOADED.clear()
    assert engine.run(other)["out"] == expected
    assert LOADED == ["text", "unet", "vae"]


def test_a_model_larger_than_the_budget_is_used_all_the_same_and_said_once_for_each_node():
    engine, events = house(500), []
    result = engine.run(line("text", "unet"), listener=events.append)
    assert result["out"] == plenty(line("text", "unet"))
    troubles = [event for event in events if isinstance(event, Trouble)]
    assert [event.node for event in troubles] == ["text", "unet"]
    assert "takes 1 kB of gpu, more than its budget: values" in troubles[0].message
    assert "models 1 kB, budget 500 B; it is tried all the same" in troubles[0].message
    assert engine.held()["models"] == 0, "nobody needs it any more"


def test_within_the_budget_nothing_is_said():
    events = []
    house(5000).run(line("text", "unet"), listener=events.append)
    assert not any(isinstance(event, Trouble) for event in events)


def test_what_really_does_not_fit_fails_with_the_ledger():
    @node("toy.huge", version=1)
    def huge(model: Ref, context: Context) -> Blob:
        """Memory runs out beside its model."""
        context.model(model)
        raise MemoryError

    nodes = {"m": ("toy.model", {"name": "unet", "size": 3_000_000}), "h": ("toy.huge", {}, {"model": "m"})}
    with pytest.raises(errors.RunFailed) as failed:
        house(4_000_000, 1 << 30, huge).run(graph({"out": "h"}, nodes))
    assert "OutOfMemory: out of memory on gpu after freeing 0 B" in str(failed.value)
    assert "(values 192 B, interim 0 B, models 3.0 MB, budget 4.0 MB)" in str(failed.value)


def test_where_memory_runs_out_models_that_are_not_in_use_move_to_the_host_before_the_second_attempt():
    held = []

    @node("toy.hungry", version=1)
    def hungry(wave: Wave, context: Context) -> Blob:
        """Needs the whole device."""
        held.append((engine.held()["models"], engine.held()["host_models"]))
        if not context.scarce:
            raise MemoryError
        return Blob("fed")

    engine = house(5000, 1 << 20, hungry)
    nodes = {
        "a": ("toy.blob",),
        "w": ("toy.encode", {}, {"blob": "a"}),
        "m": ("toy.model", {"size": 1000}),
        "t": ("toy.through", {}, {"model": "m", "wave": "w"}),
        "h": ("toy.hungry", {}, {"wave": "t"}),
    }
    assert engine.run(graph({"out": "h"}, nodes))["out"] == Blob("fed")
    assert held == [(1000, 0), (0, 1000), (0, 1000)]


def test_patched_models_and_their_base_take_turns():
    nodes = {
        "a": ("toy.blob",),
        "w": ("toy.encode", {}, {"blob": "a"}),
        "m": ("toy.model", {"size": 1000}),
        "p": ("toy.patch", {"name": "lora"}, {"model": "m"}),
        "q": ("toy.patch", {"name": "other"}, {"model": "p"}),
        "o": ("toy.model", {"name": "vae", "size": 1000}),
    }
    last = "w"
    for turn in range(3):
        for place, name in enumerate("mpoqop"):
            nodes[f"t{turn}{place}"] = ("toy.through", {}, {"model": name, "wave": last})
            last = f"t{turn}{place}"
    document = graph({"out": last}, nodes)
    expected = house(1 << 20).run(document)["out"]
    LOADED.clear()
    assert house(1004).run(document)["out"] == expected
    assert sorted(LOADED) == ["lora", "other", "unet", "vae"]


def test_a_node_that_failed_holds_nothing():
    @node("toy.torn", version=1)
    def torn(model: Ref, context: Context) -> Blob:
        """Fails with a model in its hands."""
        context.model(model)
        raise ValueError("torn")

    engine = house(5000, 1 << 20, torn)
    nodes = {"m": ("toy.model", {"size": 1000}), "t": ("toy.torn", {}, {"model": "m"})}
    engine.run(graph({"out": "t"}, nodes), check=False)
    assert engine._resources.ledger.free_everything() >= 1000
    assert engine.held()["models"] == 0


def test_a_device_that_is_the_host_has_one_ledger():
    assert "host_models" not in engine().held()
