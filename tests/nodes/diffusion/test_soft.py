"""Soft inpainting: the blend of each call, and which pixels are shown; held against loops written from the formulas."""

import math

import pytest
import torch

from nodes.diffusion.denoise import Denoiser
from nodes.diffusion.drive import drive
from nodes.diffusion.guidance import Guidance, guided
from nodes.diffusion.keep import Repaint
from nodes.diffusion.noise import draw
from nodes.diffusion.sampler import dpmpp_2m
from nodes.diffusion.schedule import karras
from nodes.diffusion.soft import SoftRepaint, changed, percentiles


def random(*shape, seed=0):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def slow_blend(kept, new, level, sigma, *, bias, preservation, contrast):
    """One cell: lists of a channel's values each."""
    share = level ** (preservation * sigma**bias)
    mixed = [a * (1 - share) + b * share for a, b in zip(kept, new, strict=True)]
    old, fresh, size = (math.sqrt(sum(value**2 for value in values)) for values in (kept, new, mixed))
    wanted = (old**contrast * (1 - share) + fresh**contrast * share) ** (1 / contrast)
    return [value * wanted / (size + 1e-5) for value in mixed]


@pytest.mark.parametrize("sigma", [14.6, 1.3, 0.03])
@pytest.mark.parametrize("options", [(1.0, 0.5, 4.0), (0.0, 2.0, 1.0), (2.5, 0.1, 32.0)])
def test_the_blend_is_the_formula_in_each_cell(sigma, options):
    settings = dict(zip(("bias", "preservation", "contrast"), options, strict=True))
    kept, new = draw([1], (4, 3, 2)), draw([2], (4, 3, 2)) * 2
    mask = random(1, 1, 3, 2).float()
    blended = SoftRepaint(mask, kept, **settings).blend(new, sigma)
    assert blended.dtype == torch.float32
    for y in range(3):
        for x in range(2):
            cells = (latent[0, :, y, x].tolist() for latent in (kept, new))
            slow = slow_blend(*cells, mask[0, 0, y, x].item(), sigma, **settings)
            torch.testing.assert_close(blended[0, :, y, x], torch.tensor(slow), rtol=1e-5, atol=1e-6)


def test_a_grey_mask_keeps_more_at_high_noise_than_at_low():
    kept, new = torch.full((1, 4, 1, 1), 1.0), torch.full((1, 4, 1, 1), 3.0)
    soft = SoftRepaint(torch.full((1, 1, 1, 1), 0.5), kept, contrast=1.0)
    values = [soft.blend(new, sigma)[0, 0, 0, 0].item() for sigma in (20.0, 2.0, 0.02)]
    torch.testing.assert_close(values, [1.0 + 2 * 0.5**10, 2.0, 1.0 + 2 * 0.5**0.01], rtol=1e-4, atol=0)


def sampled(unet, table, repaint, start):
    sigmas = karras(table, 8).tolist()[3:]
    words = torch.zeros(1, 77, unet.config.cross_attention_dim)
    run = guided(dpmpp_2m(start + draw([7], (4, 8, 8)) * sigmas[0], sigmas, None), Guidance(words, repaint=repaint))
    return drive([run], Denoiser(unet, table))[0]


def test_a_mask_of_ones_is_plain_sampling(unet, table):
    start = draw([5], (4, 8, 8))
    soft = sampled(unet, table, SoftRepaint(torch.ones(1, 1, 8, 8), start), start)
    torch.testing.assert_close(soft, sampled(unet, table, None, start), rtol=1e-3, atol=1e-3)


def test_a_mask_of_zeros_keeps_the_latent(unet, table):
    start = draw([5], (4, 8, 8))
    torch.testing.assert_close(
        sampled(unet, table, SoftRepaint(torch.zeros(1, 1, 8, 8), start), start), start, rtol=1e-4, atol=1e-4
    )


def test_a_grey_mask_ends_between_plain_sampling_and_the_latent_without_a_last_blend(unet, table):
    start, grey = draw([5], (4, 8, 8)), torch.full((1, 1, 8, 8), 0.5)
    plain, soft = (sampled(unet, table, keeper, start) for keeper in (None, SoftRepaint(grey, start)))
    mixed = sampled(unet, table, Repaint(grey, start), start)
    assert 0.05 < (soft - start).norm() / (plain - start).norm() < 0.95
    assert (soft - mixed).norm() / mixed.norm() > 0.05
    assert torch.equal(SoftRepaint(grey, start).finish(plain), plain)


