"""The number format that a network computes in."""

from types import SimpleNamespace

import pytest
import torch
from diffusers import UNet2DConditionModel
from pipelines import ONE, UP, seeded
from torch import nn

from nodes.diffusion.precision import number_format


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_it_is_the_one_that_diffusers_tells(dtype):
    unet = seeded(lambda: UNet2DConditionModel(**ONE | UP)).to(dtype)
    assert number_format(unet) == unet.dtype == dtype


def test_it_follows_a_network_that_is_converted():
    layer = nn.Linear(2, 2)
    assert number_format(layer) == torch.float32
    assert number_format(layer.half()) == torch.float16


def test_what_has_no_weights_is_asked():
    assert number_format(SimpleNamespace(dtype=torch.bfloat16)) == torch.bfloat16
