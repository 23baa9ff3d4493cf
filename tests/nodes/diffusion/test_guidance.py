from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import pytest
import torch

from nodes.diffusion import text
from nodes.diffusion.denoise import Denoiser
from nodes.diffusion.drive import drive
from nodes.diffusion.guidance import Clause, Guidance, Question, guided
from nodes.diffusion.keep import NoisyRepaint, Repaint
from nodes.diffusion.noise import Streams, draw
from nodes.diffusion.sampler import SAMPLERS, euler, heun
from nodes.diffusion.schedule import karras, normal
from nodes.diffusion.scope import Box
from nodes.diffusion.table import NoiseSchedule
from nodes.diffusion.tower import Tower

DEVIATION = 0.7


@dataclass
class GaussianUNet:
    """The exact UNet for latents from N(mean of the conditioning, DEVIATION ** 2); logs the shapes of its calls."""

    table: NoiseSchedule
    dtype: torch.dtype = torch.float32
    calls: list = field(default_factory=list)

    def __call__(self, sample, timestep, encoder_hidden_states, *, return_dict):
        assert sample.dtype == encoder_hidden_states.dtype == self.dtype
        assert not return_dict
        self.calls.append((tuple(sample.shape), encoder_hidden_states.shape[1]))
        sigma = torch.tensor([self.table.sigma(t) for t in timestep.tolist()])[:, None, None, None]
        x = sample.float() * (sigma**2 + 1).sqrt()
        clean = posterior(x, sigma, encoder_hidden_states.float().mean((1, 2))[:, None, None, None])
        epsilon = (x - clean) / sigma
        velocity = (epsilon - sigma * clean) / (sigma**2 + 1).sqrt()
        return ((epsilon if self.table.prediction == "epsilon" else velocity).to(self.dtype),)


def posterior(x, sigma, mean):
    return (DEVIATION**2 * x + sigma**2 * mean) / (DEVIATION**2 + sigma**2)


def conditioning(mean, tokens=77):
    return torch.full((1, tokens, 3), float(mean))


def latents(seed=0, count=1, size=8):
    return draw(range(seed, seed + count), (4, size, size))


def ask(unet, *questions, batch=None):
    return [answer.guided for answer in Denoiser(unet, unet.table, batch)(questions)]


@pytest.fixture
def gaussian(table):
    return GaussianUNet(table)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("sigma", [14.6, 3.3333, 0.05])
def test_the_clean_latent_is_exact_at_any_noise_level(prediction, sigma):
    unet = GaussianUNet(NoiseSchedule.from_betas(0.00085, 0.012, prediction=prediction))
    x = latents() * sigma
    [clean] = ask(unet, Question(x, sigma, Guidance(conditioning(0.4))))
    torch.testing.assert_close(clean, posterior(x, sigma, 0.4), rtol=1e-4, atol=1e-4)


def test_guidance_leads_away_from_the_negative(gaussian):
    x = latents(count=2) * 3
    [clean] = ask(gaussian, Question(x, 3.0, Guidance(conditioning(1), conditioning(-1), cfg=5.0)))
    low, high = posterior(x, 3.0, -1.0), posterior(x, 3.0, 1.0)
    torch.testing.assert_close(clean, low + 5 * (high - low), rtol=1e-4, atol=1e-4)


def test_both_sides_of_the_guidance_share_a_call(gaussian):
    ask(gaussian, Question(latents(), 3.0, Guidance(conditioning(1), conditioning(-1), cfg=5.0)))
    assert gaussian.calls == [((2, 4, 8, 8), 77)]


def test_at_cfg_one_the_negative_is_not_asked(gaussian):
    ask(gaussian, Question(latents(), 3.0, Guidance(conditioning(1), conditioning(-1), cfg=1)))
    assert gaussian.calls == [((1, 4, 8, 8), 77)]


@dataclass(frozen=True)
class Spoken:
    """A prompt that says at each call what a function says."""

    says: Callable

    def at(self, call, calls, sigma):
        return self.says(call, calls)


