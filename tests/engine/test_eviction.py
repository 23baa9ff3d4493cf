"""GreedyDual-Size-Frequency with probation, on examples worked out by hand and on scripts of anything."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.eviction import PROBATION_SHARE, STALE, Ageing, Gdsf

ROOMY = math.inf
"""A capacity of which probation never has too much."""


def policy(capacity=ROOMY, ageing=None, **entries):
    """A policy with `name=(size, seconds)` or `name=(size, seconds, uses)`."""
    made = Gdsf(lambda: capacity, ageing)
    for name, entry in entries.items():
        made.admit(name, *entry)
    return made


def order(made):
    """Everything, in the order in which it would go."""
    found = []
    while (victim := made.victim()) is not None:
        found.append(victim)
        made.evict(victim)
    return found


class TestOrder:
    def test_the_cheaper_of_equal_size_goes_first(self):
        assert order(policy(a=(10, 3.0), b=(10, 1.0), c=(10, 2.0))) == ["b", "c", "a"]

    def test_the_larger_of_equal_cost_goes_first(self):
        assert order(policy(a=(10, 1.0), b=(30, 1.0), c=(20, 1.0))) == ["b", "c", "a"]

    def test_seconds_per_byte_decide(self):
        assert order(policy(large=(1000, 50.0), small=(10, 1.0), tiny=(1, 0.01))) == ["tiny", "large", "small"]

    def test_among_equals_the_oldest_goes_first(self):
        assert order(policy(a=(10, 1.0), b=(10, 1.0), c=(10, 1.0))) == ["a", "b", "c"]

    def test_each_use_counts_as_much_as_the_first(self):
        made = policy(a=(10, 1.0), b=(10, 2.5))
        made.use("a")
        assert made.priority("a") == pytest.approx(2 * 1.0 / 10)
        made.use("a")
        assert made.priority("a") == pytest.approx(3 * 1.0 / 10)
        assert order(made) == ["b", "a"]

    def test_uses_from_elsewhere_count_on_admission(self):
        assert order(policy(a=(10, 1.0, 3), b=(10, 2.0))) == ["b", "a"]

    def test_a_value_that_cost_nothing_has_a_priority_all_the_same(self):
        assert order(policy(a=(10, 0.0), b=(100, 0.0), c=(0, 0.0))) == ["b", "a", "c"]

    def test_an_empty_policy_has_no_victim(self):
        assert policy().victim() is None


class TestAgeing:
    def test_what_comes_later_starts_from_the_worth_of_what_went(self):
        made = policy(a=(10, 1.0), b=(10, 2.0))
        made.evict("a")
        made.admit("c", 10, 1.0)
        assert made.priority("c") == pytest.approx(0.1 + 0.1)
        assert made.priority("b") == pytest.approx(0.2)

    def test_an_old_favourite_that_is_never_used_again_goes_in_the_end(self):
        made = policy(old=(10, 5.1, 3))
        for number in range(50):
            made.admit(number, 10, 1.0)
            if (gone := made.victim()) == "old":
                break
            made.evict(gone)
        assert gone == "old"
        assert number == 20  # each newcomer raised the inflation by 0.1, and the favourite is worth 4 * 5.1 / 10

    def test_a_favourite_that_is_used_again_stays(self):
        made = policy(old=(10, 5.0, 3))
        for number in range(50):
            made.admit(number, 10, 1.0)
            made.use("old")
            made.evict(made.victim())
        assert "old" in made

    def test_ageing_never_runs_backwards(self):
        ageing = Ageing()
        made = policy(ageing=ageing, a=(10, 5.0), b=(10, 1.0))
        made.evict("a")
        made.evict("b")
        assert ageing.inflation == pytest.approx(0.5)

    def test_policies_that_share_ageing_compare(self):
        ageing = Ageing()
        one, other = policy(ageing=ageing, a=(10, 3.0)), policy(ageing=ageing, b=(10, 2.0))
        one.evict("a")
        other.admit("c", 10, 1.0)
        assert other.priority("c") == pytest.approx(0.3 + 0.1)

    def test_removing_is_not_evicting(self):
        ageing = Ageing()
        made = policy(ageing=ageing, a=(10, 3.0))
        made.remove("a")
        assert ageing.inflation == 0


def aged(capacity, size=30, seconds=3.0):
    """`old` was used twice long ago; since then the inflation rose to 1, and `new` has not been used again."""
    made = policy(capacity, old=(30, 3.0, 1), gone=(1, 1.0, 0))
    made.evict("gone")
    made.admit("new", size, seconds)
    return made


class TestProbation:
    def test_a_crowd_of_newcomers_does_not_profit_from_its_youth(self):
        made = aged(capacity=100)
        assert made.priority("old") < made.priority("new")
        assert made.victim() == "new"

    def test_a_few_newcomers_do(self):
        assert aged(capacity=100, size=20, seconds=2.0).victim() == "old"

    def test_a_crowd_of_newcomers_that_are_worth_more_does_not_go_first(self):
        assert aged(capacity=100, seconds=30.0).victim() == "old"

    def test_a_newcomer_that_is_used_again_is_no_newcomer(self):
        made = aged(capacity=100)
        made.use("new")
        assert made.victim() == "old"

    def test_a_crowd_that_is_spared_pays_nothing(self):
        assert aged(capacity=100).victim(lambda key: key == "new") == "old"

    def sweep(self, capacity):
        """Sixty-four cells as dear as the evening's work, through a cache of ten values; what is left of it."""
        evening = {f"evening {number}": (10, 5.0, 1) for number in range(6)}
        made, held = policy(capacity, **evening), 60
        for cell in range(64):
            made.admit(f"cell {cell}", 10, 5.0)
            held += 10
            while held > 100:
                made.evict(made.victim())
                held -= 10
        assert "cell 63" in made
        return [name for name in evening if name in made]

    def test_a_sweep_of_values_used_once_does_not_flush_what_is_used_again(self):
        assert len(self.sweep(capacity=100)) == 6

    def test_without_probation_the_sweep_would_flush_it(self):
        """The broken twin: the same sweep where nothing is ever a crowd."""
        assert self.sweep(capacity=ROOMY) == []


