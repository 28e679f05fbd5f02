"""The result of a load: how requests ended, as a client measures it, and the summary of that."""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sponge_env.metrics import NAN, EpisodeMetrics
from sponge_env.scenario.profile import Profile
from sponge_env.scenario.scenario import Scenario
from sponge_env.scenario.spec import stage_profiles
from sponge_env.serve.load.target import ServerState, Target
from sponge_env.simulation.configuration import shortest_s
from sponge_env.simulation.summary import summarise_requests
from sponge_env.simulation.workload import Workload

BACKEND = "served"  # Beside ``sim`` and ``live`` in summaries

PENDING, ANSWERED, REFUSED, EXPIRED, FAILED, SILENT, IN_TRANSFER = range(7)
"""How a request ended: not yet; with outputs; refused at once; dropped while it waited; with
another error; not within :data:`GRACE_S`; still in transfer when the load ended."""
KINDS = (
    *("running", "answered", "refused", "expired", "failed", "unanswered"),
    "still in transfer at the end",
)


class LoadResult:
    """How the n requests of a workload ended, in its order; times since its start."""

    def __init__(
        self, scenario: Scenario, target: Target, workload: Workload, state: ServerState
    ) -> None:
        self.scenario, self.target, self.workload, self.state = scenario, target, workload, state
        self.error = ""  # The last error that was neither a refusal nor an expiry
        count = workload.id.size
        self.ended = np.full(count, PENDING, np.int8)  # (n,) of :data:`KINDS`
        self.put_s, self.finished_s = np.full((2, count), math.nan)
        """(n,) when each was put on the wire, and answered or given up; NaN before."""

    @property
    def on_time(self) -> NDArray[np.bool_]:
        """(n,) whether the answer was here by the deadline."""
        in_time: NDArray[np.bool_] = self.ended == ANSWERED
        return np.logical_and(in_time, self.finished_s <= self.workload.deadline_s)

    def lateness_s(self, quantile: float) -> float:
        """Return a quantile of how late this client itself was; 0 if it has sent nothing."""
        late_s = self.put_s - self.workload.arrival_s
        sent_s = late_s[~np.isnan(late_s)]
        return float(np.quantile(sent_s, quantile)) if sent_s.size else 0.0

    @property
    def counted(self) -> NDArray[np.bool_]:
        """(n,) which requests count: not the warm-up."""
        counted: NDArray[np.bool_] = self.workload.arrival_s >= self.scenario.count_from_s
        return counted

    @property
    def outcome(self) -> NDArray[np.str_]:
        """(n,) of the summary's outcomes: refused and expired requests were dropped."""
        names = np.array(["running", "late", "dropped", "dropped", "failed", "failed", "dropped"])
        return np.where(self.on_time, "on_time", names[self.ended])

    @property
    def duration_s(self) -> float:
        """Time in which requests were sent that count."""
        return max(0.0, self.scenario.duration_s - self.scenario.count_from_s)


def summarise_load(result: LoadResult, seed: int, profile: Profile | None) -> EpisodeMetrics:
    """Return an episode's metrics as far as a client, with or without the profile, knows them."""
    counted, cores = result.counted, result.state.mean_cores
    took_s = result.finished_s - result.workload.sent_s
    scenario, served, start = result.scenario.cell
    budget_s, least_s = result.workload.deadline_s - result.workload.arrival_s, -math.inf
    if profile is not None:
        least_s = shortest_s(result.scenario, stage_profiles(result.scenario, profile))
    return EpisodeMetrics(
        agent=" then ".join(result.state.agents) or result.target.server,
        scenario=scenario, profile=served, backend=BACKEND, seed=seed, start=start,
        duration_s=result.duration_s, mean_cores=cores, core_seconds=cores * result.duration_s,
        **summarise_requests(result.outcome[counted], took_s[counted], budget_s[counted] < least_s),
        **UNKNOWN,
    )  # fmt: skip


UNKNOWN: dict[str, Any] = dict.fromkeys((  # Metrics that no client can know
    "physical_core_seconds", "utilisation", "throttled_share", "reward", "more_cores_rate",
    "accuracy", "effective_accuracy", "measured_accuracy", "decision_p50_s", "decision_p99_s",
), NAN)  # fmt: skip


def report_lines(result: LoadResult) -> list[str]:
    """Return lines for people, with what the summary does not say."""
    counted, on_time = result.counted, result.on_time & result.counted
    counts = np.bincount(result.ended[counted], minlength=len(KINDS)).tolist()
    parts = [f"{on_time.sum()} on time", f"{counts[ANSWERED] - on_time.sum()} late"]
    shown = (kind for kind in range(REFUSED, len(KINDS)) if kind <= FAILED or counts[kind])
    parts += [f"{counts[kind]} {KINDS[kind]}" for kind in shown]
    lines = [f"requests     {', '.join(parts)}"]
    p50_ms, p99_ms = (1000 * result.lateness_s(share) for share in (0.5, 0.99))
    lines.append(f"client       sent {p50_ms:.1f} ms late in the median, {p99_ms:.1f} ms at p99")
    return lines + ([f"last error   {result.error}"] if result.error else [])
