import pytest
import torch

from nodes.diffusion.brownian import node_seed
from nodes.diffusion.noise import Streams, Variation, brownian, centred, draw, generator, slerp
from nodes.diffusion.philox import Philox

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


class TestPhilox:
    """Vectors of the WebUI's random number source NV."""

    def test_each_call_draws_the_next_numbers(self):
        numbers = Philox(0)
        assert numbers.normal((6,)).tolist() == pytest.approx(
            [-0.924662, -0.425344, -2.643846, 0.145184, -0.120867, -0.579726], abs=1e-6
        )
        assert numbers.normal((3,)).tolist() == pytest.approx([0.180826, -0.552263, 0.923813], abs=1e-6)

    def test_the_initial_noise_of_a_latent(self):
        first = draw([42], (4, 64, 64), source="nv").flatten()[:5].tolist()
        assert first == pytest.approx([0.194019, 2.161374, -0.172051, 0.849060, -1.924399], abs=1e-6)

    def test_a_seed_of_64_bits_counts_in_full(self):
        assert not torch.equal(Philox(7).normal((9,)), Philox(7 + 2**32).normal((9,)))

    def test_it_is_normal(self):
        numbers = Philox(5).normal((200_000,))
        assert numbers.mean().item() == pytest.approx(0, abs=0.01)
        assert numbers.std().item() == pytest.approx(1, abs=0.01)

    def test_a_batch_draws_for_each_image_what_the_image_alone_draws(self):
        batch, alone = Streams.open([7, 8], SHAPE, source="nv"), Streams.open([8], SHAPE, source="nv")
        assert torch.equal(batch.initial[1:], alone.initial)
        assert torch.equal(batch()[1:], alone())
        assert not torch.equal(alone(), alone.initial)


class TestSeedDelta:
    def test_steps_draw_from_the_seed_further_on_and_the_initial_noise_does_not(self):
        moved, other = Streams.open([42], SHAPE, seed_delta=31337), Streams.open([42 + 31337], SHAPE)
        assert torch.equal(moved.initial, draw([42], SHAPE))
        assert torch.equal(moved(), other.initial)

    def test_the_highest_seed_counts_on_from_zero(self):
        assert torch.equal(Streams.open([2**64 - 1], SHAPE, seed_delta=3)(), draw([2], SHAPE))


class TestSeedResize:
    def test_a_smaller_pictures_noise_stands_in_the_middle_of_fresh_noise(self):
        noise = Streams.open([3], (4, 12, 10), resized_from=(8, 6)).initial[0]
        assert torch.equal(noise[:, 2:10, 2:8], draw([3], (4, 8, 6))[0])
        fresh = draw([3], (4, 12, 10))[0]
        assert torch.equal(noise[:, :2], fresh[:, :2])
        assert torch.equal(noise[:, :, 8:], fresh[:, :, 8:])

    def test_of_a_larger_pictures_noise_the_middle_is_taken(self):
        noise = Streams.open([3], (4, 8, 6), resized_from=(12, 10)).initial[0]
        assert torch.equal(noise, draw([3], (4, 12, 10))[0][:, 2:10, 2:8])

    def test_an_odd_row_too_many_leaves_one_of_the_fresh_noise(self):
        under, over = torch.zeros(1, 5, 5), torch.arange(64.0).reshape(1, 8, 8)
        assert torch.equal(centred(under, over)[0, :4, :4], over[0, 2:6, 2:6])
        assert centred(under, over)[0, 4].tolist() == [0] * 5

    def test_the_variation_is_mixed_in_at_the_other_size(self):
        variation = Variation((9,), 0.4)
        noise = Streams.open([3], (4, 12, 10), variation=variation, resized_from=(8, 6)).initial[0]
        assert torch.equal(noise[:, 2:10, 2:8], draw([3], (4, 8, 6), variation=variation)[0])

    def test_the_same_size_changes_nothing(self):
        varied = {"variation": Variation((9,), 0.4)}
        assert torch.equal(
            Streams.open([3], SHAPE, resized_from=SHAPE[1:], **varied).initial, draw([3], SHAPE, **varied)
        )

    def test_steps_go_on_behind_the_fresh_noise(self):
        streams = Streams.open([3], (4, 12, 10), resized_from=(8, 6))
        numbers = generator(3)
        numbers((4, 12, 10))
        assert torch.equal(streams()[0], numbers((4, 12, 10)))


