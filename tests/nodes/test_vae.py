"""The VAE as nodes: what is done where a picture is larger than memory, or 16 bits are too few."""

import pytest
import torch
from single_file import tiny_vae

import pocket
from calotype import Engine, Graph
from engine.context import Context
from engine.errors import RunFailed
from engine.file import Files, ModelFile
from engine.models import ModelPool
from nodes import fallback, model, repaint, vae
from nodes.diffusion import vae as coding
from nodes.diffusion.tiling import Tiling
from nodes.files import VaeFile
from nodes.types import Image, Latent, Mask, Unet, Vae


@pytest.fixture(scope="module")
def files():
    return Files(named={"pocket": pocket.FOLDER})


@pytest.fixture(scope="module")
def pool(files):
    return ModelPool(files)


@pytest.fixture
def context(pool):
    return Context(models=pool)


@pytest.fixture
def scarce(pool):
    """What a node is called with once memory ran out."""
    made = Context(models=pool)
    made.again(scarce=True)
    return made


@pytest.fixture(scope="module")
def ref(files):
    return model.load(files.resolve(ModelFile, "pocket")).vae


def picture(size=64, count=1):
    y, x = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    inside = (y - size // 2) ** 2 + (x - size // 2) ** 2 < (size // 3) ** 2
    images = [torch.stack([torch.where(inside, 250 - 90 * index, 255 * y // size), 255 * x // size, x * 0 + 90])
              for index in range(count)]  # fmt: skip
    return Image(torch.stack(images).to(torch.uint8))


@pytest.fixture
def cramped(monkeypatch):
    """Memory for pictures of so many px a side in the VAE, and a list of the sides that were tried."""
    tried = []

    def limit(most):
        def checked(work, cell):
            def instead(data, *args, **options):
                tiling = next((arg for arg in args if isinstance(arg, Tiling)), Tiling())
                tried.append(tiling.side)
                if (tiling.side or max(data.shape[2:]) * cell) > most:
                    raise torch.OutOfMemoryError("no memory")
                return work(data, *args, **options)

            return instead

        monkeypatch.setattr(coding, "encode_signed", checked(coding.encode_signed, 1))
        monkeypatch.setattr(coding, "decode", checked(coding.decode, 8))
        return tried

    return limit


class TestTiles:
    def test_they_are_asked_for_by_a_parameter(self, ref, context):
        image = picture(128)
        latent = vae.encode(ref, image, context, tile=64, overlap=32)
        module = context.model(ref)
        assert torch.equal(latent.data, coding.encode(image.data, module, Tiling(64, 32)))
        assert not torch.equal(latent.data, vae.encode(ref, image, context).data)
        made = vae.decode(ref, latent, context, tile=64, overlap=32)
        assert torch.equal(made.data, coding.decode(latent.data, module, "nearest", Tiling(64, 32)))
        assert context.warnings == []

    def test_a_tile_that_covers_the_picture_changes_nothing(self, ref, context):
        image = picture()
        latent = vae.encode(ref, image, context, tile=512)
        assert torch.equal(latent.data, vae.encode(ref, image, context).data)
        made = vae.decode(ref, latent, context, tile=64, overlap=32)
        assert torch.equal(made.data, vae.decode(ref, latent, context).data)

    def test_an_overlap_that_leaves_nothing_of_a_tile_is_refused(self, ref, context):
        with pytest.raises(ValueError, match=r"an overlap of 60 px \(64 in whole cells .* a tile of 70 px \(64\)"):
            vae.encode(ref, picture(), context, tile=70, overlap=60)
        with pytest.raises(ValueError, match="it must be smaller, 64 of 512"):
            vae.decode(ref, vae.encode(ref, picture(), context), context, tile=64)

    def test_each_tile_is_a_step_and_a_cancel_point(self, ref, pool):
        seen = []
        context = Context(models=pool, listener=lambda *now: seen.append(now[:2]))
        vae.decode(ref, Latent(torch.zeros(2, 4, 8, 16), ref.space), context, tile=64, overlap=16)
        assert seen == [(done, 6) for done in range(1, 7)]


class TestScarceMemory:
    @pytest.fixture(autouse=True)
    def _small(self, monkeypatch):
        monkeypatch.setattr(fallback, "SIDES", (64, 32))

    def test_it_is_left_to_the_engine_to_free_memory_first(self, ref, context, cramped):
        tried = cramped(32)
        with pytest.raises(torch.OutOfMemoryError):
            vae.encode(ref, picture(), context)
        assert tried == [0]

    def test_then_tiles_get_smaller_and_it_is_said(self, ref, scarce, context, cramped):
        expected = coding.encode(picture(128).data, context.model(ref), Tiling(32, 16))
        tried = cramped(32)
        assert torch.equal(vae.encode(ref, picture(128), scarce).data, expected)
        assert tried == [64, 32]
        [said] = scarce.warnings
        assert said.startswith("memory was too short for tile=0, so tiles of 32 px were made")
        assert "set tile to 32" in said

    def test_tiles_that_are_asked_for_get_smaller_too(self, ref, scarce, cramped):
        tried = cramped(32)
        vae.decode(ref, Latent(torch.zeros(1, 4, 16, 16), ref.space), scarce, tile=48, overlap=8)
        assert tried == [32]
        assert "too short for tile=48" in scarce.warnings[0]

    def test_the_smallest_may_be_too_large_as_well(self, ref, scarce, cramped):
        tried = cramped(16)
        with pytest.raises(torch.OutOfMemoryError):
            vae.decode(ref, Latent(torch.zeros(1, 4, 8, 8), ref.space), scarce)
        assert (tried, scarce.warnings) == ([32], [])

    def test_in_exact_mode_a_result_is_that_of_the_parameters_or_none(self, ref, pool, cramped):
        tried, exact = cramped(32), Context(models=pool, exact=True)
        exact.again(scarce=True)
        with pytest.raises(torch.OutOfMemoryError):
            vae.encode(ref, picture(), exact)
        assert tried == [0]

    def test_another_error_is_no_lack_of_memory(self, ref, scarce, cramped):
        tried = cramped(64)
        with pytest.raises(ValueError, match="multiples of 8"):
            vae.encode(ref, Image(torch.zeros(1, 3, 92, 92, dtype=torch.uint8)), scarce)
        assert tried == [64]

    def test_a_picture_that_is_no_larger_than_the_smallest_tile_is_made_whole(self, ref, scarce, cramped):
        tried = cramped(64)
        vae.encode(ref, picture(32), scarce)
        assert (tried, scarce.warnings) == ([0], [])

    def test_what_an_inpainting_model_sees_is_encoded_the_same_way(self, ref, scarce, cramped):
        cramped(32)
        mask = Mask(torch.full((1, 1, 64, 64), 255, dtype=torch.uint8))
        made = repaint.conditioning(Unet("00" * 32, inputs=9), ref, picture(), mask, scarce)
        assert made.data.shape == (1, 5, 8, 8)
        assert "tiles of 32 px" in scarce.warnings[0]


def graph(precision="auto", **params):
    nodes = {
        "model": {"type": "model.load", "params": {"checkpoint": "pocket", "precision": precision}},
        "photo": {"type": "image.load", "params": {"source": "photo.png"}},
        "latent": {"type": "vae.encode", "params": params, "inputs": {"vae": "model.vae", "image": "photo"}},
        "again": {"type": "vae.decode", "inputs": {"vae": "model.vae", "latent": "latent"}},
    }
    return Graph.parse({"format": "calotype/1", "nodes": nodes, "outputs": {"image": "again"}})


class TestInAGraph:
    @pytest.fixture
    def engine(self, tmp_path):
        picture(128).pil().save(tmp_path / "photo.png")
        with Engine(device="cpu", files=Files([tmp_path], named={"pocket": pocket.FOLDER})) as made:
            yield made

    def test_asking_for_tiles_is_another_key_and_running_out_of_memory_is_not(self, engine, cramped, monkeypatch):
        monkeypatch.setattr(fallback, "SIDES", (64, 32))
        tried = cramped(64)
        first = engine.run(graph())
        assert first.outputs["image"].size == (128, 128)
        assert tried == 2 * [0, 0, 64]
        for name in ("latent", "again"):
            assert "tiles of 64 px were made" in first.nodes[name].warnings[0]
        assert engine.run(graph()).ran() == []
        asked = engine.run(graph(tile=64, overlap=32))
        assert (asked.nodes["latent"].outcome, asked.nodes["latent"].warnings) == ("ran", ())

    def test_what_fits_in_no_tile_fails(self, engine, cramped):
        cramped(8)
        with pytest.raises(RunFailed, match="out of memory"):
            engine.run(graph())


@pytest.fixture(scope="module")
def loud(tmp_path_factory):
    """A VAE whose first convolutions make numbers that float16 cannot hold, unless a picture is grey."""
    root = tmp_path_factory.mktemp("root")
    torch.manual_seed(0)
    module = tiny_vae()
    module.encoder.conv_in.weight.data *= 2e5
    module.decoder.conv_in.weight.data *= 2e5
    module.save_pretrained(root / "vae/loud")
    return Files([root], anywhere=False)


@pytest.fixture(scope="module")
def modules(loud):
    return ModelPool(loud)


class TestPrecision:
    @pytest.fixture
    def context(self, modules):
        return Context(models=modules)

    @pytest.fixture
    def quiet(self, modules):
        return Context(models=modules)

    @pytest.fixture
    def refs(self, loud):
        file = loud.resolve(VaeFile, "loud")
        return {
            precision: vae.load(Vae("00" * 32, precision), file) for precision in ("float16", "float32", "bfloat16")
        }

    @pytest.fixture
    def batch(self):
        grey = torch.full((1, 3, 16, 16), 127, dtype=torch.uint8)
        return Image(torch.cat([grey, picture(16).data]))

    def test_a_picture_that_overflows_is_encoded_in_float32_and_it_is_said(self, refs, context, quiet, batch):
        made = vae.encode(refs["float16"], batch, context)
        full = vae.encode(refs["float32"], batch, quiet)
        assert torch.equal(made.data[1], full.data[1])
        assert not torch.equal(made.data[0], full.data[0])
        [said] = context.warnings
        assert said.startswith(
            "the VAE overflowed in 16 bits to infinity or NaN, so this was computed again in float32"
        )
        assert quiet.warnings == []

    def test_a_picture_does_not_depend_on_what_overflows_beside_it(self, refs, context, quiet, batch):
        together = vae.encode(refs["float16"], batch, context)
        alone = vae.encode(refs["float16"], Image(batch.data[:1]), quiet)
        assert torch.equal(alone.data, together.data[:1])
        assert quiet.warnings == []

    @pytest.mark.parametrize("tile", [0, 8])
    def test_a_latent_that_overflows_is_decoded_in_float32_and_it_is_said(self, refs, context, quiet, tile):
        drawn = torch.Generator().manual_seed(0)
        latent = Latent(torch.randn(1, 4, 8, 8, generator=drawn), refs["float16"].space)
        made = vae.decode(refs["float16"], latent, context, tile=tile, overlap=4)
        assert torch.equal(made.data, vae.decode(refs["float32"], latent, quiet, tile=tile, overlap=4).data)
        assert (len(context.warnings), quiet.warnings) == (1, [])
        assert made.data.float().std() > 5

    def test_the_model_in_16_bits_stays_as_it_is(self, refs, context, batch):
        module = context.model(refs["float16"])
        vae.encode(refs["float16"], batch, context)
        assert {weight.dtype for weight in module.parameters()} == {torch.float16}
        assert context.model(refs["float16"]) is module

    def test_bfloat16_holds_as_much_as_float32_so_nothing_overflows(self, refs, context, batch):
        vae.encode(refs["bfloat16"], batch, context).check()
        assert context.warnings == []

    def test_what_overflows_in_float32_too_fails(self, refs, context):
        latent = Latent(torch.full((1, 4, 8, 8), torch.inf), refs["float32"].space)
        with pytest.raises(FloatingPointError, match="AutoencoderKL made infinities or NaN in float32; look at what"):
            vae.decode(refs["float16"], latent, context)
