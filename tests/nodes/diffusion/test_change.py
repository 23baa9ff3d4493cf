"""What each method adds to a weight, against a computation that does not look like the one under test."""

from itertools import product

import pytest
import torch
from torch.nn import functional

from nodes.diffusion.change import Change, Matrix

STRENGTH, ALPHA = 0.7, 1.5


@pytest.fixture
def draw():
    made = torch.Generator().manual_seed(0)
    return lambda *shape: torch.randn(shape, generator=made)


def changed(change, weight, strength=STRENGTH):
    assert change.consistent
    assert change.fits(weight)
    total = weight.clone()
    change.put_on(total, strength)
    return total


def near(found, expected):
    return torch.allclose(found, expected.to(found), atol=1e-5)


class TestLora:
    def test_a_linear_layer_answers_as_one_with_two_small_layers_beside_it(self, draw):
        weight, up, down, x = draw(6, 5), draw(6, 2), draw(2, 5), draw(3, 5)
        made = changed(Change("LoRA", (Matrix((up, down)),), ALPHA), weight)
        beside = functional.linear(functional.linear(x, down), up) * ALPHA / 2
        assert near(functional.linear(x, made), functional.linear(x, weight) + STRENGTH * beside)

    def test_a_convolution_answers_as_one_with_two_convolutions_beside_it(self, draw):
        weight, up, down, x = draw(6, 5, 3, 3), draw(6, 2, 1, 1), draw(2, 5, 3, 3), draw(1, 5, 8, 8)
        made = changed(Change("LoRA", (Matrix((up, down)),), ALPHA), weight)
        beside = functional.conv2d(functional.conv2d(x, down, padding=1), up) * ALPHA / 2
        assert near(functional.conv2d(x, made, padding=1), functional.conv2d(x, weight, padding=1) + STRENGTH * beside)

    def test_with_a_core_as_one_with_three_convolutions_beside_it(self, draw):
        weight, x = draw(6, 5, 3, 3), draw(1, 5, 8, 8)
        up, mid, down = draw(6, 2, 1, 1), draw(2, 4, 3, 3), draw(4, 5, 1, 1)
        made = changed(Change("LoRA", (Matrix((up, mid, down)),), ALPHA), weight)
        beside = functional.conv2d(functional.conv2d(functional.conv2d(x, down), mid, padding=1), up) * ALPHA / 4
        assert near(functional.conv2d(x, made, padding=1), functional.conv2d(x, weight, padding=1) + STRENGTH * beside)

    def test_one_made_for_a_linear_layer_fits_a_convolution_of_one_point_and_the_other_way_round(self, draw):
        weight, up, down = draw(6, 5), draw(6, 2), draw(2, 5)
        linear = changed(Change("LoRA", (Matrix((up, down)),)), weight)
        point = changed(Change("LoRA", (Matrix((up[..., None, None], down[..., None, None])),)), weight)
        assert torch.equal(changed(Change("LoRA", (Matrix((up, down)),)), weight[..., None, None])[..., 0, 0], linear)
        assert torch.equal(point, linear)


def hadamard(weight, sides):
    """W + strength * alpha / r * (A1 B1) * (A2 B2), number by number in float64; sides are (a, b) or (a, core, b)."""
    found = weight.double()
    flat = found.reshape(len(weight), -1)
    for row, column in product(range(flat.shape[0]), range(flat.shape[1])):
        factors = 1.0
        for a, b in sides:
            factors *= sum(float(a[row, r] * b.flatten(1)[r, column]) for r in range(a.shape[1]))
        flat[row, column] += STRENGTH * ALPHA / sides[0][1].shape[0] * factors
    return found


