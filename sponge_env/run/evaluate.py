"""Compare controllers on one scenario, simulated or real, or on a whole suite of them."""

from __future__ import annotations

import argparse
import math
import os
import sys
from collections.abc import Mapping, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from sponge_env import cli
from sponge_env.console import Progress
from sponge_env.errors import SpongeError
from sponge_env.files import check_writable, replacing
from sponge_env.installation import how_to_install, missing, require_extra
from sponge_env.run.arguments import chosen_suite, parse
from sponge_env.run.controllers import known_controllers, make_controller, start
from sponge_env.run.suite import Suite, cells

if TYPE_CHECKING:
    from sponge_env.results.schema import IntervalMetrics
    from sponge_env.run.store import RunStore, Unit

FAILED = 1
"""Exit code after an agent of a suite failed somewhere."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; bad input ends with one sentence and exit code 2."""
    return cli.run_script(evaluate, argv)


def evaluate(argv: Sequence[str]) -> int:
    """Run what is missing, print the tables, and say where everything is.

    Returns:
        The exit code: :data:`FAILED` if an agent of a suite failed.

    Raises:
        SpongeError: Something cannot be used, or an agent failed on the only scenario.
    """
    arguments = parse(argv)
    if arguments.suite:
        require_extra("report", "a suite")
    sys.path.append(str(Path.cwd()))  # where a user's own controllers lie
    suite = chosen_suite(arguments)
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
        todo = store.missing(work)
        store.describe(suite, [*cli.program("evaluate").split(), *argv])
        if len(todo) < len(work):
            said.append(f"{len(work) - len(todo)} of {len(work)} results are in {path} already")
        for line in said:
            _say(line)
        try:
            _run(store, todo, arguments)
        except KeyboardInterrupt:
            _say(f"interrupted; the same command with --run-dir {path} goes on from here")
            return cli.INTERRUPTED
        finally:
            if single:
                _report_cell(store, work, arguments)
        if not single:
            return report_suite(path, suite)
        if arguments.backend == "sim":
            _say("\nOn the real worker: add --backend live --scenario local")
        return 0


def _check(suite: Suite, arguments: argparse.Namespace) -> list[str]:
    """Try the only cell and its controllers before anything is written.

    Returns:
        What controllers have to say about themselves.
    """
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

    Raises:
        SpongeError: An agent failed on the only scenario.
        KeyboardInterrupt: Interrupted; what has ended was kept and no process is left.
    """
    from sponge_env.run.executor import Executor, Failure, Inline, Processes
    from sponge_env.run.record import run_unit

    single = not arguments.suite
    requests = arguments.requests
    if requests is None:
        requests = math.inf if single else 0
    task = partial(run_unit, store=store, requests=requests, watched=single)
    jobs = min(arguments.jobs or len(os.sched_getaffinity(0)), len(todo))
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
    from sponge_env.run.record import read_intervals

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
    _say(comparison_table(summaries))
    intervals = {agent: read_intervals(file) for agent, file in first.items()}
    _say("")
    if missing("report"):
        _say(f"results      {store.path}; for TensorBoard and plots: {how_to_install('report')}")
    else:
        _draw(intervals, store.path, f"{summaries[0].scenario} ({arguments.backend}), seed 0")
    if arguments.json:
        write_summaries(arguments.json, summaries)
        _say(f"summaries    {arguments.json}")


def _draw(intervals: Mapping[str, Sequence[IntervalMetrics]], path: Path, title: str) -> None:
    """Draw the intervals of each agent, and say where to look."""
    from sponge_env.results.figures import plot_comparison

    if any(intervals.values()):
        plot_comparison(intervals, path / "comparison.png", title)
        _say(f"plot         {path / 'comparison.png'}")
    _say(f"TensorBoard  tensorboard --logdir {path}/tensorboard")


def report_suite(path: Path, suite: Suite) -> int:
    """Write and print the tables, and what TensorBoard shows; return the exit code."""
    # These bring pandas, SciPy and TensorBoard.
    from sponge_env.results.comparison import Comparison
    from sponge_env.results.tables import all_tables
    from sponge_env.results.tensorboard import write_runs
    from sponge_env.run.bounds import BOUND_AGENTS
    from sponge_env.run.read import load_bounds, load_failures, load_results

    shown = [*suite.agents, *(BOUND_AGENTS[control] for control in suite.bounds)]
    failures = load_failures(path)
    comparison = Comparison(
        episodes=load_results(path),
        failures=failures[failures["agent"].isin(shown)],
        agents=list(suite.agents),
        cells=[(c.name, Path(c.profile).stem, c.start) for c in cells(suite)],
        reference=suite.compared_with,
        bounds=load_bounds(path),
    )
    text = all_tables(comparison)
    with replacing(path / "tables.txt") as partial:
        partial.write_text(text + "\n")
    write_runs(path / "tensorboard", comparison.episodes)
    _say(f"{text}\n\nresults      {path}\nTensorBoard  tensorboard --logdir {path}/tensorboard")
    if comparison.failures.empty:
        return 0
    _say(f"{len(comparison.failures)} results failed; the tables say why")
    return FAILED


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
