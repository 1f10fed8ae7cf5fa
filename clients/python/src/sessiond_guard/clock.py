"""The time of day, robust against changes of the system's clock. All in milliseconds."""

from __future__ import annotations

import time

#: How many observations are kept. The median counts, so that a single wrong one has no effect.
OBSERVATIONS_MAX = 5

#: How many observations are needed for the median to count: of two, either may be wrong.
OBSERVATIONS_MIN = 3

#: How far two observations may differ and still agree. A `Date` has whole seconds, and takes a moment to arrive.
TOLERANCE_MS = 5_000


class Clock:
    """The clocks of the machine. Replaced in tests."""

    def elapsed(self) -> float:
        """The monotonic clock."""
        return time.monotonic() * 1_000

    def now(self) -> float:
        """The time of day, since the Unix epoch."""
        return time.time() * 1_000


class Time:
    """The later of the system's time of day and the time of day expected from the monotonic clock. If the system's clock is set
    back, no expired token becomes valid again; if it is set ahead, tokens expire early until it is corrected."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        # The expected time of day minus the monotonic clock.
        self._offset = clock.now() - clock.elapsed()
        # The last observations of this offset: the system clock's at the start, then one per response.
        self._observations = [self._offset]

    def observe(self, now: float) -> bool:
        """Takes in the issuer's time of day, from the `Date` of a response. Returns whether it agrees with the others; if not,
        observe again soon."""
        observed = now - self._clock.elapsed()
        self._observations = (self._observations + [observed])[-OBSERVATIONS_MAX:]
        if len(self._observations) >= OBSERVATIONS_MIN:
            self._offset = sorted(self._observations)[(len(self._observations) - 1) // 2]
        return abs(observed - self._offset) <= TOLERANCE_MS

    def now(self) -> float:
        """The time of day."""
        return max(self._clock.now(), self._clock.elapsed() + self._offset)

    def elapsed(self) -> float:
        """The monotonic clock."""
        return self._clock.elapsed()
