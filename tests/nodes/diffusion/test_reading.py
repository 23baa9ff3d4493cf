"""Tensors out of files: every number format, parts of tensors, and memory that is nobody else's."""

import pytest
import torch
from safetensors.torch import save_file

from nodes.diffusion import reading
from nodes.diffusion.reading import Piece, read
from nodes.diffusion.tensors import LoadError, Span, spans

FORMATS = [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2]


@pytest.fixture
def tensors():
    made = torch.Generator().manual_seed(0)
    shapes = {"number": (), "none": (0, 3), "vector": (5,), "matrix": (6, 4), "convolution": (3, 2, 3, 3)}
    return {name: torch.randn(shape, generator=made) for name, shape in shapes.items()}


@pytest.fixture
def write(tmp_path):
    def written(tensors):
        save_file(tensors, tmp_path / "made.safetensors", metadata={"any": "thing"})
        return spans(tmp_path / "made.safetensors", "")

    return written


def whole(found):
    return {name: Piece(span, span.shape) for name, span in found.items()}


@pytest.mark.parametrize("stored", FORMATS)
@pytest.mark.parametrize("wanted", [torch.float32, torch.float16, torch.bfloat16])
def test_any_format_is_read_as_any(write, tensors, stored, wanted):
    rounded = {name: tensor.to(stored) for name, tensor in tensors.items()}
    made = read(whole(write(rounded)), wanted, "cpu")
    assert made.keys() == tensors.keys()
    for name, tensor in rounded.items():
        assert made[name].dtype == wanted
        assert torch.equal(made[name], tensor.to(wanted))


@pytest.mark.parametrize("wanted", [torch.float32, torch.float16])
def test_large_tensors_are_read_in_chunks(write, tensors, monkeypatch, wanted):
    monkeypatch.setattr(reading, "CHUNK", 20)
    made = read(whole(write(tensors)), wanted, "cpu")
    assert all(torch.equal(made[name], tensor.to(wanted)) for name, tensor in tensors.items())


def test_some_rows_may_be_read_alone(write, tensors):
    span = write(tensors)["matrix"]
    made = read({"lower": Piece(span, (2, 4), first=4), "upper": Piece(span, (2, 4))}, torch.float32, "cpu")
    assert torch.equal(made["lower"], tensors["matrix"][4:])
    assert torch.equal(made["upper"], tensors["matrix"][:2])


def test_a_matrix_may_lie_on_its_side(write, tensors):
    made = read({"turned": Piece(write(tensors)["matrix"], (4, 6), turned=True)}, torch.float32, "cpu")
    assert torch.equal(made["turned"], tensors["matrix"].t())
    assert made["turned"].is_contiguous()


@pytest.mark.parametrize("wanted", [torch.float32, torch.float16])
def test_what_was_read_does_not_change_with_the_file(write, tensors, wanted):
    found = write(tensors)
    made = read(whole(found), wanted, "cpu")
    path = found["matrix"].path
    with path.open("r+b") as stream:
        stream.write(bytes(path.stat().st_size))
    assert all(torch.equal(made[name], tensor.to(wanted)) for name, tensor in tensors.items())


@pytest.mark.parametrize("wanted", [torch.float32, torch.float16])
def test_a_file_that_got_shorter_is_refused(write, tensors, wanted):
    found = write(tensors)
    path = found["matrix"].path
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(LoadError, match=r"expected \d+ bytes more, found the end of the file, which got shorter"):
        read(whole(found), wanted, "cpu")


def test_a_format_that_is_no_number_of_ours_is_named(tmp_path):
    span = Span(tmp_path / "made", "F4", (2,), 0)
    with pytest.raises(LoadError, match=r"expected numbers in one of the formats F64, .*, found F4"):
        read({"weight": Piece(span, (2,))}, torch.float32, "cpu")


@pytest.mark.parametrize("stored", FORMATS)
@pytest.mark.parametrize("chunk", [reading.CHUNK, 200, 16])
def test_channels_may_lie_side_by_side(write, tensors, monkeypatch, stored, chunk):
    monkeypatch.setattr(reading, "CHUNK", chunk)
    rounded = tensors["convolution"].to(stored)
    span = write({"convolution": rounded})["convolution"]
    made = read({"weight": Piece(span, span.shape, interleaved=True)}, torch.float32, "cpu")["weight"]
    assert torch.equal(made, rounded.float())
    fits = chunk >= rounded[0].nbytes
    assert made.is_contiguous(memory_format=torch.channels_last) is fits
    assert made.is_contiguous() is not fits


def test_where_that_is_no_faster_they_lie_as_they_are_stored(write, tensors):
    span = write(tensors)["convolution"]
    made = read({"weight": Piece(span, span.shape, interleaved=True)}, torch.float16, "cpu")["weight"]
    assert made.is_contiguous()
