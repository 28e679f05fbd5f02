"""The folder of one evaluation, read as if it had been a suite of one cell."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from sponge_env.arrays import FloatArray
from sponge_env.errors import RunDirectoryError
from sponge_env.results.schema import CELL, NAN, EpisodeMetrics, names
from sponge_env.suite.results import EPISODE
from sponge_env.suite.store import read
from sponge_env.suite.unit import INTERVALS, QUANTILES

EVALUATION = "config.json"
"""File that tells the folder of an evaluation."""

Summary = Mapping[str, Any]
"""An episode's metrics under their names."""


def load_evaluation(path: Path) -> dict[str, pd.DataFrame]:
    """Read the folder of one evaluation: the frames of a suite by name.

    Agents are compared on the same seeds, so only seeds count that all agents finished; an
    agent without any finished episode is a failure.

    Raises:
        RunDirectoryError: A file cannot be read or is of another version.
    """
    all_of_them = {file.parent: _summary(file) for file in sorted(path.glob("*/summary.json"))}
    whole = {folder: s for folder, s in all_of_them.items() if not s["partial"]}
    counted = _on_shared_seeds(whole)
    ended = {s["agent"] for s in whole.values()}
    failed = {s["agent"]: s for s in all_of_them.values() if s["agent"] not in ended}
    failures = [
        _named(s) | {"type": "interruption", "message": "no episode ran to its end"}
        for s in failed.values()
    ]
    latencies = [_latencies(folder, s, _count_from_s(path, s)) for folder, s in counted.items()]
    first_seed = min((s["seed"] for s in counted.values()), default=0)
    first = {folder: s for folder, s in counted.items() if s["seed"] == first_seed}
    return {
        "episodes": _episodes(list(counted.values()), latencies),
        "failures": pd.DataFrame(failures, columns=["agent", *CELL, "type", "message"]),
        "intervals": _joined(_intervals(folder, s) for folder, s in first.items()),
        "latencies": _median_over_seeds(latencies),
        "bounds": pd.DataFrame(),
    }


def _episodes(summaries: Sequence[Summary], latencies: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """Put the 99th percentile of all requests beside each summary; there are no bounds."""
    frame = pd.DataFrame(summaries, columns=list(EPISODE)).assign(bound="")
    frame["latency_p99_of_all_s"] = [
        table.loc[table["quantile"] == 0.99, "latency_s"].item() for table in latencies
    ]
    return frame


def _on_shared_seeds(summaries: Mapping[Path, Summary]) -> dict[Path, Summary]:
    """Keep the episodes whose seed every agent has."""
    seeds: dict[str, set[int]] = {}
    for summary in summaries.values():
        seeds.setdefault(summary["agent"], set()).add(summary["seed"])
    shared = set.intersection(*seeds.values()) if seeds else set()
    return {folder: s for folder, s in summaries.items() if s["seed"] in shared}


def _summary(file: Path) -> Summary:
    """Read a summary; what JSON cannot hold was None there and is NaN again."""
    data = read(file)
    if missing := [name for name in names(EpisodeMetrics) if name not in data]:
        raise RunDirectoryError(
            f"{str(file)!r} was written by another version (it lacks {', '.join(missing)}); "
            "run evaluate.py again"
        )
    return {name: NAN if data[name] is None else data[name] for name in names(EpisodeMetrics)}


def _named(summary: Summary) -> dict[str, str]:
    return {name: summary[name] for name in ("agent", *CELL)}


def _intervals(folder: Path, summary: Summary) -> pd.DataFrame:
    """Read the intervals of an episode."""
    file = folder / "intervals.csv"
    try:
        table = pd.read_csv(file, usecols=list(INTERVALS))
    except (OSError, ValueError) as error:
        raise RunDirectoryError(f"cannot read {str(file)!r}: {error}") from error
    return table.assign(**_named(summary))


def _count_from_s(path: Path, summary: Summary) -> float:
    """Return the end of an episode's warm-up."""
    if summary["start"] == "cold":
        return 0.0
    return float(read(path / EVALUATION)["scenario"]["warmup_s"])


def _latencies(folder: Path, summary: Summary, from_s: float) -> pd.DataFrame:
    """Read the quantiles of an episode's latencies; infinite for what was never answered."""
    file = folder / "requests.parquet"
    try:
        requests = pd.read_parquet(file, columns=["sent_s", "arrival_s", "finished_s", "outcome"])
    except (OSError, ValueError) as error:
        raise RunDirectoryError(f"cannot read {str(file)!r}: {error}") from error
    counted = requests[requests["arrival_s"] >= from_s]
    answered = counted["outcome"].isin(("on_time", "late"))
    quantile = np.linspace(0.0, 1.0, QUANTILES + 1)
    latency_s = (counted["finished_s"] - counted["sent_s"]).where(answered, np.inf)
    return pd.DataFrame(
        {**_named(summary), "quantile": quantile, "latency_s": _quantiles(latency_s, quantile)}
    )


def _quantiles(values: pd.Series[float], quantile: FloatArray) -> FloatArray:
    """Return quantiles, of which those between a number and infinity are infinite."""
    if values.empty:
        return np.full(quantile.shape, np.nan)
    with np.errstate(invalid="ignore"):
        found = np.quantile(values.to_numpy(np.float64), quantile)
    return np.where(np.isnan(found), np.inf, found)


def _joined(tables: Iterable[pd.DataFrame]) -> pd.DataFrame:
    frames = list(tables)
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame()


def _median_over_seeds(tables: Iterable[pd.DataFrame]) -> pd.DataFrame:
    joined = _joined(tables)
    if joined.empty:
        return joined
    return joined.groupby(["agent", *CELL, "quantile"])["latency_s"].median().reset_index()
