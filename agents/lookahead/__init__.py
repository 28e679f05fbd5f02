"""``sponge-mpc`` and its look-ahead program: plays the next seconds and takes the cheapest.

Read on in :mod:`.kernel`, which prices allocations along the sample paths of :mod:`.forecast`.
At the end stands what batches take, for a fit of four numbers misses single cells of the table of
service times, by up to 28 %. Tables have shape (cores_max, batch_max), or so for each variant of
each stage, and are the seconds of a batch: row ``c - 1``, column ``b - 1``.
"""

from __future__ import annotations

import bisect
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from sponge_env.arrays import FloatArray, IntArray
from sponge_env.chain import is_chain
from sponge_env.controllers import BaseController, Options, option
from sponge_env.interfaces import (
    Allocation,
    StageAllocation,
    StageView,
    SystemSpec,
    SystemView,
    together,
)
from sponge_env.split import shares, stage_view

from .forecast import Flow, Outlook, fit_rate, make_chance
from .kernel import BATCH, Decision, Rules, make_scratch, plan
from .tandem import HEAD, TAIL

_OVERDUE = 0.02
"""Share of its service time that a batch is taken to need still when it should have ended."""
_PLACES = 512
"""Arrivals that each path can hold at first."""
_PLAYED, _PLAYED_CORES = 600, 16
"""Requests that are played on each path at most where there are so many cores to choose from,
and in proportion fewer where there are more, so that a decision takes a few milliseconds."""
_DRAWS = 1021
"""Draws of a fan-out; a prime, so that paths of any length begin elsewhere each time."""
_NO_TASKS = np.zeros(_DRAWS, np.int64)
_NO_LIMIT = 1 << 30
_LATE_IN_ONE_PLAN = 0.5
"""Late requests to expect from which on a plan counts as infeasible."""
SEEN_RANGE = (0.5, 2.0)
"""What was seen is not believed beyond these multiples of the fit."""
_TRUST = 2
"""Intervals that the fit counts for against those with full batches."""
_REMEMBERED = 20
"""Such intervals that count at most."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MPCConfig(Options):
    """Options of the look-ahead program.

    Prices are in core-seconds of the system's core units. The defaults were chosen on training
    seeds over all scenarios and profiles at once; ``python -m benchmarks.ablations`` shows what
    each ingredient contributes.
    """

    forecast: bool = True
    """Follow the flow of requests through the network: rate, scatter, bandwidth, and what is on
    the way. Without, the next interval brings what the last one brought, evenly."""
    risk: bool = True
    """Play several futures, weighted by their probability; without, the expected one."""
    batching: bool = True
    """Choose the largest batch together with the cores; without, it is the system's largest."""
    learning: bool = True
    """Correct the fitted service times by those that are seen."""
    look_ahead: int = option(1, at_least=0, at_most=5)
    """Intervals after the next one that are played, each future with the cores that suit it."""
    late_price: float = option(15.0, at_least=0)
    """What a late request costs."""
    backlog_price: float = option(1.2, at_least=0)
    """What a request costs that is left at the end of the look-ahead, relative to what serving
    one more costs at the forecast rate."""
    release_price: float = option(0.0, at_least=0)
    """What giving up one core costs: hysteresis when scaling down."""
    accuracy_price: float = option(2.0, at_least=0)
    """Cores that a percent of accuracy is worth, where there are model variants."""
    guard: float = option(0.15, above=0, below=1)
    """Share of the SLO before a deadline within which an answer counts as late in part, the
    more the closer it comes: predictions are not that exact."""


