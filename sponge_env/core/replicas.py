"""Simulated replicas on a virtual clock that jumps from event to event.

A resize acts at once, also on a running batch, or after the actuation delay. New replicas serve
after their cold start and hold one core until then, or all of theirs where none serves. A replica
that is removed finishes its batch first. All replicas together, starting and draining ones
included, never hold more cores than the machine has.
"""

import math
from typing import Any

from sponge_env.core.compiled import compiled, inlined
from sponge_env.core.quota import set_share
from sponge_env.core.records import HELD, ROOM, STARTING, STAYING, Env, ReplicaState, World
from sponge_env.core.rng import normal
from sponge_env.core.service import advance, load_service, new_service, replan, resize_service


@inlined
def reset_worker(w: World) -> None:
    """Start with the initial replicas warm."""
    stage, initial = w.stage, w.model.initial
    for node in range(w.settings.nodes):
        stage.on_nodes[4 * node + ROOM] = w.settings.node_cores[node]
    stage.variant = initial.variant
    stage.cores = stage.target_cores = initial.cores
    stage.target_replicas = initial.replicas
    stage.replicas, stage.starting, stage.next_replica, stage.pending = 0, 0, 0, 0
    stage.retired_core_s = stage.retired_throttled_s = 0.0
    stage.held_cores = stage.held_since_s = stage.held_core_s = 0.0
    for k in range(initial.replicas):
        w.replicas[k].node = int(w.numbers[w.model.placed_at + k])
        _add_replica(w, initial.cores)
    update_held(w)


@inlined
def is_idle(env: Env, replica: ReplicaState) -> bool:
    """Return whether a replica could start a batch now."""
    return replica.batch_size == 0 and replica.ready_s <= env.now_s


@inlined
def busy_until_s(replica: ReplicaState) -> float:
    """Return when the batch of a replica that is not idle ends, or when it becomes ready."""
    return replica.finish_s if replica.batch_size else replica.ready_s


@inlined
def next_resize_s(w: World) -> float:
    """Return when a resize takes effect; infinite if none is pending."""
    return w.pending[0].time_s if w.stage.pending else math.inf


@inlined
def next_event_s(w: World) -> float:
    """Return when a batch ends, a replica becomes ready or a resize takes effect."""
    event_s = next_resize_s(w)
    for k in range(w.stage.replicas):
        replica = w.replicas[k]
        if not is_idle(w.env, replica):
            event_s = min(event_s, busy_until_s(replica))
    return event_s


@inlined
def share_cpu(w: World) -> None:
    """Give each replica that serves or loads an equal share of the CPU, if it needs it."""
    env, stage, model = w.env, w.stage, w.model
    if not model.limited or model.limits.replicas == 1:
        return
    busy, starting = 0, 0
    for k in range(stage.replicas):
        busy += not is_idle(env, w.replicas[k])
        starting += w.replicas[k].ready_s > env.now_s
    part = model.cpu_cores / max(1, busy)
    if part > 1.0 and starting < busy:  # those that start do not take more than their core
        part = (model.cpu_cores - starting) / max(1, busy - starting)
    for k in range(stage.replicas):
        replica = w.replicas[k]
        whole = float(replica.cores)
        # An idle replica takes nothing from the others, so its share need not be smaller.
        set_share(model, replica, env.now_s, whole if is_idle(env, replica) else min(whole, part))
        if replica.ready_s > env.now_s:
            replica.ready_s = replica.finish_s


@compiled
def first_ended(w: World) -> int:
    """Return the row of the replica whose batch ended first, by now; -1 if none has."""
    first, first_s = -1, math.inf
    for k in range(w.stage.replicas):
        if has_ended(w.env, w.replicas[k]) and w.replicas[k].finish_s < first_s:
            first, first_s = k, w.replicas[k].finish_s
    return first


@inlined
def has_ended(env: Env, replica: ReplicaState) -> bool:
    """Return whether a replica's batch has ended by now."""
    return replica.batch_size > 0 and replica.finish_s <= env.now_s


@inlined
def release(w: World, row: int) -> bool:
    """Take the batch from a replica; return whether it was draining and has gone."""
    replica = w.replicas[row]
    advance(w, replica, replica.finish_s)
    replica.batch_size = 0
    goes = replica.draining
    if goes:
        _retire(w, row)
        fit_target(w)
    return goes


