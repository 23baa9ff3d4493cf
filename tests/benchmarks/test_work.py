"""Policies that are simulated: who computes what again when a change is taken back, on traces made by hand."""

import pytest

from benchmarks import work
from benchmarks.trace import Call, Run, Trace, Value

LARGE = 4096
SETTING, FIRST, SECOND, LAST_OF_FIRST, LAST_OF_SECOND = range(5)


def call(seconds, inputs, output, size=LARGE):
    return Call("node", seconds, inputs, (Value(output, size, exact=False),))


CALLS = [
    call(1.0, (), 0),
    call(10.0, (0,), 1),
    call(20.0, (0,), 2),
    call(100.0, (1,), 3),
    call(200.0, (2,), 4),
]
A = Run("a", (SETTING, FIRST, LAST_OF_FIRST), (3,))
B = Run("b", (SETTING, SECOND, LAST_OF_SECOND), (4,))


def seconds(policy, runs, calls=CALLS):
    recorded = Trace({}, calls, runs)
    for run in runs:
        policy.run(recorded, work.Graph.of(recorded, run))
    return policy.seconds


def test_comfyui_forgets_what_the_last_graph_does_not_have():
    assert seconds(work.Comfy(), [A, A]) == 111
    assert seconds(work.Comfy(), [A, B]) == 111 + 220
    assert seconds(work.Comfy(), [A, B, A]) == 111 + 220 + 110


def test_comfyui_makes_nothing_that_only_leads_to_what_it_has():
    shorter = Run("short", (SETTING, FIRST), (1,))
    assert seconds(work.Comfy(), [A, shorter, A]) == 111 + 100


def test_invokeai_finds_what_any_graph_made():
    assert seconds(work.Invoke(), [A, B, A, B]) == 111 + 220


def test_invokeai_keeps_so_many_outputs(monkeypatch):
    monkeypatch.setattr(work, "NODE_CACHE_SIZE", 3)
    assert seconds(work.Invoke(), [A, A]) == 111
    assert seconds(work.Invoke(), [A, B, A]) == 111 + 220 + 110


def test_where_nothing_is_kept_everything_runs():
    assert seconds(work.Forgetful(), [A, B, A]) == 111 + 221 + 111


@pytest.mark.parametrize(("size", "again"), [(LARGE, 5), (8, 0)])
def test_after_an_equal_value_peers_go_on_unless_it_is_small(size, again):
    calls = [call(1.0, (), 0, size), Call("other", 1.0, (), (Value(0, size, exact=True),)), call(5.0, (0,), 1)]
    runs = [Run("a", (0, 2), (1,)), Run("b", (1, 2), (1,))]
    assert seconds(work.Comfy(), runs, calls) == 1 + 5 + (1 + again if again else 0)
    assert seconds(work.Invoke(), runs, calls) == 1 + 5 + 1 + again


@pytest.mark.parametrize("name", work.EVENINGS)
def test_a_recorded_evening_costs_us_every_call_once_at_most(name):
    recorded = work.trace.load(name)
    once = recorded.compulsory()
    assert 0.99 * once < work.replay(recorded, work.UNLIMITED, work.Gdsf).seconds < once + 1e-6
