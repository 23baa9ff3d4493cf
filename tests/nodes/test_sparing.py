"""Model calls without the negative prompt: which they are, what they make, and how much work they spare."""

from itertools import pairwise

import pytest
import torch
from company import together
from standins import PLAIN, TABLE, House, UnetFormula, words

from nodes import conditioning
from nodes.diffusion.denoise import Denoiser
from nodes.diffusion.drive import drive
from nodes.diffusion.guidance import Guidance, Question, guided
from nodes.diffusion.noise import draw
from nodes.diffusion.prompt import Part
from nodes.diffusion.sampler import SAMPLERS
from nodes.diffusion.schedule import karras
from nodes.diffusion.sparing import Sparing
from nodes.options import options
from nodes.sample import sample
from nodes.types import Conditioning, Latent, Noise

STEPS = 8
NOTHING = Latent(torch.zeros(1, 4, 8, 8))
LEVELS = karras(TABLE, STEPS).tolist()
SEED = 5


def said(number):
    return Conditioning(words(number))


def both(first, second):
    """Two prompts joined by AND."""
    parts = (Part(weight=0.75, rows=(("a", 0),)), Part(weight=0.5, rows=(("b", 1),)))
    return Conditioning(words(first, second), parts)


def arguments(house, told=None, **changes):
    given = {"unet": PLAIN, "positive": said(1), "negative": said(2), "latent": NOTHING, "noise": Noise((SEED,))}
    given |= {"steps": STEPS, "cfg": 4.0, "denoise": 1.0, "sampler": "euler", "schedule": "karras"}
    return {**given, "options": options(**told or {}), "context": house.context(remembers=False), **changes}


@pytest.fixture
def house():
    return House()


def latents_of(house):
    """How many latents each UNet call took, since the last time."""
    taken = [value for name, value in house.taken if name == "unet_calls"]
    house.taken.clear()
    return taken


def predicted(x, sigma, number):
    """What the UNet says is behind `x` under one prompt."""
    scaled = x / (sigma**2 + 1) ** 0.5
    timestep = torch.tensor([TABLE.timestep(sigma)])
    [noise] = UnetFormula(0.7)(scaled, timestep, words(number), return_dict=False)
    return x - noise * sigma


def euler_by_hand(spared, *, weights=(1.0,)):
    """Euler with prompts 1, 3, ... against 2; at the calls `spared` the first prompt stands for the negative one."""
    x = draw([SEED], (4, 8, 8)) * LEVELS[0]
    for call, (sigma, following) in enumerate(pairwise(LEVELS)):
        asked = [predicted(x, sigma, number) for number in (1, 3)[: len(weights)]]
        low = asked[0] if call in spared else predicted(x, sigma, 2)
        clean = low + sum(4 * weight * (high - low) for weight, high in zip(weights, asked, strict=True))
        x = x + (x - clean) / sigma * (following - sigma)
    return x


BELOW = LEVELS[3] + 0.01
"""From the call 3 on."""
RULES = [
    ({}, set()),
    ({"ngms": BELOW}, {3, 5, 7}),
    ({"ngms": BELOW, "ngms_all": True}, {3, 4, 5, 6, 7}),
    ({"ngms_all": True}, set()),
    ({"skip_early": 0.25}, {0, 1, 2}),
    ({"skip_early": 0.3}, {0, 1, 2}),
    ({"skip_early": 1.0}, set(range(8))),
    ({"skip_early": 0.01, "ngms": BELOW}, {0, 3, 5, 7}),
]


@pytest.mark.parametrize(("told", "spared"), RULES, ids=[str(told) for told, _ in RULES])
def test_calls_without_the_negative_prompt_follow_the_prompt_alone_and_take_half_of_the_work(house, told, spared):
    made = sample(**arguments(house, told)).data
    assert latents_of(house) == [1 if call in spared else 2 for call in range(STEPS)]
    torch.testing.assert_close(made, euler_by_hand(spared), rtol=1e-4, atol=1e-4)


def test_a_level_of_the_limit_itself_is_not_below_it(house):
    sample(**arguments(house, {"ngms": LEVELS[4], "ngms_all": True}))
    assert latents_of(house) == [2] * 5 + [1] * 3


