"""Sponge's integer program for one stage: what stays the same, and what a decision looks at.

Minimise the cost of a (batch, cores) pair so that no request misses its deadline. Two formulations
say which do: the published one, which gives every request the worst budget, and one that follows
each request's own deadline. Where no pair is without a miss, the fewest are wanted, and of several
such pairs the one that works the backlog off fastest: what is late already makes the next ones late
until it is gone. :mod:`.enumeration` solves it, or PuLP (:mod:`.solvers`).

Arrays over the pairs have shape (batch_max, cores_max), row ``b - 1``, column ``c - 1``, but for
those of :class:`Tables`, which are the other way round.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from sponge_env.arrays import FloatArray, IntArray
from sponge_env.interfaces import SystemSpec

Answer = tuple[int, int, int]
"""Cores, batch and misses."""

ROUNDING = 1e-9
"""Requests that a count may be off by rounding."""
ROUNDING_MS = 1e-6
"""Milliseconds that a published budget may be off by rounding."""


class Forecast(NamedTuple):
    """What is expected to arrive until the next decision."""

    rate_rps: float
    noise: float
    """Up to ``n + noise * sqrt(n)`` requests arrive where ``n`` are expected."""
    budget_low_s: float
    """Lowest and highest budget on arrival."""
    budget_high_s: float


class Tables(NamedTuple):
    """What stays the same for an episode."""

    service_s: FloatArray
    """(cores_max, batch_max) seconds to plan a batch with."""
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
    delay_s: float
    """Time until the decision is in force."""


class Snapshot(NamedTuple):
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
    before_s: FloatArray
    """(batch_max,) seconds of a batch, on average, until the decision is in force."""
    forecast: Forecast


class Program(NamedTuple):
    """Minimise ``sum(cost * x)`` over one-hot ``x`` subject to ``sum(late * x) <= 0``.

    The published program has one row per request r: ``sum(misses[r] * x) <= 0``, with the 0/1
    table of the pairs under which r is late. The rows are not negative, so together they say the
    same as their sum, which is ``late``.
    """

    cost: FloatArray
    """(batch_max, cores_max) what is minimised; all different."""
    late: IntArray
    """(batch_max, cores_max) requests that would miss their deadline."""


def cost_table(spec: SystemSpec) -> FloatArray:
    """Return ``c + b / (batch_max + 1)``: fewest cores, then the smallest batch.

    It is the published objective, its tie-break made exact: no two pairs cost the same.
    """
    batches, cores = np.ogrid[1 : spec.first.batch_max + 1, 1 : spec.first.cores_max + 1]
    cost: FloatArray = cores + batches / (spec.first.batch_max + 1)
    return cost


def recovery_table(spec: SystemSpec) -> FloatArray:
    """Return (batch_max, cores_max) ranks by throughput: 0 is the highest.

    Ranks, so that no two pairs are closer than a solver's tolerance; of equal ones by cost.
    """
    latency_s = spec.first.latency.table_s(spec.first.batch_max, spec.first.cores_max)
    throughput = np.arange(1, spec.first.batch_max + 1)[:, None] / latency_s
    best_first = np.lexsort((cost_table(spec).ravel(), -throughput.ravel()))
    return best_first.argsort().astype(np.float64).reshape(throughput.shape)


def published_table_ms(spec: SystemSpec) -> FloatArray:
    """Return (batch_max, cores_max) latencies floored to whole milliseconds, at least 1."""
    latency_ms = np.floor(
        spec.first.latency.table_s(spec.first.batch_max, spec.first.cores_max) * 1e3
    )
    return np.maximum(latency_ms, 1)


def count_published(latency_ms: FloatArray, rate_rps: float, limit_ms: float) -> IntArray:
    """Count the misses of every pair in the published form.

    As published (Razavi et al., EuroMLSys 2024, and its code): the next second's requests count
    as queued at once and are served in batches of ``b`` one after another; each must end within
    ``slo_fraction * SLO - cl_max``, with ``cl_max`` the largest communication delay, and the
    throughput must reach their rate. The rate is the published lambda, the limit that time.
    """
    batches = np.arange(1, len(latency_ms) + 1)[:, None]
    in_time = batches * np.maximum(np.floor((limit_ms + ROUNDING_MS) / latency_ms), 0)
    unserved = np.maximum(np.ceil(rate_rps - batches / latency_ms * 1e3), 0)
    return (np.maximum(math.ceil(rate_rps) - in_time, 0) + unserved).astype(np.int64)


def make_tables(spec: SystemSpec, margin: float) -> Tables:
    """Lay a system out for the kernels, with a relative allowance on every latency.

    A ProfileError if its latency model predicts one that is not positive.
    """
    fit, latency_s = (
        spec.first.latency,
        spec.first.latency.table_s(spec.first.batch_max, spec.first.cores_max),
    )
    # A fit may have it otherwise; then more cores may make a request late.
    orderly = np.all(np.diff(latency_s, axis=0) >= 0) and np.all(np.diff(latency_s, axis=1) <= 0)
    ranks = recovery_table(spec).T
    by_recovery = np.argsort(ranks, axis=None)
    # In an orderly system all the cores are enough: no pair with fewer misses less, and it comes
    # behind them by throughput unless that is the same.
    if orderly and np.all(ranks[-1] <= ranks):
        by_recovery = by_recovery[by_recovery >= (spec.first.cores_max - 1) * spec.first.batch_max]
    return Tables(
        service_s=np.ascontiguousarray(((1 + margin) * latency_s).T),
        orderly=bool(orderly),
        by_recovery=by_recovery,
        coefficients_s=(fit.gamma_s, fit.epsilon_s, fit.delta_s, fit.eta_s),
        fastest_s=float(latency_s[0, -1]),
        margin=margin,
        interval_s=spec.interval_s,
        delay_s=spec.resize_delay_s,
    )
