"""LoRAs: read in each spelling that there is, added to a copy, and never a trace of them on the model below."""

import json
import re

import pytest
import torch
from diffusers import UNet2DConditionModel
from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint
from safetensors.torch import save_file

from nodes.diffusion import load, lora, original
from nodes.diffusion.load import LoadError

QUERY = "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"
OUT = "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_out.0"
CONV = "down_blocks.1.resnets.0.conv1"
POINT = "down_blocks.1.attentions.0.proj_in"
KEY = "encoder.layers.0.self_attn.k_proj"
PARTS = {"unet": (QUERY, OUT, CONV, POINT), "text_encoder": (KEY, "encoder.layers.1.mlp.fc1")}

KOHYA = {"unet": "lora_unet_", "text_encoder": "lora_te_text_model_"}
DIFFUSERS = {"unet": "unet.", "text_encoder": "text_encoder.text_model."}


def sides(weight, rank=3, seed=0, scale=0.3):
    """Random down and up for a weight, shaped as trainers shape them: kernels stay on the way down."""
    made = torch.Generator().manual_seed(seed)
    down = torch.randn(rank, *weight.shape[1:], generator=made) * scale
    up = torch.randn(weight.shape[0], rank, *[1] * (weight.ndim - 2), generator=made) * scale
    return down, up


def kohya(modules, part, alpha=1.5, seed=0):
    """A file in kohya's layout that changes the given modules."""
    tensors = {}
    for index, name in enumerate(PARTS[part]):
        down, up = sides(modules.get_parameter(f"{name}.weight"), seed=seed + index)
        key = KOHYA[part] + name.replace(".", "_")
        tensors |= {f"{key}.lora_down.weight": down, f"{key}.lora_up.weight": up}
        if alpha is not None:
            tensors[f"{key}.alpha"] = torch.tensor(alpha)
    return tensors


def merged(module, tensors, part, strength, alpha=1.5):
    """The reference: every changed weight, added up in float32 by hand."""
    found = {}
    for name in PARTS[part]:
        weight = module.get_parameter(f"{name}.weight")
        key = KOHYA[part] + name.replace(".", "_")
        down, up = tensors[f"{key}.lora_down.weight"], tensors[f"{key}.lora_up.weight"]
        delta = torch.einsum("or,ri->oi", up.flatten(1), down.flatten(1)).reshape(weight.shape)
        found[f"{name}.weight"] = weight + strength * (alpha / len(down)) * delta
    return found


def patched(module, part, *files_and_strengths):
    return lora.patched(module, part, [(lora.read(path), strength) for path, strength in files_and_strengths])


@pytest.fixture
def write(tmp_path):
    def written(tensors, name="made.safetensors", **metadata):
        save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, tmp_path / name, metadata or None)
        return tmp_path / name

    return written


@pytest.fixture
def file(unet, text_encoder, write):
    """A LoRA of both parts."""
    return write(kohya(unet, "unet") | kohya(text_encoder, "text_encoder"))


def answer(unet):
    latent = torch.linspace(-2, 2, 4 * 8 * 8).reshape(1, 4, 8, 8)
    context = torch.linspace(-1, 1, 77 * 128).reshape(1, 77, 128)
    with torch.no_grad():
        return unet(latent, 500, context).sample


def states(encoder):
    with torch.no_grad():
        return encoder(torch.arange(77)[None]).last_hidden_state


def inner(encoder):
    with torch.no_grad():
        return encoder(torch.arange(77)[None], output_hidden_states=True).hidden_states[-2]


