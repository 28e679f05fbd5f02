"""How many requests an episode has and for how long; their columns once they are drawn."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sponge_env.arrays import FloatArray
from sponge_env.errors import ConfigError
from sponge_env.formats import RESERVED, read_arrivals, read_bandwidth
from sponge_env.profile import Profile
from sponge_env.scenario import Scenario

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

    def first(self, count: int) -> dict[str, NDArray[Any]]:
        """Return the columns of the first requests, (count,) each, by name."""
        return {f.name: getattr(self, f.name)[:count] for f in dataclasses.fields(self)}


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
        lengths_s.append(read_bandwidth(scenario.network.trace).duration_s)
    if scenario.arrivals.kind == "trace":
        lengths_s.append(read_arrivals(str(scenario.arrivals.file)).period_s)
    return dataclasses.replace(scenario, duration_s=min(lengths_s))