class TestLoha:
    @pytest.mark.parametrize("kernel", [(), (3, 3)])
    def test_it_adds_the_product_of_two_products_number_by_number(self, draw, kernel):
        weight = draw(4, 3, *kernel)
        sides = [(draw(4, 2), draw(2, weight[0].numel())) for _ in range(2)]
        made = changed(Change("LoHa", tuple(map(Matrix, sides)), ALPHA), weight)
        assert near(made, hadamard(weight, sides))

    def test_with_cores_each_side_is_three_convolutions_in_a_row(self, draw):
        weight, x = draw(4, 3, 3, 3), draw(1, 3, 6, 6)
        sides = [(draw(4, 2), draw(2, 2, 3, 3), draw(2, 3)) for _ in range(2)]
        made = changed(Change("LoHa", tuple(map(Matrix, sides)), ALPHA), weight)
        impulses = torch.eye(3 * 9).reshape(27, 3, 3, 3)
        kernels = [
            functional.conv2d(
                functional.conv2d(functional.conv2d(impulses, b[..., None, None]), core), a[..., None, None]
            )
            for a, core, b in sides
        ]  # (27, 4, 1, 1): what each input cell does to each output
        first, second = (kernel[..., 0, 0].T.reshape(4, 3, 3, 3) for kernel in kernels)
        expected = weight + STRENGTH * ALPHA / 2 * first * second
        assert near(functional.conv2d(x, made), functional.conv2d(x, expected))


def kronecker(weight, w1, w2, factor):
    """W + strength * factor * kron(w1, w2), block by block: block (o, i) is w1[o, i] times all of w2."""
    found = weight.double()
    out, into = w2.shape[:2]
    for row, column in product(range(w1.shape[0]), range(w1.shape[1])):
        block = found[row * out : (row + 1) * out, column * into : (column + 1) * into]
        block += STRENGTH * factor * w1[row, column].double() * w2.double()
    return found


class TestLokr:
    @pytest.mark.parametrize("kernel", [(), (3, 3)])
    def test_whole_sides_count_without_alpha(self, draw, kernel):
        weight, w1, w2 = draw(6, 10, *kernel), draw(2, 5), draw(3, 2, *kernel)
        made = changed(Change("LoKr", (Matrix((w1,)), Matrix((w2,))), ALPHA), weight)
        assert near(made, kronecker(weight, w1, w2, 1.0))

    def test_sides_in_two_factors(self, draw):
        weight, a1, b1, a2, b2 = draw(12, 10), draw(4, 2), draw(2, 5), draw(3, 2), draw(2, 2)
        made = changed(Change("LoKr", (Matrix((a1, b1)), Matrix((a2, b2))), ALPHA), weight)
        assert near(made, kronecker(weight, a1 @ b1, a2 @ b2, ALPHA / 2))

    def test_a_side_in_two_factors_has_the_kernel_in_the_second(self, draw):
        weight, w1, a, b = draw(6, 10, 3, 3), draw(2, 5), draw(3, 2), draw(2, 2 * 9)
        made = changed(Change("LoKr", (Matrix((w1,)), Matrix((a, b))), ALPHA), weight)
        assert near(made, kronecker(weight, w1, (a @ b).reshape(3, 2, 3, 3), ALPHA / 2))

    def test_a_side_with_a_core(self, draw):
        weight, w1, a, core, b = draw(6, 10, 3, 3), draw(2, 5), draw(3, 2), draw(2, 2, 3, 3), draw(2, 2)
        made = changed(Change("LoKr", (Matrix((w1,)), Matrix((a, core, b))), ALPHA), weight)
        w2 = sum(
            a[:, i, None, None, None] * core[i, j] * b[j, None, :, None, None] for i, j in product(range(2), range(2))
        )
        assert near(made, kronecker(weight, w1, w2, ALPHA / 2))


class TestFull:
    @pytest.mark.parametrize("shape", [(5,), (5, 4), (5, 4, 3, 3)])
    def test_a_difference_counts_as_it_is(self, draw, shape):
        weight, difference = draw(*shape), draw(*shape)
        made = changed(Change("full", (Matrix((difference,)),), ALPHA), weight)
        assert near(made, weight + STRENGTH * difference)


class TestScale:
    def test_rooted_rank_scales_by_alpha_over_its_square_root(self, draw):
        weight, up, down = draw(6, 5), draw(6, 4), draw(4, 5)
        made = changed(Change("LoRA", (Matrix((up, down)),), ALPHA, rooted=True), weight)
        assert near(made, weight + STRENGTH * ALPHA / 2 * (up @ down))

    def test_a_scale_stands_in_for_alpha_over_rank(self, draw):
        weight, up, down = draw(6, 5), draw(6, 4), draw(4, 5)
        made = changed(Change("LoRA", (Matrix((up, down)),), ALPHA, torch.tensor(0.3)), weight)
        assert near(made, weight + STRENGTH * 0.3 * (up @ down))

    def test_neither_is_one(self, draw):
        weight, up, down = draw(6, 5), draw(6, 4), draw(4, 5)
        assert near(changed(Change("LoRA", (Matrix((up, down)),)), weight), weight + STRENGTH * (up @ down))


