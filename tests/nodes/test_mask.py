import math

import numpy as np
import PIL.Image
import PIL.ImageFilter
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from engine.file import File, Files
from nodes import image as pictures
from nodes.mask import (
    blur,
    combine,
    crop,
    difference,
    ellipse,
    from_alpha,
    gaussian,
    grow,
    invert,
    load,
    opacity,
    rectangle,
    resize,
    threshold,
)
from nodes.types import Image, Mask

GREY = arrays.arrays(np.uint8, st.tuples(st.integers(1, 9), st.integers(1, 9)))


def mask(rows):
    return Mask(torch.from_numpy(np.array(rows, np.uint8, ndmin=2))[None, None])


def plane(mask):
    return mask.data[0, 0].numpy()


def noise(width, height, count=1, seed=0):
    levels = np.random.default_rng(seed).integers(0, 256, (count, 1, height, width), dtype=np.uint8)
    return Mask(torch.from_numpy(levels))


def dot(side, at):
    field = np.zeros((side, side), np.uint8)
    field[at, at] = 255
    return mask(field)


def saved(folder, levels, name="mask.png"):
    PIL.Image.fromarray(np.array(levels, np.uint8, ndmin=2)).save(folder / name)
    return Files([folder]).resolve(File, name)


def painted(*pixels):
    """A brush layer, one row of RGBA pixels."""
    return np.array([pixels], np.uint8)


# load


def test_luminance_stays_grey(tmp_path):
    assert plane(load(saved(tmp_path, [0, 100, 255]))).tolist() == [[0, 100, 255]]


def test_luminance_counts_what_is_transparent_as_kept(tmp_path):
    file = saved(tmp_path, painted((255, 255, 255, 0), (255, 255, 255, 255)))
    assert plane(load(file)).tolist() == [[0, 255]]


def test_opaque_is_repainted_when_alpha_is_asked_for(tmp_path):
    file = saved(tmp_path, painted((9, 9, 9, 0), (9, 9, 9, 130), (9, 9, 9, 255)))
    assert plane(load(file, "alpha")).tolist() == [[0, 130, 255]]


def test_alpha_is_refused_where_there_is_none(tmp_path):
    with pytest.raises(ValueError, match=r"mask\.png has no alpha"):
        load(saved(tmp_path, [0, 255]), "alpha")


def test_a_text_is_refused(tmp_path):
    (tmp_path / "notes.png").write_text("a fox")
    for loader in (load, from_alpha):
        with pytest.raises(ValueError, match=r"notes\.png is not a picture"):
            loader(Files([tmp_path]).resolve(File, "notes.png"))


def test_a_brush_layer_is_cut_above_the_middle(tmp_path):
    file = saved(tmp_path, painted((0, 0, 0, 0), (0, 0, 0, 128), (0, 0, 0, 129), (0, 0, 0, 255)))
    assert plane(from_alpha(file)).tolist() == [[0, 0, 255, 255]]
    assert plane(from_alpha(file, threshold=False)).tolist() == [[0, 128, 129, 255]]


def test_an_opaque_layer_is_read_by_its_luminance_and_stays_grey(tmp_path):
    assert plane(from_alpha(saved(tmp_path, [0, 100, 255]))).tolist() == [[0, 100, 255]]


# shapes


def test_a_rectangle_is_white_inside_and_black_outside():
    assert plane(rectangle(5, 4, x=1, y=2, w=3, h=1)).tolist() == [[0] * 5, [0] * 5, [0, 255, 255, 255, 0], [0] * 5]


@given(*[st.integers(-9, 9)] * 2, *[st.integers(1, 12)] * 2)
def test_a_rectangle_is_cut_at_the_canvas(x, y, w, h):
    expected = [[255 * (x <= column < x + w and y <= row < y + h) for column in range(7)] for row in range(5)]
    assert plane(rectangle(7, 5, x=x, y=y, w=w, h=h)).tolist() == expected


def test_an_ellipse_has_the_area_of_its_formula_and_touches_its_box():
    drawn = plane(ellipse(300, 200, x=20, y=30, w=240, h=120)) > 0
    assert drawn.sum() == pytest.approx(math.pi * 120 * 60, rel=0.002)
    assert [edge.tolist() for edge in np.nonzero(drawn.any(0))[0][[0, -1]]] == [20, 259]
    assert [edge.tolist() for edge in np.nonzero(drawn.any(1))[0][[0, -1]]] == [30, 149]


