import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nodes.grid import SMALLEST_SIZE, arrangement, fitted, grid
from nodes.types import Image


def noise(width, height, count=1, seed=0):
    levels = np.random.default_rng(seed).integers(0, 256, (count, 3, height, width), dtype=np.uint8)
    return Image(torch.from_numpy(levels))


def cells(count, width=32, height=24):
    return tuple(noise(width, height, seed=seed) for seed in range(count))


def found(sheet, cell):
    """(x, y) of the only place where `cell` stands on `sheet`."""
    width, height = cell.size
    windows = sheet.data[0].unfold(1, height, 1).unfold(2, width, 1)
    hits = (windows == cell.data[0, :, None, None]).flatten(3).all(3).all(0).nonzero().tolist()
    assert len(hits) == 1
    return hits[0][1], hits[0][0]


# arrangement


@pytest.mark.parametrize(
    ("count", "expected"),
    [
        (1, (1, 1)),
        (2, (2, 1)),
        (3, (2, 2)),
        (4, (2, 2)),
        (5, (3, 2)),
        (6, (3, 2)),
        (7, (3, 3)),
        (12, (4, 3)),
        (13, (4, 4)),
    ],
)
def test_a_plain_sheet_is_arranged_as_a1111s_batch_grid(count, expected):
    assert arrangement(count, 0, 0, 0) == expected


def test_labels_decide_the_columns_where_nothing_else_does():
    assert arrangement(6, 0, 2, 3) == (2, 3)
    assert arrangement(6, 0, 2, 0) == (2, 3)
    assert arrangement(6, 0, 0, 2) == (3, 2)
    assert arrangement(6, 6, 0, 0) == (6, 1)


@pytest.mark.parametrize(("labels", "message"), [((4, 0), "3 x labels.*got 4"), ((0, 3), "2 y labels.*got 3")])
def test_every_column_and_row_needs_its_label(labels, message):
    with pytest.raises(ValueError, match=message):
        arrangement(6, 3, *labels)


# sheet


def test_cells_stand_row_by_row_a_margin_apart():
    pictures = cells(5)
    sheet = grid(pictures, 3, margin=4)
    assert sheet.size == (3 * 32 + 2 * 4, 2 * 24 + 4)
    assert [found(sheet, picture) for picture in pictures] == [(0, 0), (36, 0), (72, 0), (0, 28), (36, 28)]


def test_smaller_pictures_stand_in_the_middle_of_their_cell():
    large, small = noise(20, 16), noise(9, 6, seed=1)
    sheet = grid((large, small), 2, background="#00ff00")
    assert sheet.size == (40, 16)
    assert found(sheet, small) == (25, 5)
    assert sheet.data[0, :, 0, 20].tolist() == [0, 255, 0]


def test_batches_are_spread_over_cells():
    pair, single = noise(8, 8, 2), noise(8, 8, seed=1)
    apart = tuple(Image(pair.data[index : index + 1]) for index in range(2))
    assert torch.equal(grid((pair, single), 3).data, grid((*apart, single), 3).data)


def test_a_batch_under_labels_is_refused():
    with pytest.raises(ValueError, match="a batch of 2 does not fit under one label"):
        grid((noise(8, 8, 2), noise(8, 8, 2)), 2, x_labels=("a", "b"))


def test_an_empty_sheet_is_refused():
    with pytest.raises(ValueError, match="at least one picture"):
        grid(())


def test_a_sheet_too_large_for_memory_is_refused():
    with pytest.raises(ValueError, match="15361 x 15361 px, more than 200 megapixels"):
        grid((noise(1, 1, 31 * 31),), margin=511)


def test_pictures_are_left_as_they_are():
    pictures = cells(2)
    before = [picture.stamp() for picture in pictures], [picture.data.clone() for picture in pictures]
    grid(pictures, x_labels=("a", "b"), title="fox")
    assert [picture.stamp() for picture in pictures] == before[0]
    assert all(torch.equal(picture.data, kept) for picture, kept in zip(pictures, before[1], strict=True))


