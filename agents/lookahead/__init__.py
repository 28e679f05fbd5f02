"""``sponge-mpc`` and its look-ahead program: plays the next seconds and takes the cheapest.

Read on in :mod:`.kernel`, which scores pairs of cores and batch size along the sample paths of
:mod:`.forecast`. At the end stands what batches take, for a fit of four numbers misses single cells
of the table of service times, by up to 28 %. Tables have shape (cores_max, batch_max), seconds of a
batch: row ``c - 1``, column ``b - 1``.
"""

from __future__ import annotations

import bisect
import itertools
import math
from dataclasses import dataclass

import numpy as np

from sponge_env.arrays import FloatArray
from sponge_env.controllers import BaseController, Options, option
from sponge_env.interfaces import Allocation, SystemSpec, SystemView

from .forecast import Flow, Outlook, fit_rate, make_chance
from .kernel import HEAD, NEXT, TAIL, Decision, Rules, make_scratch, plan

_OVERDUE = 0.02
"""Share of its service time that a batch is taken to need still when it should have ended."""
_PLACES = 512
"""Arrivals that each path can hold at first."""
_PLAYED, _PLAYED_CORES = 600, 16
"""Requests that are played on each path at most where there are so many cores to choose from,
and in proportion fewer where there are more, so that a decision takes a few milliseconds."""
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

    It plays the queue under a candidate allocation along weighted sample paths of arrivals and
    bandwidth, lets each path go on with the cores that suit it then (vertical scaling acts at
    once, so the next decision can come to the rescue), and minimises

        cores + late_price * late requests + price of the backlog left at the end.

    The price of the backlog, which is what serving one more request costs at the forecast rate,
    keeps the cores at the level that the load needs in the long run. It asks for one replica
    always, and takes everything before the load is known.
    """

    config: MPCConfig

    def plans(self, spec: SystemSpec) -> bool:
        """Return whether there is one stage, whose variants it tries one after the other."""
        return len(spec.stages) == 1

    def begin(self, spec: SystemSpec) -> None:
        """Start from the fitted service times; compiles at the first call."""
        fits = spec.stages[0].latencies if spec.has_variants else (spec.latency,)
        self._times = [ServiceTimes(fit.table_s(spec.batch_max, spec.cores_max).T) for fit in fits]
        self._program = LookAhead(spec, self.config, self._times[0].table_s)

    def allocate(self, spec: SystemSpec, view: SystemView) -> Allocation:
        """Choose cores and batch size for the next interval, and the variant if there are some."""
        if not view.arrivals.size:
            return Allocation(spec.cores_max, spec.batch_max, variant=view.allocation.variant)
        in_force = self._times[view.allocation.variant]
        learnt = self.config.learning and in_force.observe(view)
        if spec.has_variants:
            return self._most_worth(spec, view)
        if learnt:
            self._program.use(in_force.table_s)
        return self._program.choose(view)

    def _most_worth(self, spec: SystemSpec, view: SystemView) -> Allocation:
        """Return the cheapest plan of all variants, with what the accuracy lost is worth."""
        outlook, lost = self._program.observe(view), spec.stages[0].percent_lost.tolist()
        seconds = (1 + self.config.look_ahead) * spec.interval_s
        plans = []
        for variant, times in enumerate(self._times):
            self._program.use(times.table_s)
            plan, cost = self._program.priced(view, outlook)
            cost += self.config.accuracy_price * lost[variant] * seconds
            plans.append((cost, -variant, plan.changed(variant=variant)))
        return min(plans, key=lambda each: each[:2])[2]


class LookAhead:
    """Decides through one episode.

    Where more requests wait or are expected than can be played in time, groups of them are played:
    each is served as a whole, batches are multiples of a group, and rates are groups per second.
    """

    def __init__(self, spec: SystemSpec, config: MPCConfig, service_s: FloatArray) -> None:
        """Start an episode; the kernel is compiled now, so that no decision waits for it.

        The service times may change in place; :meth:`use` is to be told.
        """
        self._spec, self._config = spec, config
        self._chance = make_chance(config.risk)
        self._flow = Flow(spec, naive=not config.forecast)
        self.use(service_s)
        rules, paths = self._rules(1), self._chance.weight.size
        self._scratch = make_scratch(rules, paths, self._intervals(config), spec.batch_max, _PLACES)
        fit_rate(np.ones(1), np.ones(1), spec.interval_s)
        nothing = Outlook(1.0, 0.0, 0.0, 0.1, 0.1, 0.0)
        decision = Decision(rules, self._chance, self._scratch, 0.0, 1, 1, np.empty((0, 2)))
        plan(decision, nothing, self._flow.kinds, 1)

    def use(self, service_s: FloatArray, replicas: int = 1, cores_max: int | None = None) -> None:
        """Plan with other service times, and for replicas of at most so many cores each.

        A row of service times beyond ``cores_max`` is what the cores in force may still be.
        """
        self._service_s, self._curve = service_s, cost_curve(service_s)
        self._replicas, self._cores_max = replicas, cores_max or service_s.shape[0]

    def correct(self, config: MPCConfig) -> None:
        """Plan with other options, but for those that say what is known of the future."""
        self._config = config
        self._scratch = self._scratch._replace(speed=np.empty(self._intervals(config)))

    def _intervals(self, config: MPCConfig) -> int:
        """Return how many intervals are played, in part or whole."""
        delayed = math.ceil(self._spec.resize_delay_s / self._spec.interval_s)
        return delayed + 1 + config.look_ahead

    def choose(self, view: SystemView) -> Allocation:
        """Take in the interval that has passed, and choose cores and batch size for the next."""
        return self.priced(view, self.observe(view))[0]

    def observe(self, view: SystemView) -> Outlook:
        """Take in the interval that has passed; return what is expected now."""
        return self._flow.observe(view)

    def priced(self, view: SystemView, outlook: Outlook) -> tuple[Allocation, float]:
        """Choose cores and batch size for the next interval; return them with their cost.

        That is in core-seconds until the end of the look-ahead, late requests included.
        """
        spec, queued = self._spec, view.queued_deadlines_s.size
        # What is on the way or will be sent before the look-ahead ends.
        played_s = self._scratch.speed.size * spec.interval_s
        on_the_way_s = outlook.transfer_s * max(1.0, float(self._flow.kinds[:, 0].max()))
        expected = outlook.rate_rps * (played_s + on_the_way_s)
        most = _PLAYED * _PLAYED_CORES / max(spec.cores_max, _PLAYED_CORES)
        group = max(1, math.ceil((queued + expected) / most))
        rules = self._rules(group)
        price = group * self._config.backlog_price
        price *= self._curve.price(outlook.rate_rps / rules.replicas)
        running = sum(batch.size for batch in view.running)
        waiting = (queued + running) // group + rules.replicas + 1
        self._reserve(rules, waiting, expected / group)
        self._fill(view, outlook.rate_rps, group)
        # In groups, the number of requests scatters less.
        cores, batch, late, cost = plan(
            Decision(
                rules,
                self._chance,
                self._scratch,
                price,
                view.allocation.cores,
                view.cores_in_force,
                np.array(view.pending).reshape(-1, 2),
            ),
            outlook._replace(rate_rps=outlook.rate_rps / group, scatter=outlook.scatter / group),
            self._flow.kinds,
            in_groups(view.allocation.batch, group, rules.service_s.shape[1]),
        )
        expired = queued and view.queued_deadlines_s[0] < view.now_s
        feasible = not expired and bool(group * late < _LATE_IN_ONE_PLAN)
        size = min(group * int(batch), spec.batch_max)
        return Allocation(int(cores), size, rules.replicas, feasible=feasible), float(cost)

    def _rules(self, group: int) -> Rules:
        config, spec = self._config, self._spec
        return Rules(
            service_s=grouped_service_s(self._service_s, group),
            interval_s=spec.interval_s,
            delay_s=spec.resize_delay_s,
            look_ahead=config.look_ahead,
            guard_s=config.guard * spec.slo_s,
            late_price=group * config.late_price,
            release_price=config.release_price,
            batching=config.batching,
            replicas=self._replicas,
            cores_max=self._cores_max,
        )

    def _reserve(self, rules: Rules, waiting: int, expected: float) -> None:
        """Let the memory hold a queue and the arrivals of each path, rare large numbers too."""
        scratch = self._scratch
        capacity, places = scratch.start.due_s.size, scratch.arrivals_s.shape[1]
        wanted = int(2.0 * expected + 10.0 * expected**0.5) + 10
        shape = *scratch.score.shape, scratch.start.size.size
        fits = waiting <= capacity - places and wanted <= places
        if not fits or shape != (*rules.service_s.shape, rules.replicas):
            paths, intervals = scratch.counts.size, scratch.speed.size
            places = max(2 * wanted, _PLACES)
            self._scratch = make_scratch(rules, paths, intervals, 2 * waiting, places)

    def _fill(self, view: SystemView, rate_rps: float, group: int) -> None:
        """Write the running batches and the waiting requests into the memory, in groups.

        A group is due with the first of its requests. When a running request is due a view does
        not say: they came before those that wait, or are the newest arrivals, at the rate.
        """
        queue, now_s = self._scratch.start, view.now_s
        ahead, largest = 0, self._scratch.score.shape[1]
        row_s = self._service_s[view.cores_in_force - 1]
        states = replica_states(self._spec, view, self._replicas)
        for at, (free_s, size) in enumerate(states):
            groups = in_groups(size, group, largest) if size else 0
            queue.free_s[at] = max(free_s, _OVERDUE * row_s[size - 1]) if size else free_s
            queue.first[at], queue.size[at] = ahead, groups
            ahead += groups
        queued_s = view.queued_deadlines_s[::group]
        tail = ahead + queued_s.size
        np.subtract(queued_s, now_s, out=queue.due_s[ahead:tail])
        newest_s = float(view.budgets_s[-1]) if view.budgets_s.size else self._spec.slo_s
        if queued_s.size:
            newest_s = float(queued_s[0]) - now_s
        older_s = np.arange(ahead, 0, -1) / max(rate_rps, 1.0)
        queue.due_s[:ahead] = newest_s - older_s
        queue.marks[HEAD], queue.marks[TAIL], queue.marks[NEXT] = ahead, tail, 0


def grouped_service_s(service_s: FloatArray, group: int) -> FloatArray:
    """Return (cores_max, max(1, batch_max // group)) seconds of batches of groups.

    A group larger than the largest batch takes as many of those as it needs.
    """
    if group == 1:
        return service_s
    batch_max = service_s.shape[1]
    if group > batch_max:
        return np.ascontiguousarray(service_s[:, -1:] * (group / batch_max))
    return np.ascontiguousarray(service_s[:, group - 1 :: group])


def in_groups(requests: int, group: int, largest: int) -> int:
    """Return a batch's size in groups, between 1 and ``largest``."""
    return min(max(1, round(requests / group)), largest)


def replica_states(spec: SystemSpec, view: SystemView, replicas: int) -> list[tuple[float, int]]:
    """Return when each replica is free, in seconds, and the size of its batch; soonest first.

    A batch on a replica beyond the ready ones is on one that goes when it is done; the view does
    not say which that is, so the batches that end last are taken to stay.
    """
    ready = min(view.replicas_ready, replicas)
    batches = [(max(0.0, b.expected_end_s - view.now_s), b.size) for b in view.running]
    busy = sorted(batches, reverse=True)[:ready]
    idle = [(0.0, 0)] * (ready - len(busy))
    asked_s = spec.resize_delay_s + spec.cold_start_s
    cold = [*view.starting_s, *[asked_s] * replicas][: replicas - ready]
    return sorted([*busy, *idle, *((left_s, 0) for left_s in cold)])


class ServiceTimes:
    """The table of service times of one episode.

    An interval tells the time of a cell where nothing is mixed: under the same cores as before,
    all its batches full. Full batches follow each other without a gap, for a replica that waits
    takes the first request that comes alone. So the batches that ended took the time from the
    start of the one that ran before to the start of the one that runs now.
    """

    def __init__(self, fit_s: FloatArray) -> None:
        self._fit_s = fit_s
        self.table_s = fit_s.copy(order="C")
        """Changes in place."""
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