class TestPatched:
    @pytest.mark.parametrize("strength", [1.0, 0.7, -0.5])
    def test_it_answers_as_a_model_whose_weights_were_merged_by_hand(self, unet, file, strength, pocket):
        reference = load.unet(pocket)
        reference.load_state_dict(merged(unet, kohya(unet, "unet"), "unet", strength), strict=False)
        made, _ = patched(unet, "unet", (file, strength))
        assert torch.allclose(answer(made), answer(reference), atol=1e-5)
        assert not torch.allclose(answer(made), answer(unet), atol=1e-3)

    def test_the_text_encoder_too(self, text_encoder, file, pocket):
        reference = load.text_encoder(pocket)
        changed = merged(text_encoder, kohya(text_encoder, "text_encoder"), "text_encoder", 0.8)
        reference.load_state_dict(changed, strict=False)
        made, own = patched(text_encoder, "text_encoder", (file, 0.8))
        assert torch.allclose(states(made), states(reference), atol=1e-4)
        assert set(own) == changed.keys()

    def test_states_of_inner_layers_are_its_own_also_after_those_of_the_model_below_were_asked_for(
        self, text_encoder, file, pocket
    ):
        reference = load.text_encoder(pocket)
        changed = merged(text_encoder, kohya(text_encoder, "text_encoder"), "text_encoder", 1.0)
        reference.load_state_dict(changed, strict=False)
        below = inner(text_encoder)
        made, _ = patched(text_encoder, "text_encoder", (file, 1.0))
        assert torch.allclose(inner(made), inner(reference), atol=1e-5)
        assert torch.equal(inner(text_encoder), below)

    def test_every_other_weight_is_the_very_same_tensor(self, unet, file):
        made, own = patched(unet, "unet", (file, 1.0))
        below, above = dict(unet.named_parameters()), dict(made.named_parameters())
        assert list(below) == list(above)
        assert {name for name in below if below[name] is not above[name]} == set(own)
        assert set(own) == {f"{name}.weight" for name in PARTS["unet"]}

    def test_the_copy_has_modules_of_its_own_and_knows_none_of_those_below(self, unet, text_encoder, file):
        """What a node does to one, such as hooking into it, must not reach the other."""
        for module, part in ((unet, "unet"), (text_encoder, "text_encoder")):
            made, _ = patched(module, part, (file, 1.0))
            below, above = list(module.modules()), list(made.modules())
            assert [type(inner) for inner in below] == [type(inner) for inner in above]
            assert not set(map(id, below)) & set(map(id, above))
            for one, other in zip(below, above, strict=True):
                assert not any(isinstance(value, torch.nn.Module) for value in vars(other).values())
                assert other._forward_hooks is not one._forward_hooks
                assert other._parameters is not one._parameters
                assert other._buffers is not one._buffers

    def test_methods_that_were_replaced_on_a_module_belong_to_the_copy(self, write):
        class Doubled(torch.nn.Linear):
            def doubled(self, x):
                return 2 * torch.nn.functional.linear(x, self.weight)

        layer = torch.nn.Sequential(Doubled(2, 2, bias=False))
        layer[0].forward = layer[0].doubled
        path = write({"lora_unet_0.diff": torch.eye(2)})
        made, _ = patched(layer, "unet", (path, 1.0))
        x = torch.ones(1, 2)
        assert torch.allclose(made(x), layer(x) + 2 * x)

    def test_strength_0_leaves_the_module_itself(self, unet, file):
        made, own = patched(unet, "unet", (file, 0.0))
        assert (made is unet, own) == (True, ())

    def test_a_file_for_the_other_part_alone_leaves_the_module_itself(self, unet, text_encoder, write):
        path = write(kohya(text_encoder, "text_encoder"))
        assert patched(unet, "unet", (path, 1.0)) == (unet, ())

    def test_two_add_up_and_are_rounded_once(self, unet, write):
        one, other = kohya(unet, "unet"), kohya(unet, "unet", seed=50)
        paths = write(one, "one.safetensors"), write(other, "other.safetensors")
        made, _ = patched(unet, "unet", (paths[0], 0.5), (paths[1], -0.3))
        both, first = merged(unet, one, "unet", 0.5), merged(unet, other, "unet", -0.3)
        for name, weight in both.items():
            expected = weight + first[name] - unet.get_parameter(name)
            assert torch.allclose(made.get_parameter(name), expected, atol=1e-6)

    def test_half_precision_is_rounded_once_from_float32(self, pocket, file):
        half = load.unet(pocket, dtype=torch.float16)
        made, own = patched(half, "unet", (file, 0.7), (file, -0.6))
        expected = merged(load.unet(pocket, dtype=torch.float16).double(), kohya(half, "unet"), "unet", 0.1)
        for name in own:
            assert made.get_parameter(name).dtype == torch.float16
            off = (made.get_parameter(name).double() - expected[name]).abs()
            assert bool((off <= expected[name].abs() * 2**-11 * 1.01 + 1e-6).all())  # half a place, once

    def test_after_a_hundred_comings_and_goings_the_model_below_is_bit_for_bit_what_it_was(self, unet, file, write):
        before = {name: weight.clone() for name, weight in unet.state_dict().items()}
        expected = answer(unet)
        other = write(kohya(unet, "unet", seed=9), "other.safetensors")
        loras = lora.read(file), lora.read(other)
        for turn in range(100):
            lora.patched(unet, "unet", [(each, turn / 10 - 5) for each in loras])
        assert all(torch.equal(before[name], weight) for name, weight in unet.state_dict().items())
        assert torch.equal(answer(unet), expected)

    def test_no_alpha_stands_for_the_rank(self, unet, write):
        path = write(kohya(unet, "unet", alpha=None))
        made, own = patched(unet, "unet", (path, 1.0))
        expected = merged(unet, kohya(unet, "unet"), "unet", 1.0, alpha=3)
        assert all(torch.allclose(made.get_parameter(name), expected[name], atol=1e-6) for name in own)


