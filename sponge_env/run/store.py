"""A run's folder: what defines it, and one file for the results of each agent and cell.

::

    DIR/run.json command.txt versions.json host.json profiles/<profile>.json
    DIR/results/<agent>/<cell>.json                  summaries of all seeds, or the failure
    DIR/intervals/<agent>/<cell>-seed<k>.parquet     every interval
    DIR/requests/<agent>/<cell>-seed<k>.parquet      every request, where asked for
    DIR/tensorboard/  tables.txt  comparison.png     what is shown of them
    DIR/report/                                      the page, where asked for
    DIR/lock                                         held by the process that writes here

A cell is ``<scenario>+<profile>+<start>``. Each file appears whole or not at all, so whatever
is there can be trusted after an interruption. What is not there is still to be done.

Results that depend on different things never mix: these are told apart by *fingerprints*. The
project's code counts by the content of its source files and learned weights, not by its version.
"""

import fcntl
import hashlib
import importlib.util
import itertools
import json
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sponge_env.errors import RunDirectoryError
from sponge_env.formats import RESERVED, trace_hash
from sponge_env.metrics import CELL, EpisodeMetrics, StageMetrics, declared, names
from sponge_env.run.suite import Suite, arranged, cell_name, cells
from sponge_env.scenario.config import OLD_STAGE_KEYS, Backend, Limiter, Serving, as_name
from sponge_env.scenario.profile import Profile, load_profile, save_profile
from sponge_env.scenario.scenario import Scenario
from sponge_env.scenario.spec import scenario_profile, stage_profiles
from sponge_env.utils.files import content_hash, explained, read_json, write_json
from sponge_env.utils.installation import bundled, describe_host, describe_versions

if TYPE_CHECKING:
    from sponge_env.run.unit import Unit

FORMAT = 3  # Version of the folder's layout
RUNS = Path("runs")  # Where run directories go by themselves

IDENTITY = ("agent", *CELL, "seed")  # Columns that say of which episode an interval is

_CODE = frozenset({".py", ".npz", ".onnx", ".safetensors"})
_DEFINITION, _LOCK = "run.json", "lock"


def fingerprint(data: Mapping[str, Any]) -> str:
    """Return 16 hexadecimal digits that stand for nested plain data."""
    return hashlib.sha256(json.dumps(data, sort_keys=True, default=str).encode()).hexdigest()[:16]


@cache
def code_fingerprint() -> str:
    """Return the fingerprint of the project's code; it is read once per process."""
    content = dict[str, str]()
    for package in ("sponge_env", bundled("agents"), bundled("baselines")):
        found = importlib.util.find_spec(package)
        for folder in (found and found.submodule_search_locations) or ():
            paths = (path for path in Path(folder).rglob("*") if path.suffix in _CODE)
            content |= {f"{package}/{p.relative_to(folder)}": content_hash(p) for p in paths}
    return fingerprint(content)


def scenario_fingerprint(scenario: Scenario) -> str:
    """Return the fingerprint of a scenario; profile and traces count by what they say."""
    # Default values are left out, so that a new key changes no fingerprint.
    profile = scenario_profile(scenario)
    data = asdict(scenario) | {"profile": _measured(profile)}
    new = {"stage": "", "arrivals": None}  # since version 1.0
    for kind in data["classes"]:
        list(map(kind.pop, [key for key in new if kind[key] == new[key]]))
        if (own := kind.get("arrivals")) and own["file"] is not None:
            own["file"] = trace_hash(own["file"], "arrivals")
    for stage, profiles in zip(data["stages"], stage_profiles(scenario, profile), strict=False):
        stage |= OLD_STAGE_KEYS
        for variant, own in zip(stage["variants"], profiles, strict=True):
            variant["profile"] = _measured(own)
    if scenario.arrivals.file is not None:
        data["arrivals"]["file"] = trace_hash(scenario.arrivals.file, "arrivals")
    if (trace := scenario.network.trace) not in RESERVED:
        data["network"]["trace"] = trace_hash(trace, "bandwidth")
    usual = asdict(Scenario(scenario.name, serving=Serving(drop="none")))  # until version 0.3
    return fingerprint(_beyond(data, usual))


def _measured(profile: Profile) -> dict[str, Any]:
    data = asdict(profile)
    del data["facts"]
    if data["quota"] and data["quota"]["wake_s"] is None:
        del data["quota"]["wake_s"]
    return data


def _beyond(data: dict[str, Any], usual: dict[str, Any]) -> dict[str, Any]:
    changed = {key: value for key, value in data.items() if value != usual[key]}
    nested = {key for key in changed if isinstance(usual[key], dict)}
    return {k: _beyond(v, usual[k]) if k in nested else v for k, v in changed.items()}


def identity(suite: Suite, backend: Backend = "sim", limiter: Limiter = "auto") -> dict[str, Any]:
    """Return what all results in one folder have in common; it may get more agents later."""
    content = {cell_name(scenario): scenario_fingerprint(scenario) for scenario in cells(suite)}
    return {
        "suite": suite.name,
        "seeds": suite.seeds,
        "first_seed": suite.first_seed or None,  # earlier versions kept none that is 0
        "backend": backend,
        "limiter": limiter,
        "code": code_fingerprint(),
        "cells": fingerprint(content),
    }


