"""The clock of a live episode, which can be stopped while a learner learns."""

from __future__ import annotations

import bisect
import time


class EpisodeClock:
    """Maps the machine's monotonic clock to seconds since the start of the episode.

    ``CLOCK_MONOTONIC`` is the same in all processes, so stamps of a child process can be
    mapped too. While the clock is held, episode time stands still.
    """

    def __init__(self) -> None:
        self._origin_s = time.monotonic()
        self._holds_s: list[float] = []
        self._paused_before_s: list[float] = []
        self._paused_s = 0.0
        self._held = False

    @property
    def held(self) -> bool:
        """Whether the clock stands still."""
        return self._held

    @property
    def paused_s(self) -> float:
        """Total time held until now."""
        since_s = time.monotonic() - self._holds_s[-1] if self._held else 0.0
        return self._paused_s + since_s

    def now_s(self) -> float:
        """Return the episode time now."""
        return self.at(time.monotonic())

    def at(self, monotonic_s: float) -> float:
        """Return the episode time of a monotonic stamp that is not in the future.

        What happened during a hold happened at the hold's instant.
        """
        index = bisect.bisect_right(self._holds_s, monotonic_s) - 1
        if index < 0:
            return monotonic_s - self._origin_s
        hold_s, before_s = self._holds_s[index], self._paused_before_s[index]
        last = index == len(self._holds_s) - 1
        if last and self._held:
            return hold_s - self._origin_s - before_s
        until_s = self._paused_s if last else self._paused_before_s[index + 1]
        running_s = max(0.0, monotonic_s - hold_s - (until_s - before_s))
        return hold_s - self._origin_s - before_s + running_s

    def hold(self) -> None:
        """Stop the clock; does nothing while it is held."""
        if not self._held:
            self._holds_s.append(time.monotonic())
            self._paused_before_s.append(self._paused_s)
            self._held = True

    def release(self) -> float:
        """Let the clock run on; return how long it was held, 0 if it was not."""
        if not self._held:
            return 0.0
        held_s = time.monotonic() - self._holds_s[-1]
        self._paused_s += held_s
        self._held = False
        return held_s


class Meter:
    """Integrates a quantity that changes in steps, such as the cores held.

    Args:
        value: From time 0 on.
    """

    def __init__(self, value: float) -> None:
        self.value = value
        self._since_s = self._total = 0.0

    def set(self, now_s: float, value: float) -> None:
        """Change the value from ``now_s`` on, which is not before the last change."""
        self._total = self.read(now_s)
        self._since_s, self.value = now_s, value

    def read(self, now_s: float) -> float:
        """Return the integral from 0 to ``now_s``."""
        return self._total + self.value * max(0.0, now_s - self._since_s)
