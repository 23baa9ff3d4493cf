"""The main job on the embedded model: reproducible, independent of the batch, and exact outside of the mask."""

import shutil

import pytest
import torch

import pocket
from engine.context import CancelToken, Context
from engine.errors import Cancelled, FileChanged
from engine.file import Files, ModelFile
from engine.models import ModelPool
from nodes import image, latent, mask, model, noise, sample, text, vae
from nodes.types import Image, Latent, Mask, Noise


@pytest.fixture(scope="module")
def files():
    return Files(named={"pocket": pocket.FOLDER})


@pytest.fixture(scope="module")
def pool(files):
    return ModelPool(files)


@pytest.fixture
def context(pool):
    return Context(models=pool)


@pytest.fixture(scope="module")
def parts(files):
    return model.load(files.resolve(ModelFile, "pocket"))


@pytest.fixture(scope="module")
def prompts(parts, pool):
    context = Context(models=pool)
    return text.encode(parts.text, context, text="smiling face"), text.encode(parts.text, context)


@pytest.fixture(scope="module")
def photo():
    generator = torch.Generator().manual_seed(5)
    coarse = torch.rand(1, 3, 8, 8, generator=generator)
    return Image((torch.nn.functional.interpolate(coarse, size=(64, 64)) * 255).to(torch.uint8))


@pytest.fixture(scope="module")
def start(parts, pool, photo):
    return vae.encode(parts.vae, photo, Context(models=pool))


@pytest.fixture
def paint(parts, prompts, context, start):
    def painted(recipe, latent=start, **options):
        options = {"steps": 3, "cfg": 3.0, "denoise": 0.75, **options}
        return sample.sample(parts.unet, prompts[0], latent, recipe, context, negative=prompts[1], **options)

    return painted


SAMPLERS = ("euler", "euler_ancestral", "heun", "dpmpp_2m", "ddim")


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_the_same_seed_gives_the_same_bits(paint, sampler):
    once, again = (paint(Noise((7,)), sampler=sampler).data for _ in range(2))
    assert torch.equal(once, again)
    assert not torch.equal(once, paint(Noise((8,)), sampler=sampler).data)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_image_i_of_a_batch_equals_the_same_image_alone(paint, sampler):
    together = paint(noise.seeded(40, 4), sampler=sampler).data
    for index in range(4):
        alone = paint(noise.seeded(40 + index), sampler=sampler).data
        torch.testing.assert_close(together[index : index + 1], alone, rtol=0, atol=1e-4)


def test_image_i_of_a_varied_batch_equals_the_same_image_alone(paint):
    together = paint(noise.seeded(40, 3, 900, 0.3)).data
    alone = paint(noise.seeded(40, 1, 902, 0.3)).data
    torch.testing.assert_close(together[2:], alone, rtol=0, atol=1e-4)
    assert not torch.allclose(together[0], together[1])


def test_one_latent_for_each_picture_is_painted_with_its_own_noise(paint, start):
    batch = Latent(torch.cat([start.data, -start.data]), start.space)
    together = paint(noise.seeded(1, 2), latent=batch).data
    alone = paint(noise.seeded(2), latent=Latent(-start.data, start.space)).data
    torch.testing.assert_close(together[1:], alone, rtol=0, atol=1e-4)


def test_denoise_says_how_much_changes(paint, start):
    distances = [
        float((paint(Noise((3,)), denoise=denoise, steps=8).data - start.data).norm()) for denoise in (0, 0.2, 0.5, 1.0)
    ]
    assert distances[0] == 0
    assert distances == sorted(distances)
    assert distances[1] > 0


def test_latent_cells_outside_of_the_mask_keep_their_bits(paint, start):
    area = mask.rectangle(64, 64, x=16, y=24, w=32, h=16)
    painted = paint(Noise((3,)), mask=area).data
    changed = (painted != start.data).any(dim=1)[0]
    inside = torch.zeros(8, 8, dtype=torch.bool)
    inside[3:5, 2:6] = True
    assert torch.equal(changed, inside)


