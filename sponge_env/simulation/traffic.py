"""From scenarios to the arrivals and the bandwidth that the core draws and reads."""

import math
from collections.abc import Sequence
from dataclasses import replace
from statistics import fmean
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sponge_env.core import settings as kinds
from sponge_env.core.records import SAMPLE
from sponge_env.errors import ConfigError, TraceError
from sponge_env.formats import BandwidthTrace, CountTrace, EventTrace, read_arrivals, read_bandwidth
from sponge_env.scenario.config import Arrivals, Limits, Network
from sponge_env.scenario.graph import mean_tasks
from sponge_env.scenario.option import require
from sponge_env.scenario.profile import Profile
from sponge_env.scenario.scenario import Scenario
from sponge_env.scenario.spec import stage_profiles
from sponge_env.simulation.memory import MemoryPlan, free_bytes

_KINDS = ("poisson", "constant", "bursty", "flash-crowd", "diurnal", "trace")  # By number
MOST_REQUESTS = 10_000_000  # Requests of one episode of which a record is kept
MOST_RECORDED = 50_000_000  # Requests with exact times, before a trace is thinned: each is kept
MOST_RPS = 1e6  # Largest mean rate, of episodes without such records as well
PEAK_S = 5  # Seconds of a trace whose rate counts as its highest

REQUEST_BYTES, INTERVAL_BYTES = 450, 2500  # Memory of a record


def add_traffic(plan: MemoryPlan, row: Any, scenario: Scenario, profile: Profile) -> None:
    """Write arrivals and network into settings that have their tables; TraceError if unusable."""
    _add_network(plan, row, scenario)
    _add_arrivals(plan, row, scenario, mixed_rps(scenario, profile))


def _add_network(plan: MemoryPlan, row: Any, scenario: Scenario) -> None:
    network = scenario.network
    row["network_kind"] = kinds.INSTANT
    if network.trace == "4g":
        samples = math.ceil(scenario.duration_s)
        row["network_kind"], row["samples"], row["trace_s"] = kinds.GENERATED, samples, samples
    elif network.trace != "none":
        trace = read_bandwidth(network.trace)
        add_trace(plan, row, trace)
        row["network_kind"] = kinds.FIXED if network.start == "beginning" else kinds.SHIFTED
    if scenario.mean_payload_bytes == 0:
        row["network_kind"] = kinds.INSTANT
    # What an environment keeps for itself: the trace that it makes, and after it the faded one.
    own_rows = {kinds.GENERATED: row["samples"] + 1, kinds.SHIFTED: row["samples"] + 2}
    private = own_rows.get(int(row["network_kind"]), 0)
    if network.fade_every_s is not None and row["network_kind"] != kinds.INSTANT:
        # Fades fall anew on each lap of a trace that is shorter than the episode.
        laps = max(1, math.ceil(scenario.duration_s / row["trace_s"]))
        row["trace_s"] *= laps
        row["faded"], row["faded_at"] = True, private
        row["fade_every_s"] = network.fade_every_s
        edges = 2 * math.ceil(row["trace_s"] / network.fade_every_s) + 2
        private += laps * (row["samples"] + 1) + edges + 1
    plan.room.at_least(private=int(private))


def add_trace(plan: MemoryPlan, row: Any, trace: BandwidthTrace) -> None:
    """Write a bandwidth trace into a scenario's settings."""
    samples = np.zeros(trace.start_s.size + 1, SAMPLE)
    samples["start_s"] = np.append(trace.start_s, trace.duration_s)
    samples["bandwidth"] = np.append(trace.bandwidth_bytes_per_s, 0.0)
    samples["cumulative"] = trace.cumulative_bytes
    row["trace_at"] = plan.traces.add(samples)
    row["samples"], row["trace_s"] = trace.start_s.size, trace.duration_s


