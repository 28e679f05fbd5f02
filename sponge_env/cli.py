"""What the command-line scripts share."""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn, get_args

from sponge_env.config import Backend, Limiter
from sponge_env.errors import ConfigError, SpongeError, unknown

BAD_INPUT = 2
"""Exit code after bad input."""
INTERRUPTED = 130
"""Exit code after Ctrl-C."""


def run_script(main: Callable[[Sequence[str]], int], argv: Sequence[str] | None) -> int:
    """Run a script's body; bad input becomes one sentence on stderr and exit code 2.

    Args:
        main: Takes the arguments, returns the exit code.
        argv: Arguments; those of the process if None.
    """
    try:
        return main(sys.argv[1:] if argv is None else argv)
    except SpongeError as error:
        sys.stderr.write(f"error: {error}\n")
        return BAD_INPUT
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        return INTERRUPTED


@contextmanager
def terminate_like_interrupt() -> Iterator[None]:
    """Let a termination signal unwind like Ctrl-C, so that workers are cleaned up."""

    def raise_interrupt(_signal: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    previous = signal.signal(signal.SIGTERM, raise_interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one sentence, and takes no option for another's abbreviation."""

    def __init__(self, **options: Any) -> None:
        """Take the options of :class:`argparse.ArgumentParser`."""
        super().__init__(allow_abbrev=False, **options)

    def error(self, message: str) -> NoReturn:
        """Raise what :func:`run_script` prints.

        Raises:
            ConfigError: Always.
        """
        raise ConfigError(f"{message}; see {self.prog} --help")


def one_of(kind: str, allowed: Collection[str]) -> Callable[[str], str]:
    """Make an argument type for a name out of a few."""

    def parse(text: str) -> str:
        if text not in allowed:
            raise argparse.ArgumentTypeError(unknown(kind, text, allowed))
        return text

    return parse


def add_experiment_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options that say what runs where."""
    parser.add_argument(
        "--scenario", default="paper", help="shipped scenario or TOML file (default: paper)"
    )
    parser.add_argument(
        "--backend",
        type=one_of("backend", get_args(Backend)),
        default="sim",
        help="sim (virtual time) or live (real worker, real time); default: sim",
    )
    parser.add_argument(
        "--profile", metavar="P", help="latency profile instead of the scenario's: name or file"
    )
    parser.add_argument("--trace", metavar="FILE", help="bandwidth trace instead of the scenario's")
    parser.add_argument(
        "--arrivals", metavar="FILE", help="arrival trace instead of the scenario's arrivals"
    )
    parser.add_argument(
        "--limiter",
        type=one_of("limiter", get_args(Limiter)),
        default="auto",
        help="CPU limiter of the real worker: auto, cgroup (insist), duty-cycle or none",
    )
    parser.add_argument(
        "--run-dir",
        type=Path,
        help="folder for the results: a new one, or that of a run to go on with",
    )


def scenario_changes(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return what the arguments change about a scenario but its profile.

    See :func:`sponge_env.run.suite.changed`.
    """
    changes: dict[str, Any] = {}
    if arguments.trace:
        changes["network.trace"] = arguments.trace
    if arguments.arrivals:
        changes["arrivals"] = {"kind": "trace", "file": arguments.arrivals}
    return changes


def at_least(minimum: int) -> Callable[[str], int]:
    """Make an argument type for whole numbers of at least ``minimum``."""

    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = minimum - 1
        if value < minimum:
            raise argparse.ArgumentTypeError(
                f"must be a whole number of at least {minimum}, not {text!r}"
            )
        return value

    return parse


def parse_options(options: Sequence[str], agents: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Parse ``AGENT.KEY=VALUE`` settings.

    Args:
        options: The settings.
        agents: Agents that may be set.

    Returns:
        Options by agent and key; numbers and booleans are converted.

    Raises:
        ConfigError: A setting of another form or of no such agent.
    """
    parsed: dict[str, dict[str, Any]] = {}
    for option in options:
        path, equals, value = option.partition("=")
        agent, dot, key = path.rpartition(".")
        if not (equals and dot and agent and key):
            raise ConfigError(f"--option must have the form AGENT.KEY=VALUE, not {option!r}")
        if agent not in agents:
            raise ConfigError(f"--option {option!r} is for an agent that does not run here")
        parsed.setdefault(agent, {})[key.replace("-", "_")] = _value(value)
    return parsed


def _value(text: str) -> Any:
    if text in ("true", "false"):
        return text == "true"
    for convert in (int, float):
        try:
            return convert(text)
        except ValueError:
            continue
    return text
