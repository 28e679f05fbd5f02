"""Run directories, and the sinks that write files.

A run directory holds what defined the evaluation and, for each agent and seed, a folder
with the results::

    runs/<name>/config.json command.txt versions.json host.json
    runs/<name>/<agent>-seed<k>/intervals.csv requests.parquet summary.json events.out.*

JSON and parquet files appear whole or not at all; ``intervals.csv`` grows interval by
interval, so that an interrupted run keeps what it has.
"""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import itertools
import json
import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
from numpy.typing import NDArray

from sponge_env.errors import RunDirectoryError
from sponge_env.files import replacing, saying_why
from sponge_env.host import describe_host, describe_versions
from sponge_env.interfaces import Sink
from sponge_env.results.schema import EpisodeMetrics, IntervalMetrics, names
from sponge_env.scenario import Scenario

RUNS = Path("runs")
"""Where run directories go by themselves."""


@dataclass(frozen=True, slots=True)
class RunDirectory:
    """The folder of one evaluation; it was new when it was made."""

    path: Path

    @classmethod
    def create(
        cls,
        path: Path | None,
        scenario: Scenario,
        options: Mapping[str, Any],
        command: Sequence[str],
        purpose: str = "",
    ) -> RunDirectory:
        """Make the folder and write down what defines the run.

        Args:
            path: Where; must not exist yet. If left out, a new folder in ``runs``, named
                by time and purpose.
            scenario: What is evaluated.
            options: Further settings: agents, seeds, backend.
            command: The command line, program first.
            purpose: Part of the name of a new folder.

        Raises:
            RunDirectoryError: The folder exists already or cannot be written.
        """
        if path is None:
            path = new_folder(purpose)
        else:
            _make(path)
        config = {"scenario": dataclasses.asdict(scenario), "options": dict(options)}
        write_json(path / "config.json", config)
        write_json(path / "versions.json", describe_versions())
        write_json(path / "host.json", describe_host())
        with replacing(path / "command.txt") as partial:
            partial.write_text(shlex.join(command) + "\n")
        return cls(path)

    def episode(self, agent: str, seed: int) -> Path:
        """Make and return the folder of one agent and seed: one TensorBoard run.

        Raises:
            RunDirectoryError: This agent and seed were recorded already, or the folder
                cannot be written.
        """
        folder = self.path / f"{agent}-seed{seed}"
        _make(folder)
        return folder


def new_folder(purpose: str) -> Path:
    """Make a folder of a new name in ``runs``, also when several runs start at the same time.

    Raises:
        RunDirectoryError: It cannot be written.
    """
    name = f"{datetime.now():%Y%m%d-%H%M%S}-{purpose}"
    for number in itertools.count(1):
        path = RUNS / (f"{name}-{number}" if number > 1 else name)
        with saying_why(path):
            RUNS.mkdir(exist_ok=True)
            with contextlib.suppress(FileExistsError):
                path.mkdir()
                return path
    raise AssertionError("counting never ends")


def _make(path: Path) -> None:
    with saying_why(path):
        try:
            path.mkdir(parents=True)
        except FileExistsError:
            raise RunDirectoryError(
                f"the run directory {str(path)!r} exists already; "
                "choose another name or remove it first"
            ) from None


def write_json(path: Path, data: Any) -> None:
    """Write JSON, whole or not at all; what JSON cannot hold is written as text.

    Raises:
        RunDirectoryError: The file cannot be written.
        ValueError: A number that is not finite; JSON has none.
    """
    text = json.dumps(data, indent=1, allow_nan=False, default=str) + "\n"
    with replacing(path) as partial:
        partial.write_text(text)


def write_requests(path: Path, columns: Mapping[str, NDArray[Any]]) -> None:
    """Write the ledger of all requests as parquet, whole or not at all.

    Args:
        path: The file.
        columns: Name to (requests,) values.

    Raises:
        RunDirectoryError: The file cannot be written.
    """
    with replacing(path) as partial:
        pyarrow.parquet.write_table(pyarrow.table(dict(columns)), partial)


def summary(metrics: EpisodeMetrics) -> dict[str, Any]:
    """Return an episode's metrics under their names; a number that is not finite is None."""
    values = {name: getattr(metrics, name) for name in names(EpisodeMetrics)}
    return {
        name: None if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in values.items()
    }


class CsvSink:
    """Writes one line per interval, each at once."""

    def __init__(self, path: Path) -> None:
        """Start the file.

        Args:
            path: Must not exist yet.

        Raises:
            RunDirectoryError: The file exists already or cannot be written.
        """
        self._path = path
        with saying_why(path):
            self._file = path.open("x", newline="")
            self._rows = csv.DictWriter(self._file, names(IntervalMetrics))
            self._rows.writeheader()
            self._file.flush()

    def interval(self, metrics: IntervalMetrics) -> None:
        """Append one interval.

        Raises:
            RunDirectoryError: The file cannot be written.
        """
        with saying_why(self._path):
            self._rows.writerow({name: getattr(metrics, name) for name in self._rows.fieldnames})
            self._file.flush()

    def episode(self, metrics: EpisodeMetrics) -> None:
        """Do nothing: the summary has its own file."""

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class SummarySink:
    """Writes the episode's summary as one JSON object."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def interval(self, metrics: IntervalMetrics) -> None:
        """Do nothing: intervals have their own file."""

    def episode(self, metrics: EpisodeMetrics) -> None:
        """Write the summary.

        Raises:
            RunDirectoryError: The file cannot be written.
        """
        write_json(self._path, summary(metrics))

    def close(self) -> None:
        """Do nothing: no file is held open."""


def file_sinks(folder: Path) -> tuple[Sink, ...]:
    """Return the sinks that every episode's folder has.

    Raises:
        RunDirectoryError: A file exists already or cannot be written.
    """
    return CsvSink(folder / "intervals.csv"), SummarySink(folder / "summary.json")