class TestSpared:
    def test_what_is_spared_stays(self):
        made = policy(a=(10, 1.0), b=(10, 2.0), c=(10, 3.0))
        assert made.victim(lambda key: key in "ab") == "c"
        assert made.victim() == "a"

    def test_where_all_are_spared_nobody_goes(self):
        made = policy(a=(10, 1.0), b=(10, 2.0, 4))
        assert made.victim(lambda _: True) is None
        assert sorted(order(made)) == ["a", "b"]


class TestBookkeeping:
    def test_admitting_again_replaces(self):
        made = policy(a=(10, 1.0), b=(10, 2.0))
        made.admit("a", 10, 3.0)
        assert len(made) == 2
        assert order(made) == ["b", "a"]

    def test_removing_gives_back_what_was_known(self):
        entry = policy(a=(10, 1.5, 2)).remove("a")
        assert (entry.size, entry.seconds, entry.uses) == (10, 1.5, 2)
        assert policy().remove("a") is None

    def test_what_was_removed_and_admitted_again_at_the_same_worth_stands_once(self):
        made = policy(a=(10, 1.0))
        for _ in range(3):
            made.remove("a")
            made.admit("a", 10, 1.0)
        assert order(made) == ["a"]

    @pytest.mark.parametrize(
        "work",
        [
            lambda made: made.use(7),
            lambda made: made.admit(7, 10, 1.0),
            lambda made: (made.remove(7), made.admit(7, 10, 1.0)),
        ],
        ids=["use", "admit", "come and go"],
    )
    def test_years_of_use_do_not_fill_the_memory(self, work):
        made = Gdsf(lambda: ROOMY)
        for key in range(10):
            made.admit(key, 10, 1.0)
        for _ in range(10_000):
            work(made)
        assert sum(map(len, made._heaps.values())) <= 2 * (2 * 10 + STALE + 1)
        assert sorted(order(made)) == list(range(10))


steps = st.lists(
    st.tuples(
        st.sampled_from(["admit", "admit", "use", "remove", "evict"]),
        st.integers(0, 6),
        st.integers(0, 50),
        st.sampled_from([0.0, 0.1, 1.0, 1.0, 7.5]),
        st.sets(st.integers(0, 6)),
    ),
    max_size=60,
)


def merit(entry):
    size, seconds, uses, *_ = entry
    return (uses + 1) * seconds / size


def expected(known, spared, capacity):
    """The victim, found by looking at every entry: (size, seconds, uses, priority, ticket) by key."""
    queues = [[key for key in known if (known[key][2] == 0) == side and key not in spared] for side in (True, False)]
    lowest = [min(queue, key=lambda key: known[key][3:]) for queue in queues if queue]
    crowded = sum(entry[0] for entry in known.values() if entry[2] == 0) > PROBATION_SHARE * capacity
    return min(lowest, key=lambda key: merit(known[key]) if crowded else known[key][3], default=None)


@given(steps, st.sampled_from([40.0, 200.0, ROOMY]))
def test_a_victim_is_always_the_one_that_the_rules_name(script, capacity):
    """Against a model that keeps no heaps."""
    made = Gdsf(lambda: capacity)
    known, inflation = {}, 0.0
    for ticket, (act, key, size, seconds, spared) in enumerate(script):
        if act == "admit":
            made.admit(key, size, seconds)
            entry = (max(size, 1), max(seconds, 1e-6), 0)
            known[key] = (*entry, inflation + merit(entry), ticket)
        elif act == "use" and key in known:
            made.use(key)
            entry = (known[key][0], known[key][1], known[key][2] + 1)
            known[key] = (*entry, inflation + merit(entry), ticket)
        elif act == "remove":
            assert (made.remove(key) is None) == (known.pop(key, None) is None)
        elif act == "evict":
            victim = made.victim(spared.__contains__)
            assert victim == expected(known, spared, capacity)
            if victim is not None:
                assert victim not in spared
                assert made.evict(victim).size == known[victim][0]
                inflation = max(inflation, known.pop(victim)[3])
        assert len(made) == len(known)
        assert {name: made.priority(name) for name in known} == {name: entry[3] for name, entry in known.items()}
        assert made._probation == sum(entry[0] for entry in known.values() if entry[2] == 0)
