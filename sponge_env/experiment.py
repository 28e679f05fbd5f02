"""One evaluation: episodes of several controllers, recorded in one run directory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sponge_env.config import Backend, Limiter
from sponge_env.console import ConsoleSink, Progress
from sponge_env.contract import start
from sponge_env.errors import TraceError
from sponge_env.factory import check_live, ensure_profile, make_spec, make_system
from sponge_env.interfaces import Controller, Sink
from sponge_env.profile import Profile, save_profile
from sponge_env.recording import RunDirectory, file_sinks, write_requests
from sponge_env.results.figures import plot_comparison
from sponge_env.results.tensorboard import TensorBoardSink
from sponge_env.rollout import Episode, Run, run_episode
from sponge_env.scenario import Scenario
from sponge_env.suite.warm import warm


def check_scenario(scenario: Scenario, backend: Backend, limiter: Limiter) -> Profile:
    """Notice what would keep a scenario from running before anything is written.

    A live scenario of this machine is calibrated first, if it never was.

    Returns:
        The scenario's profile.

    Raises:
        SpongeError: Something cannot be used.
    """
    profile = ensure_profile(scenario, backend, limiter)
    # A system built and closed shows mistakes in traces.
    system = make_system(scenario, 0, profile=profile)
    system.close()
    plan = system.plan
    if plan.requests and plan.requests[0].arrival_s >= plan.intervals * scenario.interval_s:
        raise TraceError(
            f"no request arrives within the {plan.intervals} intervals of an episode: the first is "
            f"sent at {plan.requests[0].sent_s:g} s, and the network ({scenario.network.trace}) "
            f"brings its {plan.requests[0].payload_bytes:g} bytes by "
            f"{plan.requests[0].arrival_s:g} s"
        )
    if backend == "live":
        check_live(scenario, profile, limiter)
    return profile


@dataclass(frozen=True, slots=True)
class Experiment:
    """What all episodes of an evaluation share."""

    scenario: Scenario
    profile: Profile
    backend: Backend
    limiter: Limiter
    directory: RunDirectory
    controllers: Mapping[str, Controller]
    episodes: list[Episode] = field(default_factory=list)
    """Those that have ended, in their order."""

    @classmethod
    def open(
        cls,
        scenario: Scenario,
        backend: Backend,
        limiter: Limiter,
        path: Path | None,
        settings: Mapping[str, Any],
        command: Sequence[str],
        controllers: Mapping[str, Controller],
    ) -> Experiment:
        """Check scenario and controllers, and make the run directory.

        Args:
            scenario: What is evaluated.
            backend: Simulated or real worker; a live one is calibrated first if need be.
            limiter: CPU limiter of the real worker.
            path: The run directory; must not exist yet. A new one if left out.
            settings: Settings to write down in it.
            command: Command line to write down in it.
            controllers: What is compared, by name.

        Raises:
            SpongeError: Something cannot be used; nothing was written.
        """
        profile = check_scenario(scenario, backend, limiter)
        spec = make_spec(scenario, profile)
        for controller in controllers.values():
            start(controller, spec, 0)  # notices what it lacks before anything is written
        purpose = f"{scenario.name}-{backend}"
        directory = RunDirectory.create(path, scenario, settings, command, purpose)
        save_profile(profile, directory.path / "profile.json")
        return cls(scenario, profile, backend, limiter, directory, controllers)

    def run(self, seeds: int) -> bool:
        """Run seeds 0 .. seeds - 1 of every controller, into ``episodes``.

        Returns:
            Whether all ran to their end; False after an interrupt.

        Raises:
            SpongeError: An episode failed; the ones before it are in ``episodes``.
        """
        try:
            for agent, controller in self.controllers.items():
                scenario = warm(self.scenario, controller, self.profile)
                for seed in range(seeds):
                    self.episodes.append(self._episode(agent, controller, scenario, seed))
                    if self.episodes[-1].summary.partial:
                        return False
        except KeyboardInterrupt:
            return False
        return True

    def _episode(
        self, agent: str, controller: Controller, scenario: Scenario, seed: int
    ) -> Episode:
        folder = self.directory.episode(agent, seed)
        with ExitStack() as stack:
            system = make_system(
                scenario,
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
                ConsoleSink(Progress(label, system.plan.intervals, "interval")),
            ]
            for sink in sinks:
                stack.callback(sink.close)
            ledger = system.core.ledger
            stack.callback(lambda: write_requests(folder / "requests.parquet", ledger.columns()))
            run = Run.of(agent, scenario, self.backend, seed)
            return run_episode(system, controller, run, sinks)

    def plot(self) -> Path:
        """Draw the first seed of every controller; return the picture's path."""
        first: dict[str, Episode] = {}
        for episode in self.episodes:
            first.setdefault(episode.summary.agent, episode)
        path = self.directory.path / "comparison.png"
        title = f"{self.scenario.name} ({self.backend}), seed 0"
        plot_comparison({name: e.intervals for name, e in first.items()}, path, title)
        return path
