"""`python -m pocket.train STAGE[:MINUTES[/TOTAL]] ...`: make Pocket from nothing; `pocket/TRAINING.md` says where.

Stages, in order: data, tokenizer, vae, unet, lora, embedding, export. Each leaves its result under --work. MINUTES are
those of this session, a stage's learning rate falls over TOTAL minutes, that of all sessions.
"""

import argparse
from collections.abc import Callable, Mapping
from pathlib import Path

import torch

from pocket import FOLDER
from pocket.training import network
from pocket.training.encoding import decoder, latents, vae
from pocket.training.export import export
from pocket.training.extras import embedding, lora
from pocket.training.job import Job, Span
from pocket.training.painting import unet
from pocket.training.preparing import data, tokenizer

STAGES: Mapping[str, Callable[[Job], None]] = {
    stage.__name__: stage for stage in (data, tokenizer, vae, decoder, latents, unet, lora, embedding, export)
}


def main() -> None:
    """Run stages one after the other."""
    given = arguments().parse_args()
    device = torch.device(given.device)
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.benchmark = True
    if given.threads:
        torch.set_num_threads(given.threads)
    job = Job(
        work=given.work,
        out=given.out,
        start=given.start,
        to=given.to,
        device=device,
        compiled=device.type == "cuda" and not given.eager,
        spans=dict(given.stages),
        batch=given.batch,
        concepts=given.concepts,
        seed=given.seed,
        lean=given.lean,
        crew=given.crew,
        shape=network.LEAN if given.lean else network.POCKET,
    )
    for name, _ in given.stages:
        STAGES[name](job)


def stage(text: str) -> tuple[str, Span]:
    """A stage, its minutes and those of all its sessions, as in `unet:4.5/15`."""
    name, _, span = text.partition(":")
    if name not in STAGES:
        raise argparse.ArgumentTypeError(f"expected one of {', '.join(STAGES)}, got {name!r}")
    return name, Span(*(float(part) for part in span.split("/") if part))


def crew(text: str) -> tuple[int, int]:
    """Which of how many processes, as in `1/2`."""
    me, _, of = text.partition("/")
    return int(me), int(of)


def arguments() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m pocket.train", description=__doc__)
    parser.add_argument("stages", nargs="+", type=stage, metavar="STAGE[:MINUTES[/TOTAL]]", help=", ".join(STAGES))
    parser.add_argument("--work", type=Path, default=Path(".cache/pocket"), help="where everything is kept")
    parser.add_argument("--out", type=Path, help="a folder that gets a copy of all that shall travel, e.g. $OUT")
    parser.add_argument("--start", type=Path, help="a model to begin from, where --work holds no checkpoint")
    parser.add_argument("--to", type=Path, default=FOLDER, help="where export writes the model")
    parser.add_argument("--batch", type=int, default=0, help="pictures of 128x128 a step")
    parser.add_argument("--concepts", type=int, default=0, help="how many to learn; else a timing decides")
    parser.add_argument("--lean", action="store_true", help="what a CPU can learn: a smaller model of fewer things")
    parser.add_argument("--crew", type=crew, default=(0, 1), help="0/2, 1/2: one of two that train a UNet together")
    parser.add_argument("--device", default="cuda:0" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--eager", action="store_true", help="compile nothing")
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0)
    return parser


if __name__ == "__main__":
    main()