@given(st.integers(1, 20), st.integers(1, 20))
def test_an_ellipse_is_symmetric_and_never_empty(w, h):
    drawn = plane(ellipse(w, h, x=0, y=0, w=w, h=h))
    assert np.array_equal(drawn, drawn[::-1])
    assert np.array_equal(drawn, drawn[:, ::-1])
    assert drawn[h // 2, w // 2] == 255


def test_an_ellipse_is_cut_at_the_canvas():
    whole, part = ellipse(20, 20, x=4, y=6, w=12, h=8), ellipse(10, 10, x=-1, y=1, w=12, h=8)
    assert np.array_equal(plane(part), plane(whole)[5:15, 5:15])


# levels


def test_invert_swaps_repaint_and_keep():
    assert plane(invert(mask([0, 1, 200, 255]))).tolist() == [[255, 254, 55, 0]]


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        ("union", [0, 255, 255, 255]),
        ("intersect", [0, 0, 0, 255]),
        ("subtract", [0, 0, 255, 0]),
        ("exclude", [0, 255, 255, 0]),
    ],
)
def test_combine_follows_its_truth_table(mode, expected):
    assert plane(combine(mask([0, 0, 255, 255]), mask([0, 255, 0, 255]), mode)).tolist() == [expected]


@given(st.integers(0, 255), st.integers(0, 255))
def test_grey_levels_combine_as_fuzzy_sets(a, b):
    one, other = mask([a]), mask([b])
    level = {mode: plane(combine(one, other, mode)).item() for mode in ("union", "intersect", "subtract", "exclude")}
    assert level["union"] == 255 - plane(combine(invert(one), invert(other), "intersect")).item()
    assert level["exclude"] == max(level["subtract"], plane(combine(other, one, "subtract")).item())
    assert level["subtract"] == min(a, 255 - b)


def test_combine_refuses_other_sizes_and_batches():
    with pytest.raises(ValueError, match=r"one size, got \(4, 3\) and \(3, 4\) px"):
        combine(noise(4, 3), noise(3, 4))
    with pytest.raises(ValueError, match="batches of 2 and 3"):
        combine(noise(4, 3, 2), noise(4, 3, 3))


def test_one_mask_combines_with_a_batch():
    many, one = noise(4, 3, 3), noise(4, 3, 1, seed=1)
    assert torch.equal(combine(one, many, "union").data, torch.maximum(one.data, many.data))


def test_threshold_is_white_above_the_level_only():
    assert plane(threshold(mask([0, 128, 129, 255]))).tolist() == [[0, 0, 255, 255]]
    assert plane(threshold(mask([0, 1]), 0)).tolist() == [[0, 255]]


# grow


def dilated(levels, reach, shape):
    """The definition, pixel by pixel."""
    height, width = levels.shape
    near = [
        (dy, dx)
        for dy in range(-reach, reach + 1)
        for dx in range(-reach, reach + 1)
        if shape == "square" or dx * dx + dy * dy <= reach * reach
    ]
    return [
        [
            max(levels[y + dy, x + dx] for dy, dx in near if 0 <= y + dy < height and 0 <= x + dx < width)
            for x in range(width)
        ]
        for y in range(height)
    ]


@given(GREY, st.integers(0, 6), st.sampled_from(["round", "square"]))
def test_grow_takes_the_largest_level_in_reach(levels, by, shape):
    assert plane(grow(mask(levels), by, shape)).tolist() == dilated(levels, by, shape)


@given(GREY, st.integers(1, 6), st.sampled_from(["round", "square"]))
def test_to_shrink_is_to_grow_what_is_kept(levels, by, shape):
    shrunk = grow(mask(levels), -by, shape)
    assert torch.equal(shrunk.data, invert(grow(invert(mask(levels)), by, shape)).data)


def test_a_dot_grows_into_a_disc_or_a_square():
    assert np.count_nonzero(plane(grow(dot(31, 15), 5))) == 81
    assert np.count_nonzero(plane(grow(dot(31, 15), 5, "square"))) == 11 * 11


@pytest.mark.parametrize(("side", "first", "last"), [(0, 15, 15), (1, 15, 15), (2, 15, 16), (5, 13, 17), (6, 13, 18)])
def test_a_dot_grows_into_a_kernel_of_so_many_pixels(side, first, last):
    rows, columns = np.nonzero(plane(grow(dot(31, 15), side, "kernel")))
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (first, last, first, last)
    assert len(rows) == (last - first + 1) ** 2


