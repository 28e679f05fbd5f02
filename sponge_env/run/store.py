"""A run's folder: what defines it, and one file for the results of each agent and cell.

::

    DIR/run.json command.txt versions.json host.json profiles/<profile>.json
    DIR/results/<agent>/<cell>.json                  summaries of all seeds, or the failure
    DIR/intervals/<agent>/<cell>-seed<k>.parquet     every interval
    DIR/requests/<agent>/<cell>-seed<k>.parquet      every request, where asked for
    DIR/tensorboard/

A cell is ``<scenario>+<profile>+<start>``. Each file appears whole or not at all, so whatever
is there can be trusted after an interruption. What is not there is still to be done. The
intervals of an episode on the real worker are a CSV file, which grows, until it ends.
"""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Protocol

from sponge_env.config import Backend, Limiter
from sponge_env.errors import RunDirectoryError
from sponge_env.files import read_json, saying_why, write_json
from sponge_env.host import describe_host, describe_versions
from sponge_env.profile import save_profile
from sponge_env.run.fingerprint import code_fingerprint, fingerprint, scenario_fingerprint
from sponge_env.run.suite import Suite, cell_name, cells
from sponge_env.scenario import Scenario
from sponge_env.spec import scenario_profile

if TYPE_CHECKING:
    from sponge_env.run.record import Recorder

FORMAT = 3
"""Version of the folder's layout."""

RUNS = Path("runs")
"""Where run directories go by themselves."""

_DEFINITION = "run.json"
_LOCK = "lock"


class Unit(Protocol):
    """What an executor is given to do; plain data."""

    @property
    def agent(self) -> str:
        """Name in the results."""

    @property
    def scenario(self) -> Scenario:
        """The cell."""

    def fingerprint(self) -> str:
        """Return what stands for everything that the result depends on but the code."""

    def run(self, record: Recorder) -> None:
        """Do what the record has not got yet."""


def identity(suite: Suite, backend: Backend = "sim", limiter: Limiter = "auto") -> dict[str, Any]:
    """Return what all results in one folder have in common.

    Agents are not among it: a folder can be given more of them later.

    Raises:
        SpongeError: A scenario or profile cannot be used.
    """
    content = {cell_name(scenario): scenario_fingerprint(scenario) for scenario in cells(suite)}
    return {
        "suite": suite.name,
        "seeds": suite.seeds,
        "backend": backend,
        "limiter": limiter,
        "cells": fingerprint(content),
        "code": code_fingerprint(),
    }


@dataclass(frozen=True, slots=True)
class RunStore:
    """The folder of a run, locked for one writer."""

    path: Path

    @classmethod
    @contextmanager
    def open(cls, path: Path, identity: Mapping[str, Any]) -> Iterator[RunStore]:
        """Make the folder, or go on with that of the same run, and lock it.

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
                write_json(path / _DEFINITION, wanted)
            yield cls(path)

    def describe(self, suite: Suite, command: Sequence[str]) -> None:
        """Write down the suite, its profiles, the command, the versions and the machine.

        Raises:
            RunDirectoryError: A file cannot be written.
        """
        found = _definition(self.path)
        definition = asdict(suite)
        definition["agents"] = found.get("definition", {}).get("agents", {}) | definition["agents"]
        write_json(self.path / _DEFINITION, found | {"definition": definition})
        for scenario in {cell.profile: cell for cell in cells(suite)}.values():
            name = f"{Path(scenario.profile).stem}.json"
            save_profile(scenario_profile(scenario), self.path / "profiles" / name)
        describe(self.path, command)

    def file(self, kind: str, unit: Unit, end: str) -> Path:
        """Return the file of a unit: ``DIR/<kind>/<agent>/<cell><end>``."""
        return self.path / kind / unit.agent / f"{cell_name(unit.scenario)}{end}"

    def missing(self, units: Sequence[Unit]) -> list[Unit]:
        """Return the units whose result is missing, not whole, or a failure.

        Raises:
            RunDirectoryError: A result was made by another configuration of its agent.
        """
        return [unit for unit in units if not self.kept(unit).get("complete")]

    def kept(self, unit: Unit) -> dict[str, Any]:
        """Return the result of a unit, as far as there is one.

        Raises:
            RunDirectoryError: It was made by another configuration of its agent.
        """
        path = self.file("results", unit, ".json")
        if not path.exists():
            return {}
        found = read_json(path)
        if found["fingerprint"] != unit.fingerprint():
            raise RunDirectoryError(
                f"{str(self.path)!r} holds results of agent {unit.agent!r} with other options, "
                "scenario changes or files; choose another --run-dir"
            )
        return found

    def keep(
        self,
        unit: Unit,
        result: Mapping[str, Any],
        error: Mapping[str, str] | None = None,
        complete: bool = True,
    ) -> None:
        """Keep the result of a unit, or as much of it as there is and why it is not whole.

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
            "complete": complete and error is None,
            "error": error,
        }
        write_json(self.file("results", unit, ".json"), {**result, **head}, indent=None)


def result_files(path: Path) -> list[Path]:
    """Return the files with results of a run's folder, in order of their names.

    Raises:
        RunDirectoryError: It is no such folder, or one of another version.
    """
    found = _definition(path).get("format")
    if found != FORMAT:
        raise RunDirectoryError(
            f"{str(path)!r} has format {found!r}, this version reads {FORMAT}; run evaluate.py "
            "again"
        )
    return sorted((path / "results").glob("*/*.json"))


def new_folder(purpose: str, path: Path | None = None) -> Path:
    """Make a folder, also when several runs start at the same time.

    Args:
        purpose: Its name in ``runs``, after the time and before a number if need be.
        path: Another place, where nothing must be yet.

    Raises:
        RunDirectoryError: It exists already or cannot be written.
    """
    names = (f"{datetime.now():%Y%m%d-%H%M%S}-{purpose}{n}" for n in _numbers())
    for folder in [path] if path else (RUNS / name for name in names):
        with saying_why(folder), contextlib.suppress(FileExistsError):
            folder.mkdir(parents=True)
            return folder
    raise RunDirectoryError(
        f"the run directory {str(path)!r} exists already; choose another name or remove it first"
    )


def _numbers() -> Iterator[str]:
    yield ""
    yield from (f"-{number}" for number in itertools.count(2))


def describe(path: Path, command: Sequence[str]) -> None:
    """Write down the command, the versions and the machine; further commands are added.

    Raises:
        RunDirectoryError: A file cannot be written.
    """
    write_json(path / "versions.json", describe_versions())
    write_json(path / "host.json", describe_host())
    with saying_why(path), (path / "command.txt").open("a") as file:
        file.write(shlex.join(command) + "\n")


def _definition(path: Path) -> dict[str, Any]:
    if not (path / _DEFINITION).is_file():
        raise RunDirectoryError(
            f"{str(path)!r} is no run (it has no {_DEFINITION}); "
            "choose a folder that evaluate.py wrote"
        )
    return read_json(path / _DEFINITION)


def _lock(file: IO[str], path: Path) -> None:
    """Let nobody else write into the folder until the file is closed, however that ends."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        raise RunDirectoryError(
            f"another run is writing into {str(path)!r}; wait until it has ended or choose "
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