@inlined
def fit_target(w: World) -> None:
    """Come closer to the allocation asked for, if there was no room for it."""
    stage = w.stage
    staying, starting = _count(w)
    short = stage.cores < stage.target_cores or staying < stage.target_replicas
    if short or starting < stage.starting:
        _fit(w)


@inlined
def resize(w: World, cores: int, replicas: int) -> None:
    """Put an allocation in force, after the actuation delay if there is one."""
    stage, simulation = w.stage, w.settings.simulation
    if simulation.actuation_delay_s == 0:
        _apply(w, cores, replicas)
        return
    delay_s = simulation.actuation_delay_s
    if simulation.actuation_scatter > 0:
        delay_s *= math.exp(simulation.actuation_scatter * normal(w.env.noise_rng))
    time_s = w.env.now_s + delay_s
    if stage.pending:  # none overtakes another
        time_s = max(time_s, w.pending[stage.pending - 1].time_s)
    if stage.pending < len(w.pending):
        stage.pending += 1  # else the last one, which has not come into force, is replaced
    row = w.pending[stage.pending - 1]
    row.time_s, row.cores, row.replicas = time_s, cores, replicas


@inlined
def is_resized(w: World) -> bool:
    """Return whether a resize takes effect now."""
    return w.stage.pending > 0 and w.pending[0].time_s <= w.env.now_s


@inlined
def apply_pending(w: World) -> None:
    """Put the pending resizes in force that are due."""
    stage = w.stage
    while is_resized(w):
        _apply(w, w.pending[0].cores, w.pending[0].replicas)
        replan(w, w.pending[0].cores)
        stage.pending -= 1
        for k in range(stage.pending):
            w.pending[k] = w.pending[k + 1]


@compiled
def update_held(w: World) -> None:
    """Charge the cores held so far and note what is held from now on."""
    stage = w.stage
    stage.held_core_s = held_core_s(w)
    stage.held_since_s = w.env.now_s
    ready = stage.replicas - stage.starting
    few = _starting_cores(stage.cores, ready)
    stage.held_cores = float(stage.cores * ready + few * stage.starting)


@inlined
def held_core_s(w: World) -> float:
    """Return the core-seconds held up to now."""
    stage = w.stage
    return stage.held_core_s + stage.held_cores * max(0.0, w.env.now_s - stage.held_since_s)


@compiled
def read_meters(w: World) -> None:
    """Let all replicas progress until now, and read their counters."""
    now_s, stage = w.env.now_s, w.stage
    meters: Any = stage.meters
    used_core_s, throttled_s, ready = 0.0, 0.0, 0
    for k in range(stage.replicas):
        replica = w.replicas[k]
        advance(w, replica, now_s)
        used_core_s += replica.account.used_core_s
        throttled_s += replica.account.throttled_s
        ready += not replica.draining and replica.ready_s <= now_s
    meters.used_core_seconds = used_core_s + stage.retired_core_s
    meters.throttled_s = throttled_s + stage.retired_throttled_s
    meters.core_seconds = held_core_s(w)
    meters.effective_cores, meters.ready = float(stage.cores), ready


@compiled
def _apply(w: World, cores: int, replicas: int) -> None:
    stage = w.stage
    stage.target_cores, stage.target_replicas = cores, replicas
    # What goes at once makes room for what comes.
    for _ in range(stage.replicas - replicas):
        if _count(w)[0] > replicas:
            row = _next_to_go(w)
            if w.replicas[row].batch_size == 0:
                _retire(w, row)
            else:
                w.replicas[row].draining = True
    _fit(w)


def start_on(cores: int, nodes: int, on_nodes: Any) -> int:
    """Return the node on which one more replica starts, and count it; -1 if none has a core left.

    It is the first with the most room left when each replica that stays has ``cores``.
    ``on_nodes`` has :data:`.records.ROOM` and so on of each node.
    """
    best, most = -1, 0
    for node in range(nodes):
        room = on_nodes[4 * node + ROOM]
        left = room - cores * on_nodes[4 * node + STAYING]
        if on_nodes[4 * node + HELD] < room and (best < 0 or left > most):
            best, most = node, left
    if best >= 0:
        for part in range(HELD, STARTING + 1):
            on_nodes[4 * best + part] += 1
    return best


