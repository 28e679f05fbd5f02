"""Service times of batches, and the cost of serving that follows from them.

A fit of four numbers is up to 28 % off in single cells of the table. Tables have shape (cores_max,
batch_max), seconds of a batch: row ``c - 1``, column ``b - 1``.
"""

import math
from collections.abc import Sequence

import numpy as np

from sponge_env.arrays import FloatArray
from sponge_env.control.split import shares, stage_spec, stage_views
from sponge_env.core.compiled import entry_point
from sponge_env.interfaces import StageAllocation, SystemSpec, SystemView

from ..rates import pairwise_sum

RATIO_RANGE = (0.5, 2.0)  # Believed multiples of the profile's times; under a quota from 1 on
_CAUTION = 1.03  # First guess of batches' time over the profile's, since single ones scatter
_PRIOR_S = 2.0  # Seconds of service that a guess counts for
_FORGET = 0.998  # Weight that experience of service times keeps per interval
_NOTABLE = 0.005  # Relative change of service times that is worth new tables


def grouped_service_s(service_s: FloatArray, batch_max: Sequence[int], group: int) -> FloatArray:
    """Return (stages, variants, cores, batches) seconds of batches of groups."""
    # A group larger than the largest batch takes as many of those as it needs.
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
    """Learns how much longer the batches of one model take than its profile says.

    It has one factor for each number of cores, which begins at the mean of all. A batch of any size
    counts for all sizes on these cores, since their ratios were measured.

    Under a CPU quota a lone batch runs at full speed on unused quota, and batches back to back do
    not. So a batch counts as long as its profile says, and as its cores take to grant what it used.
    """

    def __init__(self, spec: SystemSpec, measured_s: FloatArray) -> None:
        """Start from the (cores, batches) seconds of the profile."""
        self._cpu_cores = spec.first.cpu_cores
        self._least_ratio = 1.0 if math.isfinite(self._cpu_cores) else RATIO_RANGE[0]
        self._measured_s = np.ascontiguousarray(measured_s)
        self._known = np.zeros((3, len(measured_s)))
        """By number of cores: seconds that batches ran, those they should have, and the factor."""
        self._loading, self._cores = False, 0
        self._known[2] = _CAUTION
        # No batch teaches nothing; this only compiles the kernel now.
        _learn(self._known, 0, self._measured_s[0], 0.0, 1.0, 0.0, self._least_ratio)

    def observe(self, view: SystemView) -> bool:
        """Take in the interval that has passed; return whether it changed the table."""
        last, cores, starting = view.last, view.first.cores_in_force, bool(view.first.starting_s)
        loading, self._loading = self._loading or starting, starting
        resized, self._cores = self._cores not in (0, cores), cores
        if resized or last is None or not last.service_mean_s > 0 or last.cores > self._cpu_cores:
            # Batches on other cores, or on replicas that share a CPU, say nothing.
            return False
        batches = (last.on_time + last.late) / last.batch_mean
        ran_s = last.service_mean_s * batches
        if math.isfinite(self._cpu_cores) and not (loading or last.restarts):
            # A replica that loads its model uses its cores, too.
            ran_s = max(ran_s, last.utilisation * last.core_seconds / cores)
        row_s, least = self._measured_s[cores - 1], self._least_ratio
        return _learn(self._known, cores - 1, row_s, batches, last.batch_mean, ran_s, least)

    @property
    def table_s(self) -> FloatArray:
        """(cores, batches) seconds to plan with now."""
        table_s: FloatArray = self._measured_s * self._known[2, :, None]
        return table_s


