"""The last minutes of a server, for pages that are opened later."""

from __future__ import annotations

import math
import threading
from collections import deque
from collections.abc import Mapping
from queue import SimpleQueue
from typing import Any

import orjson

from sponge_env.metrics import IntervalMetrics
from sponge_env.serve.interface import Engine, Snapshot
from sponge_env.serve.monitor.metrics import OUTCOMES, ServerMetrics

KEPT_S = 600.0
"""How far back it goes."""
POINT_S = 1.0
"""Shorter intervals than this share a point."""
PLACES = 4
"""Of decimals, in JSON: a chart cannot show more."""
NEVER = -1.0
"""Infinite latency, of requests that were never answered, in JSON."""

Point = dict[str, Any]


class History:
    """Keeps a point for each second or interval, whichever is longer; bounded.

    Each is kept as the JSON that it is sent as.
    """

    def __init__(self, metrics: ServerMetrics) -> None:
        """Keep what these metrics have counted in each interval."""
        self.metrics = metrics
        self._counted = metrics.counts()
        self._points: deque[tuple[float, orjson.Fragment]] = deque()
        self._open: Point = {}
        self._second = -1.0
        """Of the open point, as intervals count."""

    def take(self, snapshot: Snapshot) -> None:
        """Add the interval of a new snapshot."""
        counts = self.metrics.counts()
        point = _point(snapshot, {name: counts[name] - self._counted[name] for name in OUTCOMES})
        self._counted = counts
        before, self._second = self._second, (snapshot.last or IntervalMetrics()).time_s // POINT_S
        if self._second == before:
            point = _merged(self._open, point)
            self._points.pop()
        self._open = point
        self._points.append((point["t"], orjson.Fragment(orjson.dumps(_rounded(point)))))
        while self._points[0][0] < point["t"] - KEPT_S:
            self._points.popleft()

    def since(self, since_s: float = 0.0) -> list[orjson.Fragment]:
        """Return the points from a time on, oldest first."""
        return [text for at_s, text in list(self._points) if at_s >= since_s]


def _point(now: Snapshot, ended: Mapping[str, int]) -> Point:
    """Return an interval in a few numbers; unknown ones are NaN, which is null in JSON."""
    last = now.last or IntervalMetrics()
    return {
        "t": round(now.now_s, PLACES),
        "ended": [ended[name] for name in OUTCOMES],
        "p50": _known_s(last.latency_p50_s),
        "p99": _known_s(last.latency_p99_s),
        "held": last.cores,
        "used": last.cores * last.utilisation,
        "cores": _stage_cores(now, last),
        "replicas": now.replicas,
        "queued": now.queued,
        "running": last.running,
        "batch": last.batch_mean,
        "restarts": last.restarts,
        "agent": now.agent,
        "variant": now.variant,
    }


def _rounded(point: Point) -> Point:
    return {name: round(v, PLACES) if isinstance(v, float) else v for name, v in point.items()}


def _stage_cores(now: Snapshot, last: IntervalMetrics) -> list[float]:
    """Return the cores of each stage; the metrics of a single stage are the system's."""
    values = [stage["cores"] for stage in last.stages.values()]
    return values if len(values) == len(now.cores) else [last.cores]


def _known_s(latency_s: float) -> float:
    return NEVER if latency_s == math.inf else latency_s


def _merged(one: Point, other: Point) -> Point:
    """Return two points as one: counts add up, the worst tail stays, the rest is the later's."""
    tails = (one["p99"], other["p99"])
    known = [value for value in tails if not math.isnan(value)]
    return other | {
        "ended": [a + b for a, b in zip(one["ended"], other["ended"], strict=True)],
        "p99": NEVER if NEVER in known else max(known, default=math.nan),
        "p50": one["p50"] if math.isnan(other["p50"]) else other["p50"],
        "restarts": one["restarts"] + other["restarts"],
    }


class HistoryThread:
    """Counts and keeps the snapshots of an engine, in a thread of its own."""

    def __init__(self, engine: Engine, history: History) -> None:
        """Take the present snapshot, and follow the engine from now on."""
        self._history = history
        self._snapshots: SimpleQueue[Snapshot | None] = SimpleQueue()
        self._snapshots.put(engine.snapshot())
        engine.follow(self._snapshots.put)
        self._thread = threading.Thread(target=self._run, name="sponge-history", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Take what has been published, then end. Safe to call twice."""
        self._snapshots.put(None)
        self._thread.join()

    def _run(self) -> None:
        while (snapshot := self._snapshots.get()) is not None:
            if self._history.metrics.take(snapshot):
                self._history.take(snapshot)
