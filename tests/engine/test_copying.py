"""Values that leave an accelerator are copied while it computes: whoever reads one waits until it is all there."""

import gc
import threading
from dataclasses import dataclass

import pytest
import torch

from engine import device
from engine.budget import Ledger
from engine.device import Device, TensorSocket
from engine.disk import encode_value
from engine.store import Store

SIZE = 4 * 8
NAMES = "abc"


@dataclass(frozen=True, eq=False)
class Numbers(TensorSocket):
    """Tensors, one of them in a tuple, and something beside."""

    data: torch.Tensor
    more: tuple[torch.Tensor, ...] = ()
    name: str = ""


def numbers(name):
    data = torch.arange(4.0) + ord(name)
    return Numbers(data, (data * 2,), name)


class Late:
    """Copies that nobody has made yet: a device that takes its time."""

    def __init__(self, made):
        self.made = made
        self.waits = 0

    def synchronize(self):
        self.waits += 1
        for copy, source in self.made:
            copy.copy_(source)


@pytest.fixture
def sent(monkeypatch):
    """Tensors lie on an accelerator until they are sent to the host; what is on its way, in order."""
    begun, arrived = [], set()

    def send(tensors):
        copies = {name: torch.zeros_like(tensor) for name, tensor in tensors.items()}
        arrived.update(id(copy) for copy in copies.values())
        begun.append(Late([(copies[name], tensor) for name, tensor in tensors.items()]))
        begun[-1].kept = list(copies.values())
        return copies, begun[-1]

    monkeypatch.setattr(device, "_is_away", lambda tensor: id(tensor) not in arrived)
    monkeypatch.setattr(device, "_send", send)
    return begun


def same(one, other):
    return all(map(torch.equal, one.tensors().values(), other.tensors().values())) and one.name == other.name


def unread(value):
    """Whether a value is not there yet."""
    return not any(tensor.any() for tensor in value.tensors().values())


def test_what_is_demoted_comes_later(sent):
    demoted = numbers("a").demote()
    assert (unread(demoted), sent[0].waits) == (True, 0)


@pytest.mark.parametrize("place", ["cpu", "meta"])
def test_who_moves_it_waits_once(sent, place):
    demoted = numbers("a").demote()
    moved = demoted.move(place).move(place)
    assert (same(demoted, numbers("a")), sent[0].waits, moved.place()) == (True, 1, place)


def test_a_value_that_is_moved_to_the_host_is_all_there(sent):
    assert same(numbers("a").move("cpu"), numbers("a"))
    assert [each.waits for each in sent] == [1]


def test_packing_and_writing_wait(sent):
    expected = encode_value(numbers("a"))
    assert encode_value(numbers("a").demote()) == expected
    assert numbers("a").demote().identity() == numbers("a").identity()


def test_two_threads_both_wait(sent):
    demoted, going, seen = numbers("a").demote(), threading.Event(), []
    finish = sent[0].synchronize

    def slow():
        going.wait(10)
        finish()

    sent[0].synchronize = slow
    threads = [threading.Thread(target=lambda: seen.append(same(demoted.move("cpu"), numbers("a")))) for _ in range(2)]
    for thread in threads:
        thread.start()
    going.set()
    for thread in threads:
        thread.join()
    assert seen == [True, True]


def test_a_copy_that_failed_is_never_taken_for_the_value(sent):
    demoted = numbers("a").demote()

    def failed():
        raise RuntimeError("the device is lost")

    sent[0].synchronize = failed
    for _ in range(2):
        with pytest.raises(RuntimeError, match="the device is lost"):
            demoted.move("cpu")


def test_what_is_on_the_host_stays_as_it_is():
    value = numbers("a")
    assert value.demote() is value
    assert value.move("cpu") is value


class TestStore:
    def test_it_demotes_without_waiting_and_hands_out_what_is_there(self, sent):
        store = Store(Ledger("cpu", SIZE), Ledger("cpu", 100 * SIZE))
        for name in NAMES:
            store.put(name.encode(), numbers(name), 1.0)
        assert [each.waits for each in sent] == [0, 0]
        assert all(map(unread, store._host.values.values()))
        for name in NAMES * 3:
            assert same(store.get(name.encode()), numbers(name))

    def test_what_goes_before_it_is_there_leaves_nothing_behind(self, sent):
        gc.collect()
        before = len(device._COPYING)
        store = Store(Ledger("cpu", 0), Ledger("cpu", 0))
        store.put(b"a", numbers("a"), 1.0)
        gc.collect()
        assert (len(device._COPYING), sent[0].waits, store.get(b"a")) == (before, 0, None)


@pytest.mark.gpu
class TestCuda:
    @pytest.fixture
    def place(self):
        return Device("cuda").name

    def busy(self, place):
        """Half a second of work, about, and a value that is made after it."""
        x = torch.randn(8192, 8192, device=place)
        for _ in range(20):
            x = x @ x / 8192
        data = torch.arange(1 << 24, device=place) + x[0, 0].isnan().long()
        return Numbers(data, (data.view(4096, 4096).t(),), "a")

    def test_a_value_is_right_however_busy_the_device_is(self, place):
        for _ in range(5):
            value = self.busy(place)
            demoted = value.demote()
            del value
            spoiled = [torch.full((1 << 24,), -1, device=place) for _ in range(4)]  # may take its memory too early
            back = demoted.move(place)
            assert torch.equal(back.data.cpu(), torch.arange(1 << 24))
            assert torch.equal(demoted.more[0], torch.arange(1 << 24).view(4096, 4096).t())
            assert demoted.data.is_pinned()
            assert all(bool((each == -1).all()) for each in spoiled)

    def test_demoting_does_not_wait_for_the_device(self, place):
        self.busy(place).demote().move("cpu")  # the page-locked memory is there from now on
        value = self.busy(place)
        demoted = value.demote()
        assert not device._COPYING[demoted].query()
        assert torch.equal(demoted.move("cpu").data, torch.arange(1 << 24))

    def test_a_store_that_holds_nothing_gives_back_what_it_was_given(self, place):
        store = Store(Ledger(place, 0), Ledger("cpu", 1 << 30))
        for number in range(50):
            store.put(bytes([number]), Numbers(torch.full((1 << 18,), number, device=place), name="x"), 1.0)
        for number in range(50):
            assert bool((store.get(bytes([number])).data == number).all())