def test_the_border_of_the_canvas_does_not_eat_into_the_area():
    full = mask(np.full((6, 6), 255))
    assert torch.equal(grow(full, -4).data, full.data)


def test_the_largest_reach_fills_a_canvas_smaller_than_it():
    assert plane(grow(dot(20, 0), 512)).min() == 255


@given(st.integers(0, 5), st.integers(1, 8))
def test_the_fade_reaches_feather_pixels_and_no_farther(by, feather):
    hard, soft = plane(grow(dot(41, 20), by)), plane(grow(dot(41, 20), by, feather=feather))
    beyond = plane(grow(dot(41, 20), by + 1 + 2 * feather, "square"))
    assert not soft[beyond == 0].any()
    assert not np.array_equal(hard, soft)


def test_the_middle_of_a_fade_lies_on_the_edge():
    half = mask(np.repeat([[0] * 20 + [255] * 20], 40, axis=0))
    row = plane(grow(half, 0, feather=8))[20].astype(int)
    assert row[11] == 0
    assert row[28] == 255
    assert row[19] + row[20] == 255
    assert all(np.diff(row) >= 0)


# blur


@pytest.mark.parametrize(("sigma", "length"), [(0, 1), (0.1, 1), (1, 7), (2, 11), (4, 21), (6.5, 33), (64, 321)])
def test_the_kernel_has_the_length_that_a1111_gives_it(sigma, length):
    weights = gaussian(sigma)
    assert len(weights) == length
    assert math.fsum(weights) == pytest.approx(1, abs=1e-12)
    assert weights == weights[::-1]


def reference(levels, sigma):
    """The Gaussian by its formula, in float64, over a canvas mirrored by numpy."""
    reach = int(2.5 * sigma + 0.5)
    taps = np.arange(-reach, reach + 1)
    weights = np.exp(-(taps**2) / (2 * sigma**2))
    weights /= weights.sum()
    padded = np.pad(levels.astype(np.float64), reach, mode="reflect")
    across = np.apply_along_axis(np.convolve, 1, padded, weights, "valid")
    return np.apply_along_axis(np.convolve, 0, across, weights, "valid")


@given(GREY, st.floats(0.2, 12))
def test_blur_is_the_gaussian_over_a_mirrored_canvas(levels, sigma):
    assert np.abs(plane(blur(mask(levels), sigma)) - reference(levels, sigma)).max() <= 0.5 + 1e-9


def test_blur_gives_its_reference_values():
    spread = plane(blur(dot(41, 20), 4.0))
    assert spread[20, 20:32].tolist() == [3, 3, 2, 2, 2, 1, 1, 1, 0, 0, 0, 0]
    edge = plane(blur(mask([[0] * 20 + [255] * 20] * 3), 4.0))[1]
    assert edge[9:31].tolist() == [
        round(float(level)) for level in reference(np.array([[0] * 20 + [255] * 20]), 4)[0, 9:31]
    ]


def test_no_radius_changes_nothing():
    levels = noise(6, 5)
    assert torch.equal(blur(levels, 0.0).data, levels.data)


def test_even_grey_stays_even():
    assert torch.equal(blur(mask(np.full((3, 50), 77)), 30.0).data, mask(np.full((3, 50), 77)).data)


def test_boxes_blur_as_pillow_does():
    levels = noise(40, 30)
    expected = levels.pil().filter(PIL.ImageFilter.GaussianBlur(4))
    assert np.array_equal(plane(blur(levels, 4.0, "boxes")), np.asarray(expected))
    assert not np.array_equal(plane(blur(levels, 4.0)), np.asarray(expected))


# resize


@pytest.mark.parametrize("mode", ["stretch", "crop", "fill"])
@pytest.mark.parametrize("size", [(9, 14), (21, 6), (7, 7)])
def test_a_mask_is_resized_as_the_picture_below_it(mode, size):
    levels = noise(12, 8, count=2)
    below = pictures.resize(Image(levels.data.expand(-1, 3, -1, -1).contiguous()), *size, mode=mode).out
    assert torch.equal(resize(levels, *size, mode=mode).data, below.data[:, :1])


def test_a_mask_may_be_resized_by_a_factor():
    assert resize(noise(13, 8), factor=0.5).size == (6, 4)


