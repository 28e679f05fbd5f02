"""What a suite is: agents crossed with *cells*, each a scenario with a profile and a start.

``traces/suites`` holds those that ship, as TOML; a command line without one makes one of one cell.
"""

import dataclasses
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import cache, partial
from itertools import product
from pathlib import Path
from typing import Any, Literal

from sponge_env.errors import ConfigError, TraceError, unknown
from sponge_env.run.registry import known_controllers, registered
from sponge_env.scenario.config import Start, as_name
from sponge_env.scenario.option import check_options, option, require
from sponge_env.scenario.scenario import Scenario, load_scenario, with_own_slo
from sponge_env.scenario.seeds import EVALUATION_SEEDS
from sponge_env.scenario.toml import from_mapping, load_toml, relative_to
from sponge_env.simulation.randomised import suite_systems
from sponge_env.utils.installation import data_folder

SUITE_DIR = data_folder("traces") / "suites"  # Suites that ship with the project
NAMES = ("standard-v1", "stages")  # The suites whose names of agents hold everywhere
BoundName = Literal["vertical", "joint"]  # Scaling of what a schedule that knows the future may do

BOUND_AGENTS: Mapping[BoundName, str] = {"vertical": "oracle", "joint": "oracle-joint"}
"""Names under which the clairvoyant bounds stand in the results."""


@dataclass(frozen=True, slots=True)
class CellGroup:
    """Scenarios crossed with profiles."""

    scenarios: tuple[str, ...]  # Shipped scenarios, or TOML files relative to the suite's
    profiles: tuple[str, ...] = ()  # Profiles in place of each scenario's own; that one if left out
    changes: dict[str, Any] = field(default_factory=dict)  # See :func:`changed`
    traces: Literal["", "bandwidth", "arrivals"] = ""
    """Content of the traces in a folder that each make a cell, see :func:`with_traces`."""
    across: dict[str, tuple[Any, ...]] = field(default_factory=dict)
    """Values of further changes: each combination is a cell, named after its values."""


@dataclass(frozen=True, slots=True)
class AgentEntry:
    """One agent of a suite."""

    controller: str = ""  # Registered name or ``module:Class``; the agent's name if left out
    options: dict[str, Any] = field(default_factory=dict)  # Options of the controller
    tuned: bool = False  # Whether options tuned for each profile come first, below those above
    constant: Literal["", "training", "hindsight"] = ""
    """Whether it holds each cell's best constant on training seeds, or on those that are played."""


@dataclass(frozen=True, slots=True)
class Suite:
    """Agents, cells and seeds."""

    name: str = option(
        check=lambda name: not {"/", "\0"} & {*name}, rule="without '/' (it names run directories)"
    )
    """Short name; the file's if left out."""
    description: str = ""  # What the suite is for
    seeds: int = option(10, at_least=1)  # Episodes of each agent and cell
    first_seed: int = option(0, at_least=0)
    only: str = "*"  # Pattern of the names of the cells that are played, as :mod:`fnmatch` has it
    starts: tuple[Start, ...] = ("cold", "warm")  # How each scenario starts; never mixed
    bounds: tuple[BoundName, ...] = ()  # Clairvoyant bounds of each cell without stages
    reference: str = ""  # Agent that the others are compared with; the first if left out
    featured: tuple[str, ...] = ()  # Agents that a report shows where there is no room for all
    cells: tuple[CellGroup, ...] = ()
    systems: int = option(0, at_least=0)  # Random systems that are cells, too
    agents: dict[str, AgentEntry] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_options(self)
        last, rule = self.seed_range[-1], f"below {EVALUATION_SEEDS}, for training uses the others"
        require(last < EVALUATION_SEEDS, "the last seed", last, rule)
        cells, agents = self.cells or self.systems, self.agents or self.bounds
        for name, value in {"starts": self.starts, "cells": cells, "agents": agents}.items():
            require(bool(value), name, value, "not empty")
        for name in self.agents:
            allowed = re.fullmatch(r"[A-Za-z0-9_:][A-Za-z0-9_.:-]*", name) is not None
            require(allowed, "agents", name, "names of letters, digits, '.', ':', '_' and '-'")
        named = {"reference": [*filter(None, [self.compared_with])], "featured": self.featured}
        for key, names in named.items():
            for name in names:
                if name not in self.agents:
                    raise ConfigError(unknown(key, name, self.agents))

    @property
    def seed_range(self) -> range:
        """The seeds that are played."""
        return range(self.first_seed, self.first_seed + self.seeds)

    @property
    def compared_with(self) -> str:
        """Name of the agent that the others are compared with; empty where there is none."""
        return self.reference or next(iter(self.agents), "")


