"""The requests of an episode: when they are sent, when they arrive, and their deadlines."""

from __future__ import annotations

import dataclasses
import itertools
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from reference.arrival_processes import bursty_s, diurnal_s, flash_crowd_s, poisson_s
from reference.arrival_traces import CountTrace, EventTrace
from reference.network import RESERVED, make_network, recorded_trace
from reference.requests import Request
from reference.seeding import stream

from sponge_env.arrays import FloatArray
from sponge_env.config import Arrivals
from sponge_env.errors import ConfigError, TraceError
from sponge_env.formats import Counts, find_trace, read_arrivals
from sponge_env.profile import Profile
from sponge_env.scenario import Scenario

_PROCESSES = {"bursty": bursty_s, "flash-crowd": flash_crowd_s, "diurnal": diurnal_s}
"""Arrivals at a rate that varies."""

MOST_REQUESTS = 10_000_000
"""Requests of one episode; each takes a few hundred bytes."""


@dataclass(frozen=True, eq=False)
class Workload:
    """The requests of one episode as arrays, by (arrival_s, id)."""

    id: NDArray[np.int64]
    """(n,) their numbers in the order in which they are sent."""
    sent_s: FloatArray
    """(n,) when each is sent."""
    arrival_s: FloatArray
    """(n,) when each has reached the server, ascending."""
    deadline_s: FloatArray
    """(n,) when each must be answered."""
    payload_bytes: FloatArray
    """(n,) size of each."""


def load_arrivals(path: str | Path) -> EventTrace | CountTrace:
    """Load an arrival trace in any known format, told by its content.

    Raises:
        TraceError: The file cannot be read, is in no known format, or a line is bad.
    """
    content = read_arrivals(path)
    try:
        if isinstance(content, Counts):
            return CountTrace(content.per_second)
        return EventTrace(content.time_s)
    except TraceError as error:
        raise TraceError(f"{path}: {error}") from None


def rate_rps(scenario: Scenario, profile: Profile) -> float:
    """Return the mean rate of requests in a scenario.

    A load is taken of the profile's largest throughput within the scenario's limits; a
    trace has the rate of its part that the episode plays.

    Raises:
        TraceError: The arrival trace cannot be used.
        ConfigError: An episode would have more requests than fit into memory.
    """
    rate, arrivals = _rate_rps(scenario, profile), scenario.arrivals
    if rate * scenario.duration_s > MOST_REQUESTS:
        source = arrivals.file if arrivals.kind == "trace" else scenario.name
        raise ConfigError(
            f"{source} has {rate * scenario.duration_s:.3g} requests in {scenario.duration_s:g} s, "
            f"more than the {MOST_REQUESTS} that an episode can; set a lower arrivals.rate_rps, "
            "which thins a trace as well"
        )
    return rate


def _rate_rps(scenario: Scenario, profile: Profile) -> float:
    arrivals, limits = scenario.arrivals, scenario.limits
    if arrivals.rate_rps is not None:
        return arrivals.rate_rps
    if arrivals.load is not None:
        return arrivals.load * profile.capacity_rps(limits.batch, limits.cores)
    return _trace(arrivals).mean_rps(scenario.duration_s)


def send_times_s(
    arrivals: Arrivals, rate_rps: float, duration_s: float, rng: np.random.Generator
) -> FloatArray:
    """Return when requests are sent.

    Args:
        arrivals: The process.
        rate_rps: Mean rate. Kind ``trace`` keeps its own unless ``arrivals`` sets one.
        duration_s: Requests are sent from 0 until just before this.
        rng: Source of uniforms.

    Returns:
        (n,) ascending.

    Raises:
        TraceError: The arrival trace cannot be used or has no request in the episode.
    """
    if arrivals.kind == "poisson":
        return poisson_s(rate_rps, duration_s, rng)
    if arrivals.kind == "constant":
        time_s = np.arange(math.ceil(duration_s * rate_rps)) / rate_rps
        return time_s[time_s < duration_s]
    if arrivals.kind in _PROCESSES:
        return _PROCESSES[arrivals.kind](arrivals, rate_rps, duration_s, rng)
    time_s = _trace(arrivals).send_times_s(duration_s, arrivals.rate_rps, rng)
    if time_s.size == 0:
        raise TraceError(
            f"{arrivals.file} has no request in its first {duration_s:g} s; cut its start off"
        )
    return time_s


