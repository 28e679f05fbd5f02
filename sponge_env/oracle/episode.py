"""What the oracle knows in advance: every request, the service times and what counts.

Requests are kept by class. Those of one class have one SLO and one size, so they arrive in
the order of their deadlines and are served in that order; what has been served is therefore
one position per class. All the oracle's kernels read the same :class:`KnownEpisode`.

Also the violations that no schedule can avoid any more: those of each class if it had the replicas
to itself, at the largest throughput there is, and no request took less than the shortest service.
"""

from dataclasses import replace
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sponge_env.arrays import IntArray
from sponge_env.core.compiled import compiled, entry_point, rows
from sponge_env.core.quota import SLICE_S
from sponge_env.core.records import PENDING
from sponge_env.interfaces import FloatArray
from sponge_env.latency import QuotaService
from sponge_env.scenario.option import require
from sponge_env.scenario.profile import Profile
from sponge_env.scenario.scenario import Scenario
from sponge_env.scenario.spec import make_spec
from sponge_env.simulation.configuration import Configuration
from sponge_env.simulation.workload import Workload, draw_workload

MAX_CLASSES = 4  # of requests in one stream, which the kernels have room for
SLACK_S = 1e-9  # a request this late may be so by rounding only; the lower side lets it pass


class KnownEpisode(NamedTuple):
    """One episode as the kernels see it.

    Work is in seconds of a replica that runs unhindered: the latency l(b, c) of the service
    ``profile``, the CPU time of the service ``quota``, which does not depend on the cores.
    """

    intervals: int
    interval_s: float
    classes: int
    # (n,) when each request arrives; class by class, ascending within a class
    release_s: FloatArray
    deadline_s: FloatArray  # (n,) ascending within a class
    late: IntArray
    """(n + 1,) violations from each request of a class on that are certain if nothing waits then,
    once :func:`count_late` has counted them."""
    urgency: FloatArray  # (n,) rank in which requests that wait are served; no two are equal
    counts: IntArray  # (n,) 1 where a violation counts, 0 before the counting starts
    first: IntArray  # (classes + 1,) position of each class's first request, and n
    # (intervals + 1, classes) position after the last arrival at each boundary of the intervals
    arrived: IntArray
    cores_count: IntArray  # (intervals,) 1 where cores count, 0 before the counting starts
    cores_max: int
    batch_max: int
    replicas_max: int
    total_cores: int  # Core units of the machine
    nodes: IntArray  # Those of each node; the lower side takes them for one
    # Time until a replica serves: whatever its cores or, under a quota, on one core unit
    cold_start_s: float
    quota: bool  # Whether a quota limits the CPU
    # By how much longer a cold start takes when many replicas start at once
    loading_contention: float
    drops: bool  # Whether waiting requests are dropped at some time
    work_s: FloatArray  # (batch_max, cores_max) work of a batch
    # (batch_max, cores_max) least work of a batch of this size or a larger one
    padded_s: FloatArray
    shortest_s: FloatArray  # (batch_max,) the same under the cores that suit it best
    share: FloatArray  # (cores_max,) work done per second in the long run
    # (cores_max,) by how much CPU granted in an interval can be ahead of the long run at its end
    ahead_s: FloatArray
    # (cores_max,) the same of all intervals since the quota was written
    ahead_written_s: FloatArray
    ahead_awake_s: FloatArray  # (cores_max,) the same of the CPU granted after an idle moment
    # (cores_max,) by how much more than that it can be ahead before the interval's end
    refill_s: FloatArray
    fastest_s: float  # Shortest service of one request
    rate_rps: float  # Largest throughput of a replica
    seed: int
    settings: Any  # (1,) the scenario as the worker's kernels know it
    models: Any  # (1,) the simulated worker itself
    numbers: FloatArray  # Tables that belong to the settings
    pending: NDArray[Any]  # (1,) no resize ever waits
    replica_slots: int  # Most replicas at one time, draining ones included


def known_episode(scenario: Scenario, profile: Profile, seed: int) -> KnownEpisode:
    """Collect what is known of an episode; a SpongeError where there is no model of something."""
    delay_s, classes = scenario.simulation.actuation_delay_s, len(set(scenario.classes))
    rule = "0 for the oracle, which takes a resize to act at once"
    require(delay_s == 0, "simulation.actuation_delay_s", delay_s, rule)
    rule = f"at most {MAX_CLASSES} for the oracle"
    require(classes <= MAX_CLASSES, "the number of classes of requests", classes, rule)
    spec = make_spec(scenario, profile)
    boundaries_s = np.arange(scenario.intervals + 1.0) * scenario.interval_s
    cores_count = (boundaries_s[1:] > scenario.count_from_s + 1e-9).astype(np.int64)
    silent = replace(scenario, simulation=replace(scenario.simulation, noise=0.0))
    worker = Configuration([silent], profile=profile, listed=True)
    return KnownEpisode(
        intervals=scenario.intervals, interval_s=scenario.interval_s,
        **_requests(scenario, draw_workload(scenario, profile, seed), boundaries_s),
        cores_count=cores_count, cores_max=spec.first.cores_max, batch_max=spec.first.batch_max,
        replicas_max=min(spec.first.replicas_max, spec.total_cores), total_cores=spec.total_cores,
        nodes=np.array(spec.nodes), cold_start_s=spec.first.cold_start_s,
        drops=scenario.serving.drop != "none", **_service(scenario, profile), seed=seed,
        settings=rows(worker.settings), models=rows(worker.models[0]), numbers=worker.numbers.array,
        pending=rows(np.zeros(1, PENDING)), replica_slots=worker.room.replicas,
    )  # fmt: skip


