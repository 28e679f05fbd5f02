"""What a load asks of a system of one model: inputs by which one policy decides for any of them.

Rates and delays become the cores that each replica needs for them, by the profile's latencies and
the measured service, in one kernel for training and for following.
"""

import math
from itertools import product

import numpy as np
from numpy.typing import NDArray

from sponge_env.arrays import FloatArray, IntArray
from sponge_env.core.compiled import compiled, entry_point
from sponge_env.interfaces import SystemSpec

from .fleet import BATCH_SHARE

FloatMatrix = NDArray[np.float32]

CORES = 16  # Largest number of cores of a replica that the inputs tell apart
_POINTS = ((1, 1), (1, 2), (1, 4), (1, 8), (1, 16), (4, 1), (4, 4), (16, 1), (16, 4), (16, 16))
"""Batch size and cores of the latencies that are shown."""
_GAINS = (2, 4, 8, 16)  # Cores whose throughput is shown, relative to that of one
_DELAY_SHARE = 0.7  # Share of what a delay leaves of the SLO in which a request is to be served
_MOST, _MOST_DELAYED = 1.375, 1.25  # Cores needed, over the maximum, where all are too few
_PEAK_ROOM = 1.15  # A fleet has to serve so many times the highest rate
_SAVES = 0.97  # A fleet is worth a step if it needs at most this share of the present one's cores
_WIDTH, _WIDER = 0.6, 0.06  # Width of the mark of one core, and what each further one adds

RATES = ("arrivals_before", *(f"arrivals_mean_{s}s" for s in (3, 10, 60)), "arrivals_most")
DELAYS = "delay_mean", "delay_max", "delay_most"  # Of :mod:`.history`, for which needs are computed
_FLEETS, _LASTING = ("fewer", "same", "more"), RATES[2:]
STATIC = (
    *(f"service_{batch}x{cores}" for batch, cores in _POINTS),
    *(f"gain_{cores}" for cores in _GAINS),
    *("batching", "served", "machine", "shares_cpu"),
)
NEEDS = (
    *STATIC,
    *(f"needed_{rate}" for rate in RATES),
    *(f"fleet_{fleet}_{rate}" for fleet, rate in product(_FLEETS, _LASTING)),
    "needed_due",
    *(f"needed_{delay}" for delay in DELAYS),
    *("needed_now", "room", "ready_share", "replicas_log", "backlog", "fewest"),
    *(f"saved_{fleet}_{rate}" for fleet, rate in product(("fewer", "more"), _LASTING)),
    *(f"cheapest_{fleet}" for fleet in _FLEETS),
    *(f"{when}_{cores}" for when, cores in product(("now", "soon"), range(1, CORES + 1))),
)
"""Names of the inputs, in order: what a system is, which does not change; the cores that each ready
replica needs for the rates; the eighths of the machine that a fleet of one replica fewer, as many
and one more would hold; the cores for what is due and for the delays; how the replicas stand; what
the other fleets save, which is the cheapest; and the cores needed now and soon, as a mark each."""
_SERVES, _ALONE = len(STATIC), len(STATIC) + CORES
_CAPACITY, _SLO, _TOTAL, _REPLICAS, _MOST_REPLICAS = range(_ALONE + CORES, _ALONE + CORES + 5)


def table_of(spec: SystemSpec, most_replicas: int) -> FloatArray:
    """Return what :func:`add_needs` has to know of a system with one model, as one row.

    In order: :data:`STATIC`, rates that 1, 2, ... cores serve, their seconds for a single request,
    and five numbers, from ``_CAPACITY`` on.
    """
    stage, slo_s = spec.first, spec.slo_s
    cores = np.minimum(np.arange(CORES), stage.cores_max - 1)
    table_s = stage.latency.table_s(stage.batch_max, stage.cores_max)[:, cores]
    sizes = np.arange(1, len(table_s) + 1)[:, None]
    quick = (table_s <= BATCH_SHARE * slo_s) | (sizes == 1)
    serves_rps = np.maximum.accumulate(np.where(quick, sizes / table_s, 0.0).max(axis=0))
    batches = [min(batch, len(table_s)) - 1 for batch, _ in _POINTS]
    at_points_s = table_s[batches, [each - 1 for _, each in _POINTS]]
    static = [
        *np.log(at_points_s / slo_s),
        *np.log(serves_rps[[each - 1 for each in _GAINS]] / serves_rps[0]),
        math.log(serves_rps[0] * table_s[0, 0]), math.log(serves_rps[0] * spec.interval_s),
        math.log2(spec.total_cores / CORES), float(math.isfinite(stage.cpu_cores)),
    ]  # fmt: skip
    total_cores = min(spec.total_cores, stage.cpu_cores)  # replicas may share less than the machine
    most = min(most_replicas, stage.replicas_max, spec.total_cores)
    limits = total_cores, stage.replicas_max, most
    return np.array([*static, *serves_rps, *table_s[0], stage.capacity_rps, slo_s, *limits])


@entry_point
def add_needs(
    seen: FloatMatrix, places: IntArray, tables: FloatArray, chosen: NDArray[np.bool_],
    replicas: IntArray, ready: IntArray, fewest: IntArray,
) -> None:  # fmt: skip
    """Write the needs of (n,) chosen episodes into ``seen`` (n, inputs), after the other inputs.

    ``places`` are those of the five rates, three delays, first due bin, ready replicas, service
    ratio, first of the needs and the peak; ``tables`` (n, ...) are of :func:`table_of`;
    ``replicas`` (n, 1) are those asked for. Written to (n, 1) each: the ``ready`` ones, and the
    ``fewest`` that serve the peak with a margin on all cores of the machine.
    """
    for i in range(len(seen)):
        if chosen[i]:
            peak_rps = seen[i, places[12]] * tables[i, _CAPACITY] * seen[i, places[10]]
            fewest[i, 0] = _fewest(tables[i], _PEAK_ROOM * peak_rps)
            ready[i, 0] = int(seen[i, places[9]] * tables[i, _REPLICAS] + 0.5)
            _write(seen[i], places, tables[i], replicas[i, 0], max(1, ready[i, 0]), fewest[i, 0])


