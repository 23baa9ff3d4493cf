import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from nodes.colour import lab, luminosity, match_colour, match_histogram, rgb
from nodes.image import pick
from nodes.types import Image

PICTURES = arrays.arrays(np.uint8, st.tuples(st.integers(1, 9), st.integers(1, 9), st.just(3)))
LEVELS = arrays.arrays(np.uint8, st.tuples(st.integers(1, 40)))
WEIGHTS = np.array([0.3, 0.59, 0.11])


def noise(width, height, count=1, seed=0):
    levels = np.random.default_rng(seed).integers(0, 256, (count, 3, height, width), dtype=np.uint8)
    return Image(torch.from_numpy(levels))


def gradient(count=1):
    """Blue to the left, brown to the right, darker downwards."""
    across, down = np.linspace(0, 1, 40)[None, :, None], np.linspace(1, 0.5, 30)[:, None, None]
    levels = (np.array([30, 80, 200]) * (1 - across) + np.array([200, 120, 40]) * across) * down
    return Image(
        torch.from_numpy(levels.astype(np.uint8)).permute(2, 0, 1)[None].expand(count, -1, -1, -1).contiguous()
    )


def tinted(image, *factors):
    return Image((image.data.float() * torch.tensor(factors).view(1, 3, 1, 1)).clamp(0, 255).to(torch.uint8))


# L*a*b*


@pytest.mark.parametrize(
    ("colour", "packed"),
    [
        ((0, 0, 0), (0, 128, 128)),
        ((255, 255, 255), (255, 128, 128)),
        ((128, 128, 128), (137, 128, 128)),
        ((255, 0, 0), (136, 208, 195)),
        ((0, 255, 0), (224, 42, 211)),
        ((0, 0, 255), (82, 207, 20)),
        ((255, 255, 0), (248, 106, 222)),
        ((0, 255, 255), (232, 80, 114)),
        ((255, 0, 255), (154, 226, 67)),
    ],
)
def test_colours_have_the_levels_of_the_cie(colour, packed):
    assert tuple(lab(np.array(colour, np.uint8)).tolist()) == packed


def test_greys_come_back_nearly_and_stay_grey():
    greys = np.repeat(np.arange(256, dtype=np.uint8)[:, None], 3, axis=1)
    back = rgb(lab(greys)).astype(int)
    assert np.abs(back - greys).max() <= 1
    assert np.array_equal(back.min(axis=1), back.max(axis=1))


@given(PICTURES)
def test_colours_come_back_as_near_as_a_level_of_lab_is_wide(picture):
    again = lab(rgb(lab(picture))).astype(int)
    assert np.abs(again - lab(picture)).max() <= 3
    assert np.abs(rgb(lab(picture)).astype(int) - picture).mean() <= 4


def test_what_no_screen_can_show_is_clipped():
    assert rgb(np.array([255, 255, 255], np.uint8)).max() == 255
    assert rgb(np.array([0, 0, 0], np.uint8)).min() == 0


# histograms


def test_levels_are_spread_as_those_of_the_reference():
    levels, reference = np.array([0, 1, 2, 3], np.uint8), np.array([10, 20, 30, 40], np.uint8)
    assert match_histogram(levels, reference).tolist() == [10, 20, 30, 40]
    assert match_histogram(np.array([7, 7, 9, 9], np.uint8), reference).tolist() == [20, 20, 40, 40]
    assert match_histogram(levels, np.array([10, 10, 41, 41], np.uint8)).tolist() == [10, 10, 25, 41]


@given(LEVELS)
def test_a_reference_with_the_same_levels_changes_none(levels):
    assert np.array_equal(match_histogram(levels, np.tile(levels, 3)), levels)


@given(LEVELS, LEVELS)
def test_the_order_of_levels_stays_and_the_range_is_that_of_the_reference(levels, reference):
    matched = match_histogram(levels, reference)
    order = np.argsort(levels, kind="stable")
    assert (np.diff(matched[order].astype(int)) >= 0).all()
    assert reference.min() <= matched.min()
    assert matched.max() == reference.max()


# luminosity


@given(PICTURES)
def test_a_picture_keeps_its_own_luminosity_exactly(picture):
    assert np.array_equal(luminosity(picture, picture), picture)


