"""References to models: what a LoRA, another VAE or skipped layers make of them, and what memory they share."""

import dataclasses
import json
import shutil

import pytest
import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import load_file, save_file
from single_file import everything, tiny_clip, tiny_unet, tiny_vae

import pocket
from calotype import Engine, Graph
from engine.context import Context
from engine.errors import FileChanged, GraphError, RunFailed
from engine.file import Files, ModelFile
from engine.models import ModelPool
from nodes import model, text, vae
from nodes.diffusion import original
from nodes.diffusion.tensors import LoadError
from nodes.files import CheckpointFile, LoraFile, VaeFile
from nodes.types import ControlNet, Embedding, LatentSpace, Loras, TextEncoder, Unet

KEYS = ("lora_unet_mid_block_attentions_0_proj_in", "lora_te_text_model_encoder_layers_0_mlp_fc1")


@pytest.fixture(scope="module")
def weights():
    """The two weights that the LoRAs here change, as they are in the embedded model."""
    parts = model.load(Files(named={"pocket": pocket.FOLDER}).resolve(ModelFile, "pocket"))
    context = Context(models=ModelPool(Files(named={"pocket": pocket.FOLDER})))
    context._models._files.resolve(ModelFile, "pocket")
    unet, encoder = context.model(parts.unet).unet, context.model(parts.text).towers[0].encoder
    return unet.mid_block.attentions[0].proj_in.weight.clone(), encoder.encoder.layers[0].mlp.fc1.weight.clone()


@pytest.fixture
def root(tmp_path, weights):
    (tmp_path / "loras").mkdir()
    (tmp_path / "embeddings").mkdir()
    for seed, name in enumerate(("fox", "owl")):
        write_lora(tmp_path / f"loras/{name}.safetensors", weights, seed)
    save_file({"emb_params": torch.ones(2, 128)}, tmp_path / "embeddings/easy.safetensors")
    return tmp_path


def write_lora(path, weights, seed, rank=2):
    made, tensors = torch.Generator().manual_seed(seed), {}
    for key, weight in zip(KEYS, weights, strict=True):
        down = torch.randn(rank, *weight.shape[1:], generator=made)
        up = torch.randn(weight.shape[0], rank, *[1] * (weight.ndim - 2), generator=made)
        tensors |= {f"{key}.lora_down.weight": down, f"{key}.lora_up.weight": up, f"{key}.alpha": torch.tensor(1.0)}
    save_file(tensors, path)


@pytest.fixture
def files(root):
    return Files([root], named={"pocket": pocket.FOLDER}, anywhere=False)


@pytest.fixture
def parts(files):
    return model.load(files.resolve(ModelFile, "pocket"))


@pytest.fixture
def fox(files):
    return files.resolve(LoraFile, "fox")


