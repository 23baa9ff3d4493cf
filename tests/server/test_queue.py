import copy
from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from server.queue import FairQueue, Waiting


def waiting(name, client="a", priority=0, rank=0.0, models=()):
    return Waiting(name, client, priority, rank, frozenset(models))


def filled(*runs):
    queue = FairQueue()
    for rank, run in enumerate(runs):
        queue.add(replace(run, rank=run.rank or float(rank)))
    return queue


def ids(runs):
    return [run.id for run in runs]


def drained(queue, seconds=1.0):
    """What `take(1)` gives until nothing is left, each run charged the same."""
    taken = []
    while found := queue.take():
        taken += ids(found)
        queue.charge(found[0].client, seconds)
    return taken


# What comes next


def test_an_empty_queue_gives_nothing():
    queue = FairQueue()
    assert (queue.take(8), queue.order(), len(queue), queue.by_client("a")) == ([], [], 0, 0)


def test_runs_of_one_client_come_by_rank_then_as_they_came():
    queue = filled(waiting("late", rank=7), waiting("x", rank=5), waiting("y", rank=5), waiting("early", rank=-1))
    assert drained(queue) == ["early", "x", "y", "late"]


def test_a_higher_priority_comes_first_whoever_used_how_much():
    queue = filled(waiting("low", "a"), waiting("high", "b", priority=1), waiting("higher", "b", priority=2))
    queue.charge("b", 1000.0)
    assert drained(queue) == ["higher", "high", "low"]


def test_clients_take_turns_when_their_runs_take_equally_long():
    queue = filled(*[waiting(f"a{n}") for n in range(4)], *[waiting(f"b{n}", "b") for n in range(2)])
    assert drained(queue) == ["a0", "b0", "a1", "b1", "a2", "a3"]


def test_clients_take_turns_when_nothing_is_charged_at_all():
    queue = filled(*[waiting(f"a{n}") for n in range(3)], *[waiting(f"b{n}", "b") for n in range(3)])
    assert [queue.take()[0].id for _ in range(6)] == ["a0", "b0", "a1", "b1", "a2", "b2"]


def test_a_client_with_long_runs_gets_fewer_of_them():
    queue = filled(*[waiting(f"a{n}") for n in range(4)], *[waiting(f"b{n}", "b") for n in range(9)])
    served = Counter()
    for _ in range(8):
        (run,) = queue.take()
        served[run.client] += 1
        queue.charge(run.client, 3.0 if run.client == "a" else 1.0)
    assert served == {"a": 2, "b": 6}


def test_a_client_that_was_away_has_saved_up_nothing():
    queue = filled(waiting("b0", "b"), *[waiting(f"a{n}") for n in range(9)])
    queue.remove("b0")
    for _ in range(3):
        queue.charge(queue.take()[0].client, 100.0)
    for number in range(4):
        queue.add(waiting(f"b{number}", "b", rank=number))
    assert [queue.take()[0].client for _ in range(4) if queue.charge("a", 0.0) is None] == ["b", "a", "b", "a"]


def test_a_client_does_not_shed_what_it_used_by_leaving_for_a_moment():
    queue = filled(waiting("a0"), *[waiting(f"b{n}", "b") for n in range(9)])
    queue.charge(queue.take()[0].client, 5.0)
    queue.add(waiting("a1"))
    assert drained(queue)[:7] == ["b0", "b1", "b2", "b3", "b4", "a1", "b5"]


def test_who_used_an_idle_service_does_not_pay_for_it_when_others_come():
    queue = filled(waiting("a0"))
    queue.charge(queue.take()[0].client, 3600.0)
    queue.add(waiting("b0", "b"))
    queue.add(waiting("b1", "b", rank=1))
    queue.add(waiting("a1"))
    assert drained(queue) == ["b0", "a1", "b1"]


# Together


def test_runs_with_the_same_models_are_taken_together_and_others_left():
    queue = filled(waiting("a0", models="x"), waiting("a1", models="y"), waiting("a2", models="x"), waiting("a3"))
    assert ids(queue.take(8)) == ["a0", "a2"]
    assert queue.order() == ["a1", "a3"]


