"""What the simulator needs to know of a worker under a CPU quota."""

from __future__ import annotations

import math
from dataclasses import dataclass

from sponge_env.errors import ProfileError

MOST_LOST = 0.5
"""Largest part of the quota of one core unit that may be lost when work goes on."""

CONTENDING = 8
"""Replicas that load at once where :attr:`QuotaService.loading_contention` is measured."""


@dataclass(frozen=True, slots=True)
class QuotaService:
    """CPU bandwidth control as the kernel does it: tokens per period.

    Each ``period_s`` a replica gets ``cores * core_unit * period_s`` seconds of CPU at
    full speed; unused tokens do not carry over.
    """

    period_s: float
    """Enforcement period."""
    work_s: tuple[float, ...]
    """CPU time of batches of 1, 2, 3, ... requests at full speed."""
    dispatch_s: float
    """Wall time per batch outside the limited group (messages, wake-ups)."""
    dispatch_request_s: float = 0.0
    """The same per request (tensors that are copied)."""
    tick_s: float = 0.004
    """Time between two looks of the limiter at what was used; until then the quota can be
    overdrawn. The default is a kernel's with 250 ticks per second."""
    resume_s: float = 0.0
    """CPU time lost whenever work goes on after a pause: caches have gone cold."""
    loading_contention: float = 1.0
    """CPU time to load the model when :data:`CONTENDING` replicas do so at once, relative to one
    that does so alone: memory that no process used lately is slow to come by."""

    def __post_init__(self) -> None:
        values = (self.period_s, self.tick_s, self.loading_contention, *self.work_s)
        if not self.work_s or not all(0 < value < math.inf for value in values):
            raise ProfileError("a quota service needs a period, a tick and work above 0")
        for value in (self.dispatch_s, self.dispatch_request_s, self.resume_s):
            if not 0 <= value < math.inf:
                raise ProfileError("a quota service needs overheads of at least 0")

    def slowest_s(self, work_s: float, core_unit: float) -> float:
        """Return an upper bound of how long that much CPU time takes on one core unit."""
        # a pause for each quota, a tick of debt to begin with, and the periods at both ends
        lost = self.resume_s / (core_unit * self.period_s)
        cpu_s = (work_s + self.resume_s) / (1 - lost) + self.tick_s
        dispatch_s = self.dispatch_s + len(self.work_s) * self.dispatch_request_s
        return dispatch_s + 2 * self.period_s + cpu_s / core_unit
