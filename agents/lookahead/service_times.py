"""What batches take and what serving costs by that.

A fit of four numbers misses single cells of the table of service times, by up to 28 %. Tables have
shape (cores_max, batch_max), seconds of a batch: row ``c - 1``, column ``b - 1``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from sponge_env.arrays import FloatArray
from sponge_env.control.split import shares, stage_spec, stage_views
from sponge_env.interfaces import StageAllocation, SystemSpec, SystemView

RATIO_RANGE = (0.5, 2.0)
"""Measured service times are believed between these multiples of the fit."""
_TRUST = 2
"""Intervals that the fit counts for against those with full batches."""
_REMEMBERED = 20
"""Such intervals that count at most."""
_PRIOR_S = 1.0
"""Service that the first guess of a service time counts for."""
_FORGET = 0.998
"""Weight that experience of service times keeps per interval."""
_SAME_BATCH = 0.1
"""Distance of a mean batch size from a whole number up to which all batches count as equal."""


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


class FullBatchTimes:
    """Learns the service times of one model from the gaps between full batches.

    An interval tells the time of a cell where nothing is mixed: under the same cores as before,
    all its batches full. Full batches follow each other without a gap, for a replica that waits
    takes the first request that comes alone. So the batches that ended took the time from the
    start of the one that ran before to the start of the one that runs now.
    """

    def __init__(self, fit_s: FloatArray) -> None:
        """Start from the (cores, batches) seconds of the fit."""
        self._fit_s, self.table_s = fit_s, fit_s.copy()
        self._count: dict[tuple[int, int], int] = {}
        self._before: SystemView | None = None

    def observe(self, view: SystemView) -> bool:
        """Take in the interval that has passed; return whether it changed the table."""
        before, self._before = self._before, view
        last, batch, cores = view.last, view.allocation.batch, view.first.cores_in_force
        if (
            before is None
            or last is None
            or not len(before.first.running) == len(view.first.running) == 1
            or before.first.cores_in_force != cores
            # A lone request is a full batch of one: it says nothing about gaps before it.
            or not last.batch_mean == batch > 1
            or last.restarts  # the time of a batch that died says nothing
            or last.on_time + last.late < batch
        ):
            return False
        whole_s = view.first.running[0].started_s - before.first.running[0].started_s
        if whole_s <= 0:
            return False
        mean_s = whole_s / round((last.on_time + last.late) / batch)
        cell = cores - 1, batch - 1
        count = self._count[cell] = min(self._count.get(cell, 0) + 1, _REMEMBERED)
        step_s = believable_s(np.array(mean_s), self._fit_s[cell]) - self.table_s[cell]
        self.table_s[cell] += step_s / (_TRUST + count)
        return True


def believable_s(seconds: FloatArray, fit_s: FloatArray) -> FloatArray:
    """Return measured times, but none outside :data:`RATIO_RANGE` times the fit's."""
    return np.clip(seconds, RATIO_RANGE[0] * fit_s, RATIO_RANGE[1] * fit_s)


