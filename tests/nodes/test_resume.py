"""Runs that are answered from memory as far as earlier ones went the same way: how many UNet calls are left to make."""

import hashlib
from dataclasses import fields, replace

import pytest
import torch
from company import rounds, together
from standins import DEPTH, LINES, PATCHED, PLAIN, TABLE, House, words

from engine.errors import Cancelled
from nodes import mask, repaint
from nodes.diffusion.control import Control as Steering
from nodes.diffusion.guidance import Clause, Guidance, Question
from nodes.diffusion.prompt import Part, text_at
from nodes.diffusion.sampler import SAMPLERS
from nodes.diffusion.schedule import SCHEDULES, plan
from nodes.diffusion.scope import Scope
from nodes.resume import Answered, content
from nodes.sample import sample
from nodes.types import Conditioning, Control, Hint, Latent, Noise, SampleOptions

START = Latent(torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(3)))
EMPTY = torch.empty(0, 1, 1, 1, dtype=torch.uint8)
PICTURES = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(4))
STEPS = 8


def said(number):
    """A prompt."""
    return Conditioning(words(number))


def edited(first, then, when=0.5):
    """A prompt that becomes another one on its way."""
    return Conditioning(words(first, then), (Part(source=f"[a:b:{when}]", rows=(("a", 0), ("b", 1))),))


def hint(net=LINES, picture=0, *, strength=1.0, start=0.0, end=1.0):
    return Control((Hint(net, strength, start, end),), (PICTURES[picture : picture + 1],), (EMPTY,))


def arguments(**changes):
    given = {"unet": PLAIN, "positive": said(1), "negative": said(2), "latent": START, "noise": Noise((5,))}
    options = {"steps": STEPS, "cfg": 4.0, "denoise": 1.0, "sampler": "euler", "schedule": "karras"}
    return {**given, **options, **changes}


@pytest.fixture
def house():
    return House()


@pytest.fixture
def run(house):
    """Sample with memory and without: the same bits. Returns (UNet calls made, steps recalled)."""

    def both(**changes):
        scratch = House()
        expected = sample(**arguments(**changes), context=scratch.context(remembers=False)).data
        whole, none = scratch.counted()
        assert none == 0
        house.counted()
        assert torch.equal(sample(**arguments(**changes), context=house.context()).data, expected)
        made, recalled = house.counted()
        assert made + recalled == whole
        return made, recalled

    return both


def test_a_call_that_was_made_before_makes_no_unet_call(run):
    assert run() == (8, 0)
    assert run() == (0, 8)


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_prompt_that_changes_on_its_way_is_computed_from_there_on(run, name):
    """Adaptive samplers, noise of all kinds and several questions a step: what was drawn is drawn again."""
    options = {"sampler": name, "schedule": "automatic", "denoise": 0.9}
    made, _ = run(positive=edited(1, 3), **options)
    made_again, recalled = run(positive=edited(1, 4), **options)
    calls = STEPS * SAMPLERS[name].asks
    assert recalled == sum(text_at("[a:b:0.5]", call, calls) == "a" for call in range(made))
    assert min(made_again, recalled) > 0
    assert run(positive=edited(1, 3), **options) == (0, made)


@pytest.mark.parametrize("name", ["euler", "heun", "euler_ancestral", "dpmpp_2m_sde"])
def test_a_prompt_that_changes_later_is_computed_from_where_it_changed_before(run, name):
    run(positive=edited(1, 3, 0.25), sampler=name)
    asks = SAMPLERS[name].asks
    made, recalled = run(positive=edited(1, 3, 0.75), sampler=name)
    assert recalled == sum(text_at("[a:b:0.25]", call, STEPS * asks) == "a" for call in range(made + recalled))


def test_the_negative_prompt_may_change_on_its_way(run):
    run(negative=edited(1, 3))
    assert run(negative=edited(1, 4)) == (3, 5)


def test_a_negative_prompt_without_a_say_may_change(run):
    run(cfg=1.0, negative=said(2))
    assert run(cfg=1.0, negative=said(3)) == (0, 8)


def counting(end, sigmas):
    """How many levels a ControlNet that works up to `end` sees."""
    last = len(TABLE.sigmas) - 1
    return sum(sigma >= TABLE.sigma((1 - end) * last) for sigma in sigmas)


@pytest.fixture
def sigmas():
    """The levels of a call with nothing said."""
    whole, begin = plan(SCHEDULES["karras"], TABLE, STEPS, 1.0, convention="exact")
    return whole[begin:].tolist()[:-1]


