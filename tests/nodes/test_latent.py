from types import SimpleNamespace

import pytest
import torch
from torch.nn import functional

from nodes.diffusion.noise import Streams
from nodes.latent import content, empty, resize
from nodes.mask import rectangle
from nodes.types import Latent, LatentSpace, Mask, Noise, Vae

SD = LatentSpace()


def random(width, height, count=1, space=SD):
    cells = (count, space.channels, height, width)
    return Latent(torch.randn(cells, generator=torch.Generator().manual_seed(3)), space)


def half(count=1):
    """64 x 64 px, the right half white."""
    return Mask(rectangle(64, 64, x=32, y=0, w=32, h=64).data.expand(count, -1, -1, -1).contiguous())


# empty


def test_an_empty_latent_has_the_cells_of_its_picture_and_no_other_size():
    context, vae = SimpleNamespace(device="cpu"), Vae("00", space=LatentSpace(channels=3, downscale=4))
    assert empty(vae, context, 24, 16).data.shape == (1, 3, 4, 6)
    assert not empty(vae, context, 24, 16).data.any()
    with pytest.raises(ValueError, match="multiples of 4 px, got 24 x 18"):
        empty(vae, context, 24, 18)


# resize


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("bilinear", {"mode": "bilinear", "align_corners": False}),
        ("nearest", {"mode": "nearest"}),
        ("nearest-exact", {"mode": "nearest-exact"}),
        ("bicubic", {"mode": "bicubic", "align_corners": False}),
        ("bilinear-antialiased", {"mode": "bilinear", "antialias": True}),
        ("bicubic-antialiased", {"mode": "bicubic", "antialias": True}),
        ("area", {"mode": "area"}),
    ],
)
def test_a_latent_is_resized_by_torch(name, options):
    latent = random(9, 6, 2)
    assert torch.equal(resize(latent, 40, 96, name).data, functional.interpolate(latent.data, (12, 5), **options))


def test_the_latent_upscale_goes_on_straight_between_cells():
    latent = Latent(torch.tensor([0.0, 1.0, 3.0, 3.0]).reshape(1, 1, 1, 4), LatentSpace(channels=1))
    assert resize(latent, 64, 8).data.flatten().tolist() == [0, 0.25, 0.75, 1.5, 2.5, 3, 3, 3]


def cells_in_a_row(*vectors):
    return Latent(torch.tensor(vectors).T[None, :, None, :], LatentSpace(channels=2))


def test_bislerp_turns_vectors_into_one_another_and_goes_evenly_in_their_length():
    resized = resize(cells_in_a_row([4.0, 0.0], [0.0, 2.0]), 32, 8, "bislerp").data[0, :, 0].T
    quarter = torch.tensor(torch.pi / 8)
    first = torch.stack([quarter.cos(), quarter.sin()]) * 3.5
    torch.testing.assert_close(resized[0], torch.tensor([4.0, 0.0]))
    torch.testing.assert_close(resized[1], first)
    torch.testing.assert_close(resized[2].norm(), torch.tensor(2.5))
    torch.testing.assert_close(resized[3], torch.tensor([0.0, 2.0]))


def test_bislerp_takes_the_first_of_parallel_vectors_and_goes_straight_between_opposite_ones():
    parallel = resize(cells_in_a_row([1.0, 1.0], [3.0, 3.0]), 32, 8, "bislerp").data[0, :, 0].T
    assert parallel.tolist() == [[1, 1], [1, 1], [1, 1], [3, 3]]
    opposite = resize(cells_in_a_row([1.0, 0.0], [-3.0, 0.0]), 32, 8, "bislerp").data[0, :, 0].T
    assert opposite.tolist() == [[1, 0], [0, 0], [-2, 0], [-3, 0]]


def test_bislerp_of_an_empty_latent_is_empty():
    empty_cells = Latent(torch.zeros(1, 4, 2, 2))
    assert not resize(empty_cells, 40, 24, "bislerp").data.any()


def test_sides_are_rounded_down_to_cells():
    assert resize(random(4, 4), 71, 63).data.shape[2:] == (7, 8)
    space = LatentSpace(downscale=4)
    assert resize(random(4, 4, space=space), 71, 63).data.shape[2:] == (15, 17)
    assert resize(random(4, 4, space=space), 71, 63).space == space


def test_a_latent_that_has_the_size_stays_itself():
    latent = random(9, 6)
    assert resize(latent, 72, 48) is latent
    assert resize(latent, 79, 55, "bicubic") is latent


def test_less_than_a_cell_is_refused():
    with pytest.raises(ValueError, match="7 x 64 px is less than one cell of 8 px"):
        resize(random(4, 4), 7, 64)


# content


@pytest.mark.parametrize("kind", ["original", "fill"])
def test_original_and_fill_keep_the_latent(kind):
    latent = random(8, 8)
    assert content(latent, half(), Noise((1,)), kind) is latent


