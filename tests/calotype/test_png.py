"""PNG files of our own: any reader sees the same pixels and texts, and the same picture gives the same bytes."""

import io
import zlib
from dataclasses import replace

import numpy as np
import PIL.Image
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from calotype import png
from calotype.front import Engine
from calotype.picture import CHUNK, save
from nodes.types import Image
from server.picture import Picture, examine

GRAPH = {
    "format": "calotype/1",
    "nodes": {"photo": {"type": "image.load", "params": {"source": "face.png"}}},
    "outputs": {"image": "photo"},
}


def drawn(shape, seed=0, smooth=0):
    """Random pixels; with `smooth`, neighbours are that much alike."""
    levels = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
    return PIL.Image.fromarray(levels).resize((shape[1] << smooth, shape[0] << smooth), PIL.Image.Resampling.BICUBIC)


def reopened(data):
    picture = PIL.Image.open(io.BytesIO(data))
    picture.load()
    return picture


@given(st.integers(1, 40), st.integers(1, 40), st.sampled_from([(), (3,)]), st.integers(0, 2), st.integers(1, 200))
def test_any_picture_is_read_back_as_it_was(height, width, channels, smooth, band):
    picture = drawn((height, width, *channels), smooth=smooth)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(png, "BAND", band)
        found = reopened(png.encode(picture, {}))
    assert (found.mode, found.size, found.tobytes()) == (picture.mode, picture.size, picture.tobytes())


@pytest.mark.parametrize("values", [[0, 255], [0, 127, 128, 129], [255]])
def test_differences_that_leave_a_byte_come_back(values):
    levels = np.random.default_rng(1).choice(np.array(values, np.uint8), (30, 20, 3))
    assert np.array_equal(np.asarray(reopened(png.encode(PIL.Image.fromarray(levels), {}))), levels)


def test_texts_are_read_back_in_any_language():
    texts = {"parameters": "a fox, 狐, лиса\nSteps: 20", CHUNK: '{"ü": 1}'}
    assert reopened(png.encode(drawn((4, 4, 3)), texts)).text == texts


def test_the_same_picture_gives_the_same_bytes():
    assert png.encode(drawn((9, 7, 3)), {"a": "b"}) == png.encode(drawn((9, 7, 3)), {"a": "b"})


def test_a_strict_reader_takes_it(tmp_path):
    path = tmp_path / "picture.png"
    path.write_bytes(png.encode(drawn((20, 30, 3)), {CHUNK: "{}"}))
    assert examine(path, 600) == Picture("image/png", 30, 20)


def test_rows_are_told_from_whichever_neighbour_is_nearer():
    across, down = np.arange(64, dtype=np.uint8)[None], np.arange(0, 192, 3, dtype=np.uint8)[:, None]
    for levels, filter_ in ((np.tile(across, (64, 1)), png.UP), (np.tile(down, (1, 64)), png.LEFT)):
        data = png.encode(PIL.Image.fromarray(levels), {})
        begin = data.index(b"IDAT") + 4
        rows = zlib.decompress(data[begin : data.index(b"IEND") - 8])
        assert rows[:: 1 + 64][1:] == bytes([filter_]) * 63


def test_a_photograph_takes_a_tenth_more_room_than_with_pillow_at_most():
    picture = PIL.Image.blend(drawn((20, 20, 3), smooth=4), drawn((320, 320, 3)), 0.03)
    stream = io.BytesIO()
    picture.save(stream, "PNG")
    assert len(png.encode(picture, {})) <= 1.1 * len(stream.getvalue())


def test_other_modes_are_refused():
    with pytest.raises(ValueError, match="expected a picture of mode L or RGB, got RGBA; convert it before"):
        png.encode(PIL.Image.new("RGBA", (4, 4)), {})


def test_pictures_are_saved_in_their_order(tmp_path):
    shades = torch.arange(0, 250, 10, dtype=torch.uint8)[:, None, None, None].expand(-1, 3, 8, 8).contiguous()
    with Engine(device="cpu") as engine:
        result = replace(engine.run(GRAPH), outputs={"image": Image(shades)})
        paths = save(result, engine, tmp_path)["image"]
    assert paths == sorted(paths)
    assert [PIL.Image.open(path).getpixel((0, 0))[0] for path in paths] == list(range(0, 250, 10))
