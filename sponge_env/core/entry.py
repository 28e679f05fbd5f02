"""Entry points: the compiled functions that Python calls.

Those of the simulation take a range of environments, one range for each thread. The others are
the moves of a live system, whose clock and worker are elsewhere; they work on environment 0.

Arguments mean the same everywhere: ``arrays`` is all memory, ``metrics`` (n,) of ``METRICS``,
``first`` the first environment of a range and ``last`` the one after it. ``seeds`` (n,) are those
of the episodes that begin, negative where none does. ``observations`` (n, obs_dim) and ``over``
(n,), whether the episode is over, are outputs.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from sponge_env.core import batching
from sponge_env.core.arrivals import next_request, reset_arrivals
from sponge_env.core.compiled import entry_point, inlined
from sponge_env.core.measure import measure
from sponge_env.core.network import reset_network, start_over, transferred_s
from sponge_env.core.observe import write_observation
from sponge_env.core.overload import earliest_end_s
from sponge_env.core.pipeline import at, last_deadline_s
from sponge_env.core.queue import deadline_s
from sponge_env.core.records import Arrays, World
from sponge_env.core.settings import LISTED
from sponge_env.core.sharing import is_placed, share_machine
from sponge_env.core.step import begin_interval, reset, step

STEP, DRAIN, RESET = range(3)  # The moves of :func:`run_range`


@inlined
def _world(arrays: Arrays, i: int, metrics: NDArray[Any]) -> World:
    """Return an environment as its first stage sees it."""
    env = arrays.envs[i]
    stages, models, replicas = arrays.stages[i], arrays.models[env.scenario], arrays.replicas[i]
    pending, queues = arrays.pending[i], arrays.queue[i]
    first = stages[0], models[0], replicas[0], pending[0], queues[0]
    own = env, arrays.settings[env.scenario], arrays.requests[i], arrays.group[i], arrays.ledger[i]
    shared = arrays.traces, arrays.numbers, metrics[i], arrays.opened[i]
    return World(0, *first, *own, *shared, stages, models, replicas, pending, queues)


@entry_point
def run_range(
    arrays: Arrays, first: int, last: int, move: int, seeds: NDArray[np.int64],
    allocations: NDArray[Any], observations: NDArray[np.float32], metrics: NDArray[Any],
    over: NDArray[np.bool_],
) -> None:  # fmt: skip
    """Start episodes (``RESET``), serve an interval of them (``STEP``) or end them (``DRAIN``).

    ``RESET`` starts those that have a seed, ``STEP`` skips those whose episode is over, and after
    ``DRAIN`` the metrics mean nothing. ``allocations`` are (n, stages) of ``ALLOCATION``. It is one
    function so that what the moves share is compiled once.
    """
    for i in range(first, last):
        w = _world(arrays, i, metrics)
        if move == RESET:
            acts = seeds[i] >= 0
        else:
            acts = move == DRAIN or w.env.interval < w.settings.intervals
        if acts:
            if move == RESET:
                reset(w, seeds[i])
            else:
                metrics[i] = arrays.blank[0]
                step(w, allocations[i], move == DRAIN)
            write_observation(w, observations[i])
            over[i] = w.env.interval == w.settings.intervals


@entry_point
def fit(asked: NDArray[np.int64], most: NDArray[np.int64], nodes: NDArray[np.int64]) -> bool:
    """Fit allocations onto a machine; return False if one lies outside the limits.

    ``asked`` (n, stages, 4) has cores, batch, replicas and variant, ``most`` (stages, 4) their
    limits; only variants begin at 0. ``nodes`` (2, nodes) has the cores of each node, and scratch
    memory. It is the rule of :meth:`sponge_env.interfaces.SystemSpec.fit_stages`.
    """
    total_cores = nodes[0].sum()
    for i in range(len(asked)):
        held = 0
        for k in range(len(most)):
            for part in range(4):
                if not (part < 3) <= asked[i, k, part] <= most[k, part]:
                    return False
            held += asked[i, k, 0] * asked[i, k, 2]
        while held > total_cores or not is_placed(asked[i], asked[i, :, 2], nodes):
            largest = 0
            for k in range(1, len(most)):
                if asked[i, k, 0] * asked[i, k, 2] > asked[i, largest, 0] * asked[i, largest, 2]:
                    largest = k
            held -= asked[i, largest, 0] * asked[i, largest, 2]
            asked[i, largest, 2 if asked[i, largest, 2] > 1 else 0] -= 1
            held += asked[i, largest, 0] * asked[i, largest, 2]
    return True


@entry_point
def share(
    arrays: Arrays, metrics: NDArray[Any], asked: NDArray[np.int64], nodes: NDArray[np.int64]
) -> None:
    """Fit what a set of models asks for onto the machine; arguments are those of :func:`fit`."""
    for i in range(len(asked)):
        ready = arrays.stages[i].meters.ready
        share_machine(_world(arrays, i, metrics), asked[i], ready, nodes)


@entry_point
def begin_traffic_range(
    arrays: Arrays, first: int, last: int, seeds: NDArray[np.int64], metrics: NDArray[Any]
) -> None:
    """Start the traffic of the environments that have a seed, unless their requests are listed."""
    for i in range(first, last):
        w = _world(arrays, i, metrics)
        if seeds[i] >= 0 and w.settings.arrival_kind != LISTED:
            reset_network(w, seeds[i])
            reset_arrivals(w, seeds[i])


@entry_point
def draw_requests(arrays: Arrays, metrics: NDArray[Any], requests: NDArray[Any]) -> int:
    """Draw the next requests into (room,) of ``LISTED_REQUEST``; return how many there were."""
    # If they are fewer than there is room for, they are the last.
    w = _world(arrays, 0, metrics)
    for k in range(len(requests)):
        if w.env.sent_s == np.inf:
            return k
        request, env = requests[k], w.env
        request.id, request.sent_s, request.arrival_s = env.sent - 1, env.sent_s, env.arrival_s
        request.deadline_s = w.env.sent_s + w.settings.slo_s
        request.payload_bytes = w.settings.network.payload_bytes
        next_request(w)
    return len(requests)


@entry_point
def arrive(
    arrays: Arrays, metrics: NDArray[Any], requests: NDArray[Any], payload_bytes: float
) -> None:
    """Write when the requests with one payload arrive; ``requests`` are in the order of sending."""
    w = _world(arrays, 0, metrics)
    start_over(w.env)
    latest_s = 0.0
    for k in range(len(requests)):
        request = requests[k]
        if request.payload_bytes == payload_bytes:
            end_s = transferred_s(w, request.sent_s, payload_bytes)
            # Transfers held up by the same outage end at the same moment; rounding must not
            # make a later one arrive earlier.
            latest_s = max(latest_s, end_s + w.settings.network.base_delay_s)
            request.arrival_s = latest_s


@entry_point
def take_in(arrays: Arrays, metrics: NDArray[Any], now_s: float, until_s: float) -> float:
    """Take in what has arrived by ``until_s``, now or past; return when the next request comes."""
    w = _world(arrays, 0, metrics)
    w.env.now_s = now_s
    batching.take_in(w, until_s)
    return w.env.arrival_s


@entry_point
def offer(
    arrays: Arrays, metrics: NDArray[Any], row: int, id: int, times_s: tuple[float, float, float],
    payload_bytes: float, decides_s: float, welcome: bool, k: int,
) -> float:  # fmt: skip
    """Offer a request from outside to stage ``k``, in a free row of ``requests``.

    ``times_s`` are those at which it was sent, arrived (which is now) and must be answered. It is
    dropped at once if it cannot be in time, is not ``welcome``, or finds no room. Return 0 if it
    waits now, else by how long it would be late, NaN if it was dropped for another reason.
    """
    w = at(_world(arrays, 0, metrics), k)
    request, env = w.requests[row], w.env
    request.id, request.sent_s, request.arrival_s, request.deadline_s = id, *times_s
    request.payload_bytes, request.tasks, request.cancelled = payload_bytes, -1, False
    request.enters = k
    env.sent, env.sent_s, env.arrival_s = row + 1, request.sent_s, request.arrival_s
    env.now_s = request.arrival_s
    late_by_s = earliest_end_s(w, request.deadline_s, decides_s) - request.deadline_s
    waits = batching.offer(w, request.deadline_s, payload_bytes, welcome and late_by_s <= 0.0)
    env.arrival_s = np.inf
    if waits:
        return 0.0
    return late_by_s if late_by_s > 0.0 else np.nan


@entry_point
def drop_expired(arrays: Arrays, metrics: NDArray[Any], now_s: float) -> float:
    """Drop the waiting requests that the policy gives up; return when it gives up the next."""
    w, next_s = _world(arrays, 0, metrics), np.inf
    w.env.now_s = now_s
    for k in range(len(w.stages)):
        stage = at(w, k)
        batching.drop_expired(stage)
        if stage.stage.head < stage.stage.tail:
            next_s = min(next_s, deadline_s(stage, stage.stage.head) - stage.model.drop_below_s)
    return next_s


@entry_point
def cancel(arrays: Arrays, metrics: NDArray[Any], row: int, now_s: float) -> None:
    """Cancel a request that has not ended."""
    w = _world(arrays, 0, metrics)
    w.env.now_s = now_s
    batching.cancel(at(w, w.requests[row].enters), row, w.requests[row].sent_s)


@entry_point
def form_batch(arrays: Arrays, metrics: NDArray[Any], k: int, row: int, batch_max: int) -> int:
    """Form a batch of stage ``k`` in a row of its ``replicas``; return its size."""
    w = at(_world(arrays, 0, metrics), k)
    return batching.form_batch(w, w.replicas[row], batch_max)


@entry_point
def end_batch(
    arrays: Arrays, metrics: NDArray[Any], k: int, row: int, replica: int, times_s: tuple[float,
    float], ok: bool,
) -> None:  # fmt: skip
    """Close the batch that was formed of stage ``k`` in a row of its ``replicas``.

    ``replica`` is the identity of the replica that ran it, ``times_s`` when it started and
    ended, and ``ok`` False if the replica died.
    """
    w = at(_world(arrays, 0, metrics), k)
    batch = w.replicas[row]
    batch.id, batch.started_s = replica, times_s[0]
    if ok:
        batching.answer(w, batch, times_s[1])
    else:
        batching.give_back(w, batch, times_s[1])
    batch.batch_size = 0
    batching.rewind(w)


@entry_point
def begin_live_interval(arrays: Arrays, metrics: NDArray[Any], allocations: NDArray[Any]) -> None:
    """Begin an interval of a live system, whose worker has the allocation already."""
    metrics[0] = arrays.blank[0]
    begin_interval(_world(arrays, 0, metrics), allocations[0])


@entry_point
def end_live_interval(arrays: Arrays, metrics: NDArray[Any], now_s: float) -> None:
    """Measure the interval; the caller has written the meters."""
    w = _world(arrays, 0, metrics)
    w.env.now_s = now_s
    measure(w)


@entry_point
def last_deadline(arrays: Arrays, metrics: NDArray[Any]) -> float:
    """Return the latest deadline of what waits or runs."""
    return last_deadline_s(_world(arrays, 0, metrics))


@entry_point
def abandon(arrays: Arrays, metrics: NDArray[Any], now_s: float) -> None:
    """Drop all that waits."""
    w = _world(arrays, 0, metrics)
    w.env.now_s = now_s
    batching.abandon(w)


@entry_point
def observe_one(arrays: Arrays, metrics: NDArray[Any], observations: NDArray[np.float32]) -> None:
    """Write the (1, obs_dim) observation."""
    write_observation(_world(arrays, 0, metrics), observations[0])
