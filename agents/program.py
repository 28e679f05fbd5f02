"""Sponge's integer program, built from a view: what each (batch, cores) costs and misses.

The decision is one pair out of ``batch_max * cores_max``. Two formulations fill the same
:class:`Program`: the published one, which gives every request the worst budget, and one
that follows each request's own deadline. Nothing here solves anything, and nothing has
state: arrays in, arrays out.

Arrays over the pairs have shape (batch_max, cores_max): row ``b - 1``, column ``c - 1``.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from agents.forecast import Forecast
from sponge_env.interfaces import FloatArray, SystemSpec, SystemView

CountArray = NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class Program:
    """Minimise ``sum(cost * x)`` over one-hot ``x`` subject to ``sum(late * x) <= 0``.

    The published program has one row per request r: its latency under the chosen pair
    must not exceed its budget. With ``x`` one-hot, row r reads ``sum(misses[r] * x) <= 0``
    with ``misses[r]`` the 0/1 table of the pairs under which r is late. The rows are not
    negative, so together they say the same as their sum, which is ``late``.
    """

    cost: FloatArray
    """(batch_max, cores_max) ``c + delta_b * b``, all different."""
    late: CountArray
    """(batch_max, cores_max) requests that would miss their deadline."""


def cost_table(spec: SystemSpec) -> FloatArray:
    """Return ``c + delta_b * b`` with ``delta_b = 1 / (batch_max + 1)``.

    That weight is the tie-break of the published objective made exact: the whole range of
    batch sizes costs less than one core, so no two pairs cost the same.
    """
    batches = np.arange(1, spec.batch_max + 1)[:, None]
    cores = np.arange(1, spec.cores_max + 1)[None, :]
    cost: FloatArray = cores + batches / (spec.batch_max + 1)
    return cost


def published_program(
    spec: SystemSpec, rate_rps: float, delay_max_s: float, slo_fraction: float
) -> Program:
    """Build the program as published (Razavi et al., EuroMLSys 2024, and its code).

    The next second's requests count as queued at once and are served in batches of ``b``
    one after another; each must end within ``slo_fraction * SLO - cl_max``, with ``cl_max``
    the largest communication delay, and the throughput must reach their rate. Latencies
    are floored to whole milliseconds.

    Args:
        spec: The system.
        rate_rps: Requests per second, the published lambda.
        delay_max_s: The published cl_max.
        slo_fraction: Share of the SLO to plan with.
    """
    latency_ms = np.maximum(np.floor(spec.latency.table_s(spec.batch_max, spec.cores_max) * 1e3), 1)
    batches = np.arange(1, spec.batch_max + 1)[:, None]
    limit_ms = (slo_fraction * spec.slo_s - delay_max_s) * 1e3
    requests = int(np.ceil(rate_rps))
    in_time = batches * np.maximum(np.floor((limit_ms + 1e-6) / latency_ms), 0)
    misses = np.maximum(requests - in_time, 0)
    unserved = np.maximum(np.ceil(rate_rps - batches / latency_ms * 1e3), 0)
    return Program(cost_table(spec), (misses + unserved).astype(np.int64))


def per_request_program(
    spec: SystemSpec, view: SystemView, forecast: Forecast, margin: float
) -> Program:
    """Build the program that holds each request to its own deadline.

    Queued requests leave batch by batch in order of their deadlines, after the batch that
    is running. Forecast arrivals come evenly spread, behind the queue. The throughput must
    reach the forecast rate.

    A queued request that is late under every pair cannot be helped, but it takes service
    time from the next ones, so the throughput required grows until it is worked off within
    one interval. If not even the fastest service could have saved it, it is *hopeless* and
    does not count as late.

    Args:
        spec: The system.
        view: What is queued and running.
        forecast: What will arrive.
        margin: Relative allowance on every predicted latency.
    """
    fit_s = spec.latency.table_s(spec.batch_max, spec.cores_max)
    service_s = (1 + margin) * fit_s
    free_s = _free_after_s(spec, view, margin)
    slack_s = view.queued_deadlines_s - view.now_s
    done_s = _queue_done_s(service_s, free_s, slack_s.size)
    clear_s = np.maximum(free_s, done_s[-1:].max(axis=0, initial=0.0))

    misses = done_s > slack_s[:, None, None]
    hopeless = slack_s < fit_s[0, -1]
    lost = int(np.count_nonzero(misses.all(axis=(1, 2))))

    late = np.count_nonzero(misses[~hopeless], axis=0)
    late += _late_arrivals(service_s, clear_s, forecast, spec.interval_s)
    late += _unserved(service_s, forecast.rate_rps, lost, spec.interval_s)
    return Program(cost_table(spec), late)


def _free_after_s(spec: SystemSpec, view: SystemView, margin: float) -> FloatArray:
    """Return (cores_max,) seconds until a replica takes the next batch, per core count.

    What is left of a running batch scales with the cores, for a resize acts on it at once.
    """
    cores = np.arange(1, spec.cores_max + 1)
    free_s = np.zeros(spec.cores_max)
    if not view.replicas_ready and view.starting_s:
        free_s += view.starting_s[0]
    for batch in view.running:
        whole_s = float(spec.latency.predict_s(batch.size, view.allocation.cores))
        left_s = max(0.0, batch.expected_end_s + margin * whole_s - view.now_s)
        speed_up = spec.latency.predict_s(batch.size, cores) / whole_s
        free_s = np.maximum(free_s, left_s * speed_up)
    return free_s


def _queue_done_s(service_s: FloatArray, free_s: FloatArray, queued: int) -> FloatArray:
    """Return (queued, batch_max, cores_max) seconds until each queued request is done.

    Full batches go first; the last batch holds what is left.
    """
    order = np.arange(queued)[:, None]
    batches = np.arange(1, service_s.shape[0] + 1)
    before = order // batches
    own = np.minimum(batches, queued - before * batches)
    done_s: FloatArray = free_s + before[:, :, None] * service_s + service_s[own - 1]
    return done_s


def _settled_s(service_s: FloatArray, forecast: Forecast) -> FloatArray:
    """Return (batch_max, cores_max) seconds that a batch takes once the queue is gone.

    Batches settle at the smallest size that holds what arrives during one, at most ``b``.
    """
    batches = np.arange(1, service_s.shape[0] + 1)[:, None]
    expected = forecast.rate_rps * service_s
    holds = batches >= expected + forecast.noise * np.sqrt(expected)
    holds[-1] = True
    rows = np.minimum(holds.argmax(axis=0), batches - 1)
    settled_s: FloatArray = service_s[rows, np.arange(service_s.shape[1])]
    return settled_s


def _late_arrivals(
    service_s: FloatArray, clear_s: FloatArray, forecast: Forecast, interval_s: float
) -> CountArray:
    """Count the forecast arrivals that miss their deadline: (batch_max, cores_max).

    An arrival is served behind the queue and the arrivals before it, or after the batch it
    finds in service, whichever is later. Budgets are spread evenly; the first arrivals, which
    meet the queue, get the lowest.
    """
    count = int(np.ceil(forecast.rate_rps * interval_s - 1e-9))
    if not count:
        return np.zeros(service_s.shape, dtype=np.int64)
    order = np.arange(count)[:, None, None]
    batches = np.arange(1, service_s.shape[0] + 1)[:, None]
    budget_s = np.linspace(forecast.budget_low_s, forecast.budget_high_s, count)[:, None, None]
    settled_s = _settled_s(service_s, forecast)
    arrival_s = order / forecast.rate_rps
    behind_queue_s = clear_s + order // batches * service_s
    done_s = np.maximum(behind_queue_s, arrival_s + settled_s) + settled_s
    late: CountArray = np.count_nonzero(done_s > arrival_s + budget_s, axis=0)
    return late


def _unserved(service_s: FloatArray, rate_rps: float, lost: int, interval_s: float) -> CountArray:
    """Count by how many requests an interval's throughput falls short.

    The ``lost`` requests add to the throughput required only as far as any pair can give it.
    """
    throughput_rps = np.arange(1, service_s.shape[0] + 1)[:, None] / service_s
    wanted_rps = max(rate_rps, min(rate_rps + lost / interval_s, float(throughput_rps.max())))
    short = np.ceil((wanted_rps - throughput_rps) * interval_s - 1e-9)
    return np.maximum(short, 0).astype(np.int64)
