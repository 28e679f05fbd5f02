"""What the command-line scripts share."""

import argparse
import functools
import itertools
import os
import re
import signal
import sys
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn, get_args

from sponge_env.errors import ConfigError, SpongeError, unknown
from sponge_env.scenario.config import RESERVED, Drop, Limiter, as_name
from sponge_env.utils.files import check_writable
from sponge_env.utils.installation import TRUST, data_folder, typing
from sponge_env.utils.installation import program as program
from sponge_env.utils.installation import tool as tool

BAD_INPUT = 2  # Exit code after bad input
INTERRUPTED = 130  # Exit code after Ctrl-C
DROP_NOTICE = (  # Says why recorded traces have a drop policy of their own
    "requests that cannot be answered in time any more are dropped, as by default with recorded "
    "traces (--drop none keeps them)"
)
LIMITERS = [name for name in get_args(Limiter) if name != "outside"]  # That is for nodes only
ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)  # Signals that end a command
RAISE_AGAIN_S = 0.05  # Time until an interrupt that C code dropped is raised again


def command(main: Callable[[Sequence[str]], int]) -> Callable[..., int]:
    """Let it take the process's words; bad input is one sentence on stderr and exit code 2."""

    @functools.wraps(main)
    def run(argv: Sequence[str] | None = None) -> int:
        words = sys.argv[1:] if argv is None else argv
        try:
            with typing(words):
                return main(words)
        except SpongeError as error:
            sys.stderr.write(f"error: {error}\n")
            return BAD_INPUT
        except KeyboardInterrupt:
            sys.stderr.write("interrupted\n")
            return INTERRUPTED
        except BrokenPipeError:  # nobody reads on, as with ``| head``
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 1

    return run


@contextmanager
def terminate_like_interrupt() -> Iterator[None]:
    """Let a termination or a terminal that is closed unwind like Ctrl-C, and only once."""
    # So workers are cleaned up and what was measured is kept. What is ignored (``nohup``) stays so.
    stopping = False

    def raise_interrupt(_signal: int, _frame: FrameType | None) -> None:
        nonlocal stopping
        if stopping:
            with suppress(OSError, RuntimeError):  # no terminal any more, or in the midst of this
                sys.stderr.write("stopping: what was measured is being kept\n")
            return
        stopping = True
        raise KeyboardInterrupt

    def raise_again(unraisable: "sys.UnraisableHookArgs") -> None:
        """Interrupt once more, where C code dropped the interrupt (the compiler calls Python)."""
        nonlocal stopping
        if unraisable.exc_type is not KeyboardInterrupt:
            previous_hook(unraisable)
            return
        stopping = False
        signal.setitimer(signal.ITIMER_REAL, RAISE_AGAIN_S)

    ending = [each for each in ENDING if signal.getsignal(each) is not signal.SIG_IGN]
    handled = (*ending, signal.SIGALRM)
    previous = {number: signal.signal(number, raise_interrupt) for number in handled}
    previous_hook, sys.unraisablehook = sys.unraisablehook, raise_again
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        sys.unraisablehook = previous_hook
        for number, handler in previous.items():
            signal.signal(number, handler)


class Once(argparse.Action):
    """Stores what is given, and no second one in its place."""

    given = False

    def __call__(self, parser: Any, found: argparse.Namespace, value: Any, _: Any = None) -> None:
        """Store it."""
        if self.given:
            raise argparse.ArgumentError(self, "may be given only once")
        self.given = True
        setattr(found, self.dest, value)


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one sentence, and takes no option for another's abbreviation."""

    def __init__(self, **options: Any) -> None:
        super().__init__(allow_abbrev=False, **options)

    def error(self, message: str) -> NoReturn:
        """Raise the :class:`ConfigError` that :func:`command` prints."""
        raise ConfigError(f"{message}; see {self.prog} --help")


def one_of(kind: str, allowed: Collection[str]) -> Callable[[str], str]:
    """Make an argument type for a name out of a few."""

    def parse(text: str) -> str:
        if text not in allowed:
            raise argparse.ArgumentTypeError(unknown(kind, text, allowed))
        return text

    return parse


def check_file(option: str, path: Path | None) -> None:
    """Refuse a file, if one is named, that cannot be written or lies in no folder that exists."""
    if path is not None:
        if not path.absolute().parent.is_dir():
            raise ConfigError(f"{option} {str(path)!r} is in no folder that exists")
        check_writable(path)