def respelled(tensors, part, spell):
    """The same file in another layout: `spell` turns (module, side) into a key."""
    found = {}
    for name in PARTS[part]:
        key = KOHYA[part] + name.replace(".", "_")
        for side in ("down", "up"):
            found[spell(name, side)] = tensors[f"{key}.lora_{side}.weight"]
    return found


LAYOUTS = {
    "ComfyUI": lambda name, side: f"diffusion_model.{COMPVIS[name]}.lora_{side}.weight",
    "LyCORIS": lambda name, side: f"lycoris_{name.replace('.', '_')}.lora_{side}.weight",
    "peft": lambda name, side: f"unet.{name}.lora_{'A' if side == 'down' else 'B'}.weight",
    "peft with an adapter's name": lambda name, side: (
        f"unet.{name}.lora_{'A' if side == 'down' else 'B'}.default.weight"
    ),
    "peft's own": lambda name, side: f"base_model.model.unet.{name}.lora_{'A' if side == 'down' else 'B'}.weight",
    "diffusers": lambda name, side: f"unet.{name}.lora.{side}.weight",
    "diffusers' UNet alone": lambda name, side: f"{name}.lora.{side}.weight",
    "diffusers' first": lambda name, side: (
        f"unet.{name.removesuffix('.0').replace('.to_', '.processor.to_')}_lora.{side}.weight"
        if ".attn" in name
        else f"unet.{name}.lora.{side}.weight"
    ),
    "CompVis": lambda name, side: f"lora_unet_{COMPVIS[name].replace('.', '_')}.lora_{side}.weight",
}
COMPVIS = {
    QUERY: "input_blocks.3.1.transformer_blocks.0.attn1.to_q",
    OUT: "input_blocks.3.1.transformer_blocks.0.attn1.to_out.0",
    CONV: "input_blocks.3.0.in_layers.2",
    POINT: "input_blocks.3.1.proj_in",
}


@pytest.fixture(scope="module")
def hollow():
    """The UNet of Stable Diffusion 1.x without its weights."""
    with torch.device("meta"):
        return UNet2DConditionModel(cross_attention_dim=768)


