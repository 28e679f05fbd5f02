"""Themis: vertical scaling while the load moves, horizontal scaling once it is stable.

After "A Tale of Two Scales: Reconciling Horizontal and Vertical Scaling for Inference Serving
Systems" (Razavi et al., 2024, arXiv 2407.14843). Taken from it: latency by Amdahl's law in batch
and cores, here :class:`LatencyModel`; the wait until a batch is full as the queueing delay; and two
steps. A surge is first met by growing the present replicas in place; a load that stays is then
moved to one-core replicas, the cheapest form by Amdahl's law; cores come down once these are warm.

Simplified: there is one model and no pipeline, so a search replaces the dynamic programs that split
a deadline among stages; the load expected is the highest of the last intervals, not an LSTM's
forecast; and all replicas have the same cores, since this system has no others.
"""

from collections import deque
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sponge_env.control.base import BaseController, Planning, option
from sponge_env.interfaces import Allocation, FloatArray, SystemSpec, SystemView

from .rules import peak_load


@dataclass(frozen=True, slots=True, kw_only=True)
class ThemisConfig(Planning):
    """Options of :class:`Themis`."""

    slo_fraction: float = option(0.9, above=0, at_most=1)  # Share of the SLO to plan with
    rate_windows: int = option(2, at_least=1)  # Past intervals whose highest rate is planned for
    stable_windows: int = option(3, at_least=1)
    """Intervals in which the one-core replicas must stay the same before the load is stable."""


class Themis(BaseController):
    """Grows cores at once and replicas when the load has settled."""

    config: ThemisConfig

    def begin(self, spec: SystemSpec) -> None:
        """Forget the past numbers of replicas."""
        self._wanted: deque[int] = deque(maxlen=self.config.stable_windows)

    def allocate(self, spec: SystemSpec, view: SystemView) -> Allocation:
        """Scale horizontally if the load is stable; choose cores for the ready replicas."""
        if not view.first.arrivals.any():  # nothing to plan for yet
            return view.allocation
        config = self.config
        rate_rps, delay_max_s = peak_load(spec, view, config.rate_windows)
        budget_s = config.slo_fraction * spec.slo_s - delay_max_s
        self._wanted.append(wanted := one_core_replicas(spec, rate_rps, budget_s))
        stable = wanted > 0 and self._wanted.count(wanted) == config.stable_windows
        # While the load moves, the replicas that are ready take it by growing.
        held = view.allocation.replicas
        replicas = wanted if stable else held
        ready = max(1, min(view.first.replicas_ready, replicas))
        grown = grow(spec, ready, rate_rps, budget_s, spec.most_cores(min(held, replicas)))
        if stable and not grown.feasible:  # growing is not enough: leave room for new replicas
            grown = grow(spec, ready, rate_rps, budget_s, spec.most_cores(replicas))
        # New replicas fit only beside the cores that the ready ones need until then.
        replicas = min(replicas, max(held, spec.most_replicas(grown.cores)))
        return Allocation(grown.cores, grown.batch, replicas, feasible=grown.feasible)


def one_core_replicas(spec: SystemSpec, rate_rps: float, budget_s: float) -> int:
    """Return the fewest one-core replicas that serve a rate; 0 if no number of them does."""
    latency_s = spec.first.latency.table_s(spec.first.batch_max, 1)[:, 0]
    replicas = np.arange(1, spec.most_replicas(cores=1) + 1)[:, None]
    enough = _fits(latency_s, replicas, rate_rps, budget_s).any(axis=1)
    return int(enough.argmax()) + 1 if enough.any() else 0


def grow(
    spec: SystemSpec, replicas: int, rate_rps: float, budget_s: float, cores_max: int
) -> Allocation:
    """Return the fewest cores, then the smallest batch, with which some replicas serve a rate.

    If none suffice, return the most that each can have, at the highest throughput.
    """
    latency_s = spec.first.latency.table_s(spec.first.batch_max, cores_max).T  # (cores, batch)
    fits = _fits(latency_s, np.array(replicas), rate_rps, budget_s)
    if fits.any():
        cores, batch = divmod(int(fits.argmax()), spec.first.batch_max)
        return Allocation(cores + 1, batch + 1, replicas)
    fastest = int((np.arange(1, spec.first.batch_max + 1) / latency_s[-1]).argmax()) + 1
    return Allocation(cores_max, fastest, replicas, feasible=False)


def _fits(
    latency_s: FloatArray, replicas: NDArray[np.int_], rate_rps: float, budget_s: float
) -> NDArray[np.bool_]:
    """Return with which batch sizes (the last axis) replicas keep up and are in time."""
    # They keep up if ``replicas * b / l(b, c) >= rate``, and are in time if a batch fills and is
    # served within the budget: ``(b - 1) * replicas / rate + l(b, c) <= budget``.
    batches = np.arange(1, latency_s.shape[-1] + 1)
    filling_s = (batches - 1) * replicas / max(rate_rps, 1e-9)
    return (replicas * batches / latency_s >= rate_rps) & (filling_s + latency_s <= budget_s)
