"""Serve a model, or a pipeline of models, to clients with deadlines."""

import argparse
import os
import sys
from collections.abc import Sequence
from contextlib import closing

from sponge_env import cli
from sponge_env.errors import ConfigError, SpongeError
from sponge_env.models.registry import KNOWN
from sponge_env.scenario.option import positive, require
from sponge_env.scenario.toml import from_mapping
from sponge_env.serve.options import TOKEN, ServeOptions, allow_files, listening_socket
from sponge_env.utils.installation import bundled, imported, require_extra

SERVER = "server"  # Prefix of the server's settings, as an agent's name is that of its options
MOST_QUEUED = 1 << 20  # Calls of a model that may wait: there is memory for each
FAILED = 1  # Exit code of a server that stopped by itself
SWITCH_S = 0.0005  # Maximum time that a busy thread keeps the interpreter from the serving thread


@cli.command
def main(argv: Sequence[str]) -> int:
    """Run the command; return its exit code."""
    arguments = _parser().parse_args(argv)
    require_extra("serve", "the server")
    # These take a while to import; a mistyped option should not wait for them.
    from sponge_env.env.factory import ensure_profile, prepare_machine
    from sponge_env.models.registry import resolve_model
    from sponge_env.scenario.scenario import scenario_of_all, served_name
    from sponge_env.serve.app import serve
    from sponge_env.serve.make import controllers, make_engine
    from sponge_env.serve.monitor.page import monitored

    allow_files(options := _server_options(arguments))
    if options.spans:
        require_extra("otel", "server.spans")
    controllers(arguments.agent, _agent_options(arguments))(arguments.agent)  # before measuring
    for name in (each for each in arguments.model if each.endswith(".onnx")):
        resolve_model(name)  # a bad file is an error before anything waits
    if arguments.slo_ms is not None:
        positive("--slo-ms", arguments.slo_ms)
    require(arguments.queue <= MOST_QUEUED, "--queue", arguments.queue, f"at most {MOST_QUEUED}")
    http, rpc = options.port, options.grpc_port
    require(http == 0 or http != rpc, "--grpc-port", rpc, "another than --port")
    for port in filter(None, (http, rpc)):
        listening_socket(options.host, port).close()
    prepare_machine(arguments.wait, arguments.cpus, arguments.replicas, arguments.limiter)
    sys.setswitchinterval(SWITCH_S)
    with cli.terminate_like_interrupt():  # the first process of a container gets no signal unasked
        scenario = scenario_of_all(arguments.model, arguments.scenario)
        if len(arguments.model) > 1:  # objectives that depend on the models are known from now on
            ensure_profile(scenario, "live", arguments.limiter)
            scenario = scenario_of_all(arguments.model, arguments.scenario)
        engine = make_engine(
            scenario, arguments.agent,
            name=served_name("".join(arguments.model), arguments.scenario),
            slo_s=None if arguments.slo_ms is None else arguments.slo_ms / 1000,
            options=_agent_options(arguments), queue_max=arguments.queue, limiter=arguments.limiter,
        )  # fmt: skip
        with closing(engine), monitored(engine) as (metrics, resources):
            serve(engine, options, metrics, resources)
    return outcome(engine.error)


def outcome(error: SpongeError | None) -> int:
    """Return the exit code of a server that has ended; print why, if it stopped by itself."""
    if error is None:
        return 0
    sys.stderr.write(f"error: {error}\n")
    return FAILED


def _server_options(arguments: argparse.Namespace) -> ServeOptions:
    own = [f"{SERVER}.{name}={getattr(arguments, name)}" for name in ("host", "port", "grpc_port")]
    own += [f"{SERVER}.refuse_nan=true"] * arguments.refuse_nan
    own += [option for option in arguments.option if option.startswith(f"{SERVER}.")]
    values = cli.parse_options(own, [SERVER])[SERVER]
    if "token" in values:
        raise ConfigError(f"put the token into {TOKEN}: all users of a machine see command lines")
    values["token"] = os.environ.get(TOKEN) or None
    if values["grpc_port"] == "none":
        values["grpc_port"] = None
    return from_mapping(ServeOptions, values, f"{SERVER}.")


def _agent_options(arguments: argparse.Namespace) -> dict[str, dict[str, object]]:
    from sponge_env.run.registry import who_takes

    options = [option for option in arguments.option if not option.startswith(f"{SERVER}.")]
    if arguments.policy:
        taker = who_takes("policy", {arguments.agent: arguments.agent})
        options.append(f"{taker}.policy={arguments.policy}")
    return cli.parse_options(options, [arguments.agent])


def _parser() -> cli.Parser:
    parser = cli.Parser(
        prog=cli.program("serve"),
        description="Serve a model over HTTP and gRPC (Open Inference Protocol v2), by deadline.",
        epilog=f"clients send the token in ${TOKEN}, if there is one, as Authorization: Bearer",
    )
    add, models = parser.add_argument, ", ".join(("ocr", *KNOWN))
    add("--model", action="append", default=[], metavar="M",
        help=f"{models}, an .onnx file, or module:Class (default: the scenario's); may be "
        "repeated: all share the cores")  # fmt: skip
    add("--scenario", metavar="S",
        help="shipped scenario or TOML file: limits, interval, stages, variants "
        "(default: that of the model)")  # fmt: skip
    agent = imported(f"{bundled('agents')}:SERVING")
    add("--agent", default=agent, metavar="NAME",
        help=f"agent in charge: of sponge list but bounds, fixed-* (default: {agent})")  # fmt: skip
    add("--policy", metavar="FILE", help="policy of the learned agent (default: the shipped one)")
    add("--option", action="append", default=[], metavar="AGENT.KEY=VALUE",
        help="setting of the agent or the server, e.g. static.cores=5, server.max_rows=64; "
        "may be repeated")  # fmt: skip
    add("--slo-ms", type=float, metavar="MS",
        help="SLO of requests that state no deadline (default: the scenario's)")  # fmt: skip
    add("--host", default="127.0.0.1", help="address to listen on (default: 127.0.0.1)")
    add("--port", default=8000, help="port of HTTP, 0 for a free one (default: 8000)")
    add("--grpc-port", default=8001,
        help="port of gRPC, 0 for a free one, none for no gRPC (default: 8001)")  # fmt: skip
    add("--queue", type=cli.at_least(1), default=1024, metavar="N",
        help="requests of a model beyond which others are refused (default: 1024)")  # fmt: skip
    add("--refuse-nan", action="store_true", help="refuse requests that hold NaN or infinity")
    cli.add_limiter(parser)
    cli.add_replicas(parser)
    cli.add_machine(parser)
    return parser


if __name__ == "__main__":
    sys.exit(main())