def joined(*parts):
    return Spoken(lambda *_: [Clause(tokens, weight) for weight, tokens in parts])


def test_joined_prompts_each_lead_away_from_the_negative_by_their_weight(gaussian):
    x = latents(count=2) * 3
    words = joined((0.7, conditioning(1)), (-0.4, conditioning(2)))
    [clean] = ask(gaussian, Question(x, 3.0, Guidance(words, conditioning(-1), cfg=5.0)))
    low, one, two = (posterior(x, 3.0, mean) for mean in (-1.0, 1.0, 2.0))
    torch.testing.assert_close(clean, low + 0.7 * 5 * (one - low) - 0.4 * 5 * (two - low), rtol=1e-4, atol=1e-4)
    assert gaussian.calls == [((6, 4, 8, 8), 77)]


def test_a_lone_part_of_weight_one_is_the_plain_conditioning_bit_by_bit(gaussian):
    x = latents() * 3
    plain, scheduled = (
        ask(gaussian, Question(x, 3.0, Guidance(positive, conditioning(-1), cfg=5.0)))[0]
        for positive in (conditioning(1), joined((1.0, conditioning(1))))
    )
    assert torch.equal(plain, scheduled)


@pytest.mark.parametrize(("cfg", "weight", "latents_asked"), [(1.0, 1.0, 1), (4.0, 0.25, 1), (1.0, 1.5, 2)])
def test_the_negative_is_asked_unless_a_lone_part_counts_once(gaussian, cfg, weight, latents_asked):
    [clean] = ask(
        gaussian, Question(latents(), 3.0, Guidance(joined((weight, conditioning(1))), conditioning(-1), cfg))
    )
    assert gaussian.calls == [((latents_asked, 4, 8, 8), 77)]
    low, high = posterior(latents(), 3.0, -1.0), posterior(latents(), 3.0, 1.0)
    torch.testing.assert_close(clean, low + cfg * weight * (high - low), rtol=1e-4, atol=1e-4)


def test_joined_prompts_need_a_negative_even_at_cfg_one(gaussian):
    words = joined((1.0, conditioning(1)), (1.0, conditioning(2)))
    with pytest.raises(ValueError, match=r"only cfg 1 needs none, and the positive has the weights \[1.0, 1.0\]"):
        Guidance(words)
    [clean] = ask(gaussian, Question(latents(), 3.0, Guidance(words, conditioning(0))))
    low, one, two = (posterior(latents(), 3.0, mean) for mean in (0.0, 1.0, 2.0))
    torch.testing.assert_close(clean, one + two - low, rtol=1e-4, atol=1e-4)


def test_joined_negatives_count_as_their_weighted_mean(gaussian):
    against = joined((3.0, conditioning(-1)), (1.0, conditioning(1)))
    [clean] = ask(gaussian, Question(latents(), 3.0, Guidance(conditioning(2), against, cfg=2.0)))
    low, high = posterior(latents(), 3.0, -0.5), posterior(latents(), 3.0, 2.0)
    torch.testing.assert_close(clean, low + 2 * (high - low), rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match="expected weights whose sum is not 0"):
        Guidance(conditioning(2), joined((1.0, conditioning(-1)), (-1.0, conditioning(1))), cfg=2.0)


def test_what_is_asked_twice_in_one_call_is_computed_once(gaussian):
    said = torch.cat([conditioning(1), conditioning(-1)])
    words = joined((0.5, said[:1]), (0.25, said[1:]), (0.5, said[:1]))
    [clean] = ask(gaussian, Question(latents(), 3.0, Guidance(words, joined((1.0, said[1:])), cfg=2.0)))
    assert gaussian.calls == [((2, 4, 8, 8), 77)]
    low, high = posterior(latents(), 3.0, -1.0), posterior(latents(), 3.0, 1.0)
    torch.testing.assert_close(clean, low + 2 * (high - low), rtol=1e-4, atol=1e-4)


def test_runs_that_ask_the_same_of_one_conditioning_are_computed_each(gaussian):
    shared = conditioning(1)
    first, second = ask(gaussian, *(Question(latents(seed), 3.0, Guidance(shared)) for seed in (1, 2)))
    assert gaussian.calls == [((2, 4, 8, 8), 77)]
    assert not torch.equal(first, second)


