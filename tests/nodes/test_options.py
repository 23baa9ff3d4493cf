"""Every sampler as a node: pictures of a batch are those made alone, in company too; and what options do to them."""

from typing import get_args

import pytest
import torch
from company import together

import pocket
from engine.context import Context
from engine.file import Files, ModelFile
from engine.models import ModelPool
from nodes import mask, model, noise, text
from nodes.diffusion.sampler import SAMPLERS
from nodes.diffusion.schedule import SCHEDULES, karras
from nodes.diffusion.table import NoiseSchedule
from nodes.noise import streams
from nodes.options import keywords, options
from nodes.sample import SamplerName, ScheduleName, sample
from nodes.types import Latent, Noise, SampleOptions

OTHERS = sorted({*SAMPLERS} - {"dpm_adaptive"})


@pytest.fixture(scope="module", autouse=True)
def _threads():
    torch.set_num_threads(min(2, torch.get_num_threads()))


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
def call(parts, pool):
    """The arguments of one small call: two latents of 4 x 4 cells to start from, three steps."""
    positive, empty = (text.encode(parts.text, Context(models=pool), text=words) for words in ("smiling face", ""))
    start = Latent(torch.randn(2, 4, 4, 4, generator=torch.Generator().manual_seed(5)))

    def arguments(**given):
        settings = {"steps": 3, "cfg": 1.0, "denoise": 0.75, "sampler": "euler", "schedule": "automatic"}
        fixed = {"unet": parts.unet, "positive": positive, "latent": start, "noise": Noise((1, 2))}
        if SAMPLERS[given.get("sampler", "euler")].unguided:
            fixed["negative"] = empty
        return {**fixed, "context": Context(models=pool), **settings, **given}

    return arguments


def standard():
    return NoiseSchedule.from_betas(0.00085, 0.012)


def assert_alike(together, alone):
    assert ((together - alone).norm() / alone.norm()).item() < 1e-4


def second(call, **given):
    """The call for the second picture alone."""
    arguments = call(**given)
    return {**arguments, "latent": Latent(arguments["latent"].data[1:]), "noise": Noise((2,))}


def test_the_nodes_names_are_the_tables_names():
    assert set(get_args(SamplerName)) == set(SAMPLERS)
    assert set(get_args(ScheduleName)) == {"automatic", *SCHEDULES}


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_picture_of_a_batch_is_the_picture_made_alone(name, call):
    told = options(churn=2.0, sigma_min=0.3)  # dpm_adaptive has less to do
    both, alone = sample(**call(sampler=name, options=told)), sample(**second(call, sampler=name, options=told))
    both.check()
    assert_alike(both.data[1:], alone.data)


def test_every_sampler_comes_out_in_company_as_alone(call):
    calls = [call(sampler=name) for name in OTHERS]
    for name, result in zip(OTHERS, together(calls), strict=True):
        assert_alike(result.data, sample(**call(sampler=name)).data)


@pytest.mark.parametrize("name", ["dpmpp_2m_sde", "restart", "dpm_fast", "uni_pc"])
def test_a_call_made_again_is_the_same_bit_by_bit(name, call):
    assert torch.equal(sample(**call(sampler=name)).data, sample(**call(sampler=name)).data)


@pytest.mark.parametrize("name", ["dpmpp_sde", "dpmpp_3m_sde", "dpm_2_ancestral", "lms"])
def test_outside_of_a_mask_every_sampler_leaves_the_latent_alone(name, call):
    area = mask.rectangle(32, 32, x=0, y=0, w=16, h=32)
    result, start = sample(**call(sampler=name, mask=area)).data, call()["latent"].data
    torch.testing.assert_close(result[..., 2:], start[..., 2:])
    assert not torch.allclose(result[..., :2], start[..., :2])


