"""Checkpoints in one file: what diffusers makes of one, bit for bit, and what a file is that is none.

Tiny ones are made with the names that are under test; diffusers' own conversion judges these.
"""

import json
import shutil

import pytest
import safetensors.torch
import torch
from diffusers.loaders import single_file_utils as judge
from safetensors.torch import save_file
from single_file import (
    CLIP,
    OPEN_CLIP,
    UNET,
    VAE,
    bare,
    everything,
    interleaved,
    open_clip,
    renamed,
    same,
    shaken,
    tiny_clip,
    tiny_unet,
    tiny_vae,
    without,
)

from nodes.diffusion import checkpoint, load, original, text
from nodes.diffusion.load import LoadError


@pytest.fixture(scope="module")
def modules():
    torch.manual_seed(0)
    return tuple(map(shaken, (tiny_unet(), tiny_vae(), tiny_clip())))


@pytest.fixture(scope="module")
def tensors(modules):
    """A whole checkpoint, with what trainers leave in it beside the weights."""
    return everything(*modules)


@pytest.fixture
def write(tmp_path):
    def written(tensors, name="made.safetensors"):
        save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, tmp_path / name)
        return tmp_path / name

    return written


@pytest.fixture
def file(tensors, write):
    return write(tensors)


class TestParts:
    def test_each_part_is_what_it_was_made_of(self, file, modules):
        for part, module in zip((load.unet, load.vae, load.text_encoder), modules, strict=True):
            assert same(part(file), module.state_dict())

    def test_each_part_is_what_diffusers_converts_the_file_to(self, file, tensors):
        unet, vae, encoder = load.unet(file), load.vae(file), load.text_encoder(file)
        assert same(unet, judge.convert_ldm_unet_checkpoint(dict(tensors), dict(unet.config)))
        assert same(vae, judge.convert_ldm_vae_checkpoint(dict(tensors), dict(vae.config)))
        converted = bare(judge.convert_ldm_clip_checkpoint(dict(tensors)))
        assert all(torch.equal(converted[name], weight) for name, weight in bare(encoder.state_dict()).items())

    def test_they_compute_what_the_modules_compute(self, file, modules):
        unet, vae, encoder = (module.eval() for module in modules)
        latent, context = torch.randn(1, 4, 8, 8), torch.randn(1, 77, 64)
        tokens = torch.arange(77)[None]
        with torch.no_grad():
            assert torch.equal(load.unet(file)(latent, 7, context).sample, interleaved(unet)(latent, 7, context).sample)
            assert torch.equal(load.vae(file).decode(latent).sample, vae.decode(latent).sample)
            states = load.text_encoder(file)(tokens).last_hidden_state
            assert torch.equal(states, encoder(tokens).last_hidden_state)

    def test_they_come_ready_to_use_in_the_dtype_that_is_asked_for(self, file, modules):
        for part, module in zip((load.unet, load.vae, load.text_encoder), modules, strict=True):
            made = part(file, dtype=torch.bfloat16)
            assert not made.training
            assert not any(weight.requires_grad for weight in made.parameters())
            assert same(made, {name: weight.bfloat16() for name, weight in module.state_dict().items()})

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
    def test_a_file_may_hold_any_dtype(self, tensors, write, dtype):
        rounded = {name: tensor.to(dtype) if tensor.is_floating_point() else tensor for name, tensor in tensors.items()}
        unet = load.unet(write(rounded))
        expected = judge.convert_ldm_unet_checkpoint(dict(rounded), dict(unet.config))
        assert same(unet, {name: weight.float() for name, weight in expected.items()})

    def test_averaged_weights_are_left_out_where_the_others_are_there(self, tensors, write, modules):
        ema = {
            "model_ema." + name.removeprefix("model.").replace(".", ""): tensor + 1
            for name, tensor in tensors.items()
            if name.startswith(UNET)
        }
        assert same(load.unet(write(tensors | ema)), modules[0].state_dict())

    def test_weights_outlive_the_file(self, file, modules):
        unet = load.unet(file)
        file.write_bytes(b"")
        assert same(unet, modules[0].state_dict())

    def test_an_older_spelling_of_the_text_encoder_is_read(self, tensors, write, modules):
        older = {name.replace(CLIP, "cond_stage_model.transformer."): tensor for name, tensor in tensors.items()}
        assert same(load.text_encoder(write(older)), modules[2].state_dict())

    def test_an_inpainting_unet_takes_nine_channels(self, tensors, write):
        torch.manual_seed(1)
        nine = tiny_unet(in_channels=9)
        path = write(without(tensors, UNET) | renamed(nine, original.unet, UNET))
        assert load.unet_inputs(path) == 9
        assert same(load.unet(path), nine.state_dict())

    def test_a_name_means_nothing(self, tensors, write, modules):
        assert same(load.unet(write(tensors, "sd_xl_base.sft")), modules[0].state_dict())