def test_a_controlnet_that_ends_elsewhere_is_computed_from_where_it_ended_first(run, sigmas):
    run(control=hint(end=0.3))
    sooner, later = counting(0.3, sigmas), counting(0.7, sigmas)
    assert 0 < sooner < later < STEPS
    assert run(control=hint(end=0.7)) == (STEPS - sooner, sooner)
    assert run(control=hint(end=1.0)) == (STEPS - later, later)


def test_a_controlnet_that_has_ended_may_be_changed_from_where_it_began(run, sigmas):
    run(control=hint(start=0.5, picture=0))
    before = STEPS - sum(sigma <= TABLE.sigma(0.5 * (len(TABLE.sigmas) - 1)) for sigma in sigmas)
    assert 0 < before < STEPS
    for other in (hint(start=0.5, picture=1), hint(DEPTH, start=0.5), hint(start=0.5, strength=0.5), None):
        assert run(control=other) == (STEPS - before, before)


def test_another_picture_net_or_strength_of_a_controlnet_is_another_run(run):
    run(control=hint())
    for other in (hint(picture=1), hint(DEPTH), hint(strength=0.5), None):
        assert run(control=other) == (STEPS, 0)


def spans(first, second, end):
    """A prompt that counts up to a share of the way, and one that counts after it."""
    parts = (Part(rows=(("a", 0),), scope=Scope(end=end)), Part(rows=(("b", 1),), scope=Scope(start=end)))
    return Conditioning(words(first, second), parts)


def test_a_prompt_with_a_span_is_computed_from_where_its_span_begins(run, sigmas):
    run(positive=spans(1, 3, 0.4))
    sooner = sum(sigma > TABLE.sigma(0.6 * (len(TABLE.sigmas) - 1)) for sigma in sigmas)
    assert 0 < sooner < STEPS
    assert run(positive=spans(1, 4, 0.4)) == (STEPS - sooner, sooner)
    assert run(positive=spans(1, 3, 0.6))[1] == sooner
    assert run(positive=spans(4, 3, 0.4))[1] == 0


def test_a_run_that_ends_sooner_or_later_goes_on_where_another_ended(run):
    assert run(last=5, leftover=True) == (5, 0)
    assert run(last=3, leftover=True) == (0, 3)
    assert run(last=3) == (0, 3)
    assert run(last=7, leftover=True) == (2, 5)
    assert run() == (1, 7)


def test_a_schedule_that_goes_on_further_shares_its_beginning(run):
    levels = (14.0, 9.0, 6.0, 4.0, 2.0, 1.0, 0.5)
    for count, expected in ((4, (4, 0)), (7, (3, 4))):
        options = SampleOptions(levels=levels[:count])
        assert run(schedule="custom", steps=count, options=options) == expected


def test_other_levels_are_computed_from_the_first_that_differs(run):
    run()
    assert run(steps=9) == (8, 1)


def test_a_refiner_that_takes_over_later_leaves_what_was_begun(run):
    base = {"leftover": True, "sampler": "euler_ancestral"}
    run(last=4, **base)
    assert run(last=6, **base) == (2, 4)
    finish = {"unet": PATCHED, "first": 6, "options": SampleOptions(noise_multiplier=0.0)}
    assert run(**finish) == (2, 0)
    assert run(**finish, positive=said(3)) == (2, 0)
    assert run(**finish) == (0, 2)


@pytest.mark.parametrize(
    "change",
    [
        {"cfg": 4.5},
        {"positive": said(3)},
        {"negative": said(3)},
        {"noise": Noise((6,))},
        {"denoise": 0.8},
        {"unet": PATCHED},
        {"latent": replace(START, data=START.data * 0.5)},
        {"options": SampleOptions(cfg_rescale=0.5)},
        {"options": SampleOptions(noise_multiplier=0.9)},
        {"mask": mask.rectangle(64, 64, x=8, y=8, w=32, h=32)},
        {"convention": "comfy"},
        {"sampler": "lms", "options": SampleOptions(order=2)},
    ],
    ids=str,
)
def test_what_is_active_from_the_first_step_on_makes_it_another_run(run, change):
    run()
    assert run(**change)[1] == 0
    assert run(**change)[0] == 0
    assert run() == (0, STEPS)


def test_masks_of_all_kinds_are_told_apart(run):
    areas = [mask.rectangle(64, 64, x=8, y=8, w=side, h=32) for side in (32, 40)]
    grey = mask.blur(areas[0], 6)
    variants = [
        {"mask": areas[0]},
        {"mask": areas[1]},
        {"mask": grey, "round_mask": False},
        {"mask": grey, "soft": repaint.soft()},
        {"mask": grey, "soft": repaint.soft(1.5)},
        {"mask": areas[0], "convention": "comfy"},
    ]
    for variant in variants:
        assert run(**variant) == (STEPS, 0)
    for variant in variants:
        assert run(**variant) == (0, STEPS)


