"""The results of a run as data frames; the same for a suite and for a single evaluation.

All functions raise a RunDirectoryError if a folder is no run, or one of another version.
"""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd
from pyarrow import ArrowException

from sponge_env.errors import RunDirectoryError
from sponge_env.metrics import CELL, EpisodeMetrics, IntervalMetrics, declared, from_summary, names
from sponge_env.run.store import IDENTITY, check_run, read_result, result_files, whole_episodes
from sponge_env.run.suite import Arrangement
from sponge_env.scenario.toml import from_mapping

_KINDS = {f.name: f.type for cls in (EpisodeMetrics, IntervalMetrics) for f in declared(cls)}
"""Names of the columns' types."""

EPISODE = (*names(EpisodeMetrics), "stages")  # Columns of an episode, and its stages


def load_episodes(path: Path) -> list[EpisodeMetrics]:
    """Return the episodes of a run that count."""
    return [from_summary(episode) for each in _results(path) for episode in each["episodes"]]


def load_results(path: Path) -> pd.DataFrame:
    """Return :data:`EPISODE` of each agent or bound, cell and seed; no row where one failed."""
    return pd.DataFrame([asdict(each) for each in load_episodes(path)], columns=list(EPISODE))


def load_arrangement(path: Path) -> Arrangement:
    """Return how the run's suite has its cells shown; the default where it does not say."""
    return from_mapping(Arrangement, check_run(path, {}).get("arrangement", {}))


def load_failures(path: Path) -> pd.DataFrame:
    """Return one row per agent and cell that has no result, with ``type`` and ``message``."""
    rows = [result | result["error"] for result in _results(path) if result["error"]]
    return pd.DataFrame(rows, columns=["agent", *CELL, "type", "message"])


def load_intervals(
    path: Path, columns: Sequence[str] = names(IntervalMetrics), seed: int | None = None
) -> pd.DataFrame:
    """Return :data:`IDENTITY` and metrics of each interval, of one seed or of all."""
    result_files(path)
    wanted, name = [*IDENTITY, *columns], f"*/*-seed{'*' if seed is None else seed}.parquet"
    tables = [_table(file, wanted) for file in sorted((path / "intervals").glob(name))]
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame(columns=wanted)


def _table(file: Path, columns: list[str]) -> pd.DataFrame:
    try:
        if not file.is_file():
            raise OSError("it is no regular file")
        table = pd.read_parquet(file, columns=columns)
        return table.astype({name: _KINDS[name] for name in columns})
    except (OSError, ValueError, TypeError, OverflowError, ArrowException) as error:
        message = str(error).partition("\n")[0]
        raise RunDirectoryError(f"cannot read {str(file)!r}: {message}") from error


def _results(path: Path) -> list[dict[str, Any]]:
    """Read all results, with the episodes that count."""
    # Whole episodes of agents that did not fail count. In an interrupted run of one cell, only the
    # seeds that every agent finished count, so that agents are compared on the same seeds; in
    # others, only agents that finished all seeds.
    results = [read_result(file) for file in result_files(path)]
    whole = [[] if result["error"] else whole_episodes(result) for result in results]
    ended = [{episode["seed"] for episode in episodes} for episodes in whole]
    one_cell = len({tuple(result[name] for name in CELL) for result in results}) == 1
    shared = set.intersection(*(seeds for seeds in ended if seeds)) if any(ended) else set()
    for result, episodes, seeds in zip(results, whole, ended, strict=True):
        counted = shared if one_cell else seeds if result["complete"] else set()
        result["episodes"] = [episode for episode in episodes if episode["seed"] in counted]
        if not (result["episodes"] or result["complete"] or result["error"]):
            result["error"] = {"type": "interruption", "message": "it was interrupted"}
    return results
