"""Prompts together."""

import pytest
import torch

from nodes.conditioning import area, average, combine, concat, mask, sizes, span, zero
from nodes.diffusion.prompt import Part
from nodes.diffusion.scope import Area, Scope, Sizes
from nodes.types import Conditioning, Mask


def states(value, tokens=77, width=4):
    return Conditioning(torch.full((1, tokens, width), float(value)))


def said(conditioning, call):
    return [(part.weight, conditioning.data[row : row + 1]) for part, row in conditioning.at(call, 10)]


def test_two_prompts_count_half_each_and_none_is_changed():
    both = combine(states(1), states(2))
    both.check()
    [(first, ones), (second, twos)] = said(both, 0)
    assert (first, second) == (0.5, 0.5)
    assert torch.equal(ones, states(1).data)
    assert torch.equal(twos, states(2).data)


def test_a_third_prompt_combined_by_a_third_makes_all_equal():
    weights = [part.weight for part in combine(combine(states(1), states(2)), states(3), 1 / 3).parts]
    assert weights == pytest.approx([1 / 3] * 3)


def test_prompts_of_different_lengths_are_repeated_to_one_that_both_divide():
    both = combine(states(1, 2 * 77), states(2, 3 * 77))
    assert both.data.shape == (2, 6 * 77, 4)
    assert both.data[1].unique().tolist() == [2]


def test_a_prompt_that_changes_still_changes():
    data = torch.arange(2.0)[:, None, None].expand(2, 77, 4)
    changing = Conditioning(data, (Part(1.0, "[a:b:0.5]", (("a", 0), ("b", 1))),))
    both = combine(states(7), changing, 0.25)
    assert [(weight, tokens.unique().item()) for weight, tokens in said(both, 0)] == [(0.75, 7), (0.25, 0)]
    assert [(weight, tokens.unique().item()) for weight, tokens in said(both, 9)] == [(0.75, 7), (0.25, 1)]


def test_prompts_of_different_models_do_not_go_together():
    with pytest.raises(ValueError, match="widths 4 and 8 are of different models; encode both with one"):
        combine(states(1), states(2, width=8))


def test_masks_and_rows_stay_with_their_prompts_when_they_are_combined():
    white, black = (Mask(torch.full((1, 1, 8, 8), level, dtype=torch.uint8)) for level in (255, 0))
    both = combine(mask(states(1), white), mask(mask(states(2), black), white, strength=0.5))
    both.check()
    assert [part.scope.mask for part in both.parts] == [0, 2]
    assert [part.scope.strength for part in both.parts] == [1.0, 0.5]
    assert [each.unique().item() for each in both.masks] == [255, 0, 255]


def test_an_average_is_one_prompt_cut_and_filled_to_the_length_of_the_first():
    longer, shorter = states(1, 2 * 77), states(4)
    mixed = average(longer, shorter, 0.25)
    assert mixed.data[:, :77].unique().tolist() == [0.75 + 1.0]
    assert mixed.data[:, 77:].unique().tolist() == [0.75]
    assert average(shorter, longer, 0.25).data.shape == (1, 77, 4)
    changing = Conditioning(torch.zeros(2, 77, 4), (Part(1.0, "[a:b:0.5]", (("a", 0), ("b", 1))),))
    assert average(changing, shorter, 0.5).data.unique().tolist() == [2.0]
    with pytest.raises(ValueError, match="`b` stands for 2 texts, expected one"):
        average(shorter, changing)


def test_prompts_may_stand_one_after_the_other():
    data = concat(states(1), states(2, 2 * 77)).data
    assert data[:, :77].unique().tolist() == [1]
    assert data[:, 77:].unique().tolist() == [2]
    assert data.shape == (1, 3 * 77, 4)


def test_a_prompt_without_meaning_is_zeros():
    pooled = Conditioning(torch.ones(1, 77, 4), pooled=torch.ones(1, 3))
    nothing = zero(pooled)
    assert not nothing.data.any()
    assert not nothing.pooled.any()
    assert nothing.pooled.shape == (1, 3)


def test_a_place_a_span_and_sizes_are_kept_beside_one_another():
    made = sizes(span(area(states(1), x=8, y=16, width=32, height=64, strength=0.5), 0.25, 0.75), width=512)
    [part] = made.parts
    assert part.scope == Scope(Area(8, 16, 32, 64), strength=0.5, start=0.25, end=0.75, sizes=Sizes(width=512))
    assert Conditioning.unpack(made.pack()).parts == made.parts


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: span(states(1), 0.5, 0.5), "begins at 0.5 and ends at 0.5: expected an end after the start"),
        (lambda: area(states(1), width=64), "the area is 64 x 0: expected two sides, or 0 x 0"),
        (
            lambda: area(states(1), x=0.5, width=0.75, height=0.5, unit="share"),
            "the area ends at 1.25, 0.5: expected shares up to 1, or the unit px",
        ),
        (lambda: mask(states(1), Mask(torch.zeros(2, 1, 8, 8, dtype=torch.uint8))), "there are 2 masks, expected one"),
    ],
)
def test_what_makes_no_sense_is_refused(call, said):
    with pytest.raises(ValueError, match=said):
        call()
