"""Sponge's integer program for several stages or model variants: one option for each stage.

An option is a variant, cores and a batch size; how many replicas there are takes a cold start to
change, and is decided apart (:mod:`.fleet`). IPA (Ghafouri et al., 2023) asks that the latencies of
the stages add up to no more than the SLO. Here each request is held to its own budget: wherever
it waits, it needs the time until it leaves its stage, behind those that are due before it, and what
the stages after it take. So an option says of every latency of the later stages how many requests
it makes late, and :mod:`sponge_env.control.chain` finds the cheapest way through. Where every plan
makes some late, the fewest are wanted, and of such plans the one that works the backlog off
fastest.

What a stage takes that comes later: the wait for a replica or for the backlog there, whichever is
longer, and the batches for all tasks of a request, each as large as what arrives during it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from sponge_env.arrays import FloatArray, IntArray
from sponge_env.control.chain import (
    CORE,
    MANY,
    NEVER,
    NO_WAY,
    Chain,
    Choices,
    CostTables,
    begin,
    contest_of,
    enter,
    least_room,
    slack,
)
from sponge_env.control.split import shares, stage_views
from sponge_env.core.compiled import compiled, entry_point
from sponge_env.interfaces import (
    Allocation,
    StageAllocation,
    StageSpec,
    StageView,
    SystemSpec,
    SystemView,
)

from .enumeration import list_arrivals
from .fleet import Fleets, everything
from .program import ROUNDING, Forecast
from .solvers import make_backend, solve_chain

TICKS = 128
"""Ticks of an SLO. Latencies are rounded up to them, and budgets down."""
_TASKS_SHARE = 0.9
"""Share of the requests whose tasks are planned for, the others have more."""
_MOST_TASKS = 256
_BUSIEST = 0.95
"""Utilisation from which on waiting times are taken to grow no more."""


class StageTables(NamedTuple):
    """What stays the same of a stage for an episode."""

    service_s: FloatArray
    """(variants, cores_max, batch_max) seconds to plan a batch with."""
    loss: FloatArray
    """(variants,) cores that the accuracy is worth which is lost, compared to the best variant."""
    group: int
    """Tasks of a request to plan for."""
    before_s: float
    """Shortest service of the stages before it."""
    left_s: float
    """Shortest service of a task here and in the stages after it."""
    tick_s: float
    interval_s: float
    delay_s: float
    """Time until a decision is in force."""


class StageState(NamedTuple):
    """What one decision looks at; times count from now."""

    due_s: FloatArray
    """(queued,) when each waiting task is due, ascending."""
    arrivals_s: FloatArray
    """(arrivals, 2) when more will come, and when they are due."""
    running: FloatArray
    """(ready, 2) seconds until each ready replica is free, ascending, and the size of its batch."""
    free_s: FloatArray
    """(ready,) the same seconds under an option's cores, overwritten."""
    variant: int
    """Variant and cores in force."""
    cores: int
    replicas: int
    """Those that hold cores."""
    rate_rps: float
    """Tasks per second to be ready for."""
    noise: float
    """Up to ``n + noise * sqrt(n)`` tasks arrive where ``n`` are expected."""


class Option(NamedTuple):
    """What a stage may do."""

    service_s: FloatArray
    """(batch_max,) seconds of a batch."""
    was_s: FloatArray
    """(batch_max,) seconds of a batch on the cores in force, until the decision is."""
    batch: int
    size: int
    """Size at which batches settle."""


class Steady(NamedTuple):
    """What a request meets that comes later and finds no backlog."""

    size: int
    """Size at which batches settle."""
    wait_s: float
    tasks_s: float
    """Service of its tasks."""


