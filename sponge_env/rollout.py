"""One controller, one episode: the loop that every experiment runs."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sponge_env.errors import SpongeError
from sponge_env.interfaces import Controller, Sink
from sponge_env.metrics import EpisodeMetrics, WindowMetrics
from sponge_env.system import System


@dataclass(frozen=True, slots=True)
class Run:
    """What identifies an episode in the results."""

    agent: str
    scenario: str
    backend: str
    seed: int


@dataclass(frozen=True, slots=True)
class Episode:
    """What an episode leaves behind."""

    summary: EpisodeMetrics
    windows: tuple[WindowMetrics, ...]


def run_episode(
    system: System, controller: Controller, run: Run, sinks: Sequence[Sink] = ()
) -> Episode:
    """Let a controller drive a system to the end of its episode.

    An interrupt (Ctrl-C) ends the episode early, as does a worker that cannot go on: the
    summary is marked partial and still reaches the sinks. The caller closes system and
    sinks.

    Args:
        system: A system at time 0.
        controller: Decides once per interval.
        run: Names for the summary.
        sinks: Receive every interval and the summary.

    Returns:
        Summary and intervals. ``summary.partial`` tells whether it was interrupted.

    Raises:
        SpongeError: The worker cannot go on.
    """
    windows: list[WindowMetrics] = []
    partial, failure = False, None
    try:
        controller.reset(system.spec, run.seed)
        while not system.done:
            windows.append(_step(system, controller))
            for sink in sinks:
                sink.window(windows[-1])
        system.drain()
    except KeyboardInterrupt:
        partial = True
    except SpongeError as error:
        partial, failure = True, error
    summary = summarise(system, windows, run, partial)
    for sink in sinks:
        sink.episode(summary)
    if failure is not None:
        raise failure
    return Episode(summary, tuple(windows))


def _step(system: System, controller: Controller) -> WindowMetrics:
    view = system.view()
    started_s = time.perf_counter()
    allocation = controller.decide(view)
    return system.step(allocation, decision_s=time.perf_counter() - started_s)


def summarise(
    system: System, windows: Sequence[WindowMetrics], run: Run, partial: bool = False
) -> EpisodeMetrics:
    """Sum an episode up from its ledger and its intervals.

    Cores are those held during the intervals; the requests that were still in the system
    after the last one count with the outcome that :meth:`System.drain` gave them.
    """
    counts = system.core.counts
    duration_s = len(windows) * system.spec.interval_s
    core_seconds = sum(w.core_seconds for w in windows)
    offered = max(1, counts.offered)
    latency_s = _latencies_s(system)
    decisions_s = [w.decision_s for w in windows] or [0.0]
    return EpisodeMetrics(
        agent=run.agent,
        scenario=run.scenario,
        backend=run.backend,
        seed=run.seed,
        partial=partial,
        limiter=system.worker.limiter,
        duration_s=duration_s,
        offered=counts.offered,
        on_time=counts.on_time,
        late=counts.late,
        dropped=counts.dropped,
        failed=counts.failed,
        queued=counts.queued,
        running=counts.running,
        hopeless=counts.hopeless,
        violations=counts.violations,
        violation_rate=counts.violations / offered,
        avoidable_violation_rate=counts.avoidable / offered,
        hopeless_rate=counts.hopeless / offered,
        mean_cores=core_seconds / duration_s if windows else 0.0,
        core_seconds=core_seconds,
        physical_core_seconds=core_seconds * system.spec.core_unit,
        utilisation=_mean_by_cores(windows, "utilisation"),
        throttled_share=_mean_by_cores(windows, "throttled_share"),
        restarts=sum(w.restarts for w in windows),
        latency_mean_s=float(latency_s.mean()) if len(latency_s) else np.nan,
        latency_p50_s=float(np.quantile(latency_s, 0.5)) if len(latency_s) else np.nan,
        latency_p99_s=float(np.quantile(latency_s, 0.99)) if len(latency_s) else np.nan,
        infeasible_decisions=sum(not w.feasible for w in windows),
        decision_p50_s=float(np.quantile(decisions_s, 0.5)),
        decision_p99_s=float(np.quantile(decisions_s, 0.99)),
        reward=sum(w.reward for w in windows),
    )


def _latencies_s(system: System) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """End-to-end latencies of the requests that were answered, on time or late."""
    columns = system.core.ledger.columns()
    answered = np.isin(columns["outcome"], ("on_time", "late"))
    finished_s = columns["finished_s"].astype(np.float64)
    return (finished_s - columns["sent_s"].astype(np.float64))[answered]


def _mean_by_cores(windows: Sequence[WindowMetrics], name: str) -> float:
    total = sum(w.core_seconds for w in windows)
    if total <= 0:
        return 0.0
    return float(sum(getattr(w, name) * w.core_seconds for w in windows) / total)
