"""GroupNorm with the statistics of a whole picture, and the collage that they are learnt on."""

import pytest
import torch
from torch import nn

from nodes.diffusion.steady import SteadyNorm, collage, steady


def noise(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def norm():
    made = nn.GroupNorm(2, 6)
    nn.init.normal_(made.weight, 1, 0.3, generator=torch.Generator().manual_seed(1))
    nn.init.normal_(made.bias, generator=torch.Generator().manual_seed(2))
    return made.requires_grad_(requires_grad=False)


@pytest.mark.parametrize("shape", [(1, 6, 9, 7), (1, 6, 40)])
def test_what_it_learns_on_is_normalised_as_by_group_norm(norm, shape):
    data = 3 * noise(*shape) + 5
    torch.testing.assert_close(SteadyNorm(norm)(data), norm(data))


def test_whatever_comes_then_is_treated_alike(norm):
    data, made = 3 * noise(1, 6, 16, 16) + 5, SteadyNorm(norm)
    whole = made(data)
    torch.testing.assert_close(made(data[..., 4:9, 2:8]), whole[..., 4:9, 2:8])
    assert not torch.allclose(norm(data[..., 4:9, 2:8]), whole[..., 4:9, 2:8], atol=0.1)


def test_16_bits_go_in_and_come_out_and_float32_is_between(norm):
    data = (1000 + noise(1, 6, 16, 16)).half()
    made = SteadyNorm(norm.half())(data)
    assert made.dtype == torch.float16
    torch.testing.assert_close(made.float(), norm.float()(data.float()), rtol=1e-3, atol=2e-3)


def test_a_module_gets_a_copy_with_its_weights_and_stays_as_it_is():
    module = nn.Sequential(nn.Conv2d(3, 6, 1), nn.Sequential(nn.GroupNorm(2, 6), nn.Conv2d(6, 3, 1)))
    data = noise(1, 3, 9, 9)
    with torch.no_grad():
        made = steady(module, lambda applied, part: applied(part), data, 9, 1)
        torch.testing.assert_close(made(data), module(data))
        torch.testing.assert_close(made(data[..., 2:6, 2:6]), module(data)[..., 2:6, 2:6])
    assert isinstance(module[1][0], nn.GroupNorm)
    assert isinstance(made[1][0], SteadyNorm)
    assert made[0].weight is module[0].weight


def test_a_collage_is_made_of_blocks_from_all_over():
    data = torch.arange(20.0)[:, None] * 100 + torch.arange(32.0)
    made = collage(data[None, None], 8, 1)[0, 0]
    assert (made[:, 0] // 100).tolist() == [0, 1, 2, 17, 18, 19]
    assert made[0].tolist() == [0, 1, 2, 29, 30, 31]


def test_a_collage_is_made_of_whole_cells():
    data = torch.arange(60.0)
    made = collage(data.expand(1, 1, 60, 60), 9, 2)[0, 0, 0]
    assert made.tolist() == [*range(6), *range(26, 32), *range(54, 60)]


@pytest.mark.parametrize(("size", "expected"), [((3, 90), (3, 12)), ((12, 12), (12, 12)), ((50, 2), (12, 2))])
def test_a_collage_is_no_larger_than_what_it_is_made_of(size, expected):
    assert collage(noise(1, 1, *size), 12, 1).shape[2:] == expected
