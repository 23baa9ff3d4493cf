"""How many latents a UNet call takes: as many as memory holds, by what earlier calls took."""

from collections.abc import Hashable
from typing import Protocol
from weakref import WeakKeyDictionary

import torch

from nodes.diffusion.recording import forget

MOST_CELLS = 64 * 64 * 64
"""Latent cells of a call where nothing was measured yet: 64 pictures of 512 x 512 px."""
CPU_CELLS = 16 * 64 * 64
"""The same on a CPU, where more at a time is no faster: 16 pictures of 512 x 512 px."""
SHARE = 0.9
"""The part of the free memory that a call may take."""


class Gauge(Protocol):
    """Reads a device's memory, in bytes."""

    def free(self) -> int:
        """What a call may take."""

    def begin(self) -> None:
        """A call begins."""

    def taken(self) -> int:
        """The most that was taken at any time since then."""

    def trim(self) -> None:
        """Give back what lies about unused, after memory ran out."""


class CudaGauge:
    """The memory of a CUDA device. Nothing here waits for the device."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._before = 0

    def free(self) -> int:
        """What the driver has, and what the allocator holds unused, also for recorded calls: they give it up."""
        held = torch.cuda.memory_reserved(self._device) - torch.cuda.memory_allocated(self._device)
        return int(torch.cuda.mem_get_info(self._device)[0]) + held

    def begin(self) -> None:
        """Count from here."""
        torch.cuda.reset_peak_memory_stats(self._device)
        self._before = torch.cuda.memory_allocated(self._device)

    def taken(self) -> int:
        """The peak above where it began."""
        return torch.cuda.max_memory_allocated(self._device) - self._before

    def trim(self) -> None:
        """Give the allocator's blocks back to the driver, those of recorded calls too."""
        forget()
        torch.cuda.empty_cache()


_MEASURED: WeakKeyDictionary[object, dict[Hashable, float]] = WeakKeyDictionary()
"""Bytes that a latent took, by network and by what is alike within a call."""


class Room:
    """The size of the calls of one network.

    With a `limit` calls take no more latents than that. Without a `gauge` they take a number of cells that depends on
    nothing, as exact results want it. When memory runs out calls are halved, and stay so.
    """

    def __init__(self, network: object, cells: int, gauge: Gauge | None = None, limit: int | None = None) -> None:
        self._cells = cells
        self._gauge = gauge
        self._limit = limit
        self._bytes = _MEASURED.setdefault(network, {}) if gauge else {}

    def most(self, kind: Hashable, cells: int) -> int:
        """How many latents of so many cells a call of this kind takes, at least 1."""
        size = self._bytes.get(kind)
        most = int(SHARE * self._gauge.free() / size) if self._gauge and size else self._cells // cells
        return max(1, most if self._limit is None else min(most, self._limit))

    def begin(self) -> None:
        """A call begins."""
        if self._gauge is not None:
            self._gauge.begin()

    def end(self, kind: Hashable, latents: int) -> None:
        """A call of so many latents is over; what they took is remembered."""
        if self._gauge is not None:
            self._bytes[kind] = max(self._bytes.get(kind, 0.0), self._gauge.taken() / latents, 1.0)

    def halve(self, latents: int) -> None:
        """Memory ran out in a call of so many latents, more than one."""
        self._limit = latents // 2
        if self._gauge is not None:
            self._gauge.trim()


def gauge(device: torch.device) -> Gauge | None:
    """What reads the memory of a device; nothing where it has no ledger of what a call takes."""
    return CudaGauge(device) if device.type == "cuda" else None
