"""How many latents a UNet call takes, and what happens where memory runs out."""

import pytest
import torch

from nodes.diffusion import denoise, room
from nodes.diffusion.denoise import Denoiser
from nodes.diffusion.guidance import Guidance, Question
from nodes.diffusion.room import Room


class Memory:
    """A device's memory: every latent in a call takes the same."""

    def __init__(self, total, each):
        self.total = total
        self.each = each
        self.calls = []
        self.trimmed = 0

    def free(self):
        return self.total

    def begin(self):
        self.calls.append(0)

    def taken(self):
        return self.each * self.calls[-1]

    def trim(self):
        self.trimmed += 1


class UNet:
    """Predicts nothing, in as much memory as there is."""

    dtype = torch.float32

    def __init__(self, memory):
        self.memory = memory
        self.calls = []

    def __call__(self, sample, timestep, tokens, *, return_dict):
        self.calls.append(len(sample))
        self.memory.calls[-1] = len(sample)
        if len(sample) * self.memory.each > self.memory.total:
            raise torch.OutOfMemoryError
        return (torch.zeros_like(sample) + timestep[:, None, None, None] * 0,)


def asked(count, size=8):
    x = torch.arange(count, dtype=torch.float32).view(-1, 1, 1, 1).expand(-1, 4, size, size)
    return Question(x, 2.0, Guidance(torch.zeros(1, 77, 3)))


@pytest.fixture
def measured(monkeypatch):
    """Measure memory on the CPU, as on an accelerator, where nothing is known of the first call but its cells."""

    def measure(memory, first):
        monkeypatch.setattr(denoise, "gauge", lambda _: memory)
        monkeypatch.setattr(denoise, "CPU_CELLS", first * 64)
        return memory

    return measure


def test_after_the_first_call_it_goes_by_what_that_took(table, measured):
    memory = measured(Memory(total=1000, each=90), first=2)
    unet = UNet(memory)
    denoiser = Denoiser(unet, table)
    [answer] = denoiser([asked(12)])
    assert unet.calls == [2, 10]  # 90 % of 1000 bytes hold ten of 90
    torch.testing.assert_close(answer.guided, asked(12).x)
    denoiser([asked(12)])
    assert unet.calls[2:] == [6, 6]


def test_what_was_measured_is_known_to_the_next_batch_of_the_same_unet(table, measured):
    memory = measured(Memory(total=1000, each=90), first=2)
    unet = UNet(memory)
    Denoiser(unet, table)([asked(2)])
    Denoiser(unet, table)([asked(12)])
    assert unet.calls == [2, 6, 6]
    other = UNet(memory)
    Denoiser(other, table)([asked(4)])
    assert other.calls == [2, 2]


def test_latents_of_another_size_are_measured_anew(table, measured):
    memory = measured(Memory(total=1000, each=90), first=2)
    unet = UNet(memory)
    denoiser = Denoiser(unet, table)
    denoiser([asked(2)])
    denoiser([asked(2, size=16)])
    assert unet.calls == [2, 1, 1]


def test_calls_are_halved_where_memory_runs_out_and_nothing_is_lost(table, measured):
    memory = measured(Memory(total=1000, each=300), first=16)
    unet = UNet(memory)
    denoiser = Denoiser(unet, table)
    [answer] = denoiser([asked(12)])
    torch.testing.assert_close(answer.guided, asked(12).x)
    assert unet.calls == [12, 6, 3, 3, 3, 3]
    assert memory.trimmed == 2
    denoiser([asked(12)])
    assert unet.calls[6:] == [3, 3, 3, 3]


def test_what_does_not_fit_alone_is_an_error(table, measured):
    measured(memory := Memory(total=100, each=300), first=16)
    with pytest.raises(torch.OutOfMemoryError):
        Denoiser(UNet(memory), table)([asked(3)])


def test_steady_calls_take_what_does_not_depend_on_memory(table, measured):
    memory = measured(Memory(total=1000, each=10), first=4)
    unet = UNet(memory)
    memory.calls.append(0)
    denoiser = Denoiser(unet, table, steady=True)
    denoiser([asked(8)])
    denoiser([asked(8)])
    assert unet.calls == [4, 4, 4, 4]


def test_a_limit_holds_whatever_there_is_room_for():
    assert Room(object(), cells=640, limit=3).most("kind", 64) == 3
    assert Room(object(), cells=640).most("kind", 64) == 10
    assert Room(object(), cells=640).most("kind", 6400) == 1


def test_a_cpu_has_no_gauge():
    assert room.gauge(torch.device("cpu")) is None


@pytest.mark.gpu
def test_a_cuda_device_says_what_a_call_took():
    gauge = room.gauge(torch.device("cuda:0"))
    held = torch.zeros(1 << 20, device="cuda")
    gauge.begin()
    more = torch.zeros(3 << 20, device="cuda")
    del more
    assert gauge.taken() == 3 << 22
    assert gauge.free() > 1 << 20
    del held