def load_suite(name_or_path: str | Path) -> Suite:
    """Load a shipped suite by name, or any suite from a TOML file."""
    suite, folder = load_toml(Suite, "suite", name_or_path, SUITE_DIR)
    near = partial(relative_to, folder)
    groups = (
        dataclasses.replace(
            group, scenarios=(*map(near, group.scenarios),), profiles=(*map(near, group.profiles),)
        )
        for group in suite.cells
    )
    return dataclasses.replace(suite, cells=tuple(groups))


def only(suite: Suite, pattern: str | None) -> Suite:
    """Return the suite with only the cells whose names match a pattern; all without one."""
    return dataclasses.replace(suite, only=pattern) if pattern is not None else suite


def with_traces(suite: Suite, folder: Path, changes: Mapping[str, Any]) -> tuple[Suite, list[str]]:
    """Return the suite with a cell for each trace in a folder, and why files were left out."""
    if not any(group.traces for group in suite.cells):
        raise ConfigError(f"suite {suite.name!r} takes no traces; choose --suite real")
    files, left_out = _traces_in(folder)
    groups: list[CellGroup] = []
    for group in suite.cells:
        if not group.traces:
            groups.append(group)
        for name, path in files.get(group.traces, {}).items():
            played: dict[str, Any] = {"network.trace": path}
            if group.traces == "arrivals":
                played = {"arrivals": {"kind": "trace", "file": path}}
            for scenario in group.scenarios:
                own = name if len(group.scenarios) == 1 else f"{Path(scenario).stem}-{name}"
                all_changes = {**group.changes, **played, **changes, "name": own}
                groups.append(CellGroup((scenario,), group.profiles, all_changes))
    if not groups:
        why = f": {left_out[0]}" if left_out else ""
        raise ConfigError(f"there is no trace for suite {suite.name!r} in {str(folder)!r}{why}")
    return dataclasses.replace(suite, cells=tuple(groups)), left_out


def _traces_in(folder: Path) -> tuple[dict[str, dict[str, str]], list[str]]:
    """Return the traces in a folder by content and name, and why other files are none."""
    from sponge_env.formats import content_of  # takes a while to import

    found: dict[str, dict[str, str]] = {}
    left_out, taken = [], set[str]()
    try:
        paths = sorted(folder.iterdir())
    except OSError as error:
        text = f"--traces must be a folder of trace files, not {str(folder)!r} ({error.strerror})"
        raise ConfigError(text) from None
    for path in paths:
        if path.name.startswith(".") or not path.is_file():
            continue
        try:
            content = content_of(path)
        except TraceError as error:
            left_out.append(str(error))
            continue
        name, number = as_name(path.name), 1
        while name in taken:
            number += 1
            name = f"{as_name(path.name)}-{number}"
        taken.add(name)
        found.setdefault(content, {})[name] = str(path.absolute())
    return found, left_out


@cache
def named_agents() -> Mapping[str, AgentEntry]:
    """Return what the names in the tables stand for: the agents of the suites :data:`NAMES`."""
    # The first suite that has a name decides. Policies are left out: learners play their newest.
    first, *others = (load_suite(name).agents for name in NAMES)
    agents = first | {k: v for other in others for k, v in other.items() if k not in first}
    options = {n: {k: v for k, v in e.options.items() if k != "policy"} for n, e in agents.items()}
    return {name: dataclasses.replace(each, options=options[name]) for name, each in agents.items()}


