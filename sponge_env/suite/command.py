"""``evaluate.py --suite``: run what is missing, then compare."""

from __future__ import annotations

import os
import shlex
import sys
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from sponge_env import cli
from sponge_env.files import replacing, saying_why
from sponge_env.host import describe_host, describe_versions
from sponge_env.recording import new_folder
from sponge_env.suite.definition import Suite, cells, load_suite
from sponge_env.suite.plan import units, with_agents, with_options
from sponge_env.suite.run import identity, run_missing
from sponge_env.suite.store import ResultStore, write
from sponge_env.suite.unit import BOUND_AGENTS

FAILED = 1
"""Exit code after an agent failed somewhere."""


def evaluate_suite(arguments: Namespace, command: Sequence[str]) -> int:
    """Run a suite's missing results and print its tables.

    Args:
        arguments: ``suite``, ``agent``, ``option``, ``seeds``, ``run_dir``, ``jobs``.
        command: The command line, program first, for the record.

    Returns:
        The exit code: :data:`FAILED` if an agent failed somewhere.

    Raises:
        SpongeError: Something cannot be used; nothing was run.
    """
    suite = chosen_suite(arguments)
    work = units(suite)
    common = identity(suite)
    path = arguments.run_dir or new_folder(f"suite-{suite.name}")
    with cli.terminate_like_interrupt(), ResultStore.open(path, common) as store:
        todo = store.missing(work)
        _describe(store.path, command)
        if len(todo) < len(work):
            _say(f"{len(work) - len(todo)} of {len(work)} results are in {path} already")
        try:
            run_missing(store, todo, arguments.jobs or len(os.sched_getaffinity(0)))
        except KeyboardInterrupt:
            _say(f"interrupted; the same command with --run-dir {path} goes on from here")
            return cli.INTERRUPTED
        return report(store.path, suite)


def chosen_suite(arguments: Namespace) -> Suite:
    """Load the suite that the arguments name, with their changes.

    Raises:
        ConfigError: Something about it cannot be used.
    """
    suite = with_agents(load_suite(arguments.suite), arguments.agent or ())
    options = cli.parse_options(arguments.option, list(suite.agents))
    suite = with_options(suite, options)
    return replace(suite, seeds=arguments.seeds) if arguments.seeds else suite


def report(path: Path, suite: Suite) -> int:
    """Write and print the tables, and what TensorBoard shows; return the exit code."""
    # These bring pandas, SciPy and TensorBoard, which bad input should not wait for.
    from sponge_env.results.comparison import Comparison
    from sponge_env.results.tables import all_tables
    from sponge_env.results.tensorboard import write_runs
    from sponge_env.suite.results import load_bounds, load_failures, load_results

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


def _describe(path: Path, command: Sequence[str]) -> None:
    write(path / "versions.json", describe_versions())
    write(path / "host.json", describe_host())
    with saying_why(path), (path / "command.txt").open("a") as file:
        file.write(shlex.join(command) + "\n")