def test_pixels_outside_of_the_mask_are_untouched_after_ten_chained_inpaints(parts, context, paint, photo):
    picture, touched = photo, torch.zeros(64, 64, dtype=torch.bool)
    for number in range(10):
        area = mask.ellipse(64, 64, x=4 * number, y=3 * number, w=24, h=20)
        edge = mask.combine(mask.grow(area, by=-2, feather=2), area, "intersect")
        latent = vae.encode(parts.vae, picture, context)
        decoded = vae.decode(parts.vae, paint(Noise((number,)), latent=latent, mask=area), context)
        picture = image.composite(picture, decoded, edge)
        touched |= area.data[0, 0] > 0
    difference = (picture.data.int() - photo.data.int()).abs().amax(dim=1)[0]
    assert int(difference[~touched].max()) == 0
    assert int(difference[touched].max()) > 20


def test_inputs_are_not_written_into(paint, start, prompts):
    before = (start.data.clone(), prompts[0].data.clone())
    stamps = (start.stamp(), prompts[0].stamp())
    paint(Noise((1,)), mask=Mask(torch.full((1, 1, 64, 64), 255, dtype=torch.uint8)))
    assert torch.equal(start.data, before[0])
    assert torch.equal(prompts[0].data, before[1])
    assert stamps == (start.stamp(), prompts[0].stamp())


def test_a_run_is_cancelled_within_one_step(parts, prompts, pool, start):
    token, seen = CancelToken(), []

    def listener(done, total, preview):
        seen.append((done, total))
        if done == 2:
            token.cancel()

    context = Context(models=pool, listener=listener, token=token)
    with pytest.raises(Cancelled):
        sample.sample(parts.unet, prompts[0], start, Noise((1,)), context, steps=9, cfg=1.0, sampler="euler")
    assert seen == [(0, 9), (1, 9), (2, 9)]


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_progress_ends_at_its_total(parts, prompts, pool, start, sampler):
    seen = []
    context = Context(models=pool, listener=lambda done, total, _: seen.append((done, total)))
    sample.sample(parts.unet, prompts[0], start, Noise((1,)), context, steps=4, cfg=1.0, sampler=sampler)
    assert seen[0][0] == 0
    assert seen[-1][0] == seen[-1][1]
    assert [done for done, _ in seen] == list(range(len(seen)))


class TestRefusals:
    def test_cfg_without_a_negative_prompt(self, parts, prompts, context, start):
        with pytest.raises(ValueError, match="link `negative`, or set cfg to 1"):
            sample.sample(parts.unet, prompts[0], start, Noise((1,)), context, cfg=7.0)

    def test_a_mask_of_another_size(self, paint):
        with pytest.raises(ValueError, match="the mask has 32 x 64 px, the latent 64 x 64 px"):
            paint(Noise((1,)), mask=mask.rectangle(32, 64, x=0, y=0, w=8, h=8))

    def test_more_latents_than_noise(self, paint, start):
        with pytest.raises(ValueError, match="noise for 3 pictures and 2 latents"):
            paint(noise.seeded(1, 3), latent=Latent(start.data.repeat(2, 1, 1, 1), start.space))

    def test_sides_that_the_vae_cannot_halve(self, parts, context):
        with pytest.raises(ValueError, match="multiples of 8"):
            vae.encode(parts.vae, Image(torch.zeros(1, 3, 60, 64, dtype=torch.uint8)), context)
        with pytest.raises(ValueError, match="multiples of 8 px, got 64 x 60"):
            latent.empty(parts.vae, context, 64, 60)

    def test_a_latent_of_another_space(self, parts, context):
        other = Latent(torch.zeros(1, 16, 8, 8), type(parts.vae.space)(channels=16))
        with pytest.raises(ValueError, match="use the model's own VAE"):
            vae.decode(parts.vae, other, context)


def test_a_model_changed_on_disk_is_noticed_when_it_is_loaded(tmp_path, prompts):
    folder = tmp_path / "model"
    shutil.copytree(pocket.FOLDER, folder)
    files = Files()
    parts = model.load(files.resolve(ModelFile, str(folder)))
    config = folder / "unet" / "config.json"
    config.write_text(config.read_text() + "\n")
    with pytest.raises(FileChanged):
        ModelPool(files).acquire(parts.unet, "cpu")