def test_nothing_is_zero_where_it_is_masked():
    latent = random(8, 8)
    cleared = content(latent, half(), Noise((1,)), "nothing").data
    assert torch.equal(cleared[..., :4], latent.data[..., :4])
    assert not cleared[..., 4:].any()


def test_the_mask_is_rounded_to_the_cells_of_a1111():
    ones = Latent(torch.ones(1, 4, 8, 8))
    cleared = content(ones, rectangle(64, 64, x=21, y=13, w=24, h=24), Noise((1,)), "nothing").data
    expected = torch.ones(8, 8)
    expected[2:4, 3:6] = 0
    expected[4, 3:5] = 0
    assert torch.equal(cleared, expected.expand(1, 4, 8, 8))


def test_a_soft_mask_leaves_a_share_where_it_is_not_rounded():
    grey = Mask(torch.full((1, 1, 64, 64), 51, dtype=torch.uint8))
    latent = random(8, 8)
    assert torch.equal(content(latent, grey, Noise((1,)), "nothing").data, latent.data)
    assert torch.allclose(content(latent, grey, Noise((1,)), "nothing", round_mask=False).data, latent.data * 0.8)
    mixed, drawn = (
        content(latent, mask, Noise((1,)), "noise", round_mask=False).data
        for mask in (grey, Mask(torch.full_like(grey.data, 255)))
    )
    assert torch.allclose(mixed, latent.data * 0.8 + drawn * 0.2)


def test_noise_is_standard_normal_where_it_is_masked_and_nowhere_else():
    latent = random(64, 64)
    mask = rectangle(512, 512, x=256, y=0, w=256, h=512)
    noisy = content(latent, mask, Noise((1,)), "noise").data
    assert torch.equal(noisy[..., :32], latent.data[..., :32])
    assert noisy[..., 32:].mean().item() == pytest.approx(0, abs=0.03)
    assert noisy[..., 32:].std().item() == pytest.approx(1, abs=0.03)


@pytest.mark.parametrize("seed", [0, 1, 2**32 - 1, 2**64 - 1])
def test_noise_is_not_what_the_sampler_starts_from_even_with_the_same_seed(seed):
    latent = Latent(torch.zeros(1, 4, 64, 64))
    noisy = content(latent, Mask(torch.full((1, 1, 512, 512), 255, dtype=torch.uint8)), Noise((seed,)), "noise").data
    streams = Streams.open([seed], (4, 64, 64))
    for other in (streams.initial, streams()):
        correlation = torch.corrcoef(torch.stack([noisy.flatten(), other.flatten()]))[0, 1].item()
        assert abs(correlation) < 0.03


def test_noise_follows_its_seeds_and_not_their_variation():
    latent, mask = random(8, 8), half()
    drawn = [content(latent, mask, noise, "noise").data for noise in (Noise((1,)), Noise((2,)), Noise((1,), (5,), 1.0))]
    assert not torch.equal(drawn[0], drawn[1])
    assert torch.equal(drawn[0], drawn[2])


def test_noise_comes_from_its_source():
    latent, mask = random(8, 8), half()
    drawn = [content(latent, mask, Noise((1,), source=source), "noise").data for source in ("cpu", "nv")]
    assert not torch.equal(*drawn)


def test_each_picture_has_its_own_noise_whatever_the_batch():
    latent, mask = random(8, 8), half()
    together = content(latent, mask, Noise((4, 5, 6)), "noise").data
    alone = [content(latent, mask, Noise((seed,)), "noise").data for seed in (4, 5, 6)]
    assert torch.equal(together, torch.cat(alone))
    assert torch.equal(
        content(random(8, 8, 3), half(3), Noise((4, 5, 6)), "noise").data[1, :, :, 4:], alone[1][0, :, :, 4:]
    )


def test_nothing_needs_no_more_latents_than_there_are():
    assert len(content(random(8, 8), half(), Noise((1, 2, 3)), "nothing").data) == 1
    assert len(content(random(8, 8), half(2), Noise((1, 2, 3)), "nothing").data) == 2


def test_batches_of_different_length_are_refused():
    with pytest.raises(ValueError, match="batches of 2 and 3"):
        content(random(8, 8, 2), half(), Noise((1, 2, 3)), "noise")


NODES = {
    "resize": lambda latent: resize(latent, 40, 96),
    "noise": lambda latent: content(latent, half(), Noise((1, 2)), "noise"),
    "nothing": lambda latent: content(latent, half(2), Noise((1, 2)), "nothing"),
}


@pytest.mark.parametrize("name", NODES)
def test_no_node_writes_into_its_input(name):
    latent = random(8, 8, 2)
    before = latent.stamp(), latent.data.clone()
    NODES[name](latent)
    assert latent.stamp() == before[0]
    assert torch.equal(latent.data, before[1])


@pytest.mark.gpu
@pytest.mark.parametrize("name", NODES)
def test_a_node_works_where_its_input_lies(name):
    latent = random(8, 8, 2)
    there = NODES[name](latent.move("cuda:0"))
    assert there.place() == "cuda:0"
    assert torch.allclose(there.data.cpu(), NODES[name](latent).data, atol=1e-6)
