from itertools import product

import numpy as np
import PIL.Image
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.socket import Int
from nodes.fit import fit
from nodes.image import batch, pick
from nodes.inpaint import aligned, bounds, content, expanded, frame, overlay, padded, paste, region
from nodes.mask import blur, invert, rectangle
from nodes.types import Image, Mask

EDGES = ["a1111", "outside", "across", "inside"]
AREAS = ["whole", "masked"]


def noise(width, height, count=1, seed=0):
    levels = np.random.default_rng(seed).integers(0, 256, (count, 3, height, width), dtype=np.uint8)
    return Image(torch.from_numpy(levels))


def flat(level, width, height):
    return Image(torch.full((1, 3, height, width), level, dtype=torch.uint8))


def box(width, height, sides):
    x1, y1, x2, y2 = sides
    return rectangle(width, height, x=x1, y=y1, w=x2 - x1, h=y2 - y1)


def levels(*row):
    return Mask(torch.tensor(row, dtype=torch.uint8).reshape(1, 1, 1, -1))


def place(framed):
    return {"x": framed.x.value, "y": framed.y.value, "width": framed.width.value, "height": framed.height.value}


def pasted(framed, over):
    return paste(framed.base, over, framed.overlay, **place(framed))


def blank(width, height):
    return Mask(torch.zeros(1, 1, height, width, dtype=torch.uint8))


@st.composite
def cases(draw):
    """A picture, a mask with a few grey boxes, and everything that a frame may be asked for."""
    width, height = draw(st.integers(1, 40)), draw(st.integers(1, 40))
    mask = torch.zeros(draw(st.integers(1, 2)), 1, height, width, dtype=torch.uint8)
    for _ in range(draw(st.integers(0, 3))):
        x, y = draw(st.integers(0, width - 1)), draw(st.integers(0, height - 1))
        w, h = draw(st.integers(1, 20)), draw(st.integers(1, 20))
        mask[draw(st.integers(0, len(mask) - 1)), 0, y : y + h, x : x + w] = draw(st.sampled_from([1, 90, 128, 255]))
    asked = {
        "width": draw(st.integers(1, 48)),
        "height": draw(st.integers(1, 48)),
        "padding": draw(st.integers(0, 12)),
        "blur": draw(st.sampled_from([0.0, 0.7, 2.0, 6.0])),
        "mode": draw(st.sampled_from(["stretch", "crop", "fill", "latent"])),
        "invert": draw(st.booleans()),
    }
    return noise(width, height), Mask(mask), asked


# the box


@pytest.mark.parametrize(
    ("canvas", "drawn", "padding", "size", "boxes"),
    [
        ((1024, 768), (400, 300, 528, 332), 0, (512, 512), [(400, 300, 528, 332), (400, 252, 528, 380)]),
        ((1024, 768), (400, 300, 528, 332), 32, (512, 512), [(368, 268, 560, 364), (368, 220, 560, 412)]),
        ((1024, 768), (0, 0, 100, 100), 32, (512, 768), [(0, 0, 132, 132), (0, 0, 132, 198)]),
        ((512, 512), (500, 500, 512, 512), 32, (768, 512), [(468, 468, 512, 512), (446, 468, 512, 512)]),
        ((600, 200), (10, 10, 590, 50), 32, (512, 512), [(0, 0, 600, 82), (0, 0, 600, 200)]),
        ((512, 512), (100, 100, 101, 101), 0, (512, 512), [(100, 100, 101, 101), (100, 100, 101, 101)]),
    ],
)
def test_the_box_is_that_of_a1111(canvas, drawn, padding, size, boxes):
    wider = padded(drawn, padding, canvas)
    assert [wider, expanded(wider, canvas, size)] == boxes
    assert region(box(*canvas, drawn), padding, size) == boxes[1]


SPANS = st.integers(1, 60).flatmap(
    lambda limit: (
        st.tuples(*[st.integers(0, limit)] * 2)
        .filter(lambda span: span[0] != span[1])
        .map(lambda span: (min(span), max(span), limit))
    )
)


@given(SPANS, SPANS, st.integers(0, 30), st.tuples(*[st.integers(1, 64)] * 2))
def test_the_box_holds_what_was_drawn_and_stays_on_the_canvas(across, down, padding, size):
    (x1, x2, width), (y1, y2, height) = across, down
    left, top, right, bottom = expanded(padded((x1, y1, x2, y2), padding, (width, height)), (width, height), size)
    assert 0 <= left <= x1 < x2 <= right <= width
    assert 0 <= top <= y1 < y2 <= bottom <= height