def test_no_more_runs_are_taken_together_than_asked_for():
    queue = filled(*[waiting(f"a{n}") for n in range(5)])
    assert ids(queue.take(3)) == ["a0", "a1", "a2"]


def test_a_batch_is_shared_fairly():
    queue = filled(*[waiting(f"a{n}") for n in range(8)], *[waiting(f"b{n}", "b") for n in range(8)])
    assert ids(queue.take(4)) == ["a0", "b0", "a1", "b1"]


def test_a_batch_has_one_priority():
    queue = filled(waiting("low"), waiting("high", priority=1))
    assert ids(queue.take(8)) == ["high"]


def test_those_that_join_others_have_their_models_and_only_while_one_of_them_is_next():
    queue = filled(waiting("a0", models="x"), waiting("a1", models="y"), waiting("a2", models="x"), waiting("a3"))
    assert queue.take(8, frozenset("y")) == []
    assert ids(queue.take(1, frozenset("x"))) == ["a0"]
    assert queue.take(8, frozenset("x")) == []
    assert ids(queue.take(8, frozenset("y"))) == ["a1"]
    assert queue.order() == ["a2", "a3"]


def test_none_that_is_more_urgent_is_passed_by_those_that_join():
    queue = filled(waiting("a0", models="x"), waiting("b0", "b", priority=1, models="y"))
    assert queue.take(8, frozenset("x")) == []


def test_a_client_whose_runs_join_those_before_them_passes_no_other_for_long():
    """Each that is through is charged, as every run is."""
    queue, joined = filled(waiting("b", "other", models="y"), *[waiting(f"a{n}", models="x") for n in range(50)]), 0
    queue.charge("other", 10.0)
    while found := queue.take(1, frozenset("x")):
        queue.charge(found[0].client, 1.0)
        joined += 1
    assert joined == 10
    assert ids(queue.take()) == ["b"]


# Moving


def test_moving_first_last_and_before():
    queue = filled(*[waiting(name) for name in "pqrs"])
    queue.move("s", first=True)
    assert queue.order() == ["s", "p", "q", "r"]
    queue.move("s", last=True)
    assert queue.order() == ["p", "q", "r", "s"]
    queue.move("r", before="q")
    assert queue.order() == ["p", "r", "q", "s"]


def test_moving_tells_the_rank_to_remember():
    queue = filled(*[waiting(name) for name in "pqr"])
    ranks = queue.move("r", before="q")
    assert list(ranks) == ["r"]
    assert 0.0 < ranks["r"] < 1.0
    assert queue.move("p", priority=1) == {"p": 0.0}


def test_a_run_that_arrives_after_one_was_moved_last_stands_behind_it():
    queue = filled(waiting("p", rank=1), waiting("q", rank=2), waiting("r", rank=3))
    for name in "pqpqpq":
        queue.move(name, last=True)
    queue.add(waiting("s", rank=4))
    assert queue.order() == ["r", "p", "q", "s"]


def test_any_number_of_moves_between_the_same_two_runs_keeps_the_order_and_tells_all_new_ranks():
    queue = filled(*[waiting(name, rank=1e6 + at) for at, name in enumerate("pqrs")])
    ranks = {}
    for turn in range(200):
        ranks |= queue.move("rq"[turn % 2], before="qr"[turn % 2])
    assert queue.order() == ["p", "q", "r", "s"]
    again = FairQueue()
    for name in "srqp":
        again.add(waiting(name, rank=ranks[name]))
    assert again.order() == queue.order()


def test_a_run_is_only_put_before_another_of_its_client_and_priority():
    queue = filled(waiting("p"), waiting("q", "b"), waiting("r", priority=1))
    for before in "qrp":
        with pytest.raises(ValueError, match="expected to be put before another run of a with priority 0"):
            queue.move("p", before=before)
    queue.move("p", priority=1, before="r")
    assert queue.order() == ["p", "r", "q"]


