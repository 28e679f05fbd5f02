"""How long a batch takes on a simulated replica, also when its cores change meanwhile.

There are two models. ``profile`` charges the measured l(b, c) to every batch, right for whole
cores, as in the paper; a resize rescales the time that is left, and loading the model takes the
same time on any cores and does not use them. ``quota`` is :mod:`sponge_env.core.quota`.
"""

import math

from sponge_env.core.compiled import compiled, inlined
from sponge_env.core.quota import advance_bucket, new_bucket, wake, write_quota
from sponge_env.core.records import ReplicaState, World
from sponge_env.core.rng import uniform
from sponge_env.latency import CONTENDING

OVERHEADS = 5
"""Numbers of each variant, in seconds, of what a batch takes beside its work: dispatch, dispatch of
each request, the shortest rest that costs something, its cost, and the cost of a pause."""


@inlined
def new_service(w: World, replica: ReplicaState, cores: int) -> None:
    """Start idle; under a quota, with refills at a random phase of the period."""
    replica.cores = cores
    replica.account.since_s = replica.finish_s = 0.0
    replica.account.used_core_s = replica.account.throttled_s = 0.0
    if w.model.limited:
        new_bucket(w.model, replica, uniform(w.env.noise_rng))


@inlined
def load_service(w: World, replica: ReplicaState, now_s: float, loading: int) -> None:
    """Begin to load the model, as one of ``loading`` replicas that do so."""
    # The cold start was measured on one core unit with its pauses, so these cost nothing more.
    model = w.model
    if model.limited:
        contention = min(1.0, (loading - 1) / (CONTENDING - 1))
        slowdown = 1.0 + (model.quota.loading_contention - 1.0) * contention
        work_s = model.cold_start_s * model.core_unit * slowdown
        wake(model, replica, now_s, work_s, (math.inf, 0.0, 0.0))
    else:
        replica.finish_s = now_s + model.cold_start_s


@inlined
def start_service(w: World, replica: ReplicaState, now_s: float) -> None:
    """Begin a batch."""
    model, count = w.model, replica.batch_size
    noise = _work(w, replica.variant, count)
    if model.limited:
        begin_s = now_s + dispatched_s(w, replica.variant, count)
        work_s = w.numbers[model.work_at + replica.variant * model.limits.batch + count - 1] * noise
        at = model.overheads_at + OVERHEADS * replica.variant
        costs_s = w.numbers[at + 2], w.numbers[at + 3], w.numbers[at + 4]
        wake(model, replica, begin_s, work_s, costs_s)  # writes finish_s
    else:
        replica.account.since_s = now_s
        replica.finish_s = now_s + served_s(w, replica.variant, count, replica.cores) * noise


@inlined
def dispatched_s(w: World, variant: int, count: int) -> float:
    """Return the time of a batch that no quota limits: that of its dispatch."""
    at = w.model.overheads_at + OVERHEADS * variant
    return w.numbers[at] + count * w.numbers[at + 1]


@compiled
def advance(w: World, replica: ReplicaState, now_s: float) -> None:
    """Let the batch and the counters progress to ``now_s``."""
    if w.model.limited:
        advance_bucket(w.model, replica, now_s)
        return
    to_s = min(now_s, replica.finish_s)
    if replica.batch_size and to_s > replica.account.since_s:
        replica.account.used_core_s += (to_s - replica.account.since_s) * replica.cores
        replica.account.since_s = to_s


@inlined
def resize_service(w: World, replica: ReplicaState, now_s: float, cores: int) -> None:
    """Change the cores; what is left of the batch goes on at the new speed."""
    if w.model.limited:
        replica.cores = cores
        write_quota(w.model, replica, now_s)
        return
    advance(w, replica, now_s)
    if replica.batch_size and replica.finish_s > now_s:
        old_s = served_s(w, replica.variant, replica.batch_size, replica.cores)
        new_s = served_s(w, replica.variant, replica.batch_size, cores)
        replica.finish_s = now_s + (replica.finish_s - now_s) * (new_s / old_s)
    replica.cores = cores


@inlined
def served_s(w: World, variant: int, count: int, cores: int) -> float:
    """Return how long a batch takes by the service model ``profile``."""
    return w.numbers[w.model.served_at + _cell(w, variant, count, cores)]


@inlined
def _work(w: World, variant: int, count: int) -> float:
    """Return the work of a batch relative to the usual: measured, or drawn from the scatter."""
    model = w.model
    if model.replay_at:
        return _replayed(w, variant, count)
    last = model.noise_points - 1
    position = uniform(w.env.noise_rng) * last
    below = min(int(position), last)
    above = min(below + 1, last)
    at = model.noise_at + variant * model.noise_points
    low, high = w.numbers[at + below], w.numbers[at + above]
    return max(0.05, 1.0 + w.settings.simulation.noise * (low + (position - below) * (high - low)))


@inlined
def _replayed(w: World, variant: int, count: int) -> float:
    """Take the next measured work of a batch of this size; the mean ratio when all are used."""
    # The table begins with that ratio; then come, for each variant and size, the row of its next
    # work and the row after its last; then the works. The rows move on as works are taken.
    at = w.model.replay_at
    cell = at + 2 * (variant * w.model.limits.batch + count) - 1
    row = w.numbers[cell]
    if row < w.numbers[cell + 1]:
        w.numbers[cell] = row + 1.0
        return w.numbers[at + int(row)]
    return w.numbers[at]


@compiled
def replan(w: World, cores: int) -> None:
    """Rescale what the latency model expects to be left of the running batches."""
    before = w.stage.planned_cores
    for k in range(w.stage.replicas):
        replica = w.replicas[k]
        if replica.batch_size:
            left_s = max(0.0, planned_end_s(w, replica) - w.env.now_s)
            before_s = planned_s(w, replica.variant, replica.batch_size, before)
            after_s = planned_s(w, replica.variant, replica.batch_size, cores)
            replica.planned_end_s = w.env.now_s + left_s * after_s / before_s
    w.stage.planned_cores = cores


@compiled
def planned_end_s(w: World, replica: ReplicaState) -> float:
    """Return when the latency model expects a running batch to end."""
    if not math.isnan(replica.planned_end_s):
        return replica.planned_end_s
    cores = w.stage.planned_cores
    return replica.started_s + planned_s(w, replica.variant, replica.batch_size, cores)


@inlined
def planned_s(w: World, variant: int, count: int, cores: int) -> float:
    """Return how long the latency model expects a batch to take."""
    return w.numbers[w.model.planned_at + _cell(w, variant, count, cores)]


@inlined
def _cell(w: World, variant: int, count: int, cores: int) -> int:
    limits = w.model.limits
    return (variant * limits.batch + count - 1) * limits.cores + cores - 1
