"""What a suite is: agents crossed with *cells*, each a scenario with a profile and a start.

``traces/suites`` holds those that ship, as TOML; an evaluation of one scenario is a suite of
one cell, made from the command line.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

from sponge_env.config import ControlName, Start, require
from sponge_env.errors import ConfigError, unknown
from sponge_env.installation import data_folder
from sponge_env.mapping import beside, from_mapping, load_toml
from sponge_env.run.registry import known_controllers
from sponge_env.scenario import Scenario, load_scenario
from sponge_env.seeds import EVALUATION_SEEDS

SUITE_DIR = data_folder("traces") / "suites"
"""Suites that ship with the project."""


@dataclass(frozen=True, slots=True)
class CellGroup:
    """Scenarios crossed with profiles."""

    scenarios: tuple[str, ...]
    """Shipped scenarios, or TOML files relative to the suite's."""
    profiles: tuple[str, ...]
    """Profiles that take the place of each scenario's own."""
    changes: dict[str, Any] = field(default_factory=dict)
    """Changes to the scenarios, see :func:`changed`."""
    family: str = ""
    """What nearly equal scenarios have in common: they count once in means over all cells."""


@dataclass(frozen=True, slots=True)
class Sweep:
    """Scenarios with one quantity at several values, all else as in the suite's cells."""

    keys: tuple[str, ...]
    """What takes the value, as in :func:`changed`."""
    values: tuple[Any, ...]
    """Numbers or words. The cell itself stands for the value that its scenario has."""
    unit: str = ""
    """Unit of the values."""


@dataclass(frozen=True, slots=True)
class AgentEntry:
    """One agent of a suite."""

    controller: str = ""
    """Registered name or ``module:Class``; the agent's name if left out."""
    options: dict[str, Any] = field(default_factory=dict)
    """Options of the controller."""
    tuned: bool = False
    """Whether each cell's tuned options come first, those above on top of them."""
    control: ControlName = "vertical"
    """Which bound it is compared with."""
    changes: dict[str, Any] = field(default_factory=dict)
    """Changes to every scenario, see :func:`changed`: what an ablation takes away from the
    system rather than from the controller."""


@dataclass(frozen=True, slots=True)
class Suite:
    """Agents, cells and seeds."""

    name: str
    """Short name; the file's if left out."""
    description: str = ""
    """What the suite is for."""
    seeds: int = 10
    """Episodes of each agent and cell: seeds 0 .. seeds - 1."""
    starts: tuple[Start, ...] = ("cold", "warm")
    """How each scenario starts; results are never mixed."""
    bounds: tuple[ControlName, ...] = ()
    """Clairvoyant bounds that are computed for each cell."""
    reference: str = ""
    """Agent that the others are compared with; the first if left out."""
    featured: tuple[str, ...] = ()
    """Agents that a report shows where there is no room for all."""
    cells: tuple[CellGroup, ...] = ()
    sweeps: dict[str, Sweep] = field(default_factory=dict)
    """By name, which those of the scenarios contain."""
    agents: dict[str, AgentEntry] = field(default_factory=dict)

    def __post_init__(self) -> None:
        rule = f"between 1 and {EVALUATION_SEEDS}, for training uses those above"
        require(1 <= self.seeds <= EVALUATION_SEEDS, "seeds", self.seeds, rule)
        for name in ("starts", "cells", "agents"):
            require(len(getattr(self, name)) > 0, name, getattr(self, name), "not empty")
        for name in self.agents:
            allowed = re.fullmatch(r"[A-Za-z0-9_:][A-Za-z0-9_.:-]*", name) is not None
            require(allowed, "agents", name, "names of letters, digits, '.', ':', '_' and '-'")
        for name, sweep in self.sweeps.items():
            for key in ("keys", "values"):
                value = getattr(sweep, key)
                require(len(value) > 0, f"sweeps.{name}.{key}", value, "not empty")
        named = [("reference", self.compared_with), *(("featured", name) for name in self.featured)]
        for key, name in named:
            if name not in self.agents:
                raise ConfigError(unknown(key, name, self.agents))

    @property
    def compared_with(self) -> str:
        """Name of the agent that the others are compared with."""
        return self.reference or next(iter(self.agents))


def load_suite(name_or_path: str | Path) -> Suite:
    """Load a shipped suite by name, or any suite from a TOML file."""
    suite, folder = load_toml(Suite, "suite", name_or_path, SUITE_DIR)
    groups = (
        dataclasses.replace(
            group,
            scenarios=tuple(beside(folder, name) for name in group.scenarios),
            profiles=tuple(beside(folder, name) for name in group.profiles),
        )
        for group in suite.cells
    )
    return dataclasses.replace(suite, cells=tuple(groups))


