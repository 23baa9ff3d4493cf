"""Upscale models as nodes: what is referred to, what a picture becomes, and what is done when memory runs out."""

import dataclasses

import pytest
import torch
from safetensors.torch import save_file
from upscalers import compact, newest, rrdbnet

from calotype import Engine, Graph
from engine.context import Context
from engine.errors import RunFailed
from engine.file import Files
from engine.models import ModelPool
from nodes import upscale
from nodes.diffusion import upscale as enlarging
from nodes.files import UpscaleFile
from nodes.image import resize
from nodes.types import Image, Upscaler

MODELS = {"x4": rrdbnet(), "x2plus": rrdbnet(2, 2), "x2": compact(2), "x1": compact(1)}


@pytest.fixture
def root(tmp_path):
    (tmp_path / "upscale").mkdir()
    for name, network in MODELS.items():
        save_file(newest(network), tmp_path / f"upscale/{name}.safetensors")
    return tmp_path


@pytest.fixture
def files(root):
    return Files([root], anywhere=False)


@pytest.fixture
def context(files):
    return Context(models=ModelPool(files))


def picture(width=20, height=12, count=1):
    drawn = torch.Generator().manual_seed(0)
    return Image(torch.randint(0, 256, (count, 3, height, width), generator=drawn).to(torch.uint8))


def refer(files, name, **params):
    return upscale.load(files.resolve(UpscaleFile, name), **params)


class TestReferences:
    @pytest.mark.parametrize(("name", "scale"), [("x4", 4), ("x2plus", 2), ("x2", 2), ("x1", 1)])
    def test_it_is_known_by_its_content_and_says_how_much_larger_it_makes(self, files, name, scale):
        file = files.resolve(UpscaleFile, name)
        assert upscale.load(file) == Upscaler(file.digest.hex(), "auto", scale)

    def test_it_survives_the_disk_and_each_field_counts(self):
        made = Upscaler("00" * 32, "float16", 2)
        assert type(made).unpack(made.pack()) == made
        for field, other in {"digest": "ff" * 32, "precision": "auto", "scale": 4}.items():
            assert dataclasses.replace(made, **{field: other}).identity() != made.identity()

    def test_its_bytes_are_those_of_its_weights(self, files, context):
        ref = refer(files, "x4")
        assert ref.module_bytes(context.model(ref)) == sum(tensor.nbytes for tensor in newest(MODELS["x4"]).values())


class TestPictures:
    @pytest.mark.parametrize(("name", "scale"), [("x4", 4), ("x2plus", 2), ("x2", 2), ("x1", 1)])
    def test_a_picture_becomes_as_much_larger_as_the_model_says(self, files, context, name, scale):
        made = upscale.upscale(picture(count=2), refer(files, name), context)
        made.check()
        assert made.data.shape == (2, 3, 12 * scale, 20 * scale)
        assert torch.equal(made.data, enlarging.enlarge(picture(count=2).data, MODELS[name]))

    @pytest.mark.parametrize(
        ("name", "factor", "passes"),
        [
            ("x4", 4.0, 1),
            ("x4", 2.5, 1),
            ("x2", 2.2, 2),
            ("x2", 4.0, 2),
            ("x2", 8.5, 3),
            ("x1", 2.0, 1),
            ("x2", 0.5, 1),
        ],
    )
    def test_a_factor_is_reached_by_whole_passes_and_resampling(self, files, context, name, factor, passes):
        expected = picture().data
        for _ in range(passes):
            expected = enlarging.enlarge(expected, MODELS[name])
        expected = resize(Image(expected), int(20 * factor), int(12 * factor), filter="bicubic").out
        made = upscale.upscale(picture(), refer(files, name), context, factor=factor, filter="bicubic")
        assert made.size == (int(20 * factor), int(12 * factor))
        assert torch.equal(made.data, expected.data)

    def test_a_picture_does_not_depend_on_its_batch(self, files, context):
        images, ref = picture(count=3), refer(files, "x4")
        together = upscale.upscale(images, ref, context, tile=8, overlap=4)
        alone = upscale.upscale(Image(images.data[1:2]), ref, context, tile=8, overlap=4)
        assert torch.equal(together.data[1:2], alone.data)

    def test_a_picture_beyond_the_longest_side_is_refused_before_it_is_made(self, files, context):
        with pytest.raises(
            ValueError, match="5000 x 1 px enlarged 4 times is 20000 x 4 px: no side may exceed 16384 px"
        ):
            upscale.upscale(picture(5000, 1), refer(files, "x4"), context)
        with pytest.raises(ValueError, match=r"each side must be 1\.\.16384 px"):
            upscale.upscale(picture(2000, 1), refer(files, "x4"), context, factor=9.0)

    def test_an_overlap_that_leaves_nothing_of_a_tile_is_refused(self, files, context):
        with pytest.raises(ValueError, match="an overlap of 8 px leaves nothing of a tile of 8 px"):
            upscale.upscale(picture(), refer(files, "x4"), context, tile=8, overlap=8)

    def test_no_node_writes_into_its_input(self, files, context):
        image = picture()
        before = image.stamp(), image.identity()
        upscale.upscale(image, refer(files, "x1"), context)
        assert (image.stamp(), image.identity()) == before


@pytest.fixture
def engine(root):
    with Engine(device="cpu", files=Files([root], anywhere=False), strict=True) as house:
        yield house


def graph(**params):
    nodes = {
        "noise": {"type": "image.load", "params": {"source": "noise.png"}},
        "model": {"type": "upscale.load", "params": {"source": "x2"}},
        "larger": {"type": "image.upscale", "params": params, "inputs": {"image": "noise", "upscaler": "model"}},
    }
    return Graph.parse({"format": "calotype/1", "nodes": nodes, "outputs": {"image": "larger"}})


class TestInAGraph:
    @pytest.fixture(autouse=True)
    def _noise(self, root):
        picture().pil().save(root / "noise.png")

    def test_it_runs_once_and_a_replaced_model_runs_again(self, engine, root):
        assert engine.run(graph()).outputs["image"].size == (40, 24)
        assert engine.run(graph()).ran() == []
        assert engine.run(graph(tile=0)).ran() == ["larger"]
        save_file(newest(compact(2, layers=3)), root / "upscale/x2.safetensors")
        assert engine.run(graph()).ran() == ["model", "larger"]

    def test_a_pickle_is_found_and_refused(self, engine, root):
        torch.save(newest(compact(2)), root / "upscale/old.pth")
        with pytest.raises(RunFailed, match="a pickle, which can run code"):
            engine.run(graph().set({"model.source": "old"}))

    def test_where_memory_runs_out_tiles_get_smaller_and_it_is_said(self, engine, root, monkeypatch):
        def cramped(images, network, tiling, **options):
            tried.append(tiling.side)
            if not 0 < tiling.side <= 128:
                raise torch.OutOfMemoryError("no memory")
            return work(images, network, tiling, **options)

        tried, work = [], enlarging.enlarge
        picture(150, 140).pil().save(root / "noise.png")
        monkeypatch.setattr(enlarging, "enlarge", cramped)
        first = engine.run(graph())
        assert tried == [512, 512, 128]
        assert first.outputs["image"].size == (300, 280)
        [said] = first.nodes["larger"].warnings
        assert said.startswith("memory was too short for tile=512, so tiles of 128 px were made")
        assert engine.run(graph()).ran() == []
