"""What a server tells of itself beside its answers: metrics, the live page and its past."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager

from sponge_env.serve.interface import Engine
from sponge_env.serve.monitor.history import History, Watch
from sponge_env.serve.monitor.metrics import ServerMetrics
from sponge_env.serve.monitor.page import CONTENT_TYPE, page, page_headers, since, state
from sponge_env.serve.wire.extras import Extras, Resource


@contextmanager
def monitored(engine: Engine) -> Iterator[Extras]:
    """Follow an engine until the end of the block, and show what is seen to who asks."""
    metrics = ServerMetrics(engine.served, batches=engine.batches)
    history = History(metrics)
    with closing(Watch(engine, history)):
        resources = {
            "/metrics": Resource(metrics.exposition()[0], lambda _: metrics.exposition()[1]),
            "/state": Resource("application/json", lambda q: state(engine, history, since(q))),
            # it tells nothing by itself
            "/": Resource(CONTENT_TYPE, lambda _: page(), page_headers(), open=True),
        }
        yield Extras(metrics, resources)