def test_below_a_latent_that_is_resized_a_mask_is_stretched_less_what_was_cut_off_the_picture():
    levels = noise(37, 18)
    cut = Mask(levels.data[..., :16, :32].contiguous())
    assert torch.equal(resize(levels, 60, 66, mode="latent", multiple=8).data, resize(cut, 56, 64).data)


# crop


def test_a_mask_is_cropped_as_the_picture_below_it():
    levels = noise(12, 8, count=2)
    below = pictures.crop(Image(levels.data.expand(-1, 3, -1, -1).contiguous()), 3, 1, 8, 6)
    cropped = crop(levels, 3, 1, 8, 6)
    assert cropped.size == (8, 6)
    assert torch.equal(cropped.data, below.data[:, :1])


@pytest.mark.parametrize("box", [(-1, 0, 4, 4), (0, -1, 4, 4), (9, 0, 4, 4), (0, 5, 4, 4)])
def test_a_box_that_leaves_the_mask_is_refused(box):
    with pytest.raises(ValueError, match="leaves the mask of 12 x 8 px"):
        crop(noise(12, 8), *box)


# opacity


@pytest.mark.parametrize(("transparency", "level"), [(0, 255), (25, 191), (49, 130), (50, 127), (100, 0)])
def test_white_has_the_level_that_a1111_gives_it(transparency, level):
    assert plane(opacity(mask([255, 0]), 1 - transparency / 100)).tolist() == [[level, 0]]


# difference


def test_one_level_in_one_channel_is_a_difference():
    before = Image(torch.full((1, 3, 1, 4), 7, dtype=torch.uint8))
    after = before.data.clone()
    for channel in range(3):
        after[0, channel, 0, channel] = 8 - 2 * (channel == 1)
    assert plane(difference(before, Image(after))).tolist() == [[255, 255, 255, 0]]


def test_a_picture_and_itself_give_a_blank_mask():
    levels = Image(noise(5, 4).data.expand(-1, 3, -1, -1).contiguous())
    assert not difference(levels, levels).data.any()


def test_pictures_of_other_sizes_have_no_difference():
    one, other = (Image(torch.zeros(1, 3, *size, dtype=torch.uint8)) for size in ((2, 3), (3, 2)))
    with pytest.raises(ValueError, match="one size, got 3 x 2 px and 2 x 3 px"):
        difference(one, other)


def test_one_picture_is_compared_with_each_of_a_batch():
    one, many = (Image(torch.zeros(count, 3, 2, 2, dtype=torch.uint8)) for count in (1, 3))
    many.data[1] += 1
    assert difference(one, many).data.amax(dim=(1, 2, 3)).tolist() == [0, 255, 0]


# all of them


NODES = {
    "invert": invert,
    "combine": lambda mask: combine(mask, mask, "exclude"),
    "grow": lambda mask: grow(mask, 2, feather=2),
    "shrink": lambda mask: grow(mask, -2, "square"),
    "blur": lambda mask: blur(mask, 2.0),
    "resize": lambda mask: resize(mask, 4, 9, mode="fill"),
    "crop": lambda mask: crop(mask, 1, 2, 4, 3),
    "threshold": threshold,
    "opacity": lambda mask: opacity(mask, 0.3),
    "difference": lambda mask: difference(*(Image(part.data.expand(-1, 3, -1, -1)) for part in (mask, blur(mask)))),
    "blur by boxes": lambda mask: blur(mask, 2.0, "boxes"),
}


@pytest.mark.parametrize("name", NODES)
def test_no_node_writes_into_its_input(name):
    levels = noise(6, 5, 2)
    before = levels.stamp(), levels.data.clone()
    NODES[name](levels)
    assert levels.stamp() == before[0]
    assert torch.equal(levels.data, before[1])


@pytest.mark.parametrize("name", NODES)
def test_each_mask_of_a_batch_is_worked_on_as_if_alone(name):
    levels = noise(6, 5, 3)
    alone = [NODES[name](Mask(levels.data[index : index + 1])).data for index in range(3)]
    assert torch.equal(NODES[name](levels).data, torch.cat(alone))


@pytest.mark.gpu
@pytest.mark.parametrize("name", NODES)
def test_a_node_works_where_its_input_lies(name):
    levels = noise(40, 30, 2)
    there = NODES[name](levels.move("cuda:0"))
    assert there.place() == "cuda:0"
    assert torch.equal(there.data.cpu(), NODES[name](levels).data)
