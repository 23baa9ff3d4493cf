"""Weights that files lend: there at once, never computed with, and the module's own from when that was waited for."""

import threading
import time
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from nodes.diffusion import lending, reading
from nodes.diffusion.compiling import compiled
from nodes.diffusion.lending import Loan, later, postponed
from nodes.diffusion.lora import sharing
from nodes.diffusion.reading import Piece
from nodes.diffusion.tensors import LoadError, Span, spans


class Net(nn.Module):
    """Parts with weights of their own, one with a parameter beside its parts, and one with a buffer."""

    dtype = torch.float32

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(3, 4)
        self.norm = nn.BatchNorm1d(4)
        self.scale = nn.Parameter(torch.randn(4))
        self.conv = nn.Conv1d(4, 2, 1)

    def forward(self, x):
        return self.conv((self.norm(self.first(x)) * self.scale)[..., None])


@pytest.fixture
def net():
    torch.manual_seed(0)
    return Net().eval().requires_grad_(requires_grad=False)


@pytest.fixture
def path(tmp_path, net):
    """A file of the net's weights."""
    save_file({name: weight for name, weight in net.state_dict().items() if weight.ndim}, tmp_path / "net.safetensors")
    return tmp_path / "net.safetensors"


@pytest.fixture
def pieces(path):
    return {name: Piece(span, span.shape) for name, span in spans(path, "").items()}


@pytest.fixture
def gate(monkeypatch):
    """Opens when threads may read."""
    gate, read = threading.Event(), reading._Reader.read

    def wait(self, chunk):
        gate.wait(20)
        read(self, chunk)

    monkeypatch.setattr(reading._Reader, "read", wait)
    return gate


def held(net, pieces):
    """A net whose weights are lent."""
    loan = Loan(pieces, torch.float32)
    other = Net().eval().requires_grad_(requires_grad=False)
    other.load_state_dict(loan.lent, strict=False, assign=True)
    loan.to(other)
    return other, loan


def places(net):
    return {name: weight.data_ptr() for name, weight in net.state_dict().items() if weight.ndim}


def overwrite(path):
    with path.open("r+b") as stream:
        stream.write(bytes(path.stat().st_size))


def is_open(path):
    """Whether the process holds a file open."""
    found = set()
    for entry in Path("/proc/self/fd").iterdir():
        with suppress(OSError):
            found.add(entry.readlink())
    return path in found


def test_what_is_lent_is_what_the_file_holds(net, pieces):
    other, _ = held(net, pieces)
    for name, weight in net.state_dict().items():
        assert torch.equal(other.state_dict()[name], weight)


def test_it_lies_where_the_file_does_until_it_was_waited_for(net, pieces, path):
    other, loan = held(net, pieces)
    before = places(other)
    loan.begin()()
    after = places(other)
    assert not set(before.values()) & set(after.values())
    assert all(place % 64 == 0 for place in after.values())
    assert isinstance(other.scale, nn.Parameter)
    assert not other.scale.requires_grad
    overwrite(path)
    path.write_bytes(b"")
    for name, weight in net.state_dict().items():
        assert torch.equal(other.state_dict()[name], weight)


def test_without_waiting_it_changes_with_the_file(net, pieces, path):
    other, _ = held(net, pieces)
    overwrite(path)
    assert not any(weight.any() for name, weight in other.state_dict().items() if name in pieces)


def test_what_computes_waits_for_its_own(net, pieces, path, gate):
    """The file becomes zeros beside it, and what is read before that counts: nothing was computed from the file."""
    other, loan = held(net, pieces)
    x, made = torch.randn(5, 3), []
    computing = threading.Thread(target=lambda: made.append(other(x)))
    wait = loan.begin()
    computing.start()
    time.sleep(0.05)
    assert made == []
    gate.set()
    computing.join()
    overwrite(path)
    assert torch.equal(made[0], net(x))
    wait()
    assert torch.equal(other(x), made[0])