@given(SPANS, SPANS)
def test_the_bounds_are_those_of_all_that_is_not_black(across, down):
    (x1, x2, width), (y1, y2, height) = across, down
    mask = blank(width, height)
    mask.data[0, 0, y1, x1] = mask.data[0, 0, y2 - 1, x2 - 1] = 1
    assert bounds(mask) == (x1, y1, x2, y2)


def test_several_masks_share_the_box_that_holds_all():
    masks = Mask(torch.cat([box(40, 30, (3, 4, 6, 7)).data, box(40, 30, (20, 10, 30, 12)).data]))
    assert bounds(masks) == (3, 4, 30, 12)


def test_a_blank_mask_has_no_bounds_and_everything_as_its_box():
    assert bounds(blank(20, 10)) is None
    assert region(blank(20, 10), 3, (8, 8)) == (0, 0, 20, 10)


# the overlay


@pytest.mark.parametrize(
    ("edge", "expected"),
    [
        ("outside", [0, 2, 128, 254, 255, 255, 255]),
        ("across", [0, 1, 64, 127, 128, 191, 255]),
        ("inside", [0, 0, 0, 0, 1, 127, 255]),
    ],
)
def test_each_edge_fades_on_its_side(edge, expected):
    soft = levels(0, 1, 64, 127, 128, 191, 255)
    assert overlay(soft, levels(*[255] * 7), edge).data.flatten().tolist() == expected


def test_the_inside_edge_never_exceeds_the_mask_itself():
    assert overlay(levels(255, 255, 200), levels(0, 100, 255), "inside").data.flatten().tolist() == [0, 100, 145]


# whole picture


def test_the_whole_picture_is_resized_and_pasted_on_as_a_whole():
    image, mask = noise(40, 30), box(40, 30, (10, 5, 30, 20))
    framed = frame(image, mask, width=24, height=24, mode="crop", blur=2.0)
    assert framed[4:8] == (Int(0), Int(0), Int(24), Int(24))
    assert framed.image.identity() == framed.base.identity()
    assert torch.equal(framed.image.data, Image.of(fit(image.pil(), (24, 24), "crop", "lanczos")).data)
    assert torch.equal(framed.mask.data, Mask.of(fit(blur(mask, 2.0).pil(), (24, 24), "crop", "lanczos")).data)


def test_by_default_the_whole_picture_fades_outside_and_the_masked_area_across():
    image, mask = noise(40, 30), box(40, 30, (10, 5, 30, 20))
    soft = blur(mask, 4.0)
    whole, masked = (frame(image, mask, factor=1.0, area=area) for area in AREAS)
    assert torch.equal(whole.overlay.data, (2 * soft.data.int()).clamp(max=255).to(torch.uint8))
    assert torch.equal(masked.overlay.data, soft.data)


def test_a_mask_may_be_inverted():
    image, mask = noise(40, 30), box(40, 30, (10, 5, 30, 20))
    for area in AREAS:
        inverted = frame(image, mask, factor=1.0, area=area, invert=True)
        other = frame(image, invert(mask), factor=1.0, area=area)
        assert [part.identity() for part in inverted] == [part.identity() for part in other]


def test_for_the_latent_upscale_the_picture_stays_and_all_else_has_the_new_size():
    image, mask = noise(44, 36), box(44, 36, (10, 5, 30, 20))
    framed = frame(image, mask, factor=2.0, mode="latent", multiple=8, blur=0.0)
    assert torch.equal(framed.image.data, image.data[..., :32, :40])
    assert framed.mask.size == framed.base.size == framed.overlay.size == (88, 72)
    assert torch.equal(
        framed.base.data, Image.of(framed.image.pil().resize((88, 72), PIL.Image.Resampling.LANCZOS)).data
    )


# only what is masked


def test_only_the_box_around_the_mask_is_repainted():
    image, mask = noise(100, 80), box(100, 80, (40, 30, 60, 40))
    framed = frame(image, mask, width=64, height=32, area="masked", padding=5, blur=0.0, mode="crop")
    assert framed[4:8] == (Int(30), Int(25), Int(40), Int(20))
    assert torch.equal(framed.image.data, Image.of(image.pil().crop((30, 25, 70, 45)).resize((64, 32), 1)).data)
    assert framed.base is image
    assert torch.equal(framed.overlay.data, mask.data)


