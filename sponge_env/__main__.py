"""The console command: ``sponge COMMAND ...``, or ``python -m sponge_env COMMAND ...``."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence

from sponge_env import __version__, cli
from sponge_env.installation import bundled

COMMANDS = {
    "train": "train a learned controller on scenarios",
    "evaluate": "compare controllers on a scenario or on a suite of them",
    "calibrate": "measure the real worker on this machine",
    "report": "make one page of what runs found",
    "fidelity": "compare the simulator with the real worker",
}
"""What ``sponge`` can do; ``COMMAND --help`` says more."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; bad input ends with one sentence and exit code 2."""
    return cli.run_script(_run, argv)


def _run(argv: Sequence[str]) -> int:
    parser = cli.Parser(
        prog="sponge",
        description="Control of a CPU-limited inference server under dynamic SLOs.",
        epilog="commands:\n" + "".join(f"  {name:11}{does}\n" for name, does in COMMANDS.items()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"sponge-env {__version__}")
    parser.add_argument(
        "command",
        metavar="COMMAND",
        type=cli.one_of("command", tuple(COMMANDS)),
        help="one of those below; COMMAND --help says more",
    )
    parser.add_argument(
        "arguments", metavar="...", nargs=argparse.REMAINDER, help="what the command takes"
    )
    chosen = parser.parse_args(argv)
    result: int = importlib.import_module(_module(chosen.command)).main(chosen.arguments)
    return result


def _module(command: str) -> str:
    """Return the module whose ``main`` takes a command's arguments; imported only then."""
    if command == "train":
        return f"{bundled('agents')}.learn.command"
    modules = {
        "evaluate": "run.evaluate",
        "report": "results.__main__",
        "fidelity": "fidelity.__main__",
    }
    return f"sponge_env.{modules.get(command, command)}"


if __name__ == "__main__":
    sys.exit(main())
