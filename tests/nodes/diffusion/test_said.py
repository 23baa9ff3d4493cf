"""Keys and values of prompts: computed once, and never taken for those of another prompt."""

import copy

import pytest
import torch

from nodes.diffusion import said
from nodes.diffusion.denoise import Denoiser
from nodes.diffusion.guidance import Guidance, Question
from nodes.diffusion.said import Conversation


@pytest.fixture
def counted(unet, monkeypatch):
    """How often each of the UNet's layers made keys or values."""
    counts = {}
    linear = torch.nn.Linear.forward

    def forward(layer, states):
        if layer in said._projections(unet):
            counts[layer] = counts.get(layer, 0) + 1
        return linear(layer, states)

    monkeypatch.setattr(torch.nn.Linear, "forward", forward)
    return counts


def words(seed, tokens=77):
    return torch.randn(1, tokens, 128, generator=torch.Generator().manual_seed(seed))


def question(seed, positive, negative=None, sigma=2.0):
    x = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(seed)) * 2
    return Question(x, sigma, Guidance(positive, negative, cfg=1.0 if negative is None else 4.0))


def plainly(unet, table, asked):
    """The answers of a UNet that keeps nothing."""
    return [Denoiser(unet, table)([each])[0].guided for each in asked]


def test_there_are_layers_to_keep_something_of(unet):
    assert len(said._projections(unet)) == 14


def test_a_prompt_is_projected_once_for_all_steps(unet, table, counted):
    high, low = words(1), words(2)
    denoiser = Denoiser(unet, table)
    for sigma in (9.0, 4.0, 2.0, 1.0):
        denoiser([question(0, high, low, sigma)])
    assert set(counted.values()) == {1}
    assert len(counted) == 14


def test_what_is_found_is_what_would_be_computed(unet, table):
    high, low = words(1), words(2)
    denoiser = Denoiser(unet, table)
    for step in range(3):
        [answer] = denoiser([question(step, high, low)])
        [expected] = plainly(unet, table, [question(step, high, low)])
        assert torch.equal(answer.guided, expected)


def test_another_prompt_is_not_taken_for_this_one(unet, table):
    denoiser = Denoiser(unet, table)
    for seed in (1, 2, 1, 3):
        [answer] = denoiser([question(0, words(seed))])
        [expected] = plainly(unet, table, [question(0, words(seed))])
        assert torch.equal(answer.guided, expected)


def test_a_prompt_that_was_written_into_is_another(unet, table):
    prompt = words(1)
    denoiser = Denoiser(unet, table)
    denoiser([question(0, prompt)])
    prompt.mul_(2)
    [answer] = denoiser([question(0, prompt)])
    [expected] = plainly(unet, table, [question(0, words(1) * 2)])
    assert torch.equal(answer.guided, expected)


def test_prompts_that_take_turns_are_both_kept(unet, table, counted):
    first, second = words(1), words(2)
    denoiser = Denoiser(unet, table)
    for _ in range(3):
        denoiser([question(0, first)])
        denoiser([question(0, second)])
    assert set(counted.values()) == {2}


def test_what_is_no_longer_said_is_forgotten():
    conversation = Conversation()
    for seed in range(4):
        conversation.begin()
        conversation.said([words(seed)], 77)
    assert len(conversation._known) == said.REPEATED + 1


def test_no_more_is_kept_than_is_allowed_and_results_stay(unet, table, counted):
    conversation = Conversation()
    conversation._allowance.left = 0
    denoiser = Denoiser(unet, table)
    denoiser._conversation = conversation
    answers = [denoiser([question(0, words(1))])[0].guided for _ in range(2)]
    assert set(counted.values()) == {2}
    assert torch.equal(*answers)


def test_the_allowance_is_given_back_with_what_is_forgotten(unet, table):
    denoiser = Denoiser(unet, table)
    denoiser([question(0, words(1))])
    left = denoiser._conversation._allowance.left
    assert left < said.KEPT
    prompt = words(2)
    for _ in range(4):
        denoiser([question(0, prompt)])
    assert denoiser._conversation._allowance.left == left


def test_nothing_stays_with_the_network(unet, table):
    denoiser = Denoiser(unet, table)
    denoiser([question(0, words(1))])
    assert not [layer for layer in said._projections(unet) if "forward" in vars(layer)]
    other = copy.deepcopy(unet)
    with torch.no_grad():
        for layer in said._projections(other):
            layer.weight.mul_(1.5)
    [answer] = Denoiser(other, table)([question(0, words(1))])
    [same] = denoiser([question(0, words(1))])
    assert not torch.equal(answer.guided, same.guided)


def test_a_call_that_fails_leaves_the_network_as_it_was(unet, table):
    denoiser = Denoiser(unet, table)
    with pytest.raises(RuntimeError):
        denoiser([question(0, words(1)[:, :, :5])])
    assert not [layer for layer in said._projections(unet) if "forward" in vars(layer)]
