"""Compare controllers on one scenario, simulated or real, or on a whole suite of them."""

from __future__ import annotations

import argparse
import math
import os
import sys
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from sponge_env import cli
from sponge_env.config import Start
from sponge_env.console import Progress
from sponge_env.errors import ConfigError, SpongeError
from sponge_env.files import check_writable, replacing
from sponge_env.installation import how_to_install, missing, require_extra
from sponge_env.run.registry import known_controllers, make_controller, start, who_takes
from sponge_env.run.suite import (
    AgentEntry,
    CellGroup,
    Suite,
    cells,
    load_suite,
    with_agents,
    with_options,
)
from sponge_env.scenario import load_scenario

if TYPE_CHECKING:
    from sponge_env.run.store import RunStore
    from sponge_env.run.unit import Unit

FAILED = 1
"""Exit code after an agent of a suite failed somewhere."""

NOT_FOR_SUITES = (
    *("scenario", "backend", "profile", "trace", "arrivals", "limiter", "duration", "start"),
    *("policy", "solver", "json"),
)
"""Options that a suite says itself, or that it has no use for."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; bad input ends with one sentence and exit code 2."""
    return cli.run_script(evaluate, argv)


def evaluate(argv: Sequence[str]) -> int:
    """Run what is missing, print the tables, say where everything is; return the exit code."""
    arguments = _parse(argv)
    sys.path.append(str(Path.cwd()))  # where a user's own controllers lie
    if arguments.suite:
        require_extra("report", "a suite")
    suite = _chosen_suite(arguments)
    # These take a while to import; a mistyped option should not wait for them.
    from sponge_env.run.store import RunStore, identity, new_folder
    from sponge_env.run.unit import units

    single = not arguments.suite
    work = units(suite, arguments.backend, arguments.limiter)
    said = _check(suite, arguments) if single else []
    purpose = f"{suite.name}-{arguments.backend}" if single else f"suite-{suite.name}"
    common = identity(suite, arguments.backend, arguments.limiter)
    path = arguments.run_dir or new_folder(purpose)
    with cli.terminate_like_interrupt(), RunStore.open(path, common) as store:
        store.check_requests(work, arguments.requests)
        todo = store.missing(work)
        store.describe(suite, [*cli.program("evaluate").split(), *argv])
        if len(todo) < len(work):
            said.append(f"{len(work) - len(todo)} of {len(work)} results are in {path} already")
        for line in said:
            print(line)
        try:
            _run(store, todo, arguments)
        except KeyboardInterrupt:
            print(f"interrupted; the same command with --run-dir {path} goes on from here")
            return cli.INTERRUPTED
        finally:
            if single:
                _report_cell(store, work, arguments)
        if not single:
            return _report_suite(path, suite)
        if arguments.backend == "sim":
            print("\nOn the real worker: add --backend live --scenario local")
        return 0


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    """Parse the command line."""
    parser = cli.Parser(
        prog=cli.program("evaluate"),
        description="Compare controllers on one scenario, simulated or real, or on a whole suite.",
        epilog=f"example: {cli.program('evaluate')} --agent sponge-ip fa2 static-16 --seeds 3",
    )
    known = ", ".join(sorted(known_controllers()))
    said = f"{known}, or your own controller as module:Class"
    parser.add_argument("--agent", nargs="+", metavar="NAME", help=said)
    cli.add_experiment_arguments(parser)
    _add_arguments(parser)
    arguments = parser.parse_args(argv)
    if not (arguments.suite or arguments.agent):
        parser.error("the following arguments are required: --agent, or --suite")
    for name in NOT_FOR_SUITES if arguments.suite else ["jobs"]:
        if getattr(arguments, name) != parser.get_default(name):
            relation = "does not go with" if arguments.suite else "needs"
            raise ConfigError(f"--{name} {relation} --suite")
    if arguments.requests is None:
        arguments.requests = 0 if arguments.suite else math.inf
    return arguments


def _add_arguments(parser: cli.Parser) -> None:
    add, at_least_1 = parser.add_argument, cli.at_least(1)
    said = "cold, or warm: with the allocation that the agent settles on under the mean load"
    add("--start", type=cli.one_of("start", get_args(Start)), help=said)
    add("--duration", type=float, metavar="SECONDS", help="length of an episode")
    said = "run seeds 0 .. N-1 (default: 1, or as the suite says)"
    add("--seeds", type=at_least_1, metavar="N", help=said)
    said = "policy of the learned agent (default: the newest in runs/, else the shipped one)"
    add("--policy", metavar="FILE", help=said)
    said = "setting of an agent, e.g. static.cores=5; may be repeated"
    add("--option", action="append", default=[], metavar="AGENT.KEY=VALUE", help=said)
    said = "how the agent with a program solves it, e.g. pulp"
    add("--solver", metavar="NAME", help=said)
    add("--json", type=Path, metavar="FILE", help="write the summaries here")
    said = "seeds of which every request is kept: all, none, or how many (default: all, none of"
    add("--requests", type=_first_seeds, metavar="N", help=f"{said} a suite)")
    said = "run agents x scenarios x seeds as a shipped suite or TOML file says: standard, quick;"
    add("--suite", metavar="NAME", help=f"{said} with --agent only these agents")
    said = "processes of a suite (default: one per CPU)"
    add("--jobs", type=at_least_1, metavar="N", help=said)


def _first_seeds(text: str) -> float:
    """Return how many seeds keep their requests."""
    if text in ("all", "none"):
        return math.inf if text == "all" else 0
    return cli.at_least(0)(text)


