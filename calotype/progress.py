"""What a person sees while a graph runs: bars on a terminal, plain lines elsewhere."""

from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from engine.event import Event, NodeFinished, NodeProgress, NodeStarted, Outcome, Trouble

COLOURS = {Outcome.RAN: "yellow", Outcome.HIT: "green", Outcome.UNNEEDED: "dim", Outcome.FAILED: "red"}


class Reporter:
    """Listens to a run. Everything goes to `console`, which should write to standard error."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bars: dict[str, TaskID] = {}
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
            case NodeStarted():
                self._bars[event.node] = self._progress.add_task(event.node, total=None)
            case NodeProgress() if event.node in self._bars:
                self._progress.update(self._bars[event.node], completed=event.done, total=event.total)
            case NodeFinished():
                self._finished(event)
            case Trouble():
                where = f"{event.node}: " if event.node else ""
                self._console.print(f"  [red]note[/]   {where}{event.message}", highlight=False)

    def _finished(self, event: NodeFinished) -> None:
        if event.node in self._bars:
            self._progress.remove_task(self._bars.pop(event.node))
        seconds = f"{event.seconds:7.3f} s" if event.outcome is Outcome.RAN else " " * 9
        line = f"  {event.outcome:<8} {seconds}  {event.node:<22} {event.type:<16} {event.reason}"
        self._console.print(line.rstrip(), style=COLOURS[event.outcome], highlight=False, markup=False, soft_wrap=True)
