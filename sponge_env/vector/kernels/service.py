"""How long a batch takes on a replica. Repeats :mod:`sponge_env.workers.service`."""

from __future__ import annotations

import math

from sponge_env.vector.compiler import compiled
from sponge_env.vector.layout import Replica, Settings, World


@compiled
def new_service(w: World, replica: Replica, cores: int) -> None:
    """Start idle."""
    settings = w.settings
    replica.cores = cores
    replica.since_s = replica.finish_s = 0.0
    replica.used_core_s = replica.throttled_s = 0.0
    replica.left_s = 0.0
    replica.quota_s = replica.tokens_s = cores * settings.core_unit * settings.period_s
    replica.period_start_s = -math.inf


@compiled
def start_service(w: World, replica: Replica, now_s: float, noise: float) -> None:
    """Begin a batch."""
    settings = w.settings
    if not settings.quota:
        replica.since_s = now_s
        replica.finish_s = now_s + _served_s(w, replica.size, replica.cores) * noise
        return
    replica.since_s = now_s + settings.dispatch_s
    replica.left_s = w.numbers[settings.work_at + replica.size - 1] * noise
    if replica.since_s >= replica.period_start_s + settings.period_s:
        _refill(replica, replica.since_s)
    _predict(settings, replica)


@compiled
def advance(w: World, replica: Replica, now_s: float) -> None:
    """Let the batch and the counters progress to ``now_s``."""
    to_s = min(now_s, replica.finish_s)
    if to_s <= replica.since_s:
        return
    if not w.settings.quota:
        replica.used_core_s += (to_s - replica.since_s) * replica.cores
    else:
        done_s = _spend(w.settings, replica, to_s)
        replica.used_core_s += done_s / w.settings.core_unit
        replica.throttled_s += max(0.0, to_s - replica.since_s - done_s)
        going_on = to_s < replica.finish_s
        replica.left_s = max(0.0, replica.left_s - done_s) if going_on else 0.0
    replica.since_s = to_s


@compiled
def resize_service(w: World, replica: Replica, now_s: float, cores: int) -> None:
    """Change the cores; what is left of the batch goes on at the new speed."""
    settings = w.settings
    advance(w, replica, now_s)
    if not settings.quota:
        if replica.finish_s > now_s:
            old_s = _served_s(w, replica.size, replica.cores)
            new_s = _served_s(w, replica.size, cores)
            replica.finish_s = now_s + (replica.finish_s - now_s) * (new_s / old_s)
        replica.cores = cores
        return
    replica.quota_s = cores * settings.core_unit * settings.period_s
    replica.since_s = max(replica.since_s, now_s)
    _refill(replica, replica.since_s)
    if replica.left_s > 0:
        _predict(settings, replica)


@compiled
def _served_s(w: World, size: int, cores: int) -> float:
    settings = w.settings
    return w.numbers[settings.served_at + (size - 1) * settings.cores_max + cores - 1]


@compiled
def _refill(replica: Replica, now_s: float) -> None:
    replica.period_start_s, replica.tokens_s = now_s, replica.quota_s


@compiled
def _available_s(settings: Settings, replica: Replica) -> float:
    period_left_s = replica.period_start_s + settings.period_s - replica.since_s
    return min(replica.tokens_s, period_left_s)


@compiled
def _predict(settings: Settings, replica: Replica) -> None:
    available_s = _available_s(settings, replica)
    if replica.quota_s >= settings.period_s or replica.left_s <= available_s:
        replica.finish_s = replica.since_s + replica.left_s
        return
    beyond_s = replica.left_s - available_s
    full_periods = math.ceil(beyond_s / replica.quota_s) - 1
    last_start_s = replica.period_start_s + settings.period_s * (1 + full_periods)
    replica.finish_s = last_start_s + (beyond_s - full_periods * replica.quota_s)


@compiled
def _spend(settings: Settings, replica: Replica, to_s: float) -> float:
    if replica.quota_s >= settings.period_s:
        return to_s - replica.since_s
    done_s = min(_available_s(settings, replica), to_s - replica.since_s)
    past_s = to_s - (replica.period_start_s + settings.period_s)
    if past_s < 0:
        replica.tokens_s -= done_s
        return done_s
    periods = math.floor(past_s / settings.period_s)
    _refill(replica, replica.period_start_s + settings.period_s * (1 + periods))
    last_s = min(replica.quota_s, to_s - replica.period_start_s)
    replica.tokens_s -= last_s
    return done_s + periods * replica.quota_s + last_s
