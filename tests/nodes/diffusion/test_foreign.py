"""Upscale models of other architectures: what spandrel makes of a file, and what is said where it is not there."""

import sys
import warnings
from importlib import import_module
from types import ModuleType

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from nodes.diffusion.tensors import LoadError
from nodes.diffusion.tiling import Tiling
from nodes.diffusion.upscale import enlarge, network, scale

pytestmark = [
    pytest.mark.filterwarnings("ignore:torch.meshgrid"),
    pytest.mark.filterwarnings("ignore:Initializing zero-element tensors"),
]


@pytest.fixture(scope="module")
def spandrel():
    """The library, where three functions of torchvision that no upscale model needs are nothing."""
    names = ("torchvision", "torchvision.transforms", "torchvision.transforms.functional")
    before = {name: sys.modules.get(name) for name in names}
    sys.modules |= {name: ModuleType(name) for name in names}
    functions = sys.modules[names[-1]]
    functions.InterpolationMode = functions.rotate = functions.normalize = None
    with warnings.catch_warnings(action="ignore"):
        found = import_module("spandrel")
    for name, module in before.items():
        sys.modules.pop(name) if module is None else sys.modules.update({name: module})
    return found


def swinir(**changed):
    given = {"embed_dim": 12, "depths": [2, 2], "num_heads": [2, 2], "window_size": 8, "upsampler": "pixelshuffle"}
    return "SwinIR", "SwinIR", given | {"upscale": 2} | changed


def hat():
    return "HAT", "HAT", {"embed_dim": 60, "depths": (2,), "num_heads": (2,), "window_size": 8, "upscale": 4}


def dat():
    return "DAT", "DAT", {"embed_dim": 48, "split_size": [2, 4], "depth": [2], "num_heads": [2], "upscale": 2}


def span():
    return "SPAN", "SPAN", {"num_in_ch": 3, "num_out_ch": 3, "feature_channels": 8, "upscale": 4}


def safmn():
    return "SAFMN", "SAFMN", {"dim": 8, "n_blocks": 1, "ffn_scale": 2.0, "upscaling_factor": 2}


def esrgan_plus():
    return "ESRGAN.__arch.RRDB", "RRDBNet", {"num_filters": 8, "num_blocks": 1, "scale": 2, "plus": True}


def made(module, kind, given):
    """A network of random weights that make something of a picture."""
    torch.manual_seed(0)
    network = getattr(import_module(f"spandrel.architectures.{module}"), kind)(**given).eval()
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.normal_(layer.weight, 0, layer.weight[0].numel() ** -0.5)
    return network.requires_grad_(requires_grad=False)


def saved(network, tmp_path, prefix=""):
    path = tmp_path / "model.safetensors"
    save_file({prefix + name: weight.clone().contiguous() for name, weight in network.state_dict().items()}, path)
    return path


def picture(height=24, width=16):
    return torch.randint(0, 256, (1, 3, height, width), generator=torch.Generator().manual_seed(1)).to(torch.uint8)


def levels(made):
    return (made * 255).round().clamp(0, 255).to(torch.uint8)


@pytest.mark.parametrize(
    "described", [swinir(), swinir(upscale=4), hat(), dat(), span(), safmn(), esrgan_plus()], ids=str
)
@pytest.mark.parametrize("prefix", ["", "params_ema."])
def test_what_it_makes_is_what_its_network_makes(spandrel, tmp_path, described, prefix):
    theirs = made(*described)
    path = saved(theirs, tmp_path, prefix)
    ours = network(path, torch.float32, "cpu")
    larger = enlarge(picture(), ours)
    assert scale(path) == ours.scale == larger.shape[2] // 24
    assert len(larger.unique()) > 20
    assert (larger.int() - levels(theirs(picture() / 255)).int()).abs().max() <= 1
    assert not any(weight.requires_grad for weight in ours.parameters())


def test_sides_that_it_cannot_take_are_continued_and_cut_again(spandrel, tmp_path):
    ours = network(saved(made(*safmn()), tmp_path), torch.float32, "cpu")
    assert ours.grain == 8
    assert enlarge(picture(21, 13), ours).shape == (1, 3, 42, 26)
    assert enlarge(picture(1, 1), ours).shape == (1, 3, 2, 2)
    assert enlarge(picture(40, 24), ours, Tiling(16, 8)).shape == (1, 3, 80, 48)


def test_far_from_where_tiles_meet_they_are_the_whole_picture(spandrel, tmp_path):
    ours = network(saved(made(*esrgan_plus()), tmp_path), torch.float32, "cpu")
    whole, tiles = enlarge(picture(64, 48), ours), enlarge(picture(64, 48), ours, Tiling(48, 32))
    assert not torch.equal(tiles, whole)
    assert (whole[:, :, :20].int() - tiles[:, :, :20].int()).abs().max() <= 1


def test_a_format_that_it_does_not_compute_in_is_refused(spandrel, tmp_path):
    path = saved(made(*dat()), tmp_path)
    with pytest.raises(LoadError, match=r"expected a network that computes in float16, found .*DAT.* does not support"):
        network(path, torch.float16, "cpu")
    assert next(network(path, torch.bfloat16, "cpu").parameters()).dtype == torch.bfloat16


def test_one_of_other_channels_is_refused(spandrel, tmp_path):
    path = saved(made(*swinir(in_chans=1)), tmp_path)
    with pytest.raises(LoadError, match="from 3 channels to 3 that spandrel knows, found one from 1 channels to 1"):
        scale(path)


def test_one_that_fills_holes_is_refused(spandrel, tmp_path):
    found = import_module("spandrel.architectures.LaMa")
    path = saved(found.LaMa(in_nc=4, out_nc=3), tmp_path)
    with pytest.raises(LoadError, match="found one for inpainting, which takes a mask too"):
        scale(path)


def test_one_that_nobody_knows_is_refused(spandrel, tmp_path):
    save_file({"a": torch.ones(1), "b": torch.ones(1)}, tmp_path / "model.safetensors")
    with pytest.raises(LoadError, match="that spandrel knows, found 2 tensors of something else: a, b"):
        scale(tmp_path / "model.safetensors")


def test_one_that_lacks_a_tensor_is_refused(spandrel, tmp_path):
    network = made(*swinir())
    del network.norm.weight
    with pytest.raises(LoadError, match=r"(?s)expected an upscale model.*Missing key.*norm\.weight"):
        scale(saved(network, tmp_path))


@pytest.mark.parametrize(
    ("missing", "said"), [("spandrel", "need spandrel: pip"), ("torchvision", "without torchvision: pip")]
)
def test_where_it_is_not_installed_the_remedy_is_named(spandrel, tmp_path, monkeypatch, missing, said):
    path = saved(made(*swinir()), tmp_path)
    for name in [name for name in sys.modules if name.startswith(("spandrel", "torchvision"))]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(LoadError, match=f"a transformer such as SwinIR or HAT; others than those .*{said}") as refused:
        scale(path)
    assert str(refused.value).endswith('pip install "calotype[upscalers]"')
