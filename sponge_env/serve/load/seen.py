"""What a client saw of a server: the metrics of an episode, and what only a client can say."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sponge_env.arrays import FloatArray
from sponge_env.metrics import NAN, EpisodeMetrics
from sponge_env.results.layout import percent
from sponge_env.scenario.profile import Profile
from sponge_env.scenario.scenario import Scenario
from sponge_env.serve.load.client import Target
from sponge_env.serve.load.held import Held
from sponge_env.serve.load.open_loop import (
    ANSWERED,
    EXPIRED,
    FAILED,
    KINDS,
    ON_THE_WAY,
    PENDING,
    REFUSED,
    SILENT,
    Record,
)

BACKEND = "served"
"""Beside ``sim`` and ``live`` in summaries."""


@dataclass
class Seen:
    """A load that was sent to a server."""

    scenario: Scenario
    target: Target
    record: Record
    held: Held
    partial: bool = False
    """Whether somebody interrupted it."""

    @property
    def counted(self) -> NDArray[np.bool_]:
        """(n,) what counts: not the warm-up, nor what was not sent before an interrupt."""
        record = self.record
        sent = ~np.isnan(record.put_s) | (record.ended == ON_THE_WAY)
        counted: NDArray[np.bool_] = sent & (
            record.workload.arrival_s >= self.scenario.count_from_s
        )
        return counted

    @property
    def on_time(self) -> NDArray[np.bool_]:
        """(n,) whether the answer was here by the deadline."""
        record = self.record
        answered = record.ended == ANSWERED
        in_time: NDArray[np.bool_] = answered & (record.finished_s <= record.workload.deadline_s)
        return in_time

    @property
    def latency_s(self) -> FloatArray:
        """(n,) from when a request was sent until its answer was here; infinite without one."""
        latency_s = self.record.finished_s - self.record.workload.sent_s
        return np.where(self.record.ended == ANSWERED, latency_s, np.inf)

    @property
    def status(self) -> str:
        """What has happened so far, in a few words."""
        record = self.record
        violated = int(np.sum((record.ended != PENDING) & ~self.on_time))
        ended = int(np.sum(record.ended != PENDING))
        return f"{ended} ended, {record.under_way} under way, {violated} violations"

    def lateness_s(self, quantile: float) -> float:
        """Return how late the client itself was; 0 if it has sent nothing."""
        late_s = self.record.lateness_s
        return float(np.quantile(late_s, quantile)) if late_s.size else 0.0


def episode(seen: Seen, seed: int, profile: Profile | None) -> EpisodeMetrics:
    """Return the metrics of an episode as far as a client knows them, else NaN.

    Refused and expired requests are dropped ones; failed are those without any answer as well.
    Which ones were hopeless is only known with the profile.
    """
    record, counted = seen.record, seen.counted
    ended, on_time = record.ended[counted], seen.on_time[counted]
    late = (ended == ANSWERED) & ~on_time
    dropped = np.isin(ended, (REFUSED, EXPIRED, ON_THE_WAY))
    failed = np.isin(ended, (FAILED, SILENT))
    violated, hopeless = late | dropped | failed, _hopeless(seen, profile)[counted]
    whole = on_time | violated  # the others of an interrupted run have not ended
    count = max(1, int(whole.sum()))
    scenario, served, start = seen.scenario.cell
    duration_s = _duration_s(seen)
    mean_cores = seen.held.mean_cores
    return EpisodeMetrics(
        agent=" then ".join(seen.held.agents) or seen.target.server,
        scenario=scenario,
        profile=served,
        backend=BACKEND,
        seed=seed,
        start=start,
        partial=seen.partial,
        duration_s=duration_s,
        offered=ended.size,
        on_time=int(on_time.sum()),
        late=int(late.sum()),
        dropped=int(dropped.sum()),
        failed=int(failed.sum()),
        running=int(np.sum(ended == PENDING)),
        hopeless=int(hopeless.sum()),
        violations=int(violated.sum()),
        violation_rate=float(violated.sum() / count),
        avoidable_violation_rate=float((violated & ~hopeless).sum() / count),
        hopeless_rate=float((hopeless & whole).sum() / count),
        mean_cores=mean_cores,
        core_seconds=mean_cores * duration_s,
        **_latencies(seen.latency_s[counted & (record.ended != PENDING)]),
        **_UNKNOWN,
    )


_UNKNOWN: dict[str, Any] = dict.fromkeys(
    (
        *("physical_core_seconds", "utilisation", "throttled_share", "reward", "more_cores_rate"),
        *("accuracy", "effective_accuracy", "measured_accuracy"),
        *("decision_p50_s", "decision_p99_s"),
    ),
    NAN,
)
"""What no client can know."""


def _duration_s(seen: Seen) -> float:
    """Return for how long requests were sent that count."""
    sent_s = seen.record.put_s
    whole_s = seen.scenario.duration_s
    until_s = float(np.nanmax(sent_s, initial=0.0)) if seen.partial else whole_s
    return max(0.0, min(whole_s, until_s) - seen.scenario.count_from_s)


def _hopeless(seen: Seen, profile: Profile | None) -> NDArray[np.bool_]:
    """Return (n,) which requests arrive with less time than the fastest service takes."""
    from sponge_env.scenario.spec import stage_profiles
    from sponge_env.simulation.configuration import shortest_s

    workload = seen.record.workload
    if profile is None:
        return np.zeros(workload.id.size, np.bool_)
    fastest_s = shortest_s(seen.scenario, stage_profiles(seen.scenario, profile))
    return workload.deadline_s - workload.arrival_s < fastest_s


def _latencies(latency_s: FloatArray) -> dict[str, Any]:
    """Return the metrics of latencies, some of which may be infinite."""
    answered_s = latency_s[np.isfinite(latency_s)]
    p50_s, p99_s = (quantile_s(latency_s, each) for each in (0.5, 0.99))
    return {
        "latency_mean_s": float(answered_s.mean()) if answered_s.size else NAN,
        "latency_p50_s": p50_s,
        "latency_p99_s": p99_s,
    }


def quantile_s(latency_s: FloatArray, probability: float) -> float:
    """Return a quantile of latencies; infinite where it lies among infinite ones."""
    if not latency_s.size:
        return NAN
    with np.errstate(invalid="ignore"):  # NumPy finds no number between one and infinity
        value = float(np.quantile(latency_s, probability))
    return math.inf if math.isnan(value) else value


def lines(seen: Seen) -> list[str]:
    """Say below the table what only a client can say."""
    record, counted = seen.record, seen.counted
    of_kind = Counter(KINDS[kind] for kind in record.ended[counted].tolist())
    in_time = int(np.sum(seen.on_time & counted))
    late = of_kind["answered"] - in_time
    parts = [f"{in_time} on time", f"{late} late", f"{of_kind['refused']} refused"]
    parts += [f"{of_kind['expired']} expired", f"{of_kind['failed']} failed"]
    parts += [f"{of_kind[kind]} {said}" for kind, said in _RARE.items() if of_kind[kind]]
    said = [f"requests     {', '.join(parts)}"]
    answers_s = seen.latency_s[counted & (record.ended == ANSWERED)]
    if answers_s.size:
        said.append(
            f"latency      of the answers: mean {_ms(answers_s.mean())}, p50 "
            f"{_ms(quantile_s(answers_s, 0.5))}, p99 {_ms(quantile_s(answers_s, 0.99))}"
        )
        said += _within(seen)
    said.append(
        f"client       sent {_ms(seen.lateness_s(0.5))} late in the median, "
        f"{_ms(seen.lateness_s(0.99))} at p99"
    )
    if record.error:
        said.append(f"last error   {record.error}")
    return said


_RARE = {
    "silent": "unanswered",
    "on_the_way": "still in transfer when all was over",
    "pending": "under way",
}


def _within(seen: Seen) -> list[str]:
    """Say what the answers told of themselves."""
    record, there = seen.record, seen.counted & ~np.isnan(seen.record.service_s)
    if not there.any():
        return []
    variants = Counter(record.variant[at] for at in np.flatnonzero(there))
    shares = [f"{name} {percent(n / there.sum())}" for name, n in variants.most_common() if name]
    parts = [
        f"waiting {_ms(np.nanmean(record.queue_s[there]))}",
        f"service {_ms(record.service_s[there].mean())}",
        f"batch {np.nanmean(record.batch[there]):.2f}",
    ]
    met = int(np.sum((record.met == 1) & ~seen.on_time & seen.counted))
    back = [f"on the way   {met} answers left in time and came late"] if met else []
    return [f"in there     {', '.join([*parts, *shares])} (means of the answers)", *back]


def _ms(seconds: float | np.floating[Any]) -> str:
    return f"{seconds * 1000:.1f} ms"


def requests(seen: Seen) -> dict[str, NDArray[Any]]:
    """Return (n,) columns of every request, in the order of their arrivals."""
    record, workload = seen.record, seen.record.workload
    return {
        **workload.first(workload.id.size),
        "put_s": record.put_s,
        "finished_s": record.finished_s,
        "ended": np.array(KINDS)[record.ended],
        "on_time": seen.on_time,
        "queue_s": record.queue_s,
        "service_s": record.service_s,
        "batch": record.batch,
        "variant": np.array(record.variant),
    }
