"""The clock of a live episode, which stands still while it is held."""

from __future__ import annotations

import math
import time
from typing import NamedTuple


class _Hold(NamedTuple):
    """A time that the clock stood still, in monotonic stamps."""

    begin_s: float
    end_s: float
    """Infinite while it lasts."""
    at_s: float
    """The episode's time meanwhile, on its own clock."""


class EpisodeClock:
    """Maps the machine's monotonic clock to seconds since the start of the episode.

    ``CLOCK_MONOTONIC`` is the same in all processes, so stamps of a child process can be
    mapped too. While the clock is held, for instance for a learner, episode time stands still.
    """

    def __init__(self) -> None:
        self._origin_s = time.monotonic()
        self._holds: list[_Hold] = []
        self._paused_s = 0.0

    @property
    def held(self) -> bool:
        """Whether the clock stands still."""
        return bool(self._holds) and self._holds[-1].end_s == math.inf

    @property
    def paused_s(self) -> float:
        """Total time held until now."""
        since_s = time.monotonic() - self._holds[-1].begin_s if self.held else 0.0
        return self._paused_s + since_s

    def now_s(self) -> float:
        """Return the episode time now."""
        return self.at(time.monotonic())

    def at(self, monotonic_s: float) -> float:
        """Return the episode time of a monotonic stamp that is not in the future.

        What happened during a hold happened at the hold's instant.
        """
        for hold in reversed(self._holds):  # stamps are recent: the last ones decide
            if monotonic_s >= hold.end_s:
                return hold.at_s + (monotonic_s - hold.end_s)
            if monotonic_s >= hold.begin_s:
                return hold.at_s
        return monotonic_s - self._origin_s

    def hold(self) -> None:
        """Stop the clock; does nothing while it is held."""
        if not self.held:
            begin_s = time.monotonic()
            self._holds.append(_Hold(begin_s, math.inf, self.at(begin_s)))

    def release(self) -> float:
        """Let the clock run on; return how long it was held, 0 if it was not."""
        if not self.held:
            return 0.0
        end_s = time.monotonic()
        held_s = end_s - self._holds[-1].begin_s
        self._holds[-1] = self._holds[-1]._replace(end_s=end_s)
        self._paused_s += held_s
        return held_s