class TestVae:
    @pytest.mark.parametrize("prefix", ["", VAE])
    def test_it_may_be_alone_in_a_file(self, modules, write, prefix):
        path = write(renamed(modules[1], original.vae, prefix))
        assert same(load.vae(path), modules[1].state_dict())
        assert load.latent_space(path) == {"channels": 4, "downscale": 2, "scaling": 0.18215, "shift": 0.0}
        assert checkpoint.described(path) == "VAE"

    def test_one_in_diffusers_layout_may_be_alone_in_a_file_too(self, modules, write):
        path = write(modules[1].state_dict())
        assert same(load.vae(path), modules[1].state_dict())
        assert load.latent_space(path)["downscale"] == 2
        assert load.described(path) == "VAE"

    def test_an_older_spelling_of_its_attention_is_read(self, modules, write):
        older = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}

        def spelled(name):
            return next((name.replace(now, then) for now, then in older.items() if f".{now}." in name), name)

        tensors = {spelled(name): tensor for name, tensor in modules[1].state_dict().items()}
        assert any(".proj_attn." in name for name in tensors)
        assert same(load.vae(write(tensors)), modules[1].state_dict())

    def test_a_checkpoint_without_one_says_so_when_it_is_asked_for(self, tensors, write):
        path = write(without(tensors, VAE))
        assert load.latent_space(path) == {"channels": 4, "downscale": 8, "scaling": 0.18215, "shift": 0.0}
        assert checkpoint.described(path) == "SD 1.x without VAE"
        with pytest.raises(LoadError, match=r"found a checkpoint without one \(UNet and text .*the node vae.load"):
            load.vae(path)

    def test_one_that_is_alone_is_no_checkpoint(self, modules, write):
        path = write(renamed(modules[1], original.vae, ""))
        for part in (load.unet, load.text_encoder, load.tokenizer, load.schedule, load.unet_inputs):
            with pytest.raises(LoadError, match=r"found a VAE alone; load it with the node vae\.load"):
                part(path)


class TestSecondVersion:
    @pytest.fixture
    def encoder(self):
        torch.manual_seed(2)
        return tiny_clip(hidden_act="gelu")

    @pytest.fixture
    def unet(self):
        torch.manual_seed(3)
        return tiny_unet(use_linear_projection=True, attention_head_dim=1)

    @pytest.fixture
    def second(self, tensors, encoder, unet):
        """The same as SD 2.x has it."""
        kept = without(tensors, UNET, "cond_stage_model.")
        return kept | renamed(unet, original.unet, UNET) | open_clip(encoder, unused=1)

    def test_it_is_recognised_by_its_tensors(self, second, write):
        assert checkpoint.described(write(second)) == "SD 2.x"

    def test_its_text_encoder_is_read_up_to_the_last_layer_but_one(self, second, write, encoder):
        made = load.text_encoder(write(second))
        assert same(made, encoder.state_dict())
        tokens = torch.arange(77)[None]
        with torch.no_grad():
            assert torch.equal(made(tokens).last_hidden_state, encoder(tokens).last_hidden_state)

    def test_its_text_encoder_is_what_diffusers_converts_the_file_to(self, second, write):
        made = load.text_encoder(write(second))
        converted = bare(judge.convert_open_clip_checkpoint(made, dict(second), OPEN_CLIP))
        assert all(torch.equal(converted[name], weight) for name, weight in bare(made.state_dict()).items())

    def test_its_unet_has_heads_of_64_channels_and_linear_projections(self, second, write, unet):
        made = load.unet(write(second))
        assert same(made, unet.state_dict())
        latent, context = torch.randn(1, 4, 8, 8), torch.randn(1, 77, 64)
        with torch.no_grad():
            assert torch.equal(made(latent, 7, context).sample, interleaved(unet)(latent, 7, context).sample)

    def test_its_prompts_are_padded_with_exclamation_marks(self, second, write):
        tokens = load.tokenizer(write(second))
        assert text.framed([], tokens) == [49406, 49407, *[0] * 75]

    @pytest.mark.parametrize(("deviation", "prediction"), [(0.05, "epsilon"), (0.2, "v_prediction")])
    def test_what_it_predicts_follows_from_the_spread_of_one_bias(
        self, monkeypatch, second, write, deviation, prediction
    ):
        name = "output_blocks.2.1.transformer_blocks.0.norm1.bias"
        monkeypatch.setattr(checkpoint, "V_BIAS", name)
        second[UNET + name] = deviation * torch.tensor([1.0, -1.0]).repeat(16)
        assert load.schedule(write(second)).prediction == prediction


