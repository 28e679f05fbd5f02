"""From scenarios to the arrivals and the bandwidth that the core draws and reads."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sponge_env.config import Arrivals
from sponge_env.core.records import SAMPLE
from sponge_env.core.settings import (
    BURSTY,
    CONSTANT,
    DIURNAL,
    FIXED,
    FLASH_CROWD,
    GENERATED,
    INSTANT,
    POISSON,
    RECORDED,
    SHIFTED,
)
from sponge_env.errors import ConfigError, TraceError
from sponge_env.formats import (
    BandwidthTrace,
    CountTrace,
    EventTrace,
    read_arrivals,
    read_bandwidth,
)
from sponge_env.profile import Profile
from sponge_env.scenario import Scenario
from sponge_env.simulation.memory import Pool

_KINDS = {
    "poisson": POISSON,
    "constant": CONSTANT,
    "bursty": BURSTY,
    "flash-crowd": FLASH_CROWD,
    "diurnal": DIURNAL,
    "trace": RECORDED,
}


MOST_REQUESTS = 10_000_000
"""Requests of one episode; each takes a few hundred bytes."""


class Traffic:
    """Traces of all scenarios, and the room that drawing from them takes."""

    def __init__(self, numbers: Pool) -> None:
        """Start without any.

        Args:
            numbers: Where tables go.
        """
        self.traces = Pool(SAMPLE)
        """Recorded bandwidth."""
        self.group_size = 1
        """Most requests in a group of recorded arrivals."""
        self.private_rows = 0
        """Rows of bandwidth that each environment needs for itself."""
        self._numbers = numbers

    def add(self, row: Any, scenario: Scenario, profile: Profile) -> None:
        """Write a scenario's arrivals and network into its settings.

        Args:
            row: A record of :class:`~sponge_env.core.settings.Settings` that has the
                scenario's tables.
            scenario: As long as its traces.
            profile: Says how much a load is.

        Raises:
            TraceError: A trace cannot be used.
        """
        self._add_network(row, scenario)
        self._add_arrivals(row, scenario, profile)

    def _add_network(self, row: Any, scenario: Scenario) -> None:
        network = scenario.network
        row["network_kind"] = INSTANT
        if network.trace == "4g":
            samples = math.ceil(scenario.duration_s)
            row["network_kind"], row["samples"], row["trace_s"] = GENERATED, samples, samples
        elif network.trace != "none":
            trace = read_bandwidth(network.trace)
            if math.isfinite(trace.mean_bytes_per_s):
                self._add_trace(row, trace)
                row["network_kind"] = FIXED if network.start == "beginning" else SHIFTED
        if scenario.mean_payload_bytes == 0:
            row["network_kind"] = INSTANT
        own_rows = {GENERATED: row["samples"] + 1, SHIFTED: row["samples"] + 2}
        self._add_fades(row, scenario, own_rows.get(int(row["network_kind"]), 0))

    def _add_fades(self, row: Any, scenario: Scenario, own_rows: int) -> None:
        """Add fades, if any, and make room for the traces that environments make.

        Fades fall anew on each lap of a trace that is shorter than the episode.

        Args:
            row: Settings; the network without fades is there already.
            scenario: Says how the bandwidth fades.
            own_rows: Rows that the trace without fades takes in an environment's own part.
        """
        every_s = scenario.network.fade_every_s
        if every_s is not None and row["network_kind"] != INSTANT:
            laps = max(1, math.ceil(scenario.duration_s / row["trace_s"]))
            row["trace_s"] *= laps
            row["faded"], row["faded_at"], row["fade_every_s"] = True, own_rows, every_s
            edges = 2 * math.ceil(row["trace_s"] / every_s) + 2
            own_rows += laps * (row["samples"] + 1) + edges + 1
        self.private_rows = max(self.private_rows, int(own_rows))

    def _add_trace(self, row: Any, trace: BandwidthTrace) -> None:
        samples = np.zeros(trace.start_s.size + 1, SAMPLE)
        samples["start_s"] = np.append(trace.start_s, trace.duration_s)
        samples["bandwidth"] = np.append(trace.bandwidth_bytes_per_s, 0.0)
        samples["cumulative"] = trace.cumulative_bytes
        row["trace_at"] = self.traces.add(samples)
        row["samples"], row["trace_s"] = trace.start_s.size, trace.duration_s

    def _add_arrivals(self, row: Any, scenario: Scenario, profile: Profile) -> None:
        arrivals, duration_s = scenario.arrivals, scenario.duration_s
        rate = rate_rps(scenario, profile)
        row["arrival_kind"] = _KINDS[arrivals.kind]
        row["rate_rps"], row["sent_before_s"] = rate, duration_s
        if arrivals.kind == "constant":
            row["requests"] = math.ceil(duration_s * rate)
        elif arrivals.kind == "bursty":
            rates_rps = _burst_rates_rps(arrivals, rate)
            row["states"], row["rates_at"] = len(rates_rps), self._numbers.add(rates_rps)
        elif arrivals.kind == "flash-crowd":
            outside_rps, within_rps = _flash_rates_rps(arrivals, rate)
            row["states"] = 3
            row["rates_at"] = self._numbers.add([outside_rps, within_rps, outside_rps])
        elif arrivals.kind == "trace":
            self._add_recorded(row, read_arrivals(str(arrivals.file)), duration_s, arrivals)

    def _add_recorded(
        self, row: Any, trace: EventTrace | CountTrace, duration_s: float, arrivals: Arrivals
    ) -> None:
        """Add arrivals as groups of requests that lie anywhere in a stretch of time.

        That is one group for each second of counted requests, and one for each request of a
        trace with exact times. With a rate, each group's size is rounded up or down at random
        so that this is the mean rate; the first copy of a request with an exact time keeps
        its time, further ones lie anywhere before the next request.

        Raises:
            TraceError: The trace has no request in the episode.
        """
        start_s: NDArray[Any]
        rate = arrivals.rate_rps
        if isinstance(trace, EventTrace):
            start_s = trace.recorded_s(duration_s)
            length_s = np.diff(start_s, append=duration_s)
            mean = 1.0 if rate is None else rate * duration_s / max(1, start_s.size)
            counts = np.full(start_s.size, mean)
            row["keeps_first"], row["sent_before_s"] = True, np.inf
        else:
            counts = trace.recorded(duration_s)
            start_s, length_s = np.arange(counts.size), np.ones(counts.size)
            if rate is not None and counts.any():
                counts = counts * (rate / np.mean(counts))
        if not counts.any():
            raise nothing_sent(arrivals, duration_s)
        row["rounded"], row["groups"] = rate is not None, start_s.size
        row["group_start_at"] = self._numbers.add(start_s)
        row["group_length_at"] = self._numbers.add(length_s)
        row["group_count_at"] = self._numbers.add(counts)
        self.group_size = max(self.group_size, math.floor(counts.max()) + 1)


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
    return read_arrivals(str(arrivals.file)).mean_rps(scenario.duration_s)


def nothing_sent(arrivals: Arrivals, duration_s: float) -> TraceError:
    """Say that an arrival trace has no request in the episode."""
    return TraceError(
        f"{arrivals.file} has no request in its first {duration_s:g} s; cut its start off"
    )


def _burst_rates_rps(arrivals: Arrivals, rate_rps: float) -> list[float]:
    """Return the rate of each state of the ``bursty`` process."""
    factors = arrivals.burst_factors
    return [rate_rps * factor * len(factors) / sum(factors) for factor in factors]


def _flash_rates_rps(arrivals: Arrivals, rate_rps: float) -> tuple[float, float]:
    """Return the rates outside and within a flash crowd, whose mean is ``rate_rps``."""
    share = arrivals.flash_s / arrivals.flash_every_s
    outside_rps = rate_rps / (1.0 + (arrivals.flash_factor - 1.0) * share)
    return outside_rps, outside_rps * arrivals.flash_factor
