"""A line about each file that scenarios read, and warnings of values that look absurd.

``traces/README.md`` lists the warnings.
"""

import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sponge_env import formats
from sponge_env.errors import SpongeError
from sponge_env.formats import RESERVED, Content, CountTrace
from sponge_env.scenario.profile import Profile
from sponge_env.scenario.scenario import Scenario
from sponge_env.scenario.spec import make_spec, scenario_profile, stage_profiles
from sponge_env.simulation.configuration import shortest_s
from sponge_env.simulation.traffic import capacity_rps, nothing_sent, rate_rps, record_bytes
from sponge_env.simulation.workload import draw_workload

MB = 1e6
MIN_MB_PER_S, MAX_MB_PER_S = 0.01, 1000.0  # Mean bandwidths of any network that serves
MIN_RPS = 0.1  # Mean rate below which an episode says little
MUCH_GB = 1.0  # Memory of an episode that a user should know of
MAX_HOPELESS = 0.9  # Share of hopeless requests
MAX_SAMPLE_GAP_S, MAX_SLO_S = 30.0, 60.0  # Median time between a trace's samples; longest SLO
MAX_BEGINNING = 1 / 2  # Share of an episode that three cold starts may take
PLAYED_ONCE = 0.005  # Share by which an episode and a file that it plays once may differ
FEW = 10  # Samples or requests below which a file was written by hand
IN_MS = "are its times in milliseconds, not in seconds?"


def announce(scenarios: Sequence[Scenario]) -> list[str]:
    """Warn of what is absurd on standard error; return a line for each file that is read."""
    read, warned = dict[str, None](), dict[str, None]()
    for scenario in scenarios:
        with suppress(SpongeError):
            read |= dict.fromkeys(files_read(scenario))
            warned |= dict.fromkeys(warnings(scenario, scenario_profile(scenario)))
    for warning in warned:
        sys.stderr.write(f"warning: {warning}\n")
    return list(read)


def beginnings(scenarios: Sequence[Scenario]) -> list[str]:
    """Return notes on scenarios whose episodes are mostly cold start."""
    found = dict[str, None]()
    for scenario in scenarios:
        with suppress(SpongeError):
            spec = make_spec(scenario, scenario_profile(scenario))
            cold_s = max(stage.cold_start_s for stage in spec.stages)
            lasts_s = scenario.duration_s
            if scenario.start == "cold" and 3 * cold_s > MAX_BEGINNING * lasts_s:
                beside = f"{lasts_s:g} s are little beside cold starts of {cold_s:.3g} s"
                found[f"{beside}: the result is mostly that of the beginning"] = None
    return list(found)


def replayed(scenarios: Sequence[Scenario], seeds: int) -> dict[str, str]:
    """Return, by name, notes on scenarios whose files give all seeds the same requests."""
    found: dict[str, str] = {}
    for scenario in scenarios if seeds > 1 else ():
        with suppress(SpongeError):
            if any(files_read(scenario)) and _alike(scenario, scenario_profile(scenario)):
                said = f"every seed has the same requests in {scenario.name}: one seed says as much"
                offer = '; --random-start (in a suite: network.start = "random") draws starts'
                found[scenario.name] = said + offer * (scenario.network.trace not in RESERVED)
    return found


def _alike(scenario: Scenario, profile: Profile) -> bool:
    one, other = (draw_workload(scenario, profile, seed) for seed in (0, 1))
    columns = one.first(one.id.size), other.first(other.id.size)
    return all(np.array_equal(columns[0][name], columns[1][name]) for name in columns[0])


def files_read(scenario: Scenario) -> Iterator[str]:
    """Describe each trace file that a scenario plays: format, samples, duration, mean, range."""
    if (name := scenario.network.trace) not in RESERVED:
        bandwidth = formats.read_bandwidth(name)
        values = bandwidth.bandwidth_bytes_per_s / MB
        text = f"{values.size} samples over {bandwidth.duration_s:.6g} s, mean "
        text += f"{bandwidth.mean_bytes_per_s / MB:.3g} MB/s "
        text += f"({values.min():.3g} to {values.max():.3g})"
        yield _described(scenario, name, "bandwidth", text, bandwidth.duration_s)
    if scenario.arrivals.kind == "trace":
        file = str(scenario.arrivals.file)
        trace = formats.read_arrivals(file)
        per_second: NDArray[Any]
        if isinstance(trace, CountTrace):
            count, per_second = float(trace.per_second.sum()), trace.per_second
        else:
            seconds, counts = np.unique(np.floor(trace.time_s), return_counts=True)
            quiet = bool(seconds.size < np.floor(trace.time_s[-1]) + 1)
            count, per_second = trace.time_s.size, np.append(counts, [0] * quiet)
        text = f"{count:.9g} requests over {trace.period_s:.6g} s, mean "
        text += f"{count / trace.period_s:.3g} requests/s "
        text += f"({per_second.min():.6g} to {per_second.max():.6g} in a second)"
        yield _described(scenario, file, "arrivals", text, trace.period_s)


