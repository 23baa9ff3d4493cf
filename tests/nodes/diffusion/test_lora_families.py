"""LoRAs for SD 1.x, SD 2.x and SDXL: each spelling of each part's names, and what is said of one for another family."""

from itertools import permutations

import pytest
import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import save_file
from single_file import tiny_clip, tiny_unet
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from nodes.diffusion import lora, original
from nodes.diffusion.load import LoadError

TINY_SDXL = {
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
    "layers_per_block": 2,
    "transformer_layers_per_block": (1, 2),
    "attention_head_dim": (2, 4),
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 8,
    "projection_class_embeddings_input_dim": 112,
}
TINY_TEXT = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 1,
    "vocab_size": 99,
    "projection_dim": 48,
    "bos_token_id": 97,
    "eos_token_id": 98,
}


def big_g():
    return CLIPTextModelWithProjection(CLIPTextConfig(**TINY_TEXT)).eval()


MODULES = {
    "SD 1.x": (tiny_unet, "unet"),
    "SD 2.x": (lambda: tiny_unet(use_linear_projection=True), "unet"),
    "SDXL": (lambda: tiny_unet(**TINY_SDXL), "unet"),
    "CLIP-L": (lambda: tiny_clip(vocab_size=99, bos_token_id=97, eos_token_id=98), "text_encoder"),
    "bigG": (big_g, "text_encoder_2"),
}


@pytest.fixture(scope="module", params=MODULES)
def module_and_part(request):
    torch.manual_seed(0)
    make, part = MODULES[request.param]
    return make(), part


def wide(module):
    """Names of the modules that LoRAs change: linear layers and convolutions."""
    kinds = (torch.nn.Linear, torch.nn.Conv2d)
    return [name for name, inner in module.named_modules() if isinstance(inner, kinds)]


def sides(module, names, seed=0, rank=2):
    """A random (down, up) for each module."""
    made, found = torch.Generator().manual_seed(seed), {}
    for name in names:
        weight = module.get_parameter(f"{name}.weight")
        down = torch.randn(rank, *weight.shape[1:], generator=made)
        found[name] = down, torch.randn(len(weight), rank, *[1] * (weight.ndim - 2), generator=made)
    return found


def first_code(module):
    """Names of a UNet's modules in Stable Diffusion's first code, with `_` for dots."""
    return lambda name: "lora_unet_" + original.unet(list(dict(module.named_modules())))[name].replace(".", "_")


def bare(name):
    return name.removeprefix("text_model.")


def flat(name):
    return name.replace(".", "_")


SPELLINGS = {
    "unet": {
        "kohya with the first code's names": (first_code, "lora_down", "lora_up"),
        "kohya with diffusers' names": (lambda _: lambda name: f"lora_unet_{flat(name)}", "lora_down", "lora_up"),
        "diffusers": (lambda _: lambda name: f"unet.{name}", "lora_A", "lora_B"),
        "PEFT": (lambda _: lambda name: f"base_model.model.{name}", "lora_A", "lora_B"),
    },
    "text_encoder": {
        "kohya, one encoder": (
            lambda _: lambda name: f"lora_te_text_model_{flat(bare(name))}", "lora_down", "lora_up"
        ),
        "kohya, first of two": (
            lambda _: lambda name: f"lora_te1_text_model_{flat(bare(name))}", "lora_down", "lora_up"
        ),
        "diffusers": (lambda _: lambda name: f"text_encoder.text_model.{bare(name)}", "lora_A", "lora_B"),
        "transformers 5": (lambda _: lambda name: f"text_encoder.{bare(name)}", "lora_A", "lora_B"),
        "ComfyUI": (
            lambda _: lambda name: f"text_encoders.clip_l.transformer.text_model.{bare(name)}", "lora_down", "lora_up"
        ),
    },
    "text_encoder_2": {
        "kohya": (lambda _: lambda name: f"lora_te2_{flat(name)}", "lora_down", "lora_up"),
        "diffusers": (lambda _: lambda name: f"text_encoder_2.{name}", "lora_A", "lora_B"),
        "ComfyUI": (lambda _: lambda name: f"text_encoders.clip_g.transformer.{name}", "lora_down", "lora_up"),
    },
}  # fmt: skip


