"""Units of work: one agent on one cell with all its seeds, or the bound of a cell.

A unit is plain data, so that it can be sent to another process. What it leaves behind is kept
episode by episode; intervals and requests of one are parquet files, written when it ends.
"""

import importlib.util
import shutil
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, closing, suppress
from dataclasses import asdict, dataclass, replace
from itertools import product, repeat
from math import isfinite
from operator import attrgetter
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sponge_env.env.factory import check_live, ensure_profile, make_system
from sponge_env.errors import ConfigError, SpongeError, TraceError
from sponge_env.interfaces import Allocation, Sink
from sponge_env.metrics import Columns, summary
from sponge_env.run.registry import imported, known_controllers, make_controller
from sponge_env.run.rollout import Episode, Replay, Run, play, play_together, run_episode, warm
from sponge_env.run.store import (
    IDENTITY,
    RunStore,
    fingerprint,
    scenario_fingerprint,
    whole_episodes,
)
from sponge_env.run.suite import BOUND_AGENTS, BoundName, Suite, cells
from sponge_env.scenario.config import Backend, Limiter
from sponge_env.scenario.option import require
from sponge_env.scenario.profile import Profile
from sponge_env.scenario.scenario import Scenario
from sponge_env.scenario.seeds import TRAINING_SEEDS
from sponge_env.scenario.spec import make_spec, scenario_profile
from sponge_env.simulation.system import SimulatedSystem
from sponge_env.simulation.traffic import capacity_rps, rate_rps
from sponge_env.simulation.workload import draw_workload
from sponge_env.utils.console import ConsoleSink, Progress
from sponge_env.utils.files import content_hash, replacing
from sponge_env.utils.installation import bundled, missing

_of_run = attrgetter(*IDENTITY)


class Recorder:
    """Keeps the results of one unit, on top of what an earlier run kept of it."""

    def __init__(self, store: RunStore, unit: "Unit", requests: bool, watched: bool) -> None:
        """Begin with what is kept already; arguments as for :func:`run_unit`."""
        self._store, self._unit = store, unit
        self._requests, self._watched = requests, watched
        self.facts: dict[str, Any] = {}  # Entries of the unit's result beside its episodes
        self._episodes = whole_episodes(store.kept(unit))

    @property
    def seeds(self) -> int:
        """How many seeds have ended."""
        return len(self._episodes)

    def sinks(self, run: Run, intervals: int) -> Iterator[Sink]:
        """Open the sinks that follow an episode of so many intervals."""
        if self._watched and not missing("report"):
            from sponge_env.run.tensorboard import TensorBoardSink  # a suite does without

            name = f"{run.agent}-seed{run.seed}" if self._unit.seeds > 1 else run.agent
            folder = self._store.path / "tensorboard" / name
            shutil.rmtree(folder, ignore_errors=True)  # of an episode that was interrupted
            yield TensorBoardSink(folder, "/".join([*self._store.path.parts[-2:], name]))
        if self._watched:
            yield ConsoleSink(Progress(f"{run.agent}, seed {run.seed}", intervals, "interval"))

    def add(self, run: Run, episode: Episode) -> None:
        """Write an episode that ended; :meth:`keep` writes its summary."""
        # First the summary, which has the episode even if something below cannot be written.
        self._episodes.append(summary(episode.summary))
        try:
            if self._requests:
                write_table(self._file("requests", run), episode.requests)
            write_table(self._file("intervals", run), interval_columns(run, episode.columns))
        except KeyboardInterrupt:  # it is played again
            self._episodes.pop()
            raise

    def keep(self, complete: bool) -> None:
        """Write the unit's results, and whether they are all there."""
        episodes = {"episodes": self._episodes} if self._episodes else {}
        self._store.keep(self._unit, self.facts | episodes, complete=complete)

    def _file(self, kind: str, run: Run) -> Path:
        return self._store.file(kind, self._unit, f"-seed{run.seed}.parquet")


def interval_columns(run: Run, columns: Columns) -> dict[str, NDArray[Any]]:
    """Return an episode's columns (intervals,) after those of what identifies it."""
    head, intervals = zip(IDENTITY, _of_run(run), strict=True), len(columns["time_s"])
    return {name: np.full(intervals, value) for name, value in head} | {**columns}


def write_table(path: Path, columns: Mapping[str, NDArray[Any]]) -> None:
    """Write columns as parquet, whole or not at all."""
    import pyarrow
    import pyarrow.parquet

    repeated = [name for name, column in columns.items() if column.dtype.kind in "iU"]
    with replacing(path) as partial:
        pyarrow.parquet.write_table(
            pyarrow.table(dict(columns)), partial, compression="lz4", use_dictionary=repeated
        )


