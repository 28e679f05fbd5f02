"""Vertical scaling by CPU throttling, after Autothrottle's local controller.

Autothrottle (Wang et al., NSDI 2024) holds each service at a target share of throttled CPU
periods. Its local controller, in the paper and its public code, does once per second:

- the margin moves by what the throttled share is above or below the target;
- a share above ``alpha = 3`` times the target multiplies the limit by one plus the excess;
- otherwise the limit falls to the largest recent usage plus ``margin`` standard deviations of
  it, if that is at most 90 % of it, and to no less than half;
- throttling right after such a fall takes it back, and as much again on top.

The original samples ten times a second, this one once per interval. It counts periods in
which a service was stopped; here is known for how much of the time it was. A replica that
never rests is stopped for ``1 - quota`` of each period, so that the share of throttled periods
is the share of stopped time over that.

On whole cores, and with all of a CPU, no quota acts, and the CPU used says little: a server that
batches whatever waits is busy long before it is overloaded. What stands for usage is therefore its
*load*, the share of the time that it is busy times how full its batches are, and for throttling
the share of the time in which requests wait behind a busy server: its square, by the M/M/1 queue.
"""

from __future__ import annotations

import math
import statistics
from collections import deque
from dataclasses import dataclass

from sponge_env.control.base import BaseController, option
from sponge_env.interfaces import Allocation, SystemSpec, SystemView
from sponge_env.metrics import IntervalMetrics

from .rules import BatchConfig, batch_size

ALPHA = 3.0
"""Throttling that makes the limit grow, relative to the target."""
SHRINK_FROM = 0.9
"""The limit falls only if it falls to at most this share of itself."""
SHRINK_TO = 0.5
"""Smallest share of itself that the limit falls to at once."""
FIRST_MARGIN = 3.0
"""Margin at first, in standard deviations."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ThrottleConfig(BatchConfig):
    """Options of :class:`Throttle`."""

    target: float = option(0.05, above=0, at_most=1)
    """Share of throttled periods to hold. In Autothrottle a learned controller sets it."""
    usage_windows: int = option(5, at_least=2)
    """Past intervals whose usage the limit has to cover; 5 s as published."""


class Throttle(BaseController):
    """Holds one replica at a target share of throttled periods."""

    config: ThrottleConfig

    def begin(self, spec: SystemSpec) -> None:
        """Start from the initial allocation."""
        self._captain = Captain(self.config, spec.initial.cores, spec.first.cores_max)

    def allocate(self, spec: SystemSpec, view: SystemView) -> Allocation:
        """Move the limit by the last interval's throttling and usage."""
        if view.last is not None:
            self._captain.move(*signals(view.last, spec.first.core_unit))
        cores = min(math.ceil(self._captain.limit), spec.first.cores_max)
        return Allocation(cores, int(batch_size(self.config, spec, cores)))


class Captain:
    """The limit and what its next move depends on."""

    def __init__(self, config: ThrottleConfig, limit: float, limit_max: float) -> None:
        """Start at a limit, in core units."""
        self.limit, self.margin = float(limit), FIRST_MARGIN
        self._target, self._limit_max = config.target, limit_max
        self._usage: deque[float] = deque(maxlen=config.usage_windows)
        self._before_shrink: float | None = None

    def move(self, throttled: float, usage: float) -> None:
        """Take in an interval's share of throttled periods, and the core units in use."""
        self._usage.append(usage)
        self.margin = max(0.0, self.margin + throttled - self._target)
        before, self._before_shrink = self._before_shrink, None
        excess = throttled - ALPHA * self._target
        if excess > 0:
            # Throttled right after a fall: the fall was wrong, so go back and as far beyond.
            grown = self.limit * (1 + excess) if before is None else 2 * before - self.limit
            self.limit = min(grown, self._limit_max)
        elif len(self._usage) == self._usage.maxlen:
            desired = max(self._usage) + self.margin * statistics.stdev(self._usage)
            if desired <= SHRINK_FROM * self.limit:
                self._before_shrink = self.limit
                self.limit = max(SHRINK_TO * self.limit, desired)
        self.limit = max(1.0, self.limit)


def signals(last: IntervalMetrics, core_unit: float) -> tuple[float, float]:
    """Return the share of throttled periods and the core units in use, or their stand-ins."""
    quota = last.requested_cores * core_unit
    if quota < 1:
        throttled = min(1.0, last.throttled_share / (1 - quota))
        return throttled, last.utilisation * last.cores
    fullness = 1.0 if math.isnan(last.batch_mean) else min(1.0, last.batch_mean / last.batch)
    load = last.utilisation * fullness
    return load**2, load * last.cores