def test_blur_makes_the_box_larger():
    mask = box(100, 80, (40, 30, 60, 50))
    framed = frame(noise(100, 80), mask, width=64, height=64, area="masked", padding=0, blur=4.0)
    assert bounds(framed.overlay) == (30, 20, 70, 60)
    assert framed[4:8] == (Int(30), Int(20), Int(40), Int(40))


def test_a_box_of_another_aspect_is_filled_up_whatever_the_mode():
    image, mask = noise(60, 20), box(60, 20, (1, 1, 59, 5))
    asked = {"width": 32, "height": 32, "area": "masked", "blur": 0.0}
    framed = frame(image, mask, mode="stretch", **asked)
    assert framed[4:8] == (Int(0), Int(0), Int(60), Int(20))
    assert torch.equal(framed.image.data, Image.of(fit(image.pil(), (32, 32), "fill", "lanczos")).data)
    for mode in ("crop", "fill", "latent"):
        other = frame(image, mask, mode=mode, **asked)
        assert [part.identity() for part in other] == [part.identity() for part in framed]


@pytest.mark.parametrize("area", AREAS)
def test_a_factor_is_of_the_picture_and_sides_are_rounded_down(area):
    framed = frame(noise(50, 30), box(50, 30, (20, 10, 30, 20)), factor=1.5, multiple=8, area=area)
    assert framed.image.size == framed.mask.size == (72, 40)


# what A1111 gets wrong


@pytest.mark.parametrize("area", AREAS)
@pytest.mark.parametrize("edge", EDGES)
def test_a_blank_mask_changes_nothing(area, edge):
    image = noise(40, 30)
    framed = frame(image, blank(40, 30), width=40, height=30, area=area, edge=edge)
    assert not framed.mask.data.any()
    assert torch.equal(pasted(framed, noise(40, 30, seed=1)).data, image.data)


@pytest.mark.parametrize("area", AREAS)
def test_a_mask_of_another_size_is_stretched_over_the_picture(area):
    image, small = noise(80, 40), box(20, 20, (10, 5, 15, 15))
    framed = frame(image, small, factor=1.0, area=area, padding=0, blur=0.0)
    assert framed.overlay.size == (80, 40)
    assert bounds(framed.overlay) == (38, 9, 62, 31)
    assert framed.overlay.data[0, 0, 11:29, 42:58].min() == 255
    straight = frame(image, aligned(small, (80, 40)), factor=1.0, area=area, padding=0, blur=0.0)
    assert [part.identity() for part in framed] == [part.identity() for part in straight]


def test_a_hard_mask_that_is_stretched_gets_no_rings():
    assert bounds(aligned(box(20, 20, (8, 8, 12, 12)), (200, 200))) == (75, 75, 125, 125)


@pytest.mark.parametrize(
    ("drawn", "size"),
    [
        ((31, 20, 32, 33), (64, 48)),
        ((28, 20, 35, 41), (56, 64)),
        ((30, 1, 33, 62), (48, 64)),
        ((30, 1, 33, 62), (56, 64)),
        ((25, 10, 38, 50), (80, 40)),
        ((25, 10, 38, 50), (64, 48)),
    ],
)
def test_a_symmetric_picture_stays_symmetric_when_it_is_pasted_back(drawn, size):
    half = noise(32, 63, seed=3).data
    image = Image(torch.cat([half, half[..., :-1].flip(3)], 3))
    mask = box(63, 63, drawn)
    framed = frame(image, mask, width=size[0], height=size[1], area="masked", padding=3, blur=0.0)
    assert 2 * framed.x.value + framed.width.value == 63
    result = pasted(framed, framed.image).data
    assert not torch.equal(result, image.data)
    assert torch.equal(result, result.flip(3))


@pytest.mark.parametrize("size", [(451, 451), (448, 320), (640, 512)])
@pytest.mark.parametrize("drawn", [(40, 41, 51, 50), (1, 40, 99, 44), (44, 2, 49, 98), (0, 0, 13, 12)])
def test_what_was_scaled_up_comes_back_where_it_was(size, drawn):
    row = 127.5 + 60 * np.sin(np.arange(100) * 0.31)
    column = 60 * np.cos(np.arange(100) * 0.23)
    image = Image.of(PIL.Image.fromarray((row[None, :] + column[:, None]).astype(np.uint8)))
    framed = frame(image, box(100, 100, drawn), width=size[0], height=size[1], area="masked", padding=8, blur=0.0)
    result = pasted(framed, framed.image).data.int()
    assert (result - image.data.int()).abs().max() <= 2


