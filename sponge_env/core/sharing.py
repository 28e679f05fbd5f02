"""How a set of models shares a machine that has fewer cores than they ask for together.

A model's *pressure* is the rate that it has to serve (what arrives, and what waits over its SLO)
divided by the rate that its replicas can serve. Cores are taken, one replica or one core of each
replica at a time, from the model whose pressure would then be the lowest.
"""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sponge_env.core.compiled import compiled, inlined
from sponge_env.core.pipeline import at
from sponge_env.core.records import PAST, World
from sponge_env.core.service import planned_s


@compiled
def share_machine(
    w: World, asked: NDArray[Any], ready: NDArray[np.int64], nodes: NDArray[np.int64]
) -> None:
    """Reduce the (stages, 4) allocations asked for until the machine has room for them.

    Replicas of a stage beyond its ``ready`` ones (stages,) start, and hold one core.
    """
    while not _fits(asked, ready, nodes):
        chosen, least, most = 0, math.inf, 0
        for k in range(len(asked)):
            own, part = _held(asked[k], ready[k]), _part(asked[k], ready[k])
            if own > 1:
                asked[k, part] -= 1
                pressure = _pressure(at(w, k), asked[k])
                asked[k, part] += 1
                if pressure < least or (pressure == least and own > most):
                    chosen, least, most = k, pressure, own
        asked[chosen, _part(asked[chosen], ready[chosen])] -= 1


@inlined
def _fits(asked: NDArray[Any], ready: NDArray[np.int64], nodes: NDArray[np.int64]) -> bool:
    held = 0
    for k in range(len(asked)):
        held += _held(asked[k], ready[k])
    return held <= nodes[0].sum() and is_placed(asked, ready, nodes)


@inlined
def _held(asked: NDArray[Any], ready: int) -> int:
    serving = min(asked[2], ready)
    held: int = asked[0] * serving + asked[2] - serving
    return held


@inlined
def _part(asked: NDArray[Any], ready: int) -> int:
    """Return the column to reduce: replicas or cores of each, whichever frees fewer cores."""
    # Where none is ready, fewer cores of each would free none.
    return 2 if asked[0] <= asked[2] or ready == 0 else 0


@inlined
def _pressure(w: World, asked: NDArray[Any]) -> float:
    """Return the rate that a model has to serve divided by the one that it can."""
    stage, last = w.stage, w.env.interval - 1
    rate_rps = (stage.tail - stage.head) / w.model.slo_s
    if last >= 0:
        arrived = stage.arrived[last & (PAST - 1)] - stage.arrived[(last - 1) & (PAST - 1)]
        rate_rps += arrived / w.settings.interval_s
    takes_s = planned_s(w, max(0, asked[3]), asked[1], asked[0])
    pressure: float = rate_rps * takes_s / (asked[1] * asked[2])
    return pressure


@inlined
def is_placed(asked: NDArray[np.int64], ready: NDArray[np.int64], nodes: NDArray[np.int64]) -> bool:
    """Return whether (stages, 4) allocations fit on nodes, as :func:`sponge_env.packing.placed`."""
    # Replicas that are not ready fit wherever there is room. ``nodes`` (2, nodes) has the cores of
    # each node, and scratch memory. On a single node, all that fit the machine fit.
    if nodes.shape[1] == 1:
        return True
    room, fits, largest = nodes[1], True, 0
    for node in range(room.size):
        room[node] = nodes[0, node]
    for k in range(len(asked)):
        largest = max(largest, asked[k, 0])
    for cores in range(largest, 0, -1):
        for k in range(len(asked)):
            for _ in range(min(asked[k, 2], ready[k]) if asked[k, 0] == cores else 0):
                node = room.argmax()
                room[node] -= cores
                fits &= room[node] >= 0
    return fits