@dataclass(frozen=True, slots=True)
class RunStore:
    """The folder of a run, locked for one writer; a failed write raises RunDirectoryError."""

    path: Path

    @classmethod
    @contextmanager
    def open(cls, path: Path, identity: Mapping[str, Any]) -> Iterator["RunStore"]:
        """Make the folder, or go on with that of a run of the same identity, and lock it."""
        wanted = {"format": FORMAT, **identity}
        if holds_something(path):
            _definition(path)  # refuses a folder of something else before touching it
        with explained(path):
            path.mkdir(parents=True, exist_ok=True)
            lock = (path / _LOCK).open("a")
        with lock:
            try:  # held until the file is closed, however that happens
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                message = f"another run is writing into {str(path)!r}; wait until it has ended or"
                raise RunDirectoryError(f"{message} choose another --run-dir") from None
            found = check_run(path, wanted) if (path / _DEFINITION).exists() else wanted
            write_json(path / _DEFINITION, found)
            store = cls(path)
            try:
                yield store
            finally:  # a process that was ended while it wrote could not tidy up
                if not (path / _DEFINITION).exists():
                    raise RunDirectoryError(f"'{path}' was removed while the run wrote into it")
                for partial in path.rglob("*.partial"):
                    partial.unlink(missing_ok=True)

    def describe(
        self, suite: Suite, command: Sequence[str], replayed: Mapping[str, str] | None = None
    ) -> None:
        """Write down the suite, its profiles, the command, the versions and the machine.

        For ``replayed`` see :class:`sponge_env.run.suite.Arrangement`.
        """
        found = _definition(self.path)
        definition, earlier = asdict(suite), found.get("definition", {})
        definition["agents"] = earlier.get("agents", {}) | definition["agents"]
        for key in ("featured", "bounds"):
            definition[key] = [*dict.fromkeys([*earlier.get(key, ()), *definition[key]])]
        arrangement = {**asdict(arranged(suite)), "replayed": dict(replayed or {})}
        if not suite.reference and (before := found.get("arrangement", {}).get("reference")):
            arrangement["reference"] = before  # others than this call's agents are compared with it
        shown = {"definition": definition, "arrangement": arrangement}
        write_json(self.path / _DEFINITION, found | shown)
        stages = [stage for cell in cells(suite) for stage in cell.pipeline]
        for name in {variant.profile for stage in stages for variant in stage.variants}:
            file = f"{as_name(Path(name).stem)}.json"
            save_profile(load_profile(name), self.path / "profiles" / file)
        describe(self.path, command)

    def file(self, kind: str, unit: "Unit", end: str) -> Path:
        """Return the file of a unit: ``DIR/<kind>/<agent>/<cell><end>``."""
        return self.path / kind / unit.agent / f"{cell_name(unit.scenario)}{end}"

    def missing(self, units: Sequence["Unit"]) -> list["Unit"]:
        """Return the units whose result is missing, not whole, or a failure."""
        return [unit for unit in units if not self.kept(unit).get("complete")]

    def check_requests(self, units: Sequence["Unit"]) -> None:
        """Refuse to go on where seeds have ended without their requests."""
        for unit in units:
            for episode in whole_episodes(self.kept(unit)):
                file = self.file("requests", unit, f"-seed{episode['seed']}.parquet")
                if not file.exists():
                    raise RunDirectoryError(
                        f"{str(self.path)!r} holds episodes of agent {unit.agent!r} without their "
                        "requests; leave out --requests, or choose another --run-dir"
                    )

    def kept(self, unit: "Unit") -> dict[str, Any]:
        """Return the result of a unit, as far as there is one of this configuration."""
        path = self.file("results", unit, ".json")
        if not path.exists():
            return {}
        found = read_result(path)
        if found["fingerprint"] != unit.fingerprint():
            raise RunDirectoryError(
                f"{str(self.path)!r} holds results of agent {unit.agent!r} with other options, "
                "scenario changes or files; choose another --run-dir"
            )
        return found

    def keep(
        self, unit: "Unit", result: Mapping[str, Any], error: Mapping[str, str] | None = None,
        complete: bool = True,
    ) -> None:  # fmt: skip
        """Keep the result of a unit, or as much of it as there is and why it is not whole."""
        head = {
            "format": FORMAT, "agent": unit.agent,
            **dict(zip(CELL, unit.scenario.cell, strict=True)), "fingerprint": unit.fingerprint(),
            "complete": complete and error is None, "error": error,
        }  # fmt: skip
        write_json(self.file("results", unit, ".json"), {**result, **head}, indent=None)


