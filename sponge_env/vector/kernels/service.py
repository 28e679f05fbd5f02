"""How long a batch takes on a replica. Repeats :mod:`sponge_env.workers.service`."""

from __future__ import annotations

from sponge_env.quota import CONTENDING
from sponge_env.vector.compiler import compiled
from sponge_env.vector.kernels.bucket import advance_bucket, new_bucket, wake, write_quota
from sponge_env.vector.kernels.rng import uniform
from sponge_env.vector.layout import Replica, World


@compiled
def new_service(w: World, replica: Replica, cores: int) -> None:
    """Start idle."""
    replica.cores = cores
    replica.since_s = replica.finish_s = 0.0
    replica.used_core_s = replica.throttled_s = 0.0
    if w.settings.quota:
        new_bucket(w.settings, replica, uniform(w.env.noise_rng))


@compiled
def load_service(w: World, replica: Replica, now_s: float, crowd: int) -> None:
    """Begin to load the model, as one of ``crowd`` replicas that do so."""
    settings = w.settings
    if settings.quota:
        crowded = min(1.0, (crowd - 1) / (CONTENDING - 1))
        loading = 1.0 + (settings.loading_contention - 1.0) * crowded
        wake(settings, replica, now_s, settings.cold_start_s * settings.core_unit * loading, 0.0)
    else:
        replica.finish_s = now_s + settings.cold_start_s


@compiled
def start_service(w: World, replica: Replica, now_s: float, noise: float) -> None:
    """Begin a batch."""
    settings = w.settings
    if settings.quota:
        dispatch_s = settings.dispatch_s + replica.size * settings.dispatch_request_s
        work_s = w.numbers[settings.work_at + replica.size - 1] * noise
        wake(settings, replica, now_s + dispatch_s, work_s, settings.resume_s)
    else:
        replica.since_s = now_s
        replica.finish_s = now_s + _served_s(w, replica.size, replica.cores) * noise


@compiled
def advance(w: World, replica: Replica, now_s: float) -> None:
    """Let the batch and the counters progress to ``now_s``."""
    if w.settings.quota:
        advance_bucket(w.settings, replica, now_s)
        return
    to_s = min(now_s, replica.finish_s)
    if replica.size and to_s > replica.since_s:
        replica.used_core_s += (to_s - replica.since_s) * replica.cores
        replica.since_s = to_s


@compiled
def resize_service(w: World, replica: Replica, now_s: float, cores: int) -> None:
    """Change the cores; what is left of the batch goes on at the new speed."""
    if w.settings.quota:
        replica.cores = cores
        write_quota(w.settings, replica, now_s)
        return
    advance(w, replica, now_s)
    if replica.size and replica.finish_s > now_s:
        old_s = _served_s(w, replica.size, replica.cores)
        new_s = _served_s(w, replica.size, cores)
        replica.finish_s = now_s + (replica.finish_s - now_s) * (new_s / old_s)
    replica.cores = cores


@compiled
def _served_s(w: World, size: int, cores: int) -> float:
    settings = w.settings
    return w.numbers[settings.served_at + (size - 1) * settings.cores_max + cores - 1]
