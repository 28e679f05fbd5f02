"""What serving one more request per second costs in the long run."""

from __future__ import annotations

import bisect
import itertools
from dataclasses import dataclass

import numpy as np

from sponge_env.interfaces import FloatArray


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

        It is 0 where a single core serves more than the rate, for less than one cannot be held,
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
            continue  # more cores that serve no more are never worth it
        while len(hull) > 1 and _slope(hull[-2], hull[-1]) >= _slope(hull[-1], corner):
            hull.pop()
        hull.append(corner)
    return _pieces(hull)


def _slope(left: tuple[float, float], right: tuple[float, float]) -> float:
    return (right[1] - left[1]) / (right[0] - left[0])


def _pieces(hull: list[tuple[float, float]]) -> CostCurve:
    slopes = tuple(_slope(left, right) for left, right in itertools.pairwise(hull))
    return CostCurve(tuple(rate_rps for rate_rps, _ in hull[1:]), slopes)
