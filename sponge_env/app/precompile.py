"""Compile now what would be compiled at its first use, and keep it on disk.

``python -m sponge_env.app.precompile`` covers simulated, batched and live systems and every
registered controller; ``--all`` the oracle as well.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial

import numpy as np

from sponge_env import cli
from sponge_env.core.fields import OBS_DIM
from sponge_env.errors import SpongeError
from sponge_env.interfaces import Allocation, SystemSpec, Worker
from sponge_env.live.system import LiveSystem
from sponge_env.run import registry
from sponge_env.scenario.scenario import Scenario, load_scenario
from sponge_env.simulation.system import SimulatedSystem


class _RehearsalEndedError(Exception):
    """A live system has made all its moves and would start its worker now."""


def steps(everything: bool) -> Iterator[tuple[str, Callable[[], object]]]:
    """Yield what there is to compile, and how that happens."""
    scenario = replace(load_scenario("paper"), duration_s=2.0)
    classes = replace(load_scenario("mixed"), duration_s=2.0)
    for each in (scenario, classes):
        yield f"simulated system, {each.name}", partial(_play, each, _hold)
    yield "live system", lambda: _rehearse(scenario)
    yield "server", lambda: _rehearse_server(scenario)
    yield "many environments", lambda: _batch(scenario)
    yield "controllers", lambda: _decide_all(scenario)
    if everything:
        yield "oracle", lambda: _bounds(scenario)


def _hold(system: SimulatedSystem) -> Allocation:
    return Allocation(4, 4)


def _play(scenario: Scenario, decide: Callable[[SimulatedSystem], Allocation]) -> None:
    system = SimulatedSystem(scenario, 0)
    while not system.done:
        system.step(decide(system))
    system.drain()
    system.columns()


def _rehearse(scenario: Scenario) -> None:
    def start(spec: SystemSpec) -> Worker:
        raise _RehearsalEndedError

    try:
        LiveSystem(scenario, 0, start)
    except _RehearsalEndedError:
        return


def _rehearse_server(scenario: Scenario) -> None:
    from sponge_env.serve.system import CallWorker, ServedSystem

    def start(spec: SystemSpec) -> CallWorker:
        raise _RehearsalEndedError

    try:
        ServedSystem(scenario, start)
    except _RehearsalEndedError:
        return


def _batch(scenario: Scenario) -> None:
    from sponge_env.simulation.batch import BatchSimulator

    simulator = BatchSimulator([scenario], np.zeros(2, np.int64))
    observations = np.zeros((2, OBS_DIM), np.float32)
    simulator.reset(np.ones(2, np.bool_), np.arange(2), observations)
    simulator.step(np.ones((2, 3), np.int64))
    simulator.close()


def _decide_all(scenario: Scenario) -> None:
    for name in registry.known_controllers():
        _decide(scenario, name)


def _decide(scenario: Scenario, name: str) -> None:
    """Let a controller decide; one that lacks something, such as a policy, is left out."""
    try:
        controller = registry.make_controller(name, registry.known_controllers())
        spec = SimulatedSystem(scenario, 0).spec
        registry.start(controller, spec, 0)
        _play(scenario, lambda system: registry.decision(controller, system.view(), spec))
    except SpongeError:
        return


def _bounds(scenario: Scenario) -> None:
    from sponge_env.oracle import bound, relaxation

    for joint in (False, True):
        bound(scenario, 0, joint=joint)
    relaxation(scenario, 0)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; an interrupt is one word."""
    return cli.run_script(compile_all, argv)


def compile_all(argv: Sequence[str]) -> int:
    """Compile everything."""
    for name, compile_it in steps("--all" in argv):
        sys.stderr.write(f"compiling {name}\n")
        compile_it()
    return 0


if __name__ == "__main__":
    sys.exit(main())
