"""Composed pictures are reproducible, and captions say what is in them."""

import re

import pytest
import torch

from pocket.training import palette
from pocket.training.picture import compose, placed, resampling, stylise
from pocket.training.scene import FULL, LEAN, MOST, SQUARE, Canvas, Recipe, draw
from pocket.training.source import Source
from pocket.training.style import STYLES, blueprint

BALLS = {
    "red": (255, 0, 0),
    "green": (0, 128, 0),
    "blue": (0, 0, 255),
    "yellow": (255, 255, 0),
    "purple": (128, 0, 128),
    "orange": (255, 165, 0),
    "cyan": (0, 255, 255),
    "navy": (0, 0, 128),
}


def captions(source, batch):
    return [source.author.phrases.caption(slots) for slots in batch.slots.tolist()]


def painted(source, number, count=48, canvas=SQUARE):
    """A batch and its pictures before styles, from 0 to 1."""
    batch = source.batch(number, count, canvas)
    return batch, compose(batch.scenes, source._sprites)


def centroid(picture, name):
    """Where the pixels of a ball's colour are, as x and y; None where there are none."""
    colour = torch.tensor(BALLS[name])[:, None, None] / 255
    rows, columns = ((picture - colour).abs().amax(0) < 0.02).nonzero(as_tuple=True)
    return (columns.float().mean().item(), rows.float().mean().item()) if len(rows) > 20 else None


def test_the_same_number_draws_the_same_batch(source, concepts, sprites, tokenizer):
    again = Source(concepts, sprites, tokenizer).batch(3, 24)
    batch = source.batch(3, 24)
    assert torch.equal(batch.pictures, again.pictures)
    assert torch.equal(batch.ids, again.ids)


def test_another_number_or_seed_draws_another_batch(source, concepts, sprites, tokenizer):
    other = Source(concepts, sprites, tokenizer, seed=1).batch(3, 24)
    assert not torch.equal(source.batch(3, 24).pictures, other.pictures)
    assert not torch.equal(source.batch(3, 24).pictures, source.batch(4, 24).pictures)


@pytest.mark.parametrize("canvas", [*FULL.canvases, *LEAN.canvases])
def test_pictures_have_the_canvas_size_and_range(source, canvas):
    pictures = source.batch(0, 24, canvas).pictures
    assert pictures.shape == (24, 3, canvas.height, canvas.width)
    assert -1 <= pictures.min() <= pictures.max() <= 1


def test_what_is_said_to_be_left_is_left(source):
    seen = 0
    for number in range(12):
        batch, pictures = painted(source, number)
        for said, picture in zip(captions(source, batch), pictures, strict=True):
            found = re.search(r"(\w+) ball on the left and (?:an? )?(\w+) ball on the right", said)
            if found and None not in (ends := [centroid(picture, name) for name in found.groups()]):
                assert ends[0][0] < ends[1][0], said
                seen += 1
    assert seen > 10


def test_what_is_said_to_be_above_is_above(source):
    seen = 0
    for number in range(12):
        batch, pictures = painted(source, number, canvas=Canvas(128, 192))
        for said, picture in zip(captions(source, batch), pictures, strict=True):
            found = re.search(r"(\w+) ball above (?:an? )?(\w+) ball(?! above)", said)
            if found and None not in (ends := [centroid(picture, name) for name in found.groups()]):
                assert ends[0][1] < ends[1][1], said
                seen += 1
    assert seen > 10


def test_a_single_object_said_to_be_on_one_side_is_there(source):
    seen = 0
    for number in range(12):
        batch, pictures = painted(source, number, canvas=Canvas(192, 128))
        for said, picture in zip(captions(source, batch), pictures, strict=True):
            found = re.match(r"(?:an? )?(\w+) ball on the (left|right)(?! and)", said)
            if found and (middle := centroid(picture, found[1])):
                assert (middle[0] < 96) == (found[2] == "left"), said
                seen += 1
    assert seen > 10


def test_what_is_said_of_a_plain_background_is_so(source):
    seen = 0
    for number in range(4):
        batch, pictures = painted(source, number)
        for said, picture in zip(captions(source, batch), pictures, strict=True):
            found = re.search(r"on an? ((?:light |dark )?\w+) background", said)
            if found and found[1] in palette.COLOURS:
                shade = torch.tensor(palette.COLOURS[found[1]]) / 255
                corners = picture[:, [0, 0, -1, -1], [0, -1, 0, -1]]
                assert (corners - shade[:, None]).abs().amax(0).median() < 2 * palette.JITTER, said
                seen += 1
    assert seen > 20


def test_every_object_that_is_named_is_shown(source):
    batch, pictures = painted(source, 5)
    for said, picture in zip(captions(source, batch), pictures, strict=True):
        for name in re.findall(r"(\w+) ball", said):
            assert centroid(picture, name), said