def test_a_scheduled_prompt_hears_the_number_of_each_call(gaussian, table):
    heard = []

    def says(call, calls):
        heard.append((call, calls))
        return (Clause(conditioning(1 if call <= 1 else -1)),)

    guidance = Guidance(Spoken(says))
    heard.clear()
    x, asked = latents() * 3, []

    def noted(questions):
        asked.extend(questions)
        return Denoiser(gaussian, table)(questions)

    drive([guided(euler(x, [3.0, 2.0, 1.0, 0.0], None), guidance, 20)], noted)
    assert heard == [(0, 20), (1, 20), (2, 20)]
    for question, mean in zip(asked, (1.0, 1.0, -1.0), strict=True):
        [clean] = ask(gaussian, question)
        torch.testing.assert_close(clean, posterior(question.x, question.sigma, mean), rtol=1e-4, atol=1e-4)


def test_joined_prompts_of_different_lengths_share_a_call_by_repetition(gaussian):
    words = joined((1.0, conditioning(1, 154)), (1.0, conditioning(2, 231)))
    [clean] = ask(gaussian, Question(latents(), 3.0, Guidance(words, conditioning(0), cfg=2.0)))
    assert gaussian.calls == [((3, 4, 8, 8), 462)]
    low, one, two = (posterior(latents(), 3.0, mean) for mean in (0.0, 1.0, 2.0))
    torch.testing.assert_close(clean, low + 2 * (one - low) + 2 * (two - low), rtol=1e-4, atol=1e-4)


@dataclass
class WideUNet:
    """Predicts the mean of each latent's channels beyond the fourth as its noise; keeps what it was given."""

    table: NoiseSchedule
    dtype: torch.dtype = torch.float32
    given: list = field(default_factory=list)

    def __call__(self, sample, timestep, encoder_hidden_states, *, return_dict):
        self.given.append(sample)
        return (sample[:, 4:].mean((1, 2, 3), keepdim=True).expand(-1, 4, *sample.shape[2:]),)


def test_concatenated_channels_stand_after_the_scaled_latent_as_they_are(table):
    unet, x, concat = WideUNet(table), latents(count=2) * 3, torch.arange(5.0)[None, :, None, None].expand(1, 5, 8, 8)
    [clean] = ask(unet, Question(x, 3.0, Guidance(conditioning(1), conditioning(0), cfg=2.0, concat=concat)))
    [given] = unet.given
    torch.testing.assert_close(given[:, :4], (x / 10**0.5).repeat(2, 1, 1, 1))
    assert torch.equal(given[:, 4:], concat.expand(4, -1, -1, -1))
    torch.testing.assert_close(clean, x - 3.0 * 2.0)


def test_questions_with_different_concatenations_share_a_call(table):
    concats = [torch.full((count, 5, 8, 8), float(count)) for count in (1, 2)]
    questions = [
        Question(latents(count, 2) * 3, 3.0, Guidance(conditioning(1), concat=concat))
        for count, concat in enumerate(concats)
    ]
    unet = WideUNet(table)
    together = ask(unet, *questions)
    assert [given.shape for given in unet.given] == [(4, 9, 8, 8)]
    for question, clean in zip(questions, together, strict=True):
        torch.testing.assert_close(clean, ask(unet, question)[0])


def test_a_split_batch_takes_its_concatenations_along(table):
    concat = torch.arange(3.0)[:, None, None, None].expand(3, 5, 8, 8)
    question = Question(latents(count=3), 2.0, Guidance(conditioning(1), concat=concat))
    unet = WideUNet(table)
    [split] = ask(unet, question, batch=2)
    assert [len(given) for given in unet.given] == [2, 1]
    torch.testing.assert_close(split, ask(unet, question)[0])


