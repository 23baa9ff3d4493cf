"""The store: three tiers, byte budgets, pins."""

from dataclasses import dataclass, replace

import pytest
from toys import REGISTRY

from engine.budget import Ledger
from engine.catalogue import Catalogue
from engine.disk import Disk
from engine.socket import Socket
from engine.store import Store

SIZE = 100


@dataclass(frozen=True)
class Slab(Socket):
    """A value with a place, as a tensor has."""

    name: str
    where: str = "gpu"

    def nbytes(self):
        return SIZE

    def move(self, place):
        return replace(self, where=place)

    def place(self):
        return self.where


@pytest.fixture
def disk(tmp_path):
    catalogue = Catalogue(tmp_path)
    disk = Disk(catalogue, {**REGISTRY.sockets, "Slab": Slab}, 1 << 20)
    yield disk
    disk.close()
    catalogue.close()


def put(store, *names, seconds=1.0):
    for name in names:
        store.put(name.encode(), Slab(name), seconds)


def tiers(device=1000, host=1000, disk=None):
    return Store(Ledger("gpu", device), Ledger("cpu", host), disk)


def test_what_the_device_cannot_hold_moves_to_the_host():
    store = tiers(device=2 * SIZE)
    put(store, "a", "b", "c")
    assert store.statement() == {"device": 2 * SIZE, "host": SIZE, "interim": 0}


def test_a_value_comes_back_onto_the_device():
    store = tiers(device=SIZE)
    put(store, "a", "b")
    for name in "ab":
        assert store.get(name.encode()) == Slab(name, "gpu")
        assert store.statement() == {"device": SIZE, "host": SIZE, "interim": 0}


def test_values_in_host_memory_lie_on_the_host():
    store = tiers(device=0)
    put(store, "a")
    assert [value.where for value in store._host.values.values()] == ["cpu"]


def test_what_neither_holds_is_gone_without_a_disk():
    store = tiers(device=SIZE, host=SIZE)
    put(store, "a", "b", "c")
    assert sum(name.encode() in store for name in "abc") == 2


def test_the_disk_has_what_memory_let_go_of(disk):
    store = tiers(device=0, host=0, disk=disk)
    put(store, "a", "b")
    disk.flush()
    assert store.statement()["device"] == store.statement()["host"] == 0
    assert store.get(b"a") == Slab("a", "gpu")


def test_what_is_cheap_to_make_again_goes_first():
    store = tiers(device=2 * SIZE, host=0)
    put(store, "dear", seconds=10)
    put(store, "cheap", seconds=0.1)
    put(store, "middling", seconds=1)
    assert b"dear" in store
    assert b"cheap" not in store


def test_what_was_used_again_outlives_what_was_not():
    store = tiers(device=2 * SIZE, host=0)
    put(store, "old", "other")
    store.use(b"old")
    put(store, "new")
    assert b"old" in store


def test_pinned_values_stay_even_over_the_budget():
    store = tiers(device=SIZE, host=0)
    for name in "abc":
        store.pin(name.encode())
    put(store, "a", "b", "c")
    assert all(name.encode() in store for name in "abc")
    assert store.statement()["device"] == 3 * SIZE
    store.unpin(b"a")
    put(store, "d")
    assert b"a" not in store


def test_a_value_is_pinned_as_often_as_it_is_needed():
    store = tiers(device=0, host=0)
    store.pin(b"a")
    store.pin(b"a")
    put(store, "a")
    store.unpin(b"a")
    put(store, "b")
    assert b"a" in store
    store.unpin(b"a")
    put(store, "c")
    assert b"a" not in store


def test_a_discarded_value_is_gone_from_every_tier(disk):
    store = tiers(disk=disk)
    put(store, "a")
    disk.flush()
    store.discard(b"a")
    assert b"a" not in store
    assert store.get(b"a") is None


def test_a_value_that_is_put_twice_is_counted_once():
    store = tiers()
    put(store, "a", "a")
    assert store.statement()["device"] == SIZE


def test_clearing_leaves_nothing(disk):
    store = tiers(device=SIZE, disk=disk)
    put(store, "a", "b", "c")
    store.clear()
    assert store.statement() == {"device": 0, "host": 0, "interim": 0, "disk": 0}
    assert b"a" not in store


def test_a_value_keeps_its_worth_on_its_way_down_and_up():
    store = tiers(device=SIZE)
    put(store, "dear", seconds=10)
    store.use(b"dear")
    store._device.give_up()
    assert b"dear" in store._host.values
    store.get(b"dear")
    entry = store._device.take(b"dear")[1]
    assert (entry.seconds, entry.uses) == (10, 1)


def test_trimming_restores_the_budget_that_pins_broke():
    store = tiers(device=SIZE, host=0)
    for name in "abc":
        store.pin(name.encode())
    put(store, "a", "b", "c")
    for name in "abc":
        store.unpin(name.encode())
    store.trim()
    assert store.statement()["device"] == SIZE