def add_experiment_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options that say what runs."""
    add, text = parser.add_argument, "shipped scenario or TOML file (default: paper)"
    add("--scenario", action=Once, type=_scenario, default="paper", help=text)
    add_traffic(parser)
    text = "draw for each seed where in the bandwidth trace it starts"
    add("--random-start", action="store_true", help=text)
    text = f"what becomes of late requests: {', '.join(get_args(Drop))}"
    add("--drop", type=one_of("drop rule", get_args(Drop)), metavar="RULE", help=text)
    add_machine(parser)
    text = "folder for the results: a new one, or (not to train) that of a run to go on with"
    add("--run-dir", type=Path, help=text)


def add_traffic(parser: argparse.ArgumentParser) -> None:
    """Add what takes the place of a scenario's profile, network and arrivals."""
    add, text = parser.add_argument, "latency profile instead of the scenario's: name or file"
    add("--profile", action=Once, type=nonempty, metavar="P", help=text)
    text = "bandwidth trace instead of the scenario's"
    add("--trace", action=Once, type=nonempty, metavar="FILE", help=text)
    text = "arrival trace instead of the scenario's arrivals"
    add("--arrivals", action=Once, type=nonempty, metavar="FILE", help=text)
    scaling = parser.add_mutually_exclusive_group()
    text = "mean rate of the requests instead of the scenario's or the arrival trace's"
    scaling.add_argument("--rate", type=float, metavar="RPS", help=text)
    text = "the same as a share of what one replica with all its cores can serve, e.g. 0.6"
    scaling.add_argument("--load", type=float, metavar="SHARE", help=text)


def nonempty(text: str) -> str:
    """Refuse an empty name, such as that of a variable that is not set."""
    if not text:
        raise argparse.ArgumentTypeError("must not be empty")
    return text


def _scenario(name: str) -> str:
    shipped = {path.stem for path in data_folder("traces").glob("scenarios/*.toml")}
    return name if name.endswith(".toml") else one_of("scenario", shipped)(name)


def add_machine(parser: argparse.ArgumentParser) -> None:
    """Add the options of :func:`sponge_env.env.factory.prepare_machine`, and of code in files."""
    text = "wait until the live run of another process has ended that uses the same CPUs"
    parser.add_argument("--wait", action="store_true", help=text)
    text = "CPUs to run on, such as 0,1 or 0-3; the last ones serve (default: all)"
    parser.add_argument("--cpus", type=_cpus, metavar="LIST", help=text)
    add_trust(parser)


def add_limiter(parser: argparse.ArgumentParser) -> None:
    """Add what limits the CPU time of the real worker."""
    text = "CPU limiter of the real worker: auto, cgroup (insist), duty-cycle or none"
    known = one_of("limiter", LIMITERS)
    parser.add_argument("--limiter", type=known, default="auto", help=text)


def add_replicas(parser: argparse.ArgumentParser) -> None:
    """Add where the real worker has its replicas."""
    text = "local (default), nodes that run 'sponge replica' with the same token, or k8s:DEPLOYMENT"
    parser.add_argument("--replicas", default="local", metavar="HOST:PORT,...", help=text)


def add_workers(parser: argparse.ArgumentParser) -> None:
    """Add where tasks run, for :func:`sponge_env.run.executor.executor_of`."""
    text = "processes (default: one per CPU)"
    parser.add_argument("--jobs", type=at_least(1), metavar="N", help=text)
    text = "run on the Ray cluster at this address, or on one of this machine"
    parser.add_argument("--ray", nargs="?", const="", metavar="ADDRESS", help=text)


def add_cells(parser: argparse.ArgumentParser) -> None:
    """Add which cells of a suite are meant, by the pattern :attr:`.Suite.only`."""
    text = "only cells with such a name, SCENARIO+PROFILE+START, e.g. 'swing-*+lite0+*'"
    parser.add_argument("--cells", metavar="PATTERN", help=text)


def add_trust(parser: argparse.ArgumentParser) -> None:
    """Add the option without which files name no code; see :mod:`sponge_env.utils.installation`."""
    text = "run code that only a suite, scenario or profile names: module:Class, sb3:FILE"
    parser.add_argument(TRUST, action="store_true", help=text)