def test_misuse_is_refused_and_changes_nothing():
    queue = filled(waiting("p"), waiting("q"))
    with pytest.raises(ValueError, match="waits already"):
        queue.add(waiting("p"))
    with pytest.raises(ValueError, match="several"):
        queue.move("q", first=True, last=True)
    with pytest.raises(KeyError):
        queue.move("q", before="nobody")
    with pytest.raises(KeyError):
        queue.move("nobody", first=True)
    for seconds in (-1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="finite"):
            queue.charge("a", seconds)
    for rank in (float("nan"), 1e300):
        with pytest.raises(ValueError, match="rank of r"):
            queue.add(waiting("r", rank=rank))
    assert queue.remove("nobody") is False
    assert queue.order() == ["p", "q"]


# Any queue

CLIENTS = st.sampled_from("abc")
RUNS = st.lists(
    st.tuples(CLIENTS, st.integers(0, 1), st.integers(0, 3).map(float), st.sampled_from(["", "x", "xy"])), max_size=30
)


def of(found):
    return [
        waiting(str(at), client, priority, rank, models) for at, (client, priority, rank, models) in enumerate(found)
    ]


def added(runs):
    queue = FairQueue()
    for run in runs:
        queue.add(run)
    return queue


@given(RUNS, st.integers(1, 9))
def test_every_run_is_taken_once(found, together):
    runs, queue, taken = of(found), added(of(found)), []
    while batch := queue.take(together):
        assert len(batch) <= together
        assert len({(run.priority, run.models) for run in batch}) == 1
        assert len(queue) + len(taken) + len(batch) == len(runs)
        taken += batch
    assert sorted(ids(taken)) == sorted(ids(runs))
    assert set(taken) == set(runs)


@given(RUNS)
def test_priorities_never_rise_and_a_clients_ranks_never_fall(found):
    by_id = {run.id: run for run in of(found)}
    order = [by_id[name] for name in drained(added(by_id.values()))]
    assert [run.priority for run in order] == sorted((run.priority for run in order), reverse=True)
    for client in "abc":
        own = [(-run.priority, run.rank, int(run.id)) for run in order if run.client == client]
        assert own == sorted(own)


@given(RUNS, st.floats(0.125, 8.0))
def test_the_projected_order_is_what_comes_when_every_run_takes_what_is_expected(found, seconds):
    queue = added(of(found))
    queue.charge("a", seconds)
    projected = copy.deepcopy(queue).order()
    assert queue.order() == projected
    assert drained(queue, seconds) == projected


@given(RUNS, st.integers(1, 9))
def test_what_is_taken_together_is_the_beginning_of_the_order_where_all_are_alike(found, together):
    queue = added([replace(run, priority=0, models=frozenset()) for run in of(found)])
    expected = queue.order()[:together]
    assert ids(queue.take(together)) == expected


@given(RUNS, st.integers(1, 9), st.sampled_from(["", "x", "xy"]))
def test_those_that_join_others_are_those_that_would_be_taken_next(found, together, models):
    queue, expected = added(of(found)), added(of(found)).take(together)
    joining = queue.take(together, frozenset(models))
    assert joining in ([], expected)
    assert bool(joining) == (expected != [] and expected[0].models == frozenset(models))


BACKLOG = st.lists(st.sampled_from(["", "x", "xy"]), min_size=25, max_size=25)


@given(st.tuples(BACKLOG, BACKLOG, BACKLOG), st.lists(st.integers(1, 8), min_size=1, max_size=40))
def test_of_clients_that_wait_none_gets_more_than_one_batch_ahead(backlogs, batches):
    queue, served = FairQueue(), Counter(dict.fromkeys("abc", 0))
    for client, backlog in zip("abc", backlogs, strict=True):
        for rank, models in enumerate(backlog):
            queue.add(waiting(f"{client}{rank}", client, rank=rank, models=models))
    for together in batches:
        for run in queue.take(together):
            queue.charge(run.client, 1.0)
            served[run.client] += 1
        still = [served[client] for client in "abc" if queue.by_client(client)]
        assert max(served.values()) - min(still, default=25) <= max(batches)


