"""One controller, one episode: the loop that every experiment runs."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from sponge_env.arrays import total
from sponge_env.errors import SpongeError
from sponge_env.interfaces import Allocation, Controller, Sink, SystemSpec, SystemView
from sponge_env.results.schema import EpisodeMetrics, IntervalMetrics
from sponge_env.run.controllers import decision, start
from sponge_env.scenario import Scenario
from sponge_env.system import EpisodePlan

QUANTILES = 100
"""Latencies are kept as so many quantiles of equal distance, and the smallest."""

_OUTCOMES = ("on_time", "late", "dropped", "failed", "queued", "running")


class ControlledSystem(Protocol):
    """What a controller drives: :class:`~sponge_env.system.System` or its compiled twin."""

    @property
    def spec(self) -> SystemSpec:
        """What controllers may know."""

    @property
    def plan(self) -> EpisodePlan:
        """The episode."""

    @property
    def done(self) -> bool:
        """Whether the last interval is over."""

    @property
    def limiter(self) -> str:
        """What limits the worker's CPU."""

    def paused(self) -> AbstractContextManager[None]:
        """Let no time pass for requests and worker meanwhile."""

    def view(self) -> SystemView:
        """Return what a controller sees now."""

    def step(self, allocation: Allocation, decision_s: float = 0.0) -> IntervalMetrics:
        """Put an allocation in force and serve until the interval ends."""

    def drain(self) -> object:
        """Serve what is left after the last interval."""

    def columns(self) -> Mapping[str, NDArray[Any]]:
        """Return every offered request and its outcome, as the ledger does.

        The columns that a summary reads: ``sent_s``, ``arrival_s``, ``finished_s``,
        ``outcome``, ``hopeless``.
        """

    def close(self) -> None:
        """Release what is held."""


@dataclass(frozen=True, slots=True)
class Run:
    """What identifies an episode in the results."""

    agent: str
    scenario: str
    backend: str
    seed: int
    profile: str = ""
    start: str = "cold"

    @classmethod
    def of(cls, agent: str, scenario: Scenario, backend: str, seed: int) -> Run:
        """Name an episode of a scenario."""
        profile = Path(scenario.profile).stem
        return cls(agent, scenario.name, backend, seed, profile, scenario.start)


@dataclass(frozen=True, slots=True)
class Episode:
    """What an episode leaves behind."""

    summary: EpisodeMetrics
    """``summary.partial`` tells whether it ended early."""
    intervals: tuple[IntervalMetrics, ...]
    failure: SpongeError | None = None
    """Why worker or controller could not go on."""


def run_episode(
    system: ControlledSystem, controller: Controller, run: Run, sinks: Sequence[Sink] = ()
) -> Episode:
    """Let a controller drive a system as :func:`play` does.

    Raises:
        SpongeError: The worker or the controller cannot go on.
    """
    episode = play(system, controller, run, sinks)
    if episode.failure is not None:
        raise episode.failure
    return episode


def play(
    system: ControlledSystem, controller: Controller, run: Run, sinks: Sequence[Sink] = ()
) -> Episode:
    """Let a controller drive a system to the end of its episode.

    An interrupt (Ctrl-C) ends the episode early, as does a worker or a controller that cannot
    go on: the summary is marked partial and still reaches the sinks. The caller closes system and
    sinks.

    Args:
        system: A system at time 0.
        controller: Decides once per interval.
        run: Names for the summary.
        sinks: Receive every interval and the summary.
    """
    intervals: list[IntervalMetrics] = []
    partial, failure = False, None
    try:
        with system.paused():  # a controller may load or compile something now
            start(controller, system.spec, run.seed)
        while not system.done:
            intervals.append(_step(system, controller))
            for sink in sinks:
                sink.interval(intervals[-1])
        system.drain()
    except KeyboardInterrupt:
        partial = True
    except SpongeError as error:
        partial, failure = True, error
    summary = summarise(system, intervals, run, partial)
    for sink in sinks:
        sink.episode(summary)
    return Episode(summary, tuple(intervals), failure)


