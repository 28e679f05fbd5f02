"""How many replicas to hold: what takes a cold start to change is planned some of those ahead."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sponge_env.control.base import Options, option
from sponge_env.control.split import shares, stage_spec, stage_views
from sponge_env.interfaces import (
    Allocation,
    FloatArray,
    StageAllocation,
    SystemSpec,
    SystemView,
    fit_to_machine,
)

from .rates import SMOOTHED, rate_samples, smoothed

_BUSY = 0.5
"""Share of what one core serves from which a second replica is worth its core."""
_BATCH_SHARE = 0.4
"""Longest batch to reckon with, relative to the SLO."""
_COLD_STARTS_AHEAD = 6
_KEPT = 600
"""Intervals for which a second replica is held after it was last worth its core."""
_REMEMBERED = 3600
"""Past intervals whose rates are remembered."""
_OVERLOAD = 10.0
"""Cost of each core that is missing: that the CPU does not have, or that the rate would need
beyond the largest allocation."""
_SOON = 1.5
"""How late a backlog may end, relative to the soonest, that fewer replicas may do: the more there
start, the less the ready ones serve for so long."""

_ALONE, _IN_PIPELINE = (0.9, 0.03), (0.45, 0.1)
"""Utilisation, where it is left out, and the saving, relative to the whole cost, for which the
fleet changes. Stages of a pipeline have to be quick rather than busy: what one of them holds up is
late in all, and few cores cannot come to the rescue."""
_FEWEST = 2
"""Replicas to hold at least where one core would be half busy, but not in a pipeline or where all
share one CPU. Each core adds less than the one before, so that two replicas serve a burst that one
cannot, or serve it on fewer cores."""


@dataclass(frozen=True, kw_only=True)
class FleetOptions(Options):
    """Options of :class:`FleetPlanner`."""

    utilisation: float | None = option(None, above=0, at_most=1)
    """Share of the planned throughput that a replica is trusted with; if left out 0.9, of stages of
    a pipeline 0.45."""
    overload_windows: int = option(3, at_least=0)
    """Past intervals whose least rate, in a pipeline the mean one, is taken to last if the ready
    replicas cannot serve it; 0 for none."""


def backlog_end_s(
    waiting: int, before_rps: FloatArray, after_rps: FloatArray, change_s: FloatArray
) -> FloatArray:
    """Return when backlogs end that grow by so many requests per second before and after a change.

    Infinite where they grow, or last, for ever; of those that shrink already before, when they do.
    """
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        ended_s = np.where(before_rps < 0, waiting / -before_rps, np.inf)
        left = waiting + before_rps * change_s
        end_s = np.where(ended_s <= change_s, ended_s, change_s - left / after_rps)
    return np.where(after_rps < 0, end_s, np.inf)


class FleetPlanner:
    """Chooses how many replicas to hold, by the cheapest path through the next cold starts.

    While replicas start they hold as many cores as those that serve, which must be many just then.
    So each step from one fleet to the next has a cost: ``m`` replicas held for one cold start on
    the cores that the ``n`` ready ones need.
    """

    def __init__(self, config: FleetOptions, spec: SystemSpec, in_pipeline: bool = False) -> None:
        usual, self._reluctance = _IN_PIPELINE if in_pipeline else _ALONE
        self._utilisation = config.utilisation or usual
        self._config, self._spec, self._in_pipeline = config, spec, in_pipeline
        self._replicas = np.arange(1, spec.most_replicas(cores=1) + 1)
        self._most_cores = np.array([spec.most_cores(int(n)) for n in self._replicas])
        ready_s = spec.resize_delay_s + spec.first.cold_start_s
        self._cold_start = max(1, round(ready_s / spec.interval_s))
        alone = not in_pipeline and math.isinf(spec.first.cpu_cores)
        self._fewest = min(_FEWEST if alone else 1, len(self._replicas))
        self._rates_rps: deque[float] = deque(maxlen=_REMEMBERED)
        self.overloaded = False
        """Whether the last answer is more than the ready replicas because those are too few."""

    def observe(self, view: SystemView) -> None:
        """Remember the last interval's arrivals; at first all that the view shows."""
        news = view.first.arrivals[-1:] if self._rates_rps else view.first.arrivals
        self._rates_rps.extend((news / self._spec.interval_s).tolist())

    def replicas(self, view: SystemView, service_s: FloatArray) -> int:
        """Return how many replicas to hold now, starting ones included."""
        # The most that a replica serves, never less with more cores: (cores_max,).
        batches = np.arange(1, self._spec.first.batch_max + 1)
        longest_s = max(_BATCH_SHARE * self._spec.slo_s, service_s[:, 0].max())
        throughput_rps = np.where(service_s <= longest_s, batches / service_s, 0.0).max(axis=1)
        throughput_rps = np.maximum.accumulate(throughput_rps)
        rates_rps = np.array(self._rates_rps)
        desired = self._desired(view, rates_rps, throughput_rps)
        busy = smoothed(rates_rps[-_KEPT:]).max() > _BUSY * throughput_rps[0]
        return max(desired, self._fewest) if busy else desired

    def _desired(self, view: SystemView, rates: FloatArray, throughput_rps: FloatArray) -> int:
        serves_rps = throughput_rps * self._utilisation
        now = self._cost(rates[-SMOOTHED:].mean(keepdims=True), serves_rps)
        coming = rate_samples(rates, 2 * self._cold_start)
        windows = self._config.overload_windows
        if windows and self._in_pipeline:
            rate_rps = float(rates[-windows:].mean())
            # What others on the machine need is not known here, so the rate has to do.
            if rate_rps > max(1, view.first.replicas_ready) * serves_rps[-1]:
                coming = np.maximum(coming, rate_rps)
        usual = self._cheapest(view, now, self._cost(coming, serves_rps))
        if not windows or self._in_pipeline:
            return usual
        # What an outage of the network held back comes within an interval or two.
        return self._following(usual, view, float(rates[-windows:].min()), throughput_rps)

    def _following(
        self, usual: int, view: SystemView, rate_rps: float, throughput_rps: FloatArray
    ) -> int:
        """Return how many replicas to hold if a rate lasts that the usual ones may not serve.

        New ones come late and take cores from the ready ones, who share the machine with them. So
        none is asked for before requests must be late with what is ready, and no ready one is
        given up that the rate or the backlog needs. In an overload they are the fewest that soon
        end what gathers until they serve; none of these is given up before the ready ones serve
        the rate and no request must be late any more.
        """
        current, waiting = view.allocation.replicas, view.first.queued_deadlines_s.size
        ready = min(max(view.first.replicas_ready, 1), current)
        cpu_share = self._spec.first.cpu_cores / (self._replicas * self._most_cores)
        each_rps = throughput_rps[self._most_cores - 1] * np.minimum(1.0, cpu_share)
        all_rps = self._replicas * each_rps
        cold_start_s = self._cold_start * self._spec.interval_s
        # Those that start are of no use before all are warm, which is the worse for a larger fleet.
        short_rps = rate_rps - np.minimum(self._replicas, ready) * each_rps
        wait_s = self._wait(view, ready) * cold_start_s
        end_s = backlog_end_s(waiting, short_rps, rate_rps - all_rps, wait_s)
        serves_rps = float(all_rps[ready - 1])
        late = waiting > serves_rps * self._spec.slo_s
        late |= self.overloaded and rate_rps > serves_rps
        soon_s = _SOON * end_s.min()
        if math.isfinite(soon_s):
            good = end_s <= (soon_s if late else max(soon_s, cold_start_s))
        else:
            good = all_rps > (1 - 1e-9) * all_rps.max()  # sums of equal shares differ by rounding
        enough = int(good.argmax()) + 1
        self.overloaded = late and (self.overloaded or enough > ready)
        return max(enough, current) if self.overloaded else max(usual, min(enough, ready))

    def _cost(self, rates_rps: FloatArray, serves_rps: FloatArray) -> FloatArray:
        """Return (serving, allocated) mean cost of so many replicas of which so many serve.

        Each holds the cores that those which serve need, as far as the machine has so many for
        all. Replicas that hold more than their CPU has take it from each other.
        """
        load_rps = rates_rps / self._replicas[:, None]
        cores = np.interp(load_rps, serves_rps, np.arange(1, self._spec.first.cores_max + 1))
        limit = self._most_cores[:, None]
        allocated = np.minimum(cores[:, None, :], limit) * self._replicas[:, None]
        missing = np.maximum(allocated - self._spec.first.cpu_cores, 0.0)
        missing += limit * np.maximum(load_rps[:, None, :] / serves_rps[limit - 1] - 1, 0.0)
        cost: FloatArray = (allocated + _OVERLOAD * missing).mean(axis=2)
        return cost

    def _cheapest(self, view: SystemView, now: FloatArray, ahead: FloatArray) -> int:
        """Return the first step of the cheapest path, in units of cold starts."""
        current = view.allocation.replicas
        ready = min(max(view.first.replicas_ready, 1), current)
        warm = ahead.diagonal()
        # From n to m replicas: fewer are warm at once, more hold their cores while they start.
        step = np.where(self._replicas >= self._replicas[:, None], ahead, warm)
        # Backward induction: what each size costs from its first cold start on.
        value = np.zeros(len(self._replicas))
        for _ in range(_COLD_STARTS_AHEAD):
            value = (step + value).min(axis=1)
        # Replicas that start already come sooner, so their first cold start counts in part.
        wait = self._wait(view, ready)
        waiting = np.where(self._replicas > ready, now[ready - 1], now.diagonal())
        total = wait * waiting + (1 - wait) * warm + value
        best = int(total.argmin())
        if self._in_pipeline and len(self._rates_rps) < self._cold_start:
            best = max(best, current - 1)  # so few intervals give up nothing that takes as long
        # A change for little gain would be reversed soon.
        good_enough = total[best] >= (1 - self._reluctance) * total[current - 1]
        return current if good_enough else best + 1

    def _wait(self, view: SystemView, ready: int) -> FloatArray:
        """Return (replicas_max,) cold starts until a fleet of each size is warm."""
        wait = np.ones(len(self._replicas))
        wait[:ready] = 0.0
        left = np.array(view.first.starting_s[: len(wait) - ready])
        left /= max(self._spec.first.cold_start_s, 1e-9)
        wait[ready : ready + len(left)] = np.minimum(left, 1.0)
        return wait