@compiled
def _fewest(table: FloatArray, rate_rps: float) -> int:
    best, best_rps = 1, 0.0
    for n in range(1, int(table[_MOST_REPLICAS]) + 1):
        cores = max(1, min(CORES, int(table[_TOTAL]) // n))
        serves_rps = n * table[_SERVES + cores - 1]
        if serves_rps > best_rps and best_rps < rate_rps:
            best, best_rps = n, serves_rps
    return best


@compiled
def _write(
    row: FloatMatrix, places: IntArray, table: FloatArray, asked: int, ready: int, fewest: int
) -> None:
    at, slower = places[11], row[places[10]]
    for k in range(_SERVES):
        row[at + k] = table[k]
    at += _SERVES
    serves_rps, alone_s = table[_SERVES:_ALONE], table[_ALONE:_CAPACITY]
    slo_s, total, rate_unit = table[_SLO], table[_TOTAL], table[_CAPACITY] * slower
    serving, needed, fleets = min(asked, ready), at, at + 5
    for k in range(5):
        row[at + k] = _cores_for(serves_rps, row[places[k]] * rate_unit / ready)
    at = _add_fleets(row, fleets, serves_rps, places, rate_unit, asked, total)
    due, gathered = 0.0, 0.0
    for k in range(8):
        gathered += (math.exp(row[places[8] + k]) - 1) * slower
        due = max(due, _cores_for(serves_rps, gathered * 8 / (ready * slo_s * (k + 1))))
    row[at] = due
    for k in range(3):
        left_s = _DELAY_SHARE * slo_s * (1 - row[places[5 + k]])
        row[at + 1 + k] = _cores_within(alone_s, left_s / slower)
    now, soon = max(due, row[at + 1], row[needed + 1]), max(row[at + 1], row[needed + 2])
    row[at + 4], row[at + 5] = now, min(CORES, (total - asked + serving) // serving)
    row[at + 6], row[at + 7] = ready / asked, math.log(asked)
    row[at + 8] = min(gathered / (ready * serves_rps[0] * slo_s), 10.0)
    row[at + 9] = fewest / asked
    at = _add_savings(row, at + 10, fleets, asked > 1, asked < table[_MOST_REPLICAS])
    _mark(row[at : at + CORES], now)
    _mark(row[at + CORES :], soon)


@compiled
def _add_fleets(
    row: FloatMatrix, at: int, serves_rps: FloatArray, places: IntArray, rate_unit: float,
    asked: int, total: float,
) -> int:  # fmt: skip
    """Write what fleets of one replica fewer, as many, and one more hold for the lasting rates."""
    for j in range(3):
        held = max(1, asked + j - 1)
        for k in range(3):
            each = max(1.0, _cores_for(serves_rps, row[places[2 + k]] * rate_unit / held))
            beyond = 2.0 if each > max(1.0, total // held) else 0.0
            row[at + k] = min(8 * held * each / total, 12.0) + beyond
        at += 3
    return at


@compiled
def _add_savings(row: FloatMatrix, at: int, fleets: int, may_shrink: bool, may_grow: bool) -> int:
    """Write what these fleets save, and which of them is the cheapest."""
    fewer, same, more = 0.0, 0.0, 0.0
    for k in range(fleets, fleets + 3):
        row[at] = math.log(row[k] / row[k + 3])
        row[at + 3] = math.log(row[k + 6] / row[k + 3])
        fewer, same, more = fewer + row[k], same + row[k + 3], more + row[k + 6]
        at += 1
    at += 3
    shrinks = may_shrink and fewer < _SAVES * same
    grows = may_grow and more < min(_SAVES * same, fewer if may_shrink else same)
    row[at] = 1.0 if shrinks and not grows else 0.0
    row[at + 2] = 1.0 if grows else 0.0
    row[at + 1] = 1.0 - row[at] - row[at + 2]
    return at + 3


@compiled
def _cores_for(serves_rps: FloatArray, rate_rps: float) -> float:
    """Return the cores of a replica that serve a rate, in fractions."""
    if rate_rps <= serves_rps[0]:
        return rate_rps / float(serves_rps[0])
    for k in range(1, CORES):
        if serves_rps[k] >= rate_rps:
            return k + float((rate_rps - serves_rps[k - 1]) / (serves_rps[k] - serves_rps[k - 1]))
    return min(_MOST * CORES, CORES * rate_rps / float(serves_rps[-1]))


@compiled
def _cores_within(alone_s: FloatArray, left_s: float) -> float:
    """Return the fewest cores that serve one request in time."""
    for k in range(CORES):
        if alone_s[k] <= left_s:
            return k + 1.0
    return _MOST_DELAYED * CORES


@compiled
def _mark(out: FloatMatrix, cores: float) -> None:
    """Write a number of cores as a bump at its place, within the ends."""
    place = min(max(cores, 1.0), float(CORES))
    for k in range(CORES):
        out[k] = math.exp(-0.5 * ((place - k - 1) / (_WIDTH + _WIDER * k)) ** 2)
