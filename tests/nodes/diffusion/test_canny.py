"""Canny's edges, against an implementation that visits one pixel after another."""

from math import atan2, degrees, hypot

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nodes.diffusion.canny import edges


def clamped(levels, y, x):
    """A level, the border repeated."""
    return levels[min(max(y, 0), len(levels) - 1)][min(max(x, 0), len(levels[0]) - 1)]


def sobel(levels, y, x):
    """(dx, dy) at a pixel."""
    near = [[float(clamped(levels, y + down, x + across)) for across in (-1, 0, 1)] for down in (-1, 0, 1)]
    (a, b, c), (d, _, f), (g, h, i) = near
    return c + 2 * f + i - a - 2 * d - g, g + 2 * h + i - a - 2 * b - c


def slow(gradients, length, low, high):
    """Edges of a grid of gradients, as sets of pixels grown one by one."""
    rows, columns = len(gradients), len(gradients[0])
    sizes = {(y, x): length(*gradients[y][x]) for y in range(rows) for x in range(columns)}
    kept = set()
    for (y, x), size in sizes.items():
        dx, dy = gradients[y][x]
        turned = round(degrees(atan2(dy, dx)) / 45) % 4
        down, across = ((0, 1), (1, 1), (1, 0), (1, -1))[turned]
        before, after = sizes.get((y - down, x - across), 0), sizes.get((y + down, x + across), 0)
        if size > low and size > before and (size > after or (turned in (0, 2) and size == after)):
            kept.add((y, x))
    front = [place for place in kept if sizes[place] > high]
    found = set(front)
    while front:
        y, x = front.pop()
        near = {(y + down, x + across) for down in (-1, 0, 1) for across in (-1, 0, 1)} & kept - found
        found |= near
        front += near
    return [[(y, x) in found for x in range(columns)] for y in range(rows)]


def slow_a1111(picture, low, high):
    channels = picture.tolist()
    rows, columns = picture.shape[1:]

    def strongest(y, x):
        return max((sobel(levels, y, x) for levels in channels), key=lambda pair: abs(pair[0]) + abs(pair[1]))

    gradients = [[strongest(y, x) for x in range(columns)] for y in range(rows)]
    return slow(gradients, lambda dx, dy: abs(dx) + abs(dy), low, high)


def slow_comfy(picture, low, high):
    grey = np.tensordot([0.299, 0.587, 0.114], picture.numpy().astype(np.float64), 1)
    bell = np.exp(-np.array([4, 1, 0, 1, 4]) / 2)
    edged = np.pad(grey, 2, mode="reflect")
    rows, columns = grey.shape
    kernel = np.outer(bell, bell) / bell.sum() ** 2
    blurred = [[(edged[y : y + 5, x : x + 5] * kernel).sum() for x in range(columns)] for y in range(rows)]
    gradients = [[sobel(blurred, y, x) for x in range(columns)] for y in range(rows)]
    return slow(gradients, hypot, low, high)


def shapes(seed, height=24, width=20):
    """Overlapping boxes of random colours, and some noise: hard edges, soft ones and corners."""
    drawn = np.random.default_rng(seed)
    picture = np.full((3, height, width), 128.0)
    for _ in range(4):
        y, x = drawn.integers(0, height - 4), drawn.integers(0, width - 4)
        picture[:, y : y + drawn.integers(3, 12), x : x + drawn.integers(3, 12)] = drawn.integers(0, 256, (3, 1, 1))
    return torch.from_numpy((picture + drawn.normal(0, 4, picture.shape)).clip(0, 255).astype(np.uint8))


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("convention", "reference"), [("a1111", slow_a1111), ("comfy", slow_comfy)])
def test_it_finds_what_a_walk_over_the_pixels_finds(convention, reference, seed):
    picture = shapes(seed)
    expected = reference(picture, 40, 90)
    assert 30 < sum(map(sum, expected)) < 400
    assert edges(picture[None], 40, 90, convention)[0, 0].tolist() == expected


def split(level_left, level_right, at=8, width=16, height=12):
    picture = torch.full((1, 3, height, width), level_left, dtype=torch.uint8)
    picture[..., at:] = level_right
    return picture


@pytest.mark.parametrize("convention", ["a1111", "comfy"])
def test_a_step_gives_one_line_on_its_left_side(convention):
    found = edges(split(0, 255), 100, 200, convention)[0, 0]
    assert found.nonzero()[:, 1].unique().tolist() == [7]
    assert bool(found[:, 7].all())
    turned = edges(split(0, 255).transpose(2, 3).contiguous(), 100, 200, convention)[0, 0]
    assert torch.equal(turned, found.T)


def test_a_step_of_one_level_counts_4_and_must_exceed_the_threshold():
    assert bool(edges(split(100, 126), 103, 103).any())
    assert not bool(edges(split(100, 126), 104, 104).any())


def test_the_channel_that_changes_most_counts_alone():
    picture = split(0, 0)
    picture[:, 2, :, 8:] = 60
    picture[:, 0, :, 8:] = 50
    assert bool(edges(picture, 239, 239).any())
    assert not bool(edges(picture, 240, 240).any())


def test_what_is_above_the_lower_threshold_stays_where_it_leads_to_what_is_above_the_higher():
    fading = torch.linspace(60, 10, 40).round().to(torch.uint8)
    picture = torch.zeros(1, 3, 40, 16, dtype=torch.uint8)
    picture[..., 8:] = fading[:, None]
    line = edges(picture, 80, 200)[0, 0].any(1)
    assert line[:8].all()
    assert 20 < int(line.sum()) < 36
    assert not line[-2:].any()
    assert not bool(edges(picture[..., 16:, :], 80, 200).any())


@given(st.integers(1, 6), st.integers(1, 6), st.sampled_from(["a1111", "comfy"]))
def test_the_smallest_pictures_have_edges_of_their_size(height, width, convention):
    picture = torch.arange(3 * height * width, dtype=torch.uint8).view(1, 3, height, width) * 31
    assert edges(picture, 0, 0, convention).shape == (1, 1, height, width)


def test_a_picture_does_not_depend_on_its_batch():
    batch = torch.stack([shapes(seed) for seed in range(3)])
    for convention in ("a1111", "comfy"):
        together = edges(batch, 100, 200, convention)
        assert torch.equal(together[1:2], edges(batch[1:2], 100, 200, convention))
