"""What nodes keep on their way: found by calls of the same type, in this engine, as long as memory lasts."""

import threading
from dataclasses import dataclass, replace

import pytest
import toys
from toys import LOG, MADE, Wave, engine, graph

from engine.budget import Ledger
from engine.context import CancelToken, Context
from engine.engine import Order
from engine.errors import Cancelled, RunFailed
from engine.event import NodeFinished, NodeMeasured, NodeProgress
from engine.interim import Interim
from engine.node import node
from engine.socket import Socket
from engine.store import INTERIM_SHARE, Store


def walk(way="abcd", type_="toy.climb", text="fox"):
    nodes = {
        "blob": ("toy.blob", {"text": text}),
        "wave": ("toy.encode", {}, {"blob": "blob"}),
        "walk": (type_, {"way": way}, {"wave": "wave"}),
    }
    return graph({"out": "walk"}, nodes)


@pytest.fixture(autouse=True)
def _fresh_logs():
    LOG.clear()
    MADE.clear()


@pytest.fixture
def made():
    """The ways that were gone a step further on since the last time."""

    def since():
        found = list(MADE)
        MADE.clear()
        return found

    return since


def test_a_call_goes_on_where_another_one_came_by(made):
    house = engine()
    house.run(walk("abcd"))
    assert made() == ["a", "ab", "abc", "abcd"]
    result = house.run(walk("abx"))
    assert made() == ["abx"]
    assert result["out"] == engine().run(walk("abx"))["out"]
    assert result.ran() == ["walk"]


def test_the_report_and_the_event_say_how_much_was_recalled():
    house, told = engine(), []
    house.run(walk("abcd"))
    result = house.run(walk("abxy"), listener=told.append)
    expected = "parameter changed (way: abcd → abxy); 2 of 4 steps recalled"
    assert result.report()["nodes"]["walk"]["reason"] == expected
    assert [event.reason for event in told if isinstance(event, NodeFinished) and event.node == "walk"] == [expected]
    assert [(one.name, one.value) for one in told if isinstance(one, NodeMeasured)] == [("steps_recalled", 2)]
    assert (result.nodes["walk"].reason, result.nodes["walk"].resumed) == (expected.partition(";")[0], (2, 4))


@node("toy.dive", version=1)
def dive(wave: Wave, context: Context, way: str = "ab") -> Wave:
    """The same downwards."""
    LOG.append("toy.dive")
    return toys.walked("dive", wave, way, context)


def test_nothing_is_found_of_another_type_another_beginning_or_another_engine(made):
    house = engine(dive)
    house.run(walk())
    made()
    for other in (walk(type_="toy.dive"), walk(text="owl")):
        house.run(other)
        assert len(made()) == 4
    engine().run(walk())
    assert len(made()) == 4


def elsewhere():
    """A node's function from another pack."""


elsewhere.__module__ = "another.nodes"


@pytest.mark.parametrize("other", [{"version": 2}, {"type": "toy.dive"}, {"function": elsewhere}, {}])
def test_what_is_kept_belongs_to_a_type_a_version_a_pack_and_numerics(other):
    store, lock = Store(Ledger("cpu", 1 << 20)), threading.RLock()
    definition = toys.REGISTRY["toy.climb"]
    one = Interim.of(definition, b"exact", store, lock)
    one.keep(b"key", Wave("a"), 1.0)
    assert one.recall(b"key") == (Wave("a"), 1.0)
    changed = replace(definition, **other) if other else definition
    assert Interim.of(changed, b"exact" if other else b"fast", store, lock).recall(b"key") is None


def test_what_a_cancelled_call_has_done_is_not_done_again(made):
    house, token = engine(), CancelToken()

    def listener(event):
        if isinstance(event, NodeProgress) and event.done == 2:
            token.cancel()

    with pytest.raises(Cancelled):
        house.run(walk(), listener=listener, token=token)
    assert made() == ["a", "ab", "abc"], "the step that it was cancelled in is kept, too"
    assert house.run(walk())["out"] == engine().run(walk())["out"]
    assert made()[0] == "abcd"


def test_what_a_failed_call_has_done_is_not_done_again(made):
    @node("toy.stumble", version=1)
    def stumble(wave: Wave, context: Context, way: str = "ab") -> Wave:
        """Falls at the first x."""
        toys.walked("stumble", wave, way.partition("x")[0], context)
        if "x" in way:
            raise OSError("a stone")
        return toys.walked("stumble", wave, way, context)

    house = engine(stumble)
    with pytest.raises(RunFailed, match="a stone"):
        house.run(walk("abx", "toy.stumble"))
    assert made() == ["a", "ab"]
    house.run(walk("abc", "toy.stumble"))
    assert made() == ["abc"]


def test_runs_side_by_side_find_what_each_other_kept(made):
    house, outcomes = engine(), {}
    house.together([Order(walk("abcd")), Order(walk("abcx"))], outcomes.__setitem__)
    assert sorted(made()) == ["a", "ab", "abc", "abcd", "abcx"]
    assert outcomes[1]["out"] == engine().run(walk("abcx"))["out"]