class TestLayouts:
    @pytest.mark.parametrize("layout", LAYOUTS)
    def test_every_layout_means_the_same(self, unet, write, layout):
        plain = kohya(unet, "unet", alpha=None)
        made, own = patched(unet, "unet", (write(plain), 0.9))
        other, others = patched(unet, "unet", (write(respelled(plain, "unet", LAYOUTS[layout]), "o.safetensors"), 0.9))
        assert set(own) == set(others)
        assert all(torch.equal(made.get_parameter(name), other.get_parameter(name)) for name in own)

    @pytest.mark.parametrize(
        "spell",
        [
            lambda name, side: f"text_encoder.text_model.{name}.lora_linear_layer.{side}.weight",
            lambda name, side: f"text_encoder.text_model.{name}.lora_{'A' if side == 'down' else 'B'}.weight",
            lambda name, side: f"text_model.{name}.lora.{side}.weight",
        ],
    )
    def test_text_encoders_too(self, text_encoder, write, spell):
        plain = kohya(text_encoder, "text_encoder", alpha=None)
        made, own = patched(text_encoder, "text_encoder", (write(plain), 0.9))
        path = write(respelled(plain, "text_encoder", spell), "other.safetensors")
        other, _ = patched(text_encoder, "text_encoder", (path, 0.9))
        assert len(own) == 2
        assert all(torch.equal(made.get_parameter(name), other.get_parameter(name)) for name in own)

    def test_alphas_in_the_metadata_count(self, unet, write):
        plain = respelled(kohya(unet, "unet", alpha=None), "unet", LAYOUTS["peft"])
        path = write(plain, lora_adapter_metadata=json.dumps({"unet.r": 3, "unet.lora_alpha": 1.5}))
        made, own = patched(unet, "unet", (path, 1.0))
        expected = merged(unet, kohya(unet, "unet"), "unet", 1.0, alpha=1.5)
        assert all(torch.allclose(made.get_parameter(name), expected[name], atol=1e-6) for name in own)

    @pytest.mark.parametrize(
        ("said", "alpha"),
        [
            ({"unet.use_rslora": True, "unet.lora_alpha": 1.5}, 1.5 * 3**0.5),
            ({"unet.lora_alpha": 9, "unet.alpha_pattern": {"to_q": 1.5, "^down_blocks.1.resnets.0.conv1": 1.5}}, None),
            ({"text_encoder.lora_alpha": 9}, 3),
        ],
    )
    def test_metadata_mean_what_they_mean_to_peft(self, unet, write, said, alpha):
        """rsLoRA divides by the root of the rank, which is 3; patterns count for names that end in them."""
        plain = respelled(kohya(unet, "unet", alpha=None), "unet", LAYOUTS["peft"])
        made, own = patched(unet, "unet", (write(plain, lora_adapter_metadata=json.dumps(said)), 1.0))
        for name in own:
            meant = alpha or (1.5 if name in {f"{QUERY}.weight", f"{CONV}.weight"} else 9)
            expected = merged(unet, kohya(unet, "unet"), "unet", 1.0, alpha=meant)[name]
            assert torch.allclose(made.get_parameter(name), expected, atol=1e-5)

    def test_an_alpha_in_the_file_goes_before_the_metadata(self, unet, write):
        said = json.dumps({"unet.lora_alpha": 9, "unet.use_rslora": True})
        made, own = patched(unet, "unet", (write(kohya(unet, "unet"), lora_adapter_metadata=said), 1.0))
        expected = merged(unet, kohya(unet, "unet"), "unet", 1.0)
        assert all(torch.allclose(made.get_parameter(name), expected[name], atol=1e-6) for name in own)

    def test_all_282_names_of_the_first_code_are_those_that_diffusers_converts_from(self, hollow):
        modules = dict.fromkeys(lora._places(hollow).values())
        names = [name for name in modules if hollow.get_parameter(f"{name}.weight").ndim > 1]
        there = [f"model.diffusion_model.{place}" for place in original.unet(names).values()]
        checkpoint = {
            f"{place}.{kind}": torch.tensor(i) for i, place in enumerate(there) for kind in ("weight", "bias")
        }
        converted = convert_ldm_unet_checkpoint(checkpoint, dict(hollow.config))
        assert len(names) == 282
        assert [int(converted[f"{name}.weight"]) for name in names] == list(range(282))

    @pytest.mark.parametrize(
        ("key", "place"),
        [
            ("input_blocks_1_1_proj_in", "down_blocks.0.attentions.0.proj_in"),
            ("output_blocks_11_1_proj_out", "up_blocks.3.attentions.2.proj_out"),
            ("output_blocks_2_1_conv", "up_blocks.0.upsamplers.0.conv"),
            ("output_blocks_5_2_conv", "up_blocks.1.upsamplers.0.conv"),
            ("middle_block_2_out_layers_3", "mid_block.resnets.1.conv2"),
        ],
    )  # fmt: skip
    def test_names_as_they_stand_in_files_that_people_share(self, hollow, key, place):
        assert lora._places(hollow)[key] == place