def test_questions_of_different_levels_cfgs_and_sizes_of_batch_share_a_call(gaussian):
    questions = [
        Question(latents(0, 2), 9.0, Guidance(conditioning(1), conditioning(0), cfg=2.0)),
        Question(latents(5), 0.3, Guidance(conditioning(-2), conditioning(1), cfg=7.5)),
        Question(latents(8, 3), 1.7, Guidance(conditioning(3))),
    ]
    together = ask(gaussian, *questions)
    assert gaussian.calls == [((9, 4, 8, 8), 77)]
    for question, clean in zip(questions, together, strict=True):
        torch.testing.assert_close(clean, ask(gaussian, question)[0])


def test_each_latent_of_a_run_may_have_its_own_conditioning(gaussian):
    x = latents(count=2)
    both = torch.cat([conditioning(1), conditioning(-1)])
    [clean] = ask(gaussian, Question(x, 2.0, Guidance(both)))
    torch.testing.assert_close(clean[1:], ask(gaussian, Question(x[1:], 2.0, Guidance(conditioning(-1))))[0])


def test_prompts_of_different_lengths_share_a_call_by_repetition(gaussian):
    ask(
        gaussian,
        Question(latents(), 3.0, Guidance(conditioning(1, 154), conditioning(0), cfg=2.0)),
        Question(latents(), 3.0, Guidance(conditioning(1, 231))),
    )
    assert gaussian.calls == [((3, 4, 8, 8), 462)]


def test_prompts_with_no_short_common_length_have_calls_of_their_own(gaussian):
    negative = conditioning(-1, 5 * 77)
    guidance = Guidance(torch.linspace(-1, 3, 4 * 77).view(1, -1, 1).expand(1, -1, 3), negative, cfg=2.0)
    x = latents()
    [clean] = ask(gaussian, Question(x, 3.0, guidance))
    assert gaussian.calls == [((1, 4, 8, 8), 308), ((1, 4, 8, 8), 385)]
    low, high = posterior(x, 3.0, -1.0), posterior(x, 3.0, 1.0)
    torch.testing.assert_close(clean, low + 2 * (high - low), rtol=1e-4, atol=1e-4)


def test_repeating_a_conditioning_changes_nothing_for_a_real_unet(unet, table):
    long, short = torch.randn(2, 1, 154, unet.config.cross_attention_dim, generator=torch.Generator().manual_seed(0))
    guidance = Guidance(long, short[:, :77], cfg=4.0)
    x = latents() * 2
    denoiser = Denoiser(unet, table)
    [together] = denoiser([Question(x, 2.0, guidance)])
    high, low = (denoiser([Question(x, 2.0, Guidance(part))])[0].guided for part in (long, short[:, :77]))
    together = together.guided
    torch.testing.assert_close(together, low + 4 * (high - low), rtol=1e-4, atol=1e-4)


def test_latents_of_different_shapes_have_calls_of_their_own(gaussian):
    questions = [Question(latents(size=size), 2.0, Guidance(conditioning(size))) for size in (8, 16, 8)]
    answers = ask(gaussian, *questions)
    assert gaussian.calls == [((2, 4, 8, 8), 77), ((1, 4, 16, 16), 77)]
    for question, clean in zip(questions, answers, strict=True):
        torch.testing.assert_close(clean, ask(gaussian, question)[0])


def test_a_limit_on_the_batch_splits_calls_and_nothing_else(gaussian):
    question = Question(latents(count=3), 2.0, Guidance(conditioning(1), conditioning(0), cfg=3.0))
    [split] = ask(gaussian, question, batch=4)
    assert [shape[0] for shape, _ in gaussian.calls] == [3, 3]
    torch.testing.assert_close(split, ask(gaussian, question)[0])


def test_a_unet_call_takes_16_large_latents_on_a_cpu_unless_told_otherwise(gaussian):
    large = Question(latents(size=64).expand(66, -1, -1, -1), 2.0, Guidance(conditioning(1)))
    tall = Question(torch.zeros(3, 4, 512, 512), 2.0, Guidance(conditioning(1)))
    answers = ask(gaussian, large, tall)
    assert [shape[0] for shape, _ in gaussian.calls] == [14, 13, 13, 13, 13, 1, 1, 1]
    assert [len(clean) for clean in answers] == [66, 3]


