"""A checkpoint of full size: how fast its parts are there, and how much memory that takes beside them."""

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from transformers import CLIPTextConfig, CLIPTextModel

from benchmarks.measure import Answer, Beside, Goal, Row, medians
from nodes.diffusion import lending, load, original

QUESTION = "How long until UNet, text encoder and VAE of a Stable Diffusion 1.5 file of 2.1 GB are there, on a CPU?"
ROUNDS = 3
LIMIT = 1.1

UNET = {"cross_attention_dim": 768}
VAE = {
    "block_out_channels": (128, 256, 512, 512),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 2,
}
CLIP = {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12, "hidden_act": "quick_gelu"}
PREFIXES = (
    (original.unet, "model.diffusion_model."),
    (original.vae, "first_stage_model."),
    (original.clip, "cond_stage_model.transformer.text_model."),
)
_MEMORY = """
import re, sys, torch, diffusers, transformers
from nodes.diffusion import load
def most(): return int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1]) * 1024
diffusers.UNet2DConditionModel, diffusers.AutoencoderKL, transformers.CLIPTextModel
dtype = getattr(torch, sys.argv[2])
before = most()
parts = [part(sys.argv[1], dtype=dtype) for part in (load.unet, load.vae, load.text_encoder)]
held = sum(weight.nbytes for part in parts for weight in part.parameters())
print(held, most() - before)
"""


def answer() -> Answer:
    with tempfile.TemporaryDirectory() as folder:
        file = _written(Path(folder) / "sd15.safetensors")
        costs = medians({way: partial(_alone, way, file) for way in WAYS}, ROUNDS)
        memory = {dtype: _memory(file, dtype) for dtype in ("float16", "float32")}
    return Answer(QUESTION, [*_times(costs), *_memories(memory)], notes=_notes())


def told(way: str, file: Path) -> None:
    """Load once in this process, after everything was built once, and print the seconds."""
    _built()
    began = time.perf_counter()
    with lending.postponed():
        made = WAYS[way](file)
        seconds = time.perf_counter() - began
    print(seconds)
    del made


def _times(costs: dict[str, float]) -> Iterator[Row]:
    goal = Goal(LIMIT, of="ratio")
    mapped = Beside("load_file that maps, and building", costs["mapped"])
    yield Row("as it is, float16: there", costs["ours, there"], mapped, goal)
    read = Beside("load_file that reads, and building", costs["read"])
    yield Row("as it is, float16: our own", costs["ours"], read, goal)
    converted = Beside("load_file, .float(), and building", costs["converted"])
    yield Row("as float32", costs["ours, float32"], converted, goal)


def _memories(memory: dict[str, tuple[int, int]]) -> Iterator[Row]:
    for dtype, (held, taken) in memory.items():
        beside = Beside("the weights' MiB", held >> 20)
        yield Row(f"most MiB while loading as {dtype}", taken >> 20, beside, Goal(LIMIT, of="ratio"), counted=True)


def _notes() -> tuple[str, ...]:
    lent = (
        "Weights that are used as they lie in the file are there as soon as it is mapped, as load_file's are. But no "
        "part computes with them there: threads read them, beside the first computations, and each part waits for its "
        "own. So weights stay what they are when the file is written anew in its place, which changes mapped ones, or "
        "gets shorter, which ends a process that has it mapped."
    )
    first = (
        "The file is in the system's memory already. Building is that of the modules, without values. Each is the "
        "first load of a process: a later one may find memory that the process has kept."
    )
    return first, lent


def _parts(file: Path, dtype: torch.dtype) -> list[torch.nn.Module]:
    return [part(file, dtype=dtype) for part in (load.unet, load.vae, load.text_encoder)]


def _own(file: Path) -> object:
    """Load, and wait until all is read."""
    with lending.postponed() as waiting:
        made = _parts(file, torch.float16)
    for wait in waiting:
        wait()
    return made


WAYS: Mapping[str, Callable[[Path], object]] = {
    "ours, there": lambda file: _parts(file, torch.float16),
    "ours": _own,
    "ours, float32": lambda file: _parts(file, torch.float32),
    "mapped": lambda file: (load_file(file), _built()),
    "read": lambda file: (load_file(file, backend="pread"), _built()),
    "converted": lambda file: ({name: each.float() for name, each in load_file(file).items()}, _built()),
}


def _alone(way: str, file: Path) -> float:
    """Seconds that a way of loading takes in a process of its own."""
    code = f"import torch; torch.set_num_threads({torch.get_num_threads()}); import sys; from pathlib import Path; "
    code += "from benchmarks import loading; loading.told(sys.argv[1], Path(sys.argv[2]))"
    return float(subprocess.run((sys.executable, "-c", code, way, file), check=True, capture_output=True).stdout)


def _built() -> list[torch.nn.Module]:
    with torch.device("meta"):
        return [UNet2DConditionModel(**UNET), AutoencoderKL(**VAE), CLIPTextModel(CLIPTextConfig(**CLIP))]


def _written(path: Path) -> Path:
    """A file of the true shapes with random numbers."""
    torch.manual_seed(0)
    tensors = {}
    for module, (spelling, prefix) in zip(_built(), PREFIXES, strict=True):
        shapes = {name: weight.shape for name, weight in module.state_dict().items()}
        for name, place in original.tensors(shapes, spelling).items():
            tensors[prefix + place] = torch.rand(shapes[name]).half()
    save_file(tensors, path)
    return path


def _memory(file: Path, dtype: str) -> tuple[int, int]:
    """Bytes of the weights, and by how much the most that a process held grew."""
    command = (sys.executable, "-c", _MEMORY, str(file), dtype)
    held, taken = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
    return int(held), int(taken)