def _described(scenario: Scenario, name: str, content: Content, text: str, length_s: float) -> str:
    """Say what a file is, what is in it, and whether an episode repeats it or plays a part."""
    times, played = scenario.duration_s / length_s, ""
    if times > 1 + PLAYED_ONCE:
        played = f"; played {times:.3g} times in {scenario.duration_s:g} s"
    elif times < 1 - PLAYED_ONCE:
        played = f"; only {scenario.duration_s:g} s of it are played (--duration, duration_s)"
    path, form = formats.find_trace(name, content), formats.format_of(name, content)
    return f"read {path}: {content}, {form}; {text}{played}"


def warnings(scenario: Scenario, profile: Profile) -> Iterator[str]:
    """Say which values of a scenario can hardly be meant, and what to do about them."""
    yield from _of_the_network(scenario.network.trace)
    yield from _of_arrivals(scenario, profile)
    slo_s = max([scenario.slo_s, *(kind.slo_s for kind in scenario.classes)])
    if slo_s > MAX_SLO_S:
        yield f"slo_s = {slo_s:g} is over a minute: is it in milliseconds, not in seconds?"
    workload = draw_workload(scenario, profile, 0)
    budget_s = workload.deadline_s - workload.arrival_s
    profiles = stage_profiles(scenario, profile)
    fastest_s = np.array([shortest_s(scenario, profiles, k) for k in range(len(profiles))])
    hopeless = np.mean(budget_s < fastest_s[workload.enters]) if budget_s.size else 0
    if hopeless > MAX_HOPELESS:
        way_s = float(np.median(workload.arrival_s - workload.sent_s))
        yield (
            f"{hopeless:.0%} of the requests are hopeless: {scenario.mean_payload_bytes:.6g} bytes "
            f"take {way_s:.3g} s over the network ({scenario.network.trace}), of slo_s = "
            f"{scenario.slo_s:g}; check slo_s, network.payload_bytes and the unit of the bandwidth"
        )


def _of_the_network(name: str) -> Iterator[str]:
    if name in RESERVED:
        return
    trace = formats.read_bandwidth(name)
    mean = trace.mean_bytes_per_s / MB
    if not MIN_MB_PER_S <= mean <= MAX_MB_PER_S:
        yield (
            f"{name} has a mean bandwidth of {mean:.3g} MB/s: is its unit the one that its format "
            f"({formats.format_of(name, 'bandwidth')}) has?"
        )
    apart_s = float(np.median(np.diff(trace.start_s))) if trace.start_s.size >= FEW else 0.0
    if apart_s > MAX_SAMPLE_GAP_S:
        yield f"{name} has a sample every {apart_s:.6g} s: {IN_MS}"


def _of_arrivals(scenario: Scenario, profile: Profile) -> Iterator[str]:
    source, hint, whole = f"scenario {scenario.name}", "", False
    if scenario.arrivals.kind == "trace":
        source, hint = str(scenario.arrivals.file), f"; {IN_MS}"
        trace = formats.read_arrivals(source)
        times_s = getattr(trace, "time_s", np.zeros(0))
        whole = times_s.size >= FEW and bool(np.all(times_s == np.floor(times_s)))
        if isinstance(trace, CountTrace) and formats.recorded.only_rises(trace):
            yield f"{source} never falls: if it has times, they need the header arrival_s"
    rate = rate_rps(scenario, profile)
    if (needed_gb := record_bytes(scenario, rate) / 1e9) > MUCH_GB:
        yield (
            f"an episode of {source} takes about {needed_gb:.2g} GB of memory, for it keeps "
            f"{rate * scenario.duration_s:.2g} requests and {scenario.intervals} intervals"
        )
    if not rate:
        raise nothing_sent(source, scenario.duration_s)
    if rate < MIN_RPS:
        yield f"{source} has one request in {1 / rate:.3g} s; --rate or --load scales it{hint}"
    elif whole:
        yield f"{source} has whole numbers only{hint}"
    one_rps, all_rps = (capacity_rps(scenario, profile, joint) for joint in (False, True))
    limits = scenario.limits
    most_rps, where, load = all_rps, f"on {limits.machine_cores} cores", ""
    if not scenario.stages and scenario.arrivals.peak is None:  # of which one replica may do
        most_rps, load = one_rps, "--load 0.6 or "
        where = f"in one replica of {limits.cores} cores (in replicas {where}: {all_rps:.3g})"
    if rate > most_rps and not scenario.models:
        yield (
            f"{source} has {rate:.4g} requests/s as played, more than the {most_rps:.3g} that "
            f"{scenario.cell[1]} can serve {where}; {load}--rate {0.6 * most_rps:.3g} scales it"
        )
