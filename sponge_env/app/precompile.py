"""Compile now what would be compiled at its first use, and keep it on disk.

``python -m sponge_env.app.precompile`` covers systems and controllers, ``--oracle`` the oracle.
"""

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from sponge_env import cli
from sponge_env.errors import SpongeError
from sponge_env.interfaces import Allocation, Controller
from sponge_env.live.system import LiveSystem
from sponge_env.run.registry import known_controllers, make_controller
from sponge_env.run.rollout import Replay, Run, run_episode
from sponge_env.scenario.scenario import Scenario, load_scenario
from sponge_env.serve.system import ServedSystem
from sponge_env.simulation.batch import BatchSimulator
from sponge_env.simulation.system import SimulatedSystem


class _RehearsalEndedError(Exception):
    """A live system has made all its moves and would start its worker now."""


def steps(oracle: bool) -> Iterator[tuple[str, Callable[[], object]]]:
    """Yield what there is to compile, and how that happens."""
    scenario, mixed = (replace(load_scenario(n), duration_s=2.0) for n in ("paper", "mixed"))
    if oracle:
        from sponge_env.oracle import bound  # takes a while to import

        yield "oracle", partial(bound, scenario, 0)
        yield "joint oracle", partial(bound, scenario, 0, joint=True)
        return
    for each in (scenario, mixed):
        fixed = Replay([Allocation(4, 4)] * each.intervals)
        yield f"simulated system, {each.name}", partial(_play, each, fixed)
    yield "live system", partial(_rehearse, LiveSystem, scenario, 0)
    yield "server", partial(_rehearse, ServedSystem, scenario)
    yield "many environments", partial(_batch, scenario)
    yield "controllers", partial(_decide_all, scenario)


def _play(scenario: Scenario, controller: Controller) -> None:
    run_episode(SimulatedSystem(scenario, 0), controller, Run.of("", scenario, "sim", 0))


def _rehearse(system: Callable[..., object], *arguments: object) -> None:
    def start(_: object) -> Any:
        raise _RehearsalEndedError

    with suppress(_RehearsalEndedError):
        system(*arguments, start)


def _batch(scenario: Scenario) -> None:
    with closing(BatchSimulator([scenario], np.zeros(2, np.int64))) as simulator:
        list(simulator.play(np.arange(2), lambda _: np.ones((2, 3), np.int64)))


def _decide_all(scenario: Scenario) -> None:
    for name in known_controllers():
        with suppress(SpongeError):  # one that lacks something, such as a policy, is left out
            _play(scenario, make_controller(name, known_controllers()))


@cli.command
def main(argv: Sequence[str]) -> int:
    """Compile the oracle with ``--oracle``, else the rest."""
    for name, compile_it in steps("--oracle" in argv):
        sys.stderr.write(f"compiling {name}\n")
        compile_it()
    return 0


if __name__ == "__main__":
    sys.exit(main())
