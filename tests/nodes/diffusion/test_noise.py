import pytest
import torch

from nodes.diffusion.noise import Streams, Variation, draw, slerp

SHAPE = (4, 8, 8)


def test_a_batch_draws_for_each_image_what_the_image_alone_draws():
    batch = draw([7, 8, 9], SHAPE)
    for position, seed in enumerate([7, 8, 9]):
        assert torch.equal(batch[position : position + 1], draw([seed], SHAPE))


def test_step_noise_is_as_independent_of_the_batch_as_initial_noise():
    batch, alone = Streams.open([7, 8], SHAPE), Streams.open([8], SHAPE)
    for _ in range(3):
        assert torch.equal(batch()[1:], alone())


def test_steps_continue_the_generator_that_drew_the_initial_noise():
    streams = Streams.open([42], SHAPE)
    generator = torch.Generator().manual_seed(42)
    drawn = [torch.randn(SHAPE, generator=generator) for _ in range(3)]
    assert torch.equal(torch.cat([streams.initial, streams(), streams()]), torch.stack(drawn))


def test_the_initial_noise_is_torchs_on_the_cpu():
    first = draw([42], (4, 64, 64)).flatten()[:5].tolist()
    assert first == pytest.approx([1.926915, 1.487284, 0.900717, -2.105521, 0.678418], abs=1e-6)


def test_a_variation_turns_the_noise_as_a1111_does():
    """A1111 1.10.1 on the CPU, seeds 1 and 2, strength 0.5, 64 x 64 latents."""
    noise = draw([1], (4, 64, 64), variation=Variation((2,), 0.5))
    assert noise.flatten()[:4].tolist() == pytest.approx([-1.79040, 0.12048, -1.30779, -1.85703], abs=1e-5)
    assert noise.std().item() == pytest.approx(1.0003, abs=5e-5)


def test_a_variation_of_strength_zero_changes_nothing():
    assert torch.equal(draw([1], SHAPE, variation=Variation((2,), 0)), draw([1], SHAPE))


def test_a_variation_of_strength_one_is_the_other_seeds_noise():
    assert torch.equal(draw([1], SHAPE, variation=Variation((2,), 1)), draw([2], SHAPE))


def test_a_variation_of_a_seed_by_itself_is_the_seed():
    torch.testing.assert_close(draw([1], SHAPE, variation=Variation((1,), 0.3)), draw([1], SHAPE))


def test_a_variation_leaves_step_noise_alone():
    varied, plain = Streams.open([1], SHAPE, variation=Variation((2,), 0.8)), Streams.open([1], SHAPE)
    assert torch.equal(varied(), plain())


def test_variations_are_per_image():
    batch = draw([1, 2], SHAPE, variation=Variation((5, 6), 0.4))
    assert torch.equal(batch[1:], draw([2], SHAPE, variation=Variation((6,), 0.4)))


def test_turning_keeps_the_length_of_unit_columns():
    start, end = torch.zeros(1, 2, 1), torch.zeros(1, 2, 1)
    start[0, 0], end[0, 1] = 1.0, 1.0
    torch.testing.assert_close(slerp(start, end, 0.5), torch.full((1, 2, 1), 0.5**0.5))


def test_nearly_parallel_noise_is_mixed_with_the_ends_exchanged():
    start = draw([1], SHAPE)[0]
    end = start * 3
    torch.testing.assert_close(slerp(start, end, 0.25), start * 2.5)


def test_a_latent_one_row_high_is_mixed_linearly_where_it_has_no_angle():
    noise = draw([1], (4, 1, 64), variation=Variation((2,), 0.5))
    assert noise.isfinite().all()


@pytest.mark.parametrize("seed", [-1, 2**64])
def test_seeds_out_of_range_are_refused(seed):
    with pytest.raises(ValueError, match=r"seed: expected an integer from 0 to 2\*\*64 - 1"):
        draw([seed], SHAPE)


def test_a_strength_out_of_range_is_refused():
    with pytest.raises(ValueError, match=r"variation strength: expected a number from 0 to 1, got 1.5"):
        Variation((1,), 1.5)


def test_a_variation_needs_a_seed_for_every_image():
    with pytest.raises(ValueError, match="variation seeds: expected one per image, 2, got 1"):
        draw([1, 2], SHAPE, variation=Variation((3,), 0.5))
