"""Print what sizes ``static`` and ``hpa`` in a live comparison: options of ``sponge fidelity``.

    python -m benchmarks.live SCENARIO TUNED

They are the best on training seeds, as the suite ``live`` plays it. TUNED is of ``baselines.tune``.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from baselines import load_tuned
from sponge_env import cli
from sponge_env.errors import ConfigError
from sponge_env.run.hindsight import best_constant
from sponge_env.run.suite import cells, load_suite, only
from sponge_env.scenario.seeds import TRAINING_SEEDS
from sponge_env.scenario.spec import scenario_profile


@cli.command
def main(argv: Sequence[str]) -> int:
    """Print them on one line."""
    if len(argv) != 2:
        raise ConfigError("say python -m benchmarks.live SCENARIO TUNED")
    (cell,) = cells(only(load_suite("live"), f"{argv[0]}+*+warm"))
    (fleet,) = best_constant(cell, scenario_profile(cell), TRAINING_SEEDS)
    held = {"cores": fleet.cores, "batch": fleet.batch, "replicas": fleet.replicas}
    sized = {"static": held, "hpa": load_tuned(Path(argv[1]))["hpa"][cell.cell[1]]["options"]}
    words = [f"--option {agent}.{k}={v}" for agent, own in sized.items() for k, v in own.items()]
    sys.stdout.write(" ".join(words) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
