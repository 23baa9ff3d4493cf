"""Prompts together."""

import pytest
import torch

from nodes.conditioning import combine
from nodes.diffusion.prompt import Part
from nodes.types import Conditioning


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
