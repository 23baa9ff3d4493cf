"""Prompts with places over a whole run, beside a plain reading of ComfyUI's formula: sum of pred * w / sum of w."""

from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from pipelines import SEED, STEPS, TABLE, Nodes, error, levels, plain

from nodes import conditioning
from nodes.diffusion.noise import draw
from nodes.types import Mask

pytestmark = pytest.mark.filterwarnings("ignore:__array_:DeprecationWarning")  # diffusers and numpy 2
WIDTH, HEIGHT, CFG = 256, 192, 4.0
COLUMNS, ROWS = WIDTH // 8, HEIGHT // 8
NOISE = draw([SEED], (4, ROWS, COLUMNS))
EVERYWHERE = (0, 0, COLUMNS, ROWS)
SPOT = np.zeros((HEIGHT, WIDTH), dtype=np.uint8)
SPOT[40:150, 96:230] = 255
SPOT[80:110, 120:200] = 100


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("models")


@pytest.fixture(scope="module")
def unet(root):
    return plain(root / "one").unet


@pytest.fixture(scope="module")
def nodes(root, unet):
    return Nodes(root)


@pytest.fixture(scope="module")
def parts(nodes):
    return nodes.load("one")


@pytest.fixture(scope="module")
def words(nodes, parts):
    """Prompts by their text."""
    return {said: nodes.words(parts, said) for said in ("a fox", "snow", "a cat", "blurred", "")}


def ramp(begin, length, whole, reach):
    """Shares along one side: even steps over `reach` cells at an end within the picture."""
    shares = np.ones(length)
    if begin > 0:
        shares *= np.minimum((np.arange(length) + 1) / reach, 1)
    if begin + length < whole:
        shares *= np.minimum((np.arange(length) + 1) / reach, 1)[::-1]
    return shares