def whole_episodes(result: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the summaries of a unit's whole episodes."""
    return [episode for episode in result.get("episodes", ()) if not episode["partial"]]


def read_result(file: Path) -> dict[str, Any]:
    """Read one result; a :class:`RunDirectoryError` says what in it cannot be used."""
    result = read_json(file)
    with suppress(TypeError):
        episodes = result.get("episodes", ())
        if lacking := [name for name in _EPISODE if not all(name in each for each in episodes)]:
            raise RunDirectoryError(
                f"{str(file)!r} was written by another version (it lacks {', '.join(lacking)}); "
                "run evaluate.py again"
            )
    for reason, holds in _rules(file, result).items():
        try:
            fine = holds()
        except (AttributeError, KeyError, TypeError, ValueError):
            fine = False  # something in it has another type
        if not fine:
            raise RunDirectoryError(
                f"{str(file)!r} is damaged ({reason}); remove it and run evaluate.py again"
            )
    return result


_EPISODE = {field.name: str(field.type) for field in declared(EpisodeMetrics)}  # Types by name


def _rules(file: Path, result: dict[str, Any]) -> dict[str, Callable[[], bool]]:
    """Return the checks of a result by their messages; one that raises has failed."""
    place, error = [str(result.get(name)) for name in ("agent", *CELL)], result.get("error", "")
    episodes = result.get("episodes", [])
    return {
        "it is of another agent or cell": lambda: (
            (file.parent.name, file.stem) == (place[0], "+".join(place[1:]))
        ),
        "it does not say whether it is complete": lambda: (
            isinstance(result["complete"], bool)
            and isinstance(result["fingerprint"], str)
            and (error is None or {"type", "message"} <= error.keys())
        ),
        "it has no list with one table for each seed": lambda: (
            isinstance(episodes, list) and len({each["seed"] for each in episodes}) == len(episodes)
        ),
        "it has a number that is not known, or lacks one, or one is of another type": lambda: all(
            each.keys() - {"stages"} == _EPISODE.keys()
            and all(_fits(each[name], kind) for name, kind in _EPISODE.items())
            for each in episodes
        ),
        "the stages of an episode lack numbers or have others": lambda: all(
            {*names(StageMetrics)} <= table.keys()
            and all(_fits(value, "float") for value in table.values())
            for each in episodes
            for table in each.get("stages", {}).values()
        ),
    }


def _fits(value: Any, kind: str) -> bool:
    """Tell whether a value of a file is of a metric's type; None stands for no number."""
    if kind == "float":
        return value is None or (isinstance(value, int | float) and not isinstance(value, bool))
    return type(value).__name__ == kind


def result_files(path: Path) -> list[Path]:
    """Return the files with results of a run's folder, in order of their names."""
    if (found := _definition(path).get("format")) != FORMAT:
        message = f"{str(path)!r} has format {found!r}, this version reads {FORMAT}"
        raise RunDirectoryError(f"{message}; run evaluate.py again")
    return sorted((path / "results").glob("*/*.json"))


def new_folder(purpose: str, path: Path | None = None) -> Path:
    """Make a folder: at a path that must not exist, or in ``runs``, named after the time."""
    name = f"{datetime.now():%Y%m%d-%H%M%S}-{purpose}"
    numbered = itertools.chain([name], (f"{name}-{number}" for number in itertools.count(2)))
    for folder in [path] if path else (RUNS / each for each in numbered):
        with explained(folder), suppress(FileExistsError):
            folder.mkdir(parents=True)
            return folder
    raise RunDirectoryError(f"{str(path)!r} exists already; choose another name or remove it first")


def describe(path: Path, command: Sequence[str]) -> None:
    """Write down versions and machine, and append the command."""
    write_json(path / "versions.json", describe_versions())
    write_json(path / "host.json", describe_host())
    with explained(path), (path / "command.txt").open("a") as file:
        file.write(shlex.join(command) + "\n")


def holds_something(path: Path) -> bool:
    """Return whether there is a folder with more in it than the lock of a run."""
    with explained(path):
        return path.exists() and any(file.name != _LOCK for file in path.iterdir())


def check_run(path: Path, wanted: Mapping[str, Any]) -> dict[str, Any]:
    """Return how a run is defined; raise RunDirectoryError if it is none or another one."""
    found = _definition(path)
    if other := [key for key in wanted if found.get(key) != wanted[key]]:
        raise RunDirectoryError(
            f"{str(path)!r} holds results of another suite or version (other "
            f"{', '.join(other)}); choose another --run-dir"
        )
    return found


def _definition(path: Path) -> dict[str, Any]:
    if not (path / _DEFINITION).is_file():
        raise RunDirectoryError(
            f"{str(path)!r} is no run of evaluate.py (it has no {_DEFINITION}); "
            "choose a folder that it wrote, or open a training in TensorBoard"
        )
    found = read_json(path / _DEFINITION)
    definition = found.get("definition", {})
    agents = definition.get("agents", {}) if isinstance(definition, dict) else None
    if not all(isinstance(each, dict) for each in (agents, found.get("arrangement", {}))):
        raise RunDirectoryError(f"{str(path / _DEFINITION)!r} is damaged; choose another folder")
    return found
