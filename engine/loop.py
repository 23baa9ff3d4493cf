"""The loop: take a step that is ready, run it, hand back what it gave, until nothing is left; of one run or of many.

Many runs advance side by side, a step of each in turn. What one of them has made the others take. Steps whose node has
a `many` companion wait until nothing else is ready in any run; then those of one kind are on their way together, a
round at a time. Between two rounds what is finished is handed back, whatever follows it runs, further runs are taken
on, and further steps of the kind join.
"""

from collections import deque
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import zip_longest

from engine import errors
from engine.batch import LATER, Batch, Done, Stage
from engine.budget import size_text
from engine.digest import Digest
from engine.event import NodeStarted
from engine.models import ModelRef
from engine.run import Call, Kind, Resources, Run

FUSED = 32
"""Calls that are on their way through a `many` companion at a time, at most."""


class Loop:
    """Runs on one device. `aside` gives way to other threads while a node works; `more` adds runs that have come since.

    `more` is asked before every round, and says whether it added any. It is not asked while steps of two kinds wait:
    whoever waits for another model would wait for ever if runs of the first one never ceased to come.
    """

    def __init__(
        self,
        resources: Resources,
        aside: Callable[[], AbstractContextManager[None]] = nullcontext,
        more: Callable[[], bool] = lambda: False,
    ) -> None:
        self._resources = resources
        self._aside = aside
        self._more = more
        self._active: deque[Run] = deque()
        self._company = False
        """Whether another run may have made what a step gives."""
        self._open: Batch | None = None
        """The steps that are on their way together."""
        self._awaited: set[Digest] = set()
        """Keys of calls under way that other steps equal, which wait for what they give."""
        self._asked = False
        """Whether there may have been further runs before this round."""
        self._set_aside: deque[Batch] = deque()
        """What memory had no room for beside them: its turn comes when they are through, before anything else."""

    def add(self, run: Run) -> None:
        """Take a run on."""
        self._company = self._company or bool(self._active)
        self._active.append(run)

    def advance(self) -> Run | None:
        """Work until a run is complete, or has `ended` early; None when there are no runs any more."""
        while self._active:
            for run in self._active:
                if not run.flying and (run.ended is not None or (run.idle and self._complete(run))):
                    self._active.remove(run)
                    return run
            if not self._step() and not self._asks():
                self._round()
        return None

    def close(self) -> None:
        """Let go of what is on its way."""
        for batch in self._under_way():
            batch.close()

    def _step(self) -> bool:
        """One call of each run in turn; whether anything but a round is left to do."""
        stepped = False
        for run in self._active:
            try:
                call = None if run.ended else run.advance(company=self._company)
            except (errors.Cancelled, errors.FileChanged) as end:
                run.ended, call = end, None
            if call is not None:
                self._begin([call])
                if self._has_room(call):
                    self._work(Batch([call]))
                else:
                    self._put_aside([call])
            over = (run.ended is not None or run.idle) and not run.flying
            stepped = stepped or call is not None or over
        return stepped

    def _work(self, batch: Batch) -> None:
        """See a call through that is made alone."""
        left = [batch]
        try:
            while left:
                left = self._advance(left[0])
        finally:
            for each in left:
                each.close()

    def _has_room(self, call: Call) -> bool:
        """Whether the models that a call is given find room beside those of the steps on their way together."""
        if self._open is None:
            return True
        given = [value if isinstance(value, tuple) else (value,) for value in call.arguments.values()]
        models = [each for values in given for each in values if isinstance(each, ModelRef)]
        return not models or self._resources.models.fit(models, self._resources.device.name)

    def _complete(self, run: Run) -> bool:
        try:
            return run.collect()
        except (errors.Cancelled, errors.FileChanged) as end:
            run.ended = end
            return True

    def _asks(self) -> bool:
        """Whether further runs were there to be taken on; once before each round, so that this one comes about."""
        self._asked = not self._asked and self._of_one_kind()
        return self._asked and self._more()

    def _of_one_kind(self) -> bool:
        """Whether all that waits may be on its way together."""
        kinds = {kind for run in self._active for kind in run.postponed.values()}
        if self._open is not None and self._open.kind is not None:
            kinds.add(self._open.kind)
        return len(kinds) <= 1 and not self._set_aside

    def _round(self) -> None:
        """Take all that is on its way one round further, with what may join it."""
        self._asked = False
        self._set_aside = deque(filter(None, map(self._still_wanted, self._set_aside)))
        if self._open is None and self._set_aside:
            self._open = self._set_aside.popleft()
        self._join()
        if self._open is not None:
            left = self._advance(self._open)
            self._open = left[0] if left else None
            self._set_aside.extendleft(reversed(left[1:]))

    def _still_wanted(self, batch: Batch) -> Batch | None:
        """A batch that was set aside, without calls of runs that are over, and without what others have made since."""
        wanted = [call for call in batch.calls if call.run.ended is None and call.run.made(call.position) is None]
        if len(wanted) == len(batch.calls):
            return batch
        for call in batch.calls:
            if call not in wanted:
                self._settle(call, LATER)
        return Batch(wanted, stage=batch.stage, freed=batch.freed) if wanted else None

    def _join(self) -> None:
        """Have postponed steps of one kind called together: the oldest, each run's in turn, equal ones once."""
        kind, room = self._kind(), FUSED - (len(self._open.calls) if self._open else 0)
        if kind is None or room <= 0:
            return
        known = self._flying()
        calls: list[Call] = []
        for run, position in self._alike(kind):
            if len(calls) == room:
                break
            if (key := run.key(position)) in known:
                self._awaited.add(key)
            elif self._company and run.take(position):
                del run.postponed[position]
            elif (call := run.call(position)) is not None:
                known.add(key)
                calls.append(call)
        self._begin(calls)
        if calls and self._open:
            self._open.join(calls)
        elif calls:
            self._open = Batch(calls, kind)
            self._resources.models.foresee(ref for run in self._active for ref in run.models_ahead())

    def _kind(self) -> Kind | None:
        """What may join; None where nothing may."""
        if self._open is not None:
            return None if self._set_aside else self._open.kind
        waiting = (run.postponed for run in self._active if run.postponed and run.ended is None)
        return next((postponed[min(postponed)] for postponed in waiting), None)

    def _flying(self) -> set[Digest]:
        """The keys of all calls that are under way."""
        return {call.run.key(call.position) for batch in self._under_way() for call in batch.calls}

    def _under_way(self) -> list[Batch]:
        return [*([self._open] if self._open else ()), *self._set_aside]

    def _alike(self, kind: Kind) -> list[tuple[Run, int]]:
        """The postponed steps of one kind: the first of each run, then the second of each, and so on."""
        lists = [
            [(run, position) for position in sorted(run.postponed) if run.postponed[position] == kind]
            for run in self._active
            if run.ended is None
        ]
        return [step for turn in zip_longest(*lists) for step in turn if step is not None]

    def _begin(self, calls: Sequence[Call]) -> None:
        for call in calls:
            call.run.listener(NodeStarted(call.run.id, call.step.id, call.step.definition.type, call.reason))

    def _advance(self, batch: Batch) -> list[Batch]:
        """One round of a batch; what to go on with, in this order: nothing, itself, or what memory has room for."""
        with self._aside():
            done = batch.advance(self._resources.device)
        short = self._settle_all(done)
        done.clear()  # tracebacks hold what the calls were working on
        going_on = [batch] if batch.calls else []
        if not short:
            return going_on
        if going_on or (self._open is not None and self._open is not batch and batch.stage is Stage.FREED):
            self._put_aside(short)
            return going_on
        return self._smaller(batch, short)

    def _settle_all(self, done: Sequence[Done]) -> list[Call]:
        """Hand back what is finished; returns the calls that memory was too short for."""
        ran_out = self._resources.device.out_of_memory
        short = [each.call for each in done if isinstance(each.result, Exception) and ran_out(each.result)]
        finished = [each for each in done if each.call not in short]
        for each in finished:
            each.call.context.release()
        for each in finished:
            self._settle(each.call, each.result)
        return short

    def _settle(self, call: Call, result: object) -> None:
        call.context.release()
        key = call.run.key(call.position)
        try:
            if result is LATER:
                call.run.again(call.position)
            else:
                call.run.settle(call, result)
        except (errors.Cancelled, errors.FileChanged) as end:
            call.run.ended = call.run.ended or end.with_traceback(None)
        if key in self._awaited:
            self._look_again(key)

    def _look_again(self, key: Digest) -> None:
        """Whoever waited for an equal call finds what it gave, or is called itself."""
        self._awaited.discard(key)
        for run in self._active:
            for position in [each for each in run.postponed if run.key(each) == key]:
                run.again(position)

    def _put_aside(self, calls: Sequence[Call]) -> None:
        """Make calls again once nothing else is on its way: what the others hold is not there for them."""
        for call in calls:
            call.again(scarce=False)
            call.context.release()
        self._set_aside.append(Batch(calls))

    def _smaller(self, batch: Batch, calls: Sequence[Call]) -> list[Batch]:
        """The out-of-memory ladder: free what is unpinned and try again, then smaller groups, then smaller pieces."""
        if batch.stage is Stage.FRESH:
            return [self._freed(batch, calls, Stage.FREED)]
        if batch.stage is Stage.FREED and len(calls) > 1:
            self._free(calls)
            half = len(calls) // 2
            return [Batch(calls[:half]), Batch(calls[half:])]
        if batch.stage is Stage.FREED and not calls[0].context.exact:
            return [self._freed(batch, calls, Stage.SCARCE)]
        account = self._resources.ledger.account()
        for call in calls:
            error = errors.OutOfMemory(
                f"out of memory on {self._resources.device.name} after freeing {size_text(batch.freed)}, and nothing "
                f"is left to give up ({account}); use a smaller size, a smaller batch or a smaller model"
            )
            self._settle(call, error)
        return []

    def _freed(self, batch: Batch, calls: Sequence[Call], stage: Stage) -> Batch:
        freed = self._free(calls, scarce=stage is Stage.SCARCE)
        return Batch(calls, stage=stage, freed=batch.freed + freed)

    def _free(self, calls: Sequence[Call], *, scarce: bool = False) -> int:
        """Make ready for another attempt; returns the bytes freed."""
        for call in calls:
            call.again(scarce=scarce)
        freed = self._resources.ledger.free_everything()
        self._resources.device.trim()
        return freed
