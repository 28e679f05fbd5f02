"""The live page of a server, the state that it polls once a second, and the metrics.

The page is one static file; its data comes as JSON and is set as text, never as HTML.
"""

from __future__ import annotations

import base64
import hashlib
import math
import re
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from functools import cache
from importlib.resources import files
from typing import Any
from urllib.parse import parse_qs

import orjson

from sponge_env import __version__
from sponge_env.serve.interface import Engine, Resource
from sponge_env.serve.monitor.history import KEPT_S, History, HistoryThread
from sponge_env.serve.monitor.metrics import OUTCOMES, VIOLATIONS, ServerMetrics


@contextmanager
def monitored(engine: Engine) -> Iterator[tuple[ServerMetrics, Mapping[str, Resource]]]:
    """Follow an engine until the end of the block; yield its metrics, and what shows them."""
    from sponge_env.serve.monitor import exposition

    metrics = ServerMetrics(engine.served, batches=engine.batches)
    history = History(metrics)
    with closing(HistoryThread(engine, history)):
        yield (
            metrics,
            {
                "/metrics": Resource(
                    exposition.CONTENT_TYPE, lambda _: exposition.exposition(metrics)
                ),
                "/state": Resource("application/json", lambda q: state(engine, history, since(q))),
                "/": Resource(
                    "text/html; charset=utf-8", lambda _: page(), page_headers(), open=True
                ),
            },
        )


@cache
def page() -> bytes:
    """Return the page."""
    return files("sponge_env.serve.monitor").joinpath("page.html").read_bytes()


@cache
def page_headers() -> dict[str, str]:
    """Return the page's headers: only its own script runs, and no other page frames it."""
    sources = [f"{tag}-src {' '.join(map(_source, _blocks(tag)))}" for tag in ("script", "style")]
    rules = [
        *("default-src 'none'", *sources, "connect-src 'self'", "img-src data:"),
        *("base-uri 'none'", "form-action 'none'", "frame-ancestors 'none'"),
    ]
    return {
        "cache-control": "no-cache",
        "content-security-policy": "; ".join(rules),
        "referrer-policy": "no-referrer",
        "x-content-type-options": "nosniff",
    }


def _blocks(tag: str) -> list[bytes]:
    return re.findall(rf"<{tag}>(.*?)</{tag}>".encode(), page(), re.DOTALL)


def _source(block: bytes) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(block).digest()).decode()}'"


def since(query: str) -> float:
    """Return the time from which on the history is requested, by the query of the URL."""
    try:
        since_s = float(parse_qs(query)["since"][-1])
    except (KeyError, ValueError):
        return 0.0
    return 0.0 if math.isnan(since_s) else since_s


def state(engine: Engine, history: History, since_s: float = 0.0) -> bytes:
    """Return as JSON the state of the server, and its history from a time on.

    Times are seconds since the server began, budgets and latencies seconds as well; an unknown
    number is null, the latency of a request that was never answered -1.
    """
    served, now = engine.served, engine.snapshot()
    stages = zip(
        served.stages, now.cores, now.replicas, now.batch, now.variant, now.queued, strict=False
    )
    names = ("name", "cores", "replicas", "batch", "variant", "queued")
    values: dict[str, Any] = {
        "server": {
            "version": __version__,
            "model": served.name,
            "slo_s": served.default_slo_s,
            "variants": served.variants,
            "outcomes": OUTCOMES,
            "violations": VIOLATIONS,
            "kept_s": KEPT_S,
        },
        "now_s": now.now_s,
        "ready": engine.ready,
        "agent": now.agent,
        "stages": [dict(zip(names, stage, strict=True)) for stage in stages],
        "budgets_s": now.budgets_s,
        "totals": history.metrics.counts(),
        "answers": history.metrics.answered_by(),
        "history": history.since(since_s),
    }
    return orjson.dumps(values, option=orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_NON_STR_KEYS)
