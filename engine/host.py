"""Host: the machine's own memory as a device. `engine.device.Device` is the same for torch."""

from collections.abc import Sequence
from typing import Protocol


class Parked(Protocol):
    """A module's tensors that moved from the device to the host; the module itself is the same."""

    nbytes: int

    def back(self) -> None:
        """Move all of them back onto the device, or raise and leave all of them where they are."""


class Host:
    """Where nodes run when nothing but Python is needed."""

    name = "cpu"

    @property
    def kind(self) -> str:
        """Device class, part of every key."""
        return "cpu"

    def sync(self) -> None:
        """Wait for the device, so that seconds mean something."""

    def pace(self) -> None:
        """Wait until the device has done all but what it was given since the last time."""

    def out_of_memory(self, error: BaseException) -> bool:
        """Whether memory ran out."""
        return isinstance(error, MemoryError)

    def trim(self) -> None:
        """Give freed blocks back, after an out-of-memory error."""

    def park(self, modules: Sequence[object], spare: Sequence[object] = ()) -> Parked | None:
        """Move the tensors of modules to the host, but not those of the ones to `spare`; None where they are there.

        They move in place, each storage once: whoever shares a tensor sees it where it is now.
        """
        return None

    def memory(self) -> int:
        """Bytes a cache may reasonably use: half of what is free."""
        return host_memory() // 2

    def __enter__(self) -> None:
        """Around each node."""

    def __exit__(self, *exc: object) -> None:
        """After each node."""


def host_memory() -> int:
    """Bytes of host memory available now."""
    try:
        with open("/proc/meminfo", encoding="ascii") as lines:  # noqa: PTH123
            for line in lines:
                if line.startswith("MemAvailable:"):
                    return int(line.split()[1]) * 1024
    except OSError:
        pass
    return 4 << 30
