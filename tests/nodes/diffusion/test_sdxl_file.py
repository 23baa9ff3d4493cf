"""SDXL, its refiner and its inpainting in one file: what they were made of, and what diffusers converts them to."""

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.loaders import single_file_utils as judge
from safetensors.torch import save_file
from single_file import (
    REFINER_BIG_G,
    UNET,
    VAE,
    XL_BIG_G,
    XL_CLIP,
    bare,
    everything_xl,
    interleaved,
    open_clip,
    renamed,
    same,
    shaken,
    tiny_big_g,
    tiny_clip,
    tiny_refiner_unet,
    tiny_vae,
    tiny_xl_unet,
    told,
    without,
)
from transformers import CLIPTextConfig, CLIPTextModelWithProjection

from nodes.diffusion import architecture, checkpoint, load, original, text
from nodes.diffusion import tensors as tensors_of
from nodes.diffusion.load import LoadError


@pytest.fixture(scope="module")
def modules():
    torch.manual_seed(0)
    return tuple(map(shaken, (tiny_xl_unet(), tiny_vae(), tiny_clip(), tiny_big_g())))


@pytest.fixture(scope="module")
def refining():
    torch.manual_seed(1)
    return tuple(map(shaken, (tiny_refiner_unet(), tiny_vae(), tiny_big_g())))


@pytest.fixture(scope="module")
def tensors(modules):
    return everything_xl(*modules)


@pytest.fixture(scope="module")
def refiner_tensors(refining):
    unet, vae, big_g = refining
    return everything_xl(unet, vae, None, big_g)


def saved(tensors, path):
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)
    return path


@pytest.fixture
def write(tmp_path):
    return lambda tensors: saved(tensors, tmp_path / "made.safetensors")


@pytest.fixture(scope="module")
def file(tensors, tmp_path_factory):
    return saved(tensors, tmp_path_factory.mktemp("xl") / "xl.safetensors")


@pytest.fixture(scope="module")
def refiner(refiner_tensors, tmp_path_factory):
    return saved(refiner_tensors, tmp_path_factory.mktemp("refiner") / "refiner.safetensors")