class QuotaTimes:
    """Learns the service times of one model from how long batches ran.

    An interval tells how long its batches ran, and their mean size. Where all were of one size,
    that is the latency of one cell of the table. What was never seen keeps the first guess.

    Under a CPU quota a lone batch runs at full speed on what the quota has left, and batches
    back to back do not. So a batch counts as long as its cores take to grant what it used,
    should that be longer than it ran.
    """

    def __init__(self, spec: SystemSpec, margin: float, safety: float) -> None:
        """Start from the fit, with a first guess of how much longer batches take than that.

        ``safety`` is the allowance on what is learned, for single batches scatter.
        """
        self._cpu_cores, self._delayed = spec.first.cpu_cores, spec.resize_delay_s > 0
        self._fit_s = spec.first.latency.table_s(spec.first.batch_max, spec.first.cores_max).T
        self._guess_s = self._fit_s * (1 + margin)
        self._sums = np.zeros((3, *self._fit_s.shape))
        """Seconds that batches ran, seconds until they were granted their CPU time, and batches."""
        self._safety, self._loading, self._cores = safety, False, 0

    def observe(self, view: SystemView) -> bool:
        """Take in the interval that has passed; return whether it changed the table."""
        last, cores, starting = view.last, view.first.cores_in_force, bool(view.first.starting_s)
        loading, self._loading = self._loading or starting, starting
        resized, self._cores = self._cores not in (0, cores), cores
        if self._delayed and resized:
            return False  # in the middle of the interval
        if last is None or not last.service_mean_s > 0 or last.cores > self._cpu_cores:
            return False  # replicas that wait for each other's CPU say nothing of their own
        size = round(last.batch_mean)
        if abs(last.batch_mean - size) > _SAME_BATCH or size > self._fit_s.shape[1]:
            return False
        self._sums *= _FORGET
        batches = (last.on_time + last.late) / last.batch_mean
        ran_s = last.service_mean_s * batches
        # A replica that loads its model uses its cores, too.
        used_s = last.utilisation * last.core_seconds / cores
        granted_s = ran_s if loading or last.restarts else used_s
        self._sums[:, cores - 1, size - 1] += ran_s, granted_s, batches
        return True

    @property
    def table_s(self) -> FloatArray:
        """(cores, batches) seconds to plan with now."""
        ran_s, granted_s, batches = self._sums
        seen_s = believable_s(np.maximum(ran_s, granted_s), self._fit_s * batches)
        prior = _PRIOR_S / self._guess_s
        table_s: FloatArray = (_PRIOR_S + (1 + self._safety) * seen_s) / (prior + batches)
        return table_s


class StageTimes:
    """Learns the service times of every stage and variant, in one table for all."""

    def __init__(
        self,
        spec: SystemSpec,
        margin_probability: float = 0.0,
        safety: float = 0.0,
        full_batches: bool = False,
    ) -> None:
        """Start from the fits.

        The learners are :class:`FullBatchTimes`, or :class:`QuotaTimes` with the quantile of the
        fit's residuals as margin.
        """
        self._spec, self._shares = spec, shares(spec, "proportional")
        self.service_s = fitted_s(spec)
        """(stages, variants, cores, batches) seconds of a batch; infinite where a stage has no such
        variant, cores or batch."""
        self._before = [-1] * len(spec.stages)
        self._times: list[list[FullBatchTimes | QuotaTimes]] = []
        for k, (share, _) in enumerate(self._shares):
            own = stage_spec(spec, k, share)
            self._times.append([])
            for variant, fit in enumerate(spec.stages[k].latencies):
                margin = max(0.0, fit.residual_quantile(margin_probability))
                learner = (
                    FullBatchTimes(self.table_s(k, variant).copy())
                    if full_batches
                    else QuotaTimes(own.with_first(latencies=(fit,)), margin, safety)
                )
                self._times[k].append(learner)
                self.table_s(k, variant)[:] = learner.table_s

    def observe(self, view: SystemView) -> list[tuple[int, int]]:
        """Take in the interval that has passed; return the stages and variants that changed.

        It tells something of those stages in which one variant served throughout.
        """
        changed = []
        for k, part in enumerate(stage_views(view, self._spec, self._shares)):
            variant = in_force(view.stages[k].allocation)
            before, self._before[k] = self._before[k], variant
            alone = len(self._times[k]) == 1
            if (alone or variant == before) and self._times[k][variant].observe(part):
                self.table_s(k, variant)[:] = self._times[k][variant].table_s
                changed.append((k, variant))
        return changed

    def table_s(self, k: int, variant: int) -> FloatArray:
        """Return the part of the table that a stage's variant has: (cores_max, batch_max)."""
        stage = self._spec.stages[k]
        return self.service_s[k, variant, : stage.cores_max, : stage.batch_max]


def in_force(allocation: StageAllocation) -> int:
    """Return the variant to plan with where one is asked for, or batches choose."""
    return max(allocation.variant, 0)


def cost_curve(service_s: FloatArray) -> list[tuple[float, float]]:
    """Return cores against rate: where each straight piece ends, and its core-seconds per request.

    It is the lower convex hull of what each number of cores can serve by (cores_max, batch_max)
    seconds of a batch: going to and fro between two of them serves any rate between theirs.
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

    It is 0 where a single core serves more than the rate, since no fewer can be held,
    and stays at its last value beyond what all cores serve.
    """
    return next((slope for end_rps, slope in curve if rate_rps <= end_rps), curve[-1][1])