def test_every_unet_call_is_counted_with_its_latents(gaussian, table):
    taken = []
    question = Question(latents(count=3), 2.0, Guidance(conditioning(1), conditioning(0), cfg=3.0))
    Denoiser(gaussian, table, batch=4, called=taken.append)([question])
    assert taken == [3, 3]


def test_latents_stay_float32_around_a_half_precision_unet(table):
    unet = GaussianUNet(table, dtype=torch.float16)
    x = latents() * 2
    [clean] = ask(unet, Question(x, 2.0, Guidance(conditioning(1), conditioning(0), cfg=2.0)))
    assert clean.dtype == torch.float32
    [result] = drive([guided(euler(x, [2.0, 1.0, 0.0], None), Guidance(conditioning(1)))], Denoiser(unet, table))
    assert result.dtype == torch.float32


def test_a_cfg_without_a_negative_is_refused():
    with pytest.raises(ValueError, match=r"negative: expected a conditioning, got None; .* cfg is 7.0"):
        Guidance(conditioning(1), cfg=7.0)


def half_mask():
    mask = torch.zeros(1, 1, 8, 8)
    mask[..., 4:] = 1
    return mask


@pytest.mark.parametrize("name", SAMPLERS)
def test_masked_sampling_returns_the_kept_part_bit_by_bit(name, gaussian, table):
    sigmas = karras(table, 8).tolist()
    noise = Streams.open([3], (4, 8, 8))
    kept = latents(9)
    sampler, repaint = SAMPLERS[name], Repaint(half_mask(), kept)
    negative = conditioning(2) if sampler.unguided else None
    guidance = Guidance(conditioning(2), negative, repaint=repaint, unguided=sampler.unguided)
    run = guided(sampler(kept + noise.initial * sigmas[0], sigmas, noise), guidance)
    [result] = drive([run], Denoiser(gaussian, table))
    assert torch.equal(result[..., :4], kept[..., :4])
    assert (result[..., 4:] - 2).abs().mean() < 4 * DEVIATION


def test_every_answer_is_blended_by_a_soft_mask(gaussian, table):
    mask, kept, x = torch.full((1, 1, 8, 8), 0.25), latents(9), latents(1) * 3
    guidance = Guidance(conditioning(1), conditioning(0), cfg=3.0, repaint=Repaint(mask, kept))
    [plain] = ask(gaussian, Question(x, 3.0, Guidance(conditioning(1), conditioning(0), cfg=3.0)))
    denoiser, answers = Denoiser(gaussian, table), []

    def noted(questions):
        answers.extend(denoiser(questions))
        return answers[-1:]

    drive([guided(heun(x, [3.0, 1.0, 0.0], None), guidance)], noted)
    torch.testing.assert_close(answers[0].guided, 0.25 * plain + 0.75 * kept)


def test_a_noisy_repaint_shows_the_unet_the_kept_part_with_the_noise_of_its_level(gaussian, table):
    mask, kept, noise, x = torch.full((1, 1, 8, 8), 0.25), latents(9), latents(5), latents(1) * 3
    keeper = NoisyRepaint(mask, kept, noise)
    run = guided(heun(x, [3.0, 1.0, 0.0], None), Guidance(conditioning(1), repaint=keeper))
    first = next(run)
    torch.testing.assert_close(first.x, 0.25 * x + 0.75 * (kept + 3 * noise))
    [answer] = Denoiser(gaussian, table)([first])
    [plain] = ask(gaussian, Question(first.x, 3.0, Guidance(conditioning(1))))
    torch.testing.assert_close(answer.guided, 0.25 * plain + 0.75 * kept)
    second = run.send(answer)
    ahead = x + (x - answer.guided) / 3 * (1 - 3)  # of the sampler's own latent, not of the one that the UNet saw
    torch.testing.assert_close(second.x, 0.25 * ahead + 0.75 * (kept + noise))
    assert torch.equal(keeper.finish(x), x)


