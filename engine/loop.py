"""The loop: take a step that is ready, run it, hand back what it gave, until nothing is left; of one run or of many.

Many runs advance side by side, a step of each in turn. What one of them has made the others take. Steps whose node has
a `many` companion wait until nothing else is ready in any run, and are then called together, those of one model at a
time.
"""

import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import zip_longest
from typing import Any

from engine import errors
from engine.budget import size_text
from engine.event import NodeStarted
from engine.run import Call, Resources, Run

FUSED = 32
"""Calls that are handed to a `many` companion at a time, at most."""


class Loop:
    """Runs on one device. `aside` gives way to other threads while a node works."""

    def __init__(self, resources: Resources, aside: Callable[[], AbstractContextManager[None]] = nullcontext) -> None:
        self._resources = resources
        self._aside = aside
        self._active: deque[Run] = deque()
        self._company = False
        """Whether another run may have made what a step gives."""

    def add(self, run: Run) -> None:
        """Take a run on."""
        self._company = self._company or bool(self._active)
        self._active.append(run)

    def advance(self) -> Run | None:
        """Work until a run is complete, or has `ended` early; None when there are no runs any more."""
        while self._active:
            for run in self._active:
                if run.ended is not None or (run.idle and self._complete(run)):
                    self._active.remove(run)
                    return run
            if not self._step():
                self._fuse()
        return None

    def _step(self) -> bool:
        """One call of each run in turn; whether anything but fusing is left to do."""
        stepped = False
        for run in self._active:
            try:
                call = None if run.ended else run.advance(company=self._company)
            except (errors.Cancelled, errors.FileChanged) as end:
                run.ended, call = end, None
            if call is not None:
                self._call([call])
            stepped = stepped or call is not None or run.ended is not None or run.idle
        return stepped

    def _complete(self, run: Run) -> bool:
        try:
            return run.collect()
        except (errors.Cancelled, errors.FileChanged) as end:
            run.ended = end
            return True

    def _fuse(self) -> None:
        """Call the oldest postponed steps of one kind together, each run's in turn, equal ones once."""
        chosen: dict[bytes, tuple[Run, int]] = {}
        for run, position in self._alike():
            key = run.key(position)
            if key not in chosen and len(chosen) == FUSED:
                continue
            run.postponed.remove(position)
            if key in chosen:
                run.again(position)
            elif not self._company or not run.take(position):
                chosen[key] = (run, position)
        self._call([call for run, position in chosen.values() if (call := run.call(position)) is not None])

    def _alike(self) -> list[tuple[Run, int]]:
        """The postponed steps of one kind: the first of each run, then the second of each, and so on."""
        kind = next(run.kind(min(run.postponed)) for run in self._active if run.postponed)
        lists = [
            [(run, position) for position in sorted(run.postponed) if run.kind(position) == kind]
            for run in self._active
        ]
        return [step for turn in zip_longest(*lists) for step in turn if step is not None]

    def _call(self, calls: Sequence[Call]) -> None:
        if not calls:
            return
        for call in calls:
            call.run.listener(NodeStarted(call.run.id, call.step.id, call.step.definition.type, call.reason))
        began = time.perf_counter()
        try:
            returned = self._attempt(calls)
        finally:
            for call in calls:
                call.context.release()
        seconds = (time.perf_counter() - began) / len(calls)
        for call, result in zip(calls, returned, strict=True):
            self._settle(call, result, seconds)

    def _settle(self, call: Call, result: Any, seconds: float) -> None:
        if result is _LATER:
            call.run.again(call.position)
            return
        try:
            call.run.settle(call, result, seconds)
        except (errors.Cancelled, errors.FileChanged) as end:
            call.run.ended = end.with_traceback(None)

    def _attempt(self, calls: Sequence[Call]) -> list[Any]:
        """The out-of-memory ladder: free what is unpinned and try again, then smaller groups, then smaller pieces."""
        outcome = self._invoke(calls)
        if not self._ran_out(outcome):
            return outcome
        freed = self._free(calls, outcome)
        outcome = self._invoke(calls)
        if not self._ran_out(outcome):
            return outcome
        if len(calls) > 1:
            self._free(calls, outcome)
            half = len(calls) // 2
            return [*self._attempt(calls[:half]), *self._attempt(calls[half:])]
        if not calls[0].context.exact:
            freed += self._free(calls, outcome, scarce=True)
            outcome = self._invoke(calls)
            if not self._ran_out(outcome):
                return outcome
        account = self._resources.ledger.account()
        return [
            errors.OutOfMemory(
                f"out of memory on {self._resources.device.name} after freeing {size_text(freed)}, and nothing is left "
                f"to give up ({account}); use a smaller size, a smaller batch or a smaller model"
            )
        ]

    def _free(self, calls: Sequence[Call], outcome: list[Any], *, scarce: bool = False) -> int:
        """Make ready for another attempt; returns the bytes freed."""
        outcome.clear()  # tracebacks hold what the calls were working on
        for call in calls:
            call.context.again(scarce=scarce)
        freed = self._resources.ledger.free_everything()
        self._resources.device.trim()
        return freed

    def _ran_out(self, outcome: Sequence[Any]) -> bool:
        return any(isinstance(item, Exception) and self._resources.device.out_of_memory(item) for item in outcome)

    def _invoke(self, calls: Sequence[Call]) -> list[Any]:
        """Run the calls; an exception stands where a result would, and _LATER where a call did not take place."""
        definition = calls[0].step.definition
        try:
            with self._aside(), self._resources.device:
                if len(calls) > 1 and definition.many is not None:
                    outcome = list(definition.many([call.arguments for call in calls]))
                else:
                    outcome = [definition.function(**calls[0].arguments)]
                self._resources.device.sync()
        except errors.Cancelled as end:
            blamed = [call for call in calls if call.run.token.cancelled] or calls
            return [end if call in blamed else _LATER for call in calls]
        except Exception as error:  # noqa: BLE001  nodes may raise anything
            return [error] * len(calls)
        if len(outcome) != len(calls):
            wrong = errors.OutputRefused(f"{definition.type}: many gave {len(outcome)} results for {len(calls)} calls")
            return [wrong] * len(calls)
        return outcome


_LATER = object()
"""Stands for the result of a call that was given up because another one in its group was cancelled."""
