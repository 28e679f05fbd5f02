"""What a unit leaves behind, written as it runs.

Intervals and requests of an episode are parquet files, written when it ends. A live episode's
intervals are appended to a CSV file until then, so that a killed process loses none. The
unit's own file is written again after each episode, at most once a second.
"""

from __future__ import annotations

import csv
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from operator import attrgetter
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sponge_env.console import ConsoleSink, Progress
from sponge_env.files import replacing, saying_why
from sponge_env.installation import missing
from sponge_env.interfaces import Sink
from sponge_env.results.schema import EpisodeMetrics, IntervalMetrics, names, summary
from sponge_env.run.rollout import ControlledSystem, Episode, Run, latency_quantiles_s
from sponge_env.run.store import RunStore, Unit

IDENTITY = ("agent", "scenario", "profile", "start", "seed")
"""Columns of the intervals that say which episode they are of; the schema's follow."""

COLUMNS = (*IDENTITY, *names(IntervalMetrics))

_KEEP_EVERY_S = 1.0
"""Wall time between two times that a unit's results are written."""

_of_run, _of_interval = attrgetter(*IDENTITY), attrgetter(*names(IntervalMetrics))


class Recorder:
    """Keeps the results of one unit, on top of what an earlier run kept of it."""

    def __init__(
        self, store: RunStore, unit: Unit, requests: float = 0, watched: bool = False
    ) -> None:
        """Take up what there is.

        Args:
            store: Where results go.
            unit: Whose.
            requests: Seeds below this keep their requests.
            watched: Whether somebody looks on: with TensorBoard events interval by interval
                and progress on the terminal.
        """
        self._store, self._unit = store, unit
        self._requests, self._watched = requests, watched
        self._result: dict[str, Any] = {}
        self._whole, self._kept = False, True
        self._due_s = time.monotonic() + _KEEP_EVERY_S
        for episode, latency_s in whole_episodes(store.kept(unit)):
            self._add(episode, latency_s)

    @property
    def seeds(self) -> int:
        """How many seeds have ended."""
        return len(self._result.get("episodes", ()))

    def say(self, **facts: Any) -> None:
        """Add facts about the unit to its results."""
        self._result |= facts
        self._kept = False

    def sinks(self, run: Run, intervals: int) -> Iterator[Sink]:
        """Open what follows an episode of so many intervals while it runs."""
        if run.backend == "live":
            yield Journal(self._file("intervals", run, "csv"), run)
        if self._watched and not missing("report"):
            from sponge_env.results.tensorboard import TensorBoardSink  # a suite does without

            folder = self._store.path / "tensorboard" / f"{run.agent}-seed{run.seed}"
            shutil.rmtree(folder, ignore_errors=True)  # of an episode that was interrupted
            yield TensorBoardSink(folder, f"{self._store.path.name}/{folder.name}")
        if self._watched:
            yield ConsoleSink(Progress(f"{run.agent}, seed {run.seed}", intervals, "interval"))

    def add(self, run: Run, episode: Episode, system: ControlledSystem) -> None:
        """Write an episode that ended, of this system.

        Raises:
            RunDirectoryError: A file cannot be written.
        """
        requests = system.columns()
        if run.seed < self._requests:
            write_table(self._file("requests", run, "parquet"), requests)
        columns = interval_columns(run, episode.intervals)
        write_table(self._file("intervals", run, "parquet"), columns)
        self._file("intervals", run, "csv").unlink(missing_ok=True)
        latency_s = latency_quantiles_s(requests, system.plan.count_from_s)
        self._add(summary(episode.summary), latency_s)
        if time.monotonic() >= self._due_s:
            self.keep()

    def finish(self) -> None:
        """Note that the unit's results are all there."""
        self._whole, self._kept = True, False

    def keep(self) -> None:
        """Write the unit's results, unless that was done already.

        Raises:
            RunDirectoryError: The file cannot be written.
        """
        if not self._kept:
            self._store.keep(self._unit, self._result, complete=self._whole)
            self._kept, self._due_s = True, time.monotonic() + _KEEP_EVERY_S

    def _add(self, episode: Mapping[str, Any], latency_s: Sequence[float | None]) -> None:
        self._result.setdefault("episodes", []).append(episode)
        self._result.setdefault("latency_s", []).append(latency_s)
        self._kept = False

    def _file(self, kind: str, run: Run, suffix: str) -> Path:
        return self._store.file(kind, self._unit, f"-seed{run.seed}.{suffix}")


def run_unit(unit: Unit, store: RunStore, requests: float = 0, watched: bool = False) -> None:
    """Run what is missing of a unit and keep it; arguments as for :class:`Recorder`.

    Raises:
        SpongeError: It cannot go on; what there is was kept.
        KeyboardInterrupt: Likewise.
    """
    record = Recorder(store, unit, requests, watched)
    try:
        unit.run(record)
        record.finish()
    finally:
        record.keep()


def whole_episodes(
    result: Mapping[str, Any],
) -> list[tuple[dict[str, Any], Sequence[float | None]]]:
    """Return the summaries in a unit's results with the quantiles of latency of each.

    An episode that was interrupted is left out.
    """
    pairs = zip(result.get("episodes", ()), result.get("latency_s", ()), strict=True)
    return [(episode, latency_s) for episode, latency_s in pairs if not episode["partial"]]


class Journal:
    """Appends each interval to a CSV file at once."""

    def __init__(self, path: Path, run: Run) -> None:
        """Start the file anew, with :data:`COLUMNS` on top.

        Raises:
            RunDirectoryError: It cannot be written.
        """
        self._path, self._head = path, _of_run(run)
        with saying_why(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = path.open("w", newline="")
            self._rows = csv.writer(self._file)
            self._rows.writerow(COLUMNS)
            self._file.flush()

    def interval(self, metrics: IntervalMetrics) -> None:
        """Append one interval.

        Raises:
            RunDirectoryError: The file cannot be written.
        """
        with saying_why(self._path):
            self._rows.writerow((*self._head, *_of_interval(metrics)))
            self._file.flush()

    def episode(self, metrics: EpisodeMetrics) -> None:
        """Do nothing: the summary has its own file."""

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def interval_columns(run: Run, intervals: Sequence[IntervalMetrics]) -> dict[str, NDArray[Any]]:
    """Return the intervals of an episode as :data:`COLUMNS` of shape (intervals,)."""
    head = zip(IDENTITY, _of_run(run), strict=True)
    columns = {name: np.full(len(intervals), value) for name, value in head}
    measured = np.array([_of_interval(metrics) for metrics in intervals], np.float64)
    for place, field in enumerate(fields(IntervalMetrics)):
        column = measured[:, place] if intervals else np.zeros(0)
        columns[field.name] = column.astype(np.int64) if field.type == "int" else column
    return columns


def write_table(path: Path, columns: Mapping[str, NDArray[Any]]) -> None:
    """Write columns as parquet, whole or not at all.

    Raises:
        RunDirectoryError: The file cannot be written.
    """
    import pyarrow
    import pyarrow.parquet

    repeated = [name for name, column in columns.items() if column.dtype.kind in "iU"]
    with replacing(path) as partial:
        pyarrow.parquet.write_table(
            pyarrow.table(dict(columns)), partial, compression="zstd", use_dictionary=repeated
        )


def read_intervals(path: Path) -> list[IntervalMetrics]:
    """Read the intervals of one episode, from parquet."""
    import pyarrow.parquet

    table = pyarrow.parquet.read_table(path, columns=list(names(IntervalMetrics)))
    return [IntervalMetrics(**row) for row in table.to_pylist()]
