"""What a suite found, as data frames."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from sponge_env.metrics import NAN, EpisodeMetrics, metric, names
from sponge_env.suite.store import read, result_files
from sponge_env.suite.unit import QUANTILES

CELL = ("scenario", "profile", "start")
"""Columns that name a cell."""


@dataclass(frozen=True, slots=True)
class AgainstBound:
    """An episode beside a schedule that knows arrivals, delays and service times.

    NaN where the suite has no bound. The schedule is attained in the simulator without noise,
    and has the fewest violations that were found, then the fewest core-seconds.
    """

    bound_violations: float = metric(
        "bound", "", "Violations of the clairvoyant schedule.", "less", NAN
    )
    bound_core_seconds: float = metric(
        "bound", "core unit s", "Core-seconds of the clairvoyant schedule.", "less", NAN
    )
    beyond_bound_rate: float = metric(
        "bound", "", "Violations beyond the bound's, per request offered.", "less", NAN
    )
    cores_over_bound: float = metric(
        "bound", "", "Core-seconds relative to the bound's.", "less", NAN
    )


def load_results(path: Path) -> pd.DataFrame:
    """Return one row per agent, scenario, profile, start and seed.

    Args:
        path: A suite's folder.

    Returns:
        The columns of :class:`~sponge_env.metrics.EpisodeMetrics` and of
        :class:`AgainstBound`; no row where an agent failed.

    Raises:
        RunDirectoryError: It is no such folder, or one of another version.
    """
    results = _results(path)
    bounds = {
        (result["agent"], *_cell(result).values(), bound["seed"]): bound
        for result in results
        for bound in result.get("bounds", ())
    }
    rows = [
        _measured(episode)
        | _against(episode, bounds.get((r["bound"], *_cell(r).values(), episode["seed"])))
        for r in results
        for episode in r.get("episodes", ())
    ]
    return pd.DataFrame(rows, columns=[*names(EpisodeMetrics), *names(AgainstBound)])


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


def load_windows(path: Path) -> pd.DataFrame:
    """Return one row per agent, cell and interval, of the first seed.

    Raises:
        RunDirectoryError: It is no such folder, or one of another version.
    """
    return _long(
        {"agent": result["agent"], **_cell(result), **result["windows"]}
        for result in _results(path)
        if "windows" in result
    )


def load_latencies(path: Path) -> pd.DataFrame:
    """Return the quantiles of latency of every agent and cell, as means over the seeds.

    Returns:
        One row per quantile, with ``quantile`` from 0 to 1 and ``latency_s``.

    Raises:
        RunDirectoryError: It is no such folder, or one of another version.
    """
    return _long(
        {
            "agent": result["agent"],
            **_cell(result),
            "quantile": np.linspace(0.0, 1.0, QUANTILES + 1),
            "latency_s": np.array(result["latency_s"], dtype=np.float64).mean(axis=0),
        }
        for result in _results(path)
        if "latency_s" in result
    )


def _results(path: Path) -> list[dict[str, Any]]:
    return [read(file) for file in result_files(path)]


def _cell(result: Mapping[str, Any]) -> dict[str, str]:
    return {name: result[name] for name in CELL}


def _measured(episode: Mapping[str, Any]) -> dict[str, Any]:
    """Put NaN back where JSON has nothing."""
    return {name: NAN if value is None else value for name, value in episode.items()}


def _long(tables: Iterable[Mapping[str, Any]]) -> pd.DataFrame:
    frames = [pd.DataFrame(table) for table in tables]
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame()


def _against(episode: Mapping[str, Any], bound: Mapping[str, float] | None) -> dict[str, float]:
    """Compare an episode with its bound."""
    if bound is None:
        return dataclasses.asdict(AgainstBound())
    violations, core_seconds = bound["violations_upper"], bound["core_seconds_upper"]
    beyond = max(0.0, episode["violations"] - violations)
    against = AgainstBound(
        bound_violations=violations,
        bound_core_seconds=core_seconds,
        beyond_bound_rate=beyond / max(1, episode["offered"]),
        cores_over_bound=episode["core_seconds"] / core_seconds,
    )
    return dataclasses.asdict(against)