class TestXl:
    def test_it_is_recognised_by_its_tensors(self, file):
        assert load.described(file) == "SDXL"
        assert load.family(file) == "sdxl"
        assert load.unet_inputs(file) == 4

    def test_each_part_is_what_it_was_made_of(self, file, modules):
        unet, vae, clip, big_g = modules
        first, second = load.towers(file)
        assert same(load.unet(file), unet.state_dict())
        assert same(load.vae(file), vae.state_dict())
        assert same(first.encoder, clip.state_dict())
        assert same(second.encoder, big_g.state_dict())

    def test_unet_and_vae_are_what_diffusers_converts_the_file_to(self, file, tensors):
        unet, vae = load.unet(file), load.vae(file)
        assert same(unet, judge.convert_ldm_unet_checkpoint(dict(tensors), dict(unet.config)))
        assert same(vae, judge.convert_ldm_vae_checkpoint(dict(tensors), dict(vae.config)))

    def test_the_text_encoders_are_what_diffusers_converts_the_file_to(self, file, tensors):
        first, second = (tower.encoder for tower in load.towers(file))
        converted = bare(judge.convert_ldm_clip_checkpoint(dict(tensors)))
        assert all(torch.equal(converted[name], weight) for name, weight in bare(first.state_dict()).items())
        converted = bare(judge.convert_open_clip_checkpoint(second, dict(tensors), XL_BIG_G))
        assert all(torch.equal(converted[name], weight) for name, weight in bare(second.state_dict()).items())

    def test_they_compute_what_the_modules_compute(self, file, modules):
        latent, context, tokens = torch.randn(1, 4, 16, 16), torch.randn(1, 77, 128), torch.arange(77)[None]
        unet, second = load.unet(file), load.towers(file)[1].encoder
        with torch.no_grad():
            expected = interleaved(modules[0])(latent, 7, context, **told(modules[0])).sample
            assert torch.equal(unet(latent, 7, context, **told(unet)).sample, expected)
            assert torch.equal(second(tokens).text_embeds, modules[3](tokens).text_embeds)

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    def test_a_file_may_hold_any_dtype_and_an_average_beside_the_weights(self, tensors, write, dtype, modules):
        rounded = {name: tensor.to(dtype) for name, tensor in tensors.items()}
        ema = {f"model_ema.{name.replace('.', '')}": tensor + 1 for name, tensor in rounded.items()}
        path = write(rounded | ema)
        assert same(
            load.unet(path), {name: weight.to(dtype).float() for name, weight in modules[0].state_dict().items()}
        )
        assert same(
            load.unet(path, dtype=dtype), {n: weight.to(dtype) for n, weight in modules[0].state_dict().items()}
        )

    def test_its_latents_are_scaled_with_another_number(self, file, tensors, write):
        space = {"channels": 4, "downscale": 2, "scaling": 0.13025, "shift": 0.0}
        assert load.latent_space(file) == space
        assert load.vae(file).config.scaling_factor == 0.13025
        bare_of_vae = write(without(tensors, VAE))
        assert load.latent_space(bare_of_vae) == space | {"downscale": 8}
        assert load.described(bare_of_vae) == "SDXL without VAE"

    def test_its_prompts_are_padded_with_ends_and_with_exclamation_marks(self, file):
        first, second = (tower.tokenizer for tower in load.towers(file))
        assert text.framed([], first) == [49406, *[49407] * 76]
        assert text.framed([], second) == [49406, 49407, *[0] * 75]

    def test_an_inpainting_unet_takes_nine_channels(self, tensors, write):
        torch.manual_seed(1)
        nine = shaken(tiny_xl_unet(in_channels=9))
        path = write(without(tensors, UNET) | renamed(nine, original.unet, UNET))
        assert load.described(path) == "SDXL inpainting"
        assert load.unet_inputs(path) == 9
        assert same(load.unet(path), nine.state_dict())

    def test_a_unet_alone_is_told_from_a_refiners_by_its_blocks(self, tensors, refiner_tensors, write):
        for found, family in ((tensors, "sdxl"), (refiner_tensors, "refiner")):
            path = write({name: tensor for name, tensor in found.items() if name.startswith(UNET)})
            assert load.family(path) == family
            assert load.unet(path).config.addition_time_embed_dim == 8

    def test_one_with_shallower_layers_on_the_way_up_is_read(self, tensors, write):
        """As SSD-1B and Segmind's Vega are."""
        torch.manual_seed(4)
        pruned = shaken(
            tiny_xl_unet(
                transformer_layers_per_block=(1, (2, 2), (3, 3)),
                reverse_transformer_layers_per_block=((3, 3, 4), (2, 1, 1), 1),
                mid_block_type="UNetMidBlock2D",
            )
        )
        path = write(without(tensors, UNET) | renamed(pruned, original.unet, UNET))
        assert same(load.unet(path), pruned.state_dict())

    @pytest.mark.parametrize("marks", [["v_pred"], ["v_pred", "ztsnr"]])
    def test_marks_say_what_it_predicts_and_from_which_noise(self, tensors, write, marks, table):
        found = load.schedule(write(tensors | {mark: torch.zeros(0) for mark in marks}))
        assert found == (table.with_zero_snr() if "ztsnr" in marks else table).with_prediction("v_prediction")

    def test_without_marks_it_predicts_noise(self, file, table):
        assert load.schedule(file) == table

    @pytest.mark.parametrize("lost", [XL_CLIP, XL_BIG_G])
    def test_a_file_without_one_of_its_text_encoders_has_no_towers(self, tensors, write, lost):
        with pytest.raises(LoadError, match=r"(first|second) text encoder of .*found UNet and VAE and"):
            load.towers(write(without(tensors, lost)))


class TestRefiner:
    def test_it_is_recognised_by_its_tensors(self, refiner):
        assert load.described(refiner) == "SDXL refiner"
        assert load.family(refiner) == "refiner"

    def test_each_part_is_what_it_was_made_of(self, refiner, refining):
        unet, vae, big_g = refining
        [tower] = load.towers(refiner)
        assert same(load.unet(refiner), unet.state_dict())
        assert same(load.vae(refiner), vae.state_dict())
        assert same(tower.encoder, big_g.state_dict())
        assert load.latent_space(refiner)["scaling"] == 0.13025

    def test_they_are_what_diffusers_converts_the_file_to(self, refiner, refiner_tensors):
        unet, [tower] = load.unet(refiner), load.towers(refiner)
        assert same(unet, judge.convert_ldm_unet_checkpoint(dict(refiner_tensors), dict(unet.config)))
        converted = bare(judge.convert_open_clip_checkpoint(tower.encoder, dict(refiner_tensors), REFINER_BIG_G))
        assert all(torch.equal(converted[name], weight) for name, weight in bare(tower.encoder.state_dict()).items())

    def test_it_computes_what_the_module_computes(self, refiner, refining):
        latent, context = torch.randn(1, 4, 16, 16), torch.randn(1, 77, 64)
        unet = load.unet(refiner)
        with torch.no_grad():
            expected = interleaved(refining[0])(latent, 7, context, **told(refining[0])).sample
            assert torch.equal(unet(latent, 7, context, **told(unet)).sample, expected)

    def test_its_prompts_are_padded_with_exclamation_marks(self, refiner):
        [tower] = load.towers(refiner)
        assert text.framed([], tower.tokenizer) == [49406, 49407, *[0] * 75]


