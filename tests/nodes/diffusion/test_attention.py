"""The kernel of attention: the fastest one that works, timed once, never where bits count; results are the same."""

import threading

import pytest
import torch
from diffusers import UNet2DConditionModel
from torch.nn.attention import SDPBackend, _cur_sdpa_kernel_backends
from torch.utils._python_dispatch import TorchDispatchMode

from nodes.diffusion import attention
from nodes.diffusion.attention import ROUNDS, Attention, Kernels, attentions, seconds_of
from nodes.diffusion.compiling import CompiledUnet
from nodes.diffusion.denoise import Denoiser
from nodes.diffusion.guidance import Guidance, Question

CPU = torch.device("cpu")
FLASH, MATH = SDPBackend.FLASH_ATTENTION, SDPBackend.MATH
SMALL = Attention(32, 64, 64)


class Ran(TorchDispatchMode):
    """Remembers which kernels attention was computed by."""

    def __init__(self):
        super().__init__()
        self.kernels = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if "scaled_dot_product_flash" in str(function):
            self.kernels.add(FLASH)
        if "aten._softmax" in str(function) or "aten._safe_softmax" in str(function):
            self.kernels.add(MATH)
        return function(*args, **(kwargs or {}))


class Clock:
    """Says what each kernel takes, in arbitrary seconds, and remembers what was timed. Its first calls take longer."""

    def __init__(self, flash, math, first=()):
        self.takes = {FLASH: flash, MATH: math}
        self.first = first
        self.timed = []

    def __call__(self, action, device):
        with Ran() as ran:
            action()
        [kernel] = ran.kernels
        self.timed.append(kernel)
        return self.takes[kernel] + dict(enumerate(self.first, 1)).get(self.timed.count(kernel), 0.0)


def question(side=16, tokens=77, width=128):
    made = torch.Generator().manual_seed(side)
    x, high, low = (torch.randn(1, *shape, generator=made) for shape in ((4, side, side), *[(tokens, width)] * 2))
    return [Question(x, 2.0, Guidance(high, low, cfg=4.0))]


def answered(unet, table, kernels, *, steady=False):
    """What a denoiser answers, and by which kernels, once they are timed."""
    denoiser = Denoiser(unet, table, steady=steady, kernels=kernels)
    denoiser(question())
    with Ran() as ran:
        [answer] = denoiser(question())
    return answer.guided, ran.kernels


def tiny(**more):
    torch.manual_seed(0)
    config = {
        "sample_size": 8,
        "block_out_channels": (8, 16, 16),
        "layers_per_block": 1,
        "norm_num_groups": 4,
        "cross_attention_dim": 12,
        "attention_head_dim": (1, 2, 4),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "transformer_layers_per_block": (1, 2, 3),
    }
    return UNet2DConditionModel(**config | more).eval().requires_grad_(requires_grad=False)


@pytest.mark.parametrize(("flash", "math", "fastest"), [(1.0, 2.0, FLASH), (2.0, 1.0, MATH)])
def test_the_faster_of_two_computes(unet, table, flash, math, fastest):
    assert answered(unet, table, Kernels("cpu", clock=Clock(flash, math)))[1] == {fastest}


@pytest.mark.parametrize(("flash", "math"), [(1.0, 2.0), (2.0, 1.0)])
def test_whatever_is_chosen_the_result_is_the_same(unet, table, flash, math):
    found, _ = answered(unet, table, Kernels("cpu", clock=Clock(flash, math)))
    expected, _ = answered(unet, table, Kernels())
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_what_a_kernel_takes_to_get_ready_for_a_shape_counts_a_little():
    """The shorter of two times: what comes in between once is not the kernel's."""
    kernels = Kernels("cpu", clock=Clock(1.0, 1.5, first=(80.0, 5000.0)))
    assert kernels.seconds(SMALL, torch.float32, CPU) == pytest.approx({FLASH: 1.8, MATH: 2.3})


def test_each_kind_is_timed_once(unet, table):
    clock = Clock(1.0, 2.0)
    kernels = Kernels("cpu", clock=clock)
    for side in (16, 16, 15):  # 120 px are of the same kinds as 128
        Denoiser(unet, table, kernels=kernels)(question(side))
    kinds = len(attentions(unet, (16, 16), 77))
    assert clock.timed == ([FLASH] * (2 + ROUNDS) + [MATH] * (2 + ROUNDS)) * kinds


def test_exact_results_do_not_depend_on_a_clock(unet, table):
    clock = Clock(2.0, 1.0)
    kernels = Kernels("cpu", clock=clock)
    assert answered(unet, table, kernels)[1] == {MATH}
    clock.timed.clear()
    found, ran = answered(unet, table, kernels, steady=True)
    assert (clock.timed, ran) == ([], {FLASH})
    assert torch.equal(found, answered(unet, table, Kernels(), steady=True)[0])


def test_a_kernel_that_fails_is_left_out_and_the_only_one_left_is_not_timed(unet, table, monkeypatch):
    computed, clock = attention.scaled_dot_product_attention, Clock(1.0, 2.0)

    def failing(*inputs):
        if _cur_sdpa_kernel_backends() != [MATH]:
            raise RuntimeError("no plan for this shape")
        return computed(*inputs)

    monkeypatch.setattr(attention, "scaled_dot_product_attention", failing)
    kernels = Kernels("cpu", clock=clock)
    assert kernels.seconds(SMALL, torch.float32, CPU) == {MATH: 0.0}
    assert (kernels.order(unet, torch.zeros(1, 4, 16, 16), 77, torch.float32), clock.timed) == ((), [])


