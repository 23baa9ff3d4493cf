"""Who uses how much of the engine's time."""

import pytest
from serving import mask_graph

from engine.graph import Graph
from server.queue import Waiting
from server.submission import Prepared
from server.turn import Job, Turn

PREPARED = Prepared(Graph.parse(mask_graph()), None, ("mask",), "", "", frozenset(), (), {})


@pytest.fixture
def clock():
    return [0.0]


@pytest.fixture
def turn(clock):
    return Turn(frozenset("x"), lambda: clock[0])


def job(name):
    return Job(Waiting(name, name, 0, 0.0), None, prepared=PREPARED)


def test_time_is_shared_evenly_by_those_who_are_there(turn, clock):
    first, second, third = map(job, "abc")
    turn.join([first])
    clock[0] = 6.0
    turn.join([second, third])
    clock[0] = 12.0
    assert turn.leave(second) == 2.0
    clock[0] = 20.0
    assert (turn.leave(first), turn.leave(third)) == (6.0 + 2.0 + 4.0, 2.0 + 4.0)


def test_nobody_answers_for_the_time_in_which_nobody_was_there(turn, clock):
    clock[0] = 100.0
    (one,) = [job("a")]
    turn.join([one])
    clock[0] = 101.0
    assert turn.leave(one) == 1.0


def test_a_run_is_known_by_the_index_of_its_order_also_when_it_has_left(turn):
    jobs = [job(name) for name in "abc"]
    assert [order.token for order in turn.join(jobs[:2])] == [each.token for each in jobs[:2]]
    turn.leave(jobs[0])
    turn.join(jobs[2:])
    assert [turn[index] for index in range(3)] == jobs
    assert turn.left() == jobs[1:]
    assert len(turn) == 2