# back into the picture


def test_levels_are_those_of_a1111_rounded_to_the_nearest():
    base, over, share = flat(200, 5, 1), flat(100, 5, 1), levels(0, 64, 128, 192, 255)
    result = paste(base, over, share, x=0, y=0, width=5, height=1)
    assert result.data[0, 0, 0].tolist() == [200, 175, 150, 125, 100]


def test_what_was_repainted_is_scaled_back_into_its_box():
    base, over = flat(0, 10, 8), noise(40, 20)
    result = paste(base, over, box(10, 8, (0, 0, 10, 8)), x=3, y=2, width=6, height=3)
    small = Image.of(over.pil().resize((6, 3), PIL.Image.Resampling.LANCZOS))
    assert torch.equal(result.data[..., 2:5, 3:9], small.data)
    assert result.data.count_nonzero() == small.data.count_nonzero()


def test_an_overlay_of_another_size_and_a_box_that_leaves_the_base_are_refused():
    base, over = flat(0, 10, 8), flat(9, 4, 4)
    with pytest.raises(ValueError, match="the overlay is 4 x 4 px: expected the size of the base, 10 x 8 px"):
        paste(base, over, blank(4, 4), x=0, y=0, width=4, height=4)
    for x, y in ((-1, 0), (0, -1), (7, 0), (0, 5)):
        with pytest.raises(ValueError, match="leaves the base of 10 x 8 px"):
            paste(base, over, blank(10, 8), x=x, y=y, width=4, height=4)


@settings(max_examples=60)
@given(cases(), st.sampled_from(AREAS), st.sampled_from(EDGES))
def test_nothing_changes_where_the_overlay_is_black(case, area, edge):
    image, mask, asked = case
    framed = frame(image, mask, area=area, edge=edge, **asked)
    over = noise(*framed.mask.size, seed=1)
    result = pasted(framed, over).data
    kept = (framed.overlay.data == 0).expand(-1, 3, -1, -1)
    assert torch.equal(result[kept], framed.base.data.expand_as(kept)[kept])


@settings(max_examples=60)
@given(cases(), st.sampled_from(AREAS))
def test_the_inside_edge_changes_nothing_outside_of_the_mask(case, area):
    image, mask, asked = case
    asked |= {"width": image.size[0], "height": image.size[1]} if area == "whole" else {}
    framed = frame(image, mask, area=area, edge="inside", **asked)
    over = noise(*framed.mask.size, seed=1)
    result = pasted(framed, over).data
    outside = ((mask.data == 255) if asked["invert"] else (mask.data == 0)).expand(-1, 3, -1, -1)
    assert torch.equal(result[outside], image.data.expand_as(outside)[outside])


@settings(max_examples=60)
@given(cases(), st.sampled_from(AREAS), st.sampled_from(EDGES))
def test_what_nobody_repainted_comes_back(case, area, edge):
    image, mask, asked = case
    asked["mode"] = "fill" if asked["mode"] == "latent" else asked["mode"]
    framed = frame(image, mask, area=area, edge=edge, **asked)
    result = pasted(framed, content(framed.image, framed.mask, "original")).data
    kept = (framed.overlay.data == 0).expand(-1, 3, -1, -1) if area == "masked" else torch.ones_like(result) > 0
    assert torch.equal(result[kept], framed.base.data.expand_as(kept)[kept])


# batches


@pytest.mark.parametrize("area", AREAS)
@pytest.mark.parametrize("counts", [(3, 1), (1, 3), (3, 3)])
def test_one_picture_or_one_mask_goes_with_a_batch(area, counts):
    image = noise(30, 20, counts[0])
    masks = torch.cat([box(30, 20, (4, 4, 20, 15)).data - index for index in range(counts[1])])
    framed = frame(image, Mask(masks), width=24, height=16, area=area, padding=30)
    result = pasted(framed, noise(24, 16, 3, seed=1))
    for index in range(3):
        alone = frame(
            pick(image, min(index, counts[0] - 1)),
            Mask(masks[min(index, counts[1] - 1)][None]),
            width=24,
            height=16,
            area=area,
            padding=30,
        )
        over = pick(noise(24, 16, 3, seed=1), index)
        assert torch.equal(pick(result, index).data, pasted(alone, over).data)