@dataclass(frozen=True, slots=True)
class AgentUnit:
    """The episodes of one agent on one cell."""

    agent: str
    controller: str  # ``module:callable``
    options: dict[str, Any]
    scenario: Scenario
    seeds: int
    backend: Backend = "sim"
    limiter: Limiter = "auto"  # CPU limiter of the real worker
    constant: str = ""  # See :attr:`.AgentEntry.constant`
    first_seed: int = 0

    def fingerprint(self) -> str:
        """Return what stands for everything that the result depends on but the code."""
        # A controller from elsewhere counts by its module's file, an option by the file it names.
        module = importlib.util.find_spec(self.controller.partition(":")[0])
        files = {"code": module and module.origin, **self.options}
        hashes = {name: content_hash(value) for name, value in files.items()}
        own = {"scenario": scenario_fingerprint(self.scenario), "files": hashes}
        return fingerprint(asdict(self) | own)

    def run(self, record: Recorder) -> None:
        """Run the seeds that the record has not got yet.

        A failure or an interrupt is raised once the record has the episode up to then.
        """
        profile = scenario_profile(self.scenario)
        seeds = range(self.first_seed, self.first_seed + self.seeds)
        controller: Any = make_controller(self.controller, {}, self.options)
        if self.constant:
            from sponge_env.run.hindsight import best_constant

            sized_on = seeds if self.constant == "hindsight" else TRAINING_SEEDS
            held = best_constant(self.scenario, profile, sized_on)
            record.facts["held"] = [stage._asdict() for stage in held]
            controller = Replay(repeat(Allocation(stages=held)))
        scenario = warm(self.scenario, controller, profile)
        record.facts["initial"] = asdict(scenario.initial)
        runs = [Run.of(self.agent, scenario, self.backend, s) for s in seeds[record.seeds :]]
        together = dict[int, Episode]()
        if self.backend == "sim":
            together = play_together(scenario, profile, controller, runs)
        for run in runs:
            with ExitStack() as stack:
                opened = record.sinks(run, scenario.intervals)
                sinks = [stack.enter_context(closing(sink)) for sink in opened]
                if episode := together.get(run.seed):
                    record.add(run, episode)
                    for sink in sinks:
                        for metrics in episode.intervals:
                            sink.interval(metrics)
                        sink.episode(episode.summary)
                    continue
                where = self.backend, self.limiter
                system = make_system(scenario, run.seed, *where, profile=profile)
                episode = play(stack.enter_context(closing(system)), controller, run, sinks)
                record.add(run, episode)
            record.keep(complete=False)
            if episode.summary.partial:
                raise episode.failure or KeyboardInterrupt


@dataclass(frozen=True, slots=True)
class BoundUnit:
    """The clairvoyant bound of one cell: what a controller that knows the future can reach.

    A bound takes seconds for each episode. Its schedule is played like an agent's decisions.
    """

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
        scenario = replace(self.scenario, simulation=replace(self.scenario.simulation, noise=0.0))
        for seed in range(self.first_seed, self.first_seed + self.seeds)[record.seeds :]:
            found = bound(scenario, seed, joint=self.control == "joint")
            run = Run.of(self.agent, scenario, "sim", seed)
            system = SimulatedSystem(scenario, seed)
            record.add(run, run_episode(system, Replay(found.schedule), run))
            record.keep(complete=False)


Unit = AgentUnit | BoundUnit  # Work whose results are kept in a file of their own


def _bound_units(suite: Suite) -> Iterator[BoundUnit]:
    """Yield the bounds that a suite asks for, except of cells that are always overloaded."""
    # There the search has no end, and the bound says nothing. Cells with stages have no bound.
    bounded = [cell for cell in cells(suite) if not cell.stages]
    if not (bounded or suite.agents):
        raise ConfigError(f"{suite.name!r} has stages, which have no bound; name agents")
    for kind, cell in product(suite.bounds, bounded):
        with suppress(SpongeError):  # what cannot be played says so itself
            profile = scenario_profile(cell)
            if rate_rps(cell, profile) > capacity_rps(cell, profile, kind == "joint"):
                continue
        yield BoundUnit(kind, cell, suite.seeds, suite.first_seed)


def units(suite: Suite, backend: Backend = "sim", limiter: Limiter = "auto") -> list[Unit]:
    """Return all units of a suite: bounds first, which take longest, then cell by cell."""
    # Every controller is made once, so that mistakes show before anything runs.
    registry, tuned_options = known_controllers(), imported(f"{bundled('baselines')}:tuned_options")
    for name, entry in suite.agents.items():
        if name in BOUND_AGENTS.values():
            raise ConfigError(f"the name {name!r} is taken by a bound; give the agent another")
        make_controller(entry.controller or name, registry, entry.options)
        for key, value in entry.options.items():
            require(not isinstance(value, float) or isfinite(value), key, value, "finite")
    work: list[Unit] = [*_bound_units(suite)]
    for cell, (name, entry) in product(cells(suite), suite.agents.items()):
        controller = entry.controller or name
        tuned = tuned_options(controller, cell) if entry.tuned else {}
        what = registry.get(controller, controller), {**tuned, **entry.options}
        own = AgentUnit(name, *what, cell, suite.seeds, backend, limiter, entry.constant)
        work.append(replace(own, first_seed=suite.first_seed))
    if not work:
        raise ConfigError(f"{suite.name!r} is overloaded all the time, and so has no bound")
    return work


def check_scenario(scenario: Scenario, backend: Backend, limiter: Limiter) -> Profile:
    """Return a scenario's profile, measured if need be, or raise what keeps it from running."""
    profile = ensure_profile(scenario, backend, limiter)
    make_spec(scenario, profile)  # refuses limits and latencies that make no sense
    if backend == "live":
        check_live(scenario, profile, limiter)
    requests, intervals = draw_workload(scenario, profile, 0), scenario.intervals
    if requests.id.size and requests.arrival_s[0] >= intervals * scenario.interval_s:
        raise TraceError(
            f"no request arrives within the {intervals} intervals of an episode: the first is "
            f"sent at {requests.sent_s[0]:g} s, and the network ({scenario.network.trace}) "
            f"brings its {requests.payload_bytes[0]:g} bytes by {requests.arrival_s[0]:g} s; "
            "check the units of times, sizes and bandwidth"
        )
    return profile


def run_unit(unit: Unit, store: RunStore, requests: bool = False, watched: bool = False) -> None:
    """Run what is missing of a unit and keep it, or as much as there is when it is interrupted.

    With ``requests`` every request is kept; if ``watched``, TensorBoard events and progress shown.
    """
    record, complete = Recorder(store, unit, requests, watched), False
    try:
        unit.run(record)
        complete = True
    finally:
        record.keep(complete)