@entry_point
def _learn(
    known: FloatArray, row: int, row_s: FloatArray, batches: float, batch: float, ran_s: float,
    least_ratio: float,
) -> bool:  # fmt: skip
    """Take in batches of a mean size that ran so long in all; return whether factors changed."""
    # It updates ``ServiceTimes._known``: the number of cores in ``row`` learns, all forget a bit.
    below, most = min(int(batch), row_s.size), RATIO_RANGE[1]
    rise_s = row_s[min(below, row_s.size - 1)] - row_s[below - 1]
    planned_s = batches * (rise_s * (batch - below) + row_s[below - 1])
    for cores in range(known.shape[1]):
        weight = 1.0 if cores == row else 0.0
        believed_s = min(max(ran_s, least_ratio * planned_s), most * planned_s)
        known[0, cores] = known[0, cores] * _FORGET + weight * believed_s
        known[1, cores] = known[1, cores] * _FORGET + weight * planned_s
    ran, planned, factors = known
    mean = pairwise_sum(ran) + _PRIOR_S * _CAUTION
    mean /= pairwise_sum(planned) + _PRIOR_S
    changed = False
    for learns in range(2):  # checks first, then writes: a kernel has no memory of its own
        for cores in range(factors.size):
            factor = (ran[cores] + _PRIOR_S * mean) / (planned[cores] + _PRIOR_S)
            changed |= abs(factor / factors[cores] - 1) > _NOTABLE
            factors[cores] = factor if learns and changed else factors[cores]
    return changed


class StageTimes:
    """Learns the service times of every stage and variant, in one table for all."""

    def __init__(self, spec: SystemSpec) -> None:
        self._spec, self._shares = spec, shares(spec, "proportional")
        sizes = [(len(each.latencies), each.cores_max, each.batch_max) for each in spec.stages]
        self.service_s = np.full((len(sizes), *np.max(sizes, axis=0)), math.inf)
        """(stages, variants, cores, batches) seconds of a batch; infinite beyond a stage's own."""
        self._before = [-1] * len(spec.stages)
        self._times: list[list[ServiceTimes]] = []
        for k, stage in enumerate(spec.stages):
            own = stage_spec(spec, k, self._shares[k][0])
            tables_s = [stage.service_s(variant) for variant in range(len(stage.latencies))]
            self._times.append([ServiceTimes(own, table_s) for table_s in tables_s])
            for variant in range(len(tables_s)):
                self._plan_with(k, variant)

    def observe(self, view: SystemView) -> list[tuple[int, int]]:
        """Take in the interval that has passed; return the stages and variants that changed."""
        # Only stages in which one variant served throughout can learn.
        changed = []
        for k, part in enumerate(stage_views(view, self._spec, self._shares)):
            variant = in_force(view.stages[k].allocation)
            before, self._before[k] = self._before[k], variant
            alone = len(self._times[k]) == 1
            if (alone or variant == before) and self._times[k][variant].observe(part):
                self._plan_with(k, variant)
                changed.append((k, variant))
        return changed

    def table_s(self, k: int, variant: int) -> FloatArray:
        """Return the part of the table that a stage's variant has: (cores_max, batch_max)."""
        return self._times[k][variant].table_s

    def _plan_with(self, k: int, variant: int) -> None:
        own_s = self.table_s(k, variant)
        self.service_s[k, variant, : own_s.shape[0], : own_s.shape[1]] = own_s


def in_force(allocation: StageAllocation) -> int:
    """Return the variant to plan with: the one asked for, or the first where batches choose."""
    return max(allocation.variant, 0)


def cost_curve(service_s: FloatArray) -> list[tuple[float, float]]:
    """Return cores against rate: where each straight piece ends, and its core-seconds per request.

    It is the lower convex hull of the rates that each number of cores serves, by (cores_max,
    batch_max) seconds of a batch: alternating between two numbers serves any rate between theirs.
    """
    batches, ends = np.arange(1, service_s.shape[1] + 1), [(0.0, 1.0)]
    slopes: list[float] = []
    for cores, rate_rps in enumerate((batches / service_s).max(axis=1).tolist(), start=1):
        if rate_rps <= ends[-1][0]:
            continue  # more cores that serve no more never pay
        while slopes and slopes[-1] >= (cores - ends[-1][1]) / (rate_rps - ends[-1][0]):
            del ends[-1], slopes[-1]
        slopes.append((cores - ends[-1][1]) / (rate_rps - ends[-1][0]))
        ends.append((rate_rps, float(cores)))
    return [(end_rps, slope) for (end_rps, _), slope in zip(ends[1:], slopes, strict=True)]


def price_of(curve: Sequence[tuple[float, float]], rate_rps: float) -> float:
    """Return the core-seconds that one more request costs at a rate.

    It is 0 where a single core serves more, and stays the same beyond what all cores serve.
    """
    return next((slope for end_rps, slope in curve if rate_rps <= end_rps), curve[-1][1])
