"""One decision of the look-ahead program: from a view to the kernel's memory and back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from agents.groups import group_size, grouped_service_s, in_groups
from agents.mpc_config import MPCConfig
from agents.mpc_flow import Flow, fit_rate
from agents.mpc_paths import Chance, Outlook
from agents.mpc_price import CostCurve, cost_curve
from agents.mpc_queue import HEAD, NEXT, TAIL
from agents.mpc_search import Memory, Rules, make_memory, plan
from sponge_env.interfaces import Allocation, FloatArray, SystemSpec, SystemView

_OVERDUE = 0.02
"""Share of its service time that a batch is taken to need still when it should have ended."""
_PLACES = 512
"""Arrivals for which there is room on each path at first."""
_PLAYED, _PLAYED_CORES = 600, 16
"""Requests that are played on each path at most where there are so many cores to choose from,
and in proportion fewer where there are more, so that a decision takes a few milliseconds."""
_LATE_IN_ONE_PLAN = 0.5
"""Late requests to expect from which on a plan counts as infeasible."""


class Times(Protocol):
    """What batches take, learned while serving."""

    @property
    def table_s(self) -> FloatArray:
        """(cores_max, batch_max) seconds of a batch; row ``c - 1``, column ``b - 1``."""

    def observe(self, view: SystemView) -> bool:
        """Take in the interval that has passed; return whether it changed the table."""


@dataclass(slots=True)
class Episode:
    """What belongs to one episode."""

    spec: SystemSpec
    rules: Rules
    times: Times
    curve: CostCurve
    flow: Flow
    memory: Memory


def make_episode(spec: SystemSpec, config: MPCConfig, chance: Chance, times: Times) -> Episode:
    """Start an episode; the kernel is compiled now, so that no decision waits for it."""
    rules, flow = make_rules(spec, config, times.table_s), Flow(spec, config)
    paths, intervals = chance.weight.size, 1 + config.look_ahead
    memory = make_memory(rules, paths, intervals, spec.batch_max, _PLACES)
    fit_rate(np.ones(1), np.ones(1), spec.interval_s)
    nothing = Outlook(1.0, 0.0, 0.0, 0.1, 0.1, 0.0)
    plan(rules, nothing, chance, flow.kinds, 0.0, memory, 1, 1)
    return Episode(spec, rules, times, cost_curve(times.table_s), flow, memory)


def make_rules(spec: SystemSpec, config: MPCConfig, service_s: FloatArray) -> Rules:
    """Lay a system out for the kernel."""
    return Rules(
        service_s=service_s,
        interval_s=spec.interval_s,
        guard_s=config.guard * spec.slo_s,
        late_price=config.late_price,
        release_price=config.release_price,
        batching=config.batching,
    )


def choose(
    episode: Episode, chance: Chance, backlog_price: float, view: SystemView, outlook: Outlook
) -> Allocation:
    """Let the kernel choose cores and batch for the replicas that the rules say.

    Args:
        episode: Its memory is overwritten.
        chance: What tells the paths apart.
        backlog_price: See :class:`~agents.mpc_config.MPCConfig`.
        view: The state.
        outlook: What to expect.
    """
    held, expected = episode.rules.held, _expected(episode, outlook)
    most = _PLAYED * _PLAYED_CORES / max(episode.spec.cores_max, _PLAYED_CORES)
    group = group_size(view.queued_deadlines_s.size + expected, most)
    rules = _grouped(episode.rules, group)
    price = group * backlog_price * episode.curve.price(outlook.rate_rps / held)
    outlook = _thinned(outlook, group)
    running = sum(batch.size for batch in view.running)
    waiting = (view.queued_deadlines_s.size + running) // group + held + 1
    _make_room(episode, rules, waiting, expected / group)
    _fill(episode, view, outlook.rate_rps, group)
    cores, batch, late = plan(
        rules,
        outlook,
        chance,
        episode.flow.kinds,
        price,
        episode.memory,
        view.allocation.cores,
        in_groups(view.allocation.batch, group, rules.service_s.shape[1]),
    )
    size = min(group * int(batch), episode.spec.batch_max)
    expired = view.queued_deadlines_s.size and view.queued_deadlines_s[0] < view.now_s
    feasible = not expired and bool(group * late < _LATE_IN_ONE_PLAN)
    return Allocation(int(cores), size, held, feasible=feasible)


def replica_states(spec: SystemSpec, view: SystemView, held: int) -> list[tuple[float, int]]:
    """Return when each replica is free, in seconds, and the size of its batch; soonest first.

    A batch on a replica beyond the ready ones is on one that goes when it is done; the view does
    not say which that is, so the batches that end last are taken to stay.
    """
    ready = min(view.replicas_ready, held)
    batches = [(max(0.0, b.expected_end_s - view.now_s), b.size) for b in view.running]
    busy = sorted(batches, reverse=True)[:ready]
    idle = [(0.0, 0)] * (ready - len(busy))
    cold = [*view.starting_s, *[spec.cold_start_s] * held][: held - ready]
    return sorted([*busy, *idle, *((left_s, 0) for left_s in cold)])


def _expected(episode: Episode, outlook: Outlook) -> float:
    """Return how many requests are on the way or will be sent before the look-ahead ends."""
    played_s = episode.memory.speed.size * episode.spec.interval_s
    on_the_way_s = outlook.transfer_s * max(1.0, float(episode.flow.kinds[:, 0].max()))
    return outlook.rate_rps * (played_s + on_the_way_s)


def _grouped(rules: Rules, group: int) -> Rules:
    """Return the rules for requests in groups."""
    service_s = grouped_service_s(rules.service_s, group)
    return rules._replace(service_s=service_s, late_price=group * rules.late_price)


def _thinned(outlook: Outlook, group: int) -> Outlook:
    """Return what to expect of requests in groups; their number scatters less by itself."""
    return outlook._replace(rate_rps=outlook.rate_rps / group, scatter=outlook.scatter / group)


def _make_room(episode: Episode, rules: Rules, waiting: int, expected: float) -> None:
    """Let the kernel's memory hold a queue, and the arrivals on each path.

    There is room for the tail of the arrivals' distribution, too.
    """
    memory = episode.memory
    room, places = memory.start.due_s.size, memory.arrivals_s.shape[1]
    wanted = int(2.0 * expected + 10.0 * expected**0.5) + 10
    shape = *memory.score.shape, memory.start.size.size
    fits = waiting <= room - places and wanted <= places
    if fits and shape == (*rules.service_s.shape, rules.held):
        return
    paths, intervals = memory.counts.size, memory.speed.size
    episode.memory = make_memory(rules, paths, intervals, 2 * waiting, max(2 * wanted, _PLACES))


def _fill(episode: Episode, view: SystemView, rate_rps: float, group: int) -> None:
    """Write the running batches and the waiting requests into the kernel's memory, in groups.

    A group is due with the first of its requests.
    """
    queue, held = episode.memory.start, episode.rules.held
    ahead, largest = 0, episode.memory.score.shape[1]
    row_s = episode.rules.service_s[view.allocation.cores - 1]
    for at, (free_s, size) in enumerate(replica_states(episode.spec, view, held)):
        groups = in_groups(size, group, largest) if size else 0
        queue.free_s[at] = max(free_s, _OVERDUE * row_s[size - 1]) if size else free_s
        queue.first[at], queue.size[at] = ahead, groups
        ahead += groups
    queued_s = view.queued_deadlines_s[::group]
    tail = ahead + queued_s.size
    np.subtract(queued_s, view.now_s, out=queue.due_s[ahead:tail])
    older_s = np.arange(ahead, 0, -1) / max(rate_rps, 1.0)
    queue.due_s[:ahead] = _newest_running_s(episode.spec, view) - older_s
    queue.marks[HEAD], queue.marks[TAIL], queue.marks[NEXT] = ahead, tail, 0


def _newest_running_s(spec: SystemSpec, view: SystemView) -> float:
    """Return when the newest running request is due, about: a view does not say.

    Running requests came before those that wait, and if none does, they are the newest arrivals;
    at the rate, one came each ``1 / rate_rps``.
    """
    if view.queued_deadlines_s.size:
        return float(view.queued_deadlines_s[0]) - view.now_s
    return float(view.budgets_s[-1]) if view.budgets_s.size else spec.slo_s
