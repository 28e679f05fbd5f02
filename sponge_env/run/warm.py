"""Warm starts: the allocation that a controller settles on under a steady mean load."""

from __future__ import annotations

import dataclasses
from collections import Counter

import numpy as np

from sponge_env.config import Arrivals, Initial
from sponge_env.interfaces import Allocation, Controller
from sponge_env.profile import Profile
from sponge_env.run.controllers import decision, start
from sponge_env.scenario import Scenario
from sponge_env.seeds import EVALUATION_SEEDS
from sponge_env.simulation.draw import draw_workload
from sponge_env.spec import scenario_profile
from sponge_env.workload import Workload, rate_rps

SETTLING = 400
"""Intervals that a controller is given to settle: longer than any of ours remembers (the
horizontal pod autoscaler its last 300 s), so that the cold start is forgotten."""

JUDGED = 30
"""Intervals at the end, of whose allocations the most frequent is taken."""

_SEED = EVALUATION_SEEDS
"""A training seed: what is met in the evaluation stays unknown."""


def warm(scenario: Scenario, controller: Controller, profile: Profile | None = None) -> Scenario:
    """Return a scenario that begins with the controller's own allocation for its mean load.

    A scenario with a cold start is returned as it is.

    Args:
        scenario: What is to be run.
        controller: Reset here, and again by who runs it.
        profile: The scenario's profile; loaded if left out.

    Raises:
        SpongeError: The scenario or its profile cannot be used.
    """
    if scenario.start == "cold":
        return scenario
    chosen = settled(scenario, controller, profile or scenario_profile(scenario))
    initial = Initial(chosen.cores, chosen.batch, chosen.replicas)
    return dataclasses.replace(scenario, initial=initial)


def settled(scenario: Scenario, controller: Controller, profile: Profile) -> Allocation:
    """Let a controller settle on a steady version of a scenario.

    Returns:
        Its most frequent allocation at the end; of several, the latest.

    Raises:
        SpongeError: The scenario or the controller cannot be used.
    """
    from sponge_env.system import SimulatedSystem  # a cold start can do without numba

    steady = steady_scenario(scenario, profile)
    workload = equally_fast(draw_workload(steady, profile, _SEED), steady.network.base_delay_s)
    system = SimulatedSystem(steady, _SEED, profile, workload)
    start(controller, system.spec, _SEED)
    chosen = []
    while not system.done:
        chosen.append(decision(controller, system.view(), system.spec))
        system.step(chosen[-1])
    return Counter(reversed(chosen[-JUDGED:])).most_common(1)[0][0]


def steady_scenario(scenario: Scenario, profile: Profile) -> Scenario:
    """Return a scenario without bursts, fades and noise: equal gaps at the mean rate."""
    return dataclasses.replace(
        scenario,
        start="cold",
        short_trace="wrap",
        duration_s=SETTLING * scenario.interval_s,
        arrivals=Arrivals(kind="constant", rate_rps=rate_rps(scenario, profile)),
        network=dataclasses.replace(scenario.network, fade_every_s=None),
        simulation=dataclasses.replace(scenario.simulation, noise=0.0),
    )


def equally_fast(workload: Workload, base_delay_s: float) -> Workload:
    """Let all transfers have one bandwidth, such that a byte takes as long as before.

    That is the harmonic mean of what the requests saw: a slow second holds a transfer up for
    longer than a fast one speeds it up.
    """
    sent_s, payload_bytes = workload.sent_s, workload.payload_bytes
    transfer_s = workload.arrival_s - sent_s - base_delay_s
    s_per_byte = transfer_s.sum() / max(1.0, payload_bytes.sum())
    arrival_s = sent_s + base_delay_s + payload_bytes * s_per_byte
    order = np.lexsort((workload.id, arrival_s))
    moved = dataclasses.replace(workload, arrival_s=arrival_s)
    return Workload(**{f.name: getattr(moved, f.name)[order] for f in dataclasses.fields(moved)})