def feathered(box):
    """How much a prompt counts in each cell of its area: over 8 cells, or a quarter of the shorter side."""
    x, y, width, height = box
    tall, wide = min(8, height // 4), min(8, height // 4, width // 4)
    return torch.from_numpy(np.outer(ramp(y, height, ROWS, tall), ramp(x, width, COLUMNS, wide))).float()


def scaled(levels):
    """A mask on the latent's cells: between the two pixels on both sides of each cell's middle."""
    rows, columns = (np.arange(count) * 8 + 3 for count in (ROWS, COLUMNS))
    near = [levels[np.ix_(rows + down, columns + right)].astype(float) for down in (0, 1) for right in (0, 1)]
    return torch.from_numpy(sum(near) / 4 / 255).float()


def everywhere(words, strength=1.0):
    return words, EVERYWHERE, torch.full((ROWS, COLUMNS), strength)


def in_area(words, box, strength=1.0):
    return words, box, feathered(box) * strength


def under(words, box=EVERYWHERE, strength=1.0):
    x, y, width, height = box
    return words, box, scaled(SPOT)[y : y + height, x : x + width] * strength


def mean(unet, entries, x, sigma):
    """What is predicted under all entries: each is asked for its box alone."""
    total, weights = torch.zeros_like(x), torch.full_like(x, 1e-37)
    for words, (left, top, width, height), share in entries:
        box = (..., slice(top, top + height), slice(left, left + width))
        seen = x[box] / (sigma**2 + 1) ** 0.5
        with torch.no_grad():
            epsilon = unet(seen, TABLE.timestep(sigma), words.data).sample
        total[box] += (x[box] - sigma * epsilon) * share
        weights[box] += share
    return total / weights


def euler(unet, positive, negative, cfg=CFG):
    """A whole run from noise."""
    sigmas = levels()
    x = NOISE * sigmas[0]
    for sigma, following in pairwise(sigmas):
        guided = without = mean(unet, negative, x, sigma) if negative else 0
        wanted = mean(unet, positive, x, sigma)
        guided = without + cfg * (wanted - without) if negative else wanted
        x = x + (x - guided) / sigma * (following - sigma)
    return x


@pytest.fixture(scope="module")
def drawn(nodes, parts):
    """Our run."""

    def run(positive, negative, **more):
        start = nodes.nothing(parts, WIDTH, HEIGHT)
        return nodes.sample(parts, positive, negative, latent=start, **{"cfg": CFG} | more)

    return run


def test_an_area_beside_a_prompt_that_counts_everywhere(unet, words, drawn):
    fox, snow, blurred = words["a fox"], words["snow"], words["blurred"]
    place = {"x": 64, "y": 48, "width": 128, "height": 96}
    ours = drawn(conditioning.combine(snow, conditioning.area(fox, **place)), blurred)
    theirs = euler(unet, [everywhere(snow), in_area(fox, (8, 6, 16, 12))], [everywhere(blurred)])
    assert error(ours, theirs) < 1e-4
    assert error(drawn(conditioning.combine(snow, fox), blurred), theirs) > 1e-2


def test_areas_that_overlap_with_strengths_of_their_own(unet, words, drawn):
    """Three prompts, one of them at the picture's edge, by pixels that are no whole cells and by shares."""
    fox, snow, cat, blurred = (words[said] for said in ("a fox", "snow", "a cat", "blurred"))
    left = conditioning.area(fox, x=0, y=0, width=0.625, height=1, unit="share", strength=0.7)
    right = conditioning.area(cat, x=93, y=30, width=163, height=162, strength=1.6)
    whole = conditioning.area(snow, strength=0.4)
    ours = drawn(conditioning.combine(conditioning.combine(left, right), whole, 1 / 3), blurred)
    theirs = [in_area(fox, (0, 0, 20, 24), 0.7), in_area(cat, (11, 3, 20, 20), 1.6), everywhere(snow, 0.4)]
    assert error(ours, euler(unet, theirs, [everywhere(blurred)])) < 1e-4


def test_areas_that_leave_a_part_to_nobody(unet, words, drawn):
    fox, cat, blurred = words["a fox"], words["a cat"], words["blurred"]
    two = conditioning.combine(
        conditioning.area(fox, width=96, height=192), conditioning.area(cat, x=160, width=96, height=192)
    )
    theirs = euler(unet, [in_area(fox, (0, 0, 12, 24)), in_area(cat, (20, 0, 12, 24))], [everywhere(blurred)])
    assert error(drawn(two, blurred), theirs) < 1e-4


@pytest.fixture(scope="module")
def told(nodes, parts, words):
    """A pair of prompts, and what stands against them."""
    return lambda *pair: (*(nodes.words(parts, each) for each in pair), words["blurred"])


LONG = ", ".join(["a fox in the snow, under a tree"] * 12)
"""Two chunks of tokens."""


def filled(states, tokens):
    """States cut, or filled up with zeros, to so many tokens."""
    made = torch.zeros(1, tokens, states.shape[2])
    made[:, : min(tokens, states.shape[1])] = states[:, :tokens]
    return made


def said(states):
    """A prompt that means these states."""
    return SimpleNamespace(data=states)


@pytest.mark.parametrize(("to", "of"), [("a fox", "snow"), ("a fox", LONG), (LONG, "snow")])
def test_an_average_is_one_prompt_of_the_length_of_the_first(told, unet, drawn, to, of):
    """Here cond_to * w + cond_from * (1 - w), for w = 0.7."""
    first, second, blurred = told(to, of)
    mixed = first.data * 0.7 + filled(second.data, first.data.shape[1]) * 0.3
    theirs = euler(unet, [everywhere(said(mixed))], [everywhere(blurred)])
    assert error(drawn(conditioning.average(first, second, 0.3), blurred), theirs) < 1e-4
    assert error(drawn(first, blurred), theirs) > 1e-3


@pytest.mark.parametrize(("to", "of"), [("a fox", "snow"), ("a fox", LONG)])
def test_what_is_joined_is_one_prompt_of_all_tokens(told, unet, drawn, to, of):
    first, second, blurred = told(to, of)
    joined = torch.cat([first.data, second.data], dim=1)
    theirs = euler(unet, [everywhere(said(joined))], [everywhere(blurred)])
    assert error(drawn(conditioning.concat(first, second), blurred), theirs) < 1e-4
    assert error(drawn(first, blurred), theirs) > 1e-3


def test_no_meaning_is_states_of_zeros(unet, words, drawn):
    zeros = said(torch.zeros_like(words["blurred"].data))
    theirs = euler(unet, [everywhere(words["a fox"])], [everywhere(zeros)])
    assert error(drawn(words["a fox"], conditioning.zero(words["blurred"])), theirs) < 1e-4
    assert error(drawn(words["a fox"], words["blurred"]), theirs) > 1e-3


def test_what_is_mixed_or_joined_keeps_the_places_of_the_first(unet, words, drawn):
    """All three at once, an average in an area, beside two that are joined and a negative without meaning."""
    fox, snow, cat, blurred = (words[each] for each in ("a fox", "snow", "a cat", "blurred"))
    place = conditioning.area(fox, x=64, y=48, width=128, height=96, strength=1.4)
    elsewhere = conditioning.area(snow, x=128, y=96, width=128, height=96)
    ours = conditioning.combine(
        conditioning.combine(conditioning.average(place, elsewhere, 0.4), conditioning.concat(snow, elsewhere)),
        cat,
        1 / 3,
    )
    mixed, joined = said(fox.data * 0.6 + snow.data * 0.4), said(torch.cat([snow.data, snow.data], dim=1))
    positive = [in_area(mixed, (8, 6, 16, 12), 1.4), everywhere(joined), everywhere(cat)]
    theirs = euler(unet, positive, [everywhere(said(torch.zeros_like(blurred.data)))])
    assert error(drawn(ours, conditioning.zero(blurred)), theirs) < 1e-4


@pytest.mark.parametrize("bounds", [False, True])
def test_a_mask_with_greys(unet, words, drawn, bounds):
    fox, snow, blurred = words["a fox"], words["snow"], words["blurred"]
    spot = Mask(torch.from_numpy(SPOT)[None, None])
    ours = drawn(conditioning.combine(snow, conditioning.mask(fox, spot, strength=0.8, bounds=bounds)), blurred)
    box = (12, 5, 17, 14) if bounds else EVERYWHERE
    theirs = euler(unet, [everywhere(snow), under(fox, box, 0.8)], [everywhere(blurred)])
    assert error(ours, theirs) < 1e-4


def test_negative_prompts_have_places_too(unet, words, drawn):
    fox, blurred, cat = words["a fox"], words["blurred"], words["a cat"]
    spot = Mask(torch.from_numpy(SPOT)[None, None])
    negative = conditioning.combine(blurred, conditioning.mask(cat, spot))
    theirs = euler(unet, [everywhere(fox)], [everywhere(blurred), under(cat)])
    assert error(drawn(fox, negative), theirs) < 1e-4
    assert error(drawn(fox, blurred), theirs) > 1e-3


def test_without_guidance_the_negative_has_no_say(unet, words, drawn):
    fox, snow = words["a fox"], words["snow"]
    placed = conditioning.combine(snow, conditioning.area(fox, x=64, y=48, width=128, height=96))
    theirs = euler(unet, [everywhere(snow), in_area(fox, (8, 6, 16, 12))], [], cfg=1)
    assert error(drawn(placed, None, cfg=1.0), theirs) < 1e-4


def test_a_prompt_counts_in_its_span_alone(unet, words, drawn):
    """By timesteps: the first half of the way down is down to timestep 499.5."""
    fox, snow, cat, blurred = (words[said] for said in ("a fox", "snow", "a cat", "blurred"))
    early = conditioning.span(conditioning.area(fox, x=64, y=48, width=128, height=96), end=0.5)
    late = conditioning.span(conditioning.area(cat, width=128, height=96), start=0.5)
    ours = drawn(conditioning.combine(conditioning.combine(early, late), snow, 1 / 3), blurred)
    middle = TABLE.sigma(999 / 2)
    sigmas, x = levels(), NOISE * levels()[0]
    assert sigmas[0] > middle > sigmas[STEPS - 1]
    for sigma, following in pairwise(sigmas):
        own = in_area(fox, (8, 6, 16, 12)) if sigma >= middle else in_area(cat, (0, 0, 16, 12))
        without = mean(unet, [everywhere(blurred)], x, sigma)
        guided = without + CFG * (mean(unet, [own, everywhere(snow)], x, sigma) - without)
        x = x + (x - guided) / sigma * (following - sigma)
    assert error(ours, x) < 1e-4
