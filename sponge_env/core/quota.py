"""The service of a replica under a CPU quota, as Linux enforces it.

A quota is not a slower CPU: a lone small batch runs at full speed, only back-to-back work
is slowed down to the share, and a batch that finds the quota overdrawn waits before it
begins.

At fixed moments, a period apart, the group's pool is filled up to the quota; what was not used
is lost. The CPU draws on the pool in slices and spends them at full speed. It looks whether its
slice is used up at the ticks of the kernel's clock only, and when the group falls asleep. If
the pool is empty then, the group has overdrawn by up to a tick, and stops until the refills of
the periods that follow have paid for that. Writing a quota fills the pool and forgives the
debt. A rest before a batch and each pause in it make its work a little more. To load the model
is work like a batch. Where replicas want more of the CPU than there is, the fair scheduler gives
each an equal part, which is here a smaller quota.

Source: ``kernel/sched/fair.c`` of Linux 6.18 (``__assign_cfs_rq_runtime``, ``throttle_cfs_rq``,
``distribute_cfs_runtime``, ``__return_cfs_rq_runtime``, ``tg_set_cfs_bandwidth``), and
docs/fidelity.md for how well it does.
"""

from __future__ import annotations

import math

from sponge_env.core.compiled import compiled, inlined
from sponge_env.core.records import ReplicaState
from sponge_env.core.settings import StageSettings

SLICE_S = 0.005
"""What a CPU draws on the group's pool at once (``sched_cfs_bandwidth_slice_us``)."""
KEPT_S = 0.001
"""What it keeps of that when the group falls asleep (``min_cfs_rq_runtime``)."""
NANOSECOND_S = 1e-9
"""The kernel counts in whole ones: less than that is nothing."""


@inlined
def new_bucket(model: StageSettings, replica: ReplicaState, phase: float) -> None:
    """Start idle, with a full pool."""
    _grant(model, replica, float(replica.cores))
    replica.refill_s = phase * model.quota.period_s
    replica.pool_s = replica.granted_s
    replica.slice_s = replica.left_s = 0.0
    replica.stopped = False


@compiled
def advance_bucket(model: StageSettings, replica: ReplicaState, now_s: float) -> None:
    """Let work and counters progress to ``now_s``."""
    if replica.left_s > 0 and now_s >= replica.finish_s:
        replica.since_s, replica.left_s = replica.finish_s, 0.0
        replica.refill_s, replica.pool_s = replica.end_refill_s, replica.end_pool_s
        replica.slice_s, replica.stopped = replica.end_slice_s, replica.end_stopped
        replica.used_core_s = replica.end_used_core_s
        replica.throttled_s = replica.end_throttled_s
    elif replica.left_s > 0:
        _run(model, replica, now_s)


@inlined
def write_quota(model: StageSettings, replica: ReplicaState, now_s: float) -> None:
    """Put the quota of ``replica.cores`` in force."""
    advance_bucket(model, replica, now_s)
    _pass_refills(model, replica, now_s)
    _grant(model, replica, float(replica.cores))
    replica.pool_s, replica.slice_s, replica.stopped = replica.granted_s, 0.0, False
    if replica.left_s > 0:
        _predict(model, replica)


@inlined
def share(model: StageSettings, replica: ReplicaState, now_s: float, cores: float) -> None:
    """Get a part of the CPU, which neither fills the pool nor forgives the debt."""
    if cores == replica.share:
        return
    advance_bucket(model, replica, now_s)
    _catch_up(model, replica, now_s)
    _grant(model, replica, cores)
    replica.pool_s = min(replica.pool_s, replica.granted_s)
    if replica.left_s > 0:
        _predict(model, replica)


@compiled
def wake(
    model: StageSettings,
    replica: ReplicaState,
    now_s: float,
    work_s: float,
    idle_s: float,
    wake_s: float,
    resume_s: float,
) -> None:
    """Begin work at ``now_s``.

    A rest of ``idle_s`` or more before it costs ``wake_s``, each pause in it ``resume_s``.
    """
    advance_bucket(model, replica, now_s)
    _catch_up(model, replica, now_s)
    replica.resume_s = resume_s
    rested = now_s - replica.since_s >= idle_s
    replica.since_s, replica.left_s = now_s, work_s + rested * wake_s
    _predict(model, replica)


@inlined
def _grant(model: StageSettings, replica: ReplicaState, cores: float) -> None:
    replica.share = cores
    replica.granted_s = cores * model.core_unit * model.quota.period_s


@compiled
def _catch_up(model: StageSettings, replica: ReplicaState, now_s: float) -> None:
    """Bring the account of a group that sleeps up to ``now_s``."""
    while replica.stopped and replica.refill_s <= now_s:
        _refill(model, replica)
    _pass_refills(model, replica, now_s)


