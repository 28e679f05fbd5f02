"""One controller on one scenario: live, simulated, and simulated with the live CPU times."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, cast

import numpy as np

from sponge_env.config import Backend, Limiter
from sponge_env.console import ConsoleSink, Progress
from sponge_env.factory import real_configs
from sponge_env.interfaces import Completion, Controller, FloatArray, SystemSpec, Worker
from sponge_env.live.replica import LiveConfig
from sponge_env.live.worker import LiveWorker
from sponge_env.profile import Profile
from sponge_env.results.schema import EpisodeMetrics
from sponge_env.run.rollout import Run, run_episode, warm
from sponge_env.scenario import Scenario
from sponge_env.simulation.workload import as_long_as_its_traces, draw_workload
from sponge_env.system import LiveSystem, SimulatedSystem, System

Kind = Literal["live", "simulated", "replayed"]


class RecordingWorker(Worker, Protocol):
    """A worker that keeps what its batches took."""

    completions: list[Completion]
    """Batches that ended, in the order of their end."""


class RecordingPool(LiveWorker):
    """The real worker, keeping what its batches took."""

    def __init__(self, config: LiveConfig | Sequence[LiveConfig]) -> None:
        super().__init__(config)
        self.completions: list[Completion] = []

    def wait(self, until_s: float) -> Sequence[Completion]:
        """Block until something changes, and keep the batches that ended."""
        ended = super().wait(until_s)
        self.completions.extend(ended)
        return ended


@dataclass(frozen=True, slots=True)
class Trial:
    """One episode."""

    kind: Kind
    repetition: int
    """Counts from 0; trials of the same one belong together."""
    summary: EpisodeMetrics
    cpu_ratio: float
    """CPU time of the live run's batches, relative to the profile's."""


class MeasuredWork:
    """CPU time of batches, handed out again by size, in the order in which it was measured.

    A simulated batch of a size that has run out, or never came up, takes what the profile
    says, times how the live batches compared with it on the whole.
    """

    def __init__(self, completions: Iterable[Completion], usual_s: FloatArray) -> None:
        """Take batches in the order of their end, and the profile's (batch_max,) CPU seconds.

        Batches without a CPU time, such as those that failed, are left out.
        """
        self._usual_s = usual_s
        self._measured_s: dict[int, list[float]] = defaultdict(list)
        measured_s = expected_s = 0.0
        for completion in completions:
            if completion.ok and completion.cpu_s > 0:
                self._measured_s[completion.batch.size].append(completion.cpu_s)
                measured_s += completion.cpu_s
                expected_s += float(usual_s[completion.batch.size - 1])
        self.ratio = measured_s / expected_s if expected_s > 0 else 1.0
        """CPU time of all batches, relative to the profile's."""

    def table(self) -> FloatArray:
        """Return what the simulated service reads, see :mod:`sponge_env.core.service`."""
        sizes = range(1, 1 + len(self._usual_s))
        works = [np.array(self._measured_s[n]) / self._usual_s[n - 1] for n in sizes]
        ends = 1 + 2 * len(sizes) + np.cumsum([len(of_size) for of_size in works])
        begins = [1 + 2 * len(sizes), *ends[:-1]]
        return np.concatenate([[self.ratio], np.column_stack([begins, ends]).ravel(), *works])


@dataclass(frozen=True, slots=True)
class Subject:
    """What is run in all three ways."""

    agent: str
    controller: Controller
    scenario: Scenario
    """As the controller starts it; see :meth:`of`."""
    profile: Profile
    """Measured under a CPU quota on this machine."""
    seed: int
    """Of arrivals and bandwidth, the same in all trials."""

    @classmethod
    def of(
        cls, agent: str, controller: Controller, scenario: Scenario, profile: Profile, seed: int
    ) -> Subject:
        """Fix the scenario's length and initial allocation; SpongeError if they cannot be used.

        The profile has to be measured under a quota.
        """
        profile.work_table_s(scenario.limits.batch)  # asks for a quota before anything runs
        scenario = as_long_as_its_traces(warm(scenario, controller, profile))
        return cls(agent, controller, scenario, profile, seed)

    def repeat(
        self, repetition: int, start_live: Callable[[SystemSpec], RecordingWorker]
    ) -> list[Trial]:
        """Run one live episode and its two counterparts, whose noise the repetition seeds.

        SpongeError if the worker cannot go on, KeyboardInterrupt if it was interrupted.
        """
        system = LiveSystem(self.scenario, self.seed, start_live, self.profile)
        live = self._play("live", repetition, system)
        completions = cast(RecordingWorker, system.worker).completions
        work = MeasuredWork(completions, self.profile.work_table_s(self.scenario.limits.batch))
        episodes: dict[Kind, EpisodeMetrics] = {
            "live": live,
            "simulated": self._play("sim", repetition, self.simulated(repetition)),
            "replayed": self._play("sim", repetition, self.simulated(repetition, work)),
        }
        return [Trial(kind, repetition, e, work.ratio) for kind, e in episodes.items()]

    def simulated(self, repetition: int, work: MeasuredWork | None = None) -> SimulatedSystem:
        """Build the simulated counterpart, whose batches take measured CPU times if there are."""
        workload = draw_workload(self.scenario, self.profile, self.seed)
        table = None if work is None else work.table()
        return SimulatedSystem(self.scenario, repetition, self.profile, workload, table)

    def _play(self, backend: Backend, repetition: int, system: System) -> EpisodeMetrics:
        """Run one episode; an interrupted one ends all."""
        label = f"{self.agent}, {self.scenario.name}, {backend}, repetition {repetition + 1}"
        sink = ConsoleSink(Progress(label, system.plan.intervals, "interval"))
        try:
            run = Run.of(self.agent, self.scenario, backend, self.seed)
            summary = run_episode(system, self.controller, run, [sink]).summary
        finally:
            sink.close()
            system.close()
        if summary.partial:
            raise KeyboardInterrupt
        return summary


def real_worker(profile: Profile, limiter: Limiter) -> Callable[[SystemSpec], RecordingPool]:
    """Return what starts the real worker of a system."""
    return lambda spec: RecordingPool(real_configs(spec, ((profile,),), limiter))
