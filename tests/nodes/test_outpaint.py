import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nodes.image import pick
from nodes.outpaint import extend, grown, texture
from nodes.types import Image

FILLINGS = ["edge", "mirror", "colour", "texture"]
MARGINS = st.tuples(*[st.integers(0, 20)] * 4)


def noise(width, height, count=1, seed=0):
    levels = np.random.default_rng(seed).integers(0, 256, (count, 3, height, width), dtype=np.uint8)
    return Image(torch.from_numpy(levels))


@pytest.mark.parametrize(
    ("size", "margins", "multiple", "expected"),
    [
        ((512, 512), (128, 0, 0, 0), 64, (128, 0, 0, 0)),
        ((500, 500), (128, 0, 0, 0), 64, (140, 0, 0, 12)),
        ((500, 512), (100, 0, 50, 0), 64, (136, 0, 68, 0)),
        ((30, 20), (0, 3, 0, 3), 8, (0, 6, 2, 6)),
        ((30, 20), (1, 2, 3, 4), 1, (1, 2, 3, 4)),
    ],
)
def test_margins_grow_to_whole_multiples(size, margins, multiple, expected):
    assert grown(size, margins, multiple) == expected


@given(*[st.integers(1, 90)] * 2, MARGINS, st.integers(1, 64))
def test_every_side_gets_what_was_asked_for_and_the_canvas_its_multiple(width, height, margins, multiple):
    left, top, right, bottom = grown((width, height), margins, multiple)
    assert (width + left + right) % multiple == (height + top + bottom) % multiple == 0
    assert all(got >= asked for got, asked in zip((left, top, right, bottom), margins, strict=True))
    assert left + right < margins[0] + margins[2] + multiple
    assert not (left and not margins[0])
    assert not (top and not margins[1])


@settings(max_examples=60)
@given(*[st.integers(1, 20)] * 2, MARGINS, st.sampled_from(FILLINGS), st.integers(0, 9))
def test_the_picture_stays_and_the_mask_covers_all_that_is_new(width, height, margins, fill, overlap):
    image = noise(width, height)
    left, top, right, bottom = margins
    out, mask = extend(image, *margins, fill=fill, overlap=overlap, multiple=1)
    assert out.size == mask.size == (left + width + right, top + height + bottom)
    assert torch.equal(out.data[..., top : top + height, left : left + width], image.data)
    rows = np.arange(out.size[1]) - top
    columns = np.arange(out.size[0]) - left

    def within(places, side, before, after):
        return (places >= (overlap if before else 0)) & (places < side - (overlap if after else 0))

    kept = within(rows, height, top, bottom)[:, None] & within(columns, width, left, right)
    assert np.array_equal(mask.data[0, 0].numpy(), np.where(kept, 0, 255))


def test_edges_are_drawn_out_as_resize_and_fill_does():
    image = Image(
        torch.tensor([30, 50, 150, 170], dtype=torch.uint8).reshape(1, 1, 1, 4).expand(1, 3, 2, 4).contiguous()
    )
    out = extend(image, 2, 0, 2, 0, multiple=1).out
    assert out.data[0, 0, 0].tolist() == [28, 28, 30, 50, 150, 170, 173, 173]


def test_the_mirror_goes_on_and_back_again():
    image = Image(torch.tensor([1, 2, 3], dtype=torch.uint8).reshape(1, 1, 1, 3).expand(1, 3, 1, 3).contiguous())
    out = extend(image, 4, 0, 4, 0, fill="mirror", multiple=1).out
    assert out.data[0, 0, 0].tolist() == [3, 3, 2, 1, 1, 2, 3, 3, 2, 1, 1]


def test_a_plain_colour_is_as_asked():
    out = extend(noise(4, 4), 8, 0, 0, 0, fill="colour", colour="#102030", multiple=1).out
    assert out.data[0, :, 0, 0].tolist() == [0x10, 0x20, 0x30]


# texture


def levels(width, height):
    """Two colours in stripes, with a little noise."""
    stripes = (np.arange(width) // 4 % 2)[None, :, None] * np.array([100, 60, -80]) + np.array([60, 90, 160])
    return (stripes + np.random.default_rng(1).integers(-9, 10, (height, width, 3))).clip(0, 255).astype(np.uint8)


def test_a_texture_has_the_colours_of_the_picture():
    picture = levels(64, 48)
    made = texture(picture, (120, 90), 0.05, 0).astype(float)
    assert np.abs(made.mean(axis=(0, 1)) - picture.mean(axis=(0, 1))).max() < 3
    assert np.abs(made.std(axis=(0, 1)) - picture.std(axis=(0, 1))).max() < 3


def test_a_texture_has_the_frequencies_of_the_picture():
    made = texture(levels(64, 48), (128, 96), 0.05, 0).astype(float)

    def roughness(axis):
        return np.abs(np.diff(made, axis=axis)).mean()

    assert roughness(1) > 2 * roughness(0)


def test_a_texture_depends_on_its_seed_alone():
    picture = levels(32, 24)
    one, again, other = (texture(picture, (40, 40), 0.05, seed) for seed in (0, 0, 1))
    assert np.array_equal(one, again)
    assert not np.array_equal(one, other)


def test_more_variation_frees_the_colours_of_each_other():
    picture = levels(64, 48)
    spread = [
        np.abs(texture(picture, (96, 96), share, 0).astype(int) - texture(picture, (96, 96), 0.0, 0)).mean()
        for share in (0.05, 0.3, 1.0)
    ]
    assert 0 < spread[0] < spread[1] < spread[2]


def test_a_plain_picture_has_a_plain_texture():
    plain = np.full((5, 4, 3), 77, np.uint8)
    assert (texture(plain, (9, 9), 0.5, 0) == 77).all()
    assert (texture(plain[:1, :1], (3, 2), 0.5, 0) == 77).all()


# all of them


@pytest.mark.parametrize("fill", FILLINGS)
def test_each_picture_of_a_batch_is_extended_as_if_alone(fill):
    image = noise(9, 6, 3)
    together = extend(image, 3, 4, 5, 6, fill=fill).out
    alone = [extend(pick(image, index), 3, 4, 5, 6, fill=fill).out.data for index in range(3)]
    assert torch.equal(together.data, torch.cat(alone))


@pytest.mark.parametrize("fill", FILLINGS)
def test_no_node_writes_into_its_input(fill):
    image = noise(9, 6, 2)
    before = image.stamp(), image.identity()
    extend(image, 3, 4, 5, 6, fill=fill)
    assert (image.stamp(), image.identity()) == before


@pytest.mark.gpu
def test_a_node_works_where_its_input_lies():
    image = noise(9, 6, 2)
    there = extend(image.move("cuda:0"), 3, 4, 5, 6)
    assert there.out.place() == there.mask.place() == "cuda:0"
    assert torch.equal(there.out.data.cpu(), extend(image, 3, 4, 5, 6).out.data)