def test_each_part_waits_for_no_more_than_its_own(net, pieces, monkeypatch):
    missing, read = threading.Event(), reading._Reader.read

    def late(self, chunk):
        if chunk.name.startswith("conv"):
            missing.wait(20)
        read(self, chunk)

    monkeypatch.setattr(reading._Reader, "read", late)
    monkeypatch.setattr("nodes.diffusion.shares.THREADS", 4)
    other, loan = held(net, pieces)
    wait = loan.begin()
    x = torch.randn(5, 3)
    assert torch.equal(other.first(x), net.first(x))
    missing.set()
    wait()


def test_a_part_asks_once(net, pieces, monkeypatch):
    asked, own = [], Loan.own
    monkeypatch.setattr(Loan, "own", lambda self, name: asked.append(name) or own(self, name))
    other, loan = held(net, pieces)
    wait = loan.begin()
    for _ in range(2):
        other(torch.randn(5, 3))
    wait()
    wait()
    assert sorted(asked) == sorted(pieces)
    assert not any(part._forward_pre_hooks for part in other.modules())


def test_computing_with_what_is_lent_would_be_noticed(net, pieces, path, gate, monkeypatch):
    """The twin of the test above: a part that does not wait computes from a file that changes."""
    monkeypatch.setattr(lending._Tenant, "take", lambda _: None)
    other, _ = held(net, pieces)
    overwrite(path)
    assert not torch.equal(other(torch.ones(5, 3)), net(torch.ones(5, 3)))


def test_weights_at_odd_places_of_a_file_give_the_very_bits(net, tmp_path):
    """Kernels round differently for weights that lie elsewhere than where torch puts tensors."""
    weight = torch.randn(64, 512)
    linear = nn.Linear(512, 64, bias=False)
    linear.weight = nn.Parameter(weight, requires_grad=False)
    x, wanted = torch.randn(3, 512), None
    with torch.no_grad():
        wanted = linear(x)
    for start in (4, 8, 36, 60):
        path = tmp_path / f"{start}"
        path.write_bytes(bytes(start) + weight.numpy().tobytes())
        loan = Loan({"weight": Piece(Span(path, "F32", (64, 512), start), (64, 512))}, torch.float32)
        other = nn.Linear(512, 64, bias=False)
        other.weight = nn.Parameter(loan.lent["weight"], requires_grad=False)
        loan.to(other)
        wait = loan.begin()
        assert torch.equal(other(x), wanted)
        wait()


@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch.*")
@pytest.mark.parametrize("ask", [sharing, compiled], ids=["copied", "compiled"])
def test_a_module_is_complete_before_it_is(net, pieces, gate, monkeypatch, ask):
    other, loan = held(net, pieces)
    asked, own = [], Loan.own

    def open_gate(self, name):
        gate.set()
        asked.append(name)
        return own(self, name)

    monkeypatch.setattr(Loan, "own", open_gate)
    wait = loan.begin()
    ask(other)
    assert sorted(asked) == sorted(pieces)
    wait()


def test_a_copy_has_weights_of_its_own(net, pieces, path):
    other, loan = held(net, pieces)
    wait = loan.begin()
    copy = sharing(other)
    wait()
    overwrite(path)
    x = torch.randn(5, 3)
    assert torch.equal(copy(x), net(x))


