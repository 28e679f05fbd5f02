"""Serve a model, or a pipeline, to clients, with a controller in charge: ``sponge serve``."""

from __future__ import annotations

import argparse
import logging
import os
from collections.abc import Sequence
from contextlib import closing
from typing import TYPE_CHECKING, get_args

from sponge_env import cli
from sponge_env.config import Limiter
from sponge_env.installation import require_extra

if TYPE_CHECKING:
    from sponge_env.serve.extras import Extras
    from sponge_env.serve.history import Watch
    from sponge_env.serve.interface import Engine

TOKEN = "SPONGE_TOKEN"
"""Environment variable for the token, for everybody on a machine sees its command lines."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; bad input ends with one sentence and exit code 2."""
    return cli.run_script(run, argv)


def run(argv: Sequence[str]) -> int:
    """Serve until a signal ends it."""
    arguments = _parse(argv)
    require_extra("serve", "sponge serve")
    from sponge_env.serve.app import serve
    from sponge_env.serve.make import make_engine, scenario_of
    from sponge_env.serve.options import ServeOptions

    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    options = ServeOptions(
        host=arguments.host,
        port=arguments.port,
        grpc_port=arguments.grpc_port,
        token=os.environ.get(TOKEN),
    )
    engine = make_engine(
        scenario_of(arguments.model, arguments.scenario),
        arguments.agent,
        name=arguments.model,
        slo_s=None if arguments.slo_ms is None else arguments.slo_ms / 1000,
        options=cli.parse_options(arguments.option, [arguments.agent]),
        limiter=arguments.limiter,
    )
    try:
        extras, watch = _extras(engine)
        with closing(watch):
            watch.start()
            serve(engine, options, extras)
    finally:
        engine.drain(0.0)
    return 0


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = cli.Parser(
        prog=cli.program("serve"),
        description="Serve a model to clients of the Open Inference Protocol (v2), each request "
        "with its deadline.",
        epilog=f"example: {cli.program('serve')} --model efficientnet-lite0 --agent sponge-ip",
    )
    add = parser.add_argument
    said = "known model, ocr (a pipeline), or an .onnx file (default: %(default)s)"
    add("--model", default="efficientnet-lite0", help=said)
    add("--agent", default="sponge-ip", help="controller in charge (default: %(default)s)")
    add("--scenario", help="shipped scenario or TOML file for limits, interval and stages")
    add("--option", action="append", default=[], metavar="AGENT.KEY=VALUE", help="of the agent")
    add("--slo-ms", type=float, help="time to answer where a request says nothing")
    add("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    add("--port", type=int, default=8000, help="of HTTP; 0 takes a free one (default: 8000)")
    add("--grpc-port", type=int, default=8001, help="of gRPC; the same (default: 8001)")
    said = "CPU limiter: auto, cgroup (insist), duty-cycle or none"
    add("--limiter", type=cli.one_of("limiter", get_args(Limiter)), default="auto", help=said)
    return parser.parse_args(argv)


def _extras(engine: Engine) -> tuple[Extras, Watch]:
    """Return what counts and is shown beside the protocol, and who looks at the engine."""
    from sponge_env.serve.extras import Extras, Resource
    from sponge_env.serve.history import History, Watch
    from sponge_env.serve.metrics import ServerMetrics
    from sponge_env.serve.page import CONTENT_TYPE, page, page_headers, since, state

    metrics = ServerMetrics(engine.served)
    history = History(metrics)
    kind, _ = metrics.exposition()
    shown = {
        "/metrics": Resource(kind, lambda query: metrics.exposition()[1]),
        "/state": Resource("application/json", lambda query: state(engine, history, since(query))),
        "/": Resource(CONTENT_TYPE, lambda query: page(), page_headers(), open=True),
    }
    return Extras(metrics, shown), Watch(engine, history)