def test_clearing_forgets_what_was_kept(made):
    house = engine()
    house.run(walk())
    assert house.held()["interim"] == 4 * Wave("").nbytes()
    house.clear()
    assert house.held()["interim"] == 0
    made()
    house.run(walk())
    assert len(made()) == 4


def test_it_is_not_written_to_the_disk(tmp_path, made):
    with engine(cache=tmp_path) as house:
        house.run(walk())
        house.flush()
        assert len(list((tmp_path / "values").rglob("*.safetensors"))) == 3
    made()
    with engine(cache=tmp_path) as house:
        assert house.run(walk("abce")).ran() == ["walk"]
    assert len(made()) == 4


def test_in_a_notebook_nothing_is_kept(made):
    context = Context()
    assert not context.remembers
    for _ in range(2):
        toys.climb(Wave("fox"), context, "ab")
        assert made() == ["a", "ab"]


def test_a_result_that_was_resumed_costs_what_all_of_it_would(made):
    """Else it would be given up as if the steps before were always there."""
    house = engine()
    house.run(walk("abcd"))
    result = house.run(walk("abcx"))
    (cost,) = [house.traces.get(mark).seconds for mark in keys(house, walk("abcx"), "walk")]
    assert 3.0 < cost < 4.0
    assert result.nodes["walk"].seconds < 1.0


def keys(house, document, *names):
    """The keys of nodes of a graph that ran."""
    return [bytes.fromhex(house.records.get(name).key) for name in names]


@dataclass(frozen=True)
class Slab(Socket):
    """Bytes."""

    name: str
    size: int = 100

    def nbytes(self):
        return self.size


class TestTheShare:
    @pytest.fixture
    def store(self):
        return Store(Ledger("cpu", 8000))

    def put(self, store, *names, seconds=1.0):
        for name in names:
            store.put(name.encode(), Slab(name), seconds)

    def keep(self, store, *names, seconds=1.0, size=100):
        for name in names:
            store.keep(name.encode(), Slab(name, size), seconds)

    def test_no_more_than_its_share_is_kept_and_the_oldest_goes_first(self, store):
        names = [f"step {number}" for number in range(25)]
        self.keep(store, *names)
        assert store.statement()["interim"] == 8000 * INTERIM_SHARE == 1000
        assert [name for name in names if store.recall(name.encode())] == names[-10:]

    def test_no_result_ages_while_steps_take_each_others_places(self):
        ledger = Ledger("cpu", 8000)
        store = Store(ledger)
        self.keep(store, *(f"step {number}" for number in range(1000)))
        assert ledger.ageing.inflation == 0

    def test_what_was_recalled_stays_longer(self, store):
        names = [f"step {number}" for number in range(10)]
        self.keep(store, *names)
        assert store.recall(b"step 0") == (Slab("step 0"), 1.0)
        self.keep(store, *(f"later {number}" for number in range(9)))
        assert [name for name in names if store.recall(name.encode())] == ["step 0"]

    def test_what_is_larger_than_the_share_is_not_kept(self, store):
        self.keep(store, "small")
        self.keep(store, "large", size=1001)
        assert store.recall(b"large") is None
        assert store.recall(b"small") is not None

    def test_what_is_kept_again_replaces_what_was(self, store):
        store.keep(b"key", Slab("old"), 1.0)
        store.keep(b"key", Slab("new"), 2.0)
        assert store.recall(b"key") == (Slab("new"), 2.0)
        assert store.statement()["interim"] == 100

    def test_a_flood_of_steps_takes_no_more_of_the_results_than_the_share(self, store):
        """However much more a byte of them is worth."""
        results = [f"result {number}" for number in range(70)]
        self.put(store, *results, seconds=0.01)
        for number in range(1000):
            self.keep(store, f"step {number}", seconds=10.0)
            store.trim()
        assert all(name.encode() in store for name in results)
        self.put(store, *(f"more {number}" for number in range(10)), seconds=0.01)
        self.keep(store, "last", seconds=10.0)
        store.trim()
        assert store.statement() == {"device": 7000, "interim": 1000}

    def test_no_result_goes_while_a_node_works(self, store):
        results = [f"result {number}" for number in range(80)]
        self.put(store, *results)
        self.keep(store, "step")
        assert all(name.encode() in store for name in results)
        store.trim()
        assert sum(store.statement().values()) <= 8000

    def test_steps_that_save_little_go_before_results_that_save_much(self, store):
        self.keep(store, *(f"step {number}" for number in range(10)), seconds=0.01)
        results = [f"result {number}" for number in range(80)]
        self.put(store, *results, seconds=1.0)
        assert all(name.encode() in store for name in results)
        assert store.statement()["interim"] == 0

    def test_all_of_it_goes_when_memory_runs_out(self):
        ledger = Ledger("cpu", 8000)
        store = Store(ledger)
        self.keep(store, "step")
        assert ledger.free_everything() == 100
        assert store.recall(b"step") is None