def test_of_joined_prompts_the_first_stands_for_the_negative_one(house):
    made = sample(**arguments(house, {"ngms": BELOW}, positive=both(1, 3))).data
    assert latents_of(house) == [3, 3, 3, 2, 3, 2, 3, 2]
    torch.testing.assert_close(made, euler_by_hand({3, 5, 7}, weights=(0.75, 0.5)), rtol=1e-4, atol=1e-4)


def test_of_prompts_with_places_their_mean_does_whatever_the_cfg(house):
    halves = [conditioning.area(said(number), x=x, width=32, height=64) for number, x in ((1, 0), (3, 32))]
    placed = conditioning.combine(*halves)
    high, low = (sample(**arguments(house, {"skip_early": 1.0}, positive=placed, cfg=cfg)).data for cfg in (9.0, 3.0))
    assert torch.equal(high, low)
    assert not torch.allclose(high, sample(**arguments(house, positive=placed)).data, atol=1e-2)


@pytest.mark.parametrize("name", [name for name in SAMPLERS if SAMPLERS[name].unguided])
def test_samplers_that_ask_for_the_negative_are_answered_with_the_prompt(house, name):
    spared = sample(**arguments(house, {"skip_early": 1.0}, sampler=name)).data
    assert set(latents_of(house)) == {1}
    again = sample(**arguments(house, sampler=name, negative=said(1), cfg=1.0)).data
    torch.testing.assert_close(spared, again, rtol=1e-4, atol=1e-4)


def test_second_order_samplers_count_two_calls_a_step(house):
    sample(**arguments(house, {"skip_early": 0.5}, sampler="heun"))
    assert latents_of(house) == [1] * 9 + [2] * 6


def test_a_share_is_of_the_steps_that_run_and_a_later_part_of_a_run_goes_on_counting(house):
    told = {"skip_early": 0.5}
    sample(**arguments(house, told, denoise=0.5, convention="a1111"))
    assert latents_of(house) == [1] * 3 + [2] * 2
    sample(**arguments(house, told, last=3, leftover=True))
    sample(**arguments(house, told, first=3))
    assert latents_of(house) == [1] * 3 + [1] * 2 + [2] * 3


def test_pictures_of_a_batch_and_calls_in_company_come_out_as_alone(house):
    calls = [
        arguments(house, {"ngms": BELOW}, noise=Noise((1, 2))),
        arguments(house, {"skip_early": 0.25}, cfg=7.0),
        arguments(house, {}, negative=said(4)),
    ]
    made = together(calls)
    assert latents_of(house) == [7, 7, 7, 6, 8, 6, 8, 6]
    for given, result in zip(calls, made, strict=True):
        torch.testing.assert_close(result.data, sample(**given).data, rtol=1e-4, atol=1e-4)
    alone = sample(**{**calls[0], "noise": Noise((2,))}).data
    torch.testing.assert_close(made[0].data[1:], alone, rtol=1e-4, atol=1e-4)


def test_what_was_computed_before_a_call_is_spared_is_recalled_and_no_more(house):
    def run(told):
        house.taken.clear()
        found = sample(**arguments(house, told, context=house.context())).data
        fresh = sample(**arguments(House(), told)).data
        assert torch.equal(found, fresh)
        return house.counted()

    assert run({}) == (8, 0)
    assert run({"ngms": BELOW}) == (5, 3)
    assert run({"ngms": BELOW, "ngms_all": True}) == (4, 4)
    assert run({"ngms": LEVELS[1]}) == (0, 8), "no other call is spared than those from 3 on"
    assert run({"skip_early": 0.5}) == (8, 0)
    assert run({"skip_early": 0.5}) == (0, 8)


def test_guided_runs_are_told_the_number_of_their_calls():
    x = draw([SEED], (4, 8, 8)) * LEVELS[0]
    steps = SAMPLERS["euler"](x, LEVELS, None)
    guidance = Guidance(words(1), words(2), 4.0, sparing=Sparing(below=BELOW))
    [made] = drive([guided(steps, guidance, STEPS)], Denoiser(UnetFormula(0.7), TABLE))
    torch.testing.assert_close(made, euler_by_hand({3, 5, 7}), rtol=1e-4, atol=1e-4)
    assert Question(x, 1.0, guidance, 3).guidance.sides(3, STEPS, 1.0).spared
