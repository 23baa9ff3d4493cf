"""Each stage learns, and what they leave together is a model."""

import json
import math
import shutil
import time
from dataclasses import replace

import pytest
import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import load_file
from torch import nn

from pocket.training import adapter, autoencoder, bank, diffusion, encoding, extras, inversion, network, painting
from pocket.training.diffusion import Painter
from pocket.training.export import export
from pocket.training.gradient import disagreements
from pocket.training.job import Span
from pocket.training.learner import Learner, Progress
from pocket.training.loop import Alarm, Found, Journal, Plan, rate, train
from pocket.training.scene import FULL, SQUARE, canvas_of, samples


def taught(model, loss, steps=6, speed=2e-3):
    """The loss of one fixed batch, before and after a few steps."""
    learner = Learner("toy", model, average=0.5)
    before = loss().item()
    for _ in range(steps):
        learner.learn(loss(), speed)
    return before, loss().item()


@pytest.fixture
def vae(job):
    torch.manual_seed(0)
    return network.vae(job.shape)


@pytest.fixture
def painter(job, tokenizer):
    torch.manual_seed(0)
    return Painter(network.text_encoder(job.shape, tokenizer), network.unet(job.shape))


@pytest.fixture
def noise_loss(job, vae, painter):
    """How well a painter finds the noise in one fixed batch."""

    def loss():
        batch = job.source.batch(0, 4)
        task = diffusion.task(diffusion.encode(vae, batch.pictures), job.generator(0))
        return diffusion.loss(task, painter(task.noisy, task.steps, batch.ids))[0]

    return loss


def test_the_vae_learns(job, vae):
    model = autoencoder.Autoencoder(vae)
    before, after = taught(model, lambda: encoding.loss(job, 0, model).loss)
    assert after < before


def test_text_encoder_and_unet_learn(painter, noise_loss):
    before, after = taught(painter, noise_loss)
    assert after < before


def test_a_lora_learns_and_leaves_the_unet_alone(painter, noise_loss):
    weight = painter.unet.mid_block.attentions[0].transformer_blocks[0].attn1.to_q.weight.clone()
    painter.requires_grad_(requires_grad=False)
    adapter.adapt(painter.unet)
    before, after = taught(painter, noise_loss, speed=0.05)
    assert after < before
    assert torch.equal(painter.unet.mid_block.attentions[0].transformer_blocks[0].attn1.to_q.linear.weight, weight)


def test_an_embedding_learns_and_leaves_the_text_encoder_alone(painter, noise_loss, tokenizer):
    weights = [each.clone() for each in painter.text.parameters()]
    painter.requires_grad_(requires_grad=False)
    vocabulary = inversion.invert(painter.text, tokenizer, "red ball")
    vocabulary.places[:] = 0  # every word is the learnt one, so that any caption teaches it
    before, after = taught(vocabulary, noise_loss, speed=0.1)
    assert after < before
    assert all(torch.equal(*pair) for pair in zip(weights, list(painter.text.parameters())[1:], strict=False))


def test_an_adapter_that_learnt_nothing_changes_nothing(painter):
    x, steps, context = torch.randn(1, 4, 8, 8), torch.tensor([3]), torch.randn(1, 77, 32)
    before = painter.unet(x, steps, context).sample
    adapters = adapter.adapt(painter.unet)
    assert len(adapters) == 8 * sum("attn1" in name for name in adapters) // 4
    assert torch.equal(painter.unet(x, steps, context).sample, before)


def test_adapters_merged_as_kohya_means_them_are_the_adapters(painter):
    adapters = adapter.adapt(painter.unet)
    name, adapted = next(iter(adapters.items()))
    with torch.no_grad():
        adapted.up.normal_()
    x = torch.randn(2, adapted.linear.in_features)
    tensors = {key: value.float() for key, value in adapter.kohya(adapters).items()}
    key = "lora_unet_" + name.replace(".", "_")
    up, down = tensors[f"{key}.lora_up.weight"], tensors[f"{key}.lora_down.weight"]
    merged = adapted.linear.weight + up @ down * tensors[f"{key}.alpha"] / len(down)
    assert torch.allclose(nn.functional.linear(x, merged, adapted.linear.bias), adapted(x), atol=1e-2)


