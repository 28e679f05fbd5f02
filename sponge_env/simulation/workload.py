"""The requests of an episode, drawn by the core before it begins, and its bandwidth."""

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sponge_env.arrays import FloatArray
from sponge_env.core.compiled import rows
from sponge_env.core.entry import arrive, begin_traffic_range, draw_requests
from sponge_env.core.records import LISTED_REQUEST, Arrays
from sponge_env.core.settings import write_tables
from sponge_env.formats import BandwidthTrace
from sponge_env.scenario.option import require
from sponge_env.scenario.profile import Profile
from sponge_env.scenario.scenario import Scenario
from sponge_env.scenario.seeds import SEED_LIMIT, stream
from sponge_env.simulation import traffic
from sponge_env.simulation.memory import MemoryPlan, blank_metrics

_SOME = 1024  # Requests for which there is room beyond those that are expected
_SPARE = 8  # Room for listed requests grows by 1/8 more than needed, so that it grows seldom


@dataclass(frozen=True, eq=False)
class Workload:
    """The requests of one episode as arrays, by (arrival_s, id)."""

    id: NDArray[np.int64]  # (n,) their numbers in the order in which they are sent
    sent_s: FloatArray  # (n,) when each is sent
    arrival_s: FloatArray  # (n,) when each has reached the server, ascending
    deadline_s: FloatArray  # (n,) when each must be answered
    payload_bytes: FloatArray  # (n,) size of each
    enters: NDArray[np.int64]  # (n,) place of the stage that it enters

    def first(self, count: int) -> dict[str, NDArray[Any]]:
        """Return the columns of the first requests, (count,) each, by name, but for ``enters``."""
        return {f.name: getattr(self, f.name)[:count] for f in dataclasses.fields(self)[:-1]}


def draw_workload(scenario: Scenario, profile: Profile, seed: int) -> Workload:
    """Draw the requests of one episode, sent over ``[0, duration_s)`` and numbered in order."""
    # One arrives when its transfer ends, plus the base delay; that may be after the episode's end.
    traffic.check_record(scenario, traffic.rate_rps(scenario, profile))
    arrays = _begun(scenario, profile, seed)
    own = [
        _drawn(*each, _begun(*each, int(stream(seed, f"class {k}").integers(SEED_LIMIT))))
        for k, each in enumerate(traffic.streams(scenario, profile))
    ]
    requests = rows(np.concatenate(own)) if own else _drawn(scenario, profile, arrays)
    if scenario.classes:
        requests = _classed(scenario, arrays, requests, [len(each) for each in own], seed)
    return Workload(*(np.ascontiguousarray(requests[f.name]) for f in dataclasses.fields(Workload)))


def _drawn(scenario: Scenario, profile: Profile, arrays: Arrays) -> NDArray[Any]:
    """Return the requests of the stream that classes are mixed into."""
    expected = math.ceil(1.1 * traffic.mixed_rps(scenario, profile) * scenario.duration_s)
    parts, full = [], True
    while full:
        part = rows(np.zeros(expected + _SOME, LISTED_REQUEST))
        drawn = draw_requests(arrays, blank_metrics(1), part)
        parts.append(part[:drawn])
        full = drawn == len(part)
    requests = rows(np.concatenate(parts))
    if scenario.arrivals.kind == "trace" and not len(requests):
        raise traffic.nothing_sent(scenario.arrivals.file, scenario.duration_s)
    return requests


def draw_bandwidth(scenario: Scenario, profile: Profile, seed: int) -> BandwidthTrace:
    """Return the bandwidth of that episode, in which transfers take time."""
    arrays = _begun(scenario, profile, seed)
    env = arrays.envs[0]
    samples = arrays.traces[env["trace_at"] : env["trace_end"]]
    start_s, bandwidth = samples["start_s"].copy(), samples["bandwidth"].copy()
    return BandwidthTrace(start_s, bandwidth, float(arrays.traces["start_s"][env["trace_end"]]))


def _begun(scenario: Scenario, profile: Profile, seed: int) -> Arrays:
    """Return an environment that is about to draw its first request."""
    require(seed >= 0, "the seed", seed, "at least 0")
    plan = MemoryPlan(1)
    row = plan.settings[0]
    write_tables(row, scenario)
    row["slo_s"] = scenario.slo_s
    traffic.add_traffic(plan, row, scenario, profile)
    arrays = plan.allocate(1)
    begin_traffic_range(arrays, 0, 1, np.array([seed], np.int64), blank_metrics(1))
    return arrays


def _classed(
    scenario: Scenario, arrays: Arrays, requests: NDArray[Any], counts: list[int], seed: int
) -> NDArray[Any]:
    """Give each request a class of its own; return them in the order in which they arrive."""
    # If each class is a stream, the requests are so many of each, and in no order.
    kinds = scenario.classes
    table = np.array([(k.share, k.slo_s, k.payload_bytes) for k in kinds], dtype=np.float64)
    if counts:
        order = np.argsort(requests["sent_s"], kind="stable")
        requests, kind = rows(requests[order]), np.repeat(np.arange(len(kinds)), counts)[order]
        requests["id"] = np.arange(len(requests))
    else:
        ends = np.cumsum(table[:, 0])
        drawn = stream(seed, "classes").random(len(requests)) * ends[-1]
        # Rounding may lift the largest product onto the last end.
        kind = np.minimum(np.searchsorted(ends, drawn, side="right"), len(kinds) - 1)
    requests["deadline_s"] = requests["sent_s"] + table[kind, 1]
    requests["payload_bytes"] = table[kind, 2]
    requests["enters"] = np.array(scenario.places)[kind]
    # Transfers of one size, whatever their SLO, keep their order.
    for payload_bytes in np.unique(requests["payload_bytes"]).tolist():
        arrive(arrays, blank_metrics(1), requests, payload_bytes)
    return rows(requests[np.argsort(requests["arrival_s"], kind="stable")])


def list_requests(arrays: Arrays, i: int, workload: Workload, kept: Sequence[int] = ()) -> Arrays:
    """Put the requests of an episode where environment ``i`` finds them at its next reset."""
    # Returned is the memory, with more room for requests if they needed it. Only those of the
    # environments ``kept`` go along: to touch the others' room would make it take memory.
    count, requests = workload.id.size, arrays.requests
    if requests.shape[1] <= count:
        room = count + count // _SPARE + 1
        requests = rows(np.zeros((len(requests), room), LISTED_REQUEST))
        for k in kept:
            requests[k, : arrays.requests.shape[1]] = arrays.requests[k]
    for f in dataclasses.fields(workload):
        requests[f.name][i, :count] = getattr(workload, f.name)
    requests["sent_s"][i, count] = requests["arrival_s"][i, count] = np.inf
    requests["tasks"][i] = -1
    return arrays._replace(requests=requests)