def test_a_batch_of_pictures_is_kept_as_one_and_an_adaptive_sampler_picture_by_picture(run):
    noise = Noise((5, 6))
    run(noise=noise, positive=edited(1, 3))
    assert run(noise=noise, positive=edited(1, 4)) == (3, 5)
    run(noise=noise, sampler="dpm_adaptive")
    assert run(noise=Noise((6,)), sampler="dpm_adaptive")[0] == 0


class TestWhatEndsHalfway:
    @pytest.mark.parametrize("name", ["euler", "heun", "dpmpp_sde", "dpm_adaptive"])
    def test_a_call_that_was_cancelled_goes_on_where_it_stood(self, run, house, name):
        with pytest.raises(Cancelled):
            sample(**arguments(sampler=name), context=house.context(until=3))
        assert house.counted() == (4, 0), "the step that it was cancelled in is kept, too"
        with pytest.raises(Cancelled):
            sample(**arguments(sampler=name), context=house.context(until=5))
        assert house.counted() == (2, 4)
        assert run(sampler=name)[1] == 6

    def test_a_call_that_failed_goes_on_where_it_failed(self, run, house):
        unet = house.shelf.models[PLAIN].unet
        unet.fails_at = 6
        with pytest.raises(RuntimeError, match="the network broke"):
            sample(**arguments(), context=house.context())
        assert house.counted() == (5, 0)
        unet.fails_at = None
        assert run() == (3, 5)

    def test_what_memory_was_scarce_for_is_not_kept(self, run, house):
        context = house.context()
        context.again(scarce=True)
        sample(**arguments(), context=context)
        assert run() == (8, 0)


class TestCompany:
    def test_calls_made_together_ask_only_what_is_not_known(self, house):
        first, second = (arguments(positive=edited(1, other), context=house.context()) for other in (3, 4))
        sample(**first)
        house.counted()
        made = together([first, second, arguments(positive=said(5), context=house.context())])
        assert house.counted() == (8, 8 + 5)
        assert [type(one) for one in made] == [Latent] * 3
        for given, found in zip((first, second), made, strict=False):
            alone = sample(**{**given, "context": House().context(remembers=False)})
            torch.testing.assert_close(found.data, alone.data, rtol=0, atol=1e-4)

    def test_what_several_calls_ask_at_once_is_computed_once(self, house):
        calls = [arguments(positive=edited(1, word), context=house.context()) for word in (3, 4, 5)]
        made = together([*calls, arguments(noise=Noise((6,)), context=house.context())])
        assert [value for name, value in house.taken if name == "unet_calls"] == [4] * 5 + [8] * 3
        for given, found in zip(calls, made, strict=False):
            alone = sample(**{**given, "context": House().context(remembers=False)})
            torch.testing.assert_close(found.data, alone.data, rtol=0, atol=1e-4)
        house.counted()
        for given, found in zip(calls, made, strict=False):
            assert torch.equal(sample(**{**given, "context": house.context()}).data, found.data)
        assert house.counted() == (0, 3 * 8)

    def test_what_is_asked_at_once_of_other_latents_is_not_taken_for_the_same(self, house, monkeypatch):
        monkeypatch.setattr("nodes.resume.Trail._root", lambda *_: b"")
        made = together([arguments(noise=Noise((seed,)), context=house.context()) for seed in (5, 6)])
        for seed, found in zip((5, 6), made, strict=True):
            alone = sample(**arguments(noise=Noise((seed,))), context=House().context(remembers=False))
            torch.testing.assert_close(found.data, alone.data, rtol=0, atol=1e-4)

    def test_where_nothing_is_remembered_all_is_computed(self, house):
        together([arguments(context=house.context(remembers=False)) for _ in range(2)])
        assert [value for name, value in house.taken if name == "unet_calls"] == [4] * 8

    def test_a_call_that_joins_late_shares_only_the_rounds_that_it_needs(self, house):
        first, late, other = (arguments(positive=edited(1, word), context=house.context()) for word in (3, 4, 5))
        sample(**first)
        house.counted()
        made = rounds([other], {1: [late]})
        assert [list(finished) for finished in made] == [[], [], [0], [1]]
        assert [value for name, value in house.taken if name == "unet_calls"] == [2, 4, 4, 2]
        assert house.counted() == (4, 10)

    def test_what_is_kept_holds_no_memory_of_its_company(self, house):
        calls = [arguments(cfg=1.0, noise=Noise((seed,)), context=house.context()) for seed in range(4)]
        together(calls)
        kept = house.store._interim.values.values()
        assert len(kept) == 4 * STEPS
        for value in kept:
            assert value.nbytes() == 2 * START.data.nbytes


