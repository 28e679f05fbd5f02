"""Joint vertical and horizontal scaling: cores cover the load until cheaper replicas are warm.

As Themis argues ("A Tale of Two Scales", Razavi et al., arXiv 2407.14843, 2024), replicas on
few cores are the cheapest way to serve a load and cores the fastest way to follow one. Two
parts share each decision: :class:`FleetPlanner` says how many replicas to keep, which takes a cold
start to change, and the look-ahead program of ``sponge-mpc`` with which cores and batch size they
serve the next seconds best.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import numpy as np

from sponge_env.controllers import BaseController, option
from sponge_env.interfaces import Allocation, FloatArray, SystemSpec, SystemView
from sponge_env.results.schema import IntervalMetrics

from .lookahead import SEEN_RANGE, LookAhead, MPCConfig

_SMOOTHED = 5
"""Intervals over which rates are averaged: shorter swings are the queue's business."""
_PRIOR = 30
"""Intervals of experience that the belief in a lasting rate counts for."""
_SAMPLES = 64
"""Rates that stand for the distribution of the coming ones."""
_REMEMBERED = 3600
"""Past intervals whose rates are remembered."""
_PRIOR_S = 1.0
"""Service that the first guess of a service time counts for."""
_FORGET = 0.998
"""Weight that experience of service times keeps per interval."""
_SAME_BATCH = 0.1
"""Distance of a mean batch size from a whole number up to which all batches count as equal."""
_OVERLOAD = 10.0
"""Cost of each core that is missing: that the CPU does not have, or that the rate would need
beyond the largest allocation."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SpongeJointConfig(MPCConfig):
    """Options of :class:`SpongeJoint`: of the fleet, and of the program that chooses its cores.

    The defaults were chosen on training seeds over several scenarios and profiles at once.
    """

    utilisation: float = option(0.9, above=0, at_most=1)
    """Share of the planned throughput that a replica is trusted with."""
    batch_share: float = option(0.4, above=0, at_most=1)
    """Longest batch to reckon with, relative to the SLO."""
    cold_starts_ahead: int = option(6, at_least=1)
    """Cold starts to look ahead."""
    reluctance: float = option(0.03, at_least=0, below=1)
    """Saving, relative to the whole cost, for which the fleet changes."""
    margin_probability: float = option(0.95, at_least=0, at_most=1)
    """Probability with which a latency that was never seen should stay below prediction plus
    margin, by the residuals of the profile's fit."""
    safety: float = option(0.03, at_least=0)
    """Relative allowance on latencies that were seen, for single batches scatter."""


class SpongeJoint(BaseController):
    """Sponge with replicas: chooses how many, their cores, and the batch size.

    Before the first interval has passed the load is unknown, and the replicas that there are
    share all cores.
    """

    config: SpongeJointConfig

    def begin(self, spec: SystemSpec) -> None:
        """Start from the fitted service times and a margin; compiles at the first call."""
        config = self.config
        margin = max(0.0, spec.latency.residual_quantile(config.margin_probability))
        self._times = QuotaServiceTimes(spec, margin, config.safety)
        self._program = LookAhead(spec, config, self._times.table_s)
        self._fleet = FleetPlanner(config, spec)

    def allocate(self, spec: SystemSpec, view: SystemView) -> Allocation:
        """Choose the fleet, then its cores and batch size."""
        if not view.arrivals.size:
            held = view.allocation.replicas
            return Allocation(spec.most_cores(held), spec.batch_max, held)
        if self.config.learning:
            self._times.observe(view)
        self._fleet.observe(view)
        service_s = self._times.table_s
        wanted = self._fleet.replicas(view, service_s)
        ready = max(1, min(view.replicas_ready, wanted))
        self._program.use(service_s, wanted, spec.most_cores(ready))
        answer = self._program.choose(view)
        # Those that start find room only beside the cores that the ready ones need now.
        return answer.changed(replicas=min(wanted, max(ready, spec.most_replicas(answer.cores))))


