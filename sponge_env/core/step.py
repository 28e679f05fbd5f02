"""An episode: its start, one interval under an allocation, and its end.

What falls on the same instant happens in this order: batches end, requests arrive (stages in
order), the controller decides, batches start.
"""

import math

from sponge_env.core import batching
from sponge_env.core import replicas as worker
from sponge_env.core.arrivals import next_listed
from sponge_env.core.compiled import Records, compiled, inlined
from sponge_env.core.measure import clear_sums, measure
from sponge_env.core.pipeline import at, clear, last_deadline_s, staged
from sponge_env.core.queue import INITIAL_RING
from sponge_env.core.records import PAST, ROOM, AllocationRow, Env, World
from sponge_env.core.rng import FAN_OUT, NOISE, next_uint64, seed_stream
from sponge_env.core.service import replan, start_service
from sponge_env.core.settings import LISTED


@inlined
def reset(w: World, seed: int) -> None:
    """Start an episode; where requests are not listed, their traffic has begun already."""
    env = w.env
    env.interval, env.now_s, env.measured_s, env.ended = 0, 0.0, 0.0, 0
    if w.settings.arrival_kind == LISTED:
        env.sent = 0
        next_listed(w)
    seed_stream(env.noise_rng, seed, FAN_OUT)
    env.fan_out_key = int(next_uint64(env.noise_rng))
    clear(w)
    seed_stream(env.noise_rng, seed, NOISE)
    for k in range(len(w.stages)):
        stage, initial, wanted = w.stages[k], w.models[k].initial, w.stages[k].wanted
        stage.head, stage.tail, stage.oldest, stage.running = 0, 0, 0, 0
        stage.arrived[PAST - 1] = 0.0
        stage.ring = min(INITIAL_RING, len(w.queue)) - 1
        wanted.cores, wanted.batch, wanted.replicas = initial.cores, initial.batch, initial.replicas
        wanted.variant = stage.last_variant = initial.variant
        stage.planned_cores, stage.pace = initial.cores, w.models[k].pace
        worker.reset_worker(at(w, k))
        worker.read_meters(at(w, k))
        stage.before = stage.meters


@compiled
def begin_interval(w: World, wanted: Records[AllocationRow]) -> None:
    """Note the allocation asked for in each stage; the caller gives it to the worker."""
    clear_sums(w)
    for k in range(len(w.stages)):
        stage, asked = w.stages[k], wanted[k]
        if w.settings.simulation.actuation_delay_s == 0.0:
            replan(at(w, k), asked.cores)
        stage.variant = asked.variant
        stage.wanted = asked
    w.env.interval += 1


@inlined
def step(w: World, wanted: Records[AllocationRow], draining: bool) -> None:
    """Put an allocation in force and serve until the interval ends, or drain what is left."""
    if draining:
        w.env.arrival_s = math.inf
    else:
        for k in range(len(w.stages)):
            _count_room(w, k)
            worker.resize(at(w, k), wanted[k].cores, wanted[k].replicas)
        # A stage may have been resized before a later one gave up the cores that it asks for.
        _fit_targets(w)
        begin_interval(w, wanted)
    _serve(w, draining)
    if not draining:
        for k in range(len(w.stages)):
            worker.read_meters(at(w, k))
        measure(w)


@inlined
def _serve(w: World, draining: bool) -> None:
    """Serve until the interval ends, or until nothing is left to be served."""
    env, interval_s = w.env, w.settings.interval_s
    last_s = env.interval * interval_s
    if draining:
        last_s = last_deadline_s(w)
    going = not draining or last_s > 0.0
    while going:
        until_s = last_s
        if draining and env.now_s >= last_s:
            batching.abandon(w)
            until_s = env.now_s + interval_s
        elif draining:
            until_s = min(last_s, env.now_s + interval_s)
        simulate(w, until_s)
        going = draining and last_deadline_s(w) > 0.0


