"""A batch: calls on their way together, a round of all of them at a time; further calls may join between two rounds."""

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum, auto
from functools import partial
from typing import Any

from engine import errors
from engine.host import Host
from engine.node import Arguments, Many, Rounds
from engine.run import Call, Kind

LATER = object()
"""Stands for the result of a call that was given up because another one in its batch was cancelled."""


class Stage(Enum):
    """What was given up so that a batch fits into memory."""

    FRESH = auto()
    """Nothing."""
    FREED = auto()
    """All that was kept, and not in use."""
    SCARCE = auto()
    """That, and the nodes are told to work in smaller pieces."""


@dataclass(slots=True)
class Done:
    """A call that is finished, and what it gave, or met instead."""

    call: Call
    result: Any


class Batch:
    """Calls of one node type on their way. Others of this `kind` may join; none where that is None."""

    def __init__(
        self, calls: Sequence[Call], kind: Kind | None = None, stage: Stage = Stage.FRESH, *, freed: int = 0
    ) -> None:
        self.kind = kind
        self.stage = stage
        self.freed = freed
        """Bytes that were freed for it."""
        self._companion = _companion(calls[0])
        self._rounds: Rounds | None = None
        self._seats: dict[int, Call] = {}
        self._count = 0
        self._newcomers: list[Call] = []
        self.join(calls)

    @property
    def calls(self) -> list[Call]:
        """The calls that are not finished, oldest first."""
        return list(self._seats.values())

    def join(self, calls: Sequence[Call]) -> None:
        """Let further calls take part from the next round on."""
        self._seats.update(enumerate(calls, self._count))
        self._count += len(calls)
        self._newcomers += calls

    def advance(self, device: Host) -> list[Done]:
        """Make a round, and give the calls that it finished. Each takes its share of the seconds of the round.

        What the companion raises ends all calls; a cancellation those of the cancelled runs, while others stand there
        as LATER.
        """
        before = {number: call.context.loading for number, call in self._seats.items()}
        began = time.perf_counter()
        outcome = self._round(device)
        self._share(time.perf_counter() - began, before)
        return [Done(self._seats.pop(number), outcome[number]) for number in sorted(outcome)]

    def close(self) -> None:
        """End it here, and give back the models of what is on its way."""
        for call in self._seats.values():
            call.context.release()
        self._seats.clear()
        self._abandon()

    def _round(self, device: Host) -> Mapping[int, Any]:
        try:
            with device:
                finished = self._next()
                for call in self._seats.values():
                    call.context.settle()
                if len(finished) == len(self._seats) and self._rounds is not None:
                    self._rounds.close()
                if finished:
                    device.sync()
                else:
                    device.pace()
        except errors.Cancelled as end:
            self._abandon()
            blamed = [number for number, call in self._seats.items() if call.run.token.cancelled] or self._seats
            return {number: end if number in blamed else LATER for number in self._seats}
        except Exception as error:  # noqa: BLE001  nodes may raise anything
            self._abandon()
            return dict.fromkeys(self._seats, self._cause(error))
        return finished

    def _cause(self, error: Exception) -> Exception:
        """Why something went wrong: a file that changed while a model was loaded, where there is one."""
        if isinstance(error, errors.FileChanged):
            return error
        try:
            for call in self._seats.values():
                call.context.settle()
        except errors.FileChanged as changed:
            return changed
        except Exception:  # noqa: BLE001  this is what went wrong, or another thing that did
            return error
        return error

    def _abandon(self) -> None:
        with suppress(Exception):
            if self._rounds is not None:
                self._rounds.close()

    def _next(self) -> Mapping[int, Any]:
        given = [call.arguments for call in self._newcomers]
        self._newcomers = []
        try:
            if self._rounds is None:
                self._rounds = self._companion(given)
                finished = next(self._rounds)
            else:
                finished = self._rounds.send(given)
        except StopIteration:
            left = len(self._seats)
            raise errors.OutputRefused(f"{self._type}: many ended with {left} of its calls unfinished") from None
        if strange := sorted(finished.keys() - self._seats.keys()):
            raise errors.OutputRefused(f"{self._type}: many gave results for {strange}, which are on their way no more")
        return finished

    def _share(self, seconds: float, before: Mapping[int, float]) -> None:
        """Whoever loaded a model answers for it alone; all else is shared evenly."""
        loading = {number: call.context.loading - before[number] for number, call in self._seats.items()}
        share = max(seconds - sum(loading.values()), 0.0) / len(self._seats)
        for number, call in self._seats.items():
            call.seconds += share + loading[number]
            call.cost += share

    @property
    def _type(self) -> str:
        return next(iter(self._seats.values())).step.definition.type


def _companion(call: Call) -> Many:
    definition = call.step.definition
    if definition.many is None or call.run.exact:
        return partial(_alone, definition.function)
    return definition.many


def _alone(function: Callable[..., Any], calls: Sequence[Arguments]) -> Rounds:
    """A single call, in one round."""
    (arguments,) = calls
    yield {0: function(**arguments)}