@entry_point
def lay_out(
    tables: StageTables,
    state: StageState,
    choices: Choices,
    k: int,
    late: IntArray,
    costs: CostTables,
    compete: bool,
) -> None:
    """Write the options of stage ``k``, in the order of variants, cores and batches.

    Without rows in ``late`` they are to be chosen by cost, else by the late requests, which are
    written there. If they are to ``compete``, they enter ``costs``, after those of the later
    stages; then the room or late requests of what cannot win are not written.
    """
    variants, cores_max, batch_max = tables.service_s.shape
    hopeless, rows = 0, variants * cores_max
    while hopeless < state.due_s.size and state.due_s[hopeless] < tables.left_s:
        hopeless += 1
    begin(costs, k)
    contest = contest_of(choices, late, costs, k, 0, 0)
    if compete and contest.after[-1] >= NO_WAY:
        return
    for each in range(rows):
        # The cheapest first, for the others to lose at once: the fewest cores, or the most where
        # late requests count.
        row = rows - 1 - each if late.shape[0] else each
        variant, cores = row // cores_max, row % cores_max + 1
        was_s = tables.service_s[variant, state.cores - 1]
        service_s = tables.service_s[variant, cores - 1]
        _scale_running(tables, state, cores)
        settled, held = _settled(service_s, state, tables.group), cores * state.replicas
        steady = _steady(tables, state, service_s, settled)
        for other in range(batch_max):
            batch = batch_max - other if late.shape[0] else other + 1
            at = choices.first[k] + row * batch_max + batch - 1
            option = Option(service_s, was_s, batch, min(batch, settled))
            if option.size != steady.size:
                steady = _steady(tables, state, service_s, option.size)
            choices.cores[at] = held
            if k:  # for there is nothing before the first that would need it
                choices.ticks[at] = _later_ticks(tables, state, option, steady)
            if late.shape[0]:
                work_s = service_s[batch - 1] / (batch * max(1, state.free_s.size))
                choices.cost[at] = round(CORE * min(work_s * tables.group, CORE / 4))
            else:
                choices.cost[at] = round(CORE * (held + tables.loss[variant])) + batch
            if compete:
                more = slack(contest, at)
                if more < 0:
                    continue
                after = contest.soonest if late.shape[0] else least_room(contest, at)
                most = more // MANY if late.shape[0] else 0
                if _misses(tables, state, option, hopeless, after, most):
                    continue
            if late.shape[0]:
                _count_late(tables, state, option, hopeless, late[at])
            else:
                choices.room[at] = _room(tables, state, option, hopeless)
            if compete:
                enter(contest, at)


@compiled
def _scale_running(tables: StageTables, state: StageState, cores: int) -> None:
    """Say when replicas are free: what is left of a batch scales with its own service."""
    was_s = tables.service_s[state.variant, state.cores - 1]
    then_s = tables.service_s[state.variant, cores - 1]
    for replica in range(state.free_s.size):
        left_s, size = state.running[replica, 0], int(state.running[replica, 1])
        faster = then_s[size - 1] / was_s[size - 1] if size else 1.0
        state.free_s[replica] = left_s * faster


@compiled
def _settled(service_s: FloatArray, state: StageState, group: int) -> int:
    """Return the smallest batch that holds what arrives during it, at most the largest."""
    replicas = max(1, state.free_s.size)
    for size in range(1, service_s.size):
        expected = state.rate_rps * service_s[size - 1] / replicas
        if size >= expected + state.noise * math.sqrt(expected) and size * replicas >= group:
            return size
    return service_s.size


@compiled
def _steady(tables: StageTables, state: StageState, service_s: FloatArray, size: int) -> Steady:
    replicas, own_s = max(1, state.free_s.size), service_s[size - 1]
    rounds = math.ceil(tables.group / (size * replicas))
    # What arrives at random waits by Pollaczek and Khinchine's formula; the noise says how much
    # longer than on average.
    busy = min(state.rate_rps * own_s / (size * replicas), _BUSIEST)
    queue_s = state.noise * busy / (2 * (1 - busy)) * own_s / replicas
    return Steady(size, max(own_s / replicas, queue_s), rounds * own_s)


@compiled
def _later_ticks(tables: StageTables, state: StageState, option: Option, steady: Steady) -> int:
    """Return what this stage takes, after its backlog, of requests that are not here yet."""
    queued, wait_s = state.due_s.size, steady.wait_s
    if queued:
        last = (queued - 1) // option.batch
        wait_s = max(wait_s, _done_s(state.free_s, option, last, queued) - tables.before_s)
    whole_s = wait_s + steady.tasks_s
    ticks: int = min(math.ceil(whole_s / tables.tick_s - ROUNDING), TICKS)
    return ticks


@compiled
def _start_s(free_s: FloatArray, option: Option, before: int) -> float:
    """Return when a batch starts that has so many before it.

    Batches go to the replicas in turn, which take as long for each.
    """
    own_s = option.service_s[option.batch - 1]
    if free_s.size == 1:  # the usual case, without divisions
        start_s: float = free_s[0] + before * own_s
    else:
        start_s = free_s[before % free_s.size] + before // free_s.size * own_s
    return start_s


@compiled
def _done_s(free_s: FloatArray, option: Option, before: int, queued: int) -> float:
    """Return when a batch of the queue is done."""
    own = min(option.batch, queued - before * option.batch)
    done_s: float = _start_s(free_s, option, before) + option.service_s[own - 1]
    return done_s


