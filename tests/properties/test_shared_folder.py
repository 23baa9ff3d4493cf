"""Several processes at work in one cache folder, some of them killed: every result is the one from scratch."""

import random
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest
from oracle import CONTENTS, NAMES, Sketch, from_scratch
from toys import REGISTRY

from engine.disk import decode
from engine.engine import Engine
from engine.file import Files

BUDGET = 20_000
TESTS = Path(__file__).parent.parent


def work(folder, seed, runs):
    """Random graphs and edits against the shared folder; raises AssertionError on the first wrong result."""
    draw, sketch = random.Random(seed), Sketch()
    numbers = [draw.randrange(50) for _ in range(3)]
    options = {"files": Files([folder]), "memory": 1000, "disk": BUDGET, "strict": True}
    with Engine(REGISTRY, cache=folder / "cache", **options) as house:
        sketch.add(list(REGISTRY).index("toy.blob"), 0, 1)
        for _ in range(runs):
            numbers = [draw.randrange(50) for _ in range(3)]
            getattr(sketch, draw.choice(["add", "param", "param", "link", "remove"]))(*numbers)
            graph = sketch.document(draw.randrange(50))
            assert dict(house.run(graph).outputs) == from_scratch(graph, folder)


@pytest.fixture
def folder(tmp_path):
    for name, content in zip(NAMES, CONTENTS, strict=False):
        (tmp_path / name).write_text(content)
    return tmp_path


def start(folder, seed, runs):
    call = f"work(Path({str(folder)!r}), {seed}, {runs})"
    code = f"from pathlib import Path; from properties.test_shared_folder import work; {call}"
    return subprocess.Popen([sys.executable, "-c", code], cwd=TESTS, stderr=subprocess.PIPE, text=True)


def test_processes_share_a_folder_and_being_killed_harms_nobody(folder):
    workers = [start(folder, seed, 120) for seed in (1, 2)]
    doomed = [start(folder, seed, 100_000) for seed in (3, 4)]
    draw = random.Random(5)
    for process in doomed:
        time.sleep(1 + draw.random())
        process.send_signal(signal.SIGKILL)
    for process in doomed:
        process.communicate(timeout=60)
        assert process.returncode == -signal.SIGKILL
    for process in workers:
        _, said = process.communicate(timeout=120)
        assert process.returncode == 0, said
    with sqlite3.connect(folder / "cache" / "calotype.sqlite") as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        held = connection.execute("SELECT SUM(bytes) FROM stored").fetchone()[0]
    assert 0 < held <= 2 * BUDGET, "the budget is shared"
    for path in folder.glob("cache/values/*/*.safetensors"):
        decode(path.read_bytes())
    work(folder, 6, 30)
