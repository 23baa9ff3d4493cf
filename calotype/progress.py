"""What a person sees while a graph runs: bars on a terminal, plain lines elsewhere."""

from types import TracebackType
from typing import Self

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from engine.event import (
    Event,
    NodeFinished,
    NodeProgress,
    NodeStarted,
    Outcome,
    RunFinished,
    RunStarted,
    Trouble,
    Warned,
)

SHOWN = 8
"""Names in one line, at most; the report has them all."""
COLOURS = {Outcome.RAN: "yellow", Outcome.HIT: "green", Outcome.UNNEEDED: "dim", Outcome.FAILED: "red"}


class Reporter:
    """Listens to a run. Everything goes to `console`, which should write to standard error."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bars: dict[str, TaskID] = {}
        self._idle: dict[tuple[Outcome, str], list[str]] = {}
        self._progress = Progress(
            TextColumn("  {task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )

    def __enter__(self) -> Self:
        """Begin to draw."""
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Leave the lines, take the bars away."""
        self._progress.stop()

    def __call__(self, event: Event) -> None:
        """Show one event."""
        match event:
            case RunStarted():
                self._forget()  # a service begins a run anew that a restart interrupted
            case NodeStarted():
                self._bars[event.node] = self._progress.add_task(event.node, total=None)
            case NodeProgress() if event.node in self._bars:
                self._progress.update(self._bars[event.node], completed=event.done, total=event.total)
            case NodeFinished(outcome=Outcome.RAN | Outcome.FAILED):
                self._finished(event)
            case NodeFinished():
                self._idle.setdefault((event.outcome, event.reason), []).append(event.node)
            case RunFinished():
                self._list_idle()
            case Warned():
                self._say("[yellow]warning[/]", event)
            case Trouble():
                self._say("[red]note[/]   ", event)

    def _forget(self) -> None:
        """Take away what an earlier attempt left."""
        for bar in self._bars.values():
            self._progress.remove_task(bar)
        self._bars.clear()

    def _finished(self, event: NodeFinished) -> None:
        if event.node in self._bars:
            self._progress.remove_task(self._bars.pop(event.node))
        line = f"  {event.outcome:<8} {event.seconds:7.3f} s  {event.node:<25} {event.type:<20} {event.reason}"
        self._print(line, event.outcome)

    def _say(self, kind: str, event: Warned | Trouble) -> None:
        where = f"{event.node}: " if event.node else ""
        self._console.print(f"  {kind} {escape(where + event.message)}", highlight=False, soft_wrap=True)

    def _list_idle(self) -> None:
        """What did not run, in one line for each reason."""
        for (outcome, reason), names in self._idle.items():
            listed = ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")
            why = "" if reason == outcome else f" ({reason})"
            self._print(f"  {outcome:<8} {len(names):>9}  {listed}{why}", outcome)
        self._idle.clear()

    def _print(self, line: str, outcome: Outcome) -> None:
        self._console.print(line.rstrip(), style=COLOURS[outcome], highlight=False, markup=False, soft_wrap=True)
