"""One ledger of bytes that several holders share."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.budget import Ledger
from engine.eviction import Gdsf


class Pile:
    """Things under a ledger; those that are held are in use."""

    def __init__(self, name, ledger, **things):
        self.name = name
        self.in_use = set()
        self.gone = []
        self.sizes = {}
        self._policy = Gdsf(lambda: ledger.capacity * 100, ledger.ageing)
        ledger.join(self)
        for thing, (size, seconds) in things.items():
            self.add(thing, size, seconds)

    def add(self, thing, size, seconds):
        self.sizes[thing] = size
        self._policy.admit(thing, size, seconds)

    def held(self):
        return sum(self.sizes.values())

    def cheapest(self):
        found = self._policy.victim(self.in_use.__contains__)
        return None if found is None else self._policy.priority(found)

    def give_up(self):
        found = self._policy.victim(self.in_use.__contains__)
        self._policy.evict(found)
        self.gone.append(found)
        return self.sizes.pop(found)


@pytest.fixture
def ledger():
    return Ledger("gpu", 100)


def test_the_cheapest_goes_first_whoever_holds_it(ledger):
    values = Pile("values", ledger, a=(10, 1.0), b=(10, 4.0), c=(10, 5.0))
    models = Pile("models", ledger, m=(10, 2.0), n=(10, 3.0))
    assert ledger.make_room(80)
    assert (values.gone, models.gone) == (["a"], ["m", "n"])


def test_nothing_goes_where_there_is_room(ledger):
    values = Pile("values", ledger, a=(10, 1.0), b=(10, 2.0))
    assert ledger.make_room(80)
    assert values.gone == []


def test_no_more_goes_than_has_to(ledger):
    values = Pile("values", ledger, a=(10, 1.0), b=(50, 20.0), c=(40, 30.0))
    assert ledger.make_room(1)
    assert values.gone == ["a"]


def test_without_a_size_the_budget_itself_is_restored(ledger):
    values = Pile("values", ledger, a=(60, 1.0), b=(60, 2.0))
    assert ledger.make_room()
    assert (values.gone, ledger.used()) == (["a"], 60)


def test_what_is_in_use_is_never_given_up(ledger):
    values = Pile("values", ledger, a=(60, 1.0), b=(60, 2.0))
    values.in_use = {"a", "b"}
    assert not ledger.make_room()
    assert values.gone == []


def test_more_than_the_budget_is_refused_after_everything_free_went(ledger):
    values = Pile("values", ledger, a=(60, 1.0), b=(30, 2.0))
    values.in_use = {"a"}
    assert not ledger.make_room(101)
    assert values.gone == ["b"]


def test_everything_that_is_not_in_use_is_freed_at_once(ledger):
    values, models = Pile("values", ledger, a=(10, 1.0), b=(20, 2.0)), Pile("models", ledger, m=(30, 3.0))
    values.in_use = {"a"}
    assert ledger.free_everything() == 50
    assert ledger.used() == 10
    assert ledger.free_everything() == 0
    assert models.gone == ["m"]


def test_the_statement_names_every_holder(ledger):
    Pile("values", ledger, a=(10, 1.0))
    Pile("models", ledger, m=(30, 3.0))
    assert ledger.statement() == {"values": 10, "models": 30, "capacity": 100}


def test_holders_age_together(ledger):
    values, models = Pile("values", ledger, a=(10, 5.0)), Pile("models", ledger)
    ledger.free_everything()
    models.add("m", 10, 1.0)
    values.add("b", 10, 2.0)
    assert models.cheapest() == pytest.approx(0.5 + 0.1)
    assert values.cheapest() == pytest.approx(0.5 + 0.2)


@given(
    st.lists(st.tuples(st.booleans(), st.integers(1, 60), st.floats(0.1, 9), st.booleans()), max_size=12),
    st.integers(0, 120),
)
def test_room_is_made_exactly_where_it_can_be(things, size):
    ledger = Ledger("gpu", 100)
    piles = [Pile("values", ledger), Pile("models", ledger)]
    for number, (which, bytes_, seconds, used) in enumerate(things):
        piles[which].add(number, bytes_, seconds)
        if used:
            piles[which].in_use.add(number)
    needed = sum(bytes_ for _, bytes_, _, used in things if used)
    assert ledger.make_room(size) == (needed + size <= 100)
    assert ledger.used() == sum(pile.held() for pile in piles)
    for pile in piles:
        assert not pile.in_use & set(pile.gone)
    if needed + size <= 100:
        assert ledger.used() + size <= 100
    else:
        assert ledger.used() == needed