@inlined
def simulate(w: World, until_s: float) -> None:
    """Serve until ``until_s``; what could start at that very moment waits for the next call."""
    # While no replica is idle, an arrival changes nothing but the queue. So the clock jumps to the
    # next event, and the arrivals until then are taken in together. Replicas are looked at only in
    # stages where one has changed, or where one is idle and something waits.
    env = w.env
    for k in range(len(w.stages)):
        w.stages[k].stale = True
    while True:
        batching.take_in(w, env.now_s)
        if env.now_s >= until_s:
            for k in range(len(w.stages)):
                batching.drop_expired(at(w, k))
            return
        event_s, idle = math.inf, False
        for k in range(len(w.stages)):
            stage = w.stages[k]
            # Under a quota, a replica that wakes or sleeps changes the others' share of the CPU.
            if stage.stale or (stage.idle and stage.head < stage.tail) or w.models[k].limited:
                _start_batches(at(w, k))
            event_s = min(event_s, stage.next_s)
            idle |= stage.idle and w.models[k].after == 0
        if jump(env, event_s, min(until_s, env.arrival_s) if idle else until_s):
            _handle_events(w)


@inlined
def _handle_events(w: World) -> None:
    """Apply the resizes that are due and close the batches that have ended."""
    resized = False
    for k in range(len(w.stages)):
        if w.stages[k].next_s <= w.env.now_s:
            w.stages[k].stale = True
            resized |= worker.is_resized(at(w, k))
    if resized:
        for k in range(len(w.stages)):
            _count_room(w, k)
            worker.apply_pending(at(w, k))
    gone = _settle(w)
    for k in range(len(w.stages)):  # those that have become ready get their cores
        if w.stages[k].starting and w.stages[k].stale:
            _count_room(w, k)
            worker.fit_target(at(w, k))
    if gone or resized:
        _fit_targets(w)


@inlined
def jump(env: Env, event_s: float, until_s: float) -> bool:
    """Jump to the next event or to ``until_s``, if that is earlier; return whether to an event."""
    env.now_s = max(env.now_s, min(event_s, until_s))
    return event_s <= env.now_s


@inlined
def _count_room(w: World, place: int) -> None:
    """Count the cores of each node that a stage may use: what the others do not hold."""
    if staged(w):
        on_nodes = w.stages[place].on_nodes
        for node in range(w.settings.nodes):
            on_nodes[4 * node + ROOM] = w.settings.node_cores[node]
        for k in range(len(w.stages)):
            if k != place:
                for row in range(w.stages[k].replicas):
                    replica = w.all_replicas[k, row]
                    on_nodes[4 * replica.node + ROOM] -= replica.cores


@inlined
def _fit_targets(w: World) -> None:
    """Give stages that are short of cores what the others leave."""
    if staged(w):
        for k in range(len(w.stages)):
            _count_room(w, k)
            worker.fit_target(at(w, k))
            w.stages[k].stale = True


@inlined
def _start_batches(w: World) -> None:
    """Give every idle replica a batch; note whether one stays idle, and the next event."""
    idle, event_s = False, worker.next_resize_s(w)
    for k in range(w.stage.replicas):
        replica = w.replicas[k]
        if not worker.is_idle(w.env, replica):
            event_s = min(event_s, worker.busy_until_s(replica))
            continue
        if idle:  # nothing waits for this one either
            continue
        if batching.form_batch(w, replica, w.stage.wanted.batch):
            start_service(w, replica, w.env.now_s)
            event_s = min(event_s, replica.finish_s)
        else:
            idle = True
    if w.model.limited:  # a batch that starts slows the others down
        worker.share_cpu(w)
        event_s = worker.next_event_s(w)
    w.stage.idle, w.stage.next_s, w.stage.stale = idle, event_s, False


@inlined
def _settle(w: World) -> bool:
    """Close the ended batches by the order of their ends; return whether a replica has gone."""
    gone, left = False, 1
    while left > 0:
        # Searched anew each time: a replica that goes moves the rows of others.
        left, place, row = _first_ended(w)
        if left > 0:
            stage = at(w, place)
            batching.answer(stage, stage.replicas[row], stage.replicas[row].finish_s)
            gone |= worker.release(stage, row)
            worker.update_held(stage)
            batching.rewind(stage)
            left -= 1
    return gone


@inlined
def _first_ended(w: World) -> tuple[int, int, int]:
    """Return how many batches have ended by now, and stage and row of the first's replica."""
    ended, first, first_row, first_s = 0, -1, -1, math.inf
    for k in range(len(w.stages)):
        if w.stages[k].stale:
            for row in range(w.stages[k].replicas):
                replica = w.all_replicas[k, row]
                if worker.has_ended(w.env, replica):
                    ended += 1
                    if replica.finish_s < first_s:
                        first, first_row, first_s = k, row, replica.finish_s
    return ended, first, first_row
