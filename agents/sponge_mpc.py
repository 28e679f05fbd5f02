"""``sponge-mpc``: plays the next seconds for every allocation and takes the cheapest."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from agents.mpc_config import MPCConfig
from agents.mpc_flow import Flow, fit_rate
from agents.mpc_paths import Chance, Outlook, make_chance
from agents.mpc_price import CostCurve, cost_curve
from agents.mpc_queue import HEAD, NEXT, TAIL, Queue
from agents.mpc_search import Memory, Rules, make_memory, plan
from agents.mpc_service import ServiceTimes
from sponge_env.interfaces import Allocation, FloatArray, SystemSpec, SystemView
from sponge_env.mapping import from_mapping

_OVERDUE = 0.02
"""Share of its service time that a batch is taken to need still when it should have ended."""
_PLACES = 512
_PLACES_MAX = 8192
"""Arrivals that are played on each path: at first, and at most."""
_LATE_IN_ONE_PLAN = 0.5
"""Late requests to expect from which on a plan counts as infeasible."""


@dataclass(slots=True)
class _Episode:
    """What belongs to one episode."""

    spec: SystemSpec
    rules: Rules
    times: ServiceTimes
    curve: CostCurve
    flow: Flow
    memory: Memory


class SpongeMPC:
    """Vertical scaling by receding horizon: simulate, choose, and simulate anew.

    It plays the queue under a candidate allocation along weighted sample paths of arrivals and
    bandwidth, lets each path go on with the cores that suit it then (vertical scaling acts at
    once, so the next decision can come to the rescue), and minimises

        cores + late_price * late requests + price of the backlog left at the end.

    The price of the backlog is what serving one more request costs at the forecast rate. It
    keeps the cores at the level that the load needs in the long run: latency is convex in the
    cores, so a steady few are cheaper than few and many by turns.

    It asks for one replica always, and takes everything before the load is known.
    """

    def __init__(self, **options: Any) -> None:
        """Check the options.

        Args:
            options: Fields of :class:`~agents.mpc_config.MPCConfig`.

        Raises:
            ConfigError: An option is unknown or out of range.
        """
        self.config = from_mapping(MPCConfig, options)
        self._chance: Chance = make_chance(self.config.risk)
        self._episode: _Episode | None = None

    def reset(self, spec: SystemSpec, seed: int) -> None:
        """Start a new episode; no random number is drawn. Compiles at the first call.

        Raises:
            ProfileError: The system's latency model predicts one that is not positive.
        """
        times = ServiceTimes(spec.latency.table_s(spec.batch_max, spec.cores_max).T)
        rules = make_rules(spec, self.config, times.table_s)
        memory = self._room(rules, queued=spec.batch_max, places=_PLACES)
        flow = Flow(spec, self.config)
        self._episode = _Episode(spec, rules, times, cost_curve(times.table_s), flow, memory)
        # Compiled now, or loaded from disk, so that no decision waits for it.
        fit_rate(np.ones(1), np.ones(1), spec.interval_s)
        nothing = Outlook(1.0, 0.0, 0.0, 0.1, 0.1, 0.0)
        plan(rules, nothing, self._chance, flow.kinds, 0.0, memory, 1, 1)

    def decide(self, view: SystemView) -> Allocation:
        """Choose cores and batch for the next interval.

        Raises:
            RuntimeError: Before the first :meth:`reset`.
        """
        if self._episode is None:
            raise RuntimeError("call reset() before decide()")
        episode, spec = self._episode, self._episode.spec
        if not view.arrivals.size:
            return Allocation(spec.cores_max, spec.batch_max)
        if self.config.learning and episode.times.observe(view):
            episode.curve = cost_curve(episode.times.table_s)
        outlook = episode.flow.observe(view)
        self._make_room(episode, view.queued_deadlines_s.size, _places(episode, outlook))
        _fill(episode, view, outlook)
        price = self.config.backlog_price * episode.curve.price(outlook.rate_rps)
        cores, batch, late = plan(
            episode.rules,
            outlook,
            self._chance,
            episode.flow.kinds,
            price,
            episode.memory,
            view.allocation.cores,
            view.allocation.batch,
        )
        return Allocation(int(cores), int(batch), feasible=bool(late < _LATE_IN_ONE_PLAN))

    def _make_room(self, episode: _Episode, queued: int, places: int) -> None:
        """Let the kernel's memory hold a queue and so many arrivals on each path."""
        memory, ahead = episode.memory, episode.spec.batch_max
        waiting_max = memory.start.due_s.size - memory.arrivals_s.shape[1] - ahead
        if queued > waiting_max or places > memory.arrivals_s.shape[1]:
            episode.memory = self._room(episode.rules, 2 * queued + ahead, 2 * places)

    def _room(self, rules: Rules, queued: int, places: int) -> Memory:
        paths, intervals = self._chance.weight.size, 1 + self.config.look_ahead
        return make_memory(rules, paths, intervals, queued, places)


def make_rules(spec: SystemSpec, config: MPCConfig, service_s: FloatArray) -> Rules:
    """Lay a system out for the kernel.

    Raises:
        ProfileError: The system's latency model predicts one that is not positive.
    """
    return Rules(
        service_s=service_s,
        interval_s=spec.interval_s,
        guard_s=config.guard * spec.slo_s,
        late_price=config.late_price,
        release_price=config.release_price,
        batching=config.batching,
    )


def _places(episode: _Episode, outlook: Outlook) -> int:
    """Return how many arrivals a path can have, the tail of their distribution included."""
    played_s = episode.memory.speed.size * episode.spec.interval_s
    on_the_way_s = outlook.transfer_s * max(1.0, float(episode.flow.kinds[:, 0].max()))
    likely = outlook.rate_rps * (played_s + on_the_way_s)
    return min(_PLACES_MAX, int(2.0 * likely + 10.0 * likely**0.5) + 10)


def _fill(episode: _Episode, view: SystemView, outlook: Outlook) -> None:
    """Write the queue and the batch that is running into the kernel's memory."""
    queue, ahead = episode.memory.start, 0
    queue.free_s[0] = 0.0 if view.replicas_ready or not view.starting_s else view.starting_s[0]
    if view.running:
        ahead = _fill_running(episode, queue, view, outlook)
    queue.first[0], queue.size[0] = 0, ahead
    tail = ahead + view.queued_deadlines_s.size
    np.subtract(view.queued_deadlines_s, view.now_s, out=queue.due_s[ahead:tail])
    queue.marks[HEAD], queue.marks[TAIL], queue.marks[NEXT] = ahead, tail, 0


def _fill_running(episode: _Episode, queue: Queue, view: SystemView, outlook: Outlook) -> int:
    """Write the running batch at the head of the queue and return its size.

    A view does not say when its requests are due. They came before those that wait, and if none
    does, they are the newest arrivals; at the rate, one came each ``1 / rate_rps``.
    """
    batch = view.running[0]
    whole_s = episode.rules.service_s[view.allocation.cores - 1, batch.size - 1]
    queue.free_s[0] = max(batch.expected_end_s - view.now_s, _OVERDUE * whole_s)
    if view.queued_deadlines_s.size:
        newest_s = view.queued_deadlines_s[0] - view.now_s
    else:
        newest_s = view.budgets_s[-1] if view.budgets_s.size else episode.spec.slo_s
    older = np.arange(batch.size, 0, -1) / max(outlook.rate_rps, 1.0)
    queue.due_s[: batch.size] = newest_s - older
    return batch.size
