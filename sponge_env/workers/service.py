"""How long a batch takes on a simulated replica, also when its cores change meanwhile.

Two models. ``ProfileService`` charges the measured l(b, c): right for whole cores, as in
the paper. ``QuotaBucket`` repeats the kernel's CPU bandwidth control: each period the
replica gets ``quota`` seconds of CPU at full speed, unused tokens do not carry over, and
when they are gone it stops until the next period. A lone small batch therefore runs at
full speed and only back-to-back work is slowed down to the share.
"""

from __future__ import annotations

import math
from typing import Protocol

from sponge_env.interfaces import FloatArray
from sponge_env.profile import QuotaService


class Service(Protocol):
    """The batch on one replica, and the replica's counters."""

    finish_s: float
    """When the batch ends if nothing changes."""
    used_core_s: float
    """Core unit-seconds used so far."""
    throttled_s: float
    """Time spent stopped by the quota so far."""

    def start(self, now_s: float, size: int, noise: float) -> None:
        """Begin a batch that takes ``noise`` times the usual work."""

    def advance(self, now_s: float) -> None:
        """Let the batch and the counters progress to ``now_s``."""

    def resize(self, now_s: float, cores: int) -> None:
        """Change the cores; what is left of the batch goes on at the new speed."""


class ProfileService:
    """Every batch takes l(b, c); a resize rescales the time that is left."""

    def __init__(self, latency_s: FloatArray, cores: int) -> None:
        """Start idle.

        Args:
            latency_s: (batch_max, cores_max) seconds.
            cores: Core units at first.
        """
        self._latency_s = latency_s
        self._cores = cores
        self._size = 1
        self._since_s = 0.0
        self.finish_s = 0.0
        self.used_core_s = 0.0
        self.throttled_s = 0.0

    def start(self, now_s: float, size: int, noise: float) -> None:
        """Begin a batch."""
        self._size, self._since_s = size, now_s
        self.finish_s = now_s + float(self._latency_s[size - 1, self._cores - 1]) * noise

    def advance(self, now_s: float) -> None:
        """Progress to ``now_s``."""
        to_s = min(now_s, self.finish_s)
        if to_s > self._since_s:
            self.used_core_s += (to_s - self._since_s) * self._cores
            self._since_s = to_s

    def resize(self, now_s: float, cores: int) -> None:
        """Change the cores."""
        self.advance(now_s)
        if self.finish_s > now_s:
            old, new = self._latency_s[self._size - 1, [self._cores - 1, cores - 1]]
            self.finish_s = now_s + (self.finish_s - now_s) * float(new / old)
        self._cores = cores


class QuotaBucket:
    """CPU tokens per period, as the kernel's bandwidth control grants them.

    A period begins with the first work after an idle one, and anew whenever the quota is
    written, which also refills the tokens.
    """

    def __init__(
        self, quota: QuotaService, work_s: FloatArray, core_unit: float, cores: int
    ) -> None:
        """Start idle.

        Args:
            quota: Period and dispatch overhead.
            work_s: (batch_max,) CPU seconds of a batch at full speed.
            core_unit: Physical cores in a core unit.
            cores: Core units at first.
        """
        self._period_s = quota.period_s
        self._dispatch_s = quota.dispatch_s
        self._work_s = work_s
        self._core_unit = core_unit
        self._quota_s = cores * core_unit * quota.period_s
        self._tokens_s = self._quota_s
        self._period_start_s = -math.inf
        self._left_s = 0.0  # CPU time the batch still needs
        self._since_s = 0.0
        self.finish_s = 0.0
        self.used_core_s = 0.0
        self.throttled_s = 0.0

    def start(self, now_s: float, size: int, noise: float) -> None:
        """Begin a batch; it reaches the CPU after the dispatch overhead."""
        self._since_s = now_s + self._dispatch_s
        self._left_s = float(self._work_s[size - 1]) * noise
        if self._since_s >= self._period_start_s + self._period_s:
            self._refill(self._since_s)
        self._predict()

    def advance(self, now_s: float) -> None:
        """Progress to ``now_s``."""
        to_s = min(now_s, self.finish_s)
        if to_s <= self._since_s:
            return
        done_s = self._spend(to_s)
        self.used_core_s += done_s / self._core_unit
        self.throttled_s += max(0.0, to_s - self._since_s - done_s)
        self._left_s = max(0.0, self._left_s - done_s) if to_s < self.finish_s else 0.0
        self._since_s = to_s

    def resize(self, now_s: float, cores: int) -> None:
        """Write the quota."""
        self.advance(now_s)
        self._quota_s = cores * self._core_unit * self._period_s
        self._since_s = max(self._since_s, now_s)
        self._refill(self._since_s)
        if self._left_s > 0:
            self._predict()

    @property
    def _limited(self) -> bool:
        return self._quota_s < self._period_s

    def _refill(self, now_s: float) -> None:
        self._period_start_s, self._tokens_s = now_s, self._quota_s

    def _available_s(self) -> float:
        """CPU time the current period still grants."""
        return min(self._tokens_s, self._period_start_s + self._period_s - self._since_s)

    def _predict(self) -> None:
        """Set the end of the batch: rest of this period, full periods, then the rest."""
        available_s = self._available_s()
        if not self._limited or self._left_s <= available_s:
            self.finish_s = self._since_s + self._left_s
            return
        beyond_s = self._left_s - available_s
        full_periods = math.ceil(beyond_s / self._quota_s) - 1
        last_start_s = self._period_start_s + self._period_s * (1 + full_periods)
        self.finish_s = last_start_s + (beyond_s - full_periods * self._quota_s)

    def _spend(self, to_s: float) -> float:
        """Use tokens from the last update to ``to_s``; return the CPU time used."""
        if not self._limited:
            return to_s - self._since_s
        done_s = min(self._available_s(), to_s - self._since_s)
        past_s = to_s - (self._period_start_s + self._period_s)
        if past_s < 0:
            self._tokens_s -= done_s
            return done_s
        periods = math.floor(past_s / self._period_s)
        self._refill(self._period_start_s + self._period_s * (1 + periods))
        last_s = min(self._quota_s, to_s - self._period_start_s)
        self._tokens_s -= last_s
        return done_s + periods * self._quota_s + last_s
