"""One evaluation: episodes of several controllers, recorded in one run directory."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sponge_env.config import Backend, Limiter, Scenario
from sponge_env.console import ConsoleSink, Progress
from sponge_env.factory import check_live, ensure_profile, make_system
from sponge_env.interfaces import Controller, Sink
from sponge_env.profile import Profile
from sponge_env.recording import RunDirectory, file_sinks, write_requests
from sponge_env.report import plot_comparison
from sponge_env.rollout import Episode, Run, run_episode
from sponge_env.tensorboard_sink import TensorBoardSink


@dataclass(frozen=True, slots=True)
class Experiment:
    """What all episodes of an evaluation share."""

    scenario: Scenario
    profile: Profile
    backend: Backend
    limiter: Limiter
    directory: RunDirectory

    @classmethod
    def open(
        cls,
        scenario: Scenario,
        backend: Backend,
        limiter: Limiter,
        path: Path,
        settings: Mapping[str, Any],
        command: Sequence[str],
    ) -> Experiment:
        """Check the scenario and make the run directory.

        Args:
            scenario: What is evaluated.
            backend: Simulated or real worker; a live one is calibrated first if need be.
            limiter: CPU limiter of the real worker.
            path: The run directory; must not exist yet.
            settings: Settings to write down in it.
            command: Command line to write down in it.

        Raises:
            SpongeError: Something cannot be used; nothing was written.
        """
        profile = ensure_profile(scenario, backend, limiter)
        # A system built and closed shows mistakes in traces before anything is written.
        make_system(scenario, 0, profile=profile).close()
        if backend == "live":
            check_live(scenario, profile, limiter)
        directory = RunDirectory.create(path, scenario, settings, command)
        return cls(scenario, profile, backend, limiter, directory)

    def run(self, controllers: Mapping[str, Controller], seeds: int) -> Iterator[Episode]:
        """Run seeds 0 .. seeds - 1 of every controller; stop after an interrupted one."""
        for agent, controller in controllers.items():
            for seed in range(seeds):
                episode = self._episode(agent, controller, seed)
                yield episode
                if episode.summary.partial:
                    return

    def _episode(self, agent: str, controller: Controller, seed: int) -> Episode:
        folder = self.directory.episode(agent, seed)
        with ExitStack() as stack:
            system = make_system(
                self.scenario,
                seed,
                backend=self.backend,
                profile=self.profile,
                limiter=self.limiter,
            )
            stack.callback(system.close)
            label = f"{agent}, seed {seed}"
            sinks: list[Sink] = [
                *file_sinks(folder),
                TensorBoardSink(folder),
                ConsoleSink(Progress(label, system.plan.windows, "window")),
            ]
            for sink in sinks:
                stack.callback(sink.close)
            run = Run(agent, self.scenario.name, self.backend, seed)
            episode = run_episode(system, controller, run, sinks)
            write_requests(folder / "requests.parquet", system.core.ledger.columns())
        return episode

    def plot(self, episodes: Sequence[Episode]) -> Path:
        """Draw the first seed of every controller; return the picture's path."""
        first: dict[str, Episode] = {}
        for episode in episodes:
            first.setdefault(episode.summary.agent, episode)
        path = self.directory.path / "comparison.png"
        title = f"{self.scenario.name} ({self.backend}), seed 0"
        plot_comparison({name: e.windows for name, e in first.items()}, path, title)
        return path