def _step(system: ControlledSystem, controller: Controller) -> IntervalMetrics:
    view = system.view()
    started_s = time.perf_counter()
    allocation = decision(controller, view, system.spec)
    return system.step(allocation, decision_s=time.perf_counter() - started_s)


def summarise(
    system: ControlledSystem, intervals: Sequence[IntervalMetrics], run: Run, partial: bool = False
) -> EpisodeMetrics:
    """Sum up the part of an episode that counts, from its ledger and its intervals.

    Cores are those held during the intervals; the requests that were still in the system
    after the last one count with the outcome that :meth:`System.drain` gave them.
    """
    from_s = system.plan.count_from_s
    intervals = [w for w in intervals if w.time_s > from_s + 1e-9]
    duration_s = len(intervals) * system.spec.interval_s
    core_seconds = total(w.core_seconds for w in intervals)
    decisions_s = [w.decision_s for w in intervals] or [0.0]
    return EpisodeMetrics(
        **dataclasses.asdict(run),
        partial=partial,
        limiter=system.limiter,
        duration_s=duration_s,
        **_request_metrics(system.columns(), from_s),
        mean_cores=core_seconds / duration_s if intervals else 0.0,
        core_seconds=core_seconds,
        physical_core_seconds=core_seconds * system.spec.core_unit,
        utilisation=_mean_by_cores(intervals, "utilisation"),
        throttled_share=_mean_by_cores(intervals, "throttled_share"),
        restarts=sum(w.restarts for w in intervals),
        infeasible_decisions=sum(not w.feasible for w in intervals),
        decision_p50_s=float(np.quantile(decisions_s, 0.5)),
        decision_p99_s=float(np.quantile(decisions_s, 0.99)),
        reward=total(w.reward for w in intervals),
    )


def _request_metrics(columns: Mapping[str, NDArray[Any]], from_s: float) -> dict[str, Any]:
    """Return the metrics of the requests that arrived at ``from_s`` or later."""
    counted = columns["arrival_s"] >= from_s
    outcome, hopeless = columns["outcome"][counted], columns["hopeless"][counted]
    counts = {name: int(np.sum(outcome == name)) for name in _OUTCOMES}
    violated = np.isin(outcome, ("late", "dropped", "failed"))
    answered = np.isin(outcome, ("on_time", "late"))
    latency_s = (columns["finished_s"] - columns["sent_s"])[counted][answered]
    offered = max(1, outcome.size)
    return {
        **counts,
        "offered": outcome.size,
        "hopeless": int(hopeless.sum()),
        "violations": int(violated.sum()),
        "violation_rate": float(violated.sum() / offered),
        "avoidable_violation_rate": float((violated & ~hopeless).sum() / offered),
        "hopeless_rate": float(hopeless.sum() / offered),
        "latency_mean_s": float(latency_s.mean()) if latency_s.size else np.nan,
        "latency_p50_s": float(np.quantile(latency_s, 0.5)) if latency_s.size else np.nan,
        "latency_p99_s": float(np.quantile(latency_s, 0.99)) if latency_s.size else np.nan,
    }


def latency_quantiles_s(columns: Mapping[str, NDArray[Any]], from_s: float) -> list[float | None]:
    """Return quantiles of the latency of the requests that arrived at ``from_s`` or later.

    A request that is never answered has an infinite latency: without it, who drops looks fast.

    Returns:
        (QUANTILES + 1,) numbers, None for infinite ones.
    """
    answered = np.isin(columns["outcome"], ("on_time", "late"))
    latency_s = np.where(answered, columns["finished_s"] - columns["sent_s"], np.inf)
    counted_s = latency_s[columns["arrival_s"] >= from_s]
    if not counted_s.size:
        return [None] * (QUANTILES + 1)
    with np.errstate(invalid="ignore"):  # between a number and infinity lies none
        values = np.quantile(counted_s, np.linspace(0.0, 1.0, QUANTILES + 1)).tolist()
    return [value if math.isfinite(value) else None for value in values]


def _mean_by_cores(intervals: Sequence[IntervalMetrics], name: str) -> float:
    held = total(w.core_seconds for w in intervals)
    if held <= 0:
        return 0.0
    return total(getattr(w, name) * w.core_seconds for w in intervals) / held
