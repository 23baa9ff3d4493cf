"""Mapped files: there at once, and the process's own from when that was waited for."""

import mmap
import os
import threading
import time
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from nodes.diffusion import mapping, reading
from nodes.diffusion.mapping import Mapping, later, postponed
from nodes.diffusion.reading import Piece, read
from nodes.diffusion.tensors import LoadError, Span, spans

pytestmark = pytest.mark.skipif(not mapping.possible(), reason="this system does not copy pages when asked")

COUNT = 3 * mmap.PAGESIZE


@pytest.fixture
def path(tmp_path):
    """A file of some pages, of numbers that count."""
    path = tmp_path / "numbers"
    path.write_bytes(torch.arange(COUNT, dtype=torch.int16).numpy().tobytes())
    return path


def is_open(path):
    """Whether the process holds a file open."""
    held = set()
    for entry in Path("/proc/self/fd").iterdir():
        with suppress(OSError):
            held.add(entry.readlink())
    return path in held


def overwrite(path):
    with path.open("r+b") as stream:
        stream.write(bytes(path.stat().st_size))


def test_a_tensor_is_what_the_file_holds(path):
    made = Mapping(path).tensor(20, (2, 3), torch.int16)
    assert torch.equal(made, torch.arange(10, 16, dtype=torch.int16).view(2, 3))


def test_without_copies_it_changes_with_the_file(path):
    made = Mapping(path).tensor(0, (COUNT,), torch.int16)
    overwrite(path)
    assert not made.any()


def test_with_copies_it_does_not(path):
    file = Mapping(path)
    made = file.tensor(2, (COUNT - 1,), torch.int16)
    file.copied()()
    overwrite(path)
    path.write_bytes(b"")
    assert torch.equal(made, torch.arange(1, COUNT, dtype=torch.int16))


@pytest.mark.parametrize("chunk", [mmap.PAGESIZE, 2 * mmap.PAGESIZE, mapping.CHUNK])
def test_only_pages_that_are_used_are_copied(path, monkeypatch, chunk):
    monkeypatch.setattr(mapping, "CHUNK", chunk)
    file = Mapping(path)
    first, last = file.tensor(2, (4,), torch.int16), file.tensor(5 * mmap.PAGESIZE, (4,), torch.int16)
    file.copied()()
    middle = file.tensor(3 * mmap.PAGESIZE, (4,), torch.int16)
    overwrite(path)
    assert first.tolist() == [1, 2, 3, 4]
    assert last.tolist() == [2.5 * mmap.PAGESIZE + place for place in range(4)]
    assert not middle.any()


def test_a_tensor_of_nothing_takes_no_page(path):
    file = Mapping(path)
    assert file.tensor(0, (0, 3), torch.int16).shape == (0, 3)
    file.copied()()


def test_a_tensor_beyond_the_end_is_refused(path):
    with pytest.raises(LoadError, match="expected 2 bytes more, found the end of the file, which got shorter"):
        Mapping(path).tensor(2, (COUNT,), torch.int16)


def test_a_file_that_got_shorter_before_its_copies_is_an_error(path):
    file = Mapping(path)
    made = file.tensor(0, (COUNT,), torch.int16)
    path.write_bytes(b"")
    with pytest.raises(
        LoadError, match=f"expected {2 * COUNT} bytes more, found the end of the file, which got shorter"
    ):
        file.copied()()
    del made


def test_what_else_goes_wrong_is_named(path, monkeypatch):
    def broken(*_):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "preadv", broken)
    file = Mapping(path)
    file.tensor(0, (COUNT,), torch.int16)
    with pytest.raises(LoadError, match=r"numbers: expected bytes that can be read, found .*Input/output error"):
        file.copied()()


def test_where_memory_cannot_be_moved_nothing_is_lost(path, monkeypatch):
    def broken(*_):
        raise OSError(12, "Cannot allocate memory")

    file = Mapping(path)
    made = file.tensor(0, (COUNT,), torch.int16)
    monkeypatch.setattr(mapping, "_move", broken)
    with pytest.raises(LoadError, match="Cannot allocate memory"):
        file.copied()()
    assert made.tolist() == list(range(COUNT))


def test_a_system_that_cannot_move_memory_is_noticed(monkeypatch):
    def broken(*_):
        raise OSError(22, "Invalid argument")

    monkeypatch.setattr(mapping, "_move", broken)
    assert mapping.possible.__wrapped__() is False