def _requests(scenario: Scenario, workload: Workload, boundaries_s: FloatArray) -> dict[str, Any]:
    """Sort the requests that arrive within the episode by class."""
    slo_s = np.round(workload.deadline_s - workload.sent_s, 9)
    kinds = np.stack([slo_s, workload.payload_bytes], axis=1)
    _, kind = np.unique(kinds, axis=0, return_inverse=True)
    offered = np.flatnonzero(workload.arrival_s <= boundaries_s[-1])
    kind = kind.ravel()[offered]
    taken = offered[np.argsort(kind, kind="stable")]
    classes = max(1, len(set(scenario.classes)))
    first = np.searchsorted(np.sort(kind), np.arange(classes + 1)).astype(np.int64)
    release_s, deadline_s = workload.arrival_s[taken], workload.deadline_s[taken]
    in_turn = release_s if scenario.serving.order == "fifo" else deadline_s
    urgency = np.empty(taken.size)
    urgency[np.lexsort((workload.id[taken], in_turn))] = np.arange(taken.size)
    spans = pairwise(first.tolist())
    arrived = [a + np.searchsorted(release_s[a:b], boundaries_s, side="right") for a, b in spans]
    return {
        "classes": classes, "release_s": release_s, "deadline_s": deadline_s,
        "late": np.zeros(taken.size + 1, np.int64), "urgency": urgency,
        "counts": (release_s >= scenario.count_from_s).astype(np.int64), "first": first,
        "arrived": np.stack(arrived, axis=1).astype(np.int64),
    }  # fmt: skip


def _service(scenario: Scenario, profile: Profile) -> dict[str, Any]:
    limits, sizes = scenario.limits, np.arange(1, scenario.limits.batch + 1)
    profile = profile.scaled(scenario.simulation.service_scale)
    quota = profile.quota
    if profile.resolve_service(scenario.simulation.service) == "quota" and quota is not None:
        work_s = np.repeat(profile.work_table_s(limits.batch)[:, None], limits.cores, axis=1)
        dispatch_s = quota.dispatch_s + quota.dispatch_request_s  # of one request
        contention, grants = quota.loading_contention, _grants(scenario, profile, quota)
    else:
        quota, dispatch_s, contention, nothing = None, 0.0, 1.0, np.zeros(limits.cores)
        work_s = profile.service_table_s(limits.batch, limits.cores)
        grants = dict.fromkeys(("ahead_s", "ahead_written_s", "ahead_awake_s", "refill_s"), nothing)
        grants["share"] = nothing + 1
    padded_s = np.minimum.accumulate(work_s[::-1], axis=0)[::-1].copy()
    return {
        "work_s": np.ascontiguousarray(work_s), "padded_s": padded_s,
        "shortest_s": padded_s.min(axis=1), "quota": quota is not None,
        "loading_contention": contention, **grants,
        "fastest_s": float(padded_s[0].min() + dispatch_s),
        "rate_rps": float(np.max(sizes / padded_s.min(axis=1))),
    }  # fmt: skip


def _grants(scenario: Scenario, profile: Profile, quota: QuotaService) -> dict[str, FloatArray]:
    """Bound what a quota grants; full cores are not limited."""
    share = np.minimum(1.0, np.arange(1, scenario.limits.cores + 1) * profile.core_unit)
    limited, periods = share < 1 - 1e-9, scenario.interval_s / quota.period_s
    first = 1 if abs(periods - round(periods)) < 1e-9 else 2
    debt_s = (np.minimum(SLICE_S, share * quota.period_s) + quota.tick_s) / share
    return {
        "share": share, "ahead_s": limited * (first * quota.period_s + debt_s),
        "ahead_written_s": limited * (first * quota.period_s + quota.tick_s / share),
        "ahead_awake_s": limited * (2 * quota.period_s + debt_s),
        "refill_s": limited * quota.period_s,
    }  # fmt: skip


@compiled
def _busy_period(
    e: KnownEpisode, kind: int, start: int, free_s: float, speedup: float
) -> tuple[int, int]:
    """Serve one class until nothing waits; return the next request and the violations."""
    late, i = 0, start
    while i < e.first[kind + 1] and (i == start or e.release_s[i] < free_s):
        done_s = max(free_s, e.release_s[i]) + 1.0 / (e.rate_rps * speedup)
        in_time = max(done_s, e.release_s[i] + e.fastest_s) <= e.deadline_s[i] + SLACK_S
        late += 0 if in_time else e.counts[i]
        if in_time or not e.drops:
            free_s = done_s
        i += 1
    return i, late


@entry_point
def count_late(e: KnownEpisode, speedup: float) -> int:
    """Write ``e.late``; return the violations that ``speedup`` replicas together cannot avoid."""
    late = 0
    for kind in range(e.classes):
        for start in range(e.first[kind + 1] - 1, e.first[kind] - 1, -1):
            after, violations = _busy_period(e, kind, start, e.release_s[start], speedup)
            e.late[start] = violations + (e.late[after] if after < e.first[kind + 1] else 0)
        if e.first[kind] < e.first[kind + 1]:
            late += e.late[e.first[kind]]
    return late


@compiled
def unavoidable(e: KnownEpisode, kind: int, start: int, free_s: float, speedup: float) -> int:
    """Count the violations of one class that nothing can avoid, from the request ``start`` on."""
    # It is the first of the class that was not started; a replica can begin with it at ``free_s``.
    end = e.first[kind + 1]
    if start >= end:
        return 0
    if e.release_s[start] >= free_s:
        return int(e.late[start])
    after, violations = _busy_period(e, kind, start, free_s, speedup)
    return violations + (int(e.late[after]) if after < end else 0)