class TestWhatIsNoTensor:
    def test_the_noise_is_that_of_stable_diffusion(self, file, table):
        assert load.schedule(file) == table

    def test_a_mark_says_that_v_is_predicted(self, tensors, write):
        assert load.schedule(write(tensors | {"v_pred": torch.zeros(0)})).prediction == "v_prediction"

    def test_a_mark_says_that_the_last_noise_level_has_no_signal(self, tensors, write, table):
        marks = {"v_pred": torch.zeros(0), "ztsnr": torch.zeros(0)}
        assert load.schedule(write(tensors | marks)) == table.with_zero_snr().with_prediction("v_prediction")

    @pytest.mark.parametrize(
        ("said", "ids"),
        [
            ("a photo of a cat", [320, 1125, 539, 320, 2368]),
            (
                "a photo of an astronaut riding a horse on mars",
                [320, 1125, 539, 550, 18376, 6765, 320, 4558, 525, 7496],
            ),
            ("Hello, World!", [3306, 267, 1002, 256]),
        ],
    )
    def test_words_have_the_numbers_that_clip_was_trained_with(self, file, said, ids):
        tokenizer = load.tokenizer(file)
        assert tokenizer(said).input_ids == [49406, *ids, 49407]
        assert text.framed([], tokenizer) == [49406, *[49407] * 76]

    def test_the_vocabulary_follows_from_the_merges(self):
        merges = (checkpoint.TOKENIZER / "merges.txt").read_text(encoding="utf-8").splitlines()[1:]
        vocabulary = json.loads((checkpoint.TOKENIZER / "vocab.json").read_text(encoding="utf-8"))
        words = sorted(vocabulary, key=vocabulary.__getitem__)
        assert len(merges) == 48_894
        assert words[256:512] == [f"{letter}</w>" for letter in words[:256]]
        assert words[512:-2] == [merge.replace(" ", "") for merge in merges]
        assert words[-2:] == ["<|startoftext|>", "<|endoftext|>"]


