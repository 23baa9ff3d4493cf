import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch.nn import functional

from nodes.diffusion.tiling import Tiling, shares, starts, tiled


def noise(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def blurred(reach):
    """A convolution that sees `reach` px to every side, and zeros beyond the border."""
    kernel = noise(3, 3, 2 * reach + 1, 2 * reach + 1, seed=1) / (2 * reach + 1)
    return lambda data: functional.conv2d(data, kernel, padding=reach)


@given(st.integers(1, 60), st.integers(0, 30), st.integers(1, 150))
def test_the_shares_of_all_tiles_are_1_everywhere(more, overlap, longer):
    tile = overlap + more
    length = tile + longer
    places = starts(length, tile, overlap)
    total = torch.zeros(length)
    for place, share in zip(places, shares(places, tile, length), strict=True):
        assert 0 <= float(share.min()) <= float(share.max()) <= 1
        total[place : place + tile] += share
    torch.testing.assert_close(total, torch.ones(length))


def test_the_outer_quarter_of_an_overlap_counts_for_nothing():
    left, right = shares([0, 12], 20, 32)
    assert left[12:].tolist() == [1, 1, 0.875, 0.625, 0.375, 0.125, 0, 0]
    assert right[:8].tolist() == [0, 0, 0.125, 0.375, 0.625, 0.875, 1, 1]


def test_without_an_overlap_tiles_are_cut_off():
    assert [share.tolist() for share in shares([0, 2], 2, 4)] == [[1, 1], [1, 1]]


@given(st.tuples(*[st.integers(1, 40)] * 2), st.integers(2, 16), st.integers(0, 8), st.integers(1, 3))
def test_what_looks_at_single_pixels_does_not_see_tiles(size, side, overlap, given):
    assume(overlap < side)
    data = noise(2, 3, *size)

    def larger(part):
        return functional.interpolate(part.exp(), scale_factor=float(given), mode="nearest")

    joined = tiled(data, larger, Tiling(side, overlap), grain=(1, given))
    torch.testing.assert_close(joined, larger(data))


@pytest.mark.parametrize(("reach", "overlap"), [(1, 4), (2, 8), (3, 12)])
def test_tiles_equal_the_whole_where_the_reach_fits_into_a_quarter_of_the_overlap(reach, overlap):
    data, run = noise(1, 3, 40, 60), blurred(reach)
    torch.testing.assert_close(tiled(data, run, Tiling(20, overlap)), run(data))
    assert float((tiled(data, run, Tiling(20)) - run(data)).abs().max()) > 0.01


def test_tiles_begin_at_whole_cells_where_the_data_has_a_grain():
    data = noise(1, 2, 24, 40)

    def squares(part):
        return functional.avg_pool2d(part, 4)

    assert torch.allclose(tiled(data, squares, Tiling(3, 1), grain=(4, 1)), squares(data), atol=1e-6)


def test_one_tile_that_covers_everything_is_the_whole():
    data, run, seen = noise(1, 3, 20, 12), blurred(2), []
    for side in (0, 20, 64):
        seen.clear()
        made = tiled(data, lambda part: (seen.append(part.shape), run(part))[1], Tiling(side, 4))
        assert seen == [data.shape]
        assert torch.equal(made, run(data))


def test_progress_counts_the_tiles():
    seen = []
    tiled(noise(1, 1, 20, 30), lambda part: part, Tiling(10, 2), progress=lambda *now: seen.append(now))
    assert seen == [(done, 12) for done in range(1, 13)]


def test_px_become_cells_the_side_rounded_down_and_the_overlap_up():
    assert Tiling(100, 20).cells(8) == Tiling(12, 3)
    assert Tiling(0, 64).cells(8) == Tiling(0, 8)


def test_an_overlap_that_leaves_nothing_of_a_tile_is_refused():
    with pytest.raises(ValueError, match="an overlap of 8 px leaves nothing of a tile of 8 px"):
        tiled(noise(1, 1, 20, 30), lambda part: part, Tiling(8, 8))
