"""Service under a CPU quota. Repeats :mod:`sponge_env.workers.bucket`."""

from __future__ import annotations

import math

from sponge_env.vector.compiler import compiled
from sponge_env.vector.layout import Replica
from sponge_env.vector.settings import Settings
from sponge_env.workers.bucket import KEPT_S, NANOSECOND_S, SLICE_S


@compiled
def new_bucket(settings: Settings, replica: Replica, phase: float) -> None:
    """Start idle, with a full pool."""
    _grant(settings, replica, float(replica.cores))
    replica.refill_s = phase * settings.period_s
    replica.pool_s = replica.granted_s
    replica.slice_s = replica.left_s = 0.0
    replica.stopped = False


@compiled
def advance_bucket(settings: Settings, replica: Replica, now_s: float) -> None:
    """Let work and counters progress to ``now_s``."""
    if replica.left_s > 0 and now_s >= replica.finish_s:
        replica.since_s, replica.left_s = replica.finish_s, 0.0
        replica.refill_s, replica.pool_s = replica.end_refill_s, replica.end_pool_s
        replica.slice_s, replica.stopped = replica.end_slice_s, replica.end_stopped
        replica.used_core_s = replica.end_used_core_s
        replica.throttled_s = replica.end_throttled_s
    elif replica.left_s > 0:
        _run(settings, replica, now_s)


@compiled
def write_quota(settings: Settings, replica: Replica, now_s: float) -> None:
    """Put the quota of ``replica.cores`` in force."""
    advance_bucket(settings, replica, now_s)
    _pass_refills(settings, replica, now_s)
    _grant(settings, replica, float(replica.cores))
    replica.pool_s, replica.slice_s, replica.stopped = replica.granted_s, 0.0, False
    if replica.left_s > 0:
        _predict(settings, replica)


@compiled
def share(settings: Settings, replica: Replica, now_s: float, cores: float) -> None:
    """Get a part of the CPU, which neither fills the pool nor forgives the debt."""
    if cores == replica.share:
        return
    advance_bucket(settings, replica, now_s)
    _catch_up(settings, replica, now_s)
    _grant(settings, replica, cores)
    replica.pool_s = min(replica.pool_s, replica.granted_s)
    if replica.left_s > 0:
        _predict(settings, replica)


@compiled
def wake(
    settings: Settings, replica: Replica, now_s: float, work_s: float, resume_s: float
) -> None:
    """Begin work at ``now_s``; going on after a pause costs it ``resume_s``."""
    advance_bucket(settings, replica, now_s)
    _catch_up(settings, replica, now_s)
    replica.resume_s = resume_s
    paused = now_s - replica.since_s >= settings.tick_s
    replica.since_s, replica.left_s = now_s, work_s + paused * resume_s
    _predict(settings, replica)


@compiled
def _grant(settings: Settings, replica: Replica, cores: float) -> None:
    replica.share = cores
    replica.granted_s = cores * settings.core_unit * settings.period_s


@compiled
def _catch_up(settings: Settings, replica: Replica, now_s: float) -> None:
    while replica.stopped and replica.refill_s <= now_s:
        _refill(settings, replica)
    _pass_refills(settings, replica, now_s)


@compiled
def _pass_refills(settings: Settings, replica: Replica, now_s: float) -> None:
    if replica.refill_s <= now_s:
        periods = math.floor((now_s - replica.refill_s) / settings.period_s) + 1
        replica.refill_s += periods * settings.period_s
        replica.pool_s = replica.granted_s


@compiled
def _predict(settings: Settings, replica: Replica) -> None:
    """Find the end by going there and back."""
    since_s, left_s, pool_s = replica.since_s, replica.left_s, replica.pool_s
    slice_s, stopped, refill_s = replica.slice_s, replica.stopped, replica.refill_s
    used_core_s, throttled_s = replica.used_core_s, replica.throttled_s
    _run(settings, replica, math.inf)
    replica.finish_s = replica.since_s
    replica.end_refill_s, replica.end_pool_s = replica.refill_s, replica.pool_s
    replica.end_slice_s, replica.end_stopped = replica.slice_s, replica.stopped
    replica.end_used_core_s, replica.end_throttled_s = replica.used_core_s, replica.throttled_s
    replica.since_s, replica.left_s, replica.pool_s = since_s, left_s, pool_s
    replica.slice_s, replica.stopped, replica.refill_s = slice_s, stopped, refill_s
    replica.used_core_s, replica.throttled_s = used_core_s, throttled_s


@compiled
def _run(settings: Settings, replica: Replica, until_s: float) -> None:
    """Go on until ``until_s`` or the end of the work."""
    while replica.left_s > 0 and replica.since_s < until_s:
        if replica.stopped:
            to_s = min(replica.refill_s, until_s)
            replica.throttled_s += to_s - replica.since_s
            replica.since_s = to_s
            if to_s == replica.refill_s:
                _refill(settings, replica)
        else:
            _spend(settings, replica, until_s)


@compiled
def _spend(settings: Settings, replica: Replica, until_s: float) -> None:
    """Run until the next event: end, refill, or a tick at which the slice is used up."""
    limited = replica.granted_s < settings.period_s
    end_s = replica.since_s + replica.left_s
    refill_s = empty_s = math.inf
    if limited:
        refill_s = replica.refill_s
        empty_s = _tick_after(settings, replica, replica.since_s + replica.slice_s)
    to_s = min(end_s, refill_s, empty_s, until_s)
    done_s = to_s - replica.since_s
    replica.since_s = to_s
    replica.left_s -= done_s
    if limited:
        replica.slice_s -= done_s
    replica.used_core_s += done_s / settings.core_unit
    if to_s == refill_s:
        _refill(settings, replica)
    if replica.left_s < NANOSECOND_S:
        _sleep(replica)
    elif to_s == empty_s:
        _draw(replica)


@compiled
def _tick_after(settings: Settings, replica: Replica, time_s: float) -> float:
    ticks = math.ceil((time_s - NANOSECOND_S) / settings.tick_s)
    return max(replica.since_s, ticks * settings.tick_s)


@compiled
def _refill(settings: Settings, replica: Replica) -> None:
    replica.refill_s += settings.period_s
    replica.pool_s = replica.granted_s
    if replica.stopped:
        paid_s = min(replica.pool_s, -replica.slice_s)
        replica.pool_s -= paid_s
        replica.slice_s += paid_s
        replica.stopped = replica.slice_s <= -NANOSECOND_S
        if replica.left_s > 0 and not replica.stopped:
            replica.left_s += replica.resume_s


@compiled
def _draw(replica: Replica) -> None:
    drawn_s = min(replica.pool_s, SLICE_S - replica.slice_s)
    replica.pool_s -= drawn_s
    replica.slice_s += drawn_s
    replica.stopped = replica.slice_s < NANOSECOND_S


@compiled
def _sleep(replica: Replica) -> None:
    replica.left_s = 0.0
    if replica.slice_s < NANOSECOND_S:
        _draw(replica)
    elif replica.slice_s > KEPT_S:
        replica.pool_s += replica.slice_s - KEPT_S
        replica.slice_s = KEPT_S