def test_a_unet_can_be_told_whole_timesteps(table):
    told = []

    def unet(sample, timestep, encoder_hidden_states, *, return_dict):
        told.extend(timestep.tolist())
        return (sample,)

    unet.dtype = torch.float32
    for whole in (False, True):
        guidance = Guidance(conditioning(1), whole_timesteps=whole)
        Denoiser(unet, table)([Question(latents(), table.sigma(300.3), guidance)])
    assert told == [pytest.approx(300.3, abs=1e-3), 300]


def test_a_mask_of_ones_is_no_mask(gaussian, table):
    start, sigmas = latents() * table.sigma_max, normal(table, 5).tolist()
    free, masked = (
        guided(euler(start, sigmas, None), Guidance(conditioning(1), repaint=repaint))
        for repaint in (None, Repaint(torch.ones(1, 1, 8, 8), latents(9)))
    )
    torch.testing.assert_close(*drive([free, masked], Denoiser(gaussian, table)))


def test_a_run_without_steps_returns_its_latent(gaussian, table):
    x = latents()
    [result] = drive([guided(euler(x, [0.0], None), Guidance(conditioning(1)))], Denoiser(gaussian, table))
    assert torch.equal(result, x)
    assert gaussian.calls == []


def test_closing_a_guided_run_closes_its_sampler():
    steps = euler(latents(), [2.0, 1.0, 0.0], None)
    run = guided(steps, Guidance(conditioning(1)))
    next(run)
    run.close()
    assert steps.gi_frame is None


def test_runs_sampled_together_come_out_as_alone(unet, table, tokenizer, text_encoder):
    """Different samplers, steps, strengths, cfgs, masks, prompts and seeds, on the pocket model."""

    def run(name, steps, seed, *, cfg, prompt, repaint=None):
        sigmas, noise = karras(table, steps).tolist()[-4:], Streams.open([seed], (4, 8, 8))
        sides = [text.encode(words, [Tower(tokenizer, text_encoder)]).states for words in (prompt, "")]
        return guided(SAMPLERS[name](noise.initial * sigmas[0], sigmas, noise), Guidance(*sides, cfg, repaint))

    plans = [
        partial(run, "euler", 5, 1, cfg=5.0, prompt="a grinning face"),
        partial(run, "heun", 4, 2, cfg=1.0, prompt="a cat " * 60),
        partial(run, "dpmpp_2m", 8, 3, cfg=7.5, prompt="a red apple", repaint=Repaint(half_mask(), latents(9))),
        partial(run, "euler_ancestral", 4, 4, cfg=3.0, prompt=""),
    ]
    together = drive([plan() for plan in plans], Denoiser(unet, table))
    for plan, result in zip(plans, together, strict=True):
        [alone] = drive([plan()], Denoiser(unet, table))
        assert ((result - alone).norm() / alone.norm()).item() < 1e-4


# Prompts that have places


def placed(mean, box, share=None):
    """A prompt in a box of 8 x 8 latents."""
    level = torch.ones(1, 1, box.height, box.width) if share is None else share
    return Clause(conditioning(mean), box=box, share=level, relative=True)


def saying(*clauses):
    return Spoken(lambda *_: clauses)


LEFT, RIGHT, ALL = Box(0, 0, 4, 8), Box(4, 0, 4, 8), Box(0, 0, 8, 8)


def test_prompts_with_places_count_there_alone_and_are_asked_about_nothing_else(gaussian):
    x = latents(count=2) * 3
    words = saying(placed(1, LEFT), placed(-1, RIGHT))
    [clean] = ask(gaussian, Question(x, 3.0, Guidance(words, conditioning(0), cfg=2.0)))
    assert sorted(gaussian.calls) == [((2, 4, 8, 8), 77), ((4, 4, 8, 4), 77)]
    low = posterior(x, 3.0, 0.0)
    high = torch.cat([posterior(x, 3.0, 1.0)[..., :4], posterior(x, 3.0, -1.0)[..., 4:]], dim=3)
    torch.testing.assert_close(clean, low + 2 * (high - low), rtol=1e-4, atol=1e-4)


