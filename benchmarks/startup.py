"""The command line's start: a run that computes nothing, and the first picture of one that computes everything."""

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping

import torch

import pocket
from benchmarks import pipeline
from benchmarks.measure import Answer, Beside, Goal, Row, medians, timed

QUESTION = "How long until the command line answers, hands out a picture that is there already, and makes one?"
ROUNDS, COLD_ROUNDS = 5, 3
COLD = 1.1
PEER = "import diffusers, torch"
HEAVY = ("diffusers", "transformers")
"""What a run that computes nothing has no use for."""

SCRIPT = """
import sys, torch
from diffusers import DPMSolverMultistepScheduler, StableDiffusionPipeline
torch.set_num_threads(int(sys.argv[3]))
pipeline = StableDiffusionPipeline.from_pretrained(sys.argv[1], safety_checker=None, requires_safety_checker=False)
pipeline.scheduler = DPMSolverMultistepScheduler.from_config(pipeline.scheduler.config, use_karras_sigmas=True)
made = pipeline(
    "smiling face, blue background", num_inference_steps=20, guidance_scale=5.0, width=128, height=128,
    generator=torch.Generator().manual_seed(1),
)
made.images[0].save(sys.argv[2])
"""
"""The graph text2img as a script for diffusers."""
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
        script = (sys.executable, "-c", SCRIPT, str(pocket.FOLDER), f"{folder}/peer.png", str(torch.get_num_threads()))
        first = (*CLI, "run", "text2img", "--device", "cpu", "--out", f"{folder}/first")
        costs |= medians(
            {
                "first": lambda: timed(lambda: _started(*first)),
                "script": lambda: timed(lambda: _started(*script)),
            },
            COLD_ROUNDS,
        )
        imported = _imported(cached)
    return Answer(QUESTION, list(_rows(costs, imported)), notes=_notes())


def _rows(costs: Mapping[str, float], imported: frozenset[str]) -> Iterator[Row]:
    peer = Beside(f"python -c '{PEER}'", costs["peer"])
    yield Row("calotype --help", costs["help"], peer, Goal(0.5))
    yield Row("calotype run, everything cached", costs["cached"], peer, Goal(1, of="ratio"))
    yield Row("calotype run, everything cached", costs["cached"], Beside("python -c 'import torch'", costs["torch"]))
    script = Beside("a script for diffusers", costs["script"])
    yield Row("calotype run, the first picture", costs["first"], script, Goal(COLD, of="ratio"))
    heavy = len(imported.intersection(HEAVY))
    yield Row(f"of {' and '.join(HEAVY)}, a cached run imports", heavy, goal=Goal(0), counted=True)


def _imported(command: tuple[str, ...]) -> frozenset[str]:
    """The top-level packages that a command of ours imports."""
    told = _started(sys.executable, "-X", "importtime", "-m", "calotype", *command).stderr
    return frozenset(_IMPORTED.findall(told))


def _started(*command: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != "CALOTYPE_CACHE"}
    environment["OMP_NUM_THREADS"] = str(torch.get_num_threads())
    return subprocess.run(command, check=True, capture_output=True, text=True, env=environment)


def _notes() -> tuple[str, ...]:
    return (
        "A new process each time; the files of Python and its packages are in the page cache.",
        f"The cached run is the saved graph {pipeline.CHAINED}: it is read, planned, its pictures restored and saved.",
        (
            "The first picture is that of the saved graph text2img, without a cache folder; the script makes the same "
            "one with StableDiffusionPipeline, from the same files, with as many threads, and saves it."
        ),
    )
