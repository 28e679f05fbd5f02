"""What batches take and what serving costs by that.

A fit of four numbers misses single cells of the table of service times, by up to 28 %. Tables have
shape (cores_max, batch_max), seconds of a batch: row ``c - 1``, column ``b - 1``.
"""

from __future__ import annotations

import bisect
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sponge_env.arrays import FloatArray
from sponge_env.interfaces import SystemSpec, SystemView

SEEN_RANGE = (0.5, 2.0)
"""What was seen is not believed beyond these multiples of the fit."""
_TRUST = 2
"""Intervals that the fit counts for against those with full batches."""
_REMEMBERED = 20
"""Such intervals that count at most."""


def fitted_s(spec: SystemSpec) -> FloatArray:
    """Return (stages, variants, cores, batches) seconds of a batch by the fits.

    What a stage does not have of it is infinite.
    """
    shape = (
        max(len(stage.latencies) for stage in spec.stages),
        max(stage.cores_max for stage in spec.stages),
        max(stage.batch_max for stage in spec.stages),
    )
    service_s = np.full((len(spec.stages), *shape), math.inf)
    for k, stage in enumerate(spec.stages):
        for variant, fit in enumerate(stage.latencies):
            table_s = fit.table_s(stage.batch_max, stage.cores_max).T
            service_s[k, variant, : stage.cores_max, : stage.batch_max] = table_s
    return service_s


def grouped_service_s(service_s: FloatArray, batch_max: Sequence[int], group: int) -> FloatArray:
    """Return (stages, variants, cores, batches) seconds of batches of groups.

    A group larger than the largest batch takes as many of those as it needs.
    """
    if group == 1:
        return service_s
    columns = [max(most // group, 1) for most in batch_max]
    grouped_s = np.full((*service_s.shape[:3], max(columns)), math.inf)
    for k, most in enumerate(batch_max):
        if group > most:
            grouped_s[k, :, :, 0] = service_s[k, :, :, most - 1] * (group / most)
        else:
            grouped_s[k, :, :, : columns[k]] = service_s[k, :, :, group - 1 : most : group]
    return grouped_s


class ServiceTimes:
    """The table of service times of one episode.

    An interval tells the time of a cell where nothing is mixed: under the same cores as before,
    all its batches full. Full batches follow each other without a gap, for a replica that waits
    takes the first request that comes alone. So the batches that ended took the time from the
    start of the one that ran before to the start of the one that runs now.
    """

    def __init__(self, table_s: FloatArray) -> None:
        """Start from the fit, which is overwritten as the times become known."""
        self._fit_s, self.table_s = table_s.copy(), table_s
        self._seen: dict[tuple[int, int], int] = {}
        self._before: SystemView | None = None

    def observe(self, view: SystemView) -> bool:
        """Take in the interval that has passed; return whether it changed the table."""
        before, self._before = self._before, view
        if before is None or not _all_full(before, view):
            return False
        last, cores, batch = view.last, view.cores_in_force, view.allocation.batch
        assert last is not None
        ended = round((last.on_time + last.late) / batch)
        mean_s = (view.running[0].started_s - before.running[0].started_s) / ended
        cell = cores - 1, batch - 1
        low_s, high_s = (self._fit_s[cell] * factor for factor in SEEN_RANGE)
        seen = self._seen[cell] = min(self._seen.get(cell, 0) + 1, _REMEMBERED)
        step_s = min(max(mean_s, low_s), high_s) - self.table_s[cell]
        self.table_s[cell] += step_s / (_TRUST + seen)
        return True


def _all_full(before: SystemView, view: SystemView) -> bool:
    """Return whether all batches that ended were full and ran on the same cores throughout."""
    last = view.last
    return (
        last is not None
        and len(before.running) == len(view.running) == 1
        and before.cores_in_force == view.cores_in_force
        and before.running[0].started_s < view.running[0].started_s
        # A lone request is a full batch of one: it says nothing about gaps before it.
        and last.batch_mean == view.allocation.batch > 1
        and last.restarts == 0  # a batch that died is no service time
        and last.on_time + last.late >= view.allocation.batch
    )


@dataclass(frozen=True, slots=True)
class CostCurve:
    """Cores against rate: the lower convex hull of what each number of cores can serve.

    Going to and fro between two numbers of cores serves any rate between theirs, so the hull is
    what the best mix costs.
    """

    rates_rps: tuple[float, ...]
    """(n,) where each straight piece ends, ascending."""
    slopes: tuple[float, ...]
    """(n,) core-seconds per request on each piece, ascending."""

    def price(self, rate_rps: float) -> float:
        """Return the core-seconds that one more request costs at a rate.

        It is 0 where a single core serves more than the rate, for there is no less than one,
        and stays at its last value beyond what all cores serve.
        """
        piece = bisect.bisect_left(self.rates_rps, rate_rps)
        return self.slopes[min(piece, len(self.slopes) - 1)]


def cost_curve(service_s: FloatArray) -> CostCurve:
    """Build the curve from (cores_max, batch_max) seconds of a batch."""
    batches = np.arange(1, service_s.shape[1] + 1)
    capacity_rps = (batches / service_s).max(axis=1).tolist()
    hull = [(0.0, 1.0)]
    for cores, rate_rps in enumerate(capacity_rps, start=1):
        corner = (rate_rps, float(cores))
        if rate_rps <= hull[-1][0]:
            continue  # more cores that serve no more never pay
        while len(hull) > 1 and _slope(hull[-2], hull[-1]) >= _slope(hull[-1], corner):
            hull.pop()
        hull.append(corner)
    slopes = tuple(itertools.starmap(_slope, itertools.pairwise(hull)))
    return CostCurve(tuple(rate_rps for rate_rps, _ in hull[1:]), slopes)


def _slope(left: tuple[float, float], right: tuple[float, float]) -> float:
    return (right[1] - left[1]) / (right[0] - left[0])
