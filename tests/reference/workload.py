"""The requests of an episode, one object each: when they arrive, and their deadlines."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np

from reference.arrivals import recorded_trace as recorded_arrivals
from reference.arrivals import send_times_s
from reference.bandwidth import make_network
from sponge_env.arrays import FloatArray
from sponge_env.scenario.profile import Profile
from sponge_env.scenario.scenario import Scenario
from sponge_env.scenario.seeds import stream


@dataclass(frozen=True, slots=True)
class Request:
    """One inference request; it carries its own deadline.

    The client sends it at ``sent_s``; after the transfer over the network it reaches the
    server at ``arrival_s``. ``deadline_s`` is the send time plus the SLO, so the time
    spent on the way is already gone from its budget.
    """

    id: int
    sent_s: float
    arrival_s: float
    deadline_s: float
    payload_bytes: float = 0.0

    @property
    def delay_s(self) -> float:
        return self.arrival_s - self.sent_s

    @property
    def budget_on_arrival_s(self) -> float:
        return self.deadline_s - self.arrival_s


def rate_rps(scenario: Scenario, profile: Profile) -> float:
    """Return the mean rate of requests in a scenario."""
    arrivals, limits = scenario.arrivals, scenario.limits
    if arrivals.rate_rps is not None:
        return arrivals.rate_rps
    if arrivals.load is not None:
        return arrivals.load * profile.capacity_rps(limits.batch, limits.cores)
    return recorded_arrivals(arrivals).mean_rps(scenario.duration_s)


def make_requests(scenario: Scenario, profile: Profile, seed: int) -> tuple[Request, ...]:
    """Draw the requests of one episode, by (arrival_s, id).

    They are sent over ``[0, duration_s)`` and numbered in that order. A request arrives
    when its transfer ends, plus the base delay; those that arrive after the episode's
    end are included.
    """
    rng, duration_s = stream(seed, "arrivals"), scenario.duration_s
    sent_s = send_times_s(scenario.arrivals, rate_rps(scenario, profile), duration_s, rng)
    slo_s, payload_bytes = _classes(scenario, sent_s.size, seed)
    transferred_s = make_network(scenario, seed).arrival_s(sent_s, payload_bytes)
    arrival_s = transferred_s + scenario.network.base_delay_s
    # Transfers held up by the same outage end at the same moment; rounding must not make
    # a later one of the same size arrive earlier.
    for size in np.unique(payload_bytes):
        alike = payload_bytes == size
        arrival_s[alike] = np.maximum.accumulate(arrival_s[alike])
    order = np.argsort(arrival_s, kind="stable")
    columns = (order, *(c[order] for c in (sent_s, arrival_s, sent_s + slo_s, payload_bytes)))
    return tuple(itertools.starmap(Request, zip(*(c.tolist() for c in columns), strict=True)))


def _classes(scenario: Scenario, count: int, seed: int) -> tuple[FloatArray, FloatArray]:
    """Draw (count,) SLOs and (count,) payloads, with one uniform each in the order of sending."""
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