def test_where_places_meet_prompts_count_by_their_shares(gaussian):
    x, grey = latents() * 3, torch.full((1, 1, 8, 8), 0.25)
    words = saying(placed(1, ALL, grey), placed(-1, ALL, 3 * grey), placed(2, LEFT))
    [clean] = ask(gaussian, Question(x, 3.0, Guidance(words)))
    one, other, left = (posterior(x, 3.0, mean) for mean in (1.0, -1.0, 2.0))
    torch.testing.assert_close(clean[..., 4:], (one * 0.25 + other * 0.75)[..., 4:], rtol=1e-4, atol=1e-4)
    expected = (one * 0.25 + other * 0.75 + left)[..., :4] / 2
    torch.testing.assert_close(clean[..., :4], expected, rtol=1e-4, atol=1e-4)


def test_a_prompt_without_a_place_counts_everywhere_beside_those_that_have_one(gaussian):
    x = latents() * 3
    words = saying(Clause(conditioning(1)), placed(-1, RIGHT))
    [clean] = ask(gaussian, Question(x, 3.0, Guidance(words)))
    one, other = posterior(x, 3.0, 1.0), posterior(x, 3.0, -1.0)
    torch.testing.assert_close(clean[..., :4], one[..., :4], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(clean[..., 4:], (one + other)[..., 4:] / 2, rtol=1e-4, atol=1e-4)


def test_where_nothing_counts_nothing_is_drawn(gaussian):
    [clean] = ask(gaussian, Question(latents() * 3, 3.0, Guidance(saying(placed(1, RIGHT)))))
    assert not clean[..., :4].any()
    assert clean[..., 4:].all()


def test_samplers_that_ask_for_it_hear_the_negative_whatever_the_cfg(gaussian, table):
    x, mask, kept = latents() * 3, torch.zeros(1, 1, 8, 8), latents(9)
    guidance = Guidance(conditioning(1), conditioning(-1), 1.0, Repaint(mask, kept), unguided=True)
    [answer] = Denoiser(gaussian, table)([Question(x, 3.0, guidance)])
    torch.testing.assert_close(answer.guided, kept)
    torch.testing.assert_close(answer.negative, posterior(x, 3.0, -1.0), rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match="negative: expected a conditioning, got None; the sampler asks for it"):
        Guidance(conditioning(1), unguided=True)


def test_rescaled_guidance_has_the_deviation_of_the_prompt_alone(gaussian):
    x, sigma = latents(count=2) * 3, 3.0
    asked = {cfg: Guidance(conditioning(1), conditioning(-3), cfg) for cfg in (1.0, 8.0)}
    plain, strong = (ask(gaussian, Question(x, sigma, each))[0] for each in asked.values())
    [full] = ask(gaussian, Question(x, sigma, Guidance(conditioning(1), conditioning(-3), 8.0, rescale=1.0)))
    [half] = ask(gaussian, Question(x, sigma, Guidance(conditioning(1), conditioning(-3), 8.0, rescale=0.5)))

    def velocity(clean):
        return (x / (sigma**2 + 1) - clean) * (sigma**2 + 1) ** 0.5 / sigma

    deviations = [velocity(clean).std(dim=(1, 2, 3)) for clean in (full, plain)]
    torch.testing.assert_close(*deviations, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(half, (full + strong) / 2, rtol=1e-4, atol=1e-4)


def test_where_no_negative_counts_the_positive_parts_are_followed_as_they_are(gaussian):
    x = latents() * 3
    words = joined((1.0, conditioning(1)), (3.0, conditioning(-1)))
    gone = Spoken(lambda call, _calls: [] if call else [Clause(conditioning(0))])
    guidance = Guidance(words, gone, cfg=7.0)
    [clean] = ask(gaussian, Question(x, 3.0, guidance, call=1, calls=2))
    expected = (posterior(x, 3.0, 1.0) + 3 * posterior(x, 3.0, -1.0)) / 4
    torch.testing.assert_close(clean, expected, rtol=1e-4, atol=1e-4)
