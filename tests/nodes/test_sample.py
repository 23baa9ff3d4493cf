"""Calls of `sample` in company: each comes out as alone, ends alone, and reports to its own context."""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch

import graphs
import pocket
from engine.context import CancelToken, Context
from engine.errors import Cancelled
from engine.file import Files, ModelFile
from engine.models import ModelPool
from nodes import image, mask, model, noise, text, vae
from nodes.sample import sample, sample_many
from nodes.types import Colours, Conditioning, Image, Latent, Mask, Noise, Unet, UnetModel

PHOTO = Path(graphs.__file__).parent / "inputs" / "fox.png"
DEFAULTS = {"steps": 3, "cfg": 1.0, "denoise": 0.75, "sampler": "euler", "schedule": "karras"}


@pytest.fixture(scope="module")
def files():
    return Files(named={"pocket": pocket.FOLDER})


@pytest.fixture(scope="module")
def pool(files):
    return ModelPool(files)


@pytest.fixture(scope="module")
def parts(files):
    return model.load(files.resolve(ModelFile, "pocket"))


@pytest.fixture(scope="module")
def prompts(parts, pool):
    words = {"face": "smiling face", "cat": "a cat " * 60, "none": ""}
    return {name: text.encode(parts.text, Context(models=pool), prompt) for name, prompt in words.items()}


@pytest.fixture(scope="module")
def start(parts, pool):
    coarse = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(5))
    photo = Image((torch.nn.functional.interpolate(coarse, size=(64, 64)) * 255).to(torch.uint8))
    return vae.encode(parts.vae, photo, Context(models=pool))


@dataclass
class Witness:
    """What one call reports; cancels it once it has done `until` steps."""

    pool: ModelPool
    until: int | None = None
    steps: list = field(default_factory=list)
    taken: list = field(default_factory=list)
    shown: list = field(default_factory=list)

    def context(self, *, looks=False):
        token = CancelToken()

        def listen(done, total, preview):
            self.steps.append((done, total))
            if looks and preview is not None:
                self.shown.append(preview())
            if done == self.until:
                token.cancel()

        return Context(
            models=self.pool, listener=listen, token=token, meter=lambda name, value: self.taken.append((name, value))
        )


@pytest.fixture
def call(parts, prompts, pool, start):
    """The arguments of one call, as the engine hands them over: what is not linked is missing."""

    def arguments(*, witness=None, **options):
        context = Context(models=pool) if witness is None else witness.context()
        given = {"unet": parts.unet, "positive": prompts["face"], "latent": start, "noise": Noise((1,))}
        return {**given, "context": context, **DEFAULTS, **options}

    return arguments


@pytest.fixture
def varied(call, prompts, start):
    """Calls that differ in everything that may differ."""
    area = mask.rectangle(64, 64, x=16, y=24, w=32, h=16)
    wide = Latent(torch.cat([start.data, start.data.flip(3)], dim=3), start.space)
    face, cat, nothing = prompts["face"], prompts["cat"], prompts["none"]
    return [
        call(steps=5, cfg=5.0, positive=face, negative=nothing, noise=Noise((1,)), sampler="euler"),
        call(steps=3, cfg=1.0, positive=cat, noise=noise.seeded(2, 2), sampler="heun", schedule="normal"),
        call(steps=8, cfg=7.5, positive=face, negative=cat, noise=Noise((3,)), sampler="dpmpp_2m", mask=area),
        call(steps=4, cfg=3.0, negative=nothing, noise=noise.seeded(4, 3, 9, 0.4), sampler="euler_ancestral"),
        call(steps=2, cfg=1.0, latent=wide, noise=Noise((5,)), sampler="ddim", schedule="exponential", denoise=1.0),
        call(steps=6, cfg=2.0, negative=face, noise=Noise((6,)), denoise=0.0),
    ]


def assert_alike(together, alone):
    assert ((together.data - alone.data).norm() / alone.data.norm()).item() < 1e-4


def test_a_call_in_company_comes_out_as_alone(varied):
    for together, arguments in zip(sample_many(varied), varied, strict=True):
        together.check()
        assert_alike(together, sample(**arguments))


def test_a_call_made_through_the_companion_alone_is_the_call_itself_bit_by_bit(varied):
    for arguments in varied:
        assert torch.equal(sample_many([arguments])[0].data, sample(**arguments).data)


def test_no_result_keeps_the_memory_of_its_company(call):
    """The last answer that this sampler gets, a part of what a UNet call gave, is its result."""
    for result in sample_many([call(sampler="dpmpp_2m"), call(sampler="dpmpp_2m", noise=noise.seeded(2, 2))]):
        assert result.nbytes() == result.data.nbytes


def test_no_calls_have_no_results():
    assert sample_many([]) == []


