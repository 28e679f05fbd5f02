"""Units of work: one agent on one cell with all its seeds, or the bound of a cell.

A unit is plain data, so that it can be sent to another process.
"""

from __future__ import annotations

import importlib.util
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass
from functools import partial
from itertools import product
from typing import TYPE_CHECKING, Any

from sponge_env.env.factory import check_live, ensure_profile, make_system
from sponge_env.errors import ConfigError, TraceError
from sponge_env.run.record import Recorder
from sponge_env.run.registry import imported, known_controllers, make_controller
from sponge_env.run.rollout import Run, play, warm
from sponge_env.run.store import (
    RunStore,
    conditions_fingerprint,
    fingerprint,
    scenario_fingerprint,
)
from sponge_env.run.suite import (
    BOUND_AGENTS,
    RELAXATION,
    BoundName,
    Suite,
    cells,
    changed,
    origins,
)
from sponge_env.scenario.config import Backend, Limiter
from sponge_env.scenario.profile import Profile
from sponge_env.scenario.scenario import Scenario
from sponge_env.scenario.spec import make_spec, scenario_profile
from sponge_env.simulation.workload import draw_workload
from sponge_env.utils.files import content_hash
from sponge_env.utils.installation import bundled

if TYPE_CHECKING:
    from sponge_env.run.store import Unit


@dataclass(frozen=True, slots=True)
class AgentUnit:
    """The episodes of one agent on one cell."""

    agent: str
    controller: str
    """``module:callable``."""
    options: dict[str, Any]
    control: BoundName
    """Which bound it is compared with."""
    scenario: Scenario
    seeds: int
    backend: Backend = "sim"
    limiter: Limiter = "auto"
    """CPU limiter of the real worker."""

    def fingerprint(self) -> str:
        """Return what stands for everything that the result depends on but the code.

        A controller from elsewhere counts by its module's file, and an option that names a
        file by that file's content.
        """
        module = importlib.util.find_spec(self.controller.partition(":")[0])
        files = {"code": module and module.origin, **self.options}
        return fingerprint(
            asdict(self)
            | {"scenario": scenario_fingerprint(self.scenario)}
            | {"files": {name: content_hash(value) for name, value in files.items()}}
        )

    def run(self, record: Recorder) -> None:
        """Run the seeds that the record has not got yet.

        A failure and an interrupt are raised when the record has the episode up to then.
        """
        profile = scenario_profile(self.scenario)
        controller = make_controller(self.controller, {}, self.options)
        scenario = warm(self.scenario, controller, profile)
        record.facts["bound"] = BOUND_AGENTS[self.control]
        record.facts["initial"] = asdict(scenario.initial)
        for seed in range(record.seeds, self.seeds):
            system = make_system(
                scenario, seed, backend=self.backend, profile=profile, limiter=self.limiter
            )
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
    """
    registry, tuned_options = known_controllers(), imported(f"{bundled('baselines')}:tuned_options")
    for name, entry in suite.agents.items():
        if name in (*BOUND_AGENTS.values(), RELAXATION):
            raise ConfigError(f"the name {name!r} is taken by a bound; give the agent another")
        make_controller(entry.controller or name, registry, entry.options)
    work: list[Unit] = []
    if suite.bounds:
        from sponge_env.run.bounds import bound_units

        work += bound_units(suite)
    swept_from = origins(suite)
    for cell, (name, entry) in product(cells(suite), suite.agents.items()):
        controller, scenario = entry.controller or name, changed(cell, entry.changes)
        if scenario.cell != cell.cell:
            message = f"agents.{name}.changes must leave name, profile and start as they are"
            raise ConfigError(message)
        origin = swept_from.get(cell.cell, cell)
        conditions = partial(conditions_fingerprint, origin)
        wanted = controller, *origin.cell, conditions, not entry.defaults
        tuned = tuned_options(*wanted) if entry.tuned else {}
        what = registry.get(controller, controller), {**tuned, **entry.options}, entry.control
        work.append(AgentUnit(name, *what, scenario, suite.seeds, backend, limiter))
    return work


def check_scenario(scenario: Scenario, backend: Backend, limiter: Limiter) -> Profile:
    """Return a scenario's profile, measured if need be, or raise what keeps it from running."""
    profile = ensure_profile(scenario, backend, limiter)
    make_spec(scenario, profile)  # refuses limits and latencies that make no sense
    if backend == "live":
        check_live(scenario, profile, limiter)
    requests = draw_workload(scenario, profile, 0)
    intervals = scenario.intervals
    if requests.id.size and requests.arrival_s[0] >= intervals * scenario.interval_s:
        raise TraceError(
            f"no request arrives within the {intervals} intervals of an episode: the first is "
            f"sent at {requests.sent_s[0]:g} s, and the network ({scenario.network.trace}) "
            f"brings its {requests.payload_bytes[0]:g} bytes by {requests.arrival_s[0]:g} s"
        )
    return profile


def run_unit(unit: Unit, store: RunStore, requests: float = 0, watched: bool = False) -> None:
    """Run what is missing of a unit and keep it, or as much as there is when it is interrupted.

    Seeds below ``requests`` keep their requests. If it is ``watched``, there are TensorBoard
    events interval by interval and progress on the terminal.
    """
    record, complete = Recorder(store, unit, requests, watched), False
    try:
        unit.run(record)
        complete = True
    finally:
        record.keep(complete)
