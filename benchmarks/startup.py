"""The command line's start, and a run that computes nothing."""

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping

from benchmarks import pipeline
from benchmarks.measure import Answer, Beside, Goal, Row, medians, timed

QUESTION = "How long until the command line answers, and until it hands out a picture that is there already?"
ROUNDS = 7
PEER = "import diffusers, torch"
HEAVY = ("diffusers", "transformers")
"""What a run that computes nothing has no use for."""

CLI = (sys.executable, "-m", "calotype")
_IMPORTED = re.compile(r"^import time:[^|]*\|[^|]*\|\s*(\w+)", re.MULTILINE)


def answer() -> Answer:
    with tempfile.TemporaryDirectory() as folder:
        cached = ("run", pipeline.CHAINED, "--cache", f"{folder}/cache", "--out", f"{folder}/out")
        _started(*CLI, *cached)
        costs = medians(
            {
                "help": lambda: timed(lambda: _started(*CLI, "--help")),
                "cached": lambda: timed(lambda: _started(*CLI, *cached)),
                "torch": lambda: timed(lambda: _started(sys.executable, "-c", "import torch")),
                "peer": lambda: timed(lambda: _started(sys.executable, "-c", PEER)),
            },
            ROUNDS,
        )
        imported = _imported(cached)
    return Answer(QUESTION, list(_rows(costs, imported)), notes=_notes())


def _rows(costs: Mapping[str, float], imported: frozenset[str]) -> Iterator[Row]:
    peer = Beside(f"python -c '{PEER}'", costs["peer"])
    yield Row("calotype --help", costs["help"], peer, Goal(0.5))
    yield Row("calotype run, everything cached", costs["cached"], peer, Goal(1, of="ratio"))
    yield Row("calotype run, everything cached", costs["cached"], Beside("python -c 'import torch'", costs["torch"]))
    heavy = len(imported.intersection(HEAVY))
    yield Row(f"of {' and '.join(HEAVY)}, a cached run imports", heavy, goal=Goal(0), counted=True)


def _imported(command: tuple[str, ...]) -> frozenset[str]:
    """The top-level packages that a command of ours imports."""
    told = _started(sys.executable, "-X", "importtime", "-m", "calotype", *command).stderr
    return frozenset(_IMPORTED.findall(told))


def _started(*command: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != "CALOTYPE_CACHE"}
    return subprocess.run(command, check=True, capture_output=True, text=True, env=environment)


def _notes() -> tuple[str, ...]:
    return (
        "A new process each time; the files of Python and its packages are in the page cache.",
        f"The cached run is the saved graph {pipeline.CHAINED}: it is read, planned, its pictures restored and saved.",
    )
