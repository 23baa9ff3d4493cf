import math

import pytest
import torch

from nodes.diffusion.scope import Area, Box, Scope, Sizes, gap, place, window

SIZE = (16, 24)
"""Height and width of a latent."""


@pytest.mark.parametrize(
    ("area", "box"),
    [
        (Area(64, 32, 64, 96), Box(8, 4, 8, 12)),
        (Area(7, 15, 20, 9), Box(0, 1, 2, 1)),  # cells that are begun do not count
        (Area(160, 64, 512, 512), Box(20, 8, 4, 8)),  # cut at the edges
        (Area(512, 512, 64, 64), Box(23, 15, 1, 1)),  # nothing of it is there
        (Area(0.25, 0.5, 0.5, 0.5, share=True), Box(6, 8, 12, 8)),
        (Area(0.0, 0.0, 0.001, 1.0, share=True), Box(0, 0, 1, 16)),
    ],
)
def test_an_area_is_a_box_of_cells(area, box):
    assert area.box(SIZE, 8) == box


def test_a_box_cuts_latents_and_pictures_alike():
    data = torch.arange(16 * 24).view(1, 1, 16, 24)
    box = Box(8, 4, 3, 2)
    assert torch.equal(box.cut(data), data[..., 4:6, 8:11])
    pixels = data.repeat_interleave(8, 2).repeat_interleave(8, 3)
    assert torch.equal(box.cut(pixels, 8)[..., ::8, ::8], box.cut(data))


def test_a_prompt_fades_in_over_a_quarter_of_its_box_and_only_inside_of_the_picture():
    share = Box(0, 0, 12, 16).feather(SIZE)[0, 0]  # an edge of it lies within, at the right: 3 cells
    assert share[0].tolist() == pytest.approx([1] * 9 + [1, 2 / 3, 1 / 3])
    assert torch.equal(share, share[:1].expand(16, -1))


def test_the_fading_of_both_sides_is_multiplied_in_a_corner():
    share = Box(8, 8, 8, 8).feather((32, 32))[0, 0]  # 2 cells on each side
    assert share[0].tolist() == pytest.approx([0.25, 0.5, *[0.5] * 4, 0.5, 0.25])
    assert share[3].tolist() == pytest.approx([0.5, 1, *[1] * 4, 1, 0.5])


def test_the_narrower_side_decides_how_far_a_prompt_fades():
    share = Box(0, 4, 4, 40).feather((64, 64))[0, 0]  # 10 cells high at most, of 8; then 1, for 4 cells across
    assert share[:, 0].tolist() == pytest.approx(
        [n / 8 for n in range(1, 9)] + [1] * 24 + [n / 8 for n in range(8, 0, -1)]
    )
    assert share[20].tolist() == pytest.approx([1, 1, 1, 1])


def test_without_a_place_everything_counts_alike():
    assert place(Scope(), (), SIZE, 8) == (Box(0, 0, 24, 16), None)


def test_a_strength_alone_counts_everywhere():
    box, share = place(Scope(strength=0.5), (), SIZE, 8)
    assert box == Box(0, 0, 24, 16)
    assert share.unique().tolist() == [0.5]


def test_a_mask_counts_by_its_level_on_the_latent_grid():
    mask = torch.zeros(1, 1, 128, 192, dtype=torch.uint8)
    mask[..., 96:] = 255
    box, share = place(Scope(mask=0, strength=2.0), (mask,), SIZE, 8)
    assert box == Box(0, 0, 24, 16)
    assert share[..., :11].unique().tolist() == [0]
    assert share[..., 13:].unique().tolist() == [2]


def test_the_box_around_a_mask_has_some_cells_at_least():
    mask = torch.zeros(1, 1, 16, 24, dtype=torch.uint8)
    mask[..., 5:7, 20:22] = 255
    box, share = place(Scope(mask=0, bounds=True), (mask,), SIZE, 8)
    assert box == Box(16, 5, 8, 8)
    assert share.sum() == 4
    empty, nothing = place(Scope(mask=0, bounds=True), (torch.zeros_like(mask),), SIZE, 8)
    assert (empty, nothing.sum()) == (Box(0, 0, 8, 8), 0)


def test_a_window_is_read_off_the_timesteps(table):
    assert window(table, 0.0, 1.0) == (0.0, math.inf)
    assert window(table, 0.25, 0.75) == (table.sigma(0.25 * 999), table.sigma(0.75 * 999))


@pytest.mark.parametrize(
    ("spans", "missing"),
    [
        ([(0.0, 1.0)], None),
        ([(0.0, 0.5), (0.5, 1.0)], None),
        ([(0.4, 1.0), (0.0, 0.5)], None),
        ([(0.0, 0.5)], (0.5, 1.0)),
        ([(0.2, 1.0)], (0.0, 0.2)),
        ([(0.0, 0.3), (0.6, 1.0)], (0.3, 0.6)),
        ([], (0.0, 1.0)),
    ],
)
def test_a_gap_is_where_nobody_counts(spans, missing):
    assert gap([Scope(start=start, end=end) for start, end in spans]) == missing


def test_sdxl_hears_height_before_width_and_its_refiner_a_score():
    told = Sizes(width=640, crop_x=16, target_height=512)
    assert told.numbers(6, (768, 1024), negative=False) == (768, 640, 0, 16, 512, 1024)
    assert told.numbers(5, (768, 1024), negative=False) == (768, 640, 0, 16, 6.0)
    assert told.numbers(5, (768, 1024), negative=True) == (768, 640, 0, 16, 2.5)
    assert Sizes(score=8.0).numbers(5, (64, 64), negative=True) == (64, 64, 0, 0, 8.0)
