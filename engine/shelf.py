"""Models in one memory, under its ledger. Which of them may go, and what becomes of one that does, the pool says."""

from collections.abc import Callable

from engine.budget import Ledger
from engine.digest import Digest
from engine.eviction import Entry, Gdsf


class Shelf:
    """Sizes and worth of models in one memory, by their keys; a holder under its ledger.

    `free` says whether a model may go; `given_up` is told of one that has to, when it is no longer counted here.
    """

    name = "models"

    def __init__(
        self, ledger: Ledger, free: Callable[[Digest], bool], given_up: Callable[[Digest, Entry], None]
    ) -> None:
        self.ledger = ledger
        self._free = free
        self._given_up = given_up
        self._policy: Gdsf[Digest] = Gdsf(lambda: ledger.capacity, ledger.ageing)
        self._sizes: dict[Digest, int] = {}
        self._bytes = 0
        ledger.join(self)

    def __contains__(self, key: Digest) -> bool:
        """Whether a model is counted here."""
        return key in self._sizes

    def put(self, key: Digest, size: int, *, keeps: int, seconds: float, uses: int = 0) -> None:
        """Count a model of `size` bytes, which `keeps` so many in memory, and is back `seconds` after it went."""
        self._sizes[key] = size
        self._bytes += size
        self._policy.admit(key, keeps, seconds, uses)

    def use(self, key: Digest) -> None:
        """A model was wanted again."""
        self._policy.use(key)

    def take(self, key: Digest) -> Entry:
        """Count a model no longer; what is known of its worth."""
        entry = self._policy.remove(key)
        assert entry is not None
        self._bytes -= self._sizes.pop(key)
        return entry

    def held(self) -> int:
        """Bytes of all models."""
        return self._bytes

    def in_use(self) -> int:
        """Bytes of those that may not go."""
        return sum(size for key, size in self._sizes.items() if not self._free(key))

    def cheapest(self) -> float | None:
        """Priority of the model to give up first; None when all are in use."""
        key = self._victim()
        return None if key is None else self._policy.priority(key)

    def give_up(self) -> int:
        """Let the cheapest model that is not in use go; returns its bytes."""
        key = self._victim()
        if key is None:
            return 0
        size, entry = self._sizes.pop(key), self._policy.evict(key)
        self._bytes -= size
        self._given_up(key, entry)
        return size

    def _victim(self) -> Digest | None:
        return self._policy.victim(spared=lambda key: not self._free(key))
