"""`python -m benchmarks [QUESTION ...] [--save]`: all of them, or those that are named."""

import argparse
from importlib import import_module
from pathlib import Path

from benchmarks.measure import Answer, machine, steady, today

QUESTIONS = ("planning", "edit", "store", "eviction", "startup", "loading", "service")
RESULTS = Path(__file__).parent / "results"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("questions", nargs="*", metavar="QUESTION", help=f"one of {', '.join(QUESTIONS)}")
    parser.add_argument("--save", action="store_true", help="file the answers under benchmarks/results")
    given = parser.parse_args()
    if unknown := [name for name in given.questions if name not in QUESTIONS]:
        parser.error(f"no question {', '.join(unknown)}: expected {', '.join(QUESTIONS)}")
    steady()
    print(machine(), flush=True)
    for name in given.questions or QUESTIONS:
        answer = _asked(name)
        print(f"\n## {name}\n\n{answer.text()}", flush=True)
        if given.save:
            _file(name, answer)


def _asked(name: str) -> Answer:
    answer: Answer = import_module(f"benchmarks.{name}").answer()
    return answer


def _file(name: str, answer: Answer) -> None:
    RESULTS.mkdir(exist_ok=True)
    text = f"# {name}\n\n{machine()}\n\n{answer.text()}\n"
    (RESULTS / f"{today()}-{name}.md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
