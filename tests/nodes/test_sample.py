"""Calls of `sample` in company: each comes out as alone, ends alone, and reports to its own context."""

from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import PIL.Image
import pytest
import torch
from company import rounds, together

import graphs
import pocket
from engine.context import CancelToken, Context
from engine.errors import Cancelled
from engine.file import Files, ModelFile
from engine.models import ModelPool
from nodes import image, mask, model, noise, repaint, text, vae
from nodes.sample import sample, sample_many
from nodes.types import Colours, Conditioning, Control, ControlNet, Hint, Image, Latent, Mask, Noise, UnetModel

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
    return {name: text.encode(parts.text, Context(models=pool), text=prompt) for name, prompt in words.items()}


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


@pytest.fixture
def repainted(call, prompts, parts, pool):
    """Calls that differ in how they keep a part, and in prompts that are joined or change on the way."""
    soft, area = repaint.soft(1.0, 1.5), mask.blur(mask.ellipse(64, 64, x=8, y=8, w=40, h=40), 6)
    context = Context(models=pool)
    changing, joined = (
        text.encode(parts.text, context, text=words)
        for words in ("[a cat:smiling face:0.5] [red|blue]", "smiling face :1.2 AND a cat :-0.3")
    )
    nothing = prompts["none"]
    return [
        call(steps=4, cfg=4.0, negative=nothing, mask=area, round_mask=False),
        call(steps=5, cfg=3.0, negative=nothing, mask=area, soft=soft, sampler="dpmpp_2m", noise=noise.seeded(2, 2)),
        call(steps=6, cfg=2.0, positive=changing, negative=nothing, noise=Noise((3,)), sampler="heun"),
        call(steps=3, cfg=2.5, positive=joined, negative=prompts["cat"], noise=Noise((4,)), mask=area),
        call(steps=4, cfg=1.0, positive=joined, negative=changing, noise=Noise((5,))),
        call(steps=3, cfg=1.0),
    ]


def assert_alike(made, alone):
    assert ((made.data - alone.data).norm() / alone.data.norm()).item() < 1e-4


def test_a_call_in_company_comes_out_as_alone(varied):
    for made, arguments in zip(together(varied), varied, strict=True):
        made.check()
        assert_alike(made, sample(**arguments))


def test_a_call_made_through_the_companion_alone_is_the_call_itself_bit_by_bit(varied):
    for arguments in varied:
        assert torch.equal(together([arguments])[0].data, sample(**arguments).data)


def test_calls_that_keep_and_say_things_differently_come_out_as_alone(repainted):
    for made, arguments in zip(together(repainted), repainted, strict=True):
        made.check()
        assert_alike(made, sample(**arguments))


@dataclass
class Listening:
    """A UNet that notes what it is told."""

    unet: object
    heard: list = field(default_factory=list)

    @property
    def dtype(self):
        return self.unet.dtype

    @property
    def config(self):
        return self.unet.config

    def __call__(self, sample, timestep, encoder_hidden_states, **options):
        self.heard.append(encoder_hidden_states)
        return self.unet(sample, timestep, encoder_hidden_states, **options)


@pytest.fixture
def listening(pool, parts):
    """Give a UNet that notes what it is told, and a context that knows only this one."""
    real = Context(models=pool).model(parts.unet)
    unet = Listening(real.unet)
    return unet, Context(models=Shelf({parts.unet: UnetModel(unet, real.table)}))