class TestTrouble:
    def test_a_file_that_ends_too_early_is_refused(self, pieces, path):
        path.write_bytes(path.read_bytes()[:-8])
        with pytest.raises(LoadError, match="expected 8 bytes more, found the end of the file, which got shorter"):
            Loan(pieces, torch.float32)

    def test_one_that_gets_shorter_meanwhile_is_an_error_for_whoever_waits_or_computes(self, net, pieces, path):
        other, loan = held(net, pieces)
        path.write_bytes(path.read_bytes()[:100])
        wait = loan.begin()
        with pytest.raises(LoadError, match="which got shorter"):
            other(torch.randn(5, 3))
        with pytest.raises(LoadError, match="which got shorter"):
            wait()

    def test_what_else_goes_wrong_is_named(self, net, pieces, monkeypatch):
        def broken(*_):
            raise OSError(5, "Input/output error")

        monkeypatch.setattr(reading._Reader, "_fill", broken)
        _, loan = held(net, pieces)
        with pytest.raises(LoadError, match=r"net.safetensors: expected bytes that can be read, found .*Input/output"):
            loan.begin()()

    @pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="this system does not say what is open")
    def test_no_file_stays_open(self, net, pieces, path):
        _, loan = held(net, pieces)
        assert is_open(path)
        loan.begin()()
        until = time.monotonic() + 10
        while is_open(path) and time.monotonic() < until:
            time.sleep(0.01)  # threads let go of it a moment after they are done
        assert not is_open(path)

    def test_reading_goes_on_where_nobody_holds_the_module(self, net, pieces):
        other, loan = held(net, pieces)
        wait = loan.begin()
        del other, loan
        wait()


class TestPostponing:
    @pytest.fixture
    def done(self):
        return []

    @pytest.fixture
    def begin(self, done):
        def read():
            done.append("begun")
            return lambda: done.append("waited")

        return read

    def test_where_nobody_postpones_it_is_done_now(self, begin, done):
        later(begin)
        assert done == ["begun", "waited"]

    def test_it_begins_at_the_end_of_the_block_and_whoever_opened_it_waits(self, begin, done):
        with postponed() as waiting:
            later(begin)
            assert (done, waiting) == ([], [])
        assert done == ["begun"]
        (wait,) = waiting
        wait()
        assert done == ["begun", "waited"]

    def test_nothing_is_read_where_something_goes_wrong(self, begin, done):
        def fail():
            with postponed():
                later(begin)
                raise ValueError("wrong")

        with pytest.raises(ValueError, match="wrong"):
            fail()
        later(begin)
        assert done == ["begun", "waited"]

    def test_a_block_in_a_block_sees_to_its_own(self, begin, done):
        with postponed() as outer:
            with postponed() as inner:
                later(begin)
            assert (len(outer), len(inner)) == (0, 1)
        assert outer == []


class TestWhatIsLent:
    @pytest.fixture
    def weight(self, tmp_path):
        save_file({"weight": torch.randn(40, 3, 3, 3).half()}, tmp_path / "made.safetensors")
        return spans(tmp_path / "made.safetensors", "")["weight"]

    def test_the_same_format_is_at_hand(self, weight):
        assert Piece(weight, weight.shape).lies_as(torch.float16, "cpu")

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    def test_another_is_not(self, weight, dtype):
        assert not Piece(weight, weight.shape).lies_as(dtype, "cpu")

    def test_nor_is_another_device_or_what_lies_on_its_side(self, weight):
        assert not Piece(weight, weight.shape).lies_as(torch.float16, "meta")
        assert not Piece(weight, weight.shape, turned=True).lies_as(torch.float16, "cpu")

    def test_nor_is_what_lies_between_two_numbers_or_nothing_at_all(self, tmp_path):
        assert not Piece(Span(tmp_path, "F16", (4,), 1), (4,)).lies_as(torch.float16, "cpu")
        assert not Piece(Span(tmp_path, "F16", (0, 4), 2), (0, 4)).lies_as(torch.float16, "cpu")

    def test_channels_lie_innermost_only_in_what_is_its_own(self, tmp_path):
        wanted = torch.randn(6, 4, 3, 3)
        save_file({"weight": wanted}, tmp_path / "conv.safetensors")
        span = spans(tmp_path / "conv.safetensors", "")["weight"]
        loan = Loan({"weight": Piece(span, span.shape, interleaved=True)}, torch.float32)
        assert loan.lent["weight"].is_contiguous()
        conv = nn.Conv2d(4, 6, 3)
        conv.weight = nn.Parameter(loan.lent["weight"], requires_grad=False)
        loan.to(conv)
        loan.begin()()
        assert conv.weight.is_contiguous(memory_format=torch.channels_last)
        assert torch.equal(conv.weight, wanted)
