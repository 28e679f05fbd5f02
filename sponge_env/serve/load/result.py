"""The result of a load: the metrics of an episode, and what only a client can measure."""

from __future__ import annotations

import asyncio
import math
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sponge_env.metrics import NAN, EpisodeMetrics
from sponge_env.results.layout import percent
from sponge_env.scenario.profile import Profile
from sponge_env.scenario.scenario import Scenario
from sponge_env.serve.load.client import HttpClient
from sponge_env.serve.load.open_loop import (
    ANSWERED,
    IN_TRANSFER,
    KINDS,
    PENDING,
    SILENT,
    Record,
)
from sponge_env.serve.load.target import Target
from sponge_env.simulation.summary import summarise_requests

BACKEND = "served"
"""Beside ``sim`` and ``live`` in summaries."""
POLL_S = 1.0


class ServerState:
    """Who is in charge of a server, and the cores it holds, by polls of its ``GET /state``."""

    def __init__(self, client: HttpClient) -> None:
        self._client = client
        self._began_s = math.nan
        """On the server's clock; NaN for a server without this state."""
        self._cores: dict[float, float] = {}
        """Core units held in the interval that ends at a time of that clock."""
        self.agents: dict[str, None] = {}
        """Controllers that were in charge, in order."""

    async def begin(self) -> None:
        """Poll for the first time: earlier intervals do not count."""
        state = await self._get(math.inf)
        with suppress(KeyError, TypeError, ValueError):
            self._began_s = float(state["now_s"])

    async def watch(self) -> None:
        """Poll once a second, until cancelled."""
        while not math.isnan(self._began_s):
            await asyncio.sleep(POLL_S)
            await self.poll()

    async def poll(self) -> None:
        """Add the intervals since the last poll."""
        if math.isnan(self._began_s):
            return
        state = await self._get(max(self._cores, default=self._began_s))
        with suppress(KeyError, TypeError, ValueError):
            self.agents[str(state["agent"])] = None
            for point in state["history"]:
                if point["t"] > self._began_s and point["held"] is not None:
                    self._cores[float(point["t"])] = float(point["held"])

    @property
    def mean_cores(self) -> float:
        """Mean core units held since :meth:`begin`; NaN if unknown."""
        if not self._cores:
            return math.nan
        times_s = np.array(sorted(self._cores))
        spans_s = np.diff(times_s, prepend=self._began_s)
        return float(np.average([self._cores[t] for t in times_s], weights=spans_s))

    async def _get(self, since_s: float) -> dict[str, Any]:
        try:
            async with asyncio.timeout(POLL_S):
                state = (await self._client.request("GET", f"/state?since={since_s}")).json
        except (OSError, TimeoutError):
            return {}
        return state if isinstance(state, dict) else {}


@dataclass
class LoadResult:
    """A load that was sent to a server."""

    scenario: Scenario
    target: Target
    record: Record
    state: ServerState
    partial: bool = False
    """Whether it was interrupted."""

    @property
    def counted(self) -> NDArray[np.bool_]:
        """(n,) which requests count: not the warm-up, nor what an interrupt left unsent."""
        record = self.record
        counted: NDArray[np.bool_] = record.workload.arrival_s >= self.scenario.count_from_s
        counted &= ~np.isnan(record.put_s) | (record.ended == IN_TRANSFER)
        return counted

    @property
    def outcome(self) -> NDArray[np.str_]:
        """(n,) of the summary's outcomes: refused and expired requests were dropped."""
        ended = self.record.ended
        names = np.array(["running", "late", "dropped", "dropped", "failed", "failed", "dropped"])
        return np.where(self.record.on_time, "on_time", names[ended])

    @property
    def duration_s(self) -> float:
        """Time in which requests were sent that count."""
        whole_s = self.scenario.duration_s
        until_s = float(np.nanmax(self.record.put_s, initial=0.0)) if self.partial else whole_s
        return max(0.0, min(whole_s, until_s) - self.scenario.count_from_s)