class TestRefusals:
    @pytest.mark.parametrize(
        ("names", "found"),
        [
            ([f"{UNET}joint_blocks.0.x_block.attn.qkv.weight"], "a Stable Diffusion 3 model, which is not"),
            (["double_blocks.0.img_attn.qkv.weight"], "a Flux model, which is not supported; take one of Stable Diff"),
            (["clip_txt_mapper.weight"], "a Stable Cascade model, which is not supported"),
            (["adaln_single.linear.weight"], "a PixArt model"),
            (["edm_mean", f"{UNET}input_blocks.0.0.weight"], "a Playground 2.5 model"),
            (["embedder.model.visual.proj", f"{UNET}input_blocks.0.0.weight"], "an unCLIP model"),
            (["scaled_fp8", f"{UNET}input_blocks.0.0.weight"], "a model in float8 with scales beside it"),
            (["control_model.input_hint_block.0.weight"], "a ControlNet, which"),
            (["lora_unet_mid_block_attentions_0_proj_in.lora_down.weight"], "a LoRA, .* the node model.lora"),
            (["emb_params"], "an embedding; put it into a folder"),
            (["down_blocks.0.resnets.0.conv1.weight"], "one part in diffusers' layout, which needs its config"),
            (["model_ema.decay", "model_ema.diffusion_modelout2weight"], r"averaged weights \(model_ema.\) alone"),
            (["something"], "1 tensors of something else: something"),
        ],
    )
    def test_a_file_of_another_kind_is_named(self, write, names, found):
        path = write({name: torch.zeros(1) for name in names})
        for part in (load.unet, load.unet_inputs, load.schedule):
            with pytest.raises(LoadError, match=rf"a UNet of Stable Diffusion 1.x, 2.x or XL .*, found {found}"):
                part(path)

    def test_a_unet_alone_has_no_text_encoder(self, tensors, write):
        path = write(without(tensors, VAE, "cond_stage_model."))
        with pytest.raises(LoadError, match=r"a text encoder .*, found UNet alone; take a checkpoint"):
            load.text_encoder(path)

    @pytest.mark.parametrize(
        ("part", "lost"),
        [
            (load.unet, f"{UNET}middle_block.1.proj_in.bias"),
            (load.vae, f"{VAE}post_quant_conv.weight"),
            (load.text_encoder, f"{CLIP}final_layer_norm.bias"),
        ],
    )
    def test_a_missing_tensor_is_named(self, tensors, write, part, lost):
        with pytest.raises(LoadError, match=rf"expected \d+ tensors of a \w+, found \d+ of them, without {lost}$"):
            part(write(without(tensors, lost)))

    def test_tensors_of_another_architecture_are_named(self, tensors, write):
        path = write(tensors | {f"{UNET}input_blocks.1.1.fuser.attn.to_q.weight": torch.zeros(1)})
        with pytest.raises(LoadError, match=r"found 1 more: .*input_blocks.1.1.fuser.*; it is another architecture"):
            load.unet(path)

    def test_a_tensor_of_another_shape_is_named(self, tensors, write):
        path = write(tensors | {f"{UNET}out.0.bias": torch.zeros(7)})
        with pytest.raises(LoadError, match=r"out.0.bias of shape 32, found 7 \(1 of \d+ do not fit\)"):
            load.unet(path)

    def test_channels_that_are_neither_a_latents_nor_for_inpainting_are_refused(self, tensors, write):
        path = write(tensors | renamed(tiny_unet(in_channels=8), original.unet, UNET))
        for part in (load.unet, load.unet_inputs):
            with pytest.raises(LoadError, match="or for inpainting twice as many and one, found 8 in and 4 out"):
                part(path)

    def test_a_gguf_is_refused(self, tmp_path):
        (tmp_path / "model.safetensors").write_bytes(b"GGUF" + bytes(100))
        with pytest.raises(LoadError, match=r"found a GGUF file of quantised weights; take the model's safetensors"):
            load.unet(tmp_path / "model.safetensors")

    @pytest.mark.parametrize("kept", [0, 5, 1000, 100_000, -1])
    def test_a_file_that_was_cut_short_is_refused(self, file, kept):
        file.write_bytes(file.read_bytes()[:kept])
        with pytest.raises(LoadError, match="expected a safetensors file, found a damaged one"):
            load.unet_inputs(file)

    def test_a_pickle_is_refused_whatever_it_is_called_and_its_conversion_shown(self, tmp_path):
        torch.save({"state_dict": {"a": torch.ones(2)}}, tmp_path / "model.safetensors")
        shutil.copy(tmp_path / "model.safetensors", tmp_path / "model.ckpt")
        for name in ("model.ckpt", "model.safetensors"):
            with pytest.raises(LoadError, match=rf"{name}: .* a pickle, .* convert it once: loaded = torch.load"):
                load.unet(tmp_path / name)

    def test_the_conversion_that_is_shown_works(self, tensors, tmp_path, modules, monkeypatch):
        monkeypatch.chdir(tmp_path)
        torch.save({"state_dict": tensors, "epoch": 3}, "model.ckpt")
        names = {"torch": torch, "safetensors": safetensors}
        exec(checkpoint.REMEDY.format(path="model.ckpt", converted="model.safetensors"), names)
        assert same(load.unet("model.safetensors"), modules[0].state_dict())


def test_only_one_part_is_read_at_a_time(tensors, write):
    """Another part whose tensors could not be loaded does not matter."""
    broken = without(tensors, VAE, CLIP) | {f"{CLIP}embeddings.token_embedding.weight": torch.zeros(1)}
    assert load.unet(write(broken)).config.cross_attention_dim == 64


def test_nothing_but_the_weights_differs_from_what_is_in_a_folder(file, tmp_path, modules):
    for name, module in zip(("unet", "vae", "text_encoder"), modules, strict=True):
        module.save_pretrained(tmp_path / "folder" / name)
        single, whole = (getattr(load, name)(path) for path in (file, tmp_path / "folder"))
        assert same(single, whole.state_dict())
        buffers = zip(single.named_buffers(), whole.named_buffers(), strict=True)
        assert all(one[0] == two[0] and torch.equal(one[1], two[1]) for one, two in buffers)
