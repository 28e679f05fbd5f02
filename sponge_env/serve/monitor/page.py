"""The live page of a server, the state that it polls once a second, and its last minutes.

The page is one static file; its data comes as JSON and is set as text, never as HTML.
"""

import base64
import hashlib
import math
import re
import threading
import time
from collections import Counter, deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache, lru_cache, partial
from importlib.resources import files
from itertools import chain
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs

import orjson

from sponge_env import __version__
from sponge_env.metrics import IntervalMetrics
from sponge_env.serve.interface import Resource, Snapshot
from sponge_env.serve.monitor.metrics import OUTCOMES, VIOLATIONS, ServerMetrics

if TYPE_CHECKING:
    from sponge_env.serve.engine import ServingEngine

KEPT = 600  # Intervals in the history, and seconds that the page shows of it
PLACES = 4  # Decimals in JSON: a chart cannot show more
JSON, HTML = "application/json", "text/html; charset=utf-8"
NEVER = -1.0  # Infinite latency, of requests that were never answered, in JSON


class History:
    """Keeps a point for each of the last intervals, as the JSON that it is sent as."""

    def __init__(self, metrics: ServerMetrics) -> None:
        self.metrics = metrics
        self._counted = metrics.counts()
        self._points: deque[tuple[float, orjson.Fragment]] = deque(maxlen=KEPT)

    def take(self, snapshot: Snapshot) -> None:
        """Count and add the interval of a snapshot, unless it has been added already."""
        if not self.metrics.take(snapshot):
            return
        counts = self.metrics.counts()
        point = _point(snapshot, {name: counts[name] - self._counted[name] for name in OUTCOMES})
        self._counted = counts
        self._points.append((point["t"], orjson.Fragment(orjson.dumps(point))))

    def since(self, since_s: float = 0.0) -> list[orjson.Fragment]:
        """Return the points from a time on, oldest first."""
        return [text for at_s, text in list(self._points) if at_s >= since_s]


def _point(now: Snapshot, ended: Mapping[str, int]) -> dict[str, Any]:
    """Return an interval in a few numbers; unknown ones are NaN, which is null in JSON."""
    last = now.last or IntervalMetrics()
    point = {
        "t": now.now_s, "ended": [ended[name] for name in OUTCOMES],
        "p50": last.latency_p50_s, "p99": last.latency_p99_s,
        "held": last.cores, "used": last.cores * last.utilisation,
        "cores": [stage["cores"] for stage in last.stages.values()] or [last.cores],
        "replicas": now.replicas, "restarts": last.restarts,
        "queued": now.queued, "running": last.running, "batch": last.batch_mean,
        "agent": now.agent, "variant": now.variant,
    }  # fmt: skip
    point |= {name: NEVER for name in ("p50", "p99") if point[name] == math.inf}
    return {name: round(v, PLACES) if isinstance(v, float) else v for name, v in point.items()}


@contextmanager
def monitored(engine: "ServingEngine") -> Iterator[tuple[ServerMetrics, Mapping[str, Resource]]]:
    """Follow an engine until the end of the block; yield its metrics, and what shows them."""
    from sponge_env.serve.monitor import exposition

    made = partial(ServerMetrics, batches=engine.batches, resizes=engine.resizes)
    metrics, *metrics.others = map(made, engine.models.values())
    history = History(metrics)
    # made once a second, whoever asks
    kept = lru_cache(maxsize=2)(lambda second, open_: exposition.exposition(metrics, open_))
    whole = lru_cache(maxsize=1)(lambda second: state(engine, history))

    def state_of(query: str, _: str) -> tuple[str, bytes]:
        now = int(time.monotonic())
        return JSON, state(engine, history, since(query)) if query else whole(now)

    def metrics_of(_: str, accept: str) -> tuple[str, bytes]:
        open_metrics = "application/openmetrics-text" in accept.lower()
        return exposition.TYPES[open_metrics], kept(int(time.monotonic()), open_metrics)

    resources = {
        "/metrics": Resource(metrics_of, {"vary": "accept"}), "/state": Resource(state_of),
        "/": Resource(lambda *_: (HTML, page()), page_headers(), open=True),
    }  # fmt: skip
    with watched(engine, history):
        yield metrics, resources


@contextmanager
def watched(engine: "ServingEngine", history: History) -> Iterator[None]:
    """Add the snapshots of an engine to a history from now on, in a thread of its own."""
    snapshots: SimpleQueue[Snapshot | None] = SimpleQueue()
    snapshots.put(engine.snapshot())
    engine.follow(snapshots.put)

    def take_all() -> None:
        while (snapshot := snapshots.get()) is not None:
            history.take(snapshot)

    thread = threading.Thread(target=take_all, name="sponge-history", daemon=True)
    thread.start()
    try:
        yield
    finally:
        snapshots.put(None)
        thread.join()


@cache
def page() -> bytes:
    """Return the page."""
    return files("sponge_env.serve.monitor").joinpath("page.html").read_bytes()


@cache
def page_headers() -> dict[str, str]:
    """Return the page's headers: only its own script runs, and no other page frames it."""
    sources = []
    for tag in ("script", "style"):
        blocks = re.findall(rf"<{tag}>(.*?)</{tag}>".encode(), page(), re.DOTALL)
        digests = [base64.b64encode(hashlib.sha256(block).digest()).decode() for block in blocks]
        sources.append(" ".join([f"{tag}-src", *(f"'sha256-{digest}'" for digest in digests)]))
    rules = [
        *("default-src 'none'", *sources, "connect-src 'self'", "img-src data:"),
        *("base-uri 'none'", "form-action 'none'", "frame-ancestors 'none'"),
    ]
    return {
        "cache-control": "no-cache", "content-security-policy": "; ".join(rules),
        "referrer-policy": "no-referrer", "x-content-type-options": "nosniff",
    }  # fmt: skip


def since(query: str) -> float:
    """Return the time from which on the history is requested, by the query of the URL."""
    try:
        since_s = float(parse_qs(query)["since"][-1])
    except (KeyError, ValueError):
        return 0.0
    return 0.0 if math.isnan(since_s) else since_s


def state(engine: "ServingEngine", history: History, since_s: float = 0.0) -> bytes:
    """Return as JSON the state of the server, and its history from a time on."""
    # Times are seconds since the server began, budgets and latencies seconds as well; an unknown
    # number is null, the latency of a request that was never answered -1.
    metrics, now = history.metrics, engine.snapshot()
    served, counted = metrics.served, (metrics, *metrics.others)
    stages = chain.from_iterable(each.served.stages for each in counted)
    columns = stages, now.cores, now.replicas, now.batch, now.variant, now.queued
    names = ("name", "cores", "replicas", "batch", "variant", "queued")
    server = {"version": __version__, "variants": served.variants, "kept_s": KEPT}
    server |= {"outcomes": OUTCOMES, "violations": VIOLATIONS}
    server["model"] = ", ".join(each.served.name for each in counted)
    server["slo_s"] = max(each.served.default_slo_s for each in counted)
    values: dict[str, Any] = {
        "server": server,
        "now_s": now.now_s,
        "ready": engine.ready,
        "agent": now.agent,
        "stages": [dict(zip(names, stage, strict=True)) for stage in zip(*columns, strict=False)],
        "budgets_s": now.budgets_s,
        "models": [
            {"name": m.served.name, "slo_s": m.served.default_slo_s, "totals": m.outcomes}
            for m in counted
        ],
        "totals": metrics.counts(),
        "answers": sum((each.answers for each in counted), Counter()),
        "history": history.since(since_s),
    }
    return orjson.dumps(values, option=orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_NON_STR_KEYS)