def cores_that_fit(cores: int, ready: int, nodes: int, on_nodes: Any) -> int:
    """Return the cores of each ready replica: ``cores``, or fewer so that all fit on their node."""
    # A replica that starts has one core; where none is ready, those that start have ``cores``.
    for node in range(nodes):
        left, starting = on_nodes[4 * node + ROOM], on_nodes[4 * node + STARTING]
        sharing = starting
        if ready > 0:
            left, sharing = left - starting, on_nodes[4 * node + HELD] - starting
        if sharing > 0:
            cores = min(cores, left // sharing)
    return max(1, cores)


def starting_cores(cores: int, ready: int) -> int:
    """Return the cores of a replica that starts beside so many that are ready."""
    return 1 if ready > 0 else cores


_start_on, _cores_that_fit = inlined(start_on), inlined(cores_that_fit)
_starting_cores = inlined(starting_cores)  # For compiled code


@compiled
def _fit(w: World) -> None:
    _give_cores(w)
    if w.stage.starting and _count(w)[1] < w.stage.starting:  # there is no cold start
        _give_cores(w)


@compiled
def _give_cores(w: World) -> None:
    stage, held, now_s = w.stage, w.stage.replicas, w.env.now_s
    nodes, (staying, starting) = w.settings.nodes, _count(w)
    added, ready = 0, held - starting
    for _ in range(min(stage.target_replicas - staying, len(w.replicas) - held)):
        node = _start_on(stage.target_cores, nodes, stage.on_nodes)
        if node >= 0:
            w.replicas[held + added].node = node
            added += 1
    cores = _cores_that_fit(stage.target_cores, ready, nodes, stage.on_nodes)
    stage.cores, stage.starting = cores, starting + added
    few = _starting_cores(cores, ready)
    for k in range(held):
        replica = w.replicas[k]
        own = cores if replica.ready_s <= now_s else few
        if replica.cores != own:
            resize_service(w, replica, now_s, own)
            if replica.ready_s > now_s:
                replica.ready_s = replica.finish_s
    for k in range(held, held + added):
        _add_replica(w, few)
        load_service(w, w.replicas[k], now_s, stage.starting)
        w.replicas[k].ready_s = w.replicas[k].finish_s
    update_held(w)


@compiled
def _count(w: World) -> tuple[int, int]:
    """Count the replicas on each node; return how many stay and how many start."""
    stage, staying, starting = w.stage, 0, 0
    for node in range(w.settings.nodes):
        for part in range(HELD, STARTING + 1):
            stage.on_nodes[4 * node + part] = 0
    for k in range(stage.replicas):
        replica = w.replicas[k]
        stays, starts = int(not replica.draining), int(replica.ready_s > w.env.now_s)
        staying, starting = staying + stays, starting + starts
        stage.on_nodes[4 * replica.node + HELD] += 1
        stage.on_nodes[4 * replica.node + STAYING] += stays
        stage.on_nodes[4 * replica.node + STARTING] += starts
    return staying, starting


@inlined
def _next_to_go(w: World) -> int:
    """Return which replica goes first: a cold one, then by the fullest node, idle, youngest."""
    stage, chosen, chosen_rank = w.stage, -1, (2, 0, 0)
    for k in range(stage.replicas - 1, -1, -1):
        replica = w.replicas[k]
        if not replica.draining:
            left = stage.on_nodes[4 * replica.node + ROOM]
            left -= stage.target_cores * stage.on_nodes[4 * replica.node + STAYING]
            rank = int(replica.ready_s <= w.env.now_s), int(left), int(replica.batch_size > 0)
            if rank < chosen_rank:
                chosen, chosen_rank = k, rank
    return chosen


@compiled
def _add_replica(w: World, cores: int) -> None:
    stage = w.stage
    replica = w.replicas[stage.replicas]
    replica.id, replica.ready_s = stage.next_replica, w.env.now_s
    replica.batch_size, replica.draining = 0, False
    new_service(w, replica, cores)
    stage.next_replica += 1
    stage.replicas += 1


@compiled
def _retire(w: World, row: int) -> None:
    stage, replica = w.stage, w.replicas[row]
    stage.starting -= replica.ready_s > w.env.now_s
    advance(w, replica, w.env.now_s)
    stage.retired_core_s += replica.account.used_core_s
    stage.retired_throttled_s += replica.account.throttled_s
    stage.replicas -= 1
    # Rows stay in the order of age, which decides who goes next.
    for k in range(row, stage.replicas):
        w.replicas[k] = w.replicas[k + 1]