def test_calls_share_unet_calls_whatever_their_steps_and_the_first_that_took_part_counts(call, pool):
    first, second = Witness(pool), Witness(pool)
    sample_many(
        [
            call(witness=first, steps=2),
            call(witness=second, steps=3, noise=noise.seeded(7, 2), sampler="dpmpp_2m"),
        ]
    )
    assert first.taken == [("unet_calls", 3), ("unet_calls", 3)]
    assert second.taken == [("unet_calls", 2)]


def test_a_call_alone_counts_both_sides_of_its_guidance(call, prompts, pool):
    witness = Witness(pool)
    sample(**call(witness=witness, steps=2, cfg=4.0, negative=prompts["none"], noise=noise.seeded(7, 2)))
    assert witness.taken == [("unet_calls", 4), ("unet_calls", 4)]


def test_every_call_reports_its_own_steps_and_no_more(call, pool):
    witnesses = [Witness(pool) for _ in range(3)]
    plans = [{"steps": 2}, {"steps": 4, "sampler": "heun"}, {"steps": 3, "denoise": 0.0}]
    sample_many([call(witness=witness, **plan) for witness, plan in zip(witnesses, plans, strict=True)])
    assert witnesses[0].steps == [(0, 2), (1, 2), (2, 2)]
    assert witnesses[1].steps == [(done, 7) for done in range(8)]
    assert witnesses[2].steps == []


class TestWhatEndsAlone:
    def test_a_cancelled_call_within_one_step(self, call, pool):
        witnesses = [Witness(pool), Witness(pool, until=2), Witness(pool)]
        calls = [call(witness=each, steps=5, noise=Noise((seed,))) for seed, each in enumerate(witnesses)]
        first, cancelled, last = sample_many(calls)
        assert isinstance(cancelled, Cancelled)
        assert witnesses[1].steps == [(0, 5), (1, 5), (2, 5)]
        assert witnesses[0].taken == [("unet_calls", latents) for latents in (3, 3, 3, 2, 2)]
        assert_alike(first, sample(**call(steps=5, noise=Noise((0,)))))
        assert_alike(last, sample(**call(steps=5, noise=Noise((2,)))))

    def test_a_call_that_is_cancelled_before_its_first_step(self, call, pool):
        witnesses = [Witness(pool, until=0), Witness(pool)]
        cancelled, finished = sample_many([call(witness=each) for each in witnesses])
        assert isinstance(cancelled, Cancelled)
        assert_alike(finished, sample(**call()))
        assert witnesses[0].taken == [("unet_calls", 2)]
        assert witnesses[1].taken == [("unet_calls", 1), ("unet_calls", 1)]

    def test_all_calls_cancelled_make_no_unet_call_more(self, call, pool):
        witnesses = [Witness(pool, until=1), Witness(pool, until=1)]
        results = sample_many([call(witness=each, steps=9) for each in witnesses])
        assert [type(result) for result in results] == [Cancelled, Cancelled]
        assert witnesses[0].taken == [("unet_calls", 2), ("unet_calls", 2)]

    @pytest.mark.parametrize(
        ("wrong", "message"),
        [
            ({"cfg": 7.0}, "link `negative`, or set cfg to 1"),
            ({"noise": Noise((1, 2, 3)), "latent": Latent(torch.zeros(2, 4, 8, 8))}, "noise for 3 pictures and 2"),
            ({"mask": mask.rectangle(32, 64, x=0, y=0, w=8, h=8)}, "the mask has 32 x 64 px, the latent 64 x 64 px"),
            ({"latent": Latent(torch.zeros(1, 3, 8, 8))}, "the latent has 3 channels, this UNet takes 4"),
            ({"positive": Conditioning(torch.zeros(1, 77, 9))}, "the conditioning is 1 x 77 x 9, this UNet takes 1 x"),
        ],
    )
    def test_a_call_that_is_refused(self, call, wrong, message):
        finished, refused = sample_many([call(), call(**wrong)])
        assert_alike(finished, sample(**call()))
        with pytest.raises(ValueError, match=message):
            raise refused
        with pytest.raises(ValueError, match=message):
            sample(**call(**wrong))

    def test_masks_that_are_neither_one_nor_as_many_as_the_pictures(self, call):
        areas = Mask(torch.full((3, 1, 64, 64), 255, dtype=torch.uint8))
        finished, refused = sample_many([call(), call(noise=noise.seeded(1, 2), mask=areas)])
        assert isinstance(finished, Latent)
        with pytest.raises(ValueError, match="3 masks for 2 pictures; give one mask, or as many as pictures"):
            raise refused

    def test_a_call_whose_listener_raises(self, call, pool):
        def raising(done, total, preview):
            raise ArithmeticError(f"{done} of {total}")

        failed, finished = sample_many([call(context=Context(models=pool, listener=raising)), call()])
        assert_alike(finished, sample(**call()))
        with pytest.raises(ArithmeticError, match="0 of 3"):
            raise failed

    def test_a_call_whose_model_cannot_be_loaded(self, call, parts):
        finished, failed = sample_many([call(), call(unet=Unet("00" * 32))])
        assert_alike(finished, sample(**call()))
        assert isinstance(failed, Exception)