class SpongeMPC(BaseController):
    """Vertical scaling by receding horizon: simulate, choose, and simulate anew.

    It plays the queues of all stages under a candidate allocation along weighted sample paths of
    arrivals and bandwidth, lets each path go on with the cores that suit it then (vertical scaling
    acts at once, so the next decision can come to the rescue), and minimises

        cores + late_price * late requests + price of the backlog left at the end
        + accuracy_price * percent of accuracy lost.

    The price of the backlog, which is what serving one more request costs at the forecast rate,
    keeps the cores at the level that the load needs in the long run. It asks for one replica
    always, in a pipeline for those that each stage begins with, and takes everything before the
    load is known.
    """

    config: MPCConfig

    def plans(self, spec: SystemSpec) -> bool:
        """Return whether the stages are a chain."""
        return is_chain(spec.stages)

    def begin(self, spec: SystemSpec) -> None:
        """Start from the fitted service times; compiles at the first call."""
        self._service_s = fitted_s(spec)
        self._times = [
            [ServiceTimes(table_s[: s.cores_max, : s.batch_max]) for table_s in tables_s]
            for s, tables_s in zip(spec.stages, self._service_s, strict=True)
        ]
        self._shares = shares(spec, "proportional")
        held = [stage.replicas for stage in spec.initial.stages]
        self._program = LookAhead(
            spec, self.config, self._service_s, held if len(held) > 1 else [1]
        )

    def allocate(self, spec: SystemSpec, view: SystemView) -> Allocation:
        """Choose variant, cores and batch size of each stage for the next interval."""
        if not view.arrivals.size:
            return self._program.everything(view)
        if self.config.learning and self._learnt(spec, view):
            self._program.use(self._service_s)
        return self._program.choose(view)

    def _learnt(self, spec: SystemSpec, view: SystemView) -> bool:
        """Take in how long the last batches took; return whether that changes what is believed."""
        changed = False
        for k, each in enumerate(view.stages):
            part = view if len(view.stages) == 1 else stage_view(view, spec, k, *self._shares[k])
            changed |= self._times[k][each.allocation.variant].observe(part)
        return changed


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