def chosen(
    names: Sequence[str], own: Mapping[str, AgentEntry] | None = None
) -> tuple[dict[str, AgentEntry], tuple[BoundName, ...]]:
    """Return the agents with some names, and the bounds among them.

    A name is one of ``own``, of the tables or of the registries, ``module:Class``, or ``word:FILE``
    where a registry has a controller for such files; that agent is named after its file.
    """
    defined, known = {**named_agents(), **(own or {})}, known_controllers()
    files = registered("FILES")
    bounds = {name: control for control, name in BOUND_AGENTS.items()}
    agents: dict[str, AgentEntry] = {}
    require(len({*names}) == len(names), "agents", [*names], "all different")
    for name in names:
        kind, colon, file = name.partition(":")
        if colon and kind in files:
            called = f"{kind}:{Path(file).stem}"
            if called in agents:
                raise ConfigError(f"two agents are called {called!r}; rename one of the files")
            agents[called] = AgentEntry(controller=files[kind], options={"file": file})
        elif colon or name in defined or name in known:
            agents[name] = defined.get(name, AgentEntry())
        elif name not in bounds:
            raise ConfigError(unknown("agent", name, {*defined, *known, *bounds}))
    return agents, tuple(bounds[name] for name in names if name in bounds)


def with_agents(suite: Suite, names: Sequence[str]) -> Suite:
    """Return the suite with only some agents, see :func:`chosen`, or all; and further bounds."""
    if not names:
        return suite
    agents, bounds = chosen(names, suite.agents)
    if not agents:
        raise ConfigError(f"{', '.join(names)} stands beside agents in a suite; name some, too")
    return dataclasses.replace(
        suite, agents=agents, bounds=tuple(dict.fromkeys((*suite.bounds, *bounds))),
        reference=suite.reference if suite.reference in agents else "",
        featured=tuple(name for name in suite.featured if name in agents),
    )  # fmt: skip


def stands_for(name: str, entry: AgentEntry, options: Mapping[str, Any] | None = None) -> str:
    """Say what a name stands for in one cell; nothing for a controller with its defaults."""
    parts = [entry.controller] if entry.controller not in ("", name) else []
    parts += [f"{k}={v}" for k, v in (entry.options if options is None else options).items()]
    if entry.tuned and options is None:
        parts.append("tuned for each profile")
    elif entry.tuned and options and options.keys() - entry.options.keys():
        parts.append("tuned for this profile")
    seeds = {"training": "training seeds", "hindsight": "the seeds that are played"}
    if entry.constant:
        parts.append(f"best constant on {seeds[entry.constant]}")
    return ", ".join(parts)


def cell_name(scenario: Scenario) -> str:
    """Return ``scenario+profile+start``; ``+`` is in none of the three."""
    return "+".join(scenario.cell)


def cells(suite: Suite) -> tuple[Scenario, ...]:
    """Return the scenarios of all cells; none may occur twice."""
    if any(group.traces for group in suite.cells):
        raise ConfigError(f"suite {suite.name!r} needs --traces, a folder of trace files")
    found: dict[str, Scenario] = {}
    for _, cell in _own_cells(suite):
        if cell_name(cell) in found:
            raise ConfigError(f"suite {suite.name!r} has the cell {cell_name(cell)} twice")
        found[cell_name(cell)] = cell
    if not found:
        raise ConfigError(f"no cell of suite {suite.name!r} is called {suite.only!r}")
    return tuple(found.values())


