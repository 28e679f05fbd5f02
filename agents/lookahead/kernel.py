"""The program of ``sponge-mpc``: score a pair of cores and batch, and find the cheapest."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from sponge_env.arrays import FloatArray, IntArray
from sponge_env.core.compiled import compiled, entry_point

from .paths import Chance, Outlook, sample_path
from .queue import Queue, advance, copy_queue, make_queue, resize, unfinished

_MOVES = 6
"""Ways to change a pair; see :func:`_moved`."""
_STRIDE = 1 / 16
"""Share of the cores by which the look-ahead changes them, one at least."""


class Rules(NamedTuple):
    """What stays the same for an episode."""

    service_s: FloatArray
    """(cores_max, batch_max) seconds of a batch; row ``c - 1``, column ``b - 1``."""
    interval_s: float
    """Time between two decisions."""
    guard_s: float
    """An answer so close before its deadline counts as late in part."""
    late_price: float
    """Core-seconds that a late request costs."""
    release_price: float
    """Core-seconds that giving up a core costs."""
    batching: bool
    """Whether other batches than the largest are tried."""
    replicas: int
    """Replicas, each of which holds the cores."""
    cores_max: int
    """Most cores that each of them can have; those in force may be more."""


class Memory(NamedTuple):
    """Arrays to play in, allocated once."""

    start: Queue
    """Queue at the decision, under the cores in force."""
    middle: Queue
    """Queue after the next interval."""
    end: Queue
    """Queue after the look-ahead."""
    speed: FloatArray
    """(intervals,) speed of transfers, the next interval and the look-ahead."""
    arrivals_s: FloatArray
    """(paths, places, 2) when each request arrives and is due."""
    counts: IntArray
    """(paths,) number of arrivals."""
    score: FloatArray
    """(cores_max, batch_max) scores found; NaN where none was."""
    late: FloatArray
    """(cores_max, batch_max) late requests to expect in the next interval, by the scores."""


class Decision(NamedTuple):
    """What is decided, and with what."""

    rules: Rules
    chance: Chance
    memory: Memory
    """Its ``start`` is read, the rest is overwritten."""
    backlog_price: float
    """Core-seconds that a request costs which is left at the end."""
    cores: int
    """Those in force."""


def make_memory(rules: Rules, paths: int, intervals: int, queued: int, places: int) -> Memory:
    """Allocate what a queue and so many arrivals on each path need."""

    def queue() -> Queue:
        return make_queue(queued + places, rules.replicas)

    return Memory(
        start=queue(),
        middle=queue(),
        end=queue(),
        speed=np.empty(intervals),
        arrivals_s=np.empty((paths, places, 2)),
        counts=np.zeros(paths, dtype=np.int64),
        score=np.empty(rules.service_s.shape),
        late=np.empty(rules.service_s.shape),
    )


@entry_point
def plan(
    decision: Decision, outlook: Outlook, kinds: FloatArray, batch: int
) -> tuple[int, int, float]:
    """Return the pair that costs least over the next interval and the look-ahead.

    The search walks downhill from the allocation in force. All scores are of the same sample
    paths, so they fall and rise smoothly and the walk is short.

    Args:
        decision: What is decided.
        outlook: What is believed.
        kinds: See :func:`~.paths.sample_path`.
        batch: That in force.

    Returns:
        Cores, batch, and the late requests to expect in the next interval.
    """
    rules, chance, memory = decision.rules, decision.chance, decision.memory
    for path in range(chance.weight.size):
        memory.counts[path] = sample_path(
            outlook, chance, path, kinds, rules.interval_s, memory.speed, memory.arrivals_s[path]
        )
    memory.score[:] = math.nan
    # Any pair that is better begins the round of moves anew; a round without one is the end.
    best_cores, move = min(decision.cores, rules.cores_max), 0
    best_batch = batch if rules.batching else rules.service_s.shape[1]
    best = _score(decision, best_cores, best_batch, math.inf)
    while move < _MOVES:
        c, b = _moved(rules, best_cores, best_batch, move)
        move += 1
        if math.isnan(memory.score[c - 1, b - 1]):
            score = _score(decision, c, b, best)
            if score < best:
                best, best_cores, best_batch, move = score, c, b, 0
    return best_cores, best_batch, memory.late[best_cores - 1, best_batch - 1]


@compiled
def _moved(rules: Rules, cores: int, batch: int, move: int) -> tuple[int, int]:
    """Return a neighbour of a pair, within the limits."""
    cores_max, batch_max = rules.cores_max, rules.service_s.shape[1]
    if move == 0:
        cores -= 1
    elif move == 1:
        cores += 1
    elif move == 2:
        cores *= 2
    elif not rules.batching:
        return cores, batch
    elif move == 3:
        # Far at once: a queue that is served in full batches changes little in between.
        batch = batch // 2 if batch == batch_max else batch_max
    elif move == 4:
        batch -= max(1, batch // 4)
    else:
        batch += max(1, batch // 4)
    return min(max(cores, 1), cores_max), min(max(batch, 1), batch_max)


@compiled
def _score(decision: Decision, c: int, b: int, limit: float) -> float:
    """Return the expected cost of a pair: its cores, and what each path costs under it.

    The paths come worst first, and no more are played once the cost has reached ``limit``.
    """
    rules, chance, memory = decision.rules, decision.chance, decision.memory
    row_s, interval_s, guard_s = rules.service_s[c - 1], rules.interval_s, rules.guard_s
    cores = decision.cores
    score = rules.replicas * (c * interval_s + rules.release_price * max(0, cores - c))
    then, expected = c, 0.0
    for path in range(chance.weight.size):
        if score >= limit:
            break
        arrivals_s = memory.arrivals_s[path, : memory.counts[path]]
        copy_queue(memory.start, memory.middle)
        resize(memory.middle, 0.0, rules.service_s[cores - 1], row_s)
        late = advance(memory.middle, arrivals_s, row_s, b, 0.0, interval_s, guard_s)
        rest, then = _look_ahead(decision, arrivals_s, c, b, then)
        expected += chance.weight[path] * late
        score += chance.weight[path] * (rules.late_price * late + rest)
    memory.score[c - 1, b - 1], memory.late[c - 1, b - 1] = score, expected
    return score


@compiled
def _look_ahead(
    decision: Decision, arrivals_s: FloatArray, c: int, b: int, then: int
) -> tuple[float, int]:
    """Return what a path costs after the next interval, with the cores that suit it best.

    The search for them starts at ``then``, those that suited the path before.
    """
    best = _rest(decision, arrivals_s, c, b, then)
    if decision.memory.speed.size == 1:
        return best, then
    best_cores = then
    # The rest is about convex in the cores: where one side is downhill, the other is not.
    for sign in (-1, 1):
        if best_cores != then:
            break
        while True:
            cores = best_cores + sign * max(1, int(best_cores * _STRIDE))
            if not 1 <= cores <= decision.rules.cores_max:
                break
            rest = _rest(decision, arrivals_s, c, b, cores)
            if rest >= best:
                break
            best, best_cores = rest, cores
    return best, best_cores


@compiled
def _rest(decision: Decision, arrivals_s: FloatArray, c: int, b: int, then: int) -> float:
    """Return what a path costs after the next interval if it goes on with ``then`` cores.

    Without look-ahead the backlog is priced at once, and worked off as it stands.
    """
    rules, memory = decision.rules, decision.memory
    horizon_s = memory.speed.size * rules.interval_s
    row_s, guard_s = rules.service_s[then - 1], rules.guard_s
    copy_queue(memory.middle, memory.end)
    resize(memory.end, rules.interval_s, rules.service_s[c - 1], row_s)
    late = advance(memory.end, arrivals_s, row_s, b, rules.interval_s, horizon_s, guard_s)
    left = unfinished(memory.end, horizon_s, row_s)
    # What is left is served, too, or a plan could leave its late requests behind the horizon.
    late += advance(memory.end, arrivals_s, row_s, b, horizon_s, math.inf, guard_s)
    cores_s = rules.replicas * then * (horizon_s - rules.interval_s)
    return cores_s + rules.late_price * late + decision.backlog_price * left