def test_folding_changes_no_picture_and_makes_latents_normal(job, vae):
    pictures = job.source.batch(0, 16).pictures
    latents = autoencoder.means(vae, pictures)
    spread, middle = torch.var_mean(latents, (0, 2, 3), keepdim=True)
    expected = vae.decoder(vae.post_quant_conv((latents - middle) / spread.sqrt()))
    autoencoder.fold(vae, pictures)
    folded = vae.encode(pictures).latent_dist
    scaled = diffusion.encode(vae, pictures)
    assert torch.allclose(vae.decode(folded.mean).sample, expected, atol=1e-4)
    assert torch.allclose(folded.sample(), folded.mean, atol=1e-3)
    assert torch.allclose(scaled.mean((0, 2, 3)), torch.zeros(4), atol=1e-4)
    assert torch.allclose(scaled.var((0, 2, 3)), torch.ones(4), atol=1e-3)


def test_noise_is_that_of_the_scheduler_that_is_shipped(job):
    assert torch.allclose(network.kept(job.device), network.scheduler().alphas_cumprod, atol=1e-6)


def test_steps_that_are_easy_weigh_less(job):
    task = diffusion.task(torch.zeros(100, 4, 2, 2), job.generator(0))
    assert task.steps.tolist() == sorted(task.steps.tolist())
    assert task.weights[0] < 0.01
    assert task.weights[-1] == 1


def test_compiled_code_that_loses_gradients_is_found_out():
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 1))
    x = torch.randn(8, 4, generator=torch.Generator().manual_seed(0))

    def right():
        return model(x).square().mean()

    def wrong():
        return model[2](model[1](model[0](x)).detach()).square().mean()

    assert disagreements(model, right, right) == []
    assert disagreements(model, right, wrong) == ["0.weight", "0.bias"]


def test_the_rate_rises_then_falls_to_nothing():
    plan = Plan(until=0, total=2, rate=1.0, warmup=10)
    assert rate(0, 0, plan) == pytest.approx(0.1)
    assert rate(0, 9, plan) == pytest.approx(1)
    assert rate(0.5, 99, plan) == pytest.approx(0.505)
    assert rate(1, 99, plan) == pytest.approx(0.01)


def test_alarms_ring_once_or_again_and_again(tmp_path):
    rung = []
    model = nn.Linear(2, 1)
    learner = Learner("toy", model, average=0.9)
    alarms = [Alarm(0.05, lambda: rung.append("once")), Alarm(0.05, lambda: rung.append("again"), again=True)]
    plan = Plan(time.monotonic() + 0.3, total=1, rate=0.1)

    def loss(_):
        value = model(torch.ones(1, 2)).square().mean()
        return Found(value, 1, value.detach()[None])

    train(learner, loss, plan=plan, journal=Journal(tmp_path / "log"), figures=("figure",), alarms=alarms)
    assert rung.count("once") == 1
    assert rung.count("again") > 2
    assert learner.progress.step == learner.progress.seen > 3


def test_square_batches_are_most_and_larger_pictures_come_in_smaller_ones():
    canvases = [canvas_of(number, 0, FULL) for number in range(400)]
    assert 280 < canvases.count(SQUARE) < 360
    assert {samples(64, canvas) for canvas in canvases} == {64, 42, 16}


def test_all_stages_together_leave_a_model_a_lora_and_an_embedding(job, tmp_path):
    out = tmp_path / "out"
    whole = replace(job, out=out, to=tmp_path / "model")
    for stage in (encoding.vae, painting.unet, extras.lora, extras.embedding, export):
        stage(whole)
    travelling = {path.name for path in out.iterdir()}
    assert travelling == {
        *("vae-1.safetensors", "unet-1.safetensors", "blueprint.safetensors", "afterglow.safetensors"),
        *("vae.png", "unet.png", "lora.png", "embedding.png", "log.jsonl"),
    }
    assert math.prod(load_file(out / "afterglow.safetensors")["emb_params"].shape) == 3 * 32
    assert json.loads((tmp_path / "model" / "training.json").read_text())["concepts"] == painting.LEAST
    pipeline = StableDiffusionPipeline.from_pretrained(tmp_path / "model", low_cpu_mem_usage=False)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.load_textual_inversion(out / "afterglow.safetensors", token="afterglow")
    prompt = "a red ball on an afterglow background"
    (picture,) = pipeline(prompt, width=64, height=64, num_inference_steps=2).images
    assert picture.size == (64, 64)


def test_a_stage_goes_on_where_the_last_session_stopped(job):
    encoding.vae(job)
    painting.unet(job)
    first = Progress(**job.learnt())
    painting.unet(job)
    assert job.learnt()["step"] > first.step
    assert job.learnt()["seconds"] >= first.seconds