def _add_arrivals(plan: MemoryPlan, row: Any, scenario: Scenario, rate: float) -> None:
    arrivals, duration_s = scenario.arrivals, scenario.duration_s
    row["arrival_kind"] = _KINDS.index(arrivals.kind)
    row["rate_rps"], row["sent_before_s"] = rate, duration_s
    rates_rps: list[float] = []
    if arrivals.kind == "constant":
        row["requests"] = math.ceil(duration_s * rate)
    elif arrivals.kind == "bursty":
        factors = arrivals.burst_factors
        rates_rps = [rate * factor * len(factors) / sum(factors) for factor in factors]
    elif arrivals.kind == "flash-crowd":
        share = arrivals.flash_s / arrivals.flash_every_s
        outside_rps = rate / (1.0 + (arrivals.flash_factor - 1.0) * share)
        rates_rps = [outside_rps, outside_rps * arrivals.flash_factor, outside_rps]
    elif arrivals.kind == "trace":
        scaled = None if arrivals.rate_rps is arrivals.load is arrivals.peak is None else rate
        _add_recorded(plan, row, read_arrivals(str(arrivals.file)), scenario, scaled)
    if rates_rps:
        row["states"], row["rates_at"] = len(rates_rps), plan.numbers.add(rates_rps)


def _add_recorded(
    plan: MemoryPlan, row: Any, trace: EventTrace | CountTrace, scenario: Scenario,
    rate: float | None,
) -> None:  # fmt: skip
    """Add arrivals as groups of requests that lie anywhere in a stretch of time."""
    # That is one group for each second of counted requests, or for each request of a trace with
    # exact times. With a rate, sizes are rounded up or down at random so that this is the mean
    # rate; of a request with an exact time only copies move, to anywhere before the next request.
    start_s: NDArray[Any]
    duration_s = scenario.duration_s
    if isinstance(trace, EventTrace):
        rule = f"a trace of at most {MOST_RECORDED:,} requests in duration_s"
        few_enough = trace.mean_rps(duration_s) * duration_s <= MOST_RECORDED
        require(few_enough, "arrivals.file", str(scenario.arrivals.file), rule)
        start_s = trace.recorded_s(duration_s)
        length_s = np.diff(start_s, append=duration_s)
        mean = 1.0 if rate is None else rate * duration_s / max(1, start_s.size)
        counts = np.full(start_s.size, mean)
        row["keeps_first"], row["sent_before_s"] = True, np.inf
    else:
        counts = trace.recorded(duration_s) if rate is None else trace.scaled(duration_s, rate)
        start_s, length_s = np.arange(counts.size), np.ones(counts.size)
    if not counts.any():
        raise nothing_sent(scenario.arrivals.file, duration_s)
    row["rounded"], row["groups"] = rate is not None, start_s.size
    row["group_start_at"] = plan.numbers.add(start_s)
    row["group_length_at"] = plan.numbers.add(length_s)
    row["group_count_at"] = plan.numbers.add(counts)
    plan.room.at_least(group=math.floor(counts.max()) + 1)


def rate_rps(scenario: Scenario, profile: Profile) -> float:
    """Return the mean rate of requests in a scenario, of all its streams together."""
    own = [mixed_rps(*each) for each in streams(scenario, profile)]
    return sum(own) if own else mixed_rps(scenario, profile)


def streams(scenario: Scenario, profile: Profile) -> list[tuple[Scenario, Profile]]:
    """Return scenario and profile of each class, if each is a stream of its own."""
    found, profiles, models = [], stage_profiles(scenario, profile), scenario.models
    for kind, place in zip(scenario.classes, scenario.places, strict=True):
        if kind.arrivals is not None:
            model = models[place] if models else scenario
            model = replace(model, arrivals=kind.arrivals, classes=(), slo_s=kind.slo_s)
            found.append((replace(model, network=Network("none")), profiles[place][0]))
    return found


def mixed_rps(scenario: Scenario, profile: Profile) -> float:
    """Return the mean rate of the stream that classes are mixed into."""
    # A load is taken of what one replica of each stage can serve within its limits, a peak of what
    # the machine can; a trace has the rate of its part that the episode plays.
    arrivals = scenario.arrivals
    if arrivals.rate_rps is not None:
        rate = arrivals.rate_rps
    elif arrivals.load is not None:
        rate = arrivals.load * capacity_rps(scenario, profile, joint=False)
    elif arrivals.peak is not None:
        highest_rps = arrivals.peak * capacity_rps(scenario, profile, joint=True)
        rate = highest_rps / peak_factor(arrivals, scenario.duration_s)
    else:
        rate = read_arrivals(str(arrivals.file)).mean_rps(scenario.duration_s)
    rule = f"at most {MOST_RPS:g} requests/s (arrivals.rate_rps, --rate, thins a trace as well)"
    require(rate <= MOST_RPS, "the mean rate", rate, rule)
    return rate