def test_a_kernel_that_torch_would_not_take_is_left_out():
    """On the CPU none computes heads whose size differs between keys and values but the one that does everything."""
    timed = attention.Example(SMALL, torch.float32, CPU)
    timed._inputs = (*timed._inputs[:2], timed._inputs[2][..., :8])
    assert [timed.works(kernel) for kernel in (FLASH, MATH)] == [False, True]


def test_what_holds_all_products_is_not_taken_for_long_pictures():
    clock = Clock(1.0, 0.5)
    kernels = Kernels("cpu", clock=clock)
    assert kernels.seconds(Attention(8, 1024, 1024), torch.float32, CPU) == {FLASH: 0.0, MATH: float("inf")}
    order = kernels._fastest({Attention(8, 1024, 1024): 1, SMALL: 1000}, torch.float32, CPU)
    assert (order, set(clock.timed)) == ((FLASH, MATH), {FLASH, MATH})


def test_nothing_is_timed_while_a_graph_is_captured(unet, table, monkeypatch):
    clock = Clock(2.0, 1.0)
    kernels = Kernels("cpu", clock=clock)
    with monkeypatch.context() as patched:
        patched.setattr(attention, "capturing", lambda _: True)
        assert (answered(unet, table, kernels)[1], clock.timed) == ({FLASH}, [])
    assert answered(unet, table, kernels)[1] == {MATH}


def test_where_memory_is_too_short_to_time_anything_torch_chooses_and_it_is_tried_again(unet, table, monkeypatch):
    kernels = Kernels("cpu", clock=Clock(2.0, 1.0))

    def short(*_):
        raise torch.OutOfMemoryError("no room")

    with monkeypatch.context() as patched:
        patched.setattr(attention, "scaled_dot_product_attention", short)
        assert answered(unet, table, kernels)[1] == {FLASH}
    assert answered(unet, table, kernels)[1] == {MATH}


def test_the_choice_is_over_with_the_call_also_where_it_fails(unet):
    kernels, before = Kernels("cpu", clock=Clock(2.0, 1.0)), _cur_sdpa_kernel_backends(with_priority=True)
    call = kernels.chosen(unet, torch.zeros(1, 4, 16, 16), 77, torch.float32)
    with pytest.raises(ValueError, match="cancelled"), call:
        assert _cur_sdpa_kernel_backends() == [MATH]
        raise ValueError("cancelled")
    assert _cur_sdpa_kernel_backends(with_priority=True) == before
    assert not attention._TURN.locked()


def test_exact_calls_wait_for_the_choice_of_another_thread_and_others_do_not(unet):
    kernels, latents, seen = Kernels("cpu", clock=Clock(2.0, 1.0)), torch.zeros(1, 4, 16, 16), []

    def other(steady):
        with kernels.chosen(unet, latents, 77, torch.float32, steady=steady):
            seen.append((steady, _cur_sdpa_kernel_backends() == [MATH]))

    threads = [threading.Thread(target=other, args=(steady,)) for steady in (False, True)]
    with kernels.chosen(unet, latents, 77, torch.float32):
        threads[0].start()
        threads[0].join()
        threads[1].start()
        assert seen == [(False, True)]
    threads[1].join()
    assert seen == [(False, True), (True, False)]
    assert not attention._TURN.locked()


def test_a_compiled_unet_has_the_attentions_of_its_unet(unet, monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda function: function)
    kernels = Kernels("cpu", clock=Clock(2.0, 1.0))
    latents = torch.zeros(1, 4, 16, 16)
    assert kernels.order(CompiledUnet(unet), latents, 77, torch.float32) == (MATH, FLASH)
    assert kernels.order(lambda: None, latents, 77, torch.float32) == ()


def test_on_a_cpu_torch_chooses_by_itself(unet, table, monkeypatch):
    def asked(*_):
        raise AssertionError("nobody asked for the time")

    monkeypatch.setattr(attention.MEASURED, "_clock", asked)
    with Ran() as ran:
        Denoiser(unet, table)(question())
    assert ran.kernels == {FLASH}


@pytest.mark.parametrize("side", [(16, 16), (9, 14)])
@pytest.mark.parametrize("more", [{}, {"block_out_channels": (8, 16, 32)}])
def test_the_attentions_of_a_network_are_those_that_it_computes(side, more, monkeypatch):
    unet, computed, seen = tiny(**more), torch.nn.functional.scaled_dot_product_attention, {}

    def counting(query, key, value, **options):
        kind = Attention(query.shape[-1], *(attention._rounded(each.shape[2]) for each in (query, key)))
        seen[kind] = seen.get(kind, 0) + query.shape[1]
        return computed(query, key, value, **options)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", counting)
    size = tuple(8 * cells for cells in side)
    unet(torch.zeros(1, 4, *size), torch.zeros(1), torch.zeros(1, 154, 12))
    assert attentions(unet, size, 154) == seen
    assert len(seen) >= 3


def test_a_clock_tells_seconds():
    assert 0 < seconds_of(lambda: sum(range(1000)), CPU) < 10


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_on_a_gpu_some_order_is_found_and_gives_the_same(unet, table, dtype):
    moved = tiny().to("cuda", dtype)
    kernels = Kernels("cuda")
    [asked] = question(64, 77, 12)
    asked = Question(asked.x.cuda(), 2.0, Guidance(torch.randn(1, 77, 12).cuda(), torch.randn(1, 77, 12).cuda(), 4.0))
    [found], [expected] = (Denoiser(moved, table, kernels=each)([asked]) for each in (kernels, Kernels()))
    order = kernels.order(moved, asked.x, 77, dtype)
    assert set(order) == set(attention.KERNELS["cuda"])
    assert order.index(SDPBackend.MATH) > 0
    near = 1e-4 if dtype == torch.float32 else 5e-2
    torch.testing.assert_close(found.guided, expected.guided, rtol=near, atol=near)
    assert not any(asked.isnan().any() for asked in (found.guided, expected.guided))
