"""The command that compares controllers; its body, :mod:`.compare`, takes a while to import."""

import argparse
import sys
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

from sponge_env import cli
from sponge_env.errors import ConfigError
from sponge_env.scenario.config import Backend, Start

NOT_FOR_SUITES = (
    *("scenario", "backend", "trace", "random_start", "arrivals", "limiter", "wait", "policy"),
    *("json", "replicas"),
    *(CHANGING := ("profile", "rate", "load", "drop", "duration", "start")),
)  # Options that a suite says itself, or that it has no use for; a suite of traces takes the last


@cli.command
def main(argv: Sequence[str]) -> int:
    """Run the command; return its exit code."""
    arguments = _parse(argv)
    if arguments.list:
        sys.stdout.write(f"{listing()}\n")
        return 0
    from sponge_env.app.compare import evaluate  # bad input does not wait for it

    return evaluate(arguments, argv)


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = cli.Parser(
        prog=cli.program("evaluate"),
        description="Compare controllers on one scenario, simulated or real, or on a whole suite.",
        epilog=f"example: {cli.program('evaluate')} --agent sponge-ip fa2 static-16 --seeds 3",
    )
    text = "agents to compare: names that --list shows, your own controller as module:Class, or a "
    text += "model of Stable-Baselines3 as sb3:FILE.zip (loading one executes code in it)"
    parser.add_argument("--agent", action="extend", nargs="+", metavar="NAME", help=text)
    text = "show all agents, scenarios, suites and profiles, and do nothing else"
    parser.add_argument("--list", action="store_true", help=text)
    cli.add_experiment_arguments(parser)
    _add_arguments(parser)
    if "--compare" in argv:
        parser.error(f"--compare is a command of its own: {cli.program('report')} RUN RUN")
    arguments = parser.parse_args(argv)
    if not (arguments.suite or arguments.agent or arguments.list):
        parser.error("the following arguments are required: --agent, or --suite")
    only_single = [n for n in NOT_FOR_SUITES if not (arguments.traces and n in CHANGING)]
    given = {word.partition("=")[0] for word in argv}
    for name in only_single if arguments.suite else ("jobs", "ray", "traces", "requests", "cells"):
        if (option := f"--{name.replace('_', '-')}") in given:
            relation = "does not go with" if arguments.suite else "needs"
            raise ConfigError(f"{option} {relation} --suite")
    cli.check_file("--json", arguments.json)
    return arguments


def _add_arguments(parser: cli.Parser) -> None:
    add = parser.add_argument
    text = "sim (virtual time; default), live (real worker, real time), or both beside each other"
    backends = cli.one_of("backend", (*get_args(Backend), "both"))
    add("--backend", type=backends, default="sim", help=text)
    cli.add_limiter(parser)
    cli.add_replicas(parser)
    text = "cold, or warm: with the allocation that the agent settles on under the mean load"
    add("--start", type=cli.one_of("start", get_args(Start)), help=text)
    add("--duration", type=float, metavar="SECONDS", help="length of an episode")
    text = "run seeds 0 .. N-1, or A .. B (default: 1, or as the suite says)"
    add("--seeds", type=cli.seed_range, metavar="N|A-B", help=text)
    cli.add_cells(parser)
    text = "policy of the learned agent (default: the newest in runs/ that was trained on the "
    text += "scenario, else the shipped one)"
    add("--policy", metavar="FILE", help=text)
    text = "setting of an agent, e.g. static.cores=5; may be repeated"
    add("--option", action="append", default=[], metavar="AGENT.KEY=VALUE", help=text)
    add("--json", type=Path, metavar="FILE", help="write the summaries here")
    add("--requests", action="store_true", help="keep every request of a suite, too")
    text = "run agents x scenarios x seeds as a shipped suite (--list shows them) or TOML file says"
    add("--suite", type=cli.nonempty, metavar="NAME", help=f"{text}; with --agent only these")
    text = "folder of trace files, each of which is a cell of a suite for such: --suite real"
    add("--traces", type=Path, metavar="DIR", help=text)
    cli.add_workers(parser)


def listing() -> str:
    """Return what there is to choose from: a line each, or only names where these say enough."""
    from sponge_env.run.registry import registered
    from sponge_env.run.suite import BOUND_AGENTS, SUITE_DIR, load_suite, named_agents, stands_for
    from sponge_env.scenario.profile import PROFILE_DIR, local_profile_path
    from sponge_env.scenario.scenario import SCENARIO_DIR, load_scenario

    described = registered("ABOUT")
    defined = {name: stands_for(name, entry) for name, entry in named_agents().items()}
    both = {n: "; ".join(filter(None, [text, defined.get(n)])) for n, text in described.items()}
    agents = _lines(both | {", ".join(BOUND_AGENTS.values()): "clairvoyant bounds"})
    local = f"{local_profile_path().stem} (this machine's, by {cli.program('calibrate')})"
    kinds = {
        "agents": f"{agents}\n  and, of the tables:\n{_names(defined.keys() - described.keys())}",
        "scenarios": _lines(_descriptions(SCENARIO_DIR, load_scenario)),
        "suites": _lines(_descriptions(SUITE_DIR, load_suite)),
        "profiles": _names([*(path.stem for path in PROFILE_DIR.glob("*.json")), local]),
    }
    return "\n\n".join(f"{kind}\n{text}" for kind, text in kinds.items())


def _descriptions(folder: Path, load: Callable[[str], Any]) -> dict[str, str]:
    return {name: load(name).description for name in sorted(p.stem for p in folder.glob("*.toml"))}


def _lines(texts: Mapping[str, str]) -> str:
    width = max(map(len, texts))
    return "\n".join(f"  {name:{width}}  {text}" for name, text in texts.items())


def _names(names: Iterable[str]) -> str:
    text = ", ".join(sorted(names))
    return textwrap.indent(textwrap.fill(text, 96, break_on_hyphens=False), "  ")
