"""Memory that was freed is kept for the next step: no page is faulted in twice."""

import os
import resource
import subprocess
import sys
import threading  # noqa: F401  for the processes that are started
from pathlib import Path

import pytest
import torch

from engine import heap
from engine.device import Device

MIB = 1 << 20
SIZES = (40, 3, 11, 7)
"""Of blocks, in MiB, that come and go together; glibc maps the first one anew each time, however often it comes."""
PAGES = SIZES[0] * MIB // os.sysconf("SC_PAGE_SIZE")

pytestmark = pytest.mark.skipif(heap._library() is None, reason="another C library than glibc")


def faults():
    """Page faults of taking, filling and freeing blocks, once they have come and gone several times."""
    found = 0
    for _ in range(8):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        blocks = [torch.ones(size * MIB, dtype=torch.uint8) for size in SIZES]
        del blocks
        found = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
    return found


def alone(code):
    """What a process of its own prints."""
    code = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); from test_heap import *; {code}"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()


def test_blocks_that_were_freed_are_taken_again_without_faults():
    assert int(alone("Device('cpu'); print(faults())")[0]) < PAGES / 4


def test_so_it_is_on_another_thread():
    code = "Device('cpu'); t = threading.Thread(target=lambda: print(faults())); t.start(); t.join()"
    assert int(alone(code)[0]) < PAGES / 4


def test_without_it_every_page_is_faulted_in_again():
    assert int(alone("print(faults())")[0]) >= PAGES


def test_what_somebody_has_set_up_stays(monkeypatch):
    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "131072")
    assert heap.keep() is False


def test_trimming_gives_memory_back():
    device = Device("cpu")
    blocks = [torch.ones(SIZES[0] * MIB, dtype=torch.uint8) for _ in range(4)]
    held = _resident()
    del blocks
    device.trim()
    assert held - _resident() > 3 * SIZES[0] * MIB


def _resident():
    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_where_there_is_no_glibc_nothing_happens(monkeypatch):
    monkeypatch.setattr(heap, "_library", lambda: None)
    assert heap.keep() is False
    heap.give_back()
