"""The collector is held back while somebody asks for it, and is afterwards as it was."""

import gc
import threading

import pytest

from engine.garbage import uncollected


@pytest.fixture(autouse=True)
def _collector():
    yield
    gc.enable()


def test_nothing_is_collected_meanwhile_and_everything_after():
    with uncollected():
        assert not gc.isenabled()
    assert gc.isenabled()


def test_the_last_one_out_lets_it_go_on():
    inside, leave = threading.Event(), threading.Event()

    def held():
        with uncollected():
            inside.set()
            leave.wait(10)

    thread = threading.Thread(target=held)
    with uncollected():
        thread.start()
        assert inside.wait(10)
    assert not gc.isenabled()
    leave.set()
    thread.join()
    assert gc.isenabled()


def test_an_error_lets_it_go_on():
    with pytest.raises(ValueError, match="no"), uncollected():
        raise ValueError("no")
    assert gc.isenabled()


def test_what_was_off_stays_off():
    gc.disable()
    with uncollected():
        pass
    assert not gc.isenabled()