def summarise_load(result: LoadResult, seed: int, profile: Profile | None) -> EpisodeMetrics:
    """Return the metrics of an episode as far as a client knows them, else NaN.

    Which requests were hopeless is only known with the profile.
    """
    counted, cores = result.counted, result.state.mean_cores
    scenario, served, start = result.scenario.cell
    return EpisodeMetrics(
        agent=" then ".join(result.state.agents) or result.target.server,
        scenario=scenario,
        profile=served,
        backend=BACKEND,
        seed=seed,
        start=start,
        partial=result.partial,
        duration_s=result.duration_s,
        mean_cores=cores,
        core_seconds=cores * result.duration_s,
        **summarise_requests(
            result.outcome[counted],
            result.record.latency_s[counted],
            _hopeless(result, profile)[counted],
        ),
        **UNKNOWN,
    )


UNKNOWN: dict[str, Any] = dict.fromkeys(
    (
        *("physical_core_seconds", "utilisation", "throttled_share", "reward", "more_cores_rate"),
        *("accuracy", "effective_accuracy", "measured_accuracy"),
        *("decision_p50_s", "decision_p99_s"),
    ),
    NAN,
)
"""Metrics that no client can know."""


def _hopeless(result: LoadResult, profile: Profile | None) -> NDArray[np.bool_]:
    """Return (n,) which requests arrive with less time than the fastest service takes."""
    from sponge_env.scenario.spec import stage_profiles
    from sponge_env.simulation.configuration import shortest_s

    workload = result.record.workload
    if profile is None:
        return np.zeros(workload.id.size, np.bool_)
    fastest_s = shortest_s(result.scenario, stage_profiles(result.scenario, profile))
    return workload.deadline_s - workload.arrival_s < fastest_s


def report_lines(result: LoadResult) -> list[str]:
    """Return lines for people, with what the summary does not say."""
    record, counted = result.record, result.counted
    ended, on_time = record.ended[counted], record.on_time & counted
    count = dict.fromkeys(KINDS, 0) | Counter(KINDS[kind] for kind in ended.tolist())
    late = count["answered"] - int(on_time.sum())
    parts = [f"{on_time.sum()} on time", f"{late} late"]
    parts += [f"{count[kind]} {kind}" for kind in ("refused", "expired", "failed")]
    rare = {SILENT: "unanswered", IN_TRANSFER: "still in transfer at the end", PENDING: "running"}
    parts += [f"{count[KINDS[kind]]} {text}" for kind, text in rare.items() if count[KINDS[kind]]]
    lines = [f"requests     {', '.join(parts)}"]
    answers_s = record.latency_s[counted & (record.ended == ANSWERED)]
    if answers_s.size:
        values = (answers_s.mean(), *np.quantile(answers_s, (0.5, 0.99)))
        texts = [f"{name} {_ms(v)}" for name, v in zip(("mean", "p50", "p99"), values, strict=True)]
        lines.append(f"latency      of answers: {', '.join(texts)}")
    lines += _server_lines(result)
    p50_s, p99_s = record.lateness_s(0.5), record.lateness_s(0.99)
    lines.append(f"client       sent {_ms(p50_s)} late in the median, {_ms(p99_s)} at p99")
    return lines + ([f"last error   {record.error}"] if record.error else [])


def _server_lines(result: LoadResult) -> list[str]:
    record, known = result.record, result.counted & ~np.isnan(result.record.service_s)
    if not known.any():
        return []
    variants = Counter(record.variant[at] for at in np.flatnonzero(known))
    shares = [f"{name} {percent(n / known.sum())}" for name, n in variants.most_common() if name]
    parts = [
        f"waiting {_ms(np.nanmean(record.queue_s[known]))}",
        f"service {_ms(record.service_s[known].mean())}",
        f"batch {np.nanmean(record.batch[known]):.2f}",
    ]
    return [f"server       {', '.join([*parts, *shares])} (means of the answers)"]


def _ms(seconds: float | np.floating[Any]) -> str:
    return f"{seconds * 1000:.1f} ms"


def request_columns(result: LoadResult) -> dict[str, NDArray[Any]]:
    """Return (n,) columns of every request, in the order of their arrivals."""
    record, workload = result.record, result.record.workload
    return {
        **workload.first(workload.id.size),
        "put_s": record.put_s,
        "finished_s": record.finished_s,
        "ended": np.array(KINDS)[record.ended],
        "on_time": record.on_time,
        "queue_s": record.queue_s,
        "service_s": record.service_s,
        "batch": record.batch,
        "variant": np.array(record.variant),
    }
