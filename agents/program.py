"""Sponge's integer program: what is minimised, what stays the same, what a decision looks at.

Minimise the cost of variant, cores and batch size of each stage so that no request misses its
deadline. The published formulation, of one stage, gives every request the worst budget; ours
follows each request's own deadline (:mod:`.lateness`). If every choice makes some late, it makes
the fewest late, and of such choices takes the one that works the backlog off fastest. It is solved
by dynamic programming or, on request, with PuLP (:mod:`.stages`).
"""

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from sponge_env.arrays import FloatArray
from sponge_env.interfaces import StageSpec, StageView, SystemSpec, SystemView
from sponge_env.latency import LatencyModel, quantile

from .rates import ROUNDING, Forecast

TICKS = 128  # Ticks of an SLO. Latencies are rounded up to them, and budgets down.
_TASKS_SHARE = 0.9  # Share of the requests whose tasks are planned for; the others have more
_MAX_TASKS = 256
_MARGIN_PROBABILITY = 0.9  # Of a latency below prediction plus margin, by the fit's residuals


class StageTables(NamedTuple):
    """What stays the same for a stage during an episode."""

    service_s: FloatArray  # (variants, cores_max, batch_max) seconds of a batch, with the margin
    coefficients_s: FloatArray  # (variants, 4) gamma, epsilon, delta and eta of each latency model
    loss: FloatArray  # (variants,) cores that the accuracy lost to the best variant is worth
    group: int  # Tasks of a request to plan for
    before_s: float  # Shortest service of the stages before it
    left_s: float  # Shortest service here and in the stages after: with less a task is hopeless
    tick_s: float
    interval_s: float
    delay_s: float  # Time until a decision is in force


class StageLoad(NamedTuple):
    """A stage as one decision sees it; times count from now."""

    due_s: FloatArray  # (queued,) when each waiting task is due, ascending
    arrivals_s: FloatArray  # (arrivals, 2) when more come, and when these are due; overwritten
    ready_s: float  # Seconds until there is a replica
    running: FloatArray  # (replicas, 2) seconds until each is free, ascending, and its batch's size
    free_s: FloatArray  # (replicas,) the same seconds under an option's cores; overwritten
    variant: int  # In force, as are the cores
    cores: int
    before_s: FloatArray  # (variants, batch_max) mean seconds of a batch until the decision holds
    replicas: int  # Those that hold cores
    rate_rps: float  # Tasks per second to be ready for
    noise: float  # Up to ``n + noise * sqrt(n)`` tasks arrive where ``n`` are expected
    budget_low_s: float  # Lowest and highest budget of those that arrive
    budget_high_s: float


def idle_state(tables: StageTables) -> StageLoad:
    """Return the state of a stage with one replica and no load."""
    times = np.empty(0), np.empty((0, 2)), 0.0, np.zeros((1, 2)), np.zeros(1)
    return StageLoad(*times, 0, 1, tables.service_s[:, 0].copy(), 1, 0.0, 0.0, 0.0, 0.0)


