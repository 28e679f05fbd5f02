"""What a server tells of itself beside its answers: metrics, the live page and its past."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager

from sponge_env.serve.interface import Engine
from sponge_env.serve.monitor.history import History, Watch
from sponge_env.serve.monitor.metrics import ServerMetrics
from sponge_env.serve.monitor.page import CONTENT_TYPE, page, page_headers, since, state
from sponge_env.serve.wire.extras import Extras, Resource

LOOKS = 5
"""Looks at the engine in an interval, and never less often than :data:`SELDOM_S`."""
SELDOM_S = 0.2


@contextmanager
def monitored(engine: Engine, interval_s: float) -> Iterator[Extras]:
    """Follow an engine until the end of the block, and show what is seen to who asks."""
    metrics = ServerMetrics(engine.served)
    history = History(metrics)
    with closing(Watch(engine, history, every_s=min(SELDOM_S, interval_s / LOOKS))) as watch:
        watch.start()
        resources = {
            "/metrics": Resource(metrics.exposition()[0], lambda _: metrics.exposition()[1]),
            "/state": Resource("application/json", lambda q: state(engine, history, since(q))),
            # it tells nothing by itself
            "/": Resource(CONTENT_TYPE, lambda _: page(), page_headers(), open=True),
        }
        yield Extras(metrics, resources)