@given(PICTURES, st.integers(0, 2**32))
def test_the_luminosity_is_that_of_the_light(colour, seed):
    light = np.random.default_rng(seed).integers(0, 256, colour.shape, dtype=np.uint8)
    assert np.abs((luminosity(colour, light) - light.astype(float)) @ WEIGHTS).max() <= 0.5 + 1e-3


def w3c(colour, light):
    """Compositing and Blending Level 1, 10.3, as it stands there, in shares of 1."""
    colour, light = np.array(colour) / 255, np.array(light) / 255
    lum = light @ WEIGHTS
    shifted = colour + (lum - colour @ WEIGHTS)
    low, high = shifted.min(), shifted.max()
    if low < 0:
        shifted = lum + (shifted - lum) * lum / (lum - low)
    if high > 1:
        shifted = lum + (shifted - lum) * (1 - lum) / (high - lum)
    return shifted * 255


@pytest.mark.parametrize("light", [(200, 200, 200), (10, 0, 30), (250, 255, 240), (90, 120, 20)])
@pytest.mark.parametrize("colour", [(255, 0, 0), (0, 0, 255), (20, 250, 60), (130, 120, 110)])
def test_luminosity_is_that_of_the_w3c(colour, light):
    blended = luminosity(np.array(colour, np.uint8), np.array(light, np.uint8))
    assert np.abs(blended - w3c(colour, light)).max() <= 0.5 + 1e-3


# the node


def test_no_amount_is_the_picture_itself():
    image = noise(6, 5)
    assert match_colour(image, noise(4, 4)) is image
    assert match_colour(image, noise(4, 4), 0.0) is image


def test_a_tint_goes_and_the_luminosity_stays():
    image = gradient()
    warm = tinted(image, 1.2, 1.0, 0.7)
    corrected = match_colour(warm, image, 1.0)

    def means(picture):
        return lab(picture.data[0].permute(1, 2, 0).numpy()).reshape(-1, 3).mean(axis=0)

    assert np.abs(means(warm) - means(image))[2] > 8
    assert np.abs(means(corrected) - means(image))[1:].max() < 2
    lum = [(part.data[0].permute(1, 2, 0).double().numpy() @ WEIGHTS) for part in (corrected, warm)]
    assert np.abs(lum[0] - lum[1]).max() <= 0.5 + 1e-3


def test_a_picture_with_the_colours_already_hardly_changes():
    image = gradient()
    assert (match_colour(image, image, 1.0).data.int() - image.data.int()).abs().max() <= 5


def test_the_amount_goes_straight_from_the_picture_to_the_corrected_one():
    warm, image = tinted(gradient(), 1.2, 1.0, 0.7), gradient()
    full = match_colour(warm, image, 1.0).data.double()
    part = match_colour(warm, image, 0.25).data.double()
    assert (part - (warm.data.double() * 0.75 + full * 0.25)).abs().max() <= 0.5 + 1e-3


@pytest.mark.parametrize("counts", [(3, 1), (1, 3), (3, 3)])
def test_one_reference_serves_a_batch_or_there_is_one_for_each(counts):
    image, reference = noise(9, 6, counts[0]), noise(5, 7, counts[1], seed=1)
    together = match_colour(image, reference, 0.8)
    for index in range(3):
        one, other = (pick(part, min(index, len(part.data) - 1)) for part in (image, reference))
        assert torch.equal(pick(together, index).data, match_colour(one, other, 0.8).data)


def test_batches_of_different_length_are_refused():
    with pytest.raises(ValueError, match="batches of 2 and 3"):
        match_colour(noise(4, 4, 2), noise(4, 4, 3), 1.0)


def test_no_node_writes_into_its_input():
    image, reference = noise(6, 5, 2), noise(4, 4)
    before = image.stamp(), reference.stamp(), image.identity(), reference.identity()
    match_colour(image, reference, 0.5)
    assert (image.stamp(), reference.stamp(), image.identity(), reference.identity()) == before


@pytest.mark.gpu
def test_a_node_works_where_its_input_lies():
    image, reference = noise(6, 5, 2), noise(4, 4)
    there = match_colour(image.move("cuda:0"), reference.move("cuda:0"), 0.5)
    assert there.place() == "cuda:0"
    assert torch.equal(there.data.cpu(), match_colour(image, reference, 0.5).data)
