"""The garbage collector passes over what stays, and still finds what does not."""

import gc
import weakref

import pytest

from server import garbage
from server.garbage import Collector


class Knot:
    """Something that only the collector can free."""

    def __init__(self):
        self.itself = self


@pytest.fixture
def collector():
    made = Collector()
    made.open()
    yield made
    made.close()


def test_what_is_there_at_the_start_is_frozen(collector):
    assert gc.get_freeze_count() > 1000


def test_what_survives_a_long_collection_is_frozen(collector, monkeypatch):
    monkeypatch.setattr(garbage, "LONG", 0.0)
    kept = [Knot() for _ in range(100)]
    before = gc.get_freeze_count()
    gc.collect()
    assert gc.get_freeze_count() >= before + len(kept)


def test_a_short_collection_freezes_nothing(collector, monkeypatch):
    monkeypatch.setattr(garbage, "LONG", 60.0)
    kept = [Knot() for _ in range(100)]
    before = gc.get_freeze_count()
    gc.collect()
    assert gc.get_freeze_count() <= before
    assert kept


def test_frozen_garbage_is_found_when_there_is_time(collector, monkeypatch):
    monkeypatch.setattr(garbage, "LONG", 0.0)
    knot = Knot()
    gone = weakref.ref(knot)
    gc.collect()
    del knot
    gc.collect()
    assert gone() is not None
    collector.collect()
    assert gone() is None


def test_nothing_stays_frozen_afterwards():
    collector = Collector()
    callbacks = list(gc.callbacks)
    collector.open()
    collector.close()
    assert gc.get_freeze_count() == 0
    assert gc.callbacks == callbacks