class TestRefusals:
    def test_a_lora_for_another_base_model_is_named_with_what_does_not_fit(self, unet, write):
        tensors = kohya(unet, "unet")
        key = KOHYA["unet"] + QUERY.replace(".", "_")
        tensors[f"{key}.lora_down.weight"] = torch.zeros(3, 768)
        with pytest.raises(
            LoadError, match=r"prompts of width 128, found 1 of 4 that do not: down_blocks_1_att"
        ) as caught:
            patched(unet, "unet", (write(tensors), 1.0))
        assert str(caught.value.path).endswith("made.safetensors")
        assert "another base model" in str(caught.value)

    def test_a_module_that_the_model_has_not_is_named(self, unet, write):
        tensors = {
            "lora_unet_down_blocks_7_proj_in.lora_down.weight": torch.zeros(1, 4),
            "lora_unet_down_blocks_7_proj_in.lora_up.weight": torch.zeros(4, 1),
        }
        with pytest.raises(LoadError, match="1 of 1 that do not: down_blocks_7_proj_in;"):
            patched(unet, "unet", (write(tensors), 1.0))

    def test_a_bias_that_the_module_has_not_is_named(self, unet, write):
        path = write({KOHYA["unet"] + QUERY.replace(".", "_") + ".diff_b": torch.zeros(96)})
        with pytest.raises(LoadError, match="1 of 1 that do not"):
            patched(unet, "unet", (path, 1.0))

    @pytest.mark.parametrize(
        ("key", "what"),
        [
            ("conv.weight", "something else"),
            ("lora_unet_mid_block_attentions_0_proj_in.oft_blocks", "OFT or BOFT"),
            ("lora_unet_mid_block_attentions_0_proj_in.on_input", r"\(IA\)\^3"),
            ("lora_unet_mid_block_attentions_0_proj_in.a1.weight", "GLoRA"),
            ("lora_unet_mid_block_attentions_0_proj_in.lora_up.bias", "something else"),
            ("bundle_emb.fox.string_to_param.*", "an embedding that is bundled with it"),
            ("transformer.transformer_blocks.0.attn.to_q.lora_A.weight", "a diffusion transformer"),
            ("lora_te3_encoder_block_0.lora_down.weight", "a text encoder of SD 3 or Flux"),
            ("model.diffusion_model.out.2.weight", "a whole checkpoint"),
            ("emb_params", "an embedding"),
        ],
    )
    def test_other_methods_and_other_models_are_named(self, unet, write, key, what):
        path = write(kohya(unet, "unet") | {key: torch.zeros(1)})
        with pytest.raises(LoadError, match=rf"a LoRA for .* SDXL, found 1 keys of {what}.*: {re.escape(key)}"):
            lora.read(path)

    @pytest.mark.parametrize(
        ("field", "found"),
        [
            ("hada_w1_a", "down and hada_w1_a and up"),
            ("lokr_w1", "down and lokr_w1 and up"),
            ("hada_t1", "down and hada_t1 and up"),
            ("diff", "down and up and weight"),
        ],
    )
    def test_two_methods_in_one_module_are_refused(self, unet, write, field, found):
        path = write(kohya(unet, "unet") | {f"{KOHYA['unet']}{QUERY.replace('.', '_')}.{field}": torch.zeros(2, 2)})
        with pytest.raises(LoadError, match=rf"makes a change of down_blocks_1_.*_to_q, found {found} alone"):
            lora.read(path)

    def test_one_side_alone_is_refused(self, unet, write):
        tensors = kohya(unet, "unet")
        del tensors[KOHYA["unet"] + QUERY.replace(".", "_") + ".lora_up.weight"]
        with pytest.raises(LoadError, match=r"makes a change of down_blocks_1_.*_to_q, found down alone"):
            lora.read(write(tensors))

    def test_a_magnitude_alone_is_refused(self, write):
        with pytest.raises(LoadError, match=r"makes a change of mid_block_proj_in, found its magnitude alone"):
            lora.read(write({"lora_unet_mid_block_proj_in.dora_scale": torch.ones(4, 1)}))

    def test_an_alpha_alone_changes_nothing(self, unet, write):
        lone = {"lora_unet_mid_block_attentions_0_proj_in.alpha": torch.tensor(1.0)}
        _, own = patched(unet, "unet", (write(kohya(unet, "unet") | lone), 1.0))
        assert set(own) == {f"{name}.weight" for name in PARTS["unet"]}
        with pytest.raises(LoadError, match="found no changes"):
            lora.read(write(lone))

    def test_sides_that_do_not_meet_are_shown(self, write):
        tensors = {
            "lora_unet_mid_block_proj_in.lora_down.weight": torch.zeros(2, 4),
            "lora_unet_mid_block_proj_in.lora_up.weight": torch.zeros(4, 3),
        }
        with pytest.raises(LoadError, match="mid_block_proj_in that fit one another, found down 2 x 4, up 4 x 3"):
            lora.read(write(tensors))

    @pytest.mark.parametrize("field", ["alpha", "scale"])
    def test_an_alpha_is_one_number(self, unet, write, field):
        path = write(kohya(unet, "unet") | {f"{KOHYA['unet']}{QUERY.replace('.', '_')}.{field}": torch.ones(2)})
        with pytest.raises(LoadError, match=f"{field} 2"):
            lora.read(path)

    @pytest.mark.parametrize("value", [float("nan"), float("inf")])
    def test_what_is_no_number_is_named(self, unet, write, value):
        tensors = kohya(unet, "unet")
        key = f"{KOHYA['unet']}{QUERY.replace('.', '_')}.lora_up.weight"
        tensors[key][0, 0] = value
        with pytest.raises(LoadError, match=f"a LoRA of numbers, found NaN or infinity in 1 of its tensors: {key}"):
            lora.read(write(tensors))

    def test_the_same_side_under_two_spellings_is_refused(self, unet, write):
        twice = kohya(unet, "unet", alpha=None) | {f"unet.{QUERY}.lora_A.weight": torch.zeros(3, 96)}
        with pytest.raises(LoadError, match=r"expected one down of down_blocks_1_.*, found another one, "):
            lora.read(write(twice))

    def test_a_file_without_keys_is_none(self, write):
        with pytest.raises(LoadError, match="found no keys"):
            lora.read(write({}))

    @pytest.mark.parametrize(
        ("said", "problem"),
        [
            ({"unet.lora_alpha": 1, "unet.alpha_pattern": {"(a+)+$": 8}}, r"alphas by patterns of names: \(a\+\)\+\$"),
            ({"unet.alpha": 1}, "unet.alpha, of another method than LoRA"),
            ({"unet.lora_alpha": "much"}, "could not convert string to float"),
            ([1], "'int' object has no attribute"),
            (1, "not iterable"),
        ],
    )
    def test_metadata_that_are_not_understood_are_refused(self, unet, write, said, problem):
        path = write(kohya(unet, "unet"), lora_adapter_metadata=json.dumps(said))
        with pytest.raises(LoadError, match=rf"with one alpha or one for each name, found .*{problem}"):
            lora.read(path)

    @pytest.mark.parametrize("name", ["made.pt", "made.ckpt", "made.bin"])
    def test_a_pickle_is_never_opened_and_the_remedy_named(self, tmp_path, name):
        (tmp_path / name).write_bytes(b"\x80\x04cposix\nsystem\n")
        with pytest.raises(LoadError, match=r"a pickle, which can run code .* convert it once: safetensors.torch.save"):
            lora.read(tmp_path / name)

    def test_a_damaged_file_is_refused(self, tmp_path):
        (tmp_path / "made.safetensors").write_bytes(b"\x80\x04cposix\nsystem\n")
        with pytest.raises(LoadError, match="expected a safetensors file, found a damaged one"):
            lora.read(tmp_path / "made.safetensors")
