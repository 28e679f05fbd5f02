"""When requests are sent, and the requests with their deadlines.

Random send times use only the uniforms of ``rng.random()`` and the C library's log
(:func:`math.log`), in the order each function documents, so that compiled code can
continue the stream bit for bit.
"""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sponge_env.arrival_traces import CountTrace, EventTrace
from sponge_env.config import Arrivals
from sponge_env.errors import TraceError
from sponge_env.formats import Counts, find_trace, read_arrivals
from sponge_env.interfaces import Request
from sponge_env.network import RESERVED, make_network
from sponge_env.profile import Profile
from sponge_env.scenario import Scenario
from sponge_env.seeding import stream

FloatArray = NDArray[np.float64]


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
    """
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
        return _poisson_s(rate_rps, duration_s, rng)
    if arrivals.kind == "constant":
        time_s = np.arange(math.ceil(duration_s * rate_rps)) / rate_rps
        return time_s[time_s < duration_s]
    if arrivals.kind == "bursty":
        return _bursty_s(arrivals, rate_rps, duration_s, rng)
    time_s = _trace(arrivals).send_times_s(duration_s, arrivals.rate_rps, rng)
    if time_s.size == 0:
        raise TraceError(
            f"{arrivals.file} has no request in its first {duration_s:g} s; cut its start off"
        )
    return time_s


def _trace(arrivals: Arrivals) -> EventTrace | CountTrace:
    return load_arrivals(find_trace(str(arrivals.file), "arrivals"))


def _exponential(rng: np.random.Generator) -> float:
    """Draw from the exponential distribution of mean 1, from one uniform in [0, 1)."""
    return -math.log(1.0 - rng.random())


def _poisson_s(rate_rps: float, duration_s: float, rng: np.random.Generator) -> FloatArray:
    """Draw a Poisson process; one uniform per gap, the gap past the end included."""
    times_s = []
    time_s = _exponential(rng) / rate_rps
    while time_s < duration_s:
        times_s.append(time_s)
        time_s += _exponential(rng) / rate_rps
    return np.array(times_s, dtype=np.float64)


def _bursty_s(
    arrivals: Arrivals, rate_rps: float, duration_s: float, rng: np.random.Generator
) -> FloatArray:
    """Draw a Markov-modulated Poisson process whose states last equally long on average.

    Uniforms: first state, its dwell, and one for each gap; where a state ends within a
    gap, next state and its dwell. A gap is drawn as the number of requests expected in
    it, so the rest of it carries over into the next state.
    """
    factors = arrivals.burst_factors
    rates_rps = [rate_rps * factor * len(factors) / sum(factors) for factor in factors]
    state = int(rng.random() * len(factors))
    ends_s = arrivals.burst_dwell_s * _exponential(rng)
    time_s, times_s = 0.0, []
    while time_s < duration_s:
        expected = _exponential(rng)
        while expected >= rates_rps[state] * (ends_s - time_s):
            expected -= rates_rps[state] * (ends_s - time_s)
            time_s = ends_s
            state = (state + 1 + int(rng.random() * (len(factors) - 1))) % len(factors)
            ends_s += arrivals.burst_dwell_s * _exponential(rng)
        time_s += expected / rates_rps[state]
        times_s.append(time_s)
    return np.array(times_s[:-1], dtype=np.float64)


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
        lengths_s.append(make_network(scenario, seed=0).duration_s)
    if scenario.arrivals.kind == "trace":
        lengths_s.append(_trace(scenario.arrivals).period_s)
    return dataclasses.replace(scenario, duration_s=min(lengths_s))


def make_requests(scenario: Scenario, profile: Profile, seed: int) -> tuple[Request, ...]:
    """Return the requests of one episode.

    They are sent over ``[0, duration_s)`` and numbered in that order. A request arrives
    when its transfer ends, plus the base delay; those that arrive after the episode's
    end are included.

    Returns:
        Requests by (arrival_s, id).

    Raises:
        TraceError: The arrival or the bandwidth trace cannot be used.
    """
    network = scenario.network
    rate = rate_rps(scenario, profile)
    rng = stream(seed, "arrivals")
    sent_s = send_times_s(scenario.arrivals, rate, scenario.duration_s, rng)
    transferred_s = make_network(scenario, seed).arrival_s(sent_s, network.payload_bytes)
    # Transfers held up by the same outage end at the same moment; rounding must not make
    # a later one arrive earlier.
    arrival_s = np.maximum.accumulate(transferred_s + network.base_delay_s)
    deadline_s = sent_s + scenario.slo_s
    times_s = zip(sent_s.tolist(), arrival_s.tolist(), deadline_s.tolist(), strict=True)
    requests = (Request(i, *times, network.payload_bytes) for i, times in enumerate(times_s))
    return tuple(sorted(requests, key=lambda request: request.arrival_s))
