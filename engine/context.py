"""Context: what a node may ask the engine for."""

import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

from engine.errors import Cancelled
from engine.socket import Socket

if TYPE_CHECKING:
    from engine.digest import Digest
    from engine.interim import Interim
    from engine.models import ModelPool, ModelRef

M = TypeVar("M")
Preview = Callable[[], Socket]


class CancelToken:
    """One run's off switch; safe to use from any thread."""

    def __init__(self) -> None:
        self._event = threading.Event()

    def cancel(self) -> None:
        """Ask the run to stop at its next cancel point."""
        self._event.set()

    @property
    def cancelled(self) -> bool:
        """Whether somebody asked."""
        return self._event.is_set()

    def check(self) -> None:
        """Raise Cancelled if somebody asked."""
        if self._event.is_set():
            raise Cancelled


class Context:
    """Progress, cancel points, warnings, models and the device, for one call of one node.

    `Context()` serves a notebook: no listener, never cancelled, models loaded on the CPU and kept.
    """

    def __init__(
        self,
        *,
        device: str = "cpu",
        exact: bool = False,
        compiled: bool = False,
        models: "ModelPool | None" = None,
        listener: Callable[[int, int, Preview | None], None] | None = None,
        meter: Callable[[str, float], None] | None = None,
        alarm: Callable[[str], None] | None = None,
        token: CancelToken | None = None,
        interim: "Interim | None" = None,
    ) -> None:
        self.device = device
        self.exact = exact
        self.compiled = compiled
        """Whether a node may take the time to compile what it runs again and again."""
        self._models = models
        self._listener = listener
        self._meter = meter
        self._alarm = alarm
        self._token = token
        self._interim = interim
        self._held: list[ModelRef[object]] = []
        self._unsettled: list[tuple[ModelRef[object], object]] = []
        self._scarce = False
        self.warnings: list[str] = []
        """What the node had to say in this attempt."""
        self.loading = 0.0
        """Seconds spent waiting for models; no part of what the node's result costs to make again."""
        self.spared = 0.0
        """Seconds that recalled values took to make when they were made; part of that cost."""
        self.resumed = (0, 0)
        """How many steps the node recalled in this attempt, and of how many."""

    def progress(self, done: int, total: int, preview: Preview | None = None) -> None:
        """Report `done` of `total` steps. Every call is a cancel point: it may raise Cancelled.

        `preview` makes a picture of where the node stands; it is called only while somebody looks.
        """
        if self._token is not None:
            self._token.check()
        if self._listener is not None:
            self._listener(done, total, preview)

    @property
    def scarce(self) -> bool:
        """Whether memory ran out, even with everything else given up: work in smaller pieces, such as tiles or rows.

        What comes out is kept under the key that it would have anyway. So it may differ by no more than what the
        `fast` mode leaves open; a node that gives something else must `warn`. Never in `exact` mode.
        """
        return self._scarce and not self.exact

    def warn(self, message: str) -> None:
        """Say something about the result that is no failure: what was expected, what was done instead, the remedy.

        It is kept with the result, and said again whenever that is found in the cache. Twice the same is once.
        """
        if message not in self.warnings:
            self.warnings.append(message)

    def alarm(self, message: str) -> None:
        """Say what is amiss with the way a result is made, not with the result: it is told once, and not kept."""
        if self._alarm is not None:
            self._alarm(message)

    def again(self, *, scarce: bool) -> None:
        """Memory ran out: the node is called once more, and what it said is forgotten; the loop calls this."""
        self._scarce = scarce
        self.warnings.clear()
        self.spared, self.resumed = 0.0, (0, 0)

    def measure(self, name: str, value: float) -> None:
        """Report `value` of what `name` says, such as the latents in one UNet call, for those who keep count."""
        if self._meter is not None:
            self._meter(name, value)

    @property
    def remembers(self) -> bool:
        """Whether there is any use in `keep` and `recall`; in a notebook there is none."""
        return self._interim is not None

    def keep(self, key: "Digest", value: Socket, seconds: float) -> None:
        """Keep a value on the way to the result, which took `seconds` to make, for other calls of this type of node.

        `key` must say all that the value depends on, but for the node's type and version and the engine's settings. It
        stays also where the call fails or is cancelled later, and goes whenever memory is short. Nobody may write into
        it any more. Nothing is kept where memory is scarce.
        """
        if self._interim is not None and not self.scarce:
            self.settle()
            self._interim.keep(key, value, seconds)

    def recall(self, key: "Digest") -> Socket | None:
        """What a call of this type of node kept under `key`, not to be written into; None where it is there no more."""
        found = self._interim.recall(key) if self._interim is not None else None
        if found is None:
            return None
        value, seconds = found
        self.spared += seconds
        return value

    def resume(self, done: int, total: int) -> None:
        """Say, once for each part of the work, that `done` of its `total` steps were recalled, not made."""
        if done:
            self.resumed = self.resumed[0] + done, self.resumed[1] + total
            self.measure("steps_recalled", done)

    def model(self, ref: "ModelRef[M]") -> M:
        """The module behind a reference, on the device; it stays there until the node returns."""
        if self._models is None:
            from engine.models import ModelPool  # noqa: PLC0415  only notebooks come here

            self._models = ModelPool()
        began = time.perf_counter()
        module = self._models.acquire(ref, self.device)
        self.loading += time.perf_counter() - began
        self._held.append(ref)
        self._unsettled.append((ref, module))
        if self._alarm is not None and (overdraft := self._models.overdraft()):
            self._alarm(overdraft)
        return module

    def settle(self) -> None:
        """Wait until every model that was asked for is what its files hold; nothing that was made counts before.

        The loop calls it after each round. Raises FileChanged where a file changed while its model was loaded.
        """
        while self._unsettled:
            assert self._models is not None
            self._models.settle(*self._unsettled[-1])
            self._unsettled.pop()

    def release(self) -> None:
        """Give back every model that was asked for; the loop calls it when the node has returned."""
        while self._held:
            assert self._models is not None
            self._models.release(self._held.pop())
        self._unsettled.clear()