def rate_samples(rates: FloatArray, lag: int) -> FloatArray:
    """Return equally likely rates some intervals ahead, from all the past ones.

    Rates revert to their mean as fast as they have done so far: with ``phi`` the
    autocorrelation at that lag, the forecast is ``mean + phi * (last - mean)`` plus one of
    the errors it would have had before. Young fleets take the rate to last. Of the (intervals,)
    past rates, the newest last, there is one at least.
    """
    width = min(_SMOOTHED, len(rates))
    smooth = np.convolve(rates, np.full(width, 1 / width), "valid")
    mean = smooth.mean()
    swing = smooth - mean
    pairs = len(swing) - lag
    if pairs < 1:
        return smooth[-1:]
    before, after = swing[:-lag], swing[lag:]
    power = float(before @ before)
    seen = min(max(float(before @ after) / power, 0.0), 1.0) if power > 0 else 0.0
    # A belief that rates last, until so much experience says otherwise.
    phi = (pairs * seen + _PRIOR) / (pairs + _PRIOR)
    errors = (after - phi * before)[:: -max(1, pairs // _SAMPLES)]
    samples: FloatArray = np.maximum(mean + phi * swing[-1] + errors, 0.0)
    return samples


class FleetPlanner:
    """Chooses how many replicas to hold, by the cheapest path through the next cold starts.

    While replicas start they hold as many cores as those that serve, which must be many just then.
    So the cost of each way from one fleet to the next is reckoned: ``m`` replicas held for one
    cold start on the cores that the ``n`` ready ones need.
    """

    def __init__(self, config: SpongeJointConfig, spec: SystemSpec) -> None:
        self._config, self._spec = config, spec
        self._replicas = np.arange(1, spec.most_replicas(cores=1) + 1)
        self._most_cores = np.array([spec.most_cores(int(n)) for n in self._replicas])
        ready_s = spec.resize_delay_s + spec.cold_start_s
        self._cold_start = max(1, round(ready_s / spec.interval_s))
        self._rates_rps: deque[float] = deque(maxlen=_REMEMBERED)

    def observe(self, view: SystemView) -> None:
        """Remember the last interval's arrivals."""
        self._rates_rps.append(float(view.arrivals[-1]) / self._spec.interval_s)

    def replicas(self, view: SystemView, service_s: FloatArray) -> int:
        """Return how many replicas to hold now, starting ones included."""
        serves_rps = self._serves_rps(service_s)
        rates = np.array(self._rates_rps)
        recent = rates[-_SMOOTHED:].mean()
        now = self._cost(np.array([recent]), serves_rps)
        ahead = self._cost(rate_samples(rates, 2 * self._cold_start), serves_rps)
        return self._cheapest(view, now, ahead)

    def _serves_rps(self, service_s: FloatArray) -> FloatArray:
        """Return (cores_max,) what one replica is trusted with, never less with more cores."""
        batches = np.arange(1, self._spec.batch_max + 1)
        longest_s = max(self._config.batch_share * self._spec.slo_s, service_s[:, 0].max())
        throughput = np.where(service_s <= longest_s, batches / service_s, 0.0).max(axis=1)
        serves_rps: FloatArray = np.maximum.accumulate(throughput) * self._config.utilisation
        return serves_rps

    def _cost(self, rates_rps: FloatArray, serves_rps: FloatArray) -> FloatArray:
        """Return (serving, allocated) mean cost of so many replicas of which so many serve.

        Each holds the cores that those which serve need, as far as the machine has so many for
        all. Replicas that hold more than their CPU has take it from each other.
        """
        load_rps = rates_rps / self._replicas[:, None]
        cores = np.interp(load_rps, serves_rps, np.arange(1, self._spec.cores_max + 1))
        most = self._most_cores[:, None]
        allocated = np.minimum(cores[:, None, :], most) * self._replicas[:, None]
        missing = np.maximum(allocated - self._spec.cpu_cores, 0.0)
        missing += most * np.maximum(load_rps[:, None, :] / serves_rps[most - 1] - 1, 0.0)
        cost: FloatArray = (allocated + _OVERLOAD * missing).mean(axis=2)
        return cost

    def _cheapest(self, view: SystemView, now: FloatArray, ahead: FloatArray) -> int:
        """Return the first step of the cheapest path, in units of cold starts."""
        current = view.allocation.replicas
        ready = min(max(view.replicas_ready, 1), current)
        warm = ahead.diagonal()
        # From n to m replicas: fewer are warm at once, more hold their cores while they start.
        step = np.where(self._replicas >= self._replicas[:, None], ahead, warm)
        # Backward induction: what each size costs from its first cold start on.
        value = np.zeros(len(self._replicas))
        for _ in range(self._config.cold_starts_ahead):
            value = (step + value).min(axis=1)
        # Replicas that start already come sooner, so their first cold start counts in part.
        wait = self._wait(view, ready)
        waiting = np.where(self._replicas > ready, now[ready - 1], now.diagonal())
        total = wait * waiting + (1 - wait) * warm + value
        best = int(total.argmin())
        # A change for little would cancel what is wanted again soon.
        good_enough = total[best] >= (1 - self._config.reluctance) * total[current - 1]
        return current if good_enough else best + 1

    def _wait(self, view: SystemView, ready: int) -> FloatArray:
        """Return (replicas_max,) cold starts until a fleet of each size is warm."""
        wait = np.ones(len(self._replicas))
        wait[:ready] = 0.0
        left = np.array(view.starting_s[: len(wait) - ready]) / max(self._spec.cold_start_s, 1e-9)
        wait[ready : ready + len(left)] = np.minimum(left, 1.0)
        return wait


class QuotaServiceTimes:
    """Seconds to plan a batch with: the fit, until experience corrects it cell by cell.

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
        self._sizes, self._cpu_cores = spec.batch_max, spec.cpu_cores
        self._delayed = spec.resize_delay_s > 0
        self._fit_s = np.ascontiguousarray(spec.latency.table_s(spec.batch_max, spec.cores_max).T)
        self._guess_s = self._fit_s * (1 + margin)
        self._sums = np.zeros((3, *self._fit_s.shape))
        """Seconds that batches ran, seconds until they were granted their CPU time, and batches."""
        self._safety, self._loading, self._cores = safety, False, 0

    def observe(self, view: SystemView) -> None:
        """Take in the interval that has passed."""
        loading, self._loading = self._loading or bool(view.starting_s), bool(view.starting_s)
        resized, self._cores = self._cores not in (0, view.cores_in_force), view.cores_in_force
        last = view.last
        if self._delayed and resized:
            return  # in the middle of the interval
        if last is None or not last.service_mean_s > 0 or last.cores > self._cpu_cores:
            return  # replicas that wait for each other's CPU say nothing of their own
        size = round(last.batch_mean)
        if abs(last.batch_mean - size) <= _SAME_BATCH and size <= self._sizes:
            self._add((view.cores_in_force - 1, size - 1), last, loading)

    def _add(self, cell: tuple[int, int], last: IntervalMetrics, loading: bool) -> None:
        self._sums *= _FORGET
        batches = (last.on_time + last.late) / last.batch_mean
        ran_s = last.service_mean_s * batches
        used_s = last.utilisation * last.core_seconds / (cell[0] + 1)
        # A replica that loads its model uses its cores, too.
        granted_s = ran_s if loading or last.restarts else used_s
        self._sums[:, *cell] += ran_s, granted_s, batches

    @property
    def table_s(self) -> FloatArray:
        """What is believed now."""
        ran_s, granted_s, batches = self._sums
        low_s, high_s = (factor * self._fit_s * batches for factor in SEEN_RANGE)
        seen_s = np.clip(np.maximum(ran_s, granted_s), low_s, high_s)
        prior = _PRIOR_S / self._guess_s
        table_s: FloatArray = (_PRIOR_S + (1 + self._safety) * seen_s) / (prior + batches)
        return table_s
