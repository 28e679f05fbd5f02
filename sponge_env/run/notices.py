"""What was read for scenarios, in a line for each file, and what of them looks absurd.

``traces/README.md`` lists what is warned of.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence

import numpy as np

from sponge_env.errors import SpongeError
from sponge_env.formats import (
    RESERVED,
    BandwidthTrace,
    CountTrace,
    EventTrace,
    find_trace,
    format_of,
    read_arrivals,
    read_bandwidth,
)
from sponge_env.run.unit import shared_workload
from sponge_env.scenario.profile import Profile
from sponge_env.scenario.scenario import Scenario
from sponge_env.scenario.spec import scenario_profile, stage_profiles
from sponge_env.simulation.configuration import shortest_s
from sponge_env.simulation.traffic import capacity_rps, rate_rps

MB = 1e6
MIN_MB_PER_S, MAX_MB_PER_S = 0.01, 1000.0
"""Mean bandwidths of any network that serves."""
MAX_SAMPLE_GAP_S = 30.0
"""Median time between the samples of a bandwidth trace."""
MIN_RPS = 0.1
"""Mean rate below which an episode says little."""
MAX_SLO_S = 60.0
"""Longest objective that a user waits for."""
MAX_HOPELESS = 0.9
"""Share of hopeless requests."""
FEW = 10
"""Samples or requests below which a file was written by hand."""


def announce(scenarios: Sequence[Scenario], seeds: int = 1) -> list[str]:
    """Warn of what is absurd on standard error; return a line for each file that is read.

    There is one more where such a scenario has the same requests on all of several seeds. A line
    that several scenarios share is there once. A scenario that cannot be played is passed over.
    """
    read, warned = dict[str, None](), dict[str, None]()
    for scenario in scenarios:
        try:
            files, profile = list(files_read(scenario)), scenario_profile(scenario)
            read |= dict.fromkeys(files)
            warned |= dict.fromkeys(warnings(scenario, profile))
            if files and seeds > 1 and _alike(scenario, profile):
                message = (
                    f"every seed has the same requests in {scenario.name}: one seed says as much"
                )
                read[message] = None
        except SpongeError:
            continue
    for warning in warned:
        sys.stderr.write(f"warning: {warning}\n")
    return list(read)


def _alike(scenario: Scenario, profile: Profile) -> bool:
    """Return whether the requests of the first two seeds are the same."""
    one, other = (shared_workload(scenario, seed, profile) for seed in (0, 1))
    columns = one.first(one.id.size), other.first(other.id.size)
    return all(np.array_equal(columns[0][name], columns[1][name]) for name in columns[0])


def files_read(scenario: Scenario) -> Iterator[str]:
    """Describe each trace file that a scenario plays: format, samples, duration, mean, range."""
    if (name := scenario.network.trace) not in RESERVED:
        bandwidth = read_bandwidth(name)
        values = bandwidth.bandwidth_bytes_per_s / MB
        yield (
            f"read {find_trace(name, 'bandwidth')}: bandwidth, {format_of(name, 'bandwidth')}; "
            f"{values.size} samples over {bandwidth.duration_s:.6g} s, mean "
            f"{bandwidth.mean_bytes_per_s / MB:.3g} MB/s ({values.min():.3g} to {values.max():.3g})"
            f"{_again(scenario, bandwidth.duration_s)}"
        )
    if scenario.arrivals.kind == "trace":
        file = str(scenario.arrivals.file)
        arrivals = read_arrivals(file)
        count, (least, most) = _requests(arrivals)
        yield (
            f"read {find_trace(file, 'arrivals')}: arrivals, {format_of(file, 'arrivals')}; "
            f"{count:.9g} requests over {arrivals.period_s:.6g} s, mean "
            f"{count / arrivals.period_s:.3g} requests/s ({least:.6g} to {most:.6g} in a second)"
            f"{_again(scenario, arrivals.period_s)}"
        )


def _again(scenario: Scenario, length_s: float) -> str:
    """Say how often an episode plays a file that is so long, if it starts again."""
    times = scenario.duration_s / length_s
    return f"; played {times:.3g} times in {scenario.duration_s:g} s" if times > 1 else ""


def _requests(trace: EventTrace | CountTrace) -> tuple[float, tuple[float, float]]:
    """Return the number of requests, and the fewest and the most of them in one second."""
    if isinstance(trace, CountTrace):
        return float(trace.per_second.sum()), (trace.per_second.min(), trace.per_second.max())
    seconds, counts = np.unique(np.floor(trace.time_s), return_counts=True)
    quiet = seconds.size < np.floor(trace.time_s[-1]) + 1
    return trace.time_s.size, (0 if quiet else counts.min(), counts.max())


def warnings(scenario: Scenario, profile: Profile) -> Iterator[str]:
    """Say what of a scenario can hardly be meant, and what to do about it."""
    yield from _of_the_network(scenario)
    yield from _of_arrivals(scenario, profile)
    slo_s = max([scenario.slo_s, *(kind.slo_s for kind in scenario.classes)])
    if slo_s > MAX_SLO_S:
        yield f"slo_s = {slo_s:g} is over a minute: it is in seconds, not in milliseconds"
    workload = shared_workload(scenario, 0, profile)
    budget_s = workload.deadline_s - workload.arrival_s
    fastest_s = shortest_s(scenario, stage_profiles(scenario, profile))
    hopeless = np.mean(budget_s < fastest_s) if budget_s.size else 0
    if hopeless > MAX_HOPELESS:
        way_s = float(np.median(workload.arrival_s - workload.sent_s))
        yield (
            f"{hopeless:.0%} of the requests are hopeless: {scenario.mean_payload_bytes:.6g} bytes "
            f"take {way_s:.3g} s over the network ({scenario.network.trace}), of slo_s = "
            f"{scenario.slo_s:g}; check slo_s, network.payload_bytes and the unit of the bandwidth"
        )


def _of_the_network(scenario: Scenario) -> Iterator[str]:
    if (name := scenario.network.trace) in RESERVED:
        return
    trace: BandwidthTrace = read_bandwidth(name)
    mean = trace.mean_bytes_per_s / MB
    if not MIN_MB_PER_S <= mean <= MAX_MB_PER_S:
        yield (
            f"{name} has a mean bandwidth of {mean:.3g} MB/s: is its unit the one that its format "
            f"({format_of(name, 'bandwidth')}) has?"
        )
    apart_s = float(np.median(np.diff(trace.start_s))) if trace.start_s.size >= FEW else 0.0
    if apart_s > MAX_SAMPLE_GAP_S:
        yield (
            f"{name} has a sample every {apart_s:.6g} s: its times are in seconds, not in "
            "milliseconds"
        )


def _of_arrivals(scenario: Scenario, profile: Profile) -> Iterator[str]:
    arrivals = scenario.arrivals
    source, unit = f"scenario {scenario.name}", ""
    if arrivals.kind == "trace":
        source, unit = str(arrivals.file), "; its times are in seconds, not in milliseconds"
        trace = read_arrivals(source)
        times_s = trace.time_s if isinstance(trace, EventTrace) else np.zeros(0)
        if times_s.size >= FEW and np.all(times_s == np.floor(times_s)):
            yield f"{source} has whole numbers only{unit}"
    rate = rate_rps(scenario, profile)
    if rate < MIN_RPS:
        yield f"{source} has one request in {1 / rate:.3g} s{unit}; --rate or --load scales it"
    one_rps, all_rps = (capacity_rps(scenario, profile, joint) for joint in (False, True))
    cores, machine = scenario.limits.cores, scenario.limits.machine_cores
    if scenario.stages and rate > all_rps:  # whose replicas are meant to be several
        yield (
            f"{source} has {rate:.4g} requests/s, more than the {all_rps:.3g} that "
            f"{scenario.cell[1]} can serve on {machine} cores; --rate {0.6 * all_rps:.3g} scales it"
        )
    elif not scenario.stages and rate > one_rps:
        yield (
            f"{source} has {rate:.4g} requests/s, more than the {one_rps:.3g} that "
            f"{scenario.cell[1]} can serve in one replica of {cores} cores (in replicas on "
            f"{machine} cores: "
            f"{all_rps:.3g}); --load 0.6 or --rate {0.6 * one_rps:.3g} scales it"
        )
