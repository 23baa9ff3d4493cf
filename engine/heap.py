"""The C library's heap: memory that was freed is kept for what comes next, not given back and fetched again.

A UNet call takes and frees the same gigabyte at every step. glibc returns large blocks to the system as soon as they
are free, and every page of them is faulted in again at the next step: on a virtual machine that is a third of the time.
"""

import ctypes
import os
from typing import Any

TRIM_THRESHOLD, TOP_PAD, MMAP_THRESHOLD = -1, -2, -3
"""Names of mallopt(3)."""
LARGEST = 1 << 30
"""Bytes of a block that still comes from the heap; larger ones are few, and given back when they are free."""
AHEAD = 64 << 20
"""Bytes that the heap grows by beyond what is asked for."""
NEVER = (1 << 31) - 1
SETTINGS = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_TOP_PAD_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_MMAP_MAX_", "GLIBC_TUNABLES")
"""Variables of the environment by which somebody has said how they want it."""


def keep() -> bool:
    """Keep freed memory, for the whole process; False where that is not glibc's heap, or somebody has set it up."""
    library = _library()
    if library is None or any(name in os.environ for name in SETTINGS):
        return False
    kept = ((MMAP_THRESHOLD, LARGEST), (TRIM_THRESHOLD, NEVER), (TOP_PAD, AHEAD))
    return all(library.mallopt(name, value) for name, value in kept)


def give_back() -> None:
    """Return to the system what is free by now."""
    library = _library()
    if library is not None:
        library.malloc_trim(0)


def _library() -> Any:
    """The C library; None where it is not glibc."""
    try:
        library = ctypes.CDLL(None)
    except (OSError, TypeError):
        return None
    return library if hasattr(library, "gnu_get_libc_version") and hasattr(library, "malloc_trim") else None
