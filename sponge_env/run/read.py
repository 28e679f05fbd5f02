"""What a run found, as data frames; the same for a suite and for a single evaluation."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from sponge_env.arrays import FloatArray
from sponge_env.errors import RunDirectoryError
from sponge_env.files import read_json
from sponge_env.results.schema import (
    CELL,
    NAN,
    AgainstBound,
    AllRequests,
    EpisodeMetrics,
    IntervalMetrics,
    names,
)
from sponge_env.run.bounds import BOUND_AGENTS
from sponge_env.run.record import IDENTITY, whole_episodes
from sponge_env.run.rollout import QUANTILES
from sponge_env.run.store import result_files

EPISODE = (*names(EpisodeMetrics), *names(AllRequests), *names(AgainstBound))
"""Columns that describe an episode."""


def load_results(path: Path) -> pd.DataFrame:
    """Return one row per agent, scenario, profile, start and seed.

    Args:
        path: A run's folder.

    Returns:
        The columns :data:`EPISODE`; no row where an agent failed.

    Raises:
        RunDirectoryError: It is no such folder, or one of another version.
    """
    results = _results(path)
    bounds = {
        (result["agent"], *_cell(result).values(), bound["seed"]): bound
        for result in results
        for bound in result.get("bounds", ())
    }
    common = common_bound({name for name, *_ in bounds})
    rows = [row for result in results for row in _rows(result, bounds, common)]
    return pd.DataFrame(rows, columns=list(EPISODE))


def common_bound(there: Iterable[str]) -> str:
    """Return the bound that agents of all kinds can be held against; empty if there is none.

    That is the joint one: what scales vertically only could also have been scaled by it.
    """
    found = set(there)
    return next((BOUND_AGENTS[k] for k in ("joint", "vertical") if BOUND_AGENTS[k] in found), "")


def load_bounds(path: Path) -> pd.DataFrame:
    """Return one row per bound (``agent``), cell and seed.

    Returns:
        Violations and core-seconds, ``..._lower`` proven and ``..._upper`` attained.

    Raises:
        RunDirectoryError: It is no such folder, or one of another version.
    """
    return pd.DataFrame(
        [
            {"agent": result["agent"], **_cell(result), **bound}
            for result in _results(path)
            for bound in result.get("bounds", ())
        ]
    )


def load_failures(path: Path) -> pd.DataFrame:
    """Return one row per agent and cell that has no result, with ``type`` and ``message``.

    Raises:
        RunDirectoryError: It is no such folder, or one of another version.
    """
    failed = [result for result in _results(path) if result["error"]]
    rows = [{"agent": result["agent"], **_cell(result), **result["error"]} for result in failed]
    return pd.DataFrame(rows, columns=["agent", *CELL, "type", "message"])


def load_intervals(
    path: Path, columns: Sequence[str] = names(IntervalMetrics), seed: int | None = None
) -> pd.DataFrame:
    """Return one row per agent, cell, seed and interval.

    Args:
        path: A run's folder.
        columns: Interval metrics.
        seed: The only one wanted; all if left out.

    Returns:
        ``agent``, ``scenario``, ``profile``, ``start``, ``seed`` and the metrics; also of an
        episode that was interrupted, or whose process was killed.

    Raises:
        RunDirectoryError: It is no such folder, or a file cannot be read.
    """
    result_files(path)
    wanted = [*IDENTITY, *columns]
    name = f"*/*-seed{'*' if seed is None else seed}"
    tables = [_table(file, wanted) for file in sorted((path / "intervals").glob(f"{name}.*"))]
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame(columns=wanted)


def _table(file: Path, columns: Sequence[str]) -> pd.DataFrame:
    try:
        if file.suffix == ".csv":  # of an episode on the real worker that has not ended
            return pd.read_csv(file, usecols=list(columns))[list(columns)]
        return pd.read_parquet(file, columns=list(columns))
    except (OSError, ValueError) as error:
        raise RunDirectoryError(f"cannot read {str(file)!r}: {error}") from error


def load_latencies(path: Path) -> pd.DataFrame:
    """Return the quantiles of latency of every agent and cell, as medians over the seeds.

    Returns:
        One row per quantile, with ``quantile`` from 0 to 1 and ``latency_s``, infinite where
        requests were never answered.

    Raises:
        RunDirectoryError: It is no such folder, or one of another version.
    """
    return _long(
        {
            "agent": result["agent"],
            **_cell(result),
            "quantile": np.linspace(0.0, 1.0, QUANTILES + 1),
            "latency_s": np.median(_latencies_s(result), axis=0),
        }
        for result in _results(path)
        if result.get("latency_s")
    )


def _latencies_s(result: Mapping[str, Any]) -> FloatArray:
    """Return the quantiles of latency of each seed, shape (seeds, QUANTILES + 1)."""
    stored = np.array(result.get("latency_s", ()), dtype=np.float64)
    return np.where(np.isnan(stored), math.inf, stored)  # what JSON cannot hold


Sides = Mapping[str, float]
"""Violations and core-seconds of a bound, see :func:`load_bounds`."""


def _rows(
    result: Mapping[str, Any], bounds: Mapping[tuple[Any, ...], Sides], common: str
) -> Iterator[dict[str, Any]]:
    """Yield the episodes of an agent on a cell, beside their bounds.

    Args:
        result: A result, which has no episodes if it is a bound's or the agent failed.
        bounds: By name, cell and seed.
        common: Name of the bound of all agents.
    """
    for episode, latency_s in zip(result.get("episodes", ()), _latencies_s(result), strict=True):
        cell = (*_cell(result).values(), episode["seed"])
        own, shared = bounds.get((result["bound"], *cell)), bounds.get((common, *cell))
        against = AgainstBound(
            result["bound"], *_distance(episode, own), *_distance(episode, shared)
        )
        p99_s = float(latency_s[round(0.99 * QUANTILES)]) if episode["offered"] else NAN
        measured = {name: NAN if value is None else value for name, value in episode.items()}
        yield measured | asdict(AllRequests(p99_s)) | asdict(against)


def _distance(episode: Mapping[str, Any], bound: Sides | None) -> tuple[float, float]:
    """Return violations beyond a bound per request, and core-seconds relative to it."""
    if bound is None:
        return NAN, NAN
    beyond = episode["violations"] - bound["violations_upper"]
    cores = episode["core_seconds"] / bound["core_seconds_upper"]
    return beyond / max(1, episode["offered"]), cores


def _results(path: Path) -> list[dict[str, Any]]:
    """Read all results, with the episodes that count.

    These are the whole ones of agents that did not fail. In a run of one cell that was
    interrupted they are those on the seeds that every agent finished, so that agents are
    compared on the same seeds; elsewhere those of agents that finished all seeds.
    """
    results = [_checked(file) for file in result_files(path)]
    ended = [_seeds(result) for result in results]
    one_cell = len({tuple(_cell(result).values()) for result in results}) == 1
    shared = set.intersection(*(seeds for seeds in ended if seeds)) if any(ended) else set()
    for result, seeds in zip(results, ended, strict=True):
        counted = shared if one_cell else seeds if result["complete"] else set()
        pairs = [(e, t) for e, t in whole_episodes(result) if e["seed"] in counted & seeds]
        if "episodes" in result:
            result["episodes"] = [episode for episode, _ in pairs]
            result["latency_s"] = [latency_s for _, latency_s in pairs]
        if not (pairs or result["complete"] or result["error"]):
            result["error"] = {"type": "interruption", "message": "it was interrupted"}
    return results


def _seeds(result: Mapping[str, Any]) -> set[int]:
    """Return the seeds of an agent that ended; none if it failed."""
    return set() if result["error"] else {e["seed"] for e, _ in whole_episodes(result)}


def _checked(file: Path) -> dict[str, Any]:
    """Read one result; its summaries have the schema's names."""
    result = read_json(file)
    for episode in result.get("episodes", ()):
        if missing := [name for name in names(EpisodeMetrics) if name not in episode]:
            raise RunDirectoryError(
                f"{str(file)!r} was written by another version (it lacks {', '.join(missing)}); "
                "run evaluate.py again"
            )
    return result


def _cell(result: Mapping[str, Any]) -> dict[str, str]:
    return {name: result[name] for name in CELL}


def _long(tables: Iterable[Mapping[str, Any]]) -> pd.DataFrame:
    frames = [pd.DataFrame(table) for table in tables]
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame()
