"""From scenarios to the arrivals and the bandwidth that kernels draw and read."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sponge_env.arrival_processes import burst_rates_rps, flash_rates_rps
from sponge_env.arrival_traces import CountTrace, EventTrace
from sponge_env.bandwidth import BandwidthTrace
from sponge_env.formats import find_trace
from sponge_env.network import recorded_trace
from sponge_env.profile import Profile
from sponge_env.scenario import Scenario
from sponge_env.seeding import stream
from sponge_env.vector.layout import SAMPLE
from sponge_env.vector.pool import Pool
from sponge_env.vector.settings import (
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
from sponge_env.workload import load_arrivals, rate_rps, send_times_s

_KINDS = {
    "poisson": POISSON,
    "constant": CONSTANT,
    "bursty": BURSTY,
    "flash-crowd": FLASH_CROWD,
    "diurnal": DIURNAL,
    "trace": RECORDED,
}


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
            row: A record of :class:`~sponge_env.vector.settings.Settings`.
            scenario: As long as its traces.
            profile: Says how much a load is.

        Raises:
            TraceError: A trace cannot be used.
        """
        self._add_network(row, scenario)
        self._add_arrivals(row, scenario, profile)

    def _add_network(self, row: Any, scenario: Scenario) -> None:
        network = scenario.network
        row["payload_bytes"] = network.payload_bytes
        row["network"] = INSTANT
        if network.trace == "4g":
            samples = math.ceil(scenario.duration_s)
            row["network"], row["samples"], row["trace_s"] = GENERATED, samples, samples
        elif network.trace != "none":
            trace = recorded_trace(network)
            if math.isfinite(trace.mean_bytes_per_s):
                self._add_trace(row, trace)
                row["network"] = FIXED if network.start == "beginning" else SHIFTED
        if network.payload_bytes == 0:
            row["network"] = INSTANT
        own_rows = {GENERATED: row["samples"] + 1, SHIFTED: row["samples"] + 2}
        self._add_fades(row, scenario, own_rows.get(int(row["network"]), 0))

    def _add_fades(self, row: Any, scenario: Scenario, own_rows: int) -> None:
        """Add fades, if any, and make room for the traces that environments make.

        Args:
            row: Settings; the network without fades is there already.
            scenario: Says how the bandwidth fades.
            own_rows: Rows that the trace without fades takes in an environment's own part.
        """
        network = scenario.network
        if network.fade_every_s is not None and row["network"] != INSTANT:
            laps = max(1, math.ceil(scenario.duration_s / row["trace_s"]))
            row["trace_s"] *= laps
            row["faded"], row["faded_at"] = True, own_rows
            row["fade_every_s"] = network.fade_every_s
            row["fade_s"], row["fade_depth"] = network.fade_s, network.fade_depth
            edges = 2 * math.ceil(row["trace_s"] / network.fade_every_s) + 2
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
        row["arrivals"] = _KINDS[arrivals.kind]
        row["rate_rps"], row["sent_before_s"] = rate, duration_s
        if arrivals.kind == "constant":
            row["requests"] = math.ceil(duration_s * rate)
        elif arrivals.kind == "bursty":
            rates_rps = burst_rates_rps(arrivals, rate)
            row["states"], row["dwell_s"] = len(rates_rps), arrivals.burst_dwell_s
            row["rates_at"] = self._numbers.add(rates_rps)
        elif arrivals.kind == "flash-crowd":
            outside_rps, within_rps = flash_rates_rps(arrivals, rate)
            row["states"] = 3
            row["rates_at"] = self._numbers.add([outside_rps, within_rps, outside_rps])
            row["flash_s"], row["flash_every_s"] = arrivals.flash_s, arrivals.flash_every_s
        elif arrivals.kind == "diurnal":
            row["diurnal_amplitude"] = arrivals.diurnal_amplitude
            row["diurnal_period_s"] = arrivals.diurnal_period_s
        elif arrivals.kind == "trace":
            # It finds whatever is wrong with the trace.
            send_times_s(arrivals, rate, duration_s, stream(0, "arrivals"))
            trace = load_arrivals(find_trace(str(arrivals.file), "arrivals"))
            self._add_recorded(row, trace, duration_s, arrivals.rate_rps)

    def _add_recorded(
        self, row: Any, trace: EventTrace | CountTrace, duration_s: float, rate: float | None
    ) -> None:
        """Add arrivals as groups of requests that lie anywhere in a stretch of time.

        That is one group for each second of counted requests, and one for each request
        of a trace with exact times.
        """
        start_s: NDArray[Any]
        if isinstance(trace, EventTrace):
            start_s = trace.send_times_s(duration_s, None, stream(0, "arrivals"))
            length_s = np.diff(start_s, append=duration_s)
            mean = 1.0 if rate is None else rate * duration_s / start_s.size
            counts = np.full(start_s.size, mean)
            row["keeps_first"], row["sent_before_s"] = True, np.inf
        else:
            counts = np.resize(trace.per_second, math.ceil(duration_s))
            start_s, length_s = np.arange(counts.size), np.ones(counts.size)
            if rate is not None:
                counts = counts * (rate / np.mean(counts))
        row["rounded"], row["groups"] = rate is not None, start_s.size
        row["group_start_at"] = self._numbers.add(start_s)
        row["group_length_at"] = self._numbers.add(length_s)
        row["group_count_at"] = self._numbers.add(counts)
        self.group_size = max(self.group_size, math.floor(counts.max()) + 1)
