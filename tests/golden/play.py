"""Plays what ``cells.py`` says; the only file here that knows the insides of the product."""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sponge_env.interfaces import Allocation
from sponge_env.metrics import EpisodeMetrics, IntervalMetrics, names
from sponge_env.run.registry import known_controllers, make_controller
from sponge_env.run.rollout import Run, run_episode, warm
from sponge_env.scenario.scenario import Scenario, load_scenario
from sponge_env.simulation.encoding import JOINT, VERTICAL, encode
from sponge_env.simulation.system import SimulatedSystem

from .cells import CELLS, LEARNED, Episode

Columns = Mapping[str, ArrayLike]
"""Values by name."""
Names = Mapping[str, list[str]]
"""Columns that are hashed, by table."""
Entry = dict[str, Any]

_CONTROLS = {"vertical": VERTICAL, "joint": JOINT}

WALL_CLOCK = {"decision_s", "actuation_s", "paused_s", "decision_p50_s", "decision_p99_s"}
"""Metrics that differ from run to run."""


def registered() -> list[str]:
    return sorted(known_controllers())


def column_names() -> dict[str, list[str]]:
    """Return the columns of today, which are those that are hashed."""
    return {
        "ledger": list(SimulatedSystem(scenario("paper", "cold"), 0).columns()),
        "intervals": [name for name in names(IntervalMetrics) if name not in WALL_CLOCK],
        "summary": [name for name in names(EpisodeMetrics) if name not in WALL_CLOCK],
        "vertical": list(VERTICAL.fields),
        "joint": list(JOINT.fields),
    }


def scenario(cell: str, start: str) -> Scenario:
    made = load_scenario(CELLS[cell].scenario)
    for key, value in CELLS[cell].changes.items():
        if isinstance(value, Mapping):
            value = dataclasses.replace(getattr(made, key), **value)
        made = dataclasses.replace(made, **{key: value})
    return dataclasses.replace(made, start=start)


class _Watched:
    """A controller, and what a learner sees when it decides."""

    def __init__(self, controller: Any, control: str) -> None:
        self._controller = controller
        self._control = _CONTROLS[control]
        self.seen: list[NDArray[np.float32]] = []

    def reset(self, spec: Any, seed: int) -> None:
        self._spec = spec
        self._controller.reset(spec, seed)

    def decide(self, view: Any) -> Allocation:
        self.seen.append(encode(view, self._spec, self._control))
        return self._controller.decide(view)


def entry(key: str, names: Names) -> Entry:
    """Play an episode as ``evaluate.py`` does; return its hashes, and a few numbers to read."""
    episode = Episode.of(key)
    agent, options = episode.controller
    controller: Any = make_controller(agent, known_controllers(), options)
    where = warm(scenario(episode.cell, episode.start), controller)
    if control := LEARNED.get(episode.agent):
        controller = _Watched(controller, control)
    system, run = SimulatedSystem(where, episode.seed), Run.of(agent, where, "sim", episode.seed)
    done = run_episode(system, controller, run)
    summary = {name: getattr(done.summary, name) for name in names["summary"]}
    summary["agent"] = episode.agent
    tables: dict[str, Columns] = {
        "ledger": system.columns(),
        "intervals": {n: [getattr(one, n) for one in done.intervals] for n in names["intervals"]},
        "summary": {name: [value] for name, value in summary.items()},
    }
    initial = system.spec.initial
    made: Entry = {"initial": [initial.cores, initial.batch, initial.replicas]}
    made |= {name: digest(columns, names[name]) for name, columns in tables.items()}
    if control:
        seen = np.array(controller.seen)
        fields = {name: seen[:, i] for i, name in enumerate(_CONTROLS[control].fields)}
        made["observations"] = digest(fields, names[control])
    return made | {name: summary[name] for name in ("offered", "violations", "core_seconds")}


def digest(columns: Columns, names: Iterable[str]) -> str:
    """Hash the named columns; whatever else there is does not count."""
    sha = hashlib.sha256()
    for name in names:
        data = canonical(columns[name])
        sha.update(f"{name}:{len(data)}:".encode() + data)
    return sha.hexdigest()[:16]


def canonical(values: ArrayLike) -> bytes:
    """Return values as float64, int64 or text; all NaNs are one."""
    array = np.asarray(values)
    if array.dtype.kind == "f":
        return np.where(np.isnan(array), math.nan, array).astype(np.float64).tobytes()
    if array.dtype.kind in "iub":
        return array.astype(np.int64).tobytes()
    return "\n".join(map(str, array.ravel().tolist())).encode()
