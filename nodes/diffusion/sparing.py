"""Sparing: model calls at which the negative prompt is left out, which is half of their work."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Sparing:
    """When the negative prompt has no say: early in a run, and where its picture is nearly done. The WebUI's rules.

    It is left out at calls of the first `early` share of the `calls` of a run (the one that ends it counts too), and
    below the noise level `below` (the WebUI: NGMS) at every second call or, with `always`, at every one.
    """

    below: float = 0.0
    always: bool = False
    early: float = 0.0
    calls: int = 1

    def leaves_out(self, call: int, sigma: float) -> bool:
        """Whether that is so at model call `call`, from 0, at noise level `sigma`."""
        if self.early and call / self.calls <= self.early:
            return True
        return sigma < self.below and (self.always or call % 2 == 1)


THROUGHOUT = Sparing()
"""The negative prompt counts at every call."""
