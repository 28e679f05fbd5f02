"""An episode: its start, one interval under an allocation, and its end.

What falls on the same instant happens in this order: batches end, requests arrive, the
controller decides, batches start.
"""

from __future__ import annotations

import math

from sponge_env.core import batching
from sponge_env.core import replicas as worker
from sponge_env.core.arrivals import next_listed, reset_arrivals
from sponge_env.core.compiled import Records, compiled, inlined
from sponge_env.core.measure import clear_sums, measure, remember_meters
from sponge_env.core.network import reset_network
from sponge_env.core.queue import last_deadline_s
from sponge_env.core.records import AllocationRow, World
from sponge_env.core.service import replan, start_service
from sponge_env.core.settings import LISTED


@inlined
def reset(w: World, seed: int) -> None:
    """Start an episode; :func:`begin_traffic` comes before where requests are not listed."""
    env, stage, initial = w.env, w.stage, w.model.initial
    env.interval, env.measured_s = 0, 0.0
    env.ended, env.episode_return = 0, 0.0
    stage.head, stage.tail, stage.oldest, stage.running = 0, 0, 0, 0
    wanted = stage.wanted
    wanted.cores, wanted.batch, wanted.replicas = initial.cores, initial.batch, initial.replicas
    wanted.variant, stage.planned_cores = 0, initial.cores
    if w.settings.arrival_kind == LISTED:
        env.sent = 0
        next_listed(w)
    worker.reset_worker(w, seed)
    worker.read_meters(w)
    remember_meters(stage.meters, stage.before)


@inlined
def begin_traffic(w: World, seed: int) -> None:
    """Choose or make the bandwidth of an episode and draw its first request."""
    reset_network(w, seed)
    reset_arrivals(w, seed)


@compiled
def begin_interval(w: World, wanted: Records[AllocationRow]) -> None:
    """Note what is asked for, stage by stage; the worker has its allocation from elsewhere."""
    clear_sums(w)
    asked, before = wanted[0], w.stage.wanted
    if w.settings.simulation.actuation_delay_s == 0.0:
        replan(w, asked.cores)
    before.cores, before.batch = asked.cores, asked.batch
    before.replicas, before.variant = asked.replicas, asked.variant
    w.env.interval += 1


@inlined
def step(w: World, wanted: Records[AllocationRow], draining: bool) -> None:
    """Put an allocation in force and serve until the interval ends, or drain.

    To drain is to end the episode: no request arrives any more, and what is left is served
    under the allocation in force. Requests that still wait when the last deadline has passed
    are dropped, so that afterwards nothing is queued or running.
    """
    if draining:
        w.env.arrival_s = math.inf
    else:
        worker.resize(w, wanted[0].cores, wanted[0].replicas)
        begin_interval(w, wanted)
    _serve(w, draining)
    if not draining:
        worker.read_meters(w)
        measure(w)


@inlined
def _serve(w: World, draining: bool) -> None:
    """Serve until the interval ends, or until nothing is left to be served."""
    env, interval_s = w.env, w.settings.interval_s
    last_s = last_deadline_s(w) if draining else env.interval * interval_s
    going = not draining or batching.any_pending(w)
    while going:
        until_s = last_s
        if draining and env.now_s >= last_s:
            batching.abandon(w)
            until_s = env.now_s + interval_s
        elif draining:
            until_s = min(last_s, env.now_s + interval_s)
        simulate(w, w.stage.wanted.batch, until_s)
        going = draining and batching.any_pending(w)


@inlined
def simulate(w: World, batch_max: int, until_s: float) -> None:
    """Serve until ``until_s``; nothing is started at that moment any more.

    While no replica is idle, an arrival changes nothing but the queue. So the clock jumps
    to the next event, and the arrivals until then are taken in at once.
    """
    env = w.env
    while True:
        batching.take_in(w, env.now_s)
        if env.now_s >= until_s:
            batching.drop_expired(w)
            return
        idle = _start_batches(w, batch_max)
        if jump(w, min(until_s, env.arrival_s) if idle else until_s):
            worker.apply_pending(w)
            _settle(w)


@inlined
def jump(w: World, until_s: float) -> bool:
    """Jump to the next event, at the latest to ``until_s``; return whether there is one then."""
    worker.share_cpu(w)
    env, event_s = w.env, worker.next_event_s(w)
    env.now_s = max(env.now_s, min(event_s, until_s))
    return event_s <= env.now_s


@inlined
def _start_batches(w: World, batch_max: int) -> bool:
    """Give every idle replica a batch; return whether one stays idle."""
    for k in range(w.stage.replicas):
        replica = w.replicas[k]
        if worker.is_idle(w.env, replica):
            if not batching.form_batch(w, replica, batch_max):
                return True
            start_service(w, replica, w.env.now_s)
    return False


@inlined
def _settle(w: World) -> None:
    """Book the batches that have ended, in the order of their ends."""
    any_ended = False
    k = worker.first_ended(w)
    while k >= 0:
        any_ended = True
        batching.answer(w, w.replicas[k], w.replicas[k].finish_s)
        worker.release(w, k)
        k = worker.first_ended(w)
    if any_ended:
        worker.update_held(w)
        batching.rewind(w)
