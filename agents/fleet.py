"""How many replicas to hold: planned several cold starts ahead, since a change takes one."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from sponge_env.arrays import FloatArray, IntArray
from sponge_env.control.base import Planning, option
from sponge_env.control.split import shares, stage_spec, stage_views
from sponge_env.core.compiled import compiled, entry_point, inlined
from sponge_env.interfaces import Allocation, StageAllocation, SystemSpec, SystemView
from sponge_env.packing import most_cores

from .rates import SAMPLES, SMOOTHED, PastRates, pairwise_sum, rate_samples, smoothed

_BUSY = 0.5  # Share of what one core serves from which a second replica is worth its core
BATCH_SHARE = 0.4  # Longest batch to plan with, relative to the SLO
_COLD_STARTS_AHEAD = 6
_KEPT = 600  # Intervals for which a second replica is held after it was last worth its core
_OVERLOAD = 10.0  # Cost of each missing core, of the CPU or of the largest allocation for the rate
_SOON = 1.5  # Latest end of a backlog over the earliest possible: starting replicas take cores

_PEAK_ROOM = 1.1
"""With all cores of the machine, the fleet must be able to serve the highest peak that is expected
again, with room for a higher one: cores come in time for it, but replicas do not."""
_RISES_ON, _BY_CHANCE = 3.0, 2.0
"""Cold starts for which a rise of the rate is taken to go on, and standard deviations of Poisson
arrivals that do not count as a rise. Replicas that start in time take no cores from busy ones. What
a rise asks for is kept for a cold start, or replicas would be given up as they start."""
_RECENT = 6  # Cold starts whose highest rate is compared with that of the minutes before
_NEWEST = 3  # Intervals whose highest rate the ready replicas must serve while others start
_MISSED = 0.02  # Share missed that shows too few ready replicas: dropped requests do not wait

_most_cores = inlined(most_cores)
_ALONE, _IN_PIPELINE = (0.9, 0.03), (0.45, 0.1)
"""Default utilisation, and the saving, relative to the whole cost, for which the fleet changes.
Stages of a pipeline must be quick rather than busy: a delay in one stage is a delay in all."""
_FEWEST = 2
"""Fewest replicas when one core would be half busy, but not in a pipeline or if all share one CPU.
Each core adds less than the one before, so two replicas serve a burst on fewer cores."""


@dataclass(frozen=True, kw_only=True)
class FleetOptions(Planning):
    """Options of :class:`FleetPlanner`."""

    utilisation: float | None = option(None, above=0, at_most=1)
    """Share of the planned throughput a replica is trusted with; else 0.9, in pipelines 0.45."""
    overload_windows: int = option(3, at_least=0)
    """Past intervals whose least rate (in a pipeline, mean rate) is taken to last if the ready
    replicas cannot serve it; 0 for none."""


class FleetTables(NamedTuple):
    """What stays the same for a stage during an episode, and memory that is overwritten."""

    sizes: int  # The most replicas
    nodes: IntArray  # Cores of each node of the machine
    cpu_cores: float
    utilisation: float
    reluctance: float
    slo_s: float
    cold_start_s: float
    at_once: bool  # Whether replicas start within half an interval: they take no cores then
    in_pipeline: bool
    drops_early: bool  # Whether what must be late is dropped, so that no backlog lasts
    serves_rps: FloatArray  # (2, cores_max) what a replica serves, and what it is trusted with
    step: FloatArray  # (sizes, sizes) cost of a cold start on the way from one size to another
    value: FloatArray  # (3, sizes) cost of what follows; reused for rates, backlogs, drops, ways
    samples: FloatArray  # (3, samples) load of each replica by rate, cores that it needs, costs


class Moment(NamedTuple):
    """What one decision looks at."""

    replicas: int  # Those asked for so far
    ready: int  # Those of them that are ready
    serving: int  # All that are ready
    wait: FloatArray  # (sizes,) cold starts until so many are warm
    waiting: int  # Requests in the queue
    missing: bool  # Whether more was dropped in the last interval than by chance
    lasting_rps: float  # Rate that may last; negative if none does
    rates_rps: FloatArray  # (past intervals,) rates of the last minutes
    peak: int  # Intervals over which the highest of them is averaged
    cold_start: int  # Intervals that a cold start takes
    coming_rps: FloatArray  # (<= samples,) equally likely rates after a cold start
    overloaded: bool
    before_rps: FloatArray  # (past intervals,) rates of some minutes before the latest ones


@entry_point
def choose_replicas(fleet: FleetTables, moment: Moment, service_s: FloatArray) -> tuple[int, bool]:
    """Return how many replicas to hold, and whether the ready ones are too few until they serve."""
    longest_s, highest_rps = BATCH_SHARE * fleet.slo_s, 0.0
    for row in range(service_s.shape[0]):
        longest_s = max(longest_s, service_s[row, 0])
    # The most that a replica serves, never less with more cores.
    for row in range(service_s.shape[0]):
        for column in range(service_s.shape[1]):
            if service_s[row, column] <= longest_s:
                highest_rps = max(highest_rps, (column + 1) / service_s[row, column])
        fleet.serves_rps[0, row] = highest_rps
        fleet.serves_rps[1, row] = highest_rps * fleet.utilisation
    usual = _cheapest(fleet, moment)
    if moment.lasting_rps < 0.0 or fleet.in_pipeline:
        return usual, False
    return _following(fleet, moment, usual)


@compiled
def _rates_to_come(fleet: FleetTables, moment: Moment) -> tuple[float, float]:
    """Return the highest rate of the last minutes, and the one that a new rise leads to."""
    # The latter is the highest one since a cold start ago.
    rates_rps, width = moment.rates_rps, min(moment.peak, moment.rates_rps.size)
    width_s = width * fleet.cold_start_s / moment.cold_start
    ahead_s = _RISES_ON * fleet.cold_start_s + width_s / 2
    highest_rps, known_rps, coming_rps = 0.0, 0.0, 0.0
    for end in range(width, rates_rps.size + 1):
        now_rps = pairwise_sum(rates_rps[end - width : end]) / width
        highest_rps = max(highest_rps, now_rps)
        if end < 2 * width:
            continue
        before_rps = pairwise_sum(rates_rps[end - 2 * width : end - width]) / width
        known_rps = max(known_rps, before_rps)
        if end >= rates_rps.size - moment.cold_start:
            chance_rps = _BY_CHANCE * math.sqrt((now_rps + known_rps) / width_s)
            rise_rps = max(0.0, now_rps - known_rps - chance_rps)
            coming_rps = max(coming_rps, now_rps + rise_rps * ahead_s / width_s)
    return highest_rps, coming_rps


@compiled
def _serving(all_rps: FloatArray, peak_rps: float, first: int) -> int:
    """Return the smallest size from the first on that serves a peak, else the largest below it."""
    # ``all_rps`` are what 1, 2, ... replicas serve on all cores of the machine; if none serves the
    # peak, the highest counts. More may serve less: of 16 cores, five have three each, six two.
    most_rps = 0.0
    for size_rps in all_rps:
        most_rps = max(most_rps, size_rps)
    enough_rps = (1 - 1e-9) * min(peak_rps, most_rps)
    for size in range(first, all_rps.size + 1):
        if all_rps[size - 1] >= enough_rps:
            return size
    size = first - 1
    while all_rps[size - 1] < enough_rps:
        size -= 1
    return size


@compiled
def _ready_for_more(
    fleet: FleetTables, moment: Moment, all_rps: FloatArray, usual: int, late: bool
) -> int:
    """Return how many replicas to hold for the peak and a rise; none starts for a late request."""
    # Else none starts if the ready ones lose cores that they need, or the larger fleet serves less.
    (highest_rps, coming_rps), held = _rates_to_come(fleet, moment), moment.replicas
    if late:
        return _serving(all_rps[:held], _PEAK_ROOM * highest_rps, min(usual, held))
    least = _serving(all_rps, _PEAK_ROOM * highest_rps, usual)
    more = _ahead_of_growth(fleet, moment, all_rps, least)
    if more > held:
        return more
    least = max(least, more)
    size, ready = max(least, _serving(all_rps, coming_rps, 1)), moment.ready
    needed_rps, most_rps = 0.0, _at_most_rps(fleet, ready, held - ready)
    for rate_rps in moment.rates_rps[-_NEWEST:]:
        needed_rps = min(most_rps, max(needed_rps, rate_rps))
    while size > held and not fleet.at_once:
        serves_less = all_rps[size - 1] < all_rps[(least if size > least else held) - 1]
        if not serves_less and _at_most_rps(fleet, ready, size - ready) >= needed_rps:
            break
        size -= 1
    return size if size < least or all_rps[size - 1] >= all_rps[least - 1] else least


@compiled
def _highest(rates_rps: FloatArray, width: int) -> float:
    """Return the highest mean of so many rates in a row."""
    highest_rps = 0.0
    for end in range(width, rates_rps.size + 1):
        highest_rps = max(highest_rps, pairwise_sum(rates_rps[end - width : end]) / width)
    return highest_rps


@compiled
def _ahead_of_growth(fleet: FleetTables, moment: Moment, all_rps: FloatArray, least: int) -> int:
    """Return how many replicas to hold ahead of a load that grows; 0 if it asks for none."""
    # While replicas start, the ready ones have fewer cores. So a load can grow beyond what lets
    # others start, and then beyond what the ready ones serve. A larger fleet starts before that.
    held, ready, rates_rps = moment.replicas, moment.ready, moment.rates_rps
    recent, best, most_rps, open_rps = _RECENT * moment.cold_start, 0, 0.0, fleet.value[1]
    width = recent // 2
    if fleet.at_once or moment.before_rps.size < recent:
        return 0
    before_rps, now_rps = _highest(moment.before_rps, width), _highest(rates_rps[-recent:], width)
    chance_rps = math.sqrt((now_rps + before_rps) / width * moment.cold_start / fleet.cold_start_s)
    if now_rps <= before_rps + chance_rps:
        return 0
    # From each size, the highest rate that is served on the way to the fleet that serves most.
    for size in range(fleet.sizes, 0, -1):
        most_rps = max(most_rps, all_rps[size - 1])
        open_rps[size - 1] = all_rps[size - 1] if all_rps[size - 1] == most_rps else 0.0
        for more in range(size + 1, fleet.sizes + 1):
            way_rps = min(_at_most_rps(fleet, size, more - size), open_rps[more - 1])
            open_rps[size - 1] = max(open_rps[size - 1], way_rps)
    widest_rps = lately_rps = _highest(rates_rps[-recent:], min(moment.peak, recent))
    needed_rps = min(lately_rps + now_rps - before_rps, (1 - 1e-9) * most_rps)
    if open_rps[held - 1] >= needed_rps:
        return held if open_rps[least - 1] < needed_rps else 0
    for size in range(held + 1, fleet.sizes + 1):
        way_rps, then_rps = _at_most_rps(fleet, ready, size - ready), open_rps[size - 1]
        enough = then_rps >= needed_rps and all_rps[size - 1] >= all_rps[least - 1]
        if way_rps >= lately_rps and enough:
            return size
        if min(way_rps, then_rps) > widest_rps:
            best, widest_rps = size, min(way_rps, then_rps)
    return best


@compiled
def _following(fleet: FleetTables, moment: Moment, usual: int) -> tuple[int, bool]:
    """Return how many replicas to hold if a rate lasts that the usual ones may not serve."""
    # New replicas come late and take cores from the ready ones. So none is asked for before the
    # ready ones must be late, and no ready one is given up that the rate or the backlog needs. In
    # an overload, ask for the fewest that soon end the backlog, and keep them until the ready ones
    # serve the rate and no request must be late. A ready one is given up only if all of them would
    # never end the backlog, and fewer would, with more cores each. Where late requests are dropped,
    # more are asked for only if fewer are dropped then over the next cold starts.
    (all_rps, end_s, dropped), ready, rate_rps = fleet.value, moment.ready, moment.lasting_rps
    soonest_s, most_rps, sizes = math.inf, 0.0, fleet.sizes
    horizon_s = _COLD_STARTS_AHEAD * fleet.cold_start_s
    for size in range(sizes):
        replicas = size + 1
        all_rps[size] = _at_most_rps(fleet, replicas, 0)
        # Those that start count only once all are warm, to the disadvantage of larger fleets.
        serving = min(replicas, ready)
        short_rps = rate_rps - _at_most_rps(fleet, serving, replicas - serving)
        wait_s, long_rps = moment.wait[size] * fleet.cold_start_s, rate_rps - all_rps[size]
        end_s[size] = backlog_end_s(moment.waiting, short_rps, long_rps, wait_s)
        dropped[size] = max(0.0, short_rps) * wait_s + max(0.0, long_rps) * (horizon_s - wait_s)
        soonest_s, most_rps = min(soonest_s, end_s[size]), max(most_rps, all_rps[size])
    serves_rps = all_rps[ready - 1]
    late = moment.missing or moment.waiting > serves_rps * fleet.slo_s
    late |= moment.overloaded and rate_rps > serves_rps
    soon_s = _SOON * soonest_s if late else max(_SOON * soonest_s, fleet.cold_start_s)
    enough = 1
    while enough < sizes and end_s[enough - 1] > soon_s:
        enough += 1
    # If nothing ends it, those that serve most; equal sums differ by rounding.
    while soonest_s == math.inf and all_rps[enough - 1] <= (1 - 1e-9) * most_rps:
        enough += 1
    if fleet.drops_early and enough > ready and dropped[enough - 1] >= dropped[ready - 1]:
        enough = ready
    if late and enough < ready and end_s[ready - 1] == math.inf:
        return enough, True  # a replica less lets the others have more cores
    if late and (moment.overloaded or enough > ready):
        return max(enough, moment.replicas), True
    return max(_ready_for_more(fleet, moment, all_rps, usual, late), min(enough, ready)), False


@compiled
def backlog_end_s(waiting: int, before_rps: float, after_rps: float, change_s: float) -> float:
    """Return when a backlog ends that grows by so many requests/s before and after a change."""
    # Infinite if it never ends.
    if after_rps >= 0.0:
        return math.inf
    if before_rps < 0.0 and waiting / -before_rps <= change_s:
        return waiting / -before_rps
    return change_s - (waiting + before_rps * change_s) / after_rps


@compiled
def _cheapest(fleet: FleetTables, moment: Moment) -> int:
    """Return the first step of the cheapest path, in units of cold starts."""
    step, value, sizes = fleet.step, fleet.value, fleet.sizes
    rates_rps = moment.rates_rps[-SMOOTHED:]
    rate_rps = pairwise_sum(rates_rps) / rates_rps.size
    _write_steps(fleet, moment)
    # Backward induction: what each size costs from its first cold start on.
    value[0] = 0.0
    for ahead in range(_COLD_STARTS_AHEAD):
        for size in range(sizes):
            least = math.inf
            for after in range(sizes):
                least = min(least, step[size, after] + value[ahead % 2, after])
            value[1 - ahead % 2, size] = least
    best, least, kept = 0, math.inf, math.inf
    for size in range(sizes):
        # Replicas that are starting come sooner, so their first cold start counts in part.
        wait, serving = moment.wait[size], min(size + 1, moment.ready)
        fleet.samples[0, 0] = rate_rps / serving
        fleet.samples[1, 0] = _cores(fleet, rate_rps / serving)
        waiting = _mean_cost(fleet, serving, size + 1 - serving, 1)
        total = wait * waiting + (1 - wait) * step[size, size] + value[_COLD_STARTS_AHEAD % 2, size]
        if size + 1 == moment.replicas:
            kept = total
        if total < least:
            best, least = size + 1, total
    # A change for little gain would be reversed soon.
    return moment.replicas if least >= (1 - fleet.reluctance) * kept else best


@compiled
def _write_steps(fleet: FleetTables, moment: Moment) -> None:
    """Write the cost of each step from one size to another, over a cold start."""
    # Going to fewer replicas, all are warm at once; going to more, new ones hold one core.
    coming, sizes, least_rps = moment.coming_rps, fleet.sizes, 0.0
    # In a pipeline, what the other stages need is not known, so the rate has to do.
    if fleet.in_pipeline and moment.lasting_rps > moment.serving * fleet.serves_rps[1, -1]:
        least_rps = moment.lasting_rps
    for before in range(1, sizes + 1):
        for sample in range(coming.size):
            fleet.samples[0, sample] = max(coming[sample], least_rps) / before
            fleet.samples[1, sample] = _cores(fleet, fleet.samples[0, sample])
        row = fleet.step[before - 1]
        for after in range(before, sizes + 1):
            row[after - 1] = _mean_cost(fleet, before, after - before, coming.size)
        fleet.step[before:, before - 1] = fleet.step[before - 1, before - 1]


@compiled
def _cores(fleet: FleetTables, load_rps: float) -> float:
    """Return the cores that a replica needs for a load, interpolated between whole numbers."""
    serves_rps = fleet.serves_rps[1]
    enough = 0  # cores that serve no more than that; comparing all is vector code
    for cores in range(serves_rps.size):
        enough += serves_rps[cores] <= load_rps
    if enough == 0 or enough == serves_rps.size:
        return float(max(enough, 1))
    below_rps = serves_rps[enough - 1]
    return float((load_rps - below_rps) * (1.0 / (serves_rps[enough] - below_rps)) + enough)


@compiled
def _most(fleet: FleetTables, serving: int, starting: int) -> int:
    """Return the most cores of each replica that serves; each that starts has one."""
    cores_max: int = fleet.serves_rps.shape[1]
    return min(cores_max, _most_cores(fleet.nodes, serving, starting))


@compiled
def _at_most_rps(fleet: FleetTables, serving: int, starting: int) -> float:
    """Return the highest rate that replicas serve while others start."""
    most = _most(fleet, serving, starting)
    share = min(1.0, fleet.cpu_cores / (serving * most))
    return float(serving * fleet.serves_rps[0, most - 1] * share)


@compiled
def _mean_cost(fleet: FleetTables, serving: int, starting: int, samples: int) -> float:
    """Return the mean cost of replicas over the first ``samples`` of loads and needed cores."""
    # They hold what the machine has of these. Beyond their CPU they slow each other down.
    if fleet.in_pipeline:
        # Starting replicas cost as much as others here: at one core, every swing would start some.
        serving, starting = serving + starting, 0
    most = _most(fleet, serving, starting)
    serves_rps, cpu_cores = fleet.serves_rps[1, most - 1], fleet.cpu_cores
    loads_rps, cores, costs = fleet.samples[0], fleet.samples[1], fleet.samples[2, :samples]
    for sample in range(costs.size):  # not up to another number: this becomes vector code
        overload = max(loads_rps[sample] / serves_rps - 1.0, 0.0)
        allocated = min(cores[sample], float(most)) * serving + starting
        costs[sample] = allocated + _OVERLOAD * (max(allocated - cpu_cores, 0.0) + most * overload)
    return pairwise_sum(costs) / samples


class FleetPlanner:
    """Chooses how many replicas to hold, by the cheapest path through the next cold starts.

    Starting replicas hold a core each, which the serving ones may need just then. So each step from
    one fleet to the next has a cost: that of one cold start in which the ready ones serve on the
    cores that they need, and the others have one.
    """

    def __init__(self, config: FleetOptions, spec: SystemSpec, in_pipeline: bool = False) -> None:
        usual, reluctance = _IN_PIPELINE if in_pipeline else _ALONE
        sizes, cores_max = spec.most_replicas(cores=1), spec.first.cores_max
        alone = not in_pipeline and math.isinf(spec.first.cpu_cores)
        self._fewest = min(_FEWEST if alone else 1, sizes)
        self._config, self._spec = config, spec
        self._past = PastRates(spec)
        ready_s = spec.resize_delay_s + spec.first.cold_start_s
        self._fleet = FleetTables(
            sizes=sizes, nodes=np.array(spec.nodes), cpu_cores=float(spec.first.cpu_cores),
            utilisation=float(config.utilisation or usual), reluctance=reluctance,
            slo_s=float(spec.slo_s), cold_start_s=float(self._past.cold_start * spec.interval_s),
            in_pipeline=in_pipeline, drops_early=spec.drops_early,
            serves_rps=np.empty((2, cores_max)),
            step=np.empty((sizes, sizes)), value=np.empty((3, sizes)),
            samples=np.empty((3, 2 * SAMPLES)), at_once=2 * ready_s <= spec.interval_s,
        )  # fmt: skip
        # Compile it now, so that no decision waits for it.
        one = np.ones(1)
        nothing = Moment(1, 1, 1, np.ones(sizes), 0, False, 1.0, one, 1, 1, one, False, one)
        choose_replicas(self._fleet, nothing, np.ones((cores_max, spec.first.batch_max)))
        self.overloaded = False  # Whether more were asked for because the ready ones are too few

    def observe(self, view: SystemView) -> None:
        """Remember the last interval's arrivals; at first all that the view shows."""
        # More replicas help no hopeless requests; which of the first view's were is not known.
        news = view.first.arrivals
        if self._past.rates.size:
            hopeless = 0 if view.last is None or self._fleet.in_pipeline else view.last.hopeless
            news = np.maximum(news[-1:] - hopeless, 0)
        self._past.add(news / self._spec.interval_s)

    def replicas(self, view: SystemView, service_s: FloatArray) -> int:
        """Return how many replicas to hold now, starting ones included."""
        fleet, current, past = self._fleet, view.allocation.replicas, self._past
        serving, lasting_rps = max(view.first.replicas_ready, 1), -1.0
        loading_s = max(self._spec.first.cold_start_s, 1e-9)
        starting = [min(left_s / loading_s, 1.0) for left_s in view.first.starting_s]
        wait = [0.0] * min(serving, current) + starting + [1.0] * fleet.sizes
        if windows := self._config.overload_windows:
            # A burst after an outage of the network lasts an interval or two.
            lasting = past.rates[-windows:]
            lasting_rps = float(lasting.mean()) if fleet.in_pipeline else min(lasting.tolist())
        smooth_rps, waiting = smoothed(past.rates), view.first.queued_deadlines_s.size
        last = view.last
        missing = last is not None and last.avoidable_violations > _MISSED * last.offered
        coming_rps = rate_samples(smooth_rps, 2 * past.cold_start)
        held = current, min(serving, current), serving, np.array(wait[: fleet.sizes])
        known = past.rates[-past.peak_ago :], past.peak, past.cold_start, coming_rps
        size = past.rates.size
        later = size - min(past.peak_ago // 2, size) // 2  # The rest may be growth
        before_rps = past.rates[-past.peak_ago - _RECENT * past.cold_start : later]
        moment = Moment(*held, waiting, missing, lasting_rps, *known, self.overloaded, before_rps)
        desired, self.overloaded = choose_replicas(fleet, moment, service_s)
        if fleet.in_pipeline and past.rates.size < past.cold_start:
            desired = max(desired, current)  # give up nothing: too little is known
        highest_rps = np.maximum.reduce(smooth_rps[-(_KEPT - SMOOTHED + 1) :])
        busy = highest_rps > _BUSY * fleet.serves_rps[0, 0]
        return max(desired, self._fewest) if busy else desired


class Fleets:
    """Plans the replicas of each stage of a chain (or of one stage of a pipeline) by itself."""

    def __init__(self, config: FleetOptions, spec: SystemSpec, in_pipeline: bool) -> None:
        self._spec, self._shares = spec, shares(spec, "proportional")
        self._planners = [
            FleetPlanner(config, stage_spec(spec, k, share), in_pipeline)
            for k, (share, _) in enumerate(self._shares)
        ]

    def observe(self, view: SystemView) -> None:
        """Take in the last interval."""
        self._parts = stage_views(view, self._spec, self._shares)
        for planner, part in zip(self._planners, self._parts, strict=True):
            planner.observe(part)

    def replicas(self, services_s: Sequence[FloatArray]) -> list[int]:
        """Return how many replicas each stage is to hold, starting ones included; all find room."""
        # ``services_s`` are (cores_max, batch_max) seconds of a batch for each stage.
        stages = []
        for planner, part, service_s in zip(self._planners, self._parts, services_s, strict=True):
            stages.append(StageAllocation(1, 1, planner.replicas(part, service_s)))
        return [each.replicas for each in self._spec.fit_stages(stages)]

    @property
    def overloaded(self) -> bool:
        """Whether the ready replicas have to make room for those that were asked for."""
        return any(planner.overloaded for planner in self._planners)


def everything(spec: SystemSpec, replicas: Sequence[int]) -> Allocation:
    """Return the largest allocation with so many replicas, for as long as the load is unknown."""
    stages = [
        StageAllocation(stage.cores_max, stage.batch_max, count, initial.variant)
        for stage, count, initial in zip(spec.stages, replicas, spec.initial.stages, strict=True)
    ]
    return Allocation(stages=spec.fit_stages(stages, "cores"))