@pytest.mark.parametrize(
    ("told", "pooled", "numbers", "width"),
    [
        (2816, 1280, 6, 256),
        (2816, None, 6, 256),
        (2560, 1280, 5, 256),
        (2560, None, 5, 256),
        (80, None, 6, 8),
        (72, None, 5, 8),
    ],
)
def test_the_width_of_the_numbers_follows_from_all_that_a_unet_is_told(told, pooled, numbers, width):
    assert architecture.time_width(told, pooled, numbers) == width


XL = {
    "block_out_channels": (320, 640, 1280),
    "cross_attention_dim": 2048,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": [1, 2, 10],
    "attention_head_dim": [5, 10, 20],
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
    "sample_size": 128,
}
REFINER = XL | {
    "block_out_channels": (384, 768, 1536, 1536),
    "cross_attention_dim": 1280,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": [4, 4, 4, 4],
    "attention_head_dim": [6, 12, 24, 24],
    "projection_class_embeddings_input_dim": 2560,
}


class TestFullSize:
    """The shapes of the real models, without values: of each part its config says what everybody's says."""

    @pytest.mark.parametrize(("config", "family"), [(XL, "sdxl"), (REFINER, "refiner")])
    def test_a_unet(self, config, family, tmp_path, monkeypatch):
        with torch.device("meta"):
            module = UNet2DConditionModel(**config)
        contents = pretended(tmp_path, monkeypatch, renamed_shapes(module, original.unet, UNET))
        assert load.family(contents) == family
        part = checkpoint.Contents.of(contents).part(checkpoint.UNET)
        derived = architecture.unet(part, family)
        with torch.device("meta"):
            again = UNet2DConditionModel(**derived)
        assert {n: w.shape for n, w in again.state_dict().items()} == {
            n: w.shape for n, w in module.state_dict().items()
        }
        listed = {name: list(value) if isinstance(value, tuple) else value for name, value in config.items()}
        first = 1 if family == "sdxl" else 4
        depths = [first, *config["transformer_layers_per_block"][1:]] if family == "sdxl" else [1, 4, 4, 4]
        assert {name: derived[name] for name in config} == listed | {"transformer_layers_per_block": depths}

    def test_big_g(self, tmp_path, monkeypatch):
        config = CLIPTextConfig(
            hidden_size=1280, intermediate_size=5120, num_hidden_layers=32, num_attention_heads=20, projection_dim=1280
        )
        with torch.device("meta"):
            module = CLIPTextModelWithProjection(config)
        shapes = {name: tuple(tensor.shape) for name, tensor in open_clip(module, XL_BIG_G).items()}
        part = checkpoint.Contents.of(pretended(tmp_path, monkeypatch, shapes)).part(checkpoint.XL_BIG_G)
        derived = architecture.open_clip(part)
        sizes = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
        assert {name: derived[name] for name in sizes} == {name: getattr(config, name) for name in sizes}


def renamed_shapes(module, spelling, prefix):
    tensors = module.state_dict()
    names = original.tensors(tensors, spelling)
    return {prefix + place: tuple(tensors[name].shape) for name, place in names.items()}


def pretended(folder, monkeypatch, shapes):
    """A file of which nothing but the shapes is there."""
    path = folder / "pretended.safetensors"
    path.touch()
    spans = {name: tensors_of.Span(path, "F16", shape, 0) for name, shape in shapes.items()}
    monkeypatch.setattr("nodes.diffusion.parts.spans", lambda *_: spans)
    return path


def test_a_vae_alone_takes_the_scaling_of_the_model_that_it_is_put_on(modules, write, file):
    path = write(renamed(modules[1], original.vae, ""))
    assert isinstance(load.vae(path), AutoencoderKL)
    beside = {"channels": 4, "downscale": 2, "scaling": 0.13025, "shift": 0.5}
    assert load.latent_space(path)["scaling"] == 0.18215
    space = load.latent_space(path, beside=beside)
    assert space == beside
    config = load.vae(path, space=space).config
    assert (config.scaling_factor, config.shift_factor) == (0.13025, 0.5)


def test_the_vae_of_a_checkpoint_keeps_its_own_scaling(file):
    beside = {"channels": 4, "downscale": 2, "scaling": 0.18215, "shift": 0.0}
    assert load.latent_space(file, beside=beside)["scaling"] == 0.13025
