"""Whatever is changed about a sample between two calls, and whatever is forgotten, its bits are those from scratch.

And its broken twins: trails with a plausible mistake, each of which the same property must catch.
"""

import contextlib
import os
from functools import cache
from unittest.mock import patch

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from standins import DEPTH, LINES, PATCHED, PLAIN, House, words

import nodes.resume
from engine.errors import Cancelled
from nodes import mask, repaint
from nodes.diffusion.prompt import Part
from nodes.diffusion.sampler import SAMPLERS
from nodes.diffusion.scope import Scope
from nodes.resume import Answered, Trail
from nodes.sample import sample
from nodes.types import Conditioning, Control, Hint, Latent, Noise, SampleOptions

EXAMPLES = int(os.environ.get("CALOTYPE_RESUME_EXAMPLES", "60"))
QUIET = [HealthCheck.too_slow, HealthCheck.data_too_large]
EMPTY = torch.empty(0, 1, 1, 1, dtype=torch.uint8)
PICTURES = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(4))
STARTS = torch.randn(2, 1, 4, 8, 8, generator=torch.Generator().manual_seed(3))
AREA = mask.rectangle(64, 64, x=8, y=8, w=32, h=32)
GREY = mask.blur(AREA, 6)


def edited(first, then, when):
    return Conditioning(words(first, then), (Part(source=f"[a:b:{when}]", rows=(("a", 0), ("b", 1))),))


def joined(first, then, weight, end=1.0):
    scopes = (Scope(end=end), Scope(start=end if end < 1 else 0.0))
    parts = (Part(rows=(("a", 0),), scope=scopes[0]), Part(weight, rows=(("b", 1),), scope=scopes[1]))
    return Conditioning(words(first, then), parts)


def hint(net, picture, strength=1.0, start=0.0, end=1.0):
    return Control((Hint(net, strength, start, end),), (PICTURES[picture : picture + 1],), (EMPTY,))


POSITIVES = (
    Conditioning(words(1)),
    *(edited(1, then, when) for then, when in ((3, 0.5), (4, 0.5), (3, 0.25))),
    *(joined(1, 3, 0.5), joined(1, 3, 0.7), joined(1, 3, 1.0, end=0.5), joined(1, 4, 1.0, end=0.5)),
)
NEGATIVES = (Conditioning(words(2)), Conditioning(words(5)), edited(2, 5, 0.5), edited(2, 6, 0.5))
BOTH = Control((Hint(LINES), Hint(DEPTH, 1.0, 0.5)), (PICTURES[:1], PICTURES[1:]), (EMPTY, EMPTY))
CONTROLS = (
    *(None, hint(LINES, 0), hint(LINES, 1), hint(DEPTH, 0), hint(LINES, 0, 0.5)),
    *(hint(LINES, 0, end=0.4), hint(LINES, 0, end=0.6), hint(LINES, 0, start=0.5), hint(LINES, 1, start=0.5), BOTH),
)
SMALL = ("euler", "euler_ancestral", "heun", "dpmpp_2m", "dpmpp_2m_sde", "dpm_adaptive", "restart", "euler_cfg_pp")
CHOICES = {
    "positive": POSITIVES,
    "negative": NEGATIVES,
    "control": CONTROLS,
    "cfg": (4.0, 1.0, 4.5),
    "sampler": (*SMALL, *SAMPLERS),
    "steps": (5, 6),
    "denoise": (1.0, 0.7),
    "last": (None, 2, 4),
    "first": (0, 1),
    "leftover": (False, True),
    "noise": (Noise((5,)), Noise((6,)), Noise((5, 6)), Noise((5,), (7,), 0.5)),
    "latent": tuple(map(Latent, STARTS)),
    "unet": (PLAIN, PATCHED),
    "convention": ("exact", "a1111", "comfy"),
    "options": (
        SampleOptions(),
        *(SampleOptions(cfg_rescale=0.5), SampleOptions(eta=0.5), SampleOptions(noise_scale=0.9)),
        *(SampleOptions(seed_delta=3), SampleOptions(noise_multiplier=0.9)),
        *(SampleOptions(ngms=2.0), SampleOptions(ngms=2.0, ngms_all=True), SampleOptions(skip_early=0.4)),
    ),
    "area": ({}, {"mask": AREA}, {"mask": GREY, "round_mask": False}, {"mask": GREY, "soft": repaint.soft()}),
}
edits = st.sampled_from(list(CHOICES)).flatmap(
    lambda name: st.tuples(st.just(name), st.integers(0, len(CHOICES[name]) - 1))
)
moves = st.one_of(edits, edits, edits, st.tuples(st.sampled_from(["evict", "cancel", "back"]), st.integers(1, 7)))
scripts = st.lists(moves, min_size=2, max_size=8)