def spelled(module, found, spelling):
    spell, down, up = spelling
    name_of = spell(module)
    return {
        f"{name_of(name)}.{side}.weight": tensor.contiguous()
        for name, pair in found.items()
        for side, tensor in zip((down, up), pair, strict=True)
    }


@pytest.fixture
def write(tmp_path):
    def written(tensors, name="made.safetensors"):
        save_file(tensors, tmp_path / name)
        return tmp_path / name

    return written


class TestSpellings:
    def test_every_module_of_every_family_is_found_under_each_of_its_names(self, module_and_part, write):
        module, part = module_and_part
        found = sides(module, wide(module))
        for layout, spelling in SPELLINGS[part].items():
            path = write(spelled(module, found, spelling))
            made, own = lora.patched(module, part, [(lora.read(path), 0.5)])
            assert set(own) == {f"{name}.weight" for name in found}, layout
            for name, (down, up) in found.items():
                weight = module.get_parameter(f"{name}.weight")
                expected = weight + 0.5 * torch.einsum("or,r...->o...", up.flatten(1), down)
                assert torch.allclose(made.get_parameter(f"{name}.weight"), expected, atol=1e-4), (layout, name)

    @pytest.mark.parametrize("key", ["lora_te2_text_projection", "text_encoder_2.text_projection"])
    def test_the_projection_of_the_second_encoder_too(self, write, key):
        encoder, x = big_g(), torch.arange(77)[None] % 90
        down, up = torch.randn(2, 32), torch.randn(48, 2)
        path = write({f"{key}.lora_down.weight": down, f"{key}.lora_up.weight": up})
        made, own = lora.patched(encoder, "text_encoder_2", [(lora.read(path), 1.0)])
        with torch.no_grad():
            pooled = encoder.text_model(x).pooler_output
            expected = encoder(x).text_embeds + pooled @ down.T @ up.T
            assert own == ("text_projection.weight",)
            assert torch.allclose(made(x).text_embeds, expected, atol=1e-4)

    @pytest.mark.parametrize(
        ("key", "place"),
        [
            ("input_blocks_4_1_transformer_blocks_1_norm1", "down_blocks.1.attentions.0.transformer_blocks.1.norm1"),
            ("middle_block_1_transformer_blocks_1_norm2", "mid_block.attentions.0.transformer_blocks.1.norm2"),
            ("output_blocks_2_1_proj_out", "up_blocks.0.attentions.2.proj_out"),
            ("output_blocks_2_2_conv", "up_blocks.0.upsamplers.0.conv"),
            ("input_blocks_3_0_op", "down_blocks.0.downsamplers.0.conv"),
            ("output_blocks_3_0_skip_connection", "up_blocks.1.resnets.0.conv_shortcut"),
            ("input_blocks_1_0_in_layers_2", "down_blocks.0.resnets.0.conv1"),
            ("input_blocks_1_0_out_layers_3", "down_blocks.0.resnets.0.conv2"),
            ("input_blocks_1_0_emb_layers_1", "down_blocks.0.resnets.0.time_emb_proj"),
            ("time_embed_2", "time_embedding.linear_2"),
            ("label_emb_0_0", "add_embedding.linear_1"),
            ("label_emb_0_2", "add_embedding.linear_2"),
            ("out_2", "conv_out"),
        ],
    )  # fmt: skip
    def test_names_in_sdxl_files(self, key, place):
        with torch.device("meta"):
            unet = tiny_unet(**TINY_SDXL)
        assert lora._places(unet)[key] == place