@dataclass
class Shelf:
    """Models by their references, instead of a pool."""

    models: dict

    def acquire(self, ref, place):
        return self.models[ref]

    def release(self, ref):
        pass


@dataclass
class Fragile:
    """A UNet that runs out of memory when it is asked for more than `most` latents."""

    unet: object
    most: int
    calls: list = field(default_factory=list)

    @property
    def dtype(self):
        return self.unet.dtype

    @property
    def config(self):
        return self.unet.config

    def __call__(self, sample, *rest, **options):
        self.calls.append(len(sample))
        if len(sample) > self.most:
            raise torch.OutOfMemoryError(f"no memory for {len(sample)} latents")
        return self.unet(sample, *rest, **options)


@pytest.fixture
def fragile(pool, parts):
    """Give a UNet that stands no more than two latents, and contexts that know only this one."""
    real = Context(models=pool).model(parts.unet)
    unet = Fragile(real.unet, most=2)
    return unet, Shelf({parts.unet: UnetModel(unet, real.table), Unet(parts.unet.digest, "float32"): real})


def test_what_a_unet_call_raises_passes_for_all(call, fragile):
    unet, shelf = fragile
    with pytest.raises(torch.OutOfMemoryError, match="no memory for 3 latents"):
        sample_many([call(context=Context(models=shelf)) for _ in range(3)])
    assert unet.calls == [3]
    assert [type(one) for one in sample_many([call(context=Context(models=shelf)) for _ in range(2)])] == [Latent] * 2


def test_models_share_rounds_but_no_unet_calls(call, fragile, parts):
    unet, shelf = fragile
    witnesses = [Witness(shelf) for _ in range(4)]
    other = Unet(parts.unet.digest, "float32")
    refs = [parts.unet, other, parts.unet, other]
    results = sample_many([call(witness=each, unet=ref) for each, ref in zip(witnesses, refs, strict=True)])
    assert unet.calls == [2, 2, 2]
    assert [len(each.taken) for each in witnesses] == [3, 3, 0, 0]
    for result in results:
        assert_alike(result, sample(**call()))


class TestPreviews:
    @pytest.fixture
    def fresh(self, files):
        return ModelPool(files)

    def test_nothing_is_loaded_while_nobody_looks(self, call, fresh, parts):
        witness = Witness(fresh)
        sample(**call(witness=witness))
        assert fresh.held() == parts.unet.module_bytes(fresh.acquire(parts.unet, "cpu"))

    def test_what_stays_of_the_vae_is_a_few_numbers(self, call, fresh, parts):
        witness = Witness(fresh)
        sample(**call(context=witness.context(looks=True)))
        assert fresh.held() == parts.unet.module_bytes(fresh.acquire(parts.unet, "cpu")) + 60

    def test_each_call_shows_its_own_first_picture_after_every_answer(self, call, pool, start):
        wide = Latent(torch.cat([start.data, start.data], dim=3), start.space)
        witnesses = [Witness(pool), Witness(pool)]
        contexts = [witness.context(looks=True) for witness in witnesses]
        sample_many(
            [call(context=contexts[0], noise=noise.seeded(1, 2)), call(context=contexts[1], latent=wide, steps=2)]
        )
        for witness, size, steps in zip(witnesses, [(8, 8), (16, 8)], [3, 2], strict=True):
            assert [(len(shown.data), shown.size) for shown in witness.shown] == [(1, size)] * steps
            for shown in witness.shown:
                shown.check()

    def test_the_last_preview_is_the_result_in_small(self, call, parts, pool):
        with PIL.Image.open(PHOTO) as photo:
            picture = image.resize(Image.of(photo), width=128, height=128, mode="crop")
        latent = vae.encode(parts.vae, picture, Context(models=pool))
        witness = Witness(pool)
        sample(**call(context=witness.context(looks=True), latent=latent, denoise=0.1))
        wanted = np.asarray(picture.pil().resize((16, 16), PIL.Image.Resampling.BOX)).astype(float)
        shown = np.asarray(witness.shown[-1].pil()).astype(float)
        assert np.abs(shown - wanted).mean() < 30
        assert np.corrcoef(shown.flatten(), wanted.flatten())[0, 1] > 0.85

    def test_a_model_in_half_precision_has_previews(self, files, parts):
        colours = ModelPool(files).acquire(Colours(parts.unet.digest, "float16"), "cpu")
        full = ModelPool(files).acquire(Colours(parts.unet.digest), "cpu")
        torch.testing.assert_close(colours.matrix, full.matrix, rtol=0, atol=2)