def test_no_file_stays_open(path):
    file = Mapping(path)
    made = file.tensor(0, (COUNT,), torch.int16)
    assert is_open(path)
    file.copied()()
    del file
    until = time.monotonic() + 10
    while is_open(path) and time.monotonic() < until:
        time.sleep(0.01)  # threads let go of it a moment after they are done
    assert not is_open(path)
    assert made[-1] == COUNT - 1


def test_whoever_reads_meanwhile_finds_the_same_bytes(path, monkeypatch):
    monkeypatch.setattr(mapping, "CHUNK", mmap.PAGESIZE)
    wanted = torch.arange(COUNT, dtype=torch.int16)
    over, wrong = threading.Event(), []

    def look():
        while not over.is_set():
            if not torch.equal(made, wanted):
                wrong.append(made.clone())

    for _ in range(10):
        file = Mapping(path)
        made = file.tensor(0, (COUNT,), torch.int16)
        over.clear()
        reader = threading.Thread(target=look)
        reader.start()
        file.copied()()
        over.set()
        reader.join()
    assert wrong == []


def test_the_copies_go_on_where_nobody_holds_the_tensors(path):
    file = Mapping(path)
    file.tensor(0, (COUNT,), torch.int16)
    wait = file.copied()
    del file
    wait()


class TestPostponing:
    @pytest.fixture
    def done(self):
        return []

    @pytest.fixture
    def begin(self, done):
        def copy():
            done.append("begun")
            return lambda: done.append("waited")

        return copy

    def test_where_nobody_postpones_it_copies_are_made_now(self, begin, done):
        later(begin)
        assert done == ["begun", "waited"]

    def test_they_begin_at_the_end_of_the_block_and_whoever_opened_it_waits(self, begin, done):
        with postponed() as waiting:
            later(begin)
            assert (done, waiting) == ([], [])
        assert done == ["begun"]
        (wait,) = waiting
        wait()
        assert done == ["begun", "waited"]

    def test_nothing_is_copied_where_something_goes_wrong(self, begin, done):
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


class TestWeights:
    """What is read as it lies is mapped, all else is not."""

    @pytest.fixture
    def found(self, tmp_path):
        tensors = {"weight": torch.randn(40, 3, 3, 3).half(), "bias": torch.randn(40).half()}
        save_file(tensors, tmp_path / "made.safetensors")
        return {name: Piece(span, span.shape) for name, span in spans(tmp_path / "made.safetensors", "").items()}

    @pytest.fixture
    def mapped(self, monkeypatch):
        """Names of the tensors of which only the file's bytes are taken."""
        taken, made = [], reading._mapped
        monkeypatch.setattr(reading, "_mapped", lambda pieces: taken.extend(pieces) or made(pieces))
        return taken

    def test_the_same_format_is_mapped(self, found, mapped, monkeypatch):
        monkeypatch.setattr(reading, "ALIGNED", 2)
        read(found, torch.float16, "cpu")
        assert sorted(mapped) == ["bias", "weight"]

    def test_only_where_it_lies_as_torch_puts_tensors(self, found, mapped):
        read(found, torch.float16, "cpu")
        assert sorted(mapped) == sorted(name for name, piece in found.items() if piece.start % 64 == 0)

    def test_another_format_is_not(self, found, mapped):
        read(found, torch.float32, "cpu")
        assert mapped == []

    def test_nor_is_another_layout_or_place(self, found, mapped):
        span = found["weight"].span
        turned = Piece(found["bias"].span, (40, 1), turned=True)
        read({"turned": turned}, torch.float16, "cpu")
        read({"elsewhere": Piece(span, span.shape)}, torch.float16, "meta")
        assert mapped == []

    def test_where_the_system_cannot_copy_pages_bytes_are_read(self, found, mapped, monkeypatch):
        before = read(found, torch.float16, "cpu")
        mapped.clear()
        monkeypatch.setattr(mapping, "possible", lambda: False)
        made = read(found, torch.float16, "cpu")
        assert mapped == []
        assert all(torch.equal(made[name], before[name]) for name in found)

    def test_an_uneven_place_is_read(self, tmp_path, mapped):
        path = tmp_path / "uneven"
        path.write_bytes(b"!" + torch.arange(4, dtype=torch.float16).numpy().tobytes())
        span = Span(path, "F16", (4,), 1)
        assert read({"weight": Piece(span, (4,))}, torch.float16, "cpu")["weight"].tolist() == [0, 1, 2, 3]
        assert mapped == []