@compiled
def _pass_refills(model: StageSettings, replica: ReplicaState, now_s: float) -> None:
    """Pass over the refills until ``now_s`` of a group that has no debt."""
    if replica.refill_s <= now_s:
        periods = math.floor((now_s - replica.refill_s) / model.quota.period_s) + 1
        replica.refill_s += periods * model.quota.period_s
        replica.pool_s = replica.granted_s


@compiled
def _predict(model: StageSettings, replica: ReplicaState) -> None:
    """Find the end by going there and back."""
    since_s, left_s, pool_s = replica.since_s, replica.left_s, replica.pool_s
    slice_s, stopped, refill_s = replica.slice_s, replica.stopped, replica.refill_s
    used_core_s, throttled_s = replica.used_core_s, replica.throttled_s
    _run(model, replica, math.inf)
    # Until then a resize or another's batch may change it, so the account goes back to now;
    # undisturbed, the end's account is taken as it was found.
    replica.finish_s = replica.since_s
    replica.end_refill_s, replica.end_pool_s = replica.refill_s, replica.pool_s
    replica.end_slice_s, replica.end_stopped = replica.slice_s, replica.stopped
    replica.end_used_core_s, replica.end_throttled_s = replica.used_core_s, replica.throttled_s
    replica.since_s, replica.left_s, replica.pool_s = since_s, left_s, pool_s
    replica.slice_s, replica.stopped, replica.refill_s = slice_s, stopped, refill_s
    replica.used_core_s, replica.throttled_s = used_core_s, throttled_s


@compiled
def _run(model: StageSettings, replica: ReplicaState, until_s: float) -> None:
    """Go on until ``until_s`` or the end of the work."""
    while replica.left_s > 0 and replica.since_s < until_s:
        if replica.stopped:
            to_s = min(replica.refill_s, until_s)
            replica.throttled_s += to_s - replica.since_s
            replica.since_s = to_s
            if to_s == replica.refill_s:
                _refill(model, replica)
        else:
            _spend(model, replica, until_s)


@inlined
def _spend(model: StageSettings, replica: ReplicaState, until_s: float) -> None:
    """Run until the next event: end, refill, or a tick at which the slice is used up."""
    # A whole CPU is no limit: the kernel has no account of such a group.
    limited = replica.granted_s < model.quota.period_s
    end_s = replica.since_s + replica.left_s
    refill_s = empty_s = math.inf
    if limited:
        refill_s = replica.refill_s
        empty_s = _tick_after(model, replica, replica.since_s + replica.slice_s)
    to_s = min(end_s, refill_s, empty_s, until_s)
    done_s = to_s - replica.since_s
    replica.since_s = to_s
    replica.left_s -= done_s
    if limited:
        replica.slice_s -= done_s
    replica.used_core_s += done_s / model.core_unit
    if to_s == refill_s:
        _refill(model, replica)
    if replica.left_s < NANOSECOND_S:
        _sleep(replica)
    elif to_s == empty_s:
        _draw(replica)


@inlined
def _tick_after(model: StageSettings, replica: ReplicaState, time_s: float) -> float:
    """Return the first tick at ``time_s`` or later, but not one that has passed."""
    ticks = math.ceil((time_s - NANOSECOND_S) / model.quota.tick_s)
    return max(replica.since_s, ticks * model.quota.tick_s)


@compiled
def _refill(model: StageSettings, replica: ReplicaState) -> None:
    """Begin a period; the debt of a group that stands still is paid first."""
    replica.refill_s += model.quota.period_s
    replica.pool_s = replica.granted_s
    if replica.stopped:
        paid_s = min(replica.pool_s, -replica.slice_s)
        replica.pool_s -= paid_s
        replica.slice_s += paid_s
        replica.stopped = replica.slice_s <= -NANOSECOND_S
        if replica.left_s > 0 and not replica.stopped:
            replica.left_s += replica.resume_s


@compiled
def _draw(replica: ReplicaState) -> None:
    """Draw a slice on the pool; without anything in it, stop."""
    drawn_s = min(replica.pool_s, SLICE_S - replica.slice_s)
    replica.pool_s -= drawn_s
    replica.slice_s += drawn_s
    replica.stopped = replica.slice_s < NANOSECOND_S


@inlined
def _sleep(replica: ReplicaState) -> None:
    """End the work: most of the slice goes back into the pool, or a debt stays."""
    replica.left_s = 0.0
    if replica.slice_s < NANOSECOND_S:
        _draw(replica)
    elif replica.slice_s > KEPT_S:
        replica.pool_s += replica.slice_s - KEPT_S
        replica.slice_s = KEPT_S