class TestDora:
    """m * V / |V| as the paper has it, V = W + the change; a strength is how far on the way from W."""

    @pytest.mark.parametrize("kernel", [(), (3, 3)])
    def test_of_columns_each_input_gets_the_length_that_was_learnt(self, draw, kernel):
        weight, up, down, lengths = draw(6, 5, *kernel), draw(6, 2), draw(2, 5, *kernel), draw(5).abs()
        magnitude = lengths.reshape(1, 5, *[1] * len(kernel))
        made = changed(Change("LoRA", (Matrix((up, down)),), ALPHA, magnitude=magnitude), weight, 1.0)
        direction = weight + ALPHA / 2 * (up @ down.flatten(1)).reshape(weight.shape)
        for column, length in enumerate(lengths):
            assert near(made[:, column], length * direction[:, column] / direction[:, column].norm())

    @pytest.mark.parametrize("kernel", [(), (3, 3)])
    @pytest.mark.parametrize("flat", [True, False])
    def test_of_rows_each_output_does(self, draw, kernel, flat):
        weight, up, down, lengths = draw(6, 5, *kernel), draw(6, 2), draw(2, 5, *kernel), draw(6).abs()
        magnitude = lengths if flat else lengths.reshape(6, 1, *[1] * len(kernel))
        made = changed(Change("LoRA", (Matrix((up, down)),), ALPHA, magnitude=magnitude), weight, 1.0)
        direction = weight + ALPHA / 2 * (up @ down.flatten(1)).reshape(weight.shape)
        for row, length in enumerate(lengths):
            assert near(made[row], length * direction[row] / direction[row].norm())

    @pytest.mark.parametrize("strength", [0.0, 0.4, -0.5, 1.7])
    def test_a_strength_goes_that_far_towards_it(self, draw, strength):
        weight, up, down = draw(6, 5), draw(6, 2), draw(2, 5)
        change = Change("LoRA", (Matrix((up, down)),), magnitude=draw(1, 5).abs())
        assert near(changed(change, weight, strength), weight + strength * (changed(change, weight, 1.0) - weight))

    def test_an_empty_column_stays_empty(self, draw):
        weight, up, down = draw(6, 5), draw(6, 2), draw(2, 5)
        weight[:, 2] = down[:, 2] = 0
        made = changed(Change("LoRA", (Matrix((up, down)),), magnitude=torch.ones(1, 5)), weight, 1.0)
        assert torch.equal(made[:, 2], torch.zeros(6))
        assert bool(torch.isfinite(made).all())

    @pytest.mark.parametrize("shape", [(6,), (1, 5), (2, 4)])
    def test_lengths_of_something_else_do_not_fit(self, draw, shape):
        change = Change("LoRA", (Matrix((draw(4, 2), draw(2, 3))),), magnitude=draw(*shape))
        assert not change.fits(draw(4, 3))


class TestShapes:
    @pytest.mark.parametrize(
        "factors",
        [
            ((4, 2), (3, 5)),
            ((4, 2), (2, 2, 3, 3), (3, 5)),
            ((4, 2), (3, 2, 3, 3), (2, 5)),
            ((), (2, 5)),
            ((4, 0), (0, 5)),
            ((4, 99), (99, 99, 1, 1), (99, 5)),
        ],
    )
    def test_factors_that_do_not_meet_are_inconsistent(self, draw, factors):
        assert not Matrix(tuple(draw(*shape) for shape in factors)).consistent

    def test_sides_of_different_ranks_are_too(self, draw):
        sides = Matrix((draw(4, 2), draw(2, 5))), Matrix((draw(4, 3), draw(3, 5)))
        assert not Change("LoHa", sides).consistent
        assert not Change("LoKr", sides).consistent

    @pytest.mark.parametrize("weight", [(6, 4), (5, 5), (6, 5, 3, 3), (6,)])
    def test_another_weight_does_not_fit(self, draw, weight):
        assert not Change("LoRA", (Matrix((draw(6, 2), draw(2, 5))),)).fits(draw(*weight))