@given(st.lists(st.tuples(st.integers(1, 8), st.floats(0, 100)), max_size=20))
def test_a_newcomer_is_served_within_one_round_whatever_happened_before(history):
    queue = added([waiting(f"{client}{rank}", client, rank=rank) for client in "ab" for rank in range(200)])
    for together, seconds in history:
        for run in queue.take(together):
            queue.charge(run.client, seconds)
    queue.add(waiting("new", "c"))
    assert "new" in [queue.take()[0].id for _ in range(3)]


@given(st.integers(0, 8), st.integers(1, 8))
def test_nobody_starves_a_client_by_submitting_again_and_again(ahead, together):
    queue = added([waiting("mine", "b"), *[waiting(f"a{rank}", rank=rank) for rank in range(20)]])
    queue.charge("b", float(ahead))
    for rank in range(20, 20 + ahead + 2):
        queue.add(waiting(f"a{rank}", rank=rank))
        for run in queue.take(together):
            queue.charge(run.client, 1.0)
    assert "mine" not in queue


class Operations(RuleBasedStateMachine):
    """The queue holds what a dictionary would hold, whatever is done to it."""

    def __init__(self):
        super().__init__()
        self.queue = FairQueue()
        self.model: dict[str, Waiting] = {}
        self.arrivals = 0

    @rule(client=CLIENTS, priority=st.integers(-1, 1), models=st.sampled_from(["", "x", "xy"]))
    def add(self, client, priority, models):
        self.arrivals += 1
        run = waiting(str(self.arrivals), client, priority, float(self.arrivals), models)
        self.queue.add(run)
        self.model[run.id] = run

    @precondition(lambda self: self.model)
    @rule(data=st.data())
    def remove(self, data):
        name = data.draw(st.sampled_from(sorted(self.model)))
        assert self.queue.remove(name)
        del self.model[name]

    @precondition(lambda self: self.model)
    @rule(data=st.data(), priority=st.none() | st.integers(-1, 1), where=st.sampled_from(["", "first", "last"]))
    def move(self, data, priority, where):
        name = data.draw(st.sampled_from(sorted(self.model)))
        ranks = self.queue.move(name, priority=priority, first=where == "first", last=where == "last")
        self._moved(name, priority, ranks)
        own = [(rank, int(name)) for rank, name in self._ranks(name)]
        if where:
            assert (min(own) if where == "first" else max(own))[1] == int(name)

    @precondition(lambda self: len(self.model) > 1)
    @rule(data=st.data())
    def move_before(self, data):
        before = data.draw(st.sampled_from(sorted(self.model)))
        other = self.model[before]
        mine = sorted(name for name, run in self.model.items() if run.client == other.client and name != before)
        if mine:
            name = data.draw(st.sampled_from(mine))
            self._moved(name, other.priority, self.queue.move(name, priority=other.priority, before=before))
            order = [name for _, name in sorted(self._ranks(name))]
            assert order.index(name) + 1 == order.index(before)

    @rule(together=st.integers(1, 4), seconds=st.floats(0, 100))
    def take(self, together, seconds):
        for run in self.queue.take(together):
            assert self.model.pop(run.id) == run
            assert run.priority >= max((other.priority for other in self.model.values()), default=run.priority)
            self.queue.charge(run.client, seconds)

    def _moved(self, name, priority, ranks):
        if priority is not None:
            self.model[name] = replace(self.model[name], priority=priority)
        self.model |= {each: replace(self.model[each], rank=rank) for each, rank in ranks.items()}

    def _ranks(self, name):
        """Ranks and ids of the runs of the same client and priority."""
        run = self.model[name]
        place = (run.client, run.priority)
        return [(each.rank, each.id) for each in self.model.values() if (each.client, each.priority) == place]

    @invariant()
    def nothing_is_lost_or_doubled(self):
        assert sorted(self.queue.order()) == sorted(self.model)
        assert len(self.queue) == len(self.model)
        clients = Counter(run.client for run in self.model.values())
        assert all(self.queue.by_client(client) == clients[client] for client in "abc")
        assert all(name in self.queue for name in self.model)


TestOperations = Operations.TestCase
TestOperations.settings = settings(deadline=None)