class TestPrompts:
    @pytest.fixture
    def said(self, parts, pool):
        return lambda words: text.encode(parts.text, Context(models=pool), text=words)

    @pytest.mark.parametrize("plan", [("euler", 10, 6), ("heun", 10, 11), ("euler", 4, 3)])
    def test_an_edited_prompt_changes_after_the_call_that_the_webui_would_change_it_after(
        self, call, said, listening, plan
    ):
        """[a:b:0.5] shows a up to and including call 0.5 * steps; a second-order sampler counts twice as many."""
        (sampler, steps, cats), (unet, context) = plan, listening
        edited, cat, face = said("[a cat:smiling face:0.5]"), said("a cat"), said("smiling face")
        sample(**call(context=context, positive=edited, sampler=sampler, steps=steps))
        heard = ["cat" if torch.equal(one, cat.data) else "face" for one in unet.heard]
        assert heard == ["cat"] * cats + ["face"] * (len(heard) - cats)
        assert torch.equal(unet.heard[-1], face.data)

    def test_joined_prompts_are_the_formula(self, call, said, listening):
        """One step onto sigma 0 returns what is predicted, so results combine as predictions do."""
        step = {"steps": 1, "denoise": 0.5, "sampler": "euler"}
        nothing, cat, face = (sample(**call(**step, positive=said(words))).data for words in ("", "a cat", "face"))
        joined = call(**step, cfg=3.0, positive=said("a cat :0.7 AND face :-0.2"), negative=said(""))
        expected = nothing + 0.7 * 3 * (cat - nothing) - 0.2 * 3 * (face - nothing)
        torch.testing.assert_close(sample(**joined).data, expected, rtol=1e-3, atol=1e-3)

    @pytest.mark.parametrize(
        ("words", "weights"), [("a cat AND face", "1, 1"), ("a cat :1.5", "1.5"), ("a cat:0.2 AND face", "0.2, 1")]
    )
    def test_weighed_prompts_without_a_negative_are_refused(self, call, said, words, weights):
        with pytest.raises(ValueError, match=f"the weights {weights} are weighed against a negative one: link `negat"):
            sample(**call(positive=said(words)))

    def test_a_unet_whose_blocks_name_their_widths_takes_any_of_them(self, call, listening):
        unet, context = listening
        unet.unet = Configured(unet.unet, cross_attention_dim=(128, 128, 128))
        assert_alike(sample(**call(context=context)), sample(**call()))
        with pytest.raises(ValueError, match="the conditioning is 1 x 77 x 9, this UNet takes 1 x tokens x 128;"):
            sample(**call(context=context, positive=Conditioning(torch.zeros(1, 77, 9))))


class Configured:
    """A UNet with another config."""

    def __init__(self, unet, **changed):
        self.unet, self.dtype = unet, unet.dtype
        self.config = SimpleNamespace(**{**unet.config, **changed})

    def __call__(self, *given, **options):
        return self.unet(*given, **options)


