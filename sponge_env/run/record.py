"""What a unit of work leaves behind while it runs: results, intervals and requests.

Intervals and requests of an episode are parquet files, written when it ends. A live episode's
intervals are appended to a CSV file until then, which takes 7 us each, so that a killed process
loses none.
"""

from __future__ import annotations

import csv
import shutil
from collections.abc import Iterator, Mapping, Sequence
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from sponge_env.errors import RunDirectoryError
from sponge_env.interfaces import Sink
from sponge_env.metrics import (
    EpisodeMetrics,
    IntervalMetrics,
    declared,
    names,
    of_stage,
    summary,
)
from sponge_env.run.rollout import Episode, Run, kept_quantiles_s
from sponge_env.run.store import IDENTITY, RunStore, whole_episodes
from sponge_env.simulation.system import System
from sponge_env.utils.console import ConsoleSink, Progress
from sponge_env.utils.files import explained, replacing
from sponge_env.utils.installation import missing

if TYPE_CHECKING:
    from sponge_env.run.store import Unit

COLUMNS = (*IDENTITY, *names(IntervalMetrics))

_of_run, _of_interval = attrgetter(*IDENTITY), attrgetter(*names(IntervalMetrics))


class Recorder:
    """Keeps the results of one unit, on top of what an earlier run kept of it."""

    def __init__(self, store: RunStore, unit: Unit, requests: float, watched: bool) -> None:
        """Take up what there is; arguments as for :func:`run_unit`."""
        self._store, self._unit = store, unit
        self._requests, self._watched = requests, watched
        self.facts: dict[str, Any] = {}
        """What its results say of the unit."""
        self._episodes = whole_episodes(store.kept(unit))

    @property
    def seeds(self) -> int:
        """How many seeds have ended."""
        return len(self._episodes)

    def sinks(self, run: Run, intervals: int) -> Iterator[Sink]:
        """Open what follows an episode of so many intervals while it runs."""
        if run.backend == "live":
            yield Journal(self._file("intervals", run, "csv"), run)
        if self._watched and not missing("report"):
            from sponge_env.run.tensorboard import TensorBoardSink  # a suite does without

            name = f"{run.agent}-seed{run.seed}" if self._unit.seeds > 1 else run.agent
            folder = self._store.path / "tensorboard" / name
            shutil.rmtree(folder, ignore_errors=True)  # of an episode that was interrupted
            yield TensorBoardSink(folder, "/".join([*self._store.path.parts[-2:], name]))
        if self._watched:
            yield ConsoleSink(Progress(f"{run.agent}, seed {run.seed}", intervals, "interval"))

    def add(self, run: Run, episode: Episode, system: System) -> None:
        """Write an episode that ended, and the unit's results so far."""
        requests = system.columns()
        latency_s = kept_quantiles_s(requests, system.plan.count_from_s)
        # Whatever cannot be written now, the summary has the episode.
        self._episodes.append((summary(episode.summary), latency_s))
        if run.seed < self._requests:
            write_table(self._file("requests", run, "parquet"), requests)
        columns = interval_columns(run, episode.intervals)
        write_table(self._file("intervals", run, "parquet"), columns)
        self._file("intervals", run, "csv").unlink(missing_ok=True)
        self.keep(complete=False)

    def keep(self, complete: bool) -> None:
        """Write the unit's results, and whether they are all there."""
        episodes = {}
        if self._episodes:
            summaries, latencies_s = zip(*self._episodes, strict=True)
            episodes = {"episodes": summaries, "latency_s": latencies_s}
        self._store.keep(self._unit, self.facts | episodes, complete=complete)

    def _file(self, kind: str, run: Run, suffix: str) -> Path:
        return self._store.file(kind, self._unit, f"-seed{run.seed}.{suffix}")


class Journal:
    """Appends each interval to a CSV file at once, with :data:`COLUMNS` on top."""

    def __init__(self, path: Path, run: Run) -> None:
        self._path, self._head = path, _of_run(run)
        with explained(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = path.open("w", newline="", buffering=1)
            csv.writer(self._file, lineterminator="\n").writerow(COLUMNS)

    def interval(self, metrics: IntervalMetrics) -> None:
        """Append one interval."""
        with explained(self._path):
            row = (*self._head, *_of_interval(metrics))
            csv.writer(self._file, lineterminator="\n").writerow(row)

    def episode(self, metrics: EpisodeMetrics) -> None:
        """Do nothing: the summary has its own file."""

    def close(self) -> None:
        """Close the file."""
        with explained(self._path):
            self._file.close()


def interval_columns(run: Run, intervals: Sequence[IntervalMetrics]) -> dict[str, NDArray[Any]]:
    """Return the intervals of an episode as :data:`COLUMNS` of shape (intervals,).

    What was measured of a stage follows below its name: ``detector/queued``.
    """
    head = zip(IDENTITY, _of_run(run), strict=True)
    columns = {name: np.full(len(intervals), value) for name, value in head}
    for field in declared(IntervalMetrics):
        values = [getattr(metrics, field.name) for metrics in intervals]
        columns[field.name] = np.array(values, np.int64 if field.type == "int" else np.float64)
    for stage, measured in (intervals[0].stages if intervals else {}).items():
        for name in measured:
            columns[of_stage(stage, name)] = np.array([m.stages[stage][name] for m in intervals])
    return columns


def write_table(path: Path, columns: Mapping[str, NDArray[Any]]) -> None:
    """Write columns as parquet, whole or not at all."""
    import pyarrow
    import pyarrow.parquet

    repeated = [name for name, column in columns.items() if column.dtype.kind in "iU"]
    with replacing(path) as partial:
        pyarrow.parquet.write_table(
            pyarrow.table(dict(columns)), partial, compression="zstd", use_dictionary=repeated
        )


def read_intervals(path: Path) -> list[IntervalMetrics]:
    """Return the intervals of one episode that has ended, without what was measured of stages."""
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.read_table(path, columns=list(names(IntervalMetrics)))
        return [IntervalMetrics(**row) for row in table.to_pylist()]
    except (OSError, TypeError, pyarrow.ArrowException) as error:
        message = str(error).partition("\n")[0]
        raise RunDirectoryError(f"cannot read {str(path)!r}: {message}") from error
