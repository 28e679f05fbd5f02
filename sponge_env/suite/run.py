"""Runs a suite's units in parallel and keeps what they return."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict
from typing import Any

from sponge_env.console import Progress
from sponge_env.suite.definition import Suite, cell_name, cells
from sponge_env.suite.fingerprint import code_fingerprint, fingerprint, scenario_fingerprint
from sponge_env.suite.pool import Failure, ProcessPool
from sponge_env.suite.store import ResultStore
from sponge_env.suite.unit import Unit


def identity(suite: Suite) -> dict[str, Any]:
    """Return what all results in one folder have in common.

    Agents are not among it: a folder can be given more of them later.

    Raises:
        SpongeError: A scenario or profile cannot be used.
    """
    content = {cell_name(scenario): scenario_fingerprint(scenario) for scenario in cells(suite)}
    return {
        "suite": suite.name,
        "seeds": suite.seeds,
        "cells": fingerprint(content),
        "code": code_fingerprint(),
    }


def run_missing(store: ResultStore, todo: Sequence[Unit], jobs: int) -> None:
    """Run units in parallel and keep each result as soon as it is there.

    Args:
        store: Where results go.
        todo: What is to be run.
        jobs: Processes.

    Raises:
        KeyboardInterrupt: Interrupted; what has ended is kept and no process is left.
    """
    progress, failed = Progress("suite", len(todo), "result"), 0
    with closing(progress), ProcessPool(run_unit, min(jobs, len(todo))) as pool:
        for done, (unit, result) in enumerate(pool.results(todo), start=1):
            if isinstance(result, Failure):
                failed += 1
                store.keep(unit, {}, asdict(result))
            else:
                store.keep(unit, result, None)
            progress.show(done, f"{failed} failed" if failed else "")


def run_unit(unit: Unit) -> dict[str, Any]:
    """Run a unit in a process of the pool."""
    return unit.run()