class LookAhead:
    """Decides through one episode, for a chain of stages.

    Where more requests wait or are expected than can be played in time, groups of them are played:
    each is served as a whole, batches are multiples of a group, and rates are groups per second.
    """

    def __init__(
        self, spec: SystemSpec, config: MPCConfig, service_s: FloatArray, replicas: Sequence[int]
    ) -> None:
        """Start an episode; the kernel is compiled now, so that no decision waits for it.

        (stages, variants, cores, batches) are the seconds of a batch. They may change in place;
        :meth:`use` is to be told.
        """
        self._spec, self._config, stages = spec, config, spec.stages
        self._chance = make_chance(config.risk)
        self._flow = Flow(spec, naive=not config.forecast)
        self._tasks = np.array([drawn_tasks(stage.tasks) for stage in stages[:-1]] + [_NO_TASKS])
        self._mean_tasks = [stage.mean_tasks for stage in stages]
        pairs = pairwise(self._mean_tasks)
        self._ratios = [0.0, *(after / lead if lead else 0.0 for lead, after in pairs)]
        self._batch_max = [stage.batch_max for stage in stages]
        self._most_cores = max(stage.cores_max for stage in stages)
        self._loss = np.zeros(service_s.shape[:2])
        for k, stage in enumerate(stages):
            self._loss[k, : len(stage.latencies)] = config.accuracy_price * stage.percent_lost
        self._replicas = list(replicas)
        self.use(service_s)
        rules, paths = self._rules(1), self._chance.weight.size
        self._scratch = make_scratch(
            rules, paths, self._intervals(config), max(self._batch_max), _PLACES
        )
        fit_rate(np.ones(1), np.ones(1), spec.interval_s)
        nothing = Outlook(1.0, 0.0, 0.0, 0.1, 0.1, 0.0)
        ones, least = np.ones(len(stages), np.int64), np.array([(0, 1, 1)] * len(stages))
        decision = Decision(
            rules,
            self._chance,
            self._scratch,
            np.zeros(service_s.shape[:2]),
            ones,
            ones,
            np.empty((len(stages), 0, 2)),
        )
        plan(decision, nothing, self._flow.kinds, least)

    def use(
        self,
        service_s: FloatArray,
        replicas: Sequence[int] = (),
        cores_max: int | None = None,
    ) -> None:
        """Plan with other service times, other replicas, and of one stage so many cores at most.

        Service times on more cores are those of the cores in force, which may still be more.
        """
        stages = self._spec.stages
        self._service_s = service_s
        self._curves = [
            [cost_curve(tables_s[v, : s.cores_max, : s.batch_max]) for v in range(len(s.latencies))]
            for tables_s, s in zip(service_s, stages, strict=True)
        ]
        if replicas:
            self._replicas = list(replicas)
        self._limits = np.array(
            [(len(s.latencies), cores_max or s.cores_max, s.batch_max) for s in stages]
        )

    def correct(self, config: MPCConfig) -> None:
        """Plan with other options, but for those that say what is known of the future."""
        self._config = config
        self._scratch = self._scratch._replace(speed=np.empty(self._intervals(config)))

    def _intervals(self, config: MPCConfig) -> int:
        """Return how many intervals are played, in part or whole."""
        delayed = math.ceil(self._spec.resize_delay_s / self._spec.interval_s)
        return delayed + 1 + config.look_ahead

    def everything(self, view: SystemView) -> Allocation:
        """Return what to hold while the load is unknown: all that has room."""
        wanted = [
            StageAllocation(stage.cores_max, stage.batch_max, replicas, each.allocation.variant)
            for stage, each, replicas in zip(
                self._spec.stages, view.stages, self._replicas, strict=True
            )
        ]
        return Allocation(stages=together(wanted, self._spec.total_cores))

    def choose(self, view: SystemView) -> Allocation:
        """Take in the interval that has passed, and choose for the next one."""
        spec, outlook = self._spec, self._flow.observe(view)
        # What is on the way or will be sent before the look-ahead ends.
        played_s = self._scratch.speed.size * spec.interval_s
        on_the_way_s = outlook.transfer_s * max(1.0, float(self._flow.kinds[:, 0].max()))
        expected = outlook.rate_rps * (played_s + on_the_way_s)
        group = self._group(view, expected)
        rules = self._rules(group)
        self._reserve(view, rules, expected, group)
        for k, stage in enumerate(view.stages):
            self._fill(k, view, stage, outlook.rate_rps * spec.stages[k].mean_tasks, group)
        limits, asked = rules.limits.tolist(), view.allocation.stages
        best = np.array(
            [
                (
                    max(each.variant, 0),
                    min(each.cores, cores),
                    in_groups(each.batch, group, batch) if rules.batching else batch,
                )
                for each, (_, cores, batch) in zip(asked, limits, strict=True)
            ]
        )
        late, _ = plan(
            Decision(
                rules,
                self._chance,
                self._scratch,
                self._backlog_prices(outlook.rate_rps, [each.variant for each in asked], group),
                np.array([each.cores for each in asked]),
                np.array([stage.cores_in_force for stage in view.stages]),
                np.array([each.pending for each in view.stages]).reshape(len(view.stages), -1, 2),
            ),
            # In groups, the number of requests scatters less.
            outlook._replace(rate_rps=outlook.rate_rps / group, scatter=outlook.scatter / group),
            self._flow.kinds,
            best,
        )
        queues_s = [stage.queued_deadlines_s for stage in view.stages]
        expired = any(queue_s.size and queue_s[0] < view.now_s for queue_s in queues_s)
        feasible = not expired and bool(group * late < _LATE_IN_ONE_PLAN)
        stages = tuple(
            StageAllocation(cores, min(group * batch, stage.batch_max), replicas, variant)
            for (variant, cores, batch), replicas, stage in zip(
                best.tolist(), self._replicas, spec.stages, strict=True
            )
        )
        return Allocation(stages=stages, feasible=feasible)

    def _group(self, view: SystemView, expected: float) -> int:
        """Return how many tasks are played as one, if so many requests are expected."""
        most = _PLAYED * _PLAYED_CORES / max(self._most_cores, _PLAYED_CORES)
        longest = max(
            each.queued_deadlines_s.size + expected * stage.mean_tasks
            for each, stage in zip(view.stages, self._spec.stages, strict=True)
        )
        return max(1, math.ceil(longest / most))

    def _backlog_prices(self, rate_rps: float, variants: Sequence[int], group: int) -> FloatArray:
        """Return (stages, variants) what a group costs that is left, with all that it leads to."""
        prices, later = np.zeros(self._loss.shape), 0.0
        own_price = group * self._config.backlog_price
        for k in reversed(range(len(variants))):
            own_rps = rate_rps * self._mean_tasks[k] / self._replicas[k]
            for variant, curve in enumerate(self._curves[k]):
                prices[k, variant] = own_price * curve.price(own_rps) + later
            later = self._ratios[k] * float(prices[k, variants[k]])
        return prices

    def _rules(self, group: int) -> Rules:
        config, spec, limits = self._config, self._spec, self._limits
        if group > 1:
            limits = limits.copy()
            limits[:, BATCH] = np.maximum(limits[:, BATCH] // group, 1)
        return Rules(
            service_s=grouped_service_s(self._service_s, self._batch_max, group),
            limits=limits,
            loss=self._loss,
            tasks=self._tasks,
            replicas=np.array(self._replicas),
            # Of one stage the most cores say it.
            total_cores=spec.total_cores if len(spec.stages) > 1 else _NO_LIMIT,
            interval_s=spec.interval_s,
            delay_s=spec.resize_delay_s,
            look_ahead=config.look_ahead,
            guard_s=config.guard * spec.slo_s,
            late_price=group * config.late_price,
            release_price=config.release_price,
            batching=config.batching,
        )

    def _reserve(self, view: SystemView, rules: Rules, expected: float, group: int) -> None:
        """Let the memory hold the queues and the arrivals of each path, rare large numbers too."""
        scratch, stages = self._scratch, view.stages
        (_, capacity), places = scratch.start.due_s.shape, scratch.arrivals_s.shape[2]
        tasks = [s.queued_deadlines_s.size + sum(b.size for b in s.running) for s in stages]
        waiting = max(tasks) // group + max(self._replicas) + 1
        if len(stages) > 1:  # what waits or runs goes on to the later ones
            expected = expected * max(self._mean_tasks) + sum(tasks) * max(self._ratios)
        expected /= group
        wanted = int(2.0 * expected + 10.0 * expected**0.5) + 10
        fits = waiting <= capacity - places and wanted <= places
        if not fits or scratch.start.size.shape[1] != max(self._replicas):
            paths, intervals = scratch.counts.size, scratch.speed.size
            places = max(2 * wanted, _PLACES)
            self._scratch = make_scratch(rules, paths, intervals, 2 * waiting, places)

    def _fill(
        self, k: int, view: SystemView, stage: StageView, rate_rps: float, group: int
    ) -> None:
        """Write a stage's running batches and waiting tasks into the memory, in groups.

        A group is due with the first of its tasks. When a running task is due a view does
        not say: they came before those that wait, or are the newest arrivals, at the rate.
        """
        queues, now_s, spec = self._scratch.start, view.now_s, self._spec
        ahead, largest = 0, max(1, self._batch_max[k] // group)
        row_s = self._service_s[k, stage.allocation.variant, stage.cores_in_force - 1]
        asked_s = spec.resize_delay_s + spec.stages[k].cold_start_s
        queues.free_s[k], queues.size[k] = math.inf, 0
        states = replica_states(stage, now_s, asked_s, self._replicas[k])
        for at, (free_s, size) in enumerate(states):
            groups = in_groups(size, group, largest) if size else 0
            queues.free_s[k, at] = max(free_s, _OVERDUE * row_s[size - 1]) if size else free_s
            queues.first[k, at], queues.size[k, at] = ahead, groups
            ahead += groups
        queued_s = stage.queued_deadlines_s[::group]
        tail = ahead + queued_s.size
        np.subtract(queued_s, now_s, out=queues.due_s[k, ahead:tail])
        newest_s = float(view.budgets_s[-1]) if view.budgets_s.size else spec.slo_s
        if queued_s.size:
            newest_s = float(queued_s[0]) - now_s
        older_s = np.arange(ahead, 0, -1) / max(rate_rps, 1.0)
        queues.due_s[k, :ahead] = newest_s - older_s
        queues.marks[k] = 0
        queues.marks[k, HEAD], queues.marks[k, TAIL] = ahead, tail


def drawn_tasks(shares: Sequence[float]) -> IntArray:
    """Return draws of how many tasks an answer leads to, by the probabilities of 0, 1, 2, ..."""
    rng = np.random.default_rng(0)
    # One draw from each part of the distribution, so that they have its mean.
    places = (rng.permutation(_DRAWS) + 0.5) / _DRAWS
    return np.searchsorted(np.cumsum(shares[:-1]), places, side="right")


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


def in_groups(requests: int, group: int, largest: int) -> int:
    """Return a batch's size in groups, between 1 and ``largest``."""
    return min(max(1, round(requests / group)), largest)


def replica_states(
    stage: StageView, now_s: float, asked_s: float, replicas: int
) -> list[tuple[float, int]]:
    """Return when each replica is free, in seconds, and the size of its batch; soonest first.

    One that is asked for now is ready after ``asked_s``. A batch on a replica beyond the ready ones
    is on one that goes when it is done; the view does not say which that is, so the batches that
    end last are taken to stay.
    """
    ready = min(stage.replicas_ready, replicas)
    batches = [(max(0.0, b.expected_end_s - now_s), b.size) for b in stage.running]
    busy = sorted(batches, reverse=True)[:ready]
    idle = [(0.0, 0)] * (ready - len(busy))
    cold = [*stage.starting_s, *[asked_s] * replicas][: replicas - ready]
    return sorted([*busy, *idle, *((left_s, 0) for left_s in cold)])


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
    slopes = tuple(itertools.starmap(_slope, pairwise(hull)))
    return CostCurve(tuple(rate_rps for rate_rps, _ in hull[1:]), slopes)


def _slope(left: tuple[float, float], right: tuple[float, float]) -> float:
    return (right[1] - left[1]) / (right[0] - left[0])
