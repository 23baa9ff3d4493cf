from contextlib import closing

import pytest
import torch

from nodes.diffusion.drive import drive, lockstep


class Cancelled(BaseException):
    pass


def count(name, questions, log=None):
    """Ask `questions` times and return the sum of the answers; note when closed early."""
    total = torch.zeros(())
    try:
        for number in range(questions):
            total = total + (yield f"{name}{number}")
    except GeneratorExit:
        log.append(f"{name} closed")
        raise
    return total


def ones(questions):
    return [torch.ones(()) for _ in questions]


def test_runs_of_different_lengths_are_asked_in_lockstep():
    rounds = []

    def answer(questions):
        rounds.append(questions)
        return ones(questions)

    results = drive([count("a", 3), count("b", 1), count("c", 2)], answer)
    assert rounds == [["a0", "b0", "c0"], ["a1", "c1"], ["a2"]]
    assert [result.item() for result in results] == [3, 1, 2]


def test_each_run_gets_its_own_answer():
    def answer(questions):
        return [torch.tensor(10.0 if question.startswith("a") else 1.0) for question in questions]

    results = drive([count("a", 2), count("b", 3)], answer)
    assert [result.item() for result in results] == [20, 3]


def test_a_run_that_asks_nothing_is_finished_before_the_first_round():
    results = drive([count("a", 0), count("b", 1)], ones)
    assert [result.item() for result in results] == [0, 1]


def test_no_runs_have_no_results():
    assert drive([], ones) == []


def test_a_run_in_a_generator_that_watches_it_may_end_alone():
    closed = []

    def ended_at_the_second_answer(run):
        with closing(run):
            question = next(run)
            for number in range(2):
                answer = yield question
                if number == 1:
                    return Cancelled()
                question = run.send(answer)

    cancelled, finished = drive([ended_at_the_second_answer(count("a", 5, closed)), count("b", 3, closed)], ones)
    assert isinstance(cancelled, Cancelled)
    assert finished.item() == 3
    assert closed == ["a closed"]


def test_what_a_run_raises_closes_the_others_even_if_it_is_no_exception():
    closed = []

    def cancelled():
        yield "x"
        raise Cancelled

    with pytest.raises(Cancelled):
        drive([count("a", 5, closed), cancelled(), count("b", 5, closed)], ones)
    assert sorted(closed) == ["a closed", "b closed"]


def test_a_failing_answer_closes_all_runs():
    closed = []

    def fail(_):
        raise MemoryError

    runs = [count("a", 5, closed), count("b", 5, closed)]
    with pytest.raises(MemoryError):
        drive(runs, fail)
    assert sorted(closed) == ["a closed", "b closed"]


def test_too_few_answers_are_refused():
    with pytest.raises(ValueError, match="shorter"):
        drive([count("a", 1, []), count("b", 1, [])], lambda _: [torch.ones(())])


class TestNewcomers:
    def test_they_take_part_from_the_next_round_on_and_are_numbered_as_they_come(self):
        asked = []

        def answer(questions):
            asked.append(questions)
            return ones(questions)

        under_way = lockstep(["a3", "b1"], answer, lambda plan: count(plan[0], int(plan[1])))
        finished = [next(under_way), under_way.send(["c2", "d0"]), under_way.send([]), under_way.send(["e1"])]
        assert asked == [["a0", "b0"], ["a1", "c0"], ["a2", "c1"], ["e0"]]
        results = [{number: float(result) for number, result in each.items()} for each in finished]
        assert results == [{1: 1.0}, {3: 0.0}, {0: 3.0, 2: 2.0}, {4: 1.0}]
        with pytest.raises(StopIteration):
            under_way.send([])

    def test_where_nobody_asks_nobody_is_called_for_an_answer(self):
        assert next(lockstep(["a"], pytest.fail, lambda _: count("a", 0))) == {0: 0}

    def test_giving_up_closes_those_that_are_on_their_way(self):
        closed = []
        under_way = lockstep([("a", 3), ("b", 1)], ones, lambda plan: count(*plan, closed))
        next(under_way)
        under_way.send([("c", 3)])
        under_way.close()
        assert closed == ["a closed", "c closed"]