class TestOtherKinds:
    """All kinds of changes come out of files as they went in; `test_change` has their formulas."""

    def test_norms_and_biases_are_changed_by_what_is_added_to_them(self, write):
        unet, name = tiny_unet(), "down_blocks.0.resnets.0"
        shift = torch.linspace(-1, 1, 32)
        tensors = {
            "lora_unet_input_blocks_1_0_in_layers_0.w_norm": shift,
            "lora_unet_input_blocks_1_0_in_layers_0.b_norm": shift * 2,
            "lora_unet_input_blocks_1_0_in_layers_2.diff": torch.ones(32, 32, 3, 3),
            "lora_unet_input_blocks_1_0_in_layers_2.diff_b": shift * 3,
        }
        made, own = lora.patched(unet, "unet", [(lora.read(write(tensors)), -0.5)])
        changed = {"norm1.weight": shift, "norm1.bias": shift * 2, "conv1.weight": 1, "conv1.bias": shift * 3}
        assert set(own) == {f"{name}.{each}" for each in changed}
        for each, difference in changed.items():
            expected = unet.get_parameter(f"{name}.{each}") - 0.5 * difference
            assert torch.allclose(made.get_parameter(f"{name}.{each}"), expected)

    def test_a_bias_may_come_beside_a_lora(self, write):
        unet, key = tiny_unet(), "lora_unet_conv_in"
        tensors = {
            f"{key}.lora_down.weight": torch.ones(1, 4, 3, 3),
            f"{key}.lora_up.weight": torch.ones(32, 1, 1, 1),
            f"{key}.diff_b": torch.ones(32),
        }
        made, own = lora.patched(unet, "unet", [(lora.read(write(tensors)), 1.0)])
        assert own == ("conv_in.weight", "conv_in.bias")
        assert torch.allclose(made.conv_in.weight, unet.conv_in.weight + 1)
        assert torch.allclose(made.conv_in.bias, unet.conv_in.bias + 1)

    @pytest.mark.parametrize(
        ("fields", "delta"),
        [
            ({"hada_w1_a": (32, 2), "hada_w1_b": (2, 288), "hada_w2_a": (32, 2), "hada_w2_b": (2, 288)}, 4),
            (
                {
                    "hada_w1_a": (2, 32), "hada_w1_b": (2, 32), "hada_t1": (2, 2, 3, 3),
                    "hada_w2_a": (2, 32), "hada_w2_b": (2, 32), "hada_t2": (2, 2, 3, 3),
                },
                16,
            ),
            ({"lokr_w1": (4, 8), "lokr_w2": (8, 4, 3, 3)}, 1),
            ({"lokr_w1_a": (4, 2), "lokr_w1_b": (2, 8), "lokr_w2": (8, 4, 3, 3)}, 2),
            ({"lokr_w1": (4, 8), "lokr_w2_a": (2, 8), "lokr_w2_b": (2, 4), "lokr_t2": (2, 2, 3, 3)}, 4),
            ({"lora_down.weight": (2, 32, 1, 1), "lora_mid.weight": (2, 2, 3, 3), "lora_up.weight": (32, 2, 1, 1)}, 4),
        ],
    )  # fmt: skip
    def test_tensors_of_ones_add_what_can_be_counted(self, write, fields, delta):
        unet = tiny_unet()
        tensors = {
            f"lora_unet_down_blocks_0_resnets_0_conv1.{field}": torch.ones(shape) for field, shape in fields.items()
        }
        made, own = lora.patched(unet, "unet", [(lora.read(write(tensors)), 1.0)])
        assert own == ("down_blocks.0.resnets.0.conv1.weight",)
        weight = unet.down_blocks[0].resnets[0].conv1.weight
        assert torch.allclose(made.down_blocks[0].resnets[0].conv1.weight, weight + delta)

    @pytest.mark.parametrize("field", ["dora_scale", "lora_magnitude_vector", "lora_magnitude_vector.weight"])
    def test_lengths_of_rows_that_are_the_weights_own_leave_their_direction_alone_to_change(self, write, field):
        """With no change and doubled lengths, DoRA doubles a weight."""
        unet = tiny_unet()
        weight = unet.down_blocks[0].resnets[0].time_emb_proj.weight
        key = "lora_unet_down_blocks_0_resnets_0_time_emb_proj"
        tensors = {
            f"{key}.lora_down.weight": torch.zeros(1, weight.shape[1]),
            f"{key}.lora_up.weight": torch.zeros(len(weight), 1),
            f"{key}.{field}": 2 * weight.detach().norm(dim=1),
        }
        made, _ = lora.patched(unet, "unet", [(lora.read(write(tensors)), 1.0)])
        assert torch.allclose(made.down_blocks[0].resnets[0].time_emb_proj.weight, 2 * weight, atol=1e-5)