@cache
def from_scratch(places):
    """What a call gives without any memory."""
    return sample(**given_by(places), context=House().context(remembers=False)).data


def given_by(places):
    """The arguments behind numbers of choices."""
    given = {name: CHOICES[name][place] for name, place in places}
    return {**given.pop("area"), "schedule": "automatic", **given}


def check(script):
    """Follow a script: every result must be the one from scratch, bit by bit."""
    house, state = House(), dict.fromkeys(CHOICES, 0)
    history = [state]
    compare(house, state)
    for name, number in script:
        if name == "evict":
            for place, identity in enumerate(sorted(house.store.identities())):
                if place % 7 < number:
                    house.store.drop_memory(identity)
        elif name == "cancel":
            with contextlib.suppress(Cancelled):
                sample(**given_by(tuple(state.items())), context=house.context(until=number))
        elif name == "back":
            state = history[-1 - number % len(history)]
        else:
            state = {**state, name: number}
            history.append(state)
        compare(house, state)


def compare(house, state):
    places = tuple(state.items())
    found = sample(**given_by(places), context=house.context()).data
    assert torch.equal(found, from_scratch(places)), f"another result with {state}"


@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=QUIET, print_blob=True)
@given(scripts)
def test_results_are_those_from_scratch_bit_by_bit(script):
    check(script)


def forgets(*names):
    """Keys without some of what steers a run."""
    return patch.object(nodes.resume, "CHANGING", nodes.resume.CHANGING | set(names))


def forgets_the_cfg():
    return forgets("cfg")


def forgets_the_mask():
    return forgets("repaint")


def forgets_the_rescaling():
    return forgets("rescale")


def forgets_a_side(side):
    """Keys without what one side of the guidance says, or its last: what ControlNets say."""
    original = Trail._active

    def active(trail, question):
        found = original(trail, question)
        found[side] = []
        return found

    return patch.object(Trail, "_active", active)


def forgets_the_prompt():
    return forgets_a_side(0)


def forgets_the_negative_prompt():
    return forgets_a_side(1)


def forgets_the_controlnets():
    return forgets_a_side(-1)


def forgets_the_model():
    """Keys without the UNet and the sampler; what is asked about is compared all the same."""
    original = Trail.__init__
    return patch.object(Trail, "__init__", lambda trail, context, _, *rest: original(trail, context, [], *rest))


def forgets_the_sampler_and_compares_nothing():
    """Keys that know the UNet, not the sampler and its noise, and are trusted."""
    original = Trail.__init__

    def init(trail, context, origin, *rest):
        original(trail, context, origin[:1], *rest)

    return patch.multiple(Trail, __init__=init), patch.object(Answered, "fits", lambda *_: True)


def asks_what_counts_at_the_first_step():
    """Keys that say of every step what was active at the first one."""
    original = Trail._active

    def active(trail, question):
        first = trail.__dict__.setdefault("_first", question)
        return original(trail, first)

    return patch.object(Trail, "_active", active)


MISTAKES = [
    forgets_the_cfg,
    forgets_the_mask,
    forgets_the_rescaling,
    forgets_the_prompt,
    forgets_the_negative_prompt,
    forgets_the_controlnets,
    forgets_the_model,
    forgets_the_sampler_and_compares_nothing,
    asks_what_counts_at_the_first_step,
]


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda mistake: mistake.__name__)
def test_a_broken_trail_is_caught(mistake):
    @settings(
        max_examples=1000,
        deadline=None,
        suppress_health_check=QUIET,
        phases=[Phase.generate],
        database=None,
        derandomize=True,
        report_multiple_bugs=False,
    )
    @given(scripts)
    def property_(script):
        check(script)

    with contextlib.ExitStack() as broken:
        made = mistake()
        for each in made if isinstance(made, tuple) else (made,):
            broken.enter_context(each)
        with pytest.raises(AssertionError, match="another result with"):
            property_()
