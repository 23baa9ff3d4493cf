import pytest
import torch

from nodes.preprocess import canny, invert, tile_resample
from nodes.types import Image


def disc(size=64, radius=20, count=1):
    y, x = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    inside = (y - size // 2) ** 2 + (x - size // 2) ** 2 < radius**2
    levels = torch.where(inside, 220, 30).to(torch.uint8)
    return Image(levels.expand(count, 3, size, size).contiguous())


@pytest.mark.parametrize("convention", ["a1111", "comfy"])
def test_the_edge_of_a_disc_is_a_thin_white_ring(convention):
    drawn = canny(disc(), convention=convention)
    drawn.check()
    assert drawn.data.unique().tolist() == [0, 255]
    assert torch.equal(drawn.data[:, 0], drawn.data[:, 2])
    y, x = (drawn.data[0, 0] == 255).nonzero().T
    assert ((y - 31.5) ** 2 + (x - 31.5) ** 2).sqrt().sub(20).abs().max() < 2
    assert 2 * 20 * 2 < len(y) < 2 * 3.15 * 20 * 1.3


def test_thresholds_that_are_too_high_leave_nothing():
    assert not canny(disc(), 1900, 2000).data.any()


def test_a_lower_threshold_above_the_higher_is_refused():
    with pytest.raises(ValueError, match="the threshold low is 200, above high, 100"):
        canny(disc(), 200, 100)


def test_the_negative_of_the_negative_is_the_picture():
    image = disc()
    assert torch.equal(invert(image).data.int(), 255 - image.data.int())
    assert torch.equal(invert(invert(image)).data, image.data)


def test_a_rate_of_1_leaves_a_picture_as_it_is():
    image = disc()
    assert tile_resample(image) is image


def test_resampling_keeps_the_size_and_the_mean_and_loses_the_detail():
    drawn = torch.Generator().manual_seed(0)
    noise = Image(torch.randint(0, 256, (2, 3, 50, 70), generator=drawn, dtype=torch.uint8))
    smooth = tile_resample(noise, 4.0)
    assert smooth.data.shape == noise.data.shape
    assert smooth.data.float().std() < noise.data.float().std() / 2
    assert abs(float(smooth.data.float().mean() - noise.data.float().mean())) < 1
    assert torch.equal(tile_resample(Image(noise.data[1:]), 4.0).data, smooth.data[1:])


def test_a_picture_of_one_pixel_can_be_resampled():
    image = Image(torch.full((1, 3, 1, 1), 9, dtype=torch.uint8))
    assert torch.equal(tile_resample(image, 8.0).data, image.data)


def test_no_node_writes_into_its_input():
    image = disc()
    before = image.stamp(), image.identity()
    for made in (canny(image), invert(image), tile_resample(image, 2.0)):
        made.check()
    assert (image.stamp(), image.identity()) == before


@pytest.mark.gpu
def test_a_node_works_where_its_input_lies():
    image = disc(count=2)
    for work in (canny, lambda image: canny(image, convention="comfy"), invert, lambda image: tile_resample(image, 2)):
        made = work(image.move("cuda:0"))
        assert made.place() == "cuda:0"
        assert torch.equal(made.data.cpu(), work(image).data)