def _cpus(text: str) -> frozenset[int]:
    cpus: set[int] = set()
    for part in text.split(","):
        ends = re.fullmatch(r"(\d{1,5})(?:-(\d{1,5}))?", part, re.ASCII)
        if not ends or not (some := range(int(ends[1]), int(ends[2] or ends[1]) + 1)):
            raise argparse.ArgumentTypeError(f"must be CPUs such as 0,1 or 0-3, not {text!r}")
        cpus.update(some)
    return frozenset(cpus)


def scenario_changes(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return what the arguments change about a scenario but its profile, for ``suite.changed``."""
    from sponge_env.scenario.scenario import load_scenario  # takes a while to import

    changes: dict[str, Any] = {}
    files = [f for f in (arguments.trace, arguments.arrivals) if f not in (None, *RESERVED)]
    if files:
        own, played = load_scenario(arguments.scenario).name, map(os.path.basename, files)
        changes["name"] = as_name(f"{own} with {' and '.join(played)}")
    if arguments.trace:
        changes["network.trace"] = arguments.trace
    if arguments.random_start:
        changes["network.start"] = "random"
    if arguments.arrivals:
        changes["arrivals"] = {"kind": "trace", "file": arguments.arrivals}
    if arguments.rate is not None or arguments.load is not None:
        changes |= {"arrivals.rate_rps": arguments.rate, "arrivals.load": arguments.load}
        changes["arrivals.peak"] = None
    if drops_by_default(arguments):
        changes["serving.drop"] = "unmeetable"
    if arguments.drop:
        changes["serving.drop"] = arguments.drop
    return changes


def drops_by_default(arguments: argparse.Namespace) -> bool:
    """Return whether a trace file is played in the paper's scenario, which drops nothing."""
    from sponge_env.scenario.scenario import load_scenario

    recorded = arguments.arrivals or arguments.trace not in (None, *RESERVED)
    shipped = not str(arguments.scenario).endswith(".toml")
    keeps = shipped and recorded and load_scenario(arguments.scenario).serving.drop == "none"
    return keeps and not arguments.drop


def at_least(minimum: int) -> Callable[[str], int]:
    """Make an argument type for whole numbers of at least ``minimum``."""

    def parse(text: str) -> int:
        with suppress(ValueError):
            if int(text) >= minimum:
                return int(text)
        message = f"must be a whole number of at least {minimum}, not {text!r}"
        raise argparse.ArgumentTypeError(message)

    return parse


def seed_range(text: str) -> range:
    """Parse ``N``, the seeds 0 .. N-1, or ``A-B``."""
    with suppress(ValueError):
        first, dash, last = text.partition("-")
        seeds = range(int(first), int(last) + 1) if dash else range(int(first))
        if seeds and seeds[-1] < 2**31 and seeds[-1] - seeds[0] < 10_000:  # no seeds are larger
            return seeds
    message = f"must be how many seeds (from 0 on) or a range such as 5-9 or 0-0, not {text!r}"
    raise argparse.ArgumentTypeError(message)


def split_options(argv: Sequence[str], options: Collection[str]) -> tuple[list[str], list[str]]:
    """Return the words of a command line that are some options and their values, and the others."""
    chosen: list[str] = []
    others: list[str] = []
    into = others
    for before, word in itertools.pairwise(("", *argv)):
        if before not in options or word.startswith("--"):  # not the value of the one before
            into = chosen if word.partition("=")[0] in options else others
        into.append(word)
    return chosen, others


def parse_options(options: Sequence[str], agents: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Return ``AGENT.KEY=VALUE`` settings by agent and key; numbers and booleans are converted."""
    parsed: dict[str, dict[str, Any]] = {}
    for option in options:
        path, equals, value = option.partition("=")
        agent, dot, key = path.rpartition(".")
        if not (equals and dot and agent and key):
            agent = agents[0] if len(agents) == 1 else "AGENT"
            meant = f"; did you mean {agent}.{option}?" * bool(equals and key and not dot)
            raise ConfigError(f"--option must have the form AGENT.KEY=VALUE, not {option!r}{meant}")
        if agent not in agents:
            raise ConfigError(f"--option {option!r}: {unknown('agent of this run', agent, agents)}")
        parsed.setdefault(agent, {})[key.replace("-", "_")] = _value(value)
    return parsed


def _value(text: str) -> Any:
    if text in ("true", "false"):
        return text == "true"
    for convert in (int, float):
        with suppress(ValueError):
            return convert(text)
    return text