def slow_percentiles(values, low, high):
    """The average between two weighted percentiles around each cell of a list of rows."""

    def weight(squared):
        end = math.exp(-9 / 1.5**2)
        return (math.exp(-squared / 1.5**2) - end) / (1 - end)

    height, width = len(values), len(values[0])

    def around(y, x):
        seen = sorted(
            (values[row][column], weight((row - y) ** 2 + (column - x) ** 2))
            for row in range(max(y - 2, 0), min(y + 3, height))
            for column in range(max(x - 2, 0), min(x + 3, width))
        )
        total = sum(each for _, each in seen)
        start, end = low * total, high * total
        if end - start < 1:
            middle = (start + end) / 2
            start = min(max(middle - 0.5, 0), total - 1)
            end = start + 1
        gathered, share, place = 0.0, 0.0, 0.0
        for value, each in seen:
            part = max(min(place + each, end) - max(place, start), 0)
            gathered, share, place = gathered + value * part, share + part, place + each
        return gathered / share

    return [[around(y, x) for x in range(width)] for y in range(height)]


@pytest.mark.parametrize(("low", "high"), [(0.9, 1.0), (0.25, 0.75), (0.0, 1.0), (0.5, 0.5)])
@pytest.mark.parametrize("size", [(7, 6), (2, 3), (1, 1)])
def test_the_percentile_filter_is_the_loop(low, high, size):
    values = random(2, 1, *size)
    slow = torch.tensor([slow_percentiles(rows[0].tolist(), low, high) for rows in values], dtype=torch.float64)
    torch.testing.assert_close(percentiles(values, low, high), slow[:, None])


def test_the_percentile_filter_ignores_a_lonely_outlier_and_keeps_a_plain_ground():
    values = torch.zeros(1, 1, 9, 9, dtype=torch.float64)
    values[0, 0, 4, 4] = 5
    assert percentiles(values, 0.25, 0.75).max() == 0
    torch.testing.assert_close(percentiles(values + 2, 0.9, 1.0)[0, 0, 0], torch.full((9,), 2.0, dtype=torch.float64))


@pytest.mark.parametrize(
    ("preservation", "influence", "threshold", "contrast"), [(0.5, 0.0, 0.5, 2.0), (2.0, 0.3, 1.0, 6.0), (1, 1, 0.2, 1)]
)
def test_what_is_shown_is_the_formula(preservation, influence, threshold, contrast):
    before, after, mask = draw([1], (4, 5, 4)), draw([2], (4, 5, 4)), random(1, 1, 5, 4)
    shown = changed(
        before, after, mask, preservation=preservation, influence=influence, threshold=threshold, contrast=contrast
    )
    distance = [[math.dist(before[0, :, y, x], after[0, :, y, x]) for x in range(4)] for y in range(5)]
    distance = slow_percentiles(slow_percentiles(distance, 0.9, 1.0), 0.25, 0.75)
    for y in range(5):
        for x in range(4):
            kept = 0.5 * (1 - influence) + (1 - mask[0, 0, y, x].item() ** (preservation / 2)) * influence
            half = threshold * kept / (1.00001 - kept)
            same = 1 / (1 + (distance[y][x] / half) ** contrast)
            slow = 1 - same**3 * (same * (same * 6 - 15) + 10)
            assert shown[0, 0, y, x].item() == pytest.approx(slow, rel=1e-5, abs=1e-9)


def test_a_change_as_large_as_the_threshold_is_shown_by_half():
    before = torch.zeros(1, 4, 6, 6)
    shown = changed(
        before, before + 0.25, torch.ones(1, 1, 6, 6), preservation=0.5, influence=0, threshold=0.5, contrast=2
    )
    torch.testing.assert_close(shown, torch.full((1, 1, 6, 6), 0.5, dtype=torch.float64), rtol=1e-3, atol=0)


def test_where_nothing_changed_the_original_is_shown_even_without_a_threshold():
    before = draw([1], (4, 6, 6))
    options = {"preservation": 0.5, "influence": 1.0, "threshold": 0.0, "contrast": 2.0}
    assert changed(before, before, torch.ones(1, 1, 6, 6), **options).max() == 0
    assert changed(before, before + 1, torch.ones(1, 1, 6, 6), **options).min() == 1
