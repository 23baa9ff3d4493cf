"""What a node says about its result that is no failure: it is told, reported, and told again with every hit."""

import pytest
import toys
from toys import Blob, Wave, engine, graph

from engine.context import Context
from engine.event import NodeFinished, NodeStarted, Outcome, Warned
from engine.node import node

DARK = "it is too dark to see; used a lamp"


@node("toy.lamp", version=1)
def lamp(blob: Blob, context: Context, level: int = 0) -> Wave:
    """Warns twice of the same, and once of something else where the level says so."""
    context.warn(DARK)
    context.warn(DARK)
    if level:
        context.warn(f"level {level}")
    return Wave(toys.mixed("lamp", blob.text, level))


@node("toy.silent", version=1)
def silent(blob: Blob, context: Context) -> Wave:
    """Says nothing."""
    return Wave("silence")


def lit(level=0, text="a"):
    nodes = {
        "a": ("toy.blob", {"text": text}),
        "lamp": ("toy.lamp", {"level": level}, {"blob": "a"}),
        "out": ("toy.decode", {}, {"wave": "lamp"}),
    }
    return graph({"out": "out"}, nodes, expose={"level": "lamp.level"})


@pytest.fixture
def heard():
    return []


def warned(heard):
    """(node, message) of every warning so far."""
    found = [(event.node, event.message) for event in heard if isinstance(event, Warned)]
    heard.clear()
    return found


def test_a_warning_is_told_before_its_node_is_finished(heard):
    engine(lamp).run(lit(level=3), listener=heard.append)
    of_lamp = [event for event in heard if getattr(event, "node", None) == "lamp"]
    assert [type(event) for event in of_lamp] == [NodeStarted, Warned, Warned, NodeFinished]
    assert warned(heard) == [("lamp", DARK), ("lamp", "level 3")]


def test_a_warning_stands_in_the_report():
    report = engine(lamp).run(lit(level=3)).report()
    assert report["nodes"]["lamp"]["warnings"] == [DARK, "level 3"]
    assert report["nodes"]["out"]["warnings"] == []


def test_a_hit_is_warned_of_again(heard):
    house = engine(lamp)
    house.run(lit())
    result = house.run(lit(), listener=heard.append)
    assert result.ran() == []
    assert warned(heard) == [("lamp", DARK)]
    assert result.nodes["lamp"].warnings == (DARK,)


def test_what_is_not_needed_any_more_is_warned_of_all_the_same_because_the_result_was_made_of_it(heard):
    house = engine(lamp)
    kept = house.run(lit())["out"].identity()
    for identity in house.store.identities() - {kept}:
        house.store.drop_memory(identity)
    result = house.run(lit(), listener=heard.append)
    assert result.nodes["lamp"].outcome is Outcome.UNNEEDED
    assert warned(heard) == [("lamp", DARK)]


def test_a_change_that_leaves_the_node_alone_repeats_its_warning_alone(heard):
    house = engine(lamp)
    house.run(lit(level=1))
    house.run(lit(level=2))
    house.run(lit(level=1), listener=heard.append)
    assert warned(heard) == [("lamp", DARK), ("lamp", "level 1")]


def test_warnings_survive_a_restart(tmp_path, heard):
    with engine(lamp, cache=tmp_path) as house:
        house.run(lit(level=2))
    with engine(lamp, cache=tmp_path) as house:
        assert house.run(lit(level=2), listener=heard.append).ran() == []
    assert warned(heard) == [("lamp", DARK), ("lamp", "level 2")]


def test_what_is_forgotten_warns_of_nothing(tmp_path, heard):
    with engine(lamp, silent, cache=tmp_path) as house:
        house.run(lit())
        house.clear()
        nodes = {"a": ("toy.blob",), "s": ("toy.silent", {}, {"blob": "a"})}
        house.run(graph({"out": "s"}, nodes), listener=heard.append)
    assert warned(heard) == []


def test_a_recall_carries_them():
    house, document = engine(lamp), lit()
    house.run(document)
    for _ in range(2):
        assert house.recall(document).nodes["lamp"].warnings == (DARK,)


def test_equal_nodes_are_both_warned_of():
    nodes = {
        "a": ("toy.blob",),
        "one": ("toy.lamp", {}, {"blob": "a"}),
        "other": ("toy.lamp", {}, {"blob": "a"}),
    }
    result = engine(lamp).run(graph({"one": "one", "other": "other"}, nodes))
    assert len(result.ran()) == 2
    assert [result.nodes[name].warnings for name in ("one", "other")] == [(DARK,), (DARK,)]


def test_a_node_that_fails_is_heard_before_it_does(heard):
    @node("toy.torn", version=1)
    def torn(context: Context, text: str = "x") -> Blob:
        """Warns, then fails."""
        context.warn("the paper is wet")
        raise ValueError("torn")

    house = engine(torn)
    document = graph({"out": "t"}, {"t": ("toy.torn",)})
    result = house.run(document, listener=heard.append, check=False)
    assert warned(heard) == [("t", "the paper is wet")]
    assert result.nodes["t"].warnings == ("the paper is wet",)


def test_an_attempt_that_ran_out_of_memory_leaves_no_warning(heard):
    @node("toy.short", version=1)
    def short(context: Context, text: str = "x") -> Blob:
        """Says how it went about it."""
        context.warn("in tiles" if context.scarce else "as a whole")
        if not context.scarce:
            raise MemoryError
        return Blob("made")

    engine(short).run(graph({"out": "s"}, {"s": ("toy.short",)}), listener=heard.append)
    assert warned(heard) == [("s", "in tiles")]


def test_calls_that_are_made_together_warn_each_for_itself():
    def many(calls):
        for call in calls[1:]:
            call["context"].warn(f"seed {call['seed']}")
        yield {number: Blob(f"{call['seed']}") for number, call in enumerate(calls)}

    @node("toy.several", version=1, many=many)
    def several(context: Context, seed: int) -> Blob:
        """May be fused."""
        raise AssertionError("they are called together")

    nodes = {f"s{seed}": ("toy.several", {"seed": seed}) for seed in range(3)}
    result = engine(several).run(graph({name: name for name in nodes}, nodes))
    assert [result.nodes[name].warnings for name in nodes] == [(), ("seed 1",), ("seed 2",)]


def test_a_notebook_reads_them_from_its_context():
    context = Context()
    lamp(Blob("a"), context)
    assert context.warnings == [DARK]