class SystemModel:
    """Lays out a chain of stages, which may be a single one, for the kernels."""

    def __init__(self, spec: SystemSpec, which: str, accuracy_price: float) -> None:
        """Take all variants into account, or only the ``smallest`` or ``largest`` of each stage."""
        self._spec = spec
        part = {"smallest": slice(-1, None), "largest": slice(1)}.get(which, slice(None))
        self.variants = [range(len(each.latencies))[::-1][part] for each in spec.stages]
        """Each row's variant in a stage's tables, the most accurate first where costs are equal."""
        self._fits = [
            [stage.latencies[variant] for variant in variants]
            for stage, variants in zip(spec.stages, self.variants, strict=True)
        ]
        # Relative allowance within which most latencies stay.
        self._margins = [
            [max(0.0, quantile(fit.residual_quantiles, _MARGIN_PROBABILITY)) for fit in fits]
            for fits in self._fits
        ]
        tasks = tasks_of_requests(spec.stages)
        self._spread = [_spread(each) for each in tasks]
        tables_s = [
            [fit.table_s(stage.batch_max, stage.cores_max).T for fit in fits]
            for stage, fits in zip(spec.stages, self._fits, strict=True)
        ]
        fastest_s = [min(float(table_s[-1, 0]) for table_s in each) for each in tables_s]
        self.tables = []
        for k, stage in enumerate(spec.stages):
            fitted = [(fit.gamma_s, fit.epsilon_s, fit.delta_s, fit.eta_s) for fit in self._fits[k]]
            margins = 1 + np.array(self._margins[k])
            tables = StageTables(
                service_s=np.ascontiguousarray(margins[:, None, None] * tables_s[k]),
                coefficients_s=np.array(fitted),
                loss=accuracy_price * stage.percent_lost[self.variants[k]],
                # How many tasks a request has at most, with a few exceptions.
                group=max(1, int(np.searchsorted(np.cumsum(tasks[k]), _TASKS_SHARE))),
                before_s=sum(fastest_s[:k], 0.0),
                left_s=sum(fastest_s[k:]),
                tick_s=spec.slo_s / TICKS,
                interval_s=spec.interval_s,
                delay_s=spec.resize_delay_s,
            )
            self.tables.append(tables)

    def service_s(self, k: int, view: SystemView) -> FloatArray:
        """Return a stage's (cores_max, batch_max) seconds of a batch with the variant in force."""
        table_s: FloatArray = self.tables[k].service_s[self._row(k, view.stages[k])]
        return table_s

    def _row(self, k: int, stage: StageView) -> int:
        """Return the row of the variant in force in the tables; the first if they lack it."""
        variants, variant = self.variants[k], stage.allocation.variant
        return variants.index(variant) if variant in variants else 0

    def states(
        self, view: SystemView, forecast: Forecast, replicas: Sequence[int]
    ) -> list[StageLoad]:
        """Lay a decision out, for so many replicas of each stage."""
        spec, states = self._spec, []
        rate_rps, noise, low_s, high_s = forecast
        arrivals = max(0, math.ceil(rate_rps * (spec.interval_s + spec.resize_delay_s) - ROUNDING))
        for k, stage in enumerate(view.stages):
            row, cores = self._row(k, stage), stage.cores_in_force
            running = self._running(k, row, stage, replicas[k], view.now_s)
            state = StageLoad(
                stage.queued_deadlines_s - view.now_s, np.empty((arrivals, 2)),
                0.0 if stage.replicas_ready else float(running[0, 0]), running,
                np.empty(len(running)), row, cores, self._before_s(k, stage), replicas[k],
                rate_rps * spec.stages[k].mean_tasks, noise * self._spread[k], low_s, high_s,
            )  # fmt: skip
            states.append(state)
            arrivals = 0  # what comes later to the next stages is not forecast
        return states

    def _running(self, k: int, row: int, stage: StageView, count: int, now_s: float) -> FloatArray:
        """Return when each replica is free, and what it runs; see :attr:`StageLoad.running`."""
        # A running batch has the margin, too. Of more batches than count, those that end last
        # are taken to stay. If no replica is ready, those that start serve once they are.
        ready, cores, batches = min(stage.replicas_ready, count), stage.cores_in_force, []
        if not ready:
            starting = [(starts_s, 0) for starts_s in stage.starting_s[:count]]
            return np.array(starting or [(0.0, 0)], np.float64)
        fit, margin = self._fits[k][row], self._margins[k][row]
        for batch in stage.running:
            left_s = batch.expected_end_s + margin * _predicted_s(fit, batch.size, cores) - now_s
            batches.append((max(0.0, left_s), batch.size))
        running = np.zeros((ready, 2))
        for at, (left_s, size) in enumerate(sorted(batches, reverse=True)[:ready], 1):
            running[-at, 0], running[-at, 1] = left_s, size
        return running

    def _before_s(self, k: int, stage: StageView) -> FloatArray:
        """Return (variants, batch_max) seconds of a batch until this decision is in force."""
        service_s, cores = self.tables[k].service_s, stage.cores_in_force
        if not stage.pending:
            return np.ascontiguousarray(service_s[:, cores - 1])
        # A mean of speeds: pending resizes take effect one after the other.
        speed, from_s, delay_s = np.zeros(service_s[:, 0].shape), 0.0, self._spec.resize_delay_s
        for starts_s, next_cores in (*stage.pending, (delay_s, 0)):
            until_s = min(starts_s, delay_s)
            speed += (until_s - from_s) / service_s[:, cores - 1]
            cores, from_s = next_cores, until_s
        mean_s: FloatArray = delay_s / speed
        return mean_s


@lru_cache(maxsize=4096)
def _predicted_s(latency: LatencyModel, batch: int, cores: int) -> float:
    return float(latency.predict_s(batch, cores))


def tasks_of_requests(stages: Sequence[StageSpec]) -> list[FloatArray]:
    """Return for each stage of a chain the probabilities that a request has 0, 1, ... tasks."""
    tasks = [np.array([0.0, 1.0])]
    for lead in stages[:-1]:
        sums, power = np.zeros(_MAX_TASKS + 1), np.ones(1)
        for share in tasks[-1]:
            sums[: power.size] += share * power
            power = np.convolve(power, lead.tasks)[: _MAX_TASKS + 1]
        sums[-1] += 1 - sums.sum()  # requests with more tasks
        tasks.append(sums)
    return tasks


def _spread(tasks: FloatArray) -> float:
    """Return how much more tasks scatter than requests, whose number scatters as Poisson's."""
    counts = np.arange(tasks.size)
    mean = float(tasks @ counts)
    return math.sqrt(float(tasks @ counts**2) / mean) if mean > 0 else 1.0
