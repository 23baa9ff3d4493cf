"""One ledger of bytes per device, shared by cached values and models."""

from collections.abc import Mapping
from typing import Protocol

from engine.eviction import Ageing

UNITS = ("B", "kB", "MB", "GB", "TB")


def size_text(size: float) -> str:
    """Bytes for people: `12 kB`, `5.1 GB`."""
    for unit in UNITS[:-1]:
        if size < 999.5:
            return f"{size:.0f} {unit}" if unit in {"B", "kB"} or size >= 99.5 else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} {UNITS[-1]}"


class Holder(Protocol):
    """Somebody who keeps bytes on a device and can give some back."""

    name: str

    def held(self) -> int:
        """Bytes kept now."""

    def cheapest(self) -> float | None:
        """Priority of what would go first; None when everything is in use."""

    def give_up(self) -> int:
        """Let the cheapest thing go; returns the bytes freed."""


class Ledger:
    """The bytes that values and models may take on one device."""

    def __init__(self, place: str, capacity: int) -> None:
        self.place = place
        self.capacity = capacity
        self.ageing = Ageing()
        self._holders: list[Holder] = []

    def join(self, holder: Holder) -> None:
        """Let a holder keep bytes under this budget."""
        self._holders.append(holder)

    def used(self) -> int:
        """Bytes kept by all holders."""
        return sum(holder.held() for holder in self._holders)

    def make_room(self, size: int = 0) -> bool:
        """Free until `size` more bytes fit, cheapest first; False when what is in use alone exceeds the budget."""
        while self.used() + size > self.capacity:
            if not self._give_up_cheapest():
                return False
        return True

    def free_everything(self) -> int:
        """Free all that is not in use; returns the bytes freed."""
        before = self.used()
        while self._give_up_cheapest():
            pass
        return before - self.used()

    def statement(self) -> Mapping[str, int]:
        """Bytes by holder, and the capacity."""
        return {**{holder.name: holder.held() for holder in self._holders}, "capacity": self.capacity}

    def account(self) -> str:
        """The same in words."""
        held = ", ".join(f"{name} {size_text(size)}" for name, size in self.statement().items() if name != "capacity")
        return f"{held}, budget {size_text(self.capacity)}"

    def _give_up_cheapest(self) -> bool:
        offers = [(price, holder) for holder in self._holders if (price := holder.cheapest()) is not None]
        if not offers:
            return False
        min(offers, key=lambda offer: offer[0])[1].give_up()
        return True