@compiled
def _queued_done_s(tables: StageTables, state: StageState, option: Option, before: int) -> float:
    """Return the same where the cores are not in force yet."""
    queued = state.due_s.size
    done_s = _done_s(state.free_s, option, before, queued)
    if tables.delay_s > 0.0:
        was = Option(option.was_s, option.was_s, option.batch, option.size)
        unchanged_s = _done_s(state.running[:, 0], was, before, queued)
        done_s = _resized_s(tables.delay_s, unchanged_s, done_s)
    return done_s


@compiled
def _queued_left_s(tables: StageTables, state: StageState, option: Option, place: int) -> float:
    """Return how much time a waiting task has left when it is done here."""
    done_s = _queued_done_s(tables, state, option, place // option.batch)
    left_s: float = state.due_s[place] - done_s
    return left_s


@compiled
def _ticks_left(tables: StageTables, left_s: float) -> int:
    """Return whole ticks, for budgets are rounded down."""
    ticks: int = math.floor(left_s / tables.tick_s + ROUNDING)
    return ticks


@compiled
def _resized_s(delay_s: float, unchanged_s: float, resized_s: float) -> float:
    """Return when work is done of which what is left after the delay goes on at a new speed."""
    if unchanged_s <= delay_s:
        return unchanged_s
    return delay_s + (1 - delay_s / unchanged_s) * resized_s


@compiled
def _coming_left_s(tables: StageTables, state: StageState, option: Option, order: int) -> float:
    """Return the same for a forecast arrival: behind the queue, or after the batch that runs."""
    arrival_s, due_s = state.arrivals_s[order, 0], state.arrivals_s[order, 1]
    own_s = option.service_s[option.size - 1]
    before = (state.due_s.size + order) // option.batch
    start_s = _start_s(state.free_s, option, before)
    if tables.delay_s > 0.0:
        was = Option(option.was_s, option.was_s, option.batch, option.size)
        unchanged_s = _start_s(state.running[:, 0], was, before)
        start_s = _resized_s(tables.delay_s, unchanged_s, start_s)
        if arrival_s + option.was_s[option.size - 1] < tables.delay_s:
            own_s = option.was_s[option.size - 1]
    start_s = max(start_s, arrival_s + own_s / state.free_s.size)
    left_s: float = due_s - start_s - own_s
    return left_s


@compiled
def _short(tables: StageTables, state: StageState, option: Option) -> int:
    """Return how many tasks more arrive in an interval than are served."""
    served_rps = state.free_s.size * option.batch / option.service_s[option.batch - 1]
    short: int = max(0, math.ceil((state.rate_rps - served_rps) * tables.interval_s - ROUNDING))
    return short


@compiled
def _misses(
    tables: StageTables, state: StageState, option: Option, hopeless: int, after: int, most: int
) -> bool:
    """Return whether more than ``most`` are late if the later stages take so many ticks."""
    if state.free_s.size == 0:
        return most == 0  # at least one is
    late, place, order = _short(tables, state, option), hopeless, 0
    before = place // option.batch
    while place < state.due_s.size and late <= most:
        done_s = _queued_done_s(tables, state, option, before)
        before += 1
        stop = min(before * option.batch, state.due_s.size)
        # Of a batch, those are late that are due before the others.
        while place < stop and _ticks_left(tables, state.due_s[place] - done_s) < after:
            late, place = late + 1, place + 1
        place = stop
    while order < state.arrivals_s.shape[0] and late <= most:
        late += _ticks_left(tables, _coming_left_s(tables, state, option, order)) < after
        order += 1
    return late > most


@compiled
def _room(tables: StageTables, state: StageState, option: Option, hopeless: int) -> int:
    """Return the longest latency of the later stages with which nothing here is late."""
    if state.free_s.size == 0 or _short(tables, state, option) > 0:
        return NEVER
    left_s, place = TICKS * tables.tick_s, hopeless
    while place < state.due_s.size and left_s >= 0.0:
        left_s = min(left_s, _queued_left_s(tables, state, option, place))
        # The first of a batch is due before the others of it.
        place += option.batch - place % option.batch
    order = 0
    while order < state.arrivals_s.shape[0] and left_s >= 0.0:
        left_s = min(left_s, _coming_left_s(tables, state, option, order))
        order += 1
    return max(_ticks_left(tables, left_s), NEVER)


@compiled
def _count_late(
    tables: StageTables, state: StageState, option: Option, hopeless: int, late: IntArray
) -> None:
    """Count the late tasks for each latency of the later stages."""
    late[:] = 0
    waiting = state.due_s.size - hopeless + state.arrivals_s.shape[0]
    if state.free_s.size == 0:
        late[0] = waiting + 1
    else:
        late[0] = _short(tables, state, option)
        for place in range(hopeless, state.due_s.size):
            _add_late(late, _ticks_left(tables, _queued_left_s(tables, state, option, place)))
        for order in range(state.arrivals_s.shape[0]):
            _add_late(late, _ticks_left(tables, _coming_left_s(tables, state, option, order)))
    for ticks in range(1, late.size):
        late[ticks] += late[ticks - 1]


@compiled
def _add_late(late: IntArray, room: int) -> None:
    if room + 1 < late.size:
        late[max(room + 1, 0)] += 1


class Pipeline:
    """Decides for a chain of stages: how many replicas each holds, then all the rest at once."""

    def __init__(self, config: Any, spec: SystemSpec, scaled_out: bool) -> None:
        """Lay the system out; only if it is ``scaled_out`` do replicas change."""
        self._spec, self._program = spec, PipelineProgram(config, spec)
        self._shares = shares(spec, "proportional")
        self._fleets = Fleets(config, spec, in_pipeline=True) if scaled_out else None

    def everything(self) -> Allocation:
        """Return what to hold while the load is unknown."""
        held = [stage.replicas for stage in self._spec.initial.stages]
        return everything(self._spec, held)

    def choose(self, view: SystemView, forecast: Forecast) -> Allocation:
        """Return the cheapest allocation that makes the fewest requests late."""
        if self._fleets is None:
            held = [stage.allocation.replicas for stage in view.stages]
        else:
            services_s = [
                tables.service_s[self._program.variant_row(k, view)]
                for k, tables in enumerate(self._program.tables)
            ]
            parts = stage_views(view, self._spec, self._shares)
            self._fleets.observe(parts)
            held = self._fleets.replicas(parts, services_s)
        return self._program.choose(view, forecast, held)


class PipelineProgram:
    """Solves the program of one system for given replicas."""

    def __init__(self, config: Any, spec: SystemSpec) -> None:
        self._spec = spec
        self._backend = None if config.solver == "exact" else make_backend(config.solver)
        self._variants = [_variants(stage, config.variant) for stage in spec.stages]
        services_s = [
            _service_s(stage, variants, config.margin_probability)
            for stage, variants in zip(spec.stages, self._variants, strict=True)
        ]
        fastest_s = list(map(_fastest_s, spec.stages, self._variants))
        tasks = tasks_of_requests(spec.stages)
        self._spread = [_spread(each) for each in tasks]
        self.tables = [
            StageTables(
                service_s=service_s,
                loss=config.accuracy_price * stage.percent_lost[list(self._variants[k])],
                group=_group(tasks[k]),
                before_s=sum(fastest_s[:k]),
                left_s=sum(fastest_s[k:]),
                tick_s=spec.slo_s / TICKS,
                interval_s=spec.interval_s,
                delay_s=spec.resize_delay_s,
            )
            for k, (stage, service_s) in enumerate(zip(spec.stages, services_s, strict=True))
        ]
        options = [service_s.size for service_s in services_s]
        self.chain = Chain(options, TICKS, spec.total_cores)

    def variant_row(self, k: int, view: SystemView) -> int:
        """Return where a stage's tables have the variant that is in force."""
        variants, variant = self._variants[k], view.stages[k].allocation.variant
        return variants.index(variant) if variant in variants else 0

    def choose(self, view: SystemView, forecast: Forecast, replicas: Sequence[int]) -> Allocation:
        """Choose variant, cores and batch of each stage, given the replicas that it holds."""
        states = self.states(view, forecast, replicas)
        feasible = self.solve(states, count_late=False)
        if not feasible:
            self.solve(states, count_late=True)
        return Allocation(stages=self._chosen(replicas), feasible=feasible)

    def solve(self, states: Sequence[StageState], count_late: bool) -> bool:
        """Choose options; return False if each way makes some late that must not."""
        chain, late = self.chain, self.chain.late_rows(count_late)
        if self._backend is None:
            for k in reversed(range(len(states))):
                self.lay_out_stage(k, states[k], late, compete=True)
            cost = chain.winners(count_late)
            if cost >= NO_WAY or chain.fits():
                return cost < MANY
        for k, state in enumerate(states):
            self.lay_out_stage(k, state, late)
        if self._backend is None:
            return chain.cheapest(count_late) < MANY
        if way := solve_chain(chain, count_late, self._backend):
            chain.chosen[:] = way
        return bool(way)

    def lay_out_stage(
        self, k: int, state: StageState, late: IntArray, compete: bool = False
    ) -> None:
        """Write the options of a stage, see :func:`lay_out`."""
        chain = self.chain
        lay_out(self.tables[k], state, chain.choices, k, late, chain.any_cores, compete)

    def _chosen(self, replicas: Sequence[int]) -> tuple[StageAllocation, ...]:
        chosen = []
        for k, option in enumerate(self.chain.options()):
            _, cores_max, batch_max = self.tables[k].service_s.shape
            row, rest = divmod(option, cores_max * batch_max)
            cores, batch = divmod(rest, batch_max)
            variant = self._variants[k][row]
            chosen.append(StageAllocation(cores + 1, batch + 1, replicas[k], variant))
        return tuple(chosen)

    def states(
        self, view: SystemView, forecast: Forecast, replicas: Sequence[int]
    ) -> list[StageState]:
        """Lay a decision out for the kernels."""
        until_s = self._spec.interval_s + self._spec.resize_delay_s
        arrivals_s = np.empty((math.ceil(forecast.rate_rps * until_s - ROUNDING), 2))
        list_arrivals(forecast, arrivals_s)
        return [
            self._state(k, view, arrivals_s if k == 0 else np.empty((0, 2)), forecast, replicas[k])
            for k in range(len(view.stages))
        ]

    def _state(
        self, k: int, view: SystemView, arrivals_s: FloatArray, forecast: Forecast, replicas: int
    ) -> StageState:
        stage = view.stages[k]
        running = _running(stage, replicas, view.now_s)
        return StageState(
            due_s=stage.queued_deadlines_s - view.now_s,
            arrivals_s=arrivals_s,
            running=running,
            free_s=np.empty(len(running)),
            variant=self.variant_row(k, view),
            cores=stage.cores_in_force,
            replicas=replicas,
            rate_rps=forecast.rate_rps * self._spec.stages[k].mean_tasks,
            noise=forecast.noise * self._spread[k],
        )


def _variants(stage: StageSpec, which: str) -> tuple[int, ...]:
    """Return the variants to choose from, the most accurate first: where they cost the same."""
    every = tuple(reversed(range(len(stage.latencies))))
    return {"smallest": every[-1:], "largest": every[:1]}.get(which, every)


def _service_s(stage: StageSpec, variants: Sequence[int], margin_probability: float) -> FloatArray:
    """Return (variants, cores_max, batch_max) seconds to plan with."""
    tables = []
    for fit in (stage.latencies[each] for each in variants):
        margin = max(0.0, fit.residual_quantile(margin_probability))
        tables.append((1 + margin) * fit.table_s(stage.batch_max, stage.cores_max).T)
    return np.ascontiguousarray(tables)


def _fastest_s(stage: StageSpec, variants: Sequence[int]) -> float:
    """Return the shortest service of a task, by the fits."""
    fits = (stage.latencies[each].table_s(1, stage.cores_max) for each in variants)
    return min(float(table_s[0, -1]) for table_s in fits)


def _running(stage: StageView, replicas: int, now_s: float) -> FloatArray:
    """Return (ready, 2) when each ready replica is free, and what it runs; soonest first.

    Where none is ready, those that start serve as soon as they are.
    """
    ready = min(stage.replicas_ready, replicas)
    batches = sorted((max(0.0, b.expected_end_s - now_s), b.size) for b in stage.running)[:ready]
    idle = [(0.0, 0)] * (ready - len(batches))
    starting = [] if ready else [(starts_s, 0) for starts_s in stage.starting_s[:replicas]]
    return np.array([*idle, *batches, *starting], np.float64).reshape(-1, 2)


def tasks_of_requests(stages: Sequence[StageSpec]) -> list[FloatArray]:
    """Return for each stage of a chain the probabilities that a request has 0, 1, ... tasks."""
    found = [np.array([0.0, 1.0])]
    for lead in stages[:-1]:
        sums, power = np.zeros(_MOST_TASKS + 1), np.ones(1)
        for share in found[-1]:
            sums[: power.size] += share * power
            power = np.convolve(power, lead.tasks)[: _MOST_TASKS + 1]
        sums[-1] += 1 - sums.sum()  # who has more
        found.append(sums)
    return found


def _group(tasks: FloatArray) -> int:
    """Return how many tasks a request has at most, with a few exceptions."""
    return max(1, int(np.searchsorted(np.cumsum(tasks), _TASKS_SHARE)))


def _spread(tasks: FloatArray) -> float:
    """Return how much more tasks scatter than requests, whose number scatters as Poisson's."""
    counts = np.arange(tasks.size)
    mean = float(tasks @ counts)
    return math.sqrt(float(tasks @ counts**2) / mean) if mean > 0 else 1.0