class TestGreyMasks:
    @pytest.fixture
    def grey(self):
        return Mask(torch.full((1, 1, 64, 64), 100, dtype=torch.uint8))

    def test_a_grey_mask_is_rounded_unless_told_otherwise(self, call, start, grey):
        assert torch.equal(sample(**call(mask=grey)).data, start.data)
        assert not torch.allclose(sample(**call(mask=grey, round_mask=False)).data, start.data, atol=0.05)

    def test_an_unrounded_mask_mixes_by_its_level(self, call, start, grey):
        """One step onto sigma 0 returns what is predicted, blended; and is blended once more at the end."""
        step = {"steps": 1, "denoise": 0.5}
        mixed, share = sample(**call(**step, mask=grey, round_mask=False)).data, (100 / 255) ** 2
        expected = start.data + share * (sample(**call(**step)).data - start.data)
        torch.testing.assert_close(mixed, expected, rtol=1e-4, atol=1e-4)

    def test_a_soft_mask_is_not_rounded(self, call, start, grey):
        soft = sample(**call(mask=grey, soft=repaint.soft())).data
        assert torch.equal(soft, sample(**call(mask=grey, soft=repaint.soft(), round_mask=False)).data)
        assert not torch.allclose(soft, start.data, atol=0.05)

    def test_soft_inpainting_under_a_white_mask_is_plain_sampling_and_under_a_black_one_none(self, call, start):
        white, black = (Mask(torch.full((1, 1, 64, 64), level, dtype=torch.uint8)) for level in (255, 0))
        plain, painted, kept = (
            sample(**call(**options)).data
            for options in ({}, {"mask": white, "soft": repaint.soft()}, {"mask": black, "soft": repaint.soft()})
        )
        torch.testing.assert_close(painted, plain, rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(kept, start.data, rtol=1e-3, atol=1e-3)

    def test_soft_inpainting_needs_a_mask(self, call):
        with pytest.raises(ValueError, match="link `mask`, or take the link of `soft` away"):
            sample(**call(soft=repaint.soft()))


def test_no_result_keeps_the_memory_of_its_company(call):
    """The last answer that this sampler gets, a part of what a UNet call gave, is its result."""
    for result in together([call(sampler="dpmpp_2m"), call(sampler="dpmpp_2m", noise=noise.seeded(2, 2))]):
        assert result.nbytes() == result.data.nbytes


def test_where_memory_is_scarce_a_unet_call_takes_one_latent_at_a_time(call, pool, prompts):
    witness = Witness(pool)
    options = {"steps": 2, "cfg": 3.0, "negative": prompts["none"]}
    scarce = call(witness=witness, **options)
    scarce["context"].again(scarce=True)
    found = sample(**scarce).data
    assert witness.taken == [("unet_calls", 1)] * 4
    torch.testing.assert_close(found, sample(**call(**options)).data, rtol=1e-4, atol=1e-4)


def test_calls_share_unet_calls_whatever_their_steps_and_the_first_that_took_part_counts(call, pool):
    first, second = Witness(pool), Witness(pool)
    together(
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
    together([call(witness=witness, **plan) for witness, plan in zip(witnesses, plans, strict=True)])
    assert witnesses[0].steps == [(0, 2), (1, 2), (2, 2)]
    assert witnesses[1].steps == [(done, 7) for done in range(8)]
    assert witnesses[2].steps == []


class TestNewcomers:
    def test_a_call_that_comes_later_takes_part_from_then_on_and_is_finished_when_its_own_steps_are(self, call, pool):
        first, second = Witness(pool), Witness(pool)
        calls = [call(witness=first, steps=6), call(witness=second, steps=2, noise=noise.seeded(7, 2))]
        finished = rounds(calls[:1], {2: calls[1:]})
        assert [list(each) for each in finished] == [[], [], [], [1], [], [0]]
        assert first.taken == [("unet_calls", latents) for latents in (1, 1, 3, 3, 1, 1)]
        assert second.taken == []
        assert first.steps == [(done, 6) for done in range(7)]
        assert second.steps == [(done, 2) for done in range(3)]

    def test_whoever_is_left_counts(self, call, pool):
        first, second = Witness(pool), Witness(pool)
        rounds([call(witness=first, steps=2)], {1: [call(witness=second, steps=3)]})
        assert first.taken == [("unet_calls", 1), ("unet_calls", 2)]
        assert second.taken == [("unet_calls", 1)] * 2

    @pytest.mark.parametrize("plan", [{0: 1}, {0: 3, 1: 2, 4: 1}, {0: 2, 2: 4}])
    def test_whenever_calls_come_they_come_out_as_alone(self, varied, plan):
        left, late = list(varied), {}
        for number, count in plan.items():
            late[number], left = left[:count], left[count:]
        late[3] = left
        calls = [each for number in sorted(late) for each in late[number]]
        for made, arguments in zip(together(late.pop(0), late), calls, strict=True):
            made.check()
            assert_alike(made, sample(**arguments))

    def test_one_that_is_cancelled_leaves_those_that_were_there_where_they_are(self, call, pool):
        witnesses = [Witness(pool), Witness(pool, until=1)]
        calls = [call(witness=each, steps=5, noise=Noise((seed,))) for seed, each in enumerate(witnesses)]
        finished = rounds(calls[:1], {2: calls[1:]})
        assert isinstance(finished[3][1], Cancelled)
        assert witnesses[0].taken == [("unet_calls", latents) for latents in (1, 1, 2, 2, 1)]
        assert_alike(finished[4][0], sample(**call(steps=5, noise=Noise((0,)))))

    def test_one_that_is_refused_is_finished_in_the_round_that_it_comes_for(self, call):
        finished = rounds([call(steps=3)], {1: [call(cfg=7.0)]})
        assert [list(each) for each in finished] == [[], [1], [0]]
        assert isinstance(finished[1][1], ValueError)


class TestWhatEndsAlone:
    def test_a_cancelled_call_within_one_step(self, call, pool):
        witnesses = [Witness(pool), Witness(pool, until=2), Witness(pool)]
        calls = [call(witness=each, steps=5, noise=Noise((seed,))) for seed, each in enumerate(witnesses)]
        first, cancelled, last = together(calls)
        assert isinstance(cancelled, Cancelled)
        assert witnesses[1].steps == [(0, 5), (1, 5), (2, 5)]
        assert witnesses[0].taken == [("unet_calls", latents) for latents in (3, 3, 3, 2, 2)]
        assert_alike(first, sample(**call(steps=5, noise=Noise((0,)))))
        assert_alike(last, sample(**call(steps=5, noise=Noise((2,)))))

    def test_a_call_that_is_cancelled_before_its_first_step(self, call, pool):
        witnesses = [Witness(pool, until=0), Witness(pool)]
        cancelled, finished = together([call(witness=each) for each in witnesses])
        assert isinstance(cancelled, Cancelled)
        assert_alike(finished, sample(**call()))
        assert witnesses[0].taken == [("unet_calls", 2)]
        assert witnesses[1].taken == [("unet_calls", 1), ("unet_calls", 1)]

    def test_all_calls_cancelled_make_no_unet_call_more(self, call, pool):
        witnesses = [Witness(pool, until=1), Witness(pool, until=1)]
        results = together([call(witness=each, steps=9) for each in witnesses])
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
        finished, refused = together([call(), call(**wrong)])
        assert_alike(finished, sample(**call()))
        with pytest.raises(ValueError, match=message):
            raise refused
        with pytest.raises(ValueError, match=message):
            sample(**call(**wrong))

    def test_masks_that_are_neither_one_nor_as_many_as_the_pictures(self, call):
        areas = Mask(torch.full((3, 1, 64, 64), 255, dtype=torch.uint8))
        finished, refused = together([call(), call(noise=noise.seeded(1, 2), mask=areas)])
        assert isinstance(finished, Latent)
        with pytest.raises(ValueError, match="3 masks for 2 pictures; give one mask, or as many as pictures"):
            raise refused

    def test_a_call_whose_listener_raises(self, call, pool):
        def raising(done, total, preview):
            raise ArithmeticError(f"{done} of {total}")

        failed, finished = together([call(context=Context(models=pool, listener=raising)), call()])
        assert_alike(finished, sample(**call()))
        with pytest.raises(ArithmeticError, match="0 of 3"):
            raise failed

    def test_a_call_whose_control_cannot_be_loaded(self, call):
        lines, nothing = torch.zeros(1, 3, 64, 64, dtype=torch.uint8), torch.zeros(0, 1, 1, 1, dtype=torch.uint8)
        control = Control((Hint(ControlNet("00" * 32)),), (lines,), (nothing,))
        finished, failed = together([call(), call(control=control)])
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

    def settle(self, ref, module):
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
    return unet, Shelf({parts.unet: UnetModel(unet, real.table)})


def test_what_a_unet_call_raises_passes_for_all(call, fragile):
    unet, shelf = fragile
    unet.most = 0
    with pytest.raises(torch.OutOfMemoryError, match="no memory for 1 latents"):
        together([call(context=Context(models=shelf)) for _ in range(3)])
    assert unet.calls == [3, 1]
    unet.most = 2
    assert [type(one) for one in together([call(context=Context(models=shelf)) for _ in range(2)])] == [Latent] * 2


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
        together([call(context=contexts[0], noise=noise.seeded(1, 2)), call(context=contexts[1], latent=wide, steps=2)])
        for witness, size, steps in zip(witnesses, [(8, 8), (16, 8)], [3, 2], strict=True):
            assert [(len(shown.data), shown.size) for shown in witness.shown] == [(1, size)] * steps
            for shown in witness.shown:
                shown.check()

    def test_the_last_preview_is_the_result_in_small(self, call, parts, pool):
        with PIL.Image.open(PHOTO) as photo:
            picture = image.resize(Image.of(photo), width=128, height=128, mode="crop").out
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


class Form:
    """A compiled form that is not compiled, and has something to say."""

    def __init__(self, unet):
        self.unet, self.dtype, self.said = unet, unet.dtype, ["it is slower than it could be"]
        self.renewed = 0

    def __call__(self, *given, **named):
        return self.unet(*given, **named)

    def renew(self):
        self.renewed += 1

    def notes(self):
        said, self.said = self.said, []
        return said


@pytest.fixture
def forms(monkeypatch):
    made = []
    monkeypatch.setattr("nodes.sample.compiled", lambda unet: made.append(Form(unet)) or made[-1])
    return made


def test_the_unet_is_compiled_where_that_was_asked_for(call, pool, forms):
    plain = sample(**call(steps=2))
    assert forms == []
    told = []
    same = sample(**call(steps=2, context=Context(models=pool, compiled=True, alarm=told.append)))
    assert [form.renewed for form in forms] == [0]
    assert torch.equal(plain.data, same.data)
    assert told == ["it is slower than it could be"]


def test_a_call_that_joins_others_has_the_compiled_form_look_whether_weights_moved(call, pool, forms):
    first, late = (call(steps=steps, context=Context(models=pool, compiled=True)) for steps in (4, 2))
    rounds = sample_many([first])
    next(rounds)
    assert forms[0].renewed == 0
    rounds.send([late])
    assert forms[0].renewed == 1
    assert [*rounds.send([]), *rounds.send([])] == [1, 0]
    assert (len(forms), forms[0].renewed) == (1, 1)
