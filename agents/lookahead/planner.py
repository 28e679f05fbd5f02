"""The look-ahead program and its options: sets a decision up for the kernel, reads its answer."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from sponge_env.arrays import FloatArray, IntArray
from sponge_env.control.base import VariantPlanning, option
from sponge_env.interfaces import Allocation, StageAllocation, StageView, SystemSpec, SystemView
from sponge_env.packing import most_cores

from .flow import Flow, FlowForecast, fit_rate
from .kernel import Problem, Rules, make_scratch, plan
from .paths import draw_paths
from .service_times import StageTimes, cost_curve, grouped_service_s, in_force, price_of
from .tandem import TAIL

_OVERDUE = 0.02  # Share of its time that a batch still needs when it should have ended
_PLACES = 512  # Arrivals that each path can hold at first
_PLAYED, _PLAYED_CORES = 600, 16
"""Most requests that are played on each path with so many cores to choose from; in proportion fewer
with more cores, so that a decision takes a few milliseconds."""
_DRAWS = 1021  # Draws of a fan-out; a prime, so that paths of any length begin at different ones
_NO_TASKS = np.zeros(_DRAWS, np.int64)
_SPARE = 0.25  # Share of their cores that ready replicas can always spare for starting ones
_GUARD_MAX = 0.9
_BACKLOG_PRICE = 1.2  # Cost of a request left at the end, over that of serving one more
_MAX_LATE = 0.5  # Expected late requests above which a plan counts as infeasible


@dataclass(frozen=True, slots=True, kw_only=True)
class MPCConfig(VariantPlanning):
    """Options of the look-ahead program.

    Prices are in core-seconds. Defaults were chosen on training seeds, over all cells at once.
    """

    look_ahead: int = option(1, at_least=0, at_most=5)
    """Intervals that are played after the next one, each path with the cores that suit it."""
    late_price: float = option(15.0, at_least=0)  # What a late request costs
    guard: float = option(0.25, above=0, below=1)
    """Share of the SLO before a deadline within which answers count as late in part, since
    predictions err. In a pipeline it is multiplied by the square root of the number of stages."""


class LookAhead:
    """Decides through one episode, for a chain of stages.

    If more requests wait or are expected than can be played in time, groups of them are played
    instead: a group is served as a whole, batches are multiples of it, rates groups per second.
    """

    def __init__(self, spec: SystemSpec, config: MPCConfig, times: StageTimes) -> None:
        """Start an episode; the kernel is compiled now, so that no decision waits for it."""
        self._spec, self._config, self._times, stages = spec, config, times, spec.stages
        self._draws, self._flow, service_s = draw_paths(), Flow(spec), times.service_s
        self._tasks = np.array([drawn_tasks(stage.tasks) for stage in stages[:-1]] + [_NO_TASKS])
        pairs = pairwise([stage.mean_tasks for stage in stages])
        self._ratios = [0.0, *(after / lead if lead else 0.0 for lead, after in pairs)]
        self._batch_max = [stage.batch_max for stage in stages]
        self._most_cores = max(stage.cores_max for stage in stages)
        self._loss = np.zeros(service_s.shape[:2])
        for k, stage in enumerate(stages):
            self._loss[k, : len(stage.latencies)] = config.accuracy_price * stage.percent_lost
        fastest_s = [float(tables_s[:, :, 0].min()) for tables_s in service_s]
        self._before_s = [sum(fastest_s[:k]) for k in range(len(stages))]
        self._curves = [
            [cost_curve(times.table_s(k, variant)) for variant in range(len(stage.latencies))]
            for k, stage in enumerate(stages)
        ]
        one_each = [1] * len(stages)
        rules = self._rules(1, one_each, one_each, [0] * len(stages))
        delayed = math.ceil(spec.resize_delay_s / spec.interval_s)
        paths, intervals = self._draws.weight.size, delayed + 1 + config.look_ahead
        self._scratch = make_scratch(rules, paths, intervals, max(self._batch_max), _PLACES)
        fit_rate(np.ones(1), np.ones(1), spec.interval_s)
        nothing = FlowForecast(1.0, 0.0, 0.0, 0.1, 0.1, 0.0, 1.0)
        ones, first = np.ones(len(stages), np.int64), np.array([(0, 1, 1)] * len(stages))
        free, none = np.zeros(service_s.shape[:2]), np.empty((0, 3))
        problem = Problem(rules, self._draws, self._scratch, free, ones, none, 0)
        plan(problem, nothing, self._flow.kinds, first)

    def observe(self, view: SystemView) -> None:
        """Learn service times and the forecast from the last interval; there must be one."""
        for k, variant in self._times.observe(view):
            self._curves[k][variant] = cost_curve(self._times.table_s(k, variant))
        self._forecast = self._flow.observe(view)

    def choose(
        self, view: SystemView, replicas: Sequence[int], make_room: bool = False
    ) -> Allocation:
        """Choose for the next interval, after :meth:`observe`.

        ``replicas`` are those that each stage is to have. Starting ones get little room beside the
        cores that the ready ones need now, unless ``make_room``.
        """
        spec, forecast = self._spec, self._forecast
        # What is on the way or will be sent before the look-ahead ends.
        played_s, kinds = self._scratch.speed.size * spec.interval_s, self._flow.kinds
        largest = max(1.0, float(kinds[:, 0].max())) if len(kinds) > 1 else 1.0
        expected = forecast.rate_rps * (played_s + forecast.transfer_s * largest)
        group, asked = self._group(view, expected), zip(view.stages, replicas, strict=True)
        ready = [max(1, min(stage.replicas_ready, n)) for stage, n in asked]
        starting = [max(0, n - r) for n, r in zip(replicas, ready, strict=True)]
        if not make_room:
            starting = [_room(spec, r, n) for r, n in zip(ready, starting, strict=True)]
        rules = self._rules(group, replicas, ready, starting)
        self._reserve(view, rules, expected, group)
        for k, stage in enumerate(view.stages):
            rate_rps = forecast.rate_rps * spec.stages[k].mean_tasks
            self._fill(k, view, stage, replicas[k], rate_rps, group)
        resizes = [(s, k, cores) for k, each in enumerate(view.stages) for s, cores in each.pending]
        last = view.allocation.stages
        # The search begins with what is in force, as far as it fits.
        first, rows = [], zip(last, rules.limits.tolist(), ready, strict=True)
        for each, (_, cores_max, batch_max), n in rows:
            batch, cores = in_groups(each.batch, group, batch_max), min(each.cores, cores_max)
            first.append(StageAllocation(cores, batch, n, in_force(each)))
        fitted = spec.fit_stages(first, "cores")
        best = np.array([(each.variant, each.cores, each.batch) for each in fitted])
        prices = self._backlog_prices(forecast.rate_rps, last, replicas, group)
        held = np.array([stage.cores_in_force for stage in view.stages])
        pending = np.array(sorted(resizes), np.float64).reshape(-1, 3)
        now = prices, held, pending, self._identify()
        # In groups, the number of requests scatters less.
        rate_rps, scatter = forecast.rate_rps / group, forecast.scatter / group
        forecast = forecast._replace(rate_rps=rate_rps, scatter=scatter)
        late, _ = plan(Problem(rules, self._draws, self._scratch, *now), forecast, kinds, best)
        queues_s = [stage.queued_deadlines_s for stage in view.stages]
        expired = any(queue_s.size and queue_s[0] < view.now_s for queue_s in queues_s)
        feasible = not expired and bool(group * late < _MAX_LATE)
        chosen = zip(best.tolist(), replicas, self._batch_max, strict=True)
        stages = [
            StageAllocation(cores, min(group * batch, most), count, variant)
            for (variant, cores, batch), count, most in chosen
        ]
        # Of several stages on several nodes the search knows all cores, and not where they are.
        serving = [each._replace(replicas=n) for each, n in zip(stages, ready, strict=True)]
        pairs = list(zip(stages, spec.fit_stages(serving, "cores"), strict=True))
        feasible &= all(each.cores == fitted.cores for each, fitted in pairs)
        stages = [each._replace(cores=fitted.cores) for each, fitted in pairs]
        fitted = spec.fit_stages(stages, "starting replicas", ready)
        return Allocation(stages=fitted, feasible=feasible)

    def _group(self, view: SystemView, expected: float) -> int:
        """Return how many tasks are played as one, if so many requests are expected."""
        most = _PLAYED * _PLAYED_CORES / max(self._most_cores, _PLAYED_CORES)
        waiting = total = 0.0
        for k, stage in enumerate(view.stages):
            waiting = waiting * self._ratios[k] + stage.queued_deadlines_s.size
            total += waiting + expected * self._spec.stages[k].mean_tasks
        return max(1, math.ceil(total / most))

    def _backlog_prices(
        self, rate_rps: float, last: Sequence[StageAllocation], replicas: Sequence[int], group: int
    ) -> FloatArray:
        """Return (stages, variants) what a group costs that is left, with all that it leads to."""
        prices, later, own_price = np.zeros(self._loss.shape), 0.0, group * _BACKLOG_PRICE
        for k in reversed(range(len(last))):
            own_rps = rate_rps * self._spec.stages[k].mean_tasks / replicas[k]
            for variant, curve in enumerate(self._curves[k]):
                prices[k, variant] = own_price * price_of(curve, own_rps) + later
            later = self._ratios[k] * float(prices[k, in_force(last[k])])
        return prices

    def _rules(
        self, group: int, replicas: Sequence[int], ready: Sequence[int], starting: Sequence[int]
    ) -> Rules:
        """Write the rules of a decision; so many that start are to have room."""
        config, spec = self._config, self._spec
        limits = [
            (len(stage.latencies), spec.most_cores(count, new, k), max(1, stage.batch_max // group))
            for k, (stage, count, new) in enumerate(zip(spec.stages, ready, starting, strict=True))
        ]
        # What is wrong about one stage adds to the others as deviations do.
        guard = min(config.guard * math.sqrt(len(spec.stages)), _GUARD_MAX)
        return Rules(
            service_s=grouped_service_s(self._times.service_s, self._batch_max, group),
            limits=np.array(limits), loss=self._loss, tasks=self._tasks,
            replicas=np.array(replicas), ready=np.array(ready),
            total_cores=spec.total_cores - sum(starting), interval_s=float(spec.interval_s),
            delay_s=float(spec.resize_delay_s), look_ahead=config.look_ahead,
            guard_s=guard * float(spec.slo_s), late_price=group * config.late_price,
        )  # fmt: skip

    def _reserve(self, view: SystemView, rules: Rules, expected: float, group: int) -> None:
        """Let the memory hold the queues and the arrivals of each path, rare large numbers too."""
        scratch, stages = self._scratch, view.stages
        (_, capacity), places = scratch.start.due_s.shape, scratch.arrivals_s.shape[2]
        tasks = [s.queued_deadlines_s.size + sum(b.size for b in s.running) for s in stages]
        replicas = max(rules.replicas.tolist())
        waiting = max(tasks) // group + replicas + 1
        # What waits or runs leads to tasks of the later stages.
        led, arriving = 0.0, [expected]
        for k in range(1, len(stages)):
            led = (led + tasks[k - 1]) * self._ratios[k]
            arriving.append(led + expected * self._spec.stages[k].mean_tasks)
        expected = max(arriving) / group
        wanted = int(2.0 * expected + 10.0 * expected**0.5) + 10
        fits = waiting <= capacity - places and wanted <= places
        if not fits or scratch.start.size.shape[1] != replicas:
            paths, intervals = scratch.counts.size, scratch.speed.size
            places = max(2 * wanted, _PLACES)
            self._scratch = make_scratch(rules, paths, intervals, 2 * waiting, places)

    def _fill(
        self, k: int, view: SystemView, stage: StageView, replicas: int, rate_rps: float, group: int
    ) -> None:
        """Write a stage's running batches and waiting tasks into the memory, in groups."""
        # A group is due with the first of its tasks. A view does not say when running tasks are
        # due: they are taken to have come, at the rate, before those that wait or arrived last.
        queues, now_s, spec = self._scratch.start, view.now_s, self._spec
        ahead, largest = 0, max(1, self._batch_max[k] // group)
        row_s = self._times.service_s[k, in_force(stage.allocation), stage.cores_in_force - 1]
        asked_s = spec.resize_delay_s + spec.stages[k].cold_start_s
        queues.free_s[k], queues.size[k] = math.inf, 0
        states = replica_states(stage, now_s, asked_s, replicas)
        for at, (free_s, size) in enumerate(states):
            if size:
                free_s = max(free_s, _OVERDUE * row_s[size - 1])
                size = in_groups(size, group, largest)
            queues.free_s[k, at], queues.first[k, at], queues.size[k, at] = free_s, ahead, size
            ahead += size
        queued_s = stage.queued_deadlines_s[::group]
        tail = ahead + queued_s.size
        np.subtract(queued_s, now_s, out=queues.due_s[k, ahead:tail])
        newest_s = float(view.budgets_s[-1]) if view.budgets_s.size else spec.slo_s
        newest_s -= self._before_s[k]
        if queued_s.size:
            newest_s = float(queued_s[0]) - now_s
        if ahead:
            older_s = np.arange(ahead, 0, -1) * (group / max(rate_rps, 1.0))
            queues.due_s[k, :ahead] = newest_s - older_s
        queues.marks[k] = ahead, tail, 0, 0, 0

    def _identify(self) -> int:
        """Say to which requests the present tasks belong; return the number of requests."""
        # After the first stage, tasks with the same deadline are taken to be of one request.
        queues, tails = self._scratch.start, self._scratch.start.marks[:, TAIL].tolist()
        if len(tails) == 1:
            return 0
        queues.ids[0, : tails[0]] = np.arange(tails[0])
        due_s = np.concatenate([queues.due_s[k, :tail] for k, tail in enumerate(tails) if k])
        known, own = np.unique(due_s, return_inverse=True)
        own, ends = own + tails[0], np.cumsum(tails[1:])
        for k, ids in enumerate(np.split(own, ends[:-1]), start=1):
            queues.ids[k, : ids.size] = ids
        return int(tails[0] + known.size)


def _room(spec: SystemSpec, ready: int, starting: int) -> int:
    """Return how many of the starting replicas get room that the ready ones hardly miss."""
    if len(spec.stages) > 1:
        return 0
    least = (1 - _SPARE) * (most_cores(spec.nodes, ready) * ready)
    while starting and most_cores(spec.nodes, ready, starting) * ready < least:
        starting -= 1
    return starting


def drawn_tasks(shares: Sequence[float]) -> IntArray:
    """Draw how many tasks an answer leads to, by the probabilities of 0, 1, 2, ... tasks."""
    rng = np.random.default_rng(0)
    # One draw from each part of the distribution, so that they have its mean.
    places = (rng.permutation(_DRAWS) + 0.5) / _DRAWS
    return np.searchsorted(np.cumsum(shares[:-1]), places, side="right")


def in_groups(requests: int, group: int, largest: int) -> int:
    """Return a batch's size in groups, between 1 and ``largest``."""
    return min(max(1, round(requests / group)), largest)


def replica_states(
    stage: StageView, now_s: float, asked_s: float, replicas: int
) -> list[tuple[float, int]]:
    """Return when each replica is free, in seconds, and the size of its batch; soonest first.

    A replica asked for now is ready after ``asked_s``. Of more batches than ready replicas, those
    that end last are taken to be on the replicas that stay: a view does not say.
    """
    ready = min(stage.replicas_ready, replicas)
    batches = [(max(0.0, b.expected_end_s - now_s), b.size) for b in stage.running]
    busy = sorted(batches, reverse=True)[:ready]
    idle = [(0.0, 0)] * (ready - len(busy))
    cold = [*stage.starting_s, *[asked_s] * replicas][: replicas - ready]
    return sorted([*busy, *idle, *((left_s, 0) for left_s in cold)])
