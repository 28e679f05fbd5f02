"""Sponge's integer program in numbers: what a (batch, cores) pair costs, and what decides it.

The decision is one pair out of ``batch_max * cores_max``: minimise its cost so that no request
misses its deadline. Two formulations say which do, and :mod:`.exact` counts them: the published
one, which gives every request the worst budget, and one that follows each request's own deadline.
Where no pair is without a miss, the fewest are wanted, and of several such pairs the one that
works the backlog off fastest: what is late already makes the next ones late until it is gone.

Arrays over the pairs have shape (batch_max, cores_max), row ``b - 1``, column ``c - 1``, but for
those of :class:`Tables`, which are the other way round.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from sponge_env.arrays import FloatArray, IntArray
from sponge_env.interfaces import SystemSpec, SystemView

ROUNDING = 1e-9
"""Requests that a count may be off by rounding."""
ROUNDING_MS = 1e-6
"""Milliseconds that a published budget may be off by rounding."""


class Forecast(NamedTuple):
    """What is expected to arrive until the next decision."""

    rate_rps: float
    """Arrivals per second."""
    noise: float
    """Fluctuation to be ready for: up to ``n + noise * sqrt(n)`` requests arrive where
    ``n`` are expected."""
    budget_low_s: float
    """Lowest budget on arrival."""
    budget_high_s: float
    """Highest budget on arrival."""


class Tables(NamedTuple):
    """What stays the same for an episode."""

    service_s: FloatArray
    """(cores_max, batch_max) seconds to plan a batch with; row ``c - 1``, column ``b - 1``."""
    orderly: bool
    """Whether no request is done later with more cores."""
    by_recovery: IntArray
    """(<= pairs,) flat indices of those that can miss the fewest, best throughput first."""
    coefficients_s: tuple[float, float, float, float]
    """gamma, epsilon, delta, eta of the latency model."""
    fastest_s: float
    """Requests with less slack are hopeless."""
    margin: float
    """Relative allowance on every predicted latency."""
    interval_s: float
    """Time between two decisions."""


class State(NamedTuple):
    """What one decision looks at."""

    now_s: float
    deadlines_s: FloatArray
    """(queued,) absolute, ascending."""
    ready_s: float
    """Seconds until there is a replica."""
    running: FloatArray
    """(batches, 2) size and expected end of each batch in flight."""
    cores: int
    """Cores in force."""
    forecast: Forecast


def cost_table(spec: SystemSpec) -> FloatArray:
    """Return ``c + delta_b * b`` with ``delta_b = 1 / (batch_max + 1)``.

    That weight is the tie-break of the published objective made exact: the whole range of
    batch sizes costs less than one core, so no two pairs cost the same.
    """
    batches = np.arange(1, spec.batch_max + 1)[:, None]
    cores = np.arange(1, spec.cores_max + 1)[None, :]
    cost: FloatArray = cores + batches / (spec.batch_max + 1)
    return cost


def recovery_table(spec: SystemSpec) -> FloatArray:
    """Return (batch_max, cores_max) ranks by throughput: 0 is the highest.

    Ranks and not the throughput itself, so that no two pairs are closer than a solver's
    tolerance; pairs of equal throughput rank by cost.
    """
    batches = np.arange(1, spec.batch_max + 1)[:, None]
    throughput = batches / spec.latency.table_s(spec.batch_max, spec.cores_max)
    best_first = np.lexsort((cost_table(spec).ravel(), -throughput.ravel()))
    ranks = np.empty(throughput.size)
    ranks[best_first] = np.arange(throughput.size)
    return ranks.reshape(throughput.shape)


def published_table_ms(spec: SystemSpec) -> FloatArray:
    """Return (batch_max, cores_max) latencies floored to whole milliseconds, at least 1."""
    latency_ms = np.floor(spec.latency.table_s(spec.batch_max, spec.cores_max) * 1e3)
    return np.maximum(latency_ms, 1)


def make_tables(spec: SystemSpec, margin: float) -> Tables:
    """Lay a system out for the kernels.

    Args:
        spec: The system.
        margin: Relative allowance on every latency that the per-request form predicts.

    Raises:
        ProfileError: The system's latency model predicts one that is not positive.
    """
    fit, latency_s = spec.latency, spec.latency.table_s(spec.batch_max, spec.cores_max)
    # A fit may have it otherwise; then more cores may make a request late.
    orderly = np.all(np.diff(latency_s, axis=0) >= 0) and np.all(np.diff(latency_s, axis=1) <= 0)
    return Tables(
        service_s=np.ascontiguousarray(((1 + margin) * latency_s).T),
        orderly=bool(orderly),
        by_recovery=_recovery_order(spec, bool(orderly)),
        coefficients_s=(fit.gamma_s, fit.epsilon_s, fit.delta_s, fit.eta_s),
        fastest_s=float(latency_s[0, -1]),
        margin=margin,
        interval_s=spec.interval_s,
    )


def _recovery_order(spec: SystemSpec, orderly: bool) -> IntArray:
    """Return flat indices of the pairs that can miss the fewest, best throughput first.

    In an orderly system the pairs with all the cores are enough: none with fewer cores
    misses less, and it comes behind them by throughput unless that is the same.
    """
    ranks = recovery_table(spec).T
    order = np.argsort(ranks, axis=None)
    if orderly and np.all(ranks[-1] <= ranks):
        return order[order >= (spec.cores_max - 1) * spec.batch_max]
    return order


def make_state(view: SystemView, forecast: Forecast, interval_s: float) -> tuple[State, FloatArray]:
    """Lay a decision out for the kernels; no array of the view is copied.

    Returns:
        The state, and memory for when each forecast arrival comes and when it is due:
        (arrivals, 2).
    """
    waiting = not view.replicas_ready and view.starting_s
    running = np.empty((len(view.running), 2))
    for row, batch in enumerate(view.running):
        running[row, 0], running[row, 1] = batch.size, batch.expected_end_s
    ready_s = view.starting_s[0] if waiting else 0.0
    queued_s, cores = view.queued_deadlines_s, view.allocation.cores
    state = State(view.now_s, queued_s, ready_s, running, cores, forecast)
    arrivals = math.ceil(forecast.rate_rps * interval_s - ROUNDING)
    return state, np.empty((arrivals, 2))
