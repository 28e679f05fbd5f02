"""The loop that connects arrivals, queue and simulated replicas.

What falls on the same instant happens in this order: batches end, requests arrive, the
controller decides, batches start.
"""

from __future__ import annotations

from sponge_env.core.batching import answer, drop_expired, form_batch, rewind, take_in
from sponge_env.core.compiled import inlined
from sponge_env.core.records import World
from sponge_env.core.replicas import (
    apply_pending,
    first_ended,
    is_idle,
    next_event_s,
    release,
    share_cpu,
    update_held,
)
from sponge_env.core.service import start_service


@inlined
def simulate(w: World, batch_max: int, until_s: float) -> None:
    """Serve until ``until_s``; nothing is started at that moment any more.

    While no replica is idle, an arrival changes nothing but the queue. So the clock jumps
    to the next event, and the arrivals until then are taken in at once.
    """
    env = w.env
    while True:
        take_in(w, env.now_s)
        if env.now_s >= until_s:
            drop_expired(w)
            return
        idle = _start_batches(w, batch_max)
        wait(w, min(until_s, env.arrival_s) if idle else until_s)


@inlined
def wait(w: World, until_s: float) -> None:
    """Jump to the next event, at the latest to ``until_s``, and settle what has ended."""
    if jump(w, until_s):
        _settle(w)


@inlined
def jump(w: World, until_s: float) -> bool:
    """Jump to the next event, at the latest to ``until_s``; return whether there is one then."""
    share_cpu(w)
    env, event_s = w.env, next_event_s(w)
    env.now_s = max(env.now_s, min(event_s, until_s))
    happens = event_s <= env.now_s
    if happens:
        apply_pending(w)
    return happens


@inlined
def _start_batches(w: World, batch_max: int) -> bool:
    """Give every idle replica a batch; return whether one stays idle."""
    for k in range(w.stage.replicas):
        replica = w.replicas[k]
        if is_idle(w.env, replica):
            if not form_batch(w, replica, batch_max):
                return True
            start_service(w, replica, w.env.now_s)
    return False


@inlined
def _settle(w: World) -> None:
    """Book the batches that have ended, in the order of their ends."""
    any_ended = False
    k = first_ended(w)
    while k >= 0:
        any_ended = True
        answer(w, w.replicas[k], w.replicas[k].finish_s)
        release(w, k)
        k = first_ended(w)
    if any_ended:
        update_held(w)
        rewind(w)
