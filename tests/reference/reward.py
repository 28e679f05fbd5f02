"""The reward: a pure function of one interval's metrics."""

from __future__ import annotations

from sponge_env.results.schema import IntervalMetrics


def reward(metrics: IntervalMetrics, cores_max: int, violation_weight: float) -> float:
    """Charge the cores held and the requests that missed their deadline.

    ``-(cores / cores_max) - violation_weight * violations / max(1, ended)``

    The first term is the cost of the interval relative to holding everything. The second
    is the share of requests that ended badly. With the default weight of 20, a lasting
    violation rate of 0.3 % costs as much as one core unit of 16, so that cores are worth
    saving but never at the price of visible violations.

    Args:
        metrics: The interval.
        cores_max: Largest number of core units of one replica.
        violation_weight: Cost of an interval in which every request misses.

    Returns:
        A number of at most 0.
    """
    ended = metrics.on_time + metrics.violations
    missed = metrics.violations / max(1, ended)
    return -metrics.cores / cores_max - violation_weight * missed
