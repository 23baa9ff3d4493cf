"""`python -m benchmarks [QUESTION ...] [--save]`: all of them, or those that are named."""

import argparse
from collections.abc import Callable
from importlib import import_module
from inspect import signature
from pathlib import Path

from benchmarks.measure import Answer, machine, steady, today

QUESTIONS = (
    "planning",
    "edit",
    "store",
    "eviction",
    "work",
    "restart",
    "startup",
    "loading",
    "unet",
    "scaling",
    "attention",
    "decode",
    "sampling",
    "grid",
    "single",
    "prefix",
    "png",
    "service",
)
MODELS = ("pocket", "sd15", "sdxl")
RESULTS = Path(__file__).parent / "results"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("questions", nargs="*", metavar="QUESTION", help=f"one of {', '.join(QUESTIONS)}")
    parser.add_argument("--save", action="store_true", help="file the answers under benchmarks/results")
    parser.add_argument(
        "--model", choices=MODELS, default="pocket", help="what is sampled with, where it can be chosen"
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="and where")
    parser.add_argument("--threads", type=int, default=1, metavar="N", help="torch's threads, of both sides")
    given = parser.parse_args()
    if unknown := [name for name in given.questions if name not in QUESTIONS]:
        parser.error(f"no question {', '.join(unknown)}: expected {', '.join(QUESTIONS)}")
    steady(given.threads)
    print(machine(), flush=True)
    for name in given.questions or QUESTIONS:
        answer = _asked(name, given.model, given.device)
        print(f"\n## {name}\n\n{answer.text()}", flush=True)
        if given.save:
            _file(_filed(name, given.model, given.device), answer)


def _asked(name: str, model: str, device: str) -> Answer:
    """The answer to a question; one that takes a subject is asked about the model, one that takes a device there."""
    ask: Callable[..., Answer] = import_module(f"benchmarks.{name}").answer
    asked = signature(ask).parameters
    if "subject" not in asked:
        return ask(device) if "device" in asked else ask()
    from benchmarks.subject import opened  # noqa: PLC0415  it imports diffusers, which most questions do without

    with opened(model, device) as subject:
        return ask(subject)


def _filed(name: str, model: str, device: str) -> str:
    """What an answer is filed under: about another model or device it does not replace that about the usual one."""
    return "-".join([name, *([model] if model != "pocket" else []), *([device] if device != "cpu" else [])])


def _file(name: str, answer: Answer) -> None:
    RESULTS.mkdir(exist_ok=True)
    text = f"# {name}\n\n{machine()}\n\n{answer.text()}\n"
    (RESULTS / f"{today()}-{name}.md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