class TestStacks:
    @pytest.mark.parametrize("strengths", [(1.0, -0.5, 0.3), (2.0, 0.0, -1.0)])
    def test_what_is_added_does_not_depend_on_the_order(self, write, strengths):
        unet = tiny_unet()
        names, spelling = wide(unet), SPELLINGS["unet"]["diffusers"]
        paths = [write(spelled(unet, sides(unet, names, seed), spelling), f"{seed}.safetensors") for seed in range(3)]
        stack = list(zip(map(lora.read, paths), strengths, strict=True))
        one, own = lora.patched(unet, "unet", stack)
        other, _ = lora.patched(unet, "unet", stack[::-1])
        assert all(torch.allclose(one.get_parameter(name), other.get_parameter(name), atol=1e-5) for name in own)

    def test_the_same_one_with_opposite_strengths_leaves_the_weights_as_they_are_but_for_rounding(self, write):
        unet = tiny_unet()
        found = lora.read(write(spelled(unet, sides(unet, wide(unet)), SPELLINGS["unet"]["diffusers"])))
        made, own = lora.patched(unet, "unet", [(found, 0.7), (found, -0.7)])
        assert all(torch.allclose(made.get_parameter(name), unet.get_parameter(name), atol=1e-5) for name in own)


def hollow(make):
    with torch.device("meta"):
        return make()


SDXL_UNET = {
    "block_out_channels": (320, 640, 1280),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": (1, 2, 10),
    "attention_head_dim": (5, 10, 20),
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
    "cross_attention_dim": 2048,
}
SD2_UNET = {"attention_head_dim": (5, 10, 20, 20), "use_linear_projection": True, "cross_attention_dim": 1024}


def text(width, kind=CLIPTextModel):
    return kind(CLIPTextConfig(hidden_size=width, intermediate_size=4 * width, num_hidden_layers=2, vocab_size=49408))


WHOLE = {
    "SD 1.x": {
        "unet": lambda: UNet2DConditionModel(cross_attention_dim=768),
        "text_encoder": lambda: text(768),
    },
    "SD 2.x": {"unet": lambda: UNet2DConditionModel(**SD2_UNET), "text_encoder": lambda: text(1024)},
    "SDXL": {
        "unet": lambda: UNet2DConditionModel(**SDXL_UNET),
        "text_encoder": lambda: text(768),
        "text_encoder_2": lambda: text(1280, CLIPTextModelWithProjection),
    },
}
"""The parts of each family at their true widths, to be made without weights."""


@pytest.fixture(scope="module")
def whole():
    return {family: {part: hollow(make) for part, make in parts.items()} for family, parts in WHOLE.items()}


@pytest.fixture(scope="module")
def kohya_files(whole, tmp_path_factory):
    """A LoRA of rank 1 for some attentions of each part, as kohya's scripts name them, by family."""
    folder, prefixes = (
        tmp_path_factory.mktemp("loras"),
        {"unet": "lora_unet_", "text_encoder_2": "lora_te2_text_model_"},
    )
    paths = {}
    for family, parts in whole.items():
        tensors = {}
        for part, module in parts.items():
            te = "lora_te1_text_model_" if family == "SDXL" else "lora_te_text_model_"
            names = [name for name in wide(module) if "attn" in name][-30:]
            for name in names:
                out, into = module.get_parameter(f"{name}.weight").shape[:2]
                key = prefixes.get(part, te) + bare(name).replace(".", "_")
                tensors |= {
                    f"{key}.lora_down.weight": torch.zeros(1, into),
                    f"{key}.lora_up.weight": torch.zeros(out, 1),
                }
        paths[family] = folder / f"{family}.safetensors"
        save_file(tensors, paths[family])
    return paths


