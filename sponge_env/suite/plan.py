"""From a suite to its units of work."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

from sponge_env.errors import ConfigError, unknown
from sponge_env.registry import known_controllers, make_controller
from sponge_env.scenario import Scenario
from sponge_env.suite.bounds import BoundUnit
from sponge_env.suite.definition import AgentEntry, Suite, cell_name, cells, changed
from sponge_env.suite.unit import BOUND_AGENTS, AgentUnit, Unit

TUNED = "baselines:tuned_options"
"""Where tuned options come from; called with controller, scenario and profile."""


def with_agents(suite: Suite, names: Sequence[str]) -> Suite:
    """Return the suite with some of its agents, or with others of the registry.

    Args:
        suite: The suite.
        names: Agents of the suite, registered controllers, or ``module:Class``; all of the
            suite's if empty.

    Raises:
        ConfigError: There is no such agent.
    """
    if not names:
        return suite
    registered = known_controllers()
    for name in names:
        if ":" not in name and name not in suite.agents and name not in registered:
            raise ConfigError(unknown("agent", name, {*suite.agents, *registered}))
    agents = {name: suite.agents.get(name, AgentEntry()) for name in names}
    reference = suite.reference if suite.reference in agents else ""
    return replace(suite, agents=agents, reference=reference)


def with_options(suite: Suite, options: Mapping[str, Mapping[str, Any]]) -> Suite:
    """Return the suite with further options of its agents.

    Args:
        suite: The suite.
        options: By agent, all of the suite.
    """
    agents = {
        name: replace(entry, options={**entry.options, **options.get(name, {})})
        for name, entry in suite.agents.items()
    }
    return replace(suite, agents=agents)


def units(suite: Suite) -> list[Unit]:
    """Return all units of a suite: bounds first, which take longest, then cell by cell.

    Every controller is made once, so that mistakes show before anything runs.

    Raises:
        ConfigError: A scenario, a change, a controller or an option cannot be used.
    """
    registry = known_controllers()
    for name, entry in suite.agents.items():
        if name in BOUND_AGENTS.values():
            raise ConfigError(f"the name {name!r} is taken by a bound; give the agent another")
        make_controller(entry.controller or name, registry, entry.options)
    scenarios = cells(suite)
    bounds = [BoundUnit(kind, cell, suite.seeds) for kind in suite.bounds for cell in scenarios]
    agents = [
        _agent_unit(name, entry, cell, suite.seeds, registry)
        for cell in scenarios
        for name, entry in suite.agents.items()
    ]
    return [*bounds, *agents]


def _agent_unit(
    name: str, entry: AgentEntry, cell: Scenario, seeds: int, registry: Mapping[str, str]
) -> AgentUnit:
    controller = entry.controller or name
    scenario = changed(cell, entry.changes)
    if cell_name(scenario) != cell_name(cell):
        raise ConfigError(f"agents.{name}.changes must leave name, profile and start as they are")
    tuned = _tuned_options(controller, cell) if entry.tuned else {}
    options = {**tuned, **entry.options}
    target = registry.get(controller, controller)
    return AgentUnit(name, target, options, entry.control, scenario, seeds)


def _tuned_options(controller: str, cell: Scenario) -> dict[str, Any]:
    """Return a controller's options for one cell, as tuned on training seeds."""
    module, _, attribute = TUNED.partition(":")
    tuned = cast(
        Callable[[str, str, str], dict[str, Any]],
        getattr(importlib.import_module(module), attribute),
    )
    return tuned(controller, cell.name, cell.profile)
