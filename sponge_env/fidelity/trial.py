"""One controller on one scenario: live, simulated, and simulated with the live CPU times."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from sponge_env.env.factory import real_configs
from sponge_env.interfaces import Completion, Controller, FloatArray, SystemSpec, Worker
from sponge_env.live.system import LiveSystem
from sponge_env.live.worker import LiveWorker
from sponge_env.metrics import EpisodeMetrics
from sponge_env.run.decision import start
from sponge_env.run.rollout import Run, run_episode, warm
from sponge_env.scenario.config import Backend, Limiter
from sponge_env.scenario.profile import Profile
from sponge_env.scenario.scenario import Scenario
from sponge_env.scenario.spec import stage_profiles
from sponge_env.simulation.system import SimulatedSystem, System
from sponge_env.simulation.workload import draw_workload
from sponge_env.utils.console import ConsoleSink, Progress

Kind = Literal["live", "simulated", "replayed"]


class RecordedSystem(LiveSystem):
    """The live system, keeping what its batches took."""

    def __init__(self, *episode: Any) -> None:
        self.completions: list[Completion] = []  # Batches that ended, in the order of their end
        super().__init__(*episode)

    def _end(self, completion: Completion) -> None:
        self.completions.append(completion)
        super()._end(completion)


@dataclass(frozen=True, slots=True)
class Trial:
    """One episode."""

    kind: Kind
    repetition: int  # Counts from 0; trials of the same one belong together
    summary: EpisodeMetrics
    cpu_ratio: float  # CPU time of live batches over the profile's, without rests and pauses


class MeasuredWork:
    """CPU time of a stage's batches, for a replay by variant and size, in measured order."""

    # Beyond the batches of a kind that ran, it is the profile's time, times all live ones' ratio.

    def __init__(self, completions: Iterable[Completion], usual_s: FloatArray) -> None:
        """Take batches in the order of their end, and CPU seconds, ([variants,] batch_max)."""
        # Batches without a CPU time, such as those that failed, are left out.
        self._usual_s = np.atleast_2d(usual_s)
        self._measured_s: dict[tuple[int, int], list[float]] = defaultdict(list)
        self.measured_s = self.expected_s = 0.0  # CPU time of all batches, measured and by profiles
        for completion in completions:
            if completion.ok and completion.cpu_s > 0:
                kind = completion.batch.variant, completion.batch.size - 1
                self._measured_s[kind].append(completion.cpu_s)
                self.measured_s += completion.cpu_s
                self.expected_s += float(self._usual_s[kind])

    @property
    def ratio(self) -> float:
        """CPU time of all batches, relative to the profiles'."""
        return self.measured_s / self.expected_s if self.expected_s > 0 else 1.0

    def table(self) -> FloatArray:
        """Return what the simulated service reads, see :mod:`sponge_env.core.service`."""
        kinds = np.ndindex(self._usual_s.shape)
        works = [np.array(self._measured_s[kind]) / self._usual_s[kind] for kind in kinds]
        ends = 1 + 2 * len(works) + np.cumsum([len(of_kind) for of_kind in works])
        begins = [1 + 2 * len(works), *ends[:-1]]
        return np.concatenate([[self.ratio], np.column_stack([begins, ends]).ravel(), *works])


@dataclass(frozen=True, slots=True)
class Subject:
    """A controller and a scenario, run in all three ways."""

    agent: str
    controller: Controller
    scenario: Scenario  # As the controller starts it; see :meth:`of`
    profile: Profile  # Of the first stage's first model, measured here under a CPU quota, as all
    seed: int  # Of arrivals and bandwidth, the same in all trials

    @classmethod
    def of(
        cls, agent: str, controller: Controller, scenario: Scenario, profile: Profile, seed: int
    ) -> "Subject":
        """Fix length and initial allocation; what cannot be used is a SpongeError."""
        # The profiles have to be measured under a quota.
        _usual_s(scenario, profile)  # asks for quotas before anything runs
        scenario = warm(scenario, controller, profile)
        subject = cls(agent, controller, scenario, profile, seed)
        # A controller that does not fit shows here, and not when others have run for an hour.
        start(controller, subject.simulated(0).spec, seed)
        return subject

    def repeat(self, repetition: int, start_live: Callable[[SystemSpec], Worker]) -> list[Trial]:
        """Run one live episode and its two counterparts, whose noise the repetition seeds."""
        # SpongeError if the worker cannot go on, KeyboardInterrupt if it was interrupted.
        system = RecordedSystem(self.scenario, self.seed, start_live, self.profile)
        episodes: dict[Kind, EpisodeMetrics] = {"live": self._play("live", repetition, system)}
        by_stage: list[list[Completion]] = [[] for _ in system.spec.stages]
        # as much a part of a request as its size
        tasks: dict[int, int] = {}
        for completion in system.completions:
            by_stage[completion.batch.stage].append(completion)
            tasks.update(zip(completion.batch.requests, completion.tasks, strict=False))
        works = list(map(MeasuredWork, by_stage, _usual_s(self.scenario, self.profile)))
        measured = [work.table() for work in works]
        kinds: dict[Kind, list[FloatArray]] = {"simulated": [], "replayed": measured}
        for kind, tables in kinds.items():
            simulated = self.simulated(repetition, tasks, tables)
            episodes[kind] = self._play("sim", repetition, simulated)
        expected_s = sum(work.expected_s for work in works)
        ratio = sum(work.measured_s for work in works) / expected_s if expected_s else 1.0
        return [Trial(kind, repetition, episode, ratio) for kind, episode in episodes.items()]

    def simulated(
        self, repetition: int, tasks: dict[int, int] | None = None, works: Sequence[FloatArray] = ()
    ) -> SimulatedSystem:
        """Build the simulated counterpart of a live run, with its batches' CPU times if given."""
        # ``tasks`` says how many the first stage's answer led to, by request.
        workload = draw_workload(self.scenario, self.profile, self.seed)
        system = SimulatedSystem(self.scenario, repetition, self.profile, workload, works)
        system.tell(tasks or {})
        return system

    def _play(self, backend: Backend, repetition: int, system: System) -> EpisodeMetrics:
        """Run one episode; KeyboardInterrupt if it was interrupted."""
        label = f"{self.agent}, {self.scenario.name}, {backend}, repetition {repetition + 1}"
        run = Run.of(self.agent, self.scenario, backend, self.seed)
        sink = ConsoleSink(Progress(label, system.plan.intervals, "interval"))
        with closing(system), closing(sink):
            summary = run_episode(system, self.controller, run, [sink]).summary
        if summary.partial:
            raise KeyboardInterrupt
        return summary


def _usual_s(scenario: Scenario, profile: Profile) -> list[FloatArray]:
    """Return each stage's (variants, batch_max) CPU seconds of a batch."""
    stages = zip(scenario.pipeline, stage_profiles(scenario, profile), strict=True)
    return [np.array([p.work_table_s(stage.limits.batch) for p in own]) for stage, own in stages]


def real_worker(
    scenario: Scenario, profile: Profile, limiter: Limiter
) -> Callable[[SystemSpec], LiveWorker]:
    """Return what starts the real worker of a scenario's systems."""
    profiles = stage_profiles(scenario, profile)
    return lambda spec: LiveWorker(*real_configs(spec, profiles, limiter))