class TestBrownian:
    @pytest.fixture
    def path(self):
        return brownian([7, 8], SHAPE, 0.03, 14.6)

    @staticmethod
    def increment(path, sigma, following):
        return path(sigma, following) * abs(sigma - following) ** 0.5

    def test_the_way_over_two_intervals_is_the_sum_of_both(self, path):
        whole = self.increment(path, 9.0, 0.4)
        parts = self.increment(path, 9.0, 2.5) + self.increment(path, 2.5, 0.4)
        torch.testing.assert_close(whole, parts, rtol=1e-5, atol=1e-5)

    def test_the_way_back_is_the_way_turned_round(self, path):
        assert torch.equal(path(2.5, 9.0), -path(9.0, 2.5))

    def test_an_interval_does_not_depend_on_what_was_asked_before(self, path):
        first = path(5.0, 4.0)
        for sigma in (14.6, 3.3, 0.03, 7.0, 1.0):
            path(sigma, 5.5)
        assert torch.equal(path(5.0, 4.0), first)
        assert torch.equal(brownian([7, 8], SHAPE, 0.03, 14.6)(5.0, 4.0), first)

    @pytest.mark.parametrize("source", ["cpu", "nv"])
    def test_an_image_has_in_a_batch_the_path_that_it_has_alone(self, source):
        batch, alone = (brownian(seeds, SHAPE, 0.03, 14.6, source=source) for seeds in ([7, 8], [8]))
        assert torch.equal(batch(5.0, 4.0)[1:], alone(5.0, 4.0))

    @pytest.mark.parametrize(("sigma", "following"), [(14.6, 0.03), (9.0, 8.9), (0.05, 0.03), (1.0, 0.5)])
    def test_every_interval_is_standard_normal(self, sigma, following):
        noise = brownian([1], (4, 100, 100), 0.03, 14.6)(sigma, following)
        assert noise.dtype == torch.float32
        assert noise.mean().item() == pytest.approx(0, abs=0.02)
        assert noise.std().item() == pytest.approx(1, abs=0.02)

    def test_intervals_apart_are_independent_and_overlapping_ones_correlate_as_they_overlap(self):
        path = brownian([1], (4, 100, 100), 0.03, 14.6)
        upper, lower, both = path(12.0, 8.0), path(8.0, 4.0), path(12.0, 4.0)
        assert (upper * lower).mean().item() == pytest.approx(0, abs=0.02)
        assert (upper * both).mean().item() == pytest.approx(0.5**0.5, abs=0.02)

    def test_its_noise_is_not_that_of_the_seed_itself(self):
        noise, initial = brownian([1], (4, 100, 100), 0.03, 14.6)(14.6, 0.03), draw([1], (4, 100, 100))
        assert (noise * initial).mean().item() == pytest.approx(0, abs=0.02)

    def test_levels_that_are_one_are_refused(self, path):
        with pytest.raises(ValueError, match="noise between 5 and 5: these levels are one; take fewer steps"):
            path(5.0, 5.0)

    # torchsde 0.2.6: the first three numbers that its BrownianTree of entropy 7 from 0.03 to 14.6 has at (1, 4, 8, 8),
    # over the root of the length and turned round
    @pytest.mark.parametrize(
        ("sigma", "following", "noise"),
        [
            (14.6, 5.0, [-0.12429, -0.01719, 0.9153]),
            (5.0, 4.0, [0.59075, -0.56807, 0.47354]),
            (4.0, 0.03, [-0.45795, 1.38311, -0.29148]),
        ],
    )
    def test_its_noise_is_that_of_torchsdes_tree(self, path, sigma, following, noise):
        assert path(sigma, following)[0].flatten()[:3].tolist() == pytest.approx(noise, abs=2e-5)

    def test_pictures_that_share_a_generator_have_paths_of_their_own(self):
        both = brownian([7, 7], SHAPE, 0.03, 14.6, places=[(0, 2), (1, 2)])(5.0, 4.0)
        assert torch.equal(both[:1], brownian([7], SHAPE, 0.03, 14.6)(5.0, 4.0))
        assert (both[0] * both[1]).mean().abs().item() < 0.3
        assert not torch.equal(both[0], both[1])

    def test_nodes_have_seeds_of_their_own(self):
        seeds = [node_seed(seed, node, 5) for seed in (0, 1, 2**64 - 1) for node in range(32)]
        assert len({*seeds, node_seed(0), node_seed(0, 0, 4)}) == 3 * 32 + 2


def test_pictures_that_share_a_generator_draw_what_one_draw_of_them_all_gives():
    generator = torch.Generator().manual_seed(5)
    initial, first, second = (torch.randn(3, *SHAPE, generator=generator) for _ in range(3))
    places = [(place, 3) for place in range(3)]
    streams = Streams.open([5, 5, 5], SHAPE, places=places)
    assert torch.equal(streams.initial, initial)
    assert torch.equal(streams(), first)
    assert torch.equal(streams(), second)
    alone = Streams.open([5], SHAPE, places=places[2:], seed_delta=0)
    assert torch.equal(alone.initial, initial[2:])
    assert torch.equal(alone(), initial[2:])
    assert torch.equal(alone(), first[2:])
