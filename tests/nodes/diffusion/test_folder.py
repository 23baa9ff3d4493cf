"""Folders in diffusers' layout: SDXL's, weights in several files or in another number format, and old names."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from single_file import (
    interleaved,
    same,
    shaken,
    tiny_big_g,
    tiny_clip,
    tiny_refiner_unet,
    tiny_vae,
    tiny_xl_unet,
    told,
)

from nodes.diffusion import load
from nodes.diffusion.load import LoadError

UNET = "diffusion_pytorch_model"


@pytest.fixture(scope="module")
def modules():
    torch.manual_seed(0)
    return tuple(map(shaken, (tiny_xl_unet(), tiny_vae(), tiny_clip(), tiny_big_g())))


@pytest.fixture(scope="module")
def saved(modules, pocket, tmp_path_factory):
    """SDXL as diffusers saves it."""
    folder = tmp_path_factory.mktemp("folder") / "xl"
    for name, module in zip(("unet", "vae", "text_encoder", "text_encoder_2"), modules, strict=True):
        module.save_pretrained(folder / name)
    for name in ("tokenizer", "tokenizer_2"):
        shutil.copytree(pocket / "tokenizer", folder / name)
    shutil.copytree(pocket / "scheduler", folder / "scheduler")
    return folder


@pytest.fixture
def xl(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "xl")


class TestXl:
    def test_each_part_is_what_it_was_saved_from(self, saved, modules):
        unet, vae, clip, big_g = modules
        first, second = load.towers(saved)
        assert same(load.unet(saved), unet.state_dict())
        assert same(load.vae(saved), vae.state_dict())
        assert same(first.encoder, clip.state_dict())
        assert same(second.encoder, big_g.state_dict())
        assert (load.family(saved), load.described(saved)) == ("sdxl", "SDXL")

    def test_they_compute_what_the_modules_compute(self, saved, modules):
        latent, context, tokens = torch.randn(1, 4, 16, 16), torch.randn(1, 77, 128), torch.arange(77)[None]
        unet, second = load.unet(saved), load.towers(saved)[1].encoder
        with torch.no_grad():
            expected = interleaved(modules[0])(latent, 7, context, **told(modules[0])).sample
            assert torch.equal(unet(latent, 7, context, **told(unet)).sample, expected)
            assert torch.equal(second(tokens).text_embeds, modules[3](tokens).text_embeds)

    def test_a_refiner_has_the_second_text_encoder_alone(self, xl):
        torch.manual_seed(1)
        refining = shaken(tiny_refiner_unet())
        refining.save_pretrained(xl / "unet")
        shutil.rmtree(xl / "text_encoder")
        assert (load.family(xl), load.described(xl)) == ("refiner", "SDXL refiner")
        assert same(load.unet(xl), refining.state_dict())
        assert len(load.towers(xl)) == 1


class TestFilesOfWeights:
    def split(self, folder, variant=""):
        """The weights of a UNet in three files, as an index lists them."""
        whole = folder / f"{UNET}.safetensors"
        tensors, listed = load_file(whole), {}
        whole.unlink()
        for shard in range(3):
            name = f"{UNET}{variant}-{shard + 1:05}-of-00003.safetensors"
            held = dict(list(tensors.items())[shard::3])
            save_file(held, folder / name)
            listed |= dict.fromkeys(held, name)
        index = folder / f"{UNET}.safetensors.index{variant}.json"
        index.write_text(json.dumps({"metadata": {}, "weight_map": listed}))
        return index

    @pytest.mark.parametrize("variant", ["", ".fp16"])
    def test_weights_may_lie_in_several(self, xl, modules, variant):
        self.split(xl / "unet", variant)
        assert same(load.unet(xl), modules[0].state_dict())

    @pytest.mark.parametrize("variant", ["fp16", "bf16"])
    def test_weights_may_be_there_in_another_number_format_alone(self, xl, modules, variant):
        for name, stem in (("unet", UNET), ("text_encoder_2", "model")):
            (xl / name / f"{stem}.safetensors").rename(xl / name / f"{stem}.{variant}.safetensors")
        assert same(load.unet(xl), modules[0].state_dict())
        assert same(load.towers(xl)[1].encoder, modules[3].state_dict())

    def test_the_full_numbers_are_taken_where_both_are_there(self, xl, modules):
        rounded = {name: tensor.half() for name, tensor in modules[0].state_dict().items()}
        save_file(rounded, xl / "unet" / f"{UNET}.fp16.safetensors")
        assert same(load.unet(xl), modules[0].state_dict())

    def test_an_index_leads_nowhere_else(self, xl):
        index = self.split(xl / "unet")
        outside = xl / "vae" / f"{UNET}.safetensors"
        index.write_text(json.dumps({"weight_map": {"conv_in.weight": f"../vae/{outside.name}"}}))
        with pytest.raises(LoadError, match=r"expected files beside it, found '\.\./vae/.*', which is not there"):
            load.unet(xl)

    def test_a_file_of_an_index_that_is_missing_is_named(self, xl):
        self.split(xl / "unet")
        (xl / "unet" / f"{UNET}-00002-of-00003.safetensors").unlink()
        with pytest.raises(
            LoadError, match=r"found 'diffusion_pytorch_model-00002-of-00003\.safetensors', which is not"
        ):
            load.unet(xl)

    @pytest.mark.parametrize("content", [{}, {"weight_map": []}])
    def test_an_index_that_lists_nothing_is_refused(self, xl, content):
        self.split(xl / "unet").write_text(json.dumps(content))
        with pytest.raises(LoadError, match="expected a weight_map from names to files, found none"):
            load.unet(xl)


def test_an_older_text_encoder_with_positions_and_a_longer_name_is_read(xl, modules):
    weights = xl / "text_encoder" / "model.safetensors"
    names = {f"text_model.{name.removeprefix('text_model.')}": tensor for name, tensor in load_file(weights).items()}
    save_file(names | {"text_model.embeddings.position_ids": torch.arange(77)[None]}, weights)
    assert same(load.towers(xl)[0].encoder, modules[2].state_dict())


def test_tensors_of_another_architecture_are_named(xl):
    weights = xl / "unet" / f"{UNET}.safetensors"
    save_file(load_file(weights) | {"down_blocks.1.attentions.0.fuser.weight": torch.zeros(1)}, weights)
    with pytest.raises(LoadError, match=r"found 1 more: down_blocks.1.attentions.0.fuser.weight; it is another arch"):
        load.unet(xl)
