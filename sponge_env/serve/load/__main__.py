"""Send the requests of a scenario to a server, and print what a client measures."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from sponge_env import cli
from sponge_env.utils.installation import require_extra

DEADLINES = ("headers", "timeout")
"""How a request states its deadline: ``x-slo-ms`` and ``x-sent-at-ms``, or Triton's parameter
``timeout``, in microseconds from its arrival on."""


@cli.command
def main(argv: Sequence[str]) -> int:
    """Run the command; return its exit code."""
    arguments = _parse(argv)
    require_extra("serve", "sponge load")
    # It takes a while to import; a mistyped option should not wait for it.
    from sponge_env.serve.load.open_loop import load

    load(arguments)
    return 0


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = cli.Parser(
        prog=cli.program("load"),
        description="Send the requests of a scenario to a server, open loop, with their deadlines, "
        "and print what a client measures.",
        epilog=f"example: {cli.program('load')} --url http://127.0.0.1:8000 --duration 60",
    )
    add = parser.add_argument
    add("--url", default="http://127.0.0.1:8000", help="of the server (default: %(default)s)")
    add("--model", metavar="NAME", help="model to call (default: the server's only one)")
    add("--scenario", action=cli.Once, default="local",
        help="shipped scenario or TOML file (default: local)")  # fmt: skip
    cli.add_traffic(parser)
    add("--duration", type=float, metavar="SECONDS",
        help="send requests for so long (default: as long as the scenario)")  # fmt: skip
    add("--seed", type=cli.at_least(0), default=0, metavar="N", help="of the workload (default: 0)")
    add("--deadlines", type=cli.one_of("form", DEADLINES), default="headers",
        help="how requests state their deadline: headers of this project, or Triton's parameter "
        "timeout")  # fmt: skip
    add("--json", type=Path, metavar="FILE", help="write the summary here")
    return parser.parse_args(argv)
