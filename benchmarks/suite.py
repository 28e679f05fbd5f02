"""How much faster an episode of the suite runs on the compiled system than on the reference.

    python -m benchmarks.suite [--quick]

Each number is the shortest of several runs of a whole episode, its making included.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence

from benchmarks.simulator import best_s, print_table
from sponge_env.factory import make_system
from sponge_env.run.controllers import known_controllers, make_controller
from sponge_env.run.rollout import ControlledSystem, Run, run_episode
from sponge_env.scenario import Scenario, load_scenario
from sponge_env.vector.system import CompiledSystem

AGENTS = ("static-16", "sponge-ip", "fa2")
SCENARIOS = ("paper", "bursty", "mixed")
SEED = 1000


def episode_s(
    make: Callable[[Scenario, int], ControlledSystem], scenario: Scenario, agent: str, repeats: int
) -> float:
    """Return the shortest wall time of an episode of an agent."""
    controllers = known_controllers()
    run = Run.of(agent, scenario, "sim", SEED)
    return best_s(
        lambda: run_episode(make(scenario, SEED), make_controller(agent, controllers), run),
        repeats,
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description="Time episodes of the suite.")
    parser.add_argument("--quick", action="store_true", help="fewer cells, a few seconds")
    quick = parser.parse_args(argv).quick
    agents, names, repeats = (AGENTS[:1], SCENARIOS[:1], 1) if quick else (AGENTS, SCENARIOS, 5)
    rows = []
    for name in names:
        scenario = load_scenario(name)
        for agent in agents:
            compiled_s = episode_s(CompiledSystem, scenario, agent, repeats)
            reference_s = episode_s(make_system, scenario, agent, repeats)
            ratio = f"{reference_s / compiled_s:.1f}"
            times = (f"{seconds * 1000:.0f}" for seconds in (compiled_s, reference_s))
            rows.append([name, agent, str(scenario.intervals), *times, ratio])
    print_table(
        ["scenario", "agent", "intervals", "compiled [ms]", "reference [ms]", "ratio"], rows
    )


if __name__ == "__main__":
    main()
