"""The console command: ``sponge COMMAND ...``, or ``python -m sponge_env COMMAND ...``."""

import argparse
import importlib
import os
import sys
from collections.abc import Sequence

from sponge_env import __version__, cli
from sponge_env.utils.installation import bundled

COMMANDS = {
    "train": ("", "train a learned controller on scenarios"),
    "evaluate": ("app.evaluate", "compare controllers on a scenario or on a suite of them"),
    "list": ("app.evaluate", "show agents, scenarios, suites and profiles"),
    "serve": ("serve.__main__", "serve a model to clients with deadlines"),
    "replica": ("app.replica", "host replicas for servers on other machines"),
    "calibrate": ("app.calibrate", "measure the real worker on this machine"),
    "load": ("serve.load.__main__", "send a scenario's requests to a server"),
    "report": ("app.report", "make one page of what runs found"),
    "validate": ("app.validate", "play the allocations of a simulated run again"),
    "fidelity": ("fidelity.__main__", "compare the simulator with the real worker"),
    "demo": ("app.demo", "measure, train and compare in six minutes"),
}  # Module whose ``main`` takes the arguments, and what it does; that of ``train`` is elsewhere
EXAMPLES = """examples:
  sponge evaluate --agent sponge-ip sponge-joint static-8    compare three controllers
  sponge train --agent ppo-joint --scenario bursty           train a policy
  sponge calibrate                                           measure this machine's worker
  sponge serve --model efficientnet-lite0                    serve a model
  sponge report runs/NAME                                    make a page of a run
"""


@cli.command
def main(argv: Sequence[str]) -> int:
    """Run the command; return its exit code."""
    does = "".join(f"  {name:11}{message}\n" for name, (_, message) in COMMANDS.items())
    parser = cli.Parser(
        prog="sponge", description="Control of a CPU-limited inference server under dynamic SLOs.",
        epilog=f"commands:\n{does}\n{EXAMPLES}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--version", action="version", version=f"sponge-env {__version__}")
    known = cli.one_of("command", tuple(COMMANDS))
    text = "one of those below; COMMAND --help says more"
    parser.add_argument("command", metavar="COMMAND", type=known, help=text)
    parser.add_argument("arguments", metavar="...", nargs=argparse.REMAINDER, help="its arguments")
    chosen = parser.parse_args(argv or ["--help"])
    module, _ = COMMANDS[chosen.command]
    name = f"sponge_env.{module}" if module else f"{bundled('agents')}.training"
    first = ["--list"] if chosen.command == "list" else []
    return int(importlib.import_module(name).main([*first, *chosen.arguments]))


def run() -> None:
    """Be the process of a command, and end it."""
    # A server has closed all that it had by then. The interpreter would still take seconds to take
    # apart what numba made (11 s where kernels were compiled), and whoever stops a pod waits.
    code = main()
    if sys.argv[1:2] == ["serve"]:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


if __name__ == "__main__":
    run()