class TestTheCostOfIt:
    def test_contents_are_hashed_before_the_first_unet_call_and_never_again(self, house, monkeypatch):
        """On an accelerator every hash waits for a copy."""
        unet, hashed = house.shelf.models[PLAIN].unet, []

        def counting_sha256(data):
            hashed.append(unet.asked)
            return hashlib.sha256(data)

        monkeypatch.setattr("nodes.resume.sha256", counting_sha256)
        sample(**arguments(positive=edited(1, 3), control=hint(start=0.5)), context=house.context())
        assert hashed == [0] * 5, "two rows, the negative prompt, the hint and the noisy latents"

    def test_nothing_is_compared_while_nothing_is_known(self, house, monkeypatch):
        monkeypatch.setattr("torch.equal", lambda *_: pytest.fail("this waits for an accelerator"))
        sample(**arguments(), context=house.context())

    def test_a_result_costs_what_its_steps_cost_wherever_they_were_made(self, house):
        context = house.context()
        sample(**arguments(), context=house.context())
        sample(**arguments(), context=context)
        kept = [house.store._interim.seconds(identity) for identity in house.store.identities()]
        assert context.spared == pytest.approx(sum(kept))
        assert context.spared > 0


class TestTheSafetyOfIt:
    def test_what_somebody_wrote_into_is_not_recalled(self, run, house):
        run()
        for number, value in enumerate(house.store._interim.values.values()):
            if number == 4:
                value.guided.add_(1)
        assert run() == (1, 7)

    def test_a_gap_in_what_is_kept_is_computed_and_the_rest_recalled(self, run, house):
        run(sampler="dpmpp_2m_sde")
        for identity in list(house.store.identities())[2:4]:
            house.store.drop_memory(identity)
        assert run(sampler="dpmpp_2m_sde") == (2, 6)

    def test_another_latent_under_a_known_key_is_not_mistaken(self, run, house, monkeypatch):
        """Keys that forget everything but the noise levels: the latents tell."""
        monkeypatch.setattr("nodes.resume.Trail._root", lambda *_: b"")
        monkeypatch.setattr("nodes.resume.Trail._active", lambda *_: [])
        assert run(noise=Noise((5,))) == (8, 0)
        assert run(noise=Noise((6,))) == (8, 0)
        assert run(noise=Noise((6,))) == (0, 8)
        assert run(noise=Noise((5,))) == (8, 0)

    def test_zero_and_minus_zero_are_different_bits(self):
        data = torch.zeros(1, 4, 8, 8)
        question = Question(data, 1.0, Guidance(words(1)))
        kept = Answered(data, data, data.new_empty(0))
        assert kept.fits(question)
        assert not kept.fits(replace(question, x=-data))
        assert not kept.fits(replace(question, x=data.contiguous(memory_format=torch.channels_last)))
        assert not kept.fits(replace(question, x=data.double()))

    def test_what_a_denoiser_sees_is_known(self):
        """A field that is added here has to find its way into the keys; see `nodes.resume`."""
        assert {entry.name for entry in fields(Question)} == {"x", "sigma", "guidance", "call", "calls"}
        assert {"positive", "negative", "controls"} <= {entry.name for entry in fields(Guidance)}
        assert {"net", "low", "high"} <= {entry.name for entry in fields(Steering)}

    def test_contents_are_told_apart(self):
        one = torch.arange(4.0)
        different = [
            *(None, 1, 1.0, True, "1", b"1", float("inf"), float("-inf"), -0.0, 0.0, (), ("1",), {"a": 1}),
            *(one, one.double(), one.reshape(2, 2), one + 1, one.to(torch.int32), Clause(one), Clause(one, 0.5)),
        ]
        found = [repr(content(value)) for value in different]
        assert len(set(found)) == len(found)
        assert content(one.reshape(2, 2).T) == content(one.reshape(2, 2).T.contiguous())

    def test_what_cannot_be_told_is_refused(self):
        with pytest.raises(TypeError, match="object: expected tensors, numbers, text or a dataclass of them"):
            content([object()])


def test_nothing_is_kept_in_a_notebook(house):
    sample(**arguments(), context=house.context(remembers=False))
    assert house.store.identities() == set()