def _chosen_suite(arguments: argparse.Namespace) -> Suite:
    """Return the suite that the arguments name, or make one of one cell."""
    if arguments.suite:
        suite = with_agents(load_suite(arguments.suite), arguments.agent or ())
    else:
        scenario = load_scenario(arguments.scenario)
        profile = arguments.profile or scenario.profile
        changes = cli.scenario_changes(arguments)
        if arguments.duration is not None:
            changes["duration_s"] = arguments.duration
        suite = Suite(
            name=scenario.name,
            seeds=1,
            starts=(arguments.start or scenario.start,),
            cells=(CellGroup((arguments.scenario,), (profile,), changes),),
            agents={name: AgentEntry() for name in arguments.agent},
        )
    short = [(name, value) for name in ("policy", "solver") if (value := getattr(arguments, name))]
    chosen = [f"{who_takes(name, arguments.agent)}.{name}={value}" for name, value in short]
    options = cli.parse_options([*arguments.option, *chosen], list(suite.agents))
    suite = with_options(suite, options)
    return replace(suite, seeds=arguments.seeds) if arguments.seeds else suite


def _check(suite: Suite, arguments: argparse.Namespace) -> list[str]:
    """Try the only cell before anything is written; return what its controllers say."""
    from sponge_env.run.unit import check_scenario
    from sponge_env.spec import make_spec

    if arguments.json:
        check_writable(arguments.json)
    (scenario,) = cells(suite)
    spec = make_spec(scenario, check_scenario(scenario, arguments.backend, arguments.limiter))
    said = []
    for name, entry in suite.agents.items():
        controller = make_controller(name, known_controllers(), entry.options)
        start(controller, spec, 0)
        if description := getattr(controller, "description", ""):
            said.append(f"agent {name} {description}")
    return said


def _run(store: RunStore, todo: Sequence[Unit], arguments: argparse.Namespace) -> None:
    """Run units: those of a suite in processes, whatever fails; others here, watched.

    A failure on the only scenario is raised; after an interrupt no process is left.
    """
    from sponge_env.run.executor import Executor, Failure, Inline, Processes
    from sponge_env.run.unit import run_unit

    single = not arguments.suite
    task = partial(run_unit, store=store, requests=arguments.requests, watched=single)
    jobs = arguments.jobs or len(os.sched_getaffinity(0))
    executor: Executor = Inline() if single else Processes(jobs)
    progress, failed = Progress("suite", len(todo), "result", shown=not single), 0
    with closing(progress), closing(executor.run(task, todo)) as results:
        for done, (unit, result) in enumerate(results, start=1):
            if isinstance(result, Failure):
                failed += 1
                error = {"type": result.type, "message": result.message}
                store.keep(unit, store.kept(unit), error)
                if single:
                    raise result.cause or SpongeError(result.message)
            progress.show(done, f"{failed} failed" if failed else "")


def _report_cell(store: RunStore, work: Sequence[Unit], arguments: argparse.Namespace) -> None:
    """Print the table of the only cell, draw its picture, and say where everything is."""
    from sponge_env.results.schema import from_summary
    from sponge_env.results.tables import comparison_table, write_summaries

    summaries, first = [], dict[str, Path]()
    for unit in work:
        kept = store.kept(unit)
        for episode in kept.get("episodes", ()):
            if not (kept["error"] and episode["partial"]):
                summaries.append(from_summary(episode))
                file = store.file("intervals", unit, f"-seed{episode['seed']}.parquet")
                first.setdefault(unit.agent, file)
    if not summaries:
        return
    print(comparison_table(summaries))
    print()
    if missing("report"):
        print(f"results      {store.path}; for TensorBoard and plots: {how_to_install('report')}")
    else:
        _draw(first, store.path, f"{summaries[0].scenario} ({arguments.backend}), seed 0")
    if arguments.json:
        write_summaries(arguments.json, summaries)
        print(f"summaries    {arguments.json}")


def _draw(files: Mapping[str, Path], path: Path, title: str) -> None:
    """Draw the intervals in each agent's file, and say where to look."""
    from sponge_env.results.figures import plot_comparison
    from sponge_env.run.read import read_intervals

    intervals = {agent: read_intervals(file) for agent, file in files.items()}
    if any(intervals.values()):
        plot_comparison(intervals, plot := path / "comparison.png", title)
        print(f"plot         {plot}")
    print(f"TensorBoard  tensorboard --logdir {path}/tensorboard")


def _report_suite(path: Path, suite: Suite) -> int:
    """Write and print the tables, and what TensorBoard shows; return the exit code."""
    # These bring pandas, SciPy and TensorBoard.
    from sponge_env.results.comparison import Comparison
    from sponge_env.results.tables import all_tables
    from sponge_env.results.tensorboard import write_runs
    from sponge_env.run.bounds import BOUND_AGENTS
    from sponge_env.run.read import load_bounds, load_failures, load_results
    from sponge_env.run.suite import arranged

    arrangement = arranged(suite)
    shown = [*suite.agents, *(BOUND_AGENTS[control] for control in suite.bounds)]
    failures = load_failures(path)
    comparison = Comparison(
        episodes=load_results(path),
        failures=failures[failures["agent"].isin(shown)],
        agents=list(suite.agents),
        cells=arrangement.cells,
        families=arrangement.families,
        sweeps=arrangement.sweeps,
        reference=suite.compared_with,
        bounds=load_bounds(path),
    )
    text = all_tables(comparison)
    with replacing(path / "tables.txt") as partial_file:
        partial_file.write_text(text + "\n")
    write_runs(path / "tensorboard", comparison.episodes)
    print(f"{text}\n\nresults      {path}\nTensorBoard  tensorboard --logdir {path}/tensorboard")
    if comparison.failures.empty:
        return 0
    print(f"{len(comparison.failures)} results failed; the tables say why")
    return FAILED