def test_two_batches_of_different_length_are_refused():
    with pytest.raises(ValueError, match="batches of 2 and 3"):
        frame(noise(9, 9, 2), Mask(torch.zeros(3, 1, 9, 9, dtype=torch.uint8)), factor=1.0)


# masked content


def halves():
    """64 x 64 px, blue above brown, and a mask of its middle."""
    rows = torch.tensor([[10, 60, 220], [200, 40, 10]], dtype=torch.uint8).repeat_interleave(32, 0)
    return Image(rows.T[None, :, :, None].expand(1, 3, 64, 64).contiguous()), box(64, 64, (16, 16, 48, 48))


@pytest.mark.parametrize(
    ("place", "colour"), [((32, 20), (31, 57, 193)), ((32, 44), (187, 42, 25)), ((32, 32), (107, 50, 111))]
)
def test_fill_spreads_the_colours_that_a1111_spreads(place, colour):
    filled = content(*halves(), "fill")
    assert tuple(filled.data[0, :, place[1], place[0]].tolist()) == colour


@settings(max_examples=25)
@given(cases())
def test_fill_keeps_what_is_not_masked_exactly(case):
    image, mask, _ = case
    filled = content(image, mask, "fill").data
    kept = (mask.data == 0).expand(-1, 3, -1, -1)
    assert torch.equal(filled[kept], image.data.expand_as(kept)[kept])


def test_a_picture_that_is_masked_everywhere_becomes_black():
    assert not content(noise(20, 20), box(20, 20, (0, 0, 20, 20)), "fill").data.any()


def test_fill_gives_a_plain_picture_back_even_under_a_soft_mask():
    soft = blur(box(64, 64, (16, 16, 48, 48)), 4.0)
    assert (content(flat(120, 64, 64), soft, "fill").data.int() - 120).abs().max() <= 5


@pytest.mark.parametrize("other", ["noise", "nothing"])
def test_before_noise_and_nothing_the_hole_is_filled_too(other):
    assert content(*halves(), other).identity() == content(*halves(), "fill").identity()


def test_the_original_is_the_picture_itself():
    image, mask = halves()
    assert content(image, mask) is image
    assert content(image, mask, "fill").identity() != image.identity()


def test_a_mask_of_another_size_is_stretched_before_it_is_filled():
    image, _ = halves()
    small = box(32, 32, (8, 8, 24, 24))
    assert torch.equal(content(image, small, "fill").data, content(image, aligned(small, (64, 64)), "fill").data)


@pytest.mark.parametrize("counts", [(3, 1), (1, 3), (3, 3)])
def test_each_picture_is_filled_as_if_alone(counts):
    image = noise(20, 16, counts[0])
    masks = torch.cat([box(20, 16, (2 + index, 3, 12, 12)).data for index in range(counts[1])])
    together = content(image, Mask(masks), "fill")
    alone = [
        content(pick(image, min(index, counts[0] - 1)), Mask(masks[min(index, counts[1] - 1)][None]), "fill")
        for index in range(3)
    ]
    assert torch.equal(together.data, batch(tuple(alone)).data)


# all of them


NODES = {
    **{
        f"frame {area} {mode}": lambda image, mask, area=area, mode=mode: (
            frame(image, mask, width=24, height=20, area=area, mode=mode, padding=1).overlay
        )
        for area, mode in product(AREAS, ["stretch", "fill", "latent"])
    },
    "content": lambda image, mask: content(image, mask, "fill"),
    "paste": lambda image, mask: paste(image, image, mask, x=1, y=2, width=20, height=10),
}


@pytest.mark.parametrize("name", NODES)
def test_no_node_writes_into_its_input(name):
    image, mask = noise(32, 24, 2), box(32, 24, (5, 6, 20, 18))
    before = image.stamp(), mask.stamp(), image.identity(), mask.identity()
    NODES[name](image, mask)
    assert (image.stamp(), mask.stamp(), image.identity(), mask.identity()) == before


@pytest.mark.gpu
@pytest.mark.parametrize("name", NODES)
def test_a_node_works_where_its_input_lies(name):
    image, mask = noise(32, 24, 2), box(32, 24, (5, 6, 20, 18))
    there = NODES[name](image.move("cuda:0"), mask.move("cuda:0"))
    assert there.place() == "cuda:0"
    assert torch.equal(there.data.cpu(), NODES[name](image, mask).data)