# labels on the sheet


def extent(ink):
    rows, columns = np.nonzero(ink)
    return columns.min(), rows.min(), columns.max() + 1, rows.max() + 1


def test_x_labels_stand_centred_above_their_columns():
    pictures = cells(2, 128, 64)
    sheet = grid(pictures, x_labels=("denoise: 0.3", "denoise: 0.5"), margin=8)
    top = found(sheet, pictures[0])[1]
    strip = sheet.data[0, 0, :top].numpy() < 128
    for column, picture in enumerate(pictures):
        x, y = found(sheet, picture)
        assert (x, y) == (136 * column, top)
        left, upper, right, lower = extent(strip[:, x : x + 128])
        assert abs(left - (128 - right)) <= 2
        assert upper > 0
        assert lower < top


def test_y_labels_stand_centred_left_of_their_rows():
    pictures = cells(3, 64, 64)
    sheet = grid(pictures, y_labels=("cfg: 4", "cfg: 7", "cfg: 10"))
    left = found(sheet, pictures[0])[0]
    strip = sheet.data[0, 0, :, :left].numpy() < 128
    for row, picture in enumerate(pictures):
        assert found(sheet, picture) == (left, 64 * row)
        first, upper, last, lower = extent(strip[64 * row : 64 * (row + 1)])
        assert abs(first - (left - last)) <= 2
        assert abs(upper - (64 - lower)) <= 4


def test_a_title_stands_above_the_labels():
    plain, titled = grid(cells(2), x_labels=("a", "b")), grid(cells(2), x_labels=("a", "b"), title="seed: 42")
    height = titled.size[1] - plain.size[1]
    assert height > 0
    assert torch.equal(titled.data[:, :, height:], plain.data)
    assert titled.data[:, :, :height].min() < 128


def test_empty_labels_take_no_space():
    assert torch.equal(grid(cells(4), 2, x_labels=("", ""), y_labels=("", "")).data, grid(cells(4), 2).data)


def test_labels_are_white_on_a_dark_background():
    black = Image(torch.zeros(1, 3, 64, 64, dtype=torch.uint8))
    assert grid((black,), x_labels=("fox",), background="#000000").data.max() > 200


def test_labels_of_tiny_cells_are_cut_and_the_cells_kept():
    tiny = noise(1, 1)
    assert grid((tiny,), x_labels=("a very long label",), y_labels=("another",), title="title").data.shape[0] == 1


# labels by themselves


WORDS = st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=200)


@given(WORDS, st.integers(12, 60), st.integers(24, 300), st.integers(10, 200))
def test_a_label_stays_within_its_width_and_height(text, size, width, height):
    label = fitted(text, size, width, height)
    assert label.width <= width
    assert label.height <= height
    assert SMALLEST_SIZE <= label.size <= size


@given(WORDS)
def test_a_label_with_room_keeps_its_size_and_every_word(text):
    label = fitted(text, 12, 4000, 4000)
    assert (" ".join(label.lines), label.size) == (" ".join(text.split()), 12)


def test_a_label_wraps_before_it_shrinks_and_shrinks_before_it_breaks():
    assert fitted("euler ancestral", 20, 100, 100).lines == ("euler", "ancestral")
    long = fitted("supercalifragilistic", 20, 150, 100)
    assert long.lines == ("supercalifragilistic",)
    assert long.size < 20
    assert len(fitted("supercalifragilistic", 20, 40, 100).lines) > 1


def test_a_label_too_long_for_its_cell_ends_in_an_ellipsis():
    label = fitted("word " * 100, 20, 60, 40)
    assert label.lines[-1].endswith("…")
    assert label.size == SMALLEST_SIZE


def test_larger_cells_have_larger_letters():
    heights = [grid(cells(1, side, side), x_labels=("fox",)).size[1] - side for side in (64, 512, 1024)]
    assert heights == sorted(set(heights))