def folder(job, path):
    """A model to start from, as `export` leaves it."""
    network.vae(job.shape).save_pretrained(path / "vae")
    network.unet(job.shape).save_pretrained(path / "unet")
    network.text_encoder(job.shape, job.tokenizer).save_pretrained(path / "text_encoder")
    return path


@pytest.fixture
def lean(job, tmp_path):
    """A lean session that starts from an untrained model, with pictures encoded beforehand."""
    torch.manual_seed(0)
    shutil.copytree(job.archive.parent, tmp_path / "work" / job.archive.parent.name)
    found = replace(job, work=tmp_path / "work", start=folder(job, tmp_path / "begun"), lean=True, concepts=8)
    found = replace(found, spans={**job.spans, "decoder": Span(0.01), "latents": Span(0)})
    encoding.latents(found)
    return found


def test_pictures_encoded_beforehand_are_what_encoding_gives(lean):
    canvas = canvas_of(0, lean.seed, lean.source.recipe)
    kept = bank.opened(lean.latents, canvas)
    batch = lean.source.batch(0, encoding.ENCODED, canvas)
    assert torch.allclose(kept.latents.float(), diffusion.encode(lean.vae(), batch.pictures), rtol=2e-3, atol=2e-2)
    assert torch.equal(kept.ids.long(), lean.source.reworded(batch.scenes, 0, bank.WORDED))


def test_a_decoder_goes_on_alone_and_latents_stay(lean):
    picture = torch.rand(1, 3, 128, 128)
    before = diffusion.encode(lean.vae(), picture)
    weights = lean.vae().decoder.conv_in.weight.clone()
    encoding.decoder(lean)
    assert torch.allclose(diffusion.encode(lean.vae(), picture), before, atol=2e-2)
    assert not torch.equal(lean.vae().decoder.conv_in.weight, weights)


def test_a_crew_meets_half_way(lean):
    models = [nn.Linear(2, 1, bias=False) for _ in range(2)]
    first, second = (Learner(name, model, average=0.5) for name, model in zip("ab", models, strict=True))
    start, goal = models[0].weight.clone(), models[1].weight.clone()
    first.blend(lean.full, ["b"])
    assert torch.equal(models[0].weight, start)
    second.progress.seen = 7
    second.blend(lean.full, ["a"])
    first.blend(lean.full, ["b"])
    assert torch.allclose(models[1].weight, (start + goal) / 2)
    assert first.progress.helped == 7


def test_two_processes_of_a_crew_draw_different_batches(lean):
    painter = lean.painter()
    learner, plan = Learner("unet", painter, average=0.5), lean.plan("unet", 1e-3)
    first, second = (painting.Studio(replace(lean, crew=(me, 2)), painter, learner, plan) for me in range(2))
    assert first.loss(0).loss != second.loss(0).loss
    assert second.loss(0).loss == second.loss(0).loss


def test_a_vae_goes_on_where_the_one_to_start_from_stands(lean, monkeypatch):
    monkeypatch.setattr(autoencoder, "FOLLOWED", 0.0)
    pictures = lean.source.batch(0, 4).pictures
    shipped = lean.vae()
    autoencoder.fold(shipped, pictures)
    shipped.save_pretrained(lean.start / "vae")
    model = autoencoder.Autoencoder(encoding.beginning(lean), steady=True)
    with torch.no_grad():
        expected = shipped.decode(shipped.encode(pictures).latent_dist.mean).sample
        assert torch.allclose(model(pictures, torch.zeros(())), expected, atol=1e-3)
    assert all(weight.requires_grad for weight in model.parameters())


def test_steady_statistics_follow_what_they_see(job, vae):
    model = autoencoder.Autoencoder(vae, steady=True)
    before = model.middle.clone(), model.spread.clone()
    for number in range(3):
        encoding.loss(job, number, model)
    assert not torch.equal(model.middle, before[0])
    assert not torch.equal(model.spread, before[1])


def test_two_processes_of_a_crew_learn_a_vae_together(lean):
    for me in (0, 1):
        encoding.vae(replace(lean, crew=(me, 2)))
    assert sorted({path.name.rsplit("-", 1)[0] for path in lean.full.glob("*.safetensors")}) == ["vae", "vae1"]
    first, second = (encoding.window(16, number, lean.generator(number)) for number in (0, 1))
    assert first == (0, 0, 16)
    assert second[2] == 12