def peak_factor(arrivals: Arrivals, duration_s: float) -> float:
    """Return the highest rate, of a trace that of :data:`PEAK_S` seconds, over the mean one."""
    if arrivals.kind == "diurnal":
        return 1.0 + arrivals.diurnal_amplitude
    if arrivals.kind == "bursty":
        return max(arrivals.burst_factors) / fmean(arrivals.burst_factors)
    if arrivals.kind == "flash-crowd":
        share = arrivals.flash_s / arrivals.flash_every_s
        return max(1.0, arrivals.flash_factor) / (1.0 + (arrivals.flash_factor - 1.0) * share)
    if arrivals.kind == "trace":
        trace = read_arrivals(str(arrivals.file))
        if isinstance(trace, EventTrace):
            span = math.ceil(duration_s)
            counts: NDArray[Any] = np.histogram(trace.recorded_s(duration_s), span, (0, span))[0]
        else:
            counts = trace.exact(duration_s)
        width = min(PEAK_S, counts.size)
        highest = np.convolve(counts, np.ones(width) / width, "valid").max()
        return float(highest / max(counts.mean(), 1e-9))
    return 1.0


def record_bytes(scenario: Scenario, rate: float) -> float:
    """Return about how much memory an episode takes whose requests and intervals are kept."""
    return REQUEST_BYTES * rate * scenario.duration_s + INTERVAL_BYTES * scenario.intervals


def check_record(scenario: Scenario, rate: float) -> None:
    """Refuse an episode of which no record can be kept, before there is memory for it."""
    needed, free = record_bytes(scenario, rate), free_bytes()
    requests, elsewhere = rate * scenario.duration_s, ""
    if not scenario.classes:
        elsewhere = ", or play it with gymnasium.make_vec, which keeps no requests"
    if requests > MOST_REQUESTS or needed > free:
        raise ConfigError(
            f"{scenario.arrivals.file or scenario.name} has {requests:.3g} requests in "
            f"{scenario.duration_s:g} s, whose record would take {needed / 1e9:.3g} GB of memory: "
            f"at most {MOST_REQUESTS} requests are kept, and {free / 1e9:.3g} GB are free; set a "
            "shorter duration_s (option --duration) with more seeds or a lower arrivals.rate_rps "
            f"(--rate), which thins a trace as well{elsewhere}"
        )


def capacity_rps(scenario: Scenario, profile: Profile, joint: bool) -> float:
    """Return the largest rate of requests that one replica of each stage can serve."""
    # With ``joint``, as many as the machine has room for, shared as suits the stages best.
    profiles, tasks = stage_profiles(scenario, profile), mean_tasks(scenario.pipeline)
    passed = [k for k, mean in enumerate(tasks) if mean > 0]
    stages = [(scenario.pipeline[k].limits, profiles[k], tasks[k]) for k in passed]
    if not joint:
        return min(_replica_rps(limits, own, limits.cores) / mean for limits, own, mean in stages)
    machine, whole = scenario.limits.machine_cores, math.inf
    cores_per_rps = 0.0
    for limits, own, mean in stages:
        by_cores = {c: _replica_rps(limits, own, c) / mean for c in range(1, limits.cores + 1)}
        fleets = (min(limits.replicas, machine // c) * rps for c, rps in by_cores.items())
        whole = min(whole, max(fleets))
        cores_per_rps += min(c / rps for c, rps in by_cores.items())
    return whole if len(stages) == 1 else min(whole, machine / cores_per_rps)


def _replica_rps(limits: Limits, variants: Sequence[Profile], cores: int) -> float:
    return max(variant.capacity_rps(limits.batch, cores) for variant in variants)


def nothing_sent(file: str | None, duration_s: float) -> TraceError:
    """Say that an arrival trace has no request in the episode."""
    return TraceError(f"{file} has no request in its first {duration_s:g} s; cut its start off")
