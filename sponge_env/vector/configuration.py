"""From scenarios to the arrays that kernels read."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sponge_env.arrival_traces import CountTrace, EventTrace
from sponge_env.encoding import capacity_rps
from sponge_env.errors import ConfigError
from sponge_env.factory import make_spec, scenario_profile
from sponge_env.formats import find_trace
from sponge_env.interfaces import SystemSpec
from sponge_env.network import BandwidthTrace, load_bandwidth_trace
from sponge_env.profile import Profile
from sponge_env.scenario import Scenario
from sponge_env.seeding import stream
from sponge_env.vector.layout import (
    BURSTY,
    CONSTANT,
    FIXED,
    GENERATED,
    INSTANT,
    POISSON,
    RECORDED,
    SAMPLE,
    SETTINGS,
    SHIFTED,
)
from sponge_env.workload import as_long_as_its_traces, load_arrivals, rate_rps, send_times_s

_KINDS = {"poisson": POISSON, "constant": CONSTANT, "bursty": BURSTY, "trace": RECORDED}


class Pool:
    """Arrays one after the other in one array; equal ones are kept once."""

    def __init__(self, dtype: Any) -> None:
        self._dtype = dtype
        self._begins: dict[bytes, int] = {}
        self._parts: list[NDArray[Any]] = [np.zeros(1, dtype)]
        self._size = 1

    @property
    def array(self) -> NDArray[Any]:
        """(rows,) all of them, after one empty row."""
        return np.concatenate(self._parts)

    def add(self, values: ArrayLike) -> int:
        """Add an array; return where it begins."""
        part = np.ravel(np.asarray(values, self._dtype))
        key = part.tobytes()
        if key not in self._begins:
            self._begins[key] = self._size
            self._parts.append(part)
            self._size += part.size
        return self._begins[key]


class Configuration:
    """Scenarios side by side: one row of settings each, tables and traces shared."""

    def __init__(self, scenarios: Sequence[Scenario], replicas_max: int) -> None:
        """Read the scenarios' profiles and traces.

        Args:
            scenarios: Interval and limits must be the same in all.
            replicas_max: Most replicas that an allocation asks for.

        Raises:
            SpongeError: A scenario cannot be used, or not beside the others.
        """
        _check_alike(scenarios)
        self.settings = np.zeros(len(scenarios), SETTINGS)
        """(scenarios,) records of :class:`~sponge_env.vector.layout.Settings`."""
        self.specs: list[SystemSpec] = []
        """(scenarios,) what controllers may know."""
        self.numbers = Pool(np.float64)
        """Tables."""
        self.traces = Pool(SAMPLE)
        """Recorded bandwidth."""
        self.group_size = 1
        """Most requests in a group of recorded arrivals."""
        self.private_rows = 0
        """Rows of bandwidth that each environment needs for itself."""
        self.replica_slots = 1
        """Most replicas at one time, draining ones included."""
        self.pending_slots = 1
        """Most resizes that wait for their time at once, and one."""
        self._replicas_max = replicas_max
        self._profile = cache(lambda name: scenario_profile(self._by_profile[name]))
        self._by_profile = {scenario.profile: scenario for scenario in scenarios}
        for row, scenario in zip(self.settings, scenarios, strict=True):
            self._add(row, scenario)

    def _add(self, row: Any, scenario: Scenario) -> None:
        scenario = as_long_as_its_traces(scenario)
        profile = self._profile(scenario.profile)
        spec = make_spec(scenario, profile)
        self.specs.append(spec)
        self._add_system(row, scenario, spec)
        self._add_service(row, scenario, profile, spec)
        self._add_network(row, scenario)
        self._add_arrivals(row, scenario, profile)

    def _add_system(self, row: Any, scenario: Scenario, spec: SystemSpec) -> None:
        row["windows"] = scenario.windows
        row["interval_s"], row["slo_s"] = scenario.interval_s, scenario.slo_s
        for name in ("cores", "batch", "replicas"):
            row[f"{name}_max"] = getattr(scenario.limits, name)
            row[name] = getattr(scenario.initial, name)
        row["drop_grace_s"] = scenario.serving.drop_grace_s
        row["violation_weight"] = scenario.reward.violation_weight
        row["rate_scale"] = capacity_rps(spec)
        for span_s in (1, 5, 30):
            row[f"span_{span_s}s"] = max(1, round(span_s / scenario.interval_s))

    def _add_service(
        self, row: Any, scenario: Scenario, profile: Profile, spec: SystemSpec
    ) -> None:
        limits, simulation, quota = scenario.limits, scenario.simulation, profile.quota
        row["hopeless_below_s"] = profile.fastest_s(limits.cores)
        row["planned_at"] = self.numbers.add(profile.latency.table_s(limits.batch, limits.cores))
        row["core_unit"], row["cold_start_s"] = profile.core_unit, spec.cold_start_s
        row["actuation_delay_s"] = simulation.actuation_delay_s
        row["noise"], row["noise_points"] = simulation.noise, len(profile.noise_quantiles)
        row["noise_at"] = self.numbers.add(profile.noise_quantiles)
        if profile.resolve_service(simulation.service) == "quota" and quota is not None:
            row["quota"] = True
            row["period_s"], row["dispatch_s"] = quota.period_s, quota.dispatch_s
            work_s = profile.work_table_s(limits.batch)
            row["work_at"] = self.numbers.add(work_s)
            slowest_s = quota.dispatch_s + 2 * quota.period_s + work_s.max() / profile.core_unit
        else:
            served_s = profile.service_table_s(limits.batch, limits.cores)
            row["served_at"] = self.numbers.add(served_s)
            slowest_s = served_s.max()
        most_noise = max(1.0, 1.0 + simulation.noise * max(profile.noise_quantiles))
        self._make_room(scenario, float(slowest_s) * most_noise)

    def _make_room(self, scenario: Scenario, longest_batch_s: float) -> None:
        """Make room for all replicas and resizes that can be under way at once.

        A draining replica lives on for one batch at most, and replicas must be added
        before a second resize can drain as many again.
        """
        most = max(self._replicas_max, scenario.initial.replicas)
        drains = 1 + math.ceil(longest_batch_s / scenario.interval_s) // 2
        self.replica_slots = max(self.replica_slots, most + drains * (most - 1) + 1)
        resizes = math.ceil(scenario.simulation.actuation_delay_s / scenario.interval_s) + 2
        self.pending_slots = max(self.pending_slots, resizes)

    def _add_network(self, row: Any, scenario: Scenario) -> None:
        network = scenario.network
        row["payload_bytes"] = network.payload_bytes
        row["base_delay_s"] = network.base_delay_s
        row["network"] = INSTANT
        if network.trace == "4g":
            samples = math.ceil(scenario.duration_s)
            row["network"], row["samples"], row["trace_s"] = GENERATED, samples, samples
            self.private_rows = max(self.private_rows, samples + 1)
        elif network.trace != "none":
            trace = load_bandwidth_trace(find_trace(network.trace, "bandwidth", ("4g", "none")))
            if math.isfinite(trace.mean_bytes_per_s):
                self._add_trace(row, trace)
                row["network"] = FIXED if network.start == "beginning" else SHIFTED
        if network.payload_bytes == 0:
            row["network"] = INSTANT
        elif row["network"] == SHIFTED:
            self.private_rows = max(self.private_rows, row["samples"] + 2)

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
            factors = arrivals.burst_factors
            rates_rps = [rate * factor * len(factors) / sum(factors) for factor in factors]
            row["states"], row["dwell_s"] = len(factors), arrivals.burst_dwell_s
            row["rates_at"] = self.numbers.add(rates_rps)
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
        row["group_start_at"] = self.numbers.add(start_s)
        row["group_length_at"] = self.numbers.add(length_s)
        row["group_count_at"] = self.numbers.add(counts)
        self.group_size = max(self.group_size, math.floor(counts.max()) + 1)


def _check_alike(scenarios: Sequence[Scenario]) -> None:
    for scenario in scenarios:
        for name in ("interval_s", "limits"):
            value, wanted = getattr(scenario, name), getattr(scenarios[0], name)
            if value != wanted:
                raise ConfigError(
                    f"all scenarios of one batch need the same {name}, for it defines the "
                    f"steps and actions, but {scenarios[0].name!r} has {wanted} and "
                    f"{scenario.name!r} has {value}"
                )
