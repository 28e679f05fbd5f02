"""A suite's folder: one file per agent and cell, of one suite and one version of the code.

::

    DIR/suite.json versions.json host.json command.txt
    DIR/results/<agent>/<scenario>+<profile>+<start>.json
    DIR/tables.txt tensorboard/<agent>/

Each file appears whole or not at all, so whatever is there can be trusted after an
interruption. What is not there is still to be done.
"""

from __future__ import annotations

import fcntl
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from sponge_env.errors import RunDirectoryError
from sponge_env.files import replacing, saying_why
from sponge_env.suite.definition import cell_name
from sponge_env.suite.unit import Unit

FORMAT = 2
"""Version of the folder's layout."""

_DEFINITION = "suite.json"
_RESULTS = "results"
_LOCK = "lock"


@dataclass(frozen=True, slots=True)
class ResultStore:
    """The folder of a suite, locked for one writer."""

    path: Path

    @classmethod
    @contextmanager
    def open(cls, path: Path, identity: Mapping[str, Any]) -> Iterator[ResultStore]:
        """Make the folder, or go on with that of the same suite, and lock it.

        Args:
            path: The folder.
            identity: What all of its results have in common, as plain data.

        Raises:
            RunDirectoryError: It holds something else, somebody writes into it, or it cannot
                be written.
        """
        wanted = {"format": FORMAT, **identity}
        with saying_why(path):
            if path.exists() and any(file.name != _LOCK for file in path.iterdir()):
                _definition(path)  # refuses a folder of something else before touching it
            path.mkdir(parents=True, exist_ok=True)
            lock = (path / _LOCK).open("a")
        with lock:
            _lock(lock, path)
            if (path / _DEFINITION).exists():
                _check_same(path, wanted)
            else:
                write(path / _DEFINITION, wanted)
            yield cls(path)

    def missing(self, units: Sequence[Unit]) -> list[Unit]:
        """Return the units without a result; those that failed are tried again.

        Raises:
            RunDirectoryError: A result was made by another configuration of its agent.
        """
        return [unit for unit in units if not self._has(unit)]

    def _has(self, unit: Unit) -> bool:
        path = self._file(unit)
        if not path.exists():
            return False
        kept = read(path)
        if kept["fingerprint"] != unit.fingerprint():
            raise RunDirectoryError(
                f"{str(self.path)!r} holds results of agent {unit.agent!r} with other options, "
                "scenario changes or files; choose another --run-dir"
            )
        return kept["error"] is None

    def keep(self, unit: Unit, result: Mapping[str, Any], error: Mapping[str, str] | None) -> None:
        """Keep the result of a unit, or why it has none.

        Raises:
            RunDirectoryError: The file cannot be written.
        """
        scenario = unit.scenario
        head = {
            "format": FORMAT,
            "agent": unit.agent,
            "scenario": scenario.name,
            "profile": Path(scenario.profile).stem,
            "start": scenario.start,
            "fingerprint": unit.fingerprint(),
            "error": error,
        }
        write(self._file(unit), {**head, **result})

    def _file(self, unit: Unit) -> Path:
        return self.path / _RESULTS / unit.agent / f"{cell_name(unit.scenario)}.json"


def result_files(path: Path) -> list[Path]:
    """Return the files with results of a suite's folder, in order of their names.

    Raises:
        RunDirectoryError: It is no such folder, or one of another version.
    """
    found = _definition(path).get("format")
    if found != FORMAT:
        raise RunDirectoryError(
            f"{str(path)!r} has format {found!r}, this version reads {FORMAT}; run the suite again"
        )
    return sorted((path / _RESULTS).glob("*/*.json"))


def read(path: Path) -> dict[str, Any]:
    """Read one JSON object.

    Raises:
        RunDirectoryError: It cannot be read or is none.
    """
    try:
        data = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise RunDirectoryError(f"cannot read {str(path)!r}: {error}") from error
    if not isinstance(data, dict):
        raise RunDirectoryError(f"{str(path)!r} holds no result of a suite")
    return data


def _definition(path: Path) -> dict[str, Any]:
    if not (path / _DEFINITION).is_file():
        raise RunDirectoryError(
            f"{str(path)!r} is no folder of a suite (it has no {_DEFINITION}); choose another"
        )
    return read(path / _DEFINITION)


def _lock(file: IO[str], path: Path) -> None:
    """Let nobody else write into the folder until the file is closed, however that ends."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        raise RunDirectoryError(
            f"another suite is writing into {str(path)!r}; wait until it has ended or choose "
            "another --run-dir"
        ) from None


def _check_same(path: Path, wanted: Mapping[str, Any]) -> None:
    found = _definition(path)
    other = [key for key in wanted if found.get(key) != wanted[key]]
    if other:
        raise RunDirectoryError(
            f"{str(path)!r} holds results of another suite or version (other {', '.join(other)}); "
            "choose another --run-dir"
        )


def write(path: Path, data: Mapping[str, Any]) -> None:
    """Write one JSON object, whole or not at all.

    Raises:
        RunDirectoryError: The file cannot be written.
    """
    # Not indented: most of it are long lists of numbers.
    text = json.dumps(data, allow_nan=False, default=str) + "\n"
    with replacing(path) as partial:
        partial.write_text(text)