class TestWhatOptionsDo:
    @pytest.fixture
    def made(self, call):
        def make(told=None, **given):
            return sample(**call(**({} if told is None else {"options": told}), **given)).data

        return make

    def test_defaults_change_nothing(self, made):
        for name in ("euler", "euler_ancestral", "dpmpp_2m_sde"):
            assert torch.equal(made(options(), sampler=name), made(sampler=name))

    def test_options_that_a_sampler_does_not_take_change_nothing(self, made):
        told = options(eta=0.2, churn=3.0, order=1, seed_delta=31337)
        assert torch.equal(made(told, sampler="dpmpp_2m"), made(sampler="dpmpp_2m"))

    @pytest.mark.parametrize(
        ("name", "told"),
        [
            ("euler_ancestral", {"eta": 0.5}),
            ("euler_ancestral", {"seed_delta": 31337}),
            ("euler_ancestral", {"noise_scale": 0.9}),
            ("ddim", {"eta": 0.5}),
            ("heun", {"churn": 3.0}),
            ("uni_pc", {"order": 1}),
            ("lms", {"order": 1}),
            ("dpmpp_sde", {"r": 0.3}),
            ("er_sde", {"max_stage": 1}),
            ("er_sde", {"eta": 0.3}),
            ("sa_solver", {"sde_min": 5.0, "sde_max": 6.0}),
            ("dpm_adaptive", {"rtol": 0.5, "atol": 0.5, "eta": 0.0}),
            ("dpmpp_2m", {"sigma_max": 5.0}),
            ("dpmpp_2m", {"rho": 3.0}),
            ("dpmpp_2m", {"discard_penultimate": True}),
            ("dpmpp_2m", {"noise_multiplier": 0.9}),
            ("dpmpp_2m", {"extra_noise": 0.1}),
        ],
    )
    def test_options_that_it_takes_do_something(self, name, told, made):
        assert not torch.allclose(made(options(**told), sampler=name), made(sampler=name), rtol=1e-3)

    def test_without_eta_the_seed_of_the_steps_has_no_say(self, made):
        still = made(options(eta=0.0), sampler="euler_ancestral")
        assert torch.equal(still, made(options(eta=0.0, seed_delta=5), sampler="euler_ancestral"))

    def test_the_beginning_is_noise_times_its_multiplier_and_a_little_more(self, call, parts, pool):
        """With a single step at level sigma the UNet sees exactly that, so two ways to say it come out alike."""
        at = {"steps": 1, "denoise": 1.0, "schedule": "karras", "sampler": "euler"}
        high = Context(models=pool).model(parts.unet).table.sigma_max
        more = sample(**call(options=options(extra_noise=0.5), **at)).data
        multiplied = sample(**call(options=options(noise_multiplier=1 + 0.5 / high), **at)).data
        assert_alike(more, multiplied)

    def test_the_custom_schedule_has_the_levels_of_the_options(self, made):
        told = options(levels=(3.0, 1.0, 0.3))
        assert not torch.allclose(made(told, schedule="custom", denoise=1.0), made(denoise=1.0), rtol=1e-3)
        listed = made(options(levels=tuple(karras(standard(), 3).tolist()[:-1])), schedule="custom", denoise=1.0)
        assert_alike(listed, made(schedule="karras", denoise=1.0))
        with pytest.raises(ValueError, match="levels: expected noise levels that descend"):
            made(schedule="custom")

    def test_levels_are_part_of_what_options_are(self):
        assert options(levels=(3.0, 1.0)).identity() != options(levels=(3.0, 1.5)).identity()
        assert options(order=3).identity() != options().identity()

    @pytest.mark.parametrize("name", [name for name in SAMPLERS if SAMPLERS[name].unguided])
    def test_samplers_that_ask_for_the_negative_need_one_and_follow_it(self, name, made, call):
        with pytest.raises(ValueError, match="this sampler asks for what is predicted under the negative prompt"):
            made(sampler=name, negative=None)
        turned = call(sampler=name)
        turned |= {"positive": turned["negative"], "negative": turned["positive"]}
        assert not torch.allclose(sample(**turned).data, made(sampler=name), rtol=1e-3)

    def test_churn_without_a_highest_level_has_no_end(self):
        assert keywords(SampleOptions(churn=2.0))["churn"].high == float("inf")
        assert keywords(SampleOptions(churn=2.0, churn_max=5.0))["churn"].high == 5


class TestConventions:
    def steps(self, call, pool, **given):
        seen = []
        context = Context(models=pool, listener=lambda done, total, _: seen.append((done, total)))
        sample(**call(context=context, **given))
        return seen[-1] if seen else None

    @pytest.mark.parametrize(
        ("convention", "denoise", "wanted"),
        [("exact", 0.5, 4), ("a1111", 0.5, 3), ("a1111", 1.0, 4), ("a1111", 0.1, 1)],
    )
    def test_how_many_steps_run(self, convention, denoise, wanted, call, pool):
        given = {"steps": 4, "denoise": denoise, "convention": convention, "schedule": "karras"}
        assert self.steps(call, pool, **given) == (wanted, wanted)

    @pytest.mark.parametrize("convention", ["exact", "a1111"])
    def test_at_denoise_zero_nothing_runs_and_nothing_changes(self, convention, call):
        assert torch.equal(sample(**call(denoise=0.0, convention=convention)).data, call()["latent"].data)

    def test_automatic_is_the_samplers_own_schedule(self, call):
        for name, own in (("dpmpp_2m", "karras"), ("euler", "normal"), ("dpmpp_2m_sde", "exponential")):
            automatic, said = (sample(**call(sampler=name, schedule=schedule)) for schedule in ("automatic", own))
            assert torch.equal(automatic.data, said.data)


class TestNoise:
    def test_defaults_write_what_they_always_wrote(self):
        assert noise.seeded(5, 2) == Noise((5, 6))
        assert noise.seeded(5, 2, 9, 0.5) == Noise((5, 5), (9, 10), 0.5)

    def test_one_side_to_resize_from_is_none(self):
        assert noise.seeded(5, resize_from_width=512).resized_from == ()

    def test_a_size_to_resize_from_is_counted_in_cells(self):
        recipe = noise.seeded(5, resize_from_width=48, resize_from_height=32)
        drawn = streams(recipe, (4, 8, 8), 8, device=torch.device("cpu")).initial[0]
        small = streams(Noise((5,)), (4, 4, 6), 8, device=torch.device("cpu")).initial[0]
        assert torch.equal(drawn[:, 2:6, 1:7], small)

    def test_the_source_is_that_of_all_noise(self, call):
        for name in ("euler", "euler_ancestral", "dpmpp_2m_sde"):
            cpu, nv = (
                sample(**call(sampler=name, noise=noise.seeded(1, 2, source=source))) for source in ("cpu", "nv")
            )
            assert not torch.allclose(cpu.data, nv.data, rtol=0.01)
