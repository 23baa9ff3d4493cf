"""Prompts with places and spans, through the nodes on the embedded model."""

from pathlib import Path

import pytest
import torch

import pocket
from engine.context import Context
from engine.file import Files, ModelFile
from engine.models import ModelPool
from nodes import latent, mask, model, noise, text
from nodes.conditioning import area, combine, span
from nodes.conditioning import mask as placed
from nodes.sample import sample

SIZE = 64


@pytest.fixture(scope="module")
def bench():
    files = Files(named={"pocket": Path(pocket.FOLDER)})
    return model.load(files.resolve(ModelFile, "pocket")), Context(models=ModelPool(files))


@pytest.fixture(scope="module")
def words(bench):
    parts, context = bench
    return {name: text.encode(parts.text, context, text=name) for name in ("red", "blue", "")}


@pytest.fixture(scope="module")
def run(bench, words):
    parts, context = bench
    start = latent.empty(parts.vae, context, width=SIZE, height=SIZE)

    def call(positive, negative=None, **more):
        told = {"steps": 4, "cfg": 4.0, "sampler": "euler", "schedule": "karras"} | more
        against = words[""] if negative is None else negative
        return sample(parts.unet, positive, start, noise.seeded(seed=3), context, negative=against, **told).data

    return call


def test_a_prompt_in_all_of_the_picture_is_the_prompt(run, words):
    everywhere = area(words["red"], width=1.0, height=1.0, unit="share", strength=0.25)
    torch.testing.assert_close(run(everywhere), run(words["red"]))


def test_a_prompt_of_no_strength_has_no_say(run, words):
    both = combine(words["red"], area(words["blue"], width=32, height=64, strength=0.0))
    torch.testing.assert_close(run(both), run(words["red"]))


def test_a_mask_of_all_of_the_picture_is_like_no_mask(run, words):
    white = mask.rectangle(SIZE, SIZE, x=0, y=0, w=SIZE, h=SIZE)
    both = combine(placed(words["red"], white), placed(words["blue"], white, strength=3.0))
    torch.testing.assert_close(run(both), run(combine(words["red"], words["blue"], 0.75)), rtol=1e-4, atol=1e-4)


def test_one_prompt_after_another_is_two_runs_after_one_another(run, words):
    levels = 4
    first, second = span(words["red"], end=0.5), span(words["blue"], start=0.5)
    both = run(combine(first, second))
    assert not torch.allclose(both, run(words["red"]))
    assert not torch.allclose(both, run(words["blue"]))
    late = combine(span(words["red"], end=0.9999), span(words["blue"], start=0.9999))
    torch.testing.assert_close(
        run(late, last=levels - 1, leftover=True), run(words["red"], last=levels - 1, leftover=True)
    )


def test_a_negative_prompt_may_have_gaps(run, words):
    never = run(words["red"], span(words[""], start=0.9999), last=3, leftover=True)
    torch.testing.assert_close(never, run(words["red"], cfg=1.0, last=3, leftover=True))


def test_a_step_without_any_prompt_is_refused(run, words):
    with pytest.raises(ValueError, match=r"no prompt counts from 40% to 50% of the way: combine it with one whose"):
        run(combine(span(words["red"], end=0.4), span(words["blue"], start=0.5)))