class TestReferences:
    def test_a_lora_is_part_of_the_reference_by_its_content(self, parts, fox, files, root):
        one = model.lora(parts.unet, parts.text, fox, unet_strength=0.5)
        assert one.unet.patches == ((fox.digest.hex(), 0.5),)
        assert one.text.patches == ((fox.digest.hex(), 1.0),)
        shutil.copy(root / "loras/fox.safetensors", root / "loras/copy.safetensors")
        copy = model.lora(parts.unet, parts.text, files.resolve(LoraFile, "copy"), unet_strength=0.5)
        assert [ref.identity() for ref in copy] == [ref.identity() for ref in one]

    def test_strength_0_gives_the_very_same_reference(self, parts, fox):
        made = model.lora(parts.unet, parts.text, fox, unet_strength=0.0, text_strength=0.0)
        assert made == (parts.unet, parts.text)

    def test_they_stack_in_order(self, parts, fox, files):
        owl = files.resolve(LoraFile, "owl")
        one = model.lora(*model.lora(parts.unet, parts.text, fox), owl, unet_strength=2.0)
        entries = ((fox.digest.hex(), 1.0, 1.0), (owl.digest.hex(), 1.0, 2.0))
        assert one == model.loras(parts.unet, parts.text, Loras(entries))

    def test_no_loras_leave_everything_as_it_is(self, parts):
        assert model.loras(parts.unet, parts.text, Loras()) == (parts.unet, parts.text)

    @pytest.mark.parametrize(
        "made",
        [
            Unet("00" * 32, "float16", 9, (("11" * 32, 0.5), ("22" * 32, -1.0)), "v_prediction"),
            ControlNet("00" * 32, "float16"),
            TextEncoder("00" * 32, "auto", (("11" * 32, 0.5),), 2),
            Embedding("00" * 32),
            Loras((("11" * 32, 0.5, 1.0),)),
        ],
    )
    def test_they_survive_the_disk_and_each_field_counts(self, made):
        assert type(made).unpack(made.pack()) == made
        for field in dataclasses.fields(made):
            others = {"digest": "ff" * 32, "precision": "bfloat16", "inputs": 4, "clip_skip": 3}
            other = (others | {"prediction": None, "zero_snr": True}).get(field.name, ())
            assert dataclasses.replace(made, **{field.name: other}).identity() != made.identity()

    def test_a_unet_that_predicts_something_else_shares_all_weights(self, parts, files):
        pool = ModelPool(files)
        context = Context(models=pool)
        context.model(parts.unet)
        held = pool.held()
        made = model.sampling(parts.unet, prediction="v_prediction", zero_snr=True)
        module = context.model(made)
        assert module.unet is context.model(parts.unet).unet
        assert pool.held() == held
        assert module.table.prediction == "v_prediction"
        assert module.table.sigma_max > 1000
        assert context.model(parts.unet).table.prediction == "epsilon"
        assert model.sampling(made) == made

    def test_the_reference_knows_how_many_channels_an_inpainting_unet_takes(self, parts, root, files):
        assert parts.unet.inputs == 4
        folder = shutil.copytree(pocket.FOLDER, root / "inpainting")
        config = json.loads((folder / "unet/config.json").read_text()) | {"in_channels": 9}
        (folder / "unet/config.json").write_text(json.dumps(config))
        assert model.load(files.resolve(ModelFile, "inpainting")).unet.inputs == 9


@pytest.fixture
def single(root):
    """The embedded model's VAE, and a UNet for inpainting, each in one file as CompVis' code lays it out."""
    tensors = load_file(pocket.FOLDER / "vae" / "diffusion_pytorch_model.safetensors")
    places = original.tensors(tensors, original.vae)
    vae_alone = {place: tensors[name] for name, place in places.items()}
    widths = {"block_out_channels": (32, 64), "cross_attention_dim": 64, "layers_per_block": 1, "in_channels": 9}
    blocks = {"down_block_types": ("DownBlock2D",) * 2, "up_block_types": ("UpBlock2D",) * 2}
    weights = UNet2DConditionModel(**widths, **blocks).state_dict()
    unet = {
        f"model.diffusion_model.{place}": weights[name]
        for name, place in original.tensors(weights, original.unet).items()
    }
    for folder, name, held in (("vae", "alone", vae_alone), ("checkpoints", "bare", unet)):
        (root / folder).mkdir(exist_ok=True)
        save_file(held, root / folder / f"{name}.safetensors")
    return root


class TestSingleFiles:
    def test_a_checkpoint_is_found_by_its_name_and_known_by_its_content(self, single, files):
        found = files.resolve(CheckpointFile, "bare")
        assert found.path == single / "checkpoints/bare.safetensors"
        shutil.copy(found.path, single / "copy.safetensors")
        parts = model.load(found)
        assert parts == model.load(files.resolve(CheckpointFile, "copy.safetensors"))
        assert parts.unet == Unet(found.digest.hex(), "auto", 9)
        assert parts.unet.load(files, "cpu").unet.config.in_channels == 9
        assert parts.vae.space == LatentSpace()

    def test_one_without_a_vae_takes_another(self, single, files):
        parts = model.load(files.resolve(CheckpointFile, "bare"))
        with pytest.raises(LoadError, match=r"a checkpoint without one .*; give it a VAE with the node vae\.load"):
            parts.vae.load(files, "cpu")
        made = vae.load(parts.vae, files.resolve(VaeFile, "alone"))
        assert made.space == LatentSpace()

    def test_what_is_no_checkpoint_is_refused_at_once(self, single, files, root):
        with pytest.raises(LoadError, match=r"fox\.safetensors: expected a UNet .*, found a LoRA"):
            model.load(files.resolve(CheckpointFile, "loras/fox.safetensors"))
        with pytest.raises(LoadError, match=r"alone\.safetensors: expected a UNet .*, found a VAE alone"):
            model.load(files.resolve(CheckpointFile, "vae/alone.safetensors"))


