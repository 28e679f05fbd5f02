"""From a suite to its units of work: one agent on one cell with all its seeds.

A unit is plain data, so that it can be sent to another process.
"""

from __future__ import annotations

from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass, replace
from typing import Any

from sponge_env.config import Backend, ControlName, Initial, Limiter, Serving
from sponge_env.errors import ConfigError, TraceError
from sponge_env.factory import check_live, ensure_profile, make_system
from sponge_env.installation import bundled
from sponge_env.profile import Profile
from sponge_env.run.bounds import BOUND_AGENTS, BoundUnit
from sponge_env.run.controllers import imported, known_controllers, make_controller
from sponge_env.run.fingerprint import (
    controller_fingerprint,
    fingerprint,
    scenario_fingerprint,
)
from sponge_env.run.record import Recorder
from sponge_env.run.rollout import ControlledSystem, Run, play
from sponge_env.run.store import Unit
from sponge_env.run.suite import AgentEntry, Suite, cell_name, cells, changed
from sponge_env.run.warm import warm
from sponge_env.scenario import Scenario
from sponge_env.simulation.draw import draw_workload
from sponge_env.spec import make_spec, scenario_profile
from sponge_env.workload import Workload, as_long_as_its_traces

TUNED = "baselines"
"""Package whose ``tuned_options`` are called with controller, scenario and profile."""

CACHED_REQUESTS = 5_000_000
"""Requests of drawn workloads that are kept, about 40 bytes each."""

_DRAWN: dict[tuple[str, int], Workload] = {}


@dataclass(frozen=True, slots=True)
class AgentUnit:
    """The episodes of one agent on one cell."""

    agent: str
    controller: str
    """``module:callable``."""
    options: dict[str, Any]
    control: ControlName
    """Which bound it is compared with."""
    scenario: Scenario
    seeds: int
    backend: Backend = "sim"
    limiter: Limiter = "auto"
    """CPU limiter of the real worker."""

    def fingerprint(self) -> str:
        """Return what stands for everything that the result depends on but the code.

        Raises:
            ProfileError: There is no profile as the scenario names.
        """
        return fingerprint(
            asdict(self)
            | {"scenario": scenario_fingerprint(self.scenario)}
            | {"files": controller_fingerprint(self.controller, self.options)}
        )

    def run(self, record: Recorder) -> None:
        """Run the seeds that the record has not got yet.

        Raises:
            SpongeError: The scenario, the profile, the worker or the controller cannot go on.
            KeyboardInterrupt: Interrupted; the record has the episode up to that moment.
        """
        profile = scenario_profile(self.scenario)
        controller = make_controller(self.controller, {}, self.options)
        scenario = warm(self.scenario, controller, profile)
        record.say(bound=BOUND_AGENTS[self.control], initial=asdict(scenario.initial))
        for seed in range(record.seeds, self.seeds):
            system = build_system(scenario, seed, profile, self.backend, self.limiter)
            run = Run.of(self.agent, scenario, self.backend, seed)
            with closing(system), ExitStack() as stack:
                opened = record.sinks(run, system.plan.intervals)
                sinks = [stack.enter_context(closing(sink)) for sink in opened]
                episode = play(system, controller, run, sinks)
                record.add(run, episode, system)
            if episode.summary.partial:
                raise episode.failure or KeyboardInterrupt


def units(suite: Suite, backend: Backend = "sim", limiter: Limiter = "auto") -> list[Unit]:
    """Return all units of a suite: bounds first, which take longest, then cell by cell.

    Every controller is made once, so that mistakes show before anything runs.

    Raises:
        ConfigError: A scenario, a change, a controller or an option cannot be used.
    """
    registry = known_controllers()
    for name, entry in suite.agents.items():
        if name in BOUND_AGENTS.values():
            raise ConfigError(f"the name {name!r} is taken by a bound; give the agent another")
        make_controller(entry.controller or name, registry, entry.options)
    scenarios = cells(suite)
    bounds = [BoundUnit(kind, cell, suite.seeds) for kind in suite.bounds for cell in scenarios]
    agents = [
        replace(_agent_unit(name, entry, cell, suite.seeds), backend=backend, limiter=limiter)
        for cell in scenarios
        for name, entry in suite.agents.items()
    ]
    return [*bounds, *agents]


def _agent_unit(name: str, entry: AgentEntry, cell: Scenario, seeds: int) -> AgentUnit:
    controller = entry.controller or name
    scenario = changed(cell, entry.changes)
    if cell_name(scenario) != cell_name(cell):
        raise ConfigError(f"agents.{name}.changes must leave name, profile and start as they are")
    tuned = {}
    if entry.tuned:
        tuned = imported(f"{bundled(TUNED)}:tuned_options")(controller, cell.name, cell.profile)
    target = known_controllers().get(controller, controller)
    return AgentUnit(name, target, {**tuned, **entry.options}, entry.control, scenario, seeds)


def build_system(
    scenario: Scenario, seed: int, profile: Profile, backend: Backend, limiter: Limiter
) -> ControlledSystem:
    """Build the system of one episode; the caller closes it.

    Raises:
        SpongeError: The scenario, the profile or the machine does not allow it.
    """
    if backend == "live":
        return make_system(scenario, seed, backend=backend, profile=profile, limiter=limiter)
    from sponge_env.system import SimulatedSystem  # bad input should not wait for numba

    return SimulatedSystem(scenario, seed, profile, shared_workload(scenario, seed, profile))


def shared_workload(scenario: Scenario, seed: int, profile: Profile) -> Workload:
    """Return the requests of an episode, drawn once for all agents.

    Raises:
        SpongeError: A trace cannot be used, or there are too many requests.
    """
    # What the requests do not depend on is levelled; traces count by what is in them.
    levelled = replace(scenario, start="cold", initial=Initial(), serving=Serving())
    key = scenario_fingerprint(levelled), seed
    if key not in _DRAWN:
        _DRAWN[key] = draw_workload(as_long_as_its_traces(levelled), profile, seed)
        while len(_DRAWN) > 1 and sum(w.id.size for w in _DRAWN.values()) > CACHED_REQUESTS:
            del _DRAWN[next(iter(_DRAWN))]  # the oldest
    return _DRAWN[key]


def check_scenario(scenario: Scenario, backend: Backend, limiter: Limiter) -> Profile:
    """Notice what would keep a scenario from running before anything is written.

    A live scenario of this machine is calibrated first, if it never was.

    Returns:
        The scenario's profile.

    Raises:
        SpongeError: Something cannot be used.
    """
    profile = ensure_profile(scenario, backend, limiter)
    make_spec(scenario, profile)  # refuses limits and latencies that make no sense
    requests = shared_workload(scenario, 0, profile)
    intervals = as_long_as_its_traces(scenario).intervals
    if requests.id.size and requests.arrival_s[0] >= intervals * scenario.interval_s:
        raise TraceError(
            f"no request arrives within the {intervals} intervals of an episode: the first is "
            f"sent at {requests.sent_s[0]:g} s, and the network ({scenario.network.trace}) "
            f"brings its {requests.payload_bytes[0]:g} bytes by {requests.arrival_s[0]:g} s"
        )
    if backend == "live":
        check_live(scenario, profile, limiter)
    return profile
