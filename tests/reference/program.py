"""Sponge's program once more, in NumPy: an independent specification of what each pair misses.

Arrays over the pairs have shape (batch_max, cores_max): row ``b - 1``, column ``c - 1``.
"""

import math

import numpy as np

from agents.rates import ROUNDING


def count_late(spec, view, forecast, margin):
    """Count the requests that miss their own deadline under each pair.

    Queued requests leave batch by batch in order of their deadlines, after the batch that is
    running, and forecast arrivals behind them. The throughput must reach the forecast rate. A
    queued request that not even the fastest service could save is *hopeless*: it takes its service
    time from the next ones, but does not count as late. ``margin`` is relative, on every latency.
    """
    table_s = spec.first.latency.table_s(spec.first.batch_max, spec.first.cores_max)
    service_s, free_s = (1 + margin) * table_s, _free_after_s(spec, view, margin)
    slack_s = view.first.queued_deadlines_s - view.now_s
    done_s = _queue_done_s(service_s, free_s, slack_s.size)
    clear_s = np.maximum(free_s, done_s[-1:].max(axis=0, initial=0.0))
    hopeless = slack_s < table_s[0, -1]
    before_s = _before_s(spec, view, service_s)  # as if nothing were resized: one column
    unresized_s = free_s[view.first.cores_in_force - 1 : view.first.cores_in_force]
    as_it_is_s = _queue_done_s(before_s, unresized_s, slack_s.size)
    clear_as_it_is_s = np.maximum(unresized_s, as_it_is_s[-1:].max(axis=0, initial=0.0))

    done_s = _resized_s(spec, view, as_it_is_s, done_s)
    late = np.count_nonzero((done_s > slack_s[:, None, None])[~hopeless], axis=0)
    tables_s, clears_s = (service_s, before_s), (clear_s, clear_as_it_is_s)
    late += _late_arrivals(spec, view, tables_s, clears_s, forecast)
    late += _unserved(service_s, forecast.rate_rps, spec.interval_s)
    return late


def _free_after_s(spec, view, margin):
    """Return (cores_max,) seconds until a replica takes the next batch, per core count."""
    # What is left of a running batch scales with the cores, for a resize acts on it at once.
    cores, free_s = np.arange(1, spec.first.cores_max + 1), np.zeros(spec.first.cores_max)
    if not view.first.replicas_ready and view.first.starting_s:
        free_s += view.first.starting_s[0]
    if not view.first.replicas_ready:
        return free_s  # what runs is on replicas that go
    lefts = [(0.0, 1)]
    for batch in view.first.running:
        whole_s = float(spec.first.latency.predict_s(batch.size, view.first.cores_in_force))
        lefts.append((max(0.0, batch.expected_end_s + margin * whole_s - view.now_s), batch.size))
    left_s, size = max(lefts)  # the one that ends last stays
    whole_s = float(spec.first.latency.predict_s(size, view.first.cores_in_force))
    return left_s * (spec.first.latency.predict_s(size, cores) / whole_s)


def _before_s(spec, view, service_s):
    """Return (batch_max, 1) seconds of a batch at the mean speed until the decision is in force."""
    if not spec.resize_delay_s:
        return service_s[:, view.first.cores_in_force - 1 :][:, :1]
    starts_s = [0.0, *(min(at_s, spec.resize_delay_s) for at_s, _ in view.first.pending)]
    lasts_s = np.diff([*starts_s, spec.resize_delay_s])
    cores = np.array([view.first.cores_in_force, *(cores for _, cores in view.first.pending)])
    return spec.resize_delay_s / (lasts_s / service_s[:, cores - 1]).sum(axis=1, keepdims=True)


def _resized_s(spec, view, as_it_is_s, at_once_s):
    """Return when work ends: what is left of it after the delay goes on at the new speed."""
    if not spec.resize_delay_s:
        return at_once_s
    waits = not view.first.replicas_ready and view.first.starting_s
    ready_s = view.first.starting_s[0] if waits else 0.0
    since_s = max(spec.resize_delay_s, ready_s)
    left = (as_it_is_s - since_s) / np.maximum(as_it_is_s - ready_s, 1e-12)
    return np.where(as_it_is_s <= since_s, as_it_is_s, since_s + left * (at_once_s - ready_s))


def _queue_done_s(service_s, free_s, queued):
    """Return (queued, batch_max, cores_max) seconds until each is done; the last batch is small."""
    order, batches = np.arange(queued)[:, None], np.arange(1, service_s.shape[0] + 1)
    before = order // batches
    own = np.minimum(batches, queued - before * batches)
    return free_s + before[:, :, None] * service_s + service_s[own - 1]


def _settled_s(service_s, forecast):
    """Return (batch_max, cores_max) seconds that a batch takes once the queue is gone."""
    # Batches settle at the smallest size that holds what arrives during one, at most ``b``.
    batches, expected = np.arange(1, service_s.shape[0] + 1)[:, None], forecast.rate_rps * service_s
    holds = batches >= expected + forecast.noise * np.sqrt(expected)
    holds[-1] = True
    return service_s[np.minimum(holds.argmax(axis=0), batches - 1), np.arange(service_s.shape[1])]


def _late_arrivals(spec, view, tables_s, clears_s, forecast):
    """Count the forecast arrivals that miss their deadline: (batch_max, cores_max)."""
    # An arrival is served behind the queue and the arrivals before it, or after the batch it finds
    # in service, whichever is later. They come as early as their scatter lets them: number ``n``
    # when ``x`` are expected with ``x + noise * sqrt(x) = n``. Budgets are spread evenly; the first
    # arrivals, which meet the queue, get the lowest.
    delay_s = spec.resize_delay_s
    count = math.ceil(forecast.rate_rps * (spec.interval_s + delay_s) - ROUNDING)
    if not count:
        return np.zeros(tables_s[0].shape, dtype=np.int64)
    order = np.arange(count)[:, None, None]
    batches = np.arange(1, spec.first.batch_max + 1)[:, None]
    root = (np.sqrt(forecast.noise * forecast.noise + 4 * order) - forecast.noise) / 2
    arrival_s = root * root / forecast.rate_rps
    step_s = (forecast.budget_high_s - forecast.budget_low_s) / max(count - 1, 1)
    deadline_s = arrival_s + (forecast.budget_low_s + step_s * order)
    new_s, old_s = (_settled_s(table_s, forecast) for table_s in tables_s)
    settled_s = np.where(arrival_s + old_s < delay_s, old_s, new_s)
    at_once_s, as_it_is_s = (
        clear_s + order // batches * table_s
        for clear_s, table_s in zip(clears_s, tables_s, strict=True)
    )
    behind_queue_s = _resized_s(spec, view, as_it_is_s, at_once_s)
    done_s = np.maximum(behind_queue_s, arrival_s + settled_s) + settled_s
    return np.count_nonzero(done_s > deadline_s, axis=0)


def _unserved(service_s, rate_rps, interval_s):
    throughput_rps = np.arange(1, service_s.shape[0] + 1)[:, None] / service_s
    short = np.ceil((rate_rps - throughput_rps) * interval_s - ROUNDING)
    return np.maximum(short, 0).astype(np.int64)
