from itertools import pairwise
from math import ceil

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from engine.socket import Int
from nodes.diffusion.tiling import starts
from nodes.image import composite, pick
from nodes.tile import corners, tiles, untile
from nodes.types import Image, Mask


def noise(width, height, count=1, seed=0):
    levels = np.random.default_rng(seed).integers(0, 256, (count, 3, height, width), dtype=np.uint8)
    return Image(torch.from_numpy(levels))


def flat(level, width, height):
    return Image(torch.full((1, 3, height, width), level, dtype=torch.uint8))


@pytest.mark.parametrize(
    ("length", "tile", "overlap", "expected"),
    [
        (1024, 512, 64, [0, 256, 512]),
        (1536, 512, 64, [0, 341, 682, 1024]),
        (960, 512, 64, [0, 448]),
        (961, 512, 64, [0, 224, 449]),
        (512, 512, 64, [0]),
        (1000, 300, 0, [0, 233, 466, 700]),
    ],
)
def test_tiles_lie_where_sd_upscale_puts_them(length, tile, overlap, expected):
    assert starts(length, tile, overlap) == expected


@given(st.integers(1, 400), st.integers(0, 60), st.integers(1, 200))
def test_as_few_tiles_as_reach_the_end_overlap_enough(tile, overlap, more):
    tile, length = tile + overlap, tile + overlap + more
    places = starts(length, tile, overlap)
    assert len(places) == max(1, ceil((length - overlap) / (tile - overlap)))
    assert (places[0], places[-1]) == (0, length - tile)
    assert max(after - before for before, after in pairwise(places)) <= tile - overlap


def test_tiles_are_cut_row_by_row_and_picture_after_picture():
    image = noise(20, 14, 2)
    cut, count = tiles(image, 8, 8, 2)
    places = corners((20, 14), (8, 8), 2)
    assert places == [(0, 0), (6, 0), (12, 0), (0, 6), (6, 6), (12, 6)]
    assert count == Int(12)
    for index, tile in enumerate(cut.data):
        x, y = places[index % 6]
        assert torch.equal(tile, image.data[index // 6, :, y : y + 8, x : x + 8])


SIZES = st.tuples(*[st.integers(1, 40)] * 2)


@given(SIZES, SIZES, st.integers(0, 12), st.integers(1, 2))
def test_tiles_that_nobody_changed_give_the_picture_back(size, tile, overlap, count):
    image = noise(*size, count)
    overlap = min(overlap, min(tile) - 1)
    assert torch.equal(untile(tiles(image, *tile, overlap).out, image, overlap).data, image.data)


def test_a_picture_smaller_than_a_tile_is_continued_by_its_mirror_image():
    image = Image(torch.arange(3, dtype=torch.uint8).expand(1, 3, 2, 3).contiguous())
    cut, count = tiles(image, 8, 4, 1)
    assert count == Int(1)
    assert cut.data[0, 0].tolist() == [[0, 1, 2, 2, 1, 0, 0, 1]] * 4


def test_a_tile_fades_in_over_its_left_neighbour_and_the_row_above():
    image = flat(0, 12, 12)
    cut = tiles(image, 8, 8, 4).out
    painted = Image(
        torch.stack([torch.full_like(tile, level) for tile, level in zip(cut.data, (0, 255, 0, 255), strict=True)])
    )
    across = untile(painted, image, 4).data[0, 0]
    assert across[3].tolist() == [0, 0, 0, 0, 0, 63, 127, 191, 255, 255, 255, 255]
    painted = Image(
        torch.stack([torch.full_like(tile, level) for tile, level in zip(cut.data, (0, 0, 255, 255), strict=True)])
    )
    assert torch.equal(untile(painted, image, 4).data[0, 0], across.T)


def test_columns_are_joined_before_rows():
    image = noise(12, 12)
    painted = noise(8, 8, 4, seed=1)
    ramp = torch.tensor([0, 63, 127, 191, 255, 255, 255, 255], dtype=torch.uint8)
    share = Mask(ramp.expand(1, 1, 8, 8).contiguous())
    strips = []
    for row in (0, 2):
        strip = Image(torch.cat([pick(painted, row).data, flat(0, 4, 8).data], 3))
        strips.append(composite(strip, pick(painted, row + 1), share, 4, 0))
    whole = Image(torch.cat([strips[0].data, flat(0, 12, 4).data], 2))
    share = Mask(ramp[:, None].expand(1, 1, 8, 12).contiguous())
    assert torch.equal(untile(painted, image, 4).data, composite(whole, strips[1], share, 0, 4).data)


def test_the_wrong_number_of_tiles_is_refused():
    image = noise(20, 14)
    cut = tiles(image, 8, 8, 2).out
    with pytest.raises(
        ValueError, match="got 6 tiles of 8 x 8 px: expected 12 for 1 of 20 x 14 px with an overlap of 4"
    ):
        untile(cut, image, 4)


def test_an_overlap_that_leaves_nothing_of_a_tile_is_refused():
    with pytest.raises(ValueError, match="an overlap of 8 px leaves nothing of a tile of 8 px"):
        tiles(noise(20, 14), 8, 16, 8)


def test_no_node_writes_into_its_input():
    image = noise(20, 14, 2)
    cut = tiles(image, 8, 8, 2).out
    before = image.stamp(), cut.stamp(), image.identity(), cut.identity()
    untile(cut, image, 2)
    assert (image.stamp(), cut.stamp(), image.identity(), cut.identity()) == before


@pytest.mark.gpu
@pytest.mark.parametrize("size", [(20, 14), (5, 3)])
def test_a_node_works_where_its_input_lies(size):
    image = noise(*size, 2)
    cut = tiles(image.move("cuda:0"), 8, 8, 2).out
    assert cut.place() == "cuda:0"
    assert torch.equal(cut.data.cpu(), tiles(image, 8, 8, 2).out.data)
    assert torch.equal(untile(cut, image.move("cuda:0"), 2).data.cpu(), image.data)