class TestVae:
    def test_without_a_source_it_is_the_given_one(self, parts):
        assert vae.load(parts.vae) is parts.vae

    def test_a_model_stands_for_its_vae(self, parts, files):
        assert vae.load(parts.vae, files.resolve(VaeFile, "pocket")) == parts.vae

    def test_a_vae_of_its_own_is_found_in_the_folder_of_vaes(self, parts, files, root):
        folder = shutil.copytree(pocket.FOLDER / "vae", root / "vae" / "mine")
        config = json.loads((folder / "config.json").read_text()) | {"scaling_factor": 0.5}
        (folder / "config.json").write_text(json.dumps(config))
        made = vae.load(parts.vae, files.resolve(VaeFile, "mine"))
        assert made.space == LatentSpace(scaling=0.5)
        assert made.load(files, "cpu").config.scaling_factor == 0.5


class TestModules:
    @pytest.fixture
    def pool(self, files):
        return ModelPool(files)

    @pytest.fixture
    def context(self, pool):
        return Context(models=pool)

    def test_a_patched_model_takes_only_the_bytes_of_what_it_changes(self, parts, fox, pool, context, weights):
        context.model(parts.unet)
        context.model(parts.text)
        before = pool.held()
        made = model.lora(parts.unet, parts.text, fox)
        context.model(made.unet)
        assert pool.held() - before == weights[0].nbytes
        context.model(made.text)
        context.model(text.clip_skip(made.text, 2))
        assert pool.held() - before == sum(weight.nbytes for weight in weights)
        context.release()
        pool.here.ledger.free_everything()
        assert pool.held() == 0

    def test_its_weights_are_those_of_the_formula_and_the_base_keeps_its_own(self, parts, fox, files, context, weights):
        owl = files.resolve(LoraFile, "owl")
        made = model.lora(*model.lora(parts.unet, parts.text, fox, 0.5), owl, -1.0)
        expected = weights[0]
        for file, strength in ((fox, 0.5), (owl, -1.0)):
            tensors = load_file(file.path)
            up, down = (tensors[f"{KEYS[0]}.lora_{side}.weight"].flatten(1) for side in ("up", "down"))
            expected = expected + strength * 1.0 / 2 * (up @ down).reshape(expected.shape)
        units = [context.model(ref).unet for ref in (made.unet, parts.unet)]
        patched, base = (unet.mid_block.attentions[0].proj_in.weight for unet in units)
        assert torch.allclose(patched, expected, atol=1e-6)
        assert torch.equal(base, weights[0])

    def test_layers_are_skipped_without_another_module(self, parts, context):
        skipping = context.model(text.clip_skip(parts.text, 2))
        assert skipping.towers[0].encoder is context.model(parts.text).towers[0].encoder

    def test_a_lora_that_changed_since_is_not_put_on(self, parts, fox, context, root):
        made = model.lora(parts.unet, parts.text, fox)
        (root / "loras/fox.safetensors").write_bytes(b"other")
        with pytest.raises(FileChanged):
            context.model(made.unet)

    def test_an_embedding_is_loaded_as_float32_vectors(self, files, context):
        from_text = files.resolve(LoraFile, "embeddings/easy")
        vectors = context.model(Embedding(from_text.digest.hex()))
        assert torch.equal(vectors, torch.ones(2, 128))