def test_no_concept_is_shown_on_the_colour_that_is_held_out_for_it(source):
    for number in range(8):
        scenes = source.batch(number, 96).scenes
        forbidden = palette.held_out(scenes.concepts)
        shown = (forbidden[:, :, None] == scenes.colours[:, None]).any(2)
        assert not (shown & (scenes.concepts >= 0)).any()


def test_reserved_concepts_are_only_in_the_pictures_held_out(source, concepts):
    drawn = torch.cat([source.batch(number, 96).scenes.concepts.flatten() for number in range(4)])
    assert set(drawn.tolist()) == {-1, *range(7)}
    assert centroid((source.held_out(4)[0] + 1) / 2, "navy")


def test_a_limit_keeps_to_the_most_important_concepts(source):
    assert source.limit(4) == 4
    assert source.batch(0, 96).scenes.concepts.max() == 3


def test_what_may_not_be_mirrored_is_not(source):
    scenes = source.batch(0, 96).scenes
    assert scenes.flipped[scenes.concepts == 2].any()
    assert not scenes.flipped[scenes.concepts == 3].any()


def test_objects_in_one_picture_differ():
    generator = torch.Generator().manual_seed(0)
    crowded = Recipe(crowds=(0, 0, 1))
    scenes = draw(50, SQUARE, torch.ones(5), torch.zeros(5, dtype=torch.bool), generator, recipe=crowded)
    assert all(len(set(row)) == MOST for row in scenes.concepts.tolist())


def test_lean_scenes_stand_in_the_middle_or_leave_room_for_another():
    generator = torch.Generator().manual_seed(0)
    scenes = draw(
        400, next(iter(LEAN.canvases)), torch.ones(5), torch.zeros(5, dtype=torch.bool), generator, recipe=LEAN
    )
    across = scenes.centres[: scenes.starts[1], 0, 0]
    beside = (across - 64).abs() > 25
    assert 0.05 < beside.float().mean() < 0.2
    assert ((across - 64).abs()[~beside] < 4).all()
    assert not scenes.stacked.any()


def test_lean_batches_seldom_have_a_style():
    generator = torch.Generator().manual_seed(0)
    scenes = draw(360, SQUARE, torch.ones(5), torch.zeros(5, dtype=torch.bool), generator, recipe=LEAN)
    assert (scenes.styles < len(STYLES)).sum() == 360 * len(STYLES) / LEAN.turn


def test_captions_put_together_are_those_the_tokenizer_makes(source, tokenizer):
    batch = source.batch(1, 96)
    expected = tokenizer(captions(source, batch), padding="max_length", max_length=77, truncation=True)["input_ids"]
    assert batch.ids.tolist() == expected


def test_some_captions_are_empty_for_guidance(source):
    empty = [said == "" for number in range(8) for said in captions(source, source.batch(number, 96))]
    assert 0.05 < sum(empty) / len(empty) < 0.15


def test_each_style_has_its_turn_and_is_named(source):
    batch = source.batch(2, 96)
    for said, style in zip(captions(source, batch), batch.scenes.styles.tolist(), strict=True):
        named = [name for name in STYLES if name in said]
        assert named in ([], [*STYLES, ""][style : style + 1])
    assert set(batch.scenes.styles.tolist()) == {0, 1, 2, 3}


def test_a_line_drawing_is_gray_and_a_negative_is_the_opposite(source):
    _, plain = painted(source, 0)
    styled = stylise(plain.clone())
    assert torch.equal(styled[0].amax(0), styled[0].amin(0))
    assert torch.allclose(styled[2], 1 - plain[2])
    assert torch.equal(styled[3:12], plain[3:12])


def test_a_blueprint_is_mostly_blue(source):
    _, plain = painted(source, 0)
    red, _, blue = blueprint(plain).mean((0, 2, 3))
    assert blue > red + 0.3


def test_shrinking_keeps_brightness_and_aliases_nothing():
    stripes = torch.arange(64).remainder(2).float().expand(1, 1, 64, 64)
    small = placed(stripes, torch.tensor([[8.0, 8.0]]), torch.tensor([16.0]), torch.tensor([False]), (16, 16))
    assert small[..., 2:-2, 2:-2].sub(0.5).abs().max() < 0.05


@pytest.mark.parametrize("size", [7.0, 32.0, 100.0])
def test_weights_of_pixels_inside_sum_to_one_and_outside_to_nothing(size):
    weights = resampling(torch.tensor([64.0]), torch.tensor([size]), 128, 32)[0].sum(1)
    distance = (torch.arange(128) + 0.5 - 64).abs()
    assert torch.allclose(weights[distance < size / 2 - size / 32 - 1], torch.tensor(1.0))
    assert not weights[distance > size / 2 + size / 32 + 1].any()
