import pytest
import torch

from nodes.diffusion.drive import drive


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


def test_progress_sees_every_round_with_its_questions_and_answers():
    seen = []
    drive([count("a", 2), count("b", 1)], ones, progress=seen.append)
    assert [each.number for each in seen] == [0, 1]
    assert [dict(each.questions) for each in seen] == [{0: "a0", 1: "b0"}, {0: "a1"}]
    assert [set(each.denoised) for each in seen] == [{0, 1}, {0}]


def test_cancelling_closes_all_runs_and_passes_through():
    closed = []

    def cancel(_):
        raise Cancelled

    runs = [count("a", 5, closed), count("b", 5, closed)]
    with pytest.raises(Cancelled):
        drive(runs, ones, progress=cancel)
    assert sorted(closed) == ["a closed", "b closed"]


def test_a_failing_answer_closes_all_runs():
    closed = []

    def fail(_):
        raise MemoryError

    runs = [count("a", 5, closed), count("b", 5, closed)]
    with pytest.raises(MemoryError):
        drive(runs, fail)
    assert sorted(closed) == ["a closed", "b closed"]


def test_a_failing_run_closes_the_others():
    closed = []

    def broken():
        yield "x"
        raise ArithmeticError

    runs = [count("a", 5, closed), broken()]
    with pytest.raises(ArithmeticError):
        drive(runs, ones)
    assert closed == ["a closed"]


def test_too_few_answers_are_refused():
    with pytest.raises(ValueError, match="shorter"):
        drive([count("a", 1, []), count("b", 1, [])], lambda _: [torch.ones(())])
