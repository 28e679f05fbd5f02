"""The live page of a server, and what it asks for once a second.

The page is one static file; what is shown in it comes as JSON and is set as text, never as HTML.
"""

from __future__ import annotations

import base64
import hashlib
import math
import re
from functools import cache
from importlib.resources import files
from typing import Any
from urllib.parse import parse_qs

import orjson

from sponge_env import __version__
from sponge_env.serve.interface import Engine
from sponge_env.serve.monitor.history import KEPT_S, History
from sponge_env.serve.monitor.metrics import OUTCOMES, VIOLATIONS

CONTENT_TYPE = "text/html; charset=utf-8"
"""Of the page; what it asks for is ``application/json``."""


@cache
def page() -> bytes:
    """Return the page."""
    return files("sponge_env.serve.monitor").joinpath("page.html").read_bytes()


@cache
def page_headers() -> dict[str, str]:
    """Return the headers that go with the page: only its own script runs, nobody frames it."""
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
    """Return from when on a page wants the history, by what follows the question mark."""
    try:
        wanted_s = float(parse_qs(query)["since"][-1])
    except (KeyError, ValueError):
        return 0.0
    return 0.0 if math.isnan(wanted_s) else wanted_s


def state(engine: Engine, history: History, since_s: float = 0.0) -> bytes:
    """Return as JSON what the server does now, and its history from a time on.

    Times within are seconds since the server began, budgets and latencies seconds as well; what
    is not known is null, a latency of who was never answered -1.
    """
    served, now = engine.served, engine.snapshot()
    of_stages = zip(
        served.stages, now.cores, now.replicas, now.batch, now.variant, now.queued, strict=False
    )
    names = ("name", "cores", "replicas", "batch", "variant", "queued")
    told: dict[str, Any] = {
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
        "stages": [dict(zip(names, stage, strict=True)) for stage in of_stages],
        "budgets_s": now.budgets_s,
        "totals": history.metrics.counts(),
        "answers": history.metrics.answered_by(),
        "history": history.since(since_s),
    }
    return orjson.dumps(told, option=orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_NON_STR_KEYS)