def _own_cells(suite: Suite) -> Iterator[tuple[str, Scenario]]:
    for group in suite.cells:
        scenarios = [changed(load_scenario(name), group.changes) for name in group.scenarios]
        named = [each for scenario in scenarios for each in _combined(scenario, group.across)]
        for (label, scenario), name, start in product(named, group.profiles or ("",), suite.starts):
            if name and scenario.stages:
                raise ConfigError(
                    f"scenario {scenario.name!r} lists stages, which name their profiles "
                    f"themselves; leave out the profile {name!r}"
                )
            cell = dataclasses.replace(scenario, profile=name or scenario.profile, start=start)
            if fnmatchcase(cell_name(cell), suite.only):
                yield label, with_own_slo(cell) if name else cell
    for scenario, start in product(suite_systems(suite.systems), suite.starts):
        cell = dataclasses.replace(scenario, start=start)
        if fnmatchcase(cell_name(cell), suite.only):
            yield "", cell


def _combined(
    scenario: Scenario, across: Mapping[str, Sequence[Any]]
) -> Iterator[tuple[str, Scenario]]:
    """Yield, for each combination of changes, a label and the scenario, named after the values.

    The label is the last key and value, such as ``peak 0.4``.
    """
    for key, values in across.items():
        require(all(isinstance(v, str | float | int) for v in values), key, values, "plain values")
    for values in product(*across.values()):
        words = [Path(v).stem if isinstance(v, str) else f"{v:g}" for v in values]
        name = "-".join([scenario.name, *words])
        last = [*across][-1].rpartition(".")[2] + f" {words[-1]}" if across else ""
        yield last, changed(scenario, dict(zip(across, values, strict=True)) | {"name": name})


@dataclass(frozen=True, slots=True)
class Arrangement:
    """How the cells of a suite are shown."""

    cells: tuple[tuple[str, str, str], ...] = ()
    reference: str = ""  # Agent that the others are compared with
    groups: dict[str, str] = field(default_factory=dict)
    """For scenarios that differ in one value, such as the load: label of that value by scenario."""
    replayed: dict[str, str] = field(default_factory=dict)
    """By scenario, what to say where every seed has the same requests."""


def arranged(suite: Suite) -> Arrangement:
    """Return how the cells of a suite are shown."""
    own = list(_own_cells(suite))
    groups = {cell.name: label for label, cell in own if label}
    return Arrangement(tuple(cell.cell for _, cell in own), suite.compared_with, groups)


def changed(scenario: Scenario, changes: Mapping[str, Any]) -> Scenario:
    """Return a scenario with changes.

    They map ``"table"`` or ``"key"`` to a whole new value, or ``"table.key"`` to the value of one
    key. Whole values are set first; keys of one table change together.
    """
    keys: dict[str, dict[str, Any]] = {}
    for path, value in changes.items():
        table, dot, key = path.partition(".")
        apart = table == "arrivals" and any(kind.arrivals for kind in scenario.classes)
        require(not apart, path, value, "left out: each class has arrivals of its own")
        if dot:
            keys.setdefault(table, {})[key] = value
        else:
            parsed = _parsed(scenario, table, value)
            scenario = dataclasses.replace(scenario, **{table: parsed})
    for table, values in keys.items():
        own = dataclasses.asdict(scenario).get(table)
        own = own if isinstance(own, dict) else {}  # else the parser says what is wrong
        plain = {key: word for key, word in own.items() if isinstance(word, str | float | int)}
        parsed = _parsed(scenario, table, plain | values)
        some = {key: getattr(parsed, key) for key in values}
        some_changed = dataclasses.replace(getattr(scenario, table), **some)
        scenario = dataclasses.replace(scenario, **{table: some_changed})
    if "slo_s" in changes and "slo_services" not in changes:
        return dataclasses.replace(scenario, slo_services=None)
    return with_own_slo(scenario)


def _parsed(scenario: Scenario, table: str, value: Any) -> Any:
    """Parse a change within a scenario of defaults, for the checks."""
    # Of a table whose keys change, the other numbers and words are the scenario's.
    return getattr(from_mapping(Scenario, {"name": scenario.name, table: value}), table)
