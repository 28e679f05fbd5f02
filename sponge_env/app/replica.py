"""Host replicas for front ends on other machines: ``sponge replica``."""

import os
import sys
from collections.abc import Sequence
from contextlib import closing, suppress

from sponge_env import cli
from sponge_env.errors import ConfigError
from sponge_env.live.cpus import prepare_cpus
from sponge_env.live.local import LocalLauncher
from sponge_env.live.node import NodeServer
from sponge_env.live.protocol import LiveConfig
from sponge_env.live.remote import Address
from sponge_env.live.wire import TOKEN
from sponge_env.scenario.config import Limiter
from sponge_env.scenario.graph import is_set
from sponge_env.scenario.profile import local_model
from sponge_env.scenario.scenario import Scenario, scenario_of_all
from sponge_env.serve.options import is_local, listening_socket

LIMITERS = ("auto", "cgroup", "outside")
SWITCH_S = 0.0005  # Longest time that a busy thread keeps the interpreter from another connection's


@cli.command
def main(argv: Sequence[str]) -> int:
    """Host replicas until this is terminated."""
    arguments, token = _parser().parse_args(argv), os.environ.get(TOKEN, "")
    if not (token or is_local(arguments.host)):
        raise ConfigError(f"others reach --host {arguments.host}: put a token into {TOKEN}")
    sys.setswitchinterval(SWITCH_S)
    with cli.terminate_like_interrupt(), suppress(KeyboardInterrupt):
        prepare_cpus(arguments.wait, arguments.cpus)
        scenario = scenario_of_all(arguments.model, arguments.scenario)
        configs = _configs(scenario, arguments.core_unit, arguments.limiter)
        with (
            closing(LocalLauncher(configs)) as launcher,
            listening_socket(arguments.host, arguments.port) as listener,
            closing(NodeServer(listener, launcher, token)) as node,
        ):
            at = Address(*listener.getsockname()[:2])
            sys.stdout.write(f"replicas of {scenario.name} at {at}, limiter {launcher.limiter}\n")
            sys.stdout.flush()
            node.serve()
    return 0


def _configs(scenario: Scenario, core_unit: float, limiter: Limiter) -> list[LiveConfig]:
    """Say how replicas of a scenario are set up, whose models need not have been measured here."""
    configs = []
    for stage in scenario.pipeline:
        models = tuple(local_model(v.profile) or v.profile for v in stage.variants)
        sizes = stage.limits.batch, stage.limits.cores, core_unit
        of_a_set = is_set(scenario.stages)
        configs.append(LiveConfig(models[0], models, of_a_set, *sizes, limiter=limiter))
    return configs


def _parser() -> cli.Parser:
    parser = cli.Parser(
        prog=cli.program("replica"),
        description="Host replicas of a model or pipeline for 'sponge serve --replicas'.",
        epilog=f"both sides must have the same token in ${TOKEN}, on a loopback address none",
    )
    add = parser.add_argument
    add("--model", action="append", default=[], metavar="M", help="as for 'sponge serve'")
    add("--scenario", metavar="S", help="the same; its stages, batch sizes and cores")
    add("--host", default="127.0.0.1", help="address to listen on (default: 127.0.0.1)")
    add("--port", type=int, default=7700, help="port, 0 for a free one (default: 7700)")
    text = "CPU limiter: auto, cgroup (insist), or outside (a pod that Kubernetes resizes)"
    add("--limiter", type=cli.one_of("limiter", LIMITERS), default="auto", help=text)
    add("--core-unit", type=float, default=1 / 16, help="cores in one unit (default: 1/16)")
    cli.add_machine(parser)
    return parser