def _trace(arrivals: Arrivals) -> EventTrace | CountTrace:
    return load_arrivals(find_trace(str(arrivals.file), "arrivals"))


def as_long_as_its_traces(scenario: Scenario) -> Scenario:
    """Return the scenario, ending with its shortest trace file if it says so.

    Raises:
        TraceError: A trace cannot be used.
        ConfigError: A trace is shorter than one interval.
    """
    if scenario.short_trace == "wrap":
        return scenario
    lengths_s = [scenario.duration_s]
    if scenario.network.trace not in RESERVED:
        lengths_s.append(recorded_trace(scenario.network).duration_s)
    if scenario.arrivals.kind == "trace":
        lengths_s.append(_trace(scenario.arrivals).period_s)
    return dataclasses.replace(scenario, duration_s=min(lengths_s))


def make_workload(scenario: Scenario, profile: Profile, seed: int) -> Workload:
    """Draw the requests of one episode.

    They are sent over ``[0, duration_s)`` and numbered in that order. A request arrives
    when its transfer ends, plus the base delay; those that arrive after the episode's
    end are included.

    Args:
        scenario: As long as its traces, see :func:`as_long_as_its_traces`.
        profile: Says how much a load is.
        seed: Seed of the episode.

    Raises:
        TraceError: The arrival or the bandwidth trace cannot be used.
    """
    rate = rate_rps(scenario, profile)
    rng = stream(seed, "arrivals")
    sent_s = send_times_s(scenario.arrivals, rate, scenario.duration_s, rng)
    slo_s, payload_bytes = _classes(scenario, sent_s.size, seed)
    transferred_s = make_network(scenario, seed).arrival_s(sent_s, payload_bytes)
    arrival_s = transferred_s + scenario.network.base_delay_s
    # Transfers held up by the same outage end at the same moment; rounding must not make
    # a later one of the same size arrive earlier.
    for size in np.unique(payload_bytes):
        alike = payload_bytes == size
        arrival_s[alike] = np.maximum.accumulate(arrival_s[alike])
    order = np.argsort(arrival_s, kind="stable")
    return Workload(
        id=order,
        sent_s=sent_s[order],
        arrival_s=arrival_s[order],
        deadline_s=(sent_s + slo_s)[order],
        payload_bytes=payload_bytes[order],
    )


def make_requests(scenario: Scenario, profile: Profile, seed: int) -> tuple[Request, ...]:
    """Return the requests of :func:`make_workload`, one object each."""
    workload = make_workload(scenario, profile, seed)
    columns = (getattr(workload, f.name).tolist() for f in dataclasses.fields(workload))
    return tuple(itertools.starmap(Request, zip(*columns, strict=True)))


def _classes(scenario: Scenario, count: int, seed: int) -> tuple[FloatArray, FloatArray]:
    """Draw the class of each request, with one uniform each in the order of sending.

    Returns:
        (count,) SLOs in seconds and (count,) payloads in bytes.
    """
    network, kinds = scenario.network, scenario.classes
    if not kinds:
        return np.full(count, scenario.slo_s), np.full(count, network.payload_bytes)
    ends = np.cumsum([kind.share for kind in kinds])
    drawn = stream(seed, "classes").random(count) * ends[-1]
    # Rounding may lift the largest product onto the last end.
    which = np.minimum(np.searchsorted(ends, drawn, side="right"), len(kinds) - 1)
    slo_s = np.array([kind.slo_s for kind in kinds])
    payload_bytes = np.array([kind.payload_bytes for kind in kinds])
    return slo_s[which], payload_bytes[which]