def graph(prompt):
    """A prompt whose LoRAs are put on the model that encodes it, once as a graph."""
    nodes = {
        "model": {"type": "model.load", "params": {"checkpoint": "pocket"}},
        "prompts": {"type": "prompt", "params": {"text": prompt}},
        "patched": {
            "type": "model.loras",
            "inputs": {"unet": "model.unet", "text": "model.text", "loras": "prompts.loras"},
        },
        "encoded": {"type": "text.encode", "inputs": {"encoder": "patched.text", "prompt": "prompts.positive"}},
    }
    return Graph.parse({"format": "calotype/1", "nodes": nodes, "outputs": {"encoded": "encoded"}})


class TestGraphs:
    @pytest.fixture
    def engine(self, files):
        with Engine(device="cpu", files=files) as made:
            yield made

    def ran(self, engine, prompt):
        """What ran, and why."""
        report = engine.run(graph(prompt)).nodes
        return {name: node.reason for name, node in report.items() if node.outcome == "ran"}

    def test_a_prompt_brings_its_loras_along(self, engine):
        plain, foxy = (engine.run(graph(text)).outputs["encoded"] for text in ("a face", "a face<lora:fox:2>"))
        assert not torch.allclose(plain.data, foxy.data)

    def test_exactly_what_depends_on_a_mentioned_file_runs_again_when_it_is_another(self, engine, root, weights):
        self.ran(engine, "a face <lora:fox>")
        assert self.ran(engine, "a face <lora:fox>") == {}
        write_lora(root / "loras/fox.safetensors", weights, seed=7)
        assert self.ran(engine, "a face <lora:fox>") == {
            "prompts": "file changed (text)",
            "patched": "input changed (loras)",
            "encoded": "input changed (encoder)",
        }

    def test_an_embedding_that_comes_and_goes_is_noticed(self, engine, root):
        self.ran(engine, "a scarlet face")
        shutil.copy(root / "embeddings/easy.safetensors", root / "embeddings/scarlet.safetensors")
        assert self.ran(engine, "a scarlet face") == {
            "prompts": "file changed (text)",
            "encoded": "input changed (prompt)",
        }
        (root / "embeddings/scarlet.safetensors").unlink()
        assert self.ran(engine, "a scarlet face") == {}

    def test_a_saved_graph_takes_a_checkpoint_in_one_file(self, engine, root):
        torch.manual_seed(0)
        (root / "checkpoints").mkdir()
        save_file(everything(tiny_unet(), tiny_vae(), tiny_clip()), root / "checkpoints/tiny.safetensors")
        said = {"checkpoint": "tiny", "width": 16, "height": 24, "steps": 2, "prompt": "a red fox"}
        made = [engine.run("text2img", set=said | {"prompt": text}) for text in ("a red fox", "an owl", "an owl")]
        assert made[0].outputs["image"].size == (16, 24)
        assert not torch.equal(made[0].outputs["image"].data, made[1].outputs["image"].data)
        assert not [node for node in made[2].nodes.values() if node.outcome == "ran"]

    def test_another_text_is_another_parameter(self, engine):
        self.ran(engine, "a face")
        assert self.ran(engine, "a smile")["prompts"] == "parameter changed (text: a face → a smile)"

    def test_a_missing_lora_is_named_where_it_stands(self, engine):
        with pytest.raises(GraphError, match=r"nodes.prompts.params.text: no lora 'fax', did you mean 'fox'\?"):
            engine.run(graph("a face <lora:fax>"))

    def test_a_lora_for_another_model_fails_the_node_that_loads_it(self, engine, root):
        tensors = {f"{KEYS[1]}.lora_down.weight": torch.zeros(1, 768), f"{KEYS[1]}.lora_up.weight": torch.zeros(9, 1)}
        save_file(tensors, root / "loras/fox.safetensors")
        with pytest.raises(RunFailed, match=r"fox.safetensors: expected changes that fit the weights of this CLIPText"):
            engine.run(graph("a face <lora:fox>"))