class TestOtherBases:
    @pytest.mark.parametrize("family", WHOLE)
    def test_what_it_was_made_for_is_told_from_names_and_widths(self, kohya_files, family):
        assert lora.read(kohya_files[family]).made_for == family

    @pytest.mark.parametrize(("family", "other"), list(permutations(WHOLE, 2)))
    def test_one_for_another_family_is_refused_with_the_name_of_that_family(self, kohya_files, whole, family, other):
        with pytest.raises(LoadError) as caught:
            lora.patched(whole[family]["unet"], "unet", [(lora.read(kohya_files[other]), 1.0)])
        assert f"fit the weights of this UNet2DConditionModel of {family}, found" in str(caught.value)
        assert f"that do not, as it is made for {other}: " in str(caught.value)
        assert str(kohya_files[other]) in str(caught.value)

    def test_one_for_a_part_that_the_model_lacks_is_refused(self, kohya_files, whole):
        found = lora.read(kohya_files["SDXL"])
        expected = (
            r"expected a LoRA for a model that has UNet and text encoder alone \(this CLIPTextModel of SD 1.x or SDXL "
            r"\(CLIP-L\)\), found changes of the second text encoder, as it is made for SDXL"
        )
        with pytest.raises(LoadError, match=expected):
            lora.patched(whole["SD 1.x"]["text_encoder"], "text_encoder", [(found, 1.0)], ("unet", "text_encoder"))

    def test_the_second_text_encoder_is_told_by_its_projection(self, whole):
        assert lora.part_of(whole["SDXL"]["text_encoder_2"]) == "text_encoder_2"
        assert lora.part_of(whole["SDXL"]["text_encoder"]) == "text_encoder"

    @pytest.mark.parametrize(
        ("name", "width", "family"),
        [
            ("down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q", 320, "SD 1.x or 2.x"),
            ("down_blocks_1_attentions_0_transformer_blocks_1_attn1_to_q", 640, "SDXL"),
            ("mid_block_attentions_0_transformer_blocks_0_attn2_to_k", 1280, "the SDXL refiner"),
            ("double_blocks_0_img_attn_proj", 3072, "Flux"),
            ("joint_blocks_0_x_block_attn_proj", 1536, "SD 3"),
            ("mid_block_resnets_0_conv1", 1280, None),
        ],
    )
    def test_single_modules_tell_as_much_as_they_can(self, write, name, width, family):
        tensors = {f"lora_unet_{name}.lora_{side}.weight": torch.zeros(shape)
                   for side, shape in (("down", (1, width)), ("up", (width, 1)))}  # fmt: skip
        assert lora.read(write(tensors)).made_for == family


class TestDescribed:
    @pytest.mark.parametrize(
        ("family", "words"),
        [
            ("SD 1.x", "LoRA for SD 1.x, rank 1, UNet and text encoder"),
            ("SD 2.x", "LoRA for SD 2.x, rank 1, UNet and text encoder"),
            ("SDXL", "LoRA for SDXL, rank 1, UNet and both text encoders"),
        ],
    )
    def test_a_file_is_described_by_family_rank_and_parts(self, kohya_files, family, words):
        assert lora.described(kohya_files[family]) == words

    @pytest.mark.parametrize(
        ("fields", "words"),
        [
            ({"lora_down.weight": (4, 64), "lora_up.weight": (64, 4), "dora_scale": (64, 1)}, "DoRA, rank 4, UNet"),
            ({"lokr_w1": (2, 2), "lokr_w2": (32, 32), "alpha": ()}, "LoKr, UNet"),
            (
                {"hada_w1_a": (9, 3), "hada_w1_b": (3, 9), "hada_w2_a": (9, 3), "hada_w2_b": (3, 9)},
                "LoHa, rank 3, UNet",
            ),
            ({"diff": (64, 64), "diff_b": (64,)}, "full differences, UNet"),
        ],
    )
    def test_by_its_method(self, write, fields, words):
        tensors = {f"lora_unet_mid_block_proj_in.{field}": torch.zeros(shape) for field, shape in fields.items()}
        assert lora.described(write(tensors)) == words

    def test_by_several_ranks_and_methods(self, write):
        tensors = {
            "text_encoder_2.text_projection.lora_A.weight": torch.zeros(8, 64),
            "text_encoder_2.text_projection.lora_B.weight": torch.zeros(64, 8),
            "text_encoder_2.text_model.final_layer_norm.w_norm": torch.zeros(64),
            "text_encoder.text_model.x.hada_w1_a": torch.zeros(9, 3),
            "text_encoder.text_model.x.hada_w1_b": torch.zeros(3, 9),
            "text_encoder.text_model.x.hada_w2_a": torch.zeros(9, 3),
            "text_encoder.text_model.x.hada_w2_b": torch.zeros(3, 9),
        }
        assert lora.described(write(tensors)) == "LoHa and LoRA for SDXL, ranks 3 to 8, both text encoders"

    def test_what_is_none_is_refused(self, write):
        with pytest.raises(LoadError, match="found 1 keys of an embedding: emb_params"):
            lora.described(write({"emb_params": torch.zeros(1, 768)}))
