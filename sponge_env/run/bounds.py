"""The clairvoyant bounds of a suite's cells: what a controller that knows the future can reach.

A bound takes seconds for each episode. Its schedule is played like an agent's decisions, and kept
under the name of :data:`~sponge_env.run.suite.BOUND_AGENTS`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product
from typing import TYPE_CHECKING

from sponge_env.errors import ConfigError, SpongeError
from sponge_env.run.rollout import Replay, Run, run_episode
from sponge_env.run.store import fingerprint, scenario_fingerprint
from sponge_env.run.suite import BOUND_AGENTS, BoundName, Suite, cells
from sponge_env.scenario.scenario import Scenario
from sponge_env.scenario.spec import scenario_profile
from sponge_env.simulation.system import SimulatedSystem
from sponge_env.simulation.traffic import capacity_rps, rate_rps

if TYPE_CHECKING:
    from sponge_env.run.unit import Recorder


@dataclass(frozen=True, slots=True)
class BoundUnit:
    """The bound of one cell; a unit of work like an agent's."""

    control: BoundName
    scenario: Scenario
    seeds: int
    first_seed: int = 0

    @property
    def agent(self) -> str:
        """Name in the results."""
        return BOUND_AGENTS[self.control]

    def fingerprint(self) -> str:
        """Return what stands for everything that the result depends on but the code."""
        parts = {"control": self.control, "seeds": self.seeds, "first": self.first_seed}
        return fingerprint(parts | {"scenario": scenario_fingerprint(self.scenario)})

    def run(self, record: Recorder) -> None:
        """Play the best schedule that was found for each seed that the record has not got yet."""
        from sponge_env.oracle import bound  # compiled; only bounds need it

        # Service takes exactly its usual time, as the schedule expects.
        exact = replace(self.scenario.simulation, noise=0.0)
        scenario = replace(self.scenario, simulation=exact)
        for seed in range(self.first_seed, self.first_seed + self.seeds)[record.seeds :]:
            found = bound(scenario, seed, joint=self.control == "joint")
            run = Run.of(self.agent, scenario, "sim", seed)
            system = SimulatedSystem(scenario, seed)
            record.add(run, run_episode(system, Replay(found.schedule), run))
            record.keep(complete=False)


def bound_units(suite: Suite) -> Iterator[BoundUnit]:
    """Yield the bounds that a suite asks for, but of cells that are overloaded all the time.

    The search has no end in them, and the least violations say nothing. Cells with stages have
    no bound.
    """
    bounded = [cell for cell in cells(suite) if not cell.stages]
    if not (bounded or suite.agents):
        raise ConfigError(f"{suite.name!r} has stages, which have no bound; name agents")
    for kind, cell in product(suite.bounds, bounded):
        if _in_reach(kind, cell):
            yield BoundUnit(kind, cell, suite.seeds, suite.first_seed)


def _in_reach(control: BoundName, scenario: Scenario) -> bool:
    """Return whether the mean rate can be served; what cannot be played says so itself."""
    try:
        profile = scenario_profile(scenario)
        most_rps = capacity_rps(scenario, profile, control == "joint")
        return rate_rps(scenario, profile) <= most_rps
    except SpongeError:
        return True