class Fleets:
    """How many replicas each stage of a chain holds, each for itself.

    A single stage may be a part of a pipeline, too.
    """

    def __init__(self, config: FleetOptions, spec: SystemSpec, in_pipeline: bool) -> None:
        self._spec, self._shares = spec, shares(spec, "proportional")
        self._planners = [
            FleetPlanner(config, stage_spec(spec, k, share), in_pipeline)
            for k, (share, _) in enumerate(self._shares)
        ]

    def observe(self, view: SystemView) -> None:
        """Take in the interval that has passed."""
        self._parts = stage_views(view, self._spec, self._shares)
        for planner, part in zip(self._planners, self._parts, strict=True):
            planner.observe(part)

    def replicas(self, services_s: Sequence[FloatArray]) -> list[int]:
        """Return how many replicas to hold after that, starting ones included; all find room.

        (cores_max, batch_max) are the seconds of a batch in each stage.
        """
        stages = []
        for planner, part, service_s in zip(self._planners, self._parts, services_s, strict=True):
            held = part.allocation.stages[0]
            stages.append(held._replace(cores=1, replicas=planner.replicas(part, service_s)))
        return [each.replicas for each in fit_to_machine(stages, self._spec.total_cores)]

    @property
    def overloaded(self) -> bool:
        """Whether replicas were asked for that the ready ones have to make room for."""
        return any(planner.overloaded for planner in self._planners)


def everything(spec: SystemSpec, replicas: Sequence[int]) -> Allocation:
    """Return what to hold with so many replicas while the load is unknown: all that has room."""
    stages = [
        StageAllocation(stage.cores_max, stage.batch_max, count, initial.variant)
        for stage, count, initial in zip(spec.stages, replicas, spec.initial.stages, strict=True)
    ]
    return Allocation(stages=fit_to_machine(stages, spec.total_cores, "cores"))