def with_agents(suite: Suite, names: Sequence[str]) -> Suite:
    """Return the suite with only some agents: its own, registered ones, or ``module:Class``.

    Without names it keeps all of its own.
    """
    if not names:
        return suite
    registered = known_controllers()
    for name in names:
        if ":" not in name and name not in suite.agents and name not in registered:
            raise ConfigError(unknown("agent", name, {*suite.agents, *registered}))
    agents = {name: suite.agents.get(name, AgentEntry()) for name in names}
    reference = suite.reference if suite.reference in agents else ""
    return dataclasses.replace(suite, agents=agents, reference=reference)


def with_options(suite: Suite, options: Mapping[str, Mapping[str, Any]]) -> Suite:
    """Return the suite with further options of its agents, by their names."""
    agents = dict(suite.agents)
    for name, more in options.items():
        agents[name] = dataclasses.replace(agents[name], options={**agents[name].options, **more})
    return dataclasses.replace(suite, agents=agents)


def cell_name(scenario: Scenario) -> str:
    """Return ``scenario+profile+start``; ``+`` is in none of the three."""
    return "+".join(scenario.cell)


def cells(suite: Suite) -> tuple[Scenario, ...]:
    """Return the scenarios of all cells, each of which may be there once; swept ones follow."""
    own = [cell for group in suite.cells for cell in _cells_of(group, suite.starts)]
    found: dict[str, Scenario] = {}
    for cell in [*own, *_swept(suite, own)]:
        if cell_name(cell) in found:
            raise ConfigError(f"suite {suite.name!r} has the cell {cell_name(cell)} twice")
        found[cell_name(cell)] = cell
    return tuple(found.values())


def _cells_of(group: CellGroup, starts: Sequence[Start]) -> Iterator[Scenario]:
    scenarios = [changed(load_scenario(name), group.changes) for name in group.scenarios]
    for scenario, profile, start in product(scenarios, group.profiles, starts):
        yield dataclasses.replace(scenario, profile=profile, start=start)


def _swept(suite: Suite, own: Sequence[Scenario]) -> Iterator[Scenario]:
    """Yield what the sweeps add to a suite's own cells."""
    for name, sweep in suite.sweeps.items():
        for cell, value in product(own, sweep.values):
            if (scenario := at_value(cell, name, sweep, value)) != cell:
                yield scenario


def at_value(scenario: Scenario, name: str, sweep: Sweep, value: Any) -> Scenario:
    """Return a scenario at one value of a sweep, with both in its name, if that changes it."""
    moved = changed(scenario, dict.fromkeys(sweep.keys, value))
    if moved == scenario:
        return scenario
    return dataclasses.replace(moved, name=f"{scenario.name}-{name}-{_label(value)}")


def _label(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


@dataclass(frozen=True, slots=True)
class Arrangement:
    """How the cells of a suite are shown."""

    cells: tuple[tuple[str, str, str], ...] = ()
    """Without those of sweeps."""
    families: dict[str, str] = field(default_factory=dict)
    """By scenario, for those that have one."""
    sweeps: dict[str, dict[str, tuple[tuple[str, str, str], ...]]] = field(default_factory=dict)
    """By what is swept, with its unit, and by value: cells, in the order of the suite's own."""


def arranged(suite: Suite) -> Arrangement:
    """Return how the cells of a suite are shown."""
    own = [(g.family, cell) for g in suite.cells for cell in _cells_of(g, suite.starts)]
    sweeps = {
        f"{name.replace('-', ' ')}{f' [{sweep.unit}]' if sweep.unit else ''}": {
            _label(value): tuple(at_value(cell, name, sweep, value).cell for _, cell in own)
            for value in sweep.values
        }
        for name, sweep in suite.sweeps.items()
    }
    families = {cell.name: family for family, cell in own if family}
    return Arrangement(tuple(cell.cell for _, cell in own), families, sweeps)


def changed(scenario: Scenario, changes: Mapping[str, Any]) -> Scenario:
    """Return a scenario with changes.

    They lead from ``table`` or ``key`` to its new value, whole, or from ``"table.key"`` to the
    new value of one key, which leaves the rest of the table as it is.
    """
    for path, value in changes.items():
        table, _, key = path.partition(".")
        data = {table: {key: value} if key else value}
        # Parsed within a scenario of defaults, for the checks; only the change is taken.
        parsed = getattr(from_mapping(Scenario, {"name": scenario.name, **data}), table)
        if key:
            parsed = dataclasses.replace(getattr(scenario, table), **{key: getattr(parsed, key)})
        scenario = dataclasses.replace(scenario, **{table: parsed})
    return scenario
