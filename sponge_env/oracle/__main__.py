"""Print the clairvoyant bound of a scenario; of one with stages the relaxation.

Usage::

    python -m sponge_env.oracle --scenario paper [--profile P] [--start warm] [--seeds N] [--joint]
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from typing import Any

from sponge_env.cli import Parser, at_least, one_of, run_script
from sponge_env.oracle.bound import bound
from sponge_env.oracle.relaxation import relaxation
from sponge_env.scenario.scenario import load_scenario

SHOWN = (0.0, 0.001, 0.01, 0.05, 0.1)
"""Violations per request beyond the fewest."""

HEAD = (
    "          violations          core-seconds\n"
    " seed    lower  upper       lower      upper    gap\n"
)

RELAXED_HEAD = (
    "relaxation: no controller has fewer violations, a larger effective accuracy or, with at most "
    "so many\nviolations, fewer core-seconds; none need reach any of these\n"
    "      violations  accuracy  core-seconds with so many violations more than the fewest\n"
    " seed      lower     upper" + "".join(f"{share:>9.2%}" for share in SHOWN) + "\n"
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code."""
    return run_script(_run, argv)


def _run(argv: Sequence[str]) -> int:
    parser = Parser(prog="python -m sponge_env.oracle", description="the clairvoyant bound")
    parser.add_argument("--scenario", default="paper", help="shipped scenario or TOML file")
    parser.add_argument("--profile", help="latency profile instead of the scenario's")
    parser.add_argument(
        "--start", type=one_of("start", ("cold", "warm")), help="instead of the scenario's"
    )
    parser.add_argument("--duration", type=at_least(1), dest="duration_s", help="in seconds")
    parser.add_argument("--seeds", type=at_least(1), default=1, help="episodes (default: 1)")
    parser.add_argument(
        "--joint", action="store_true", help="replicas may be added, too, as always with stages"
    )
    arguments = parser.parse_args(argv)
    changes: dict[str, Any] = {
        name: value
        for name in ("profile", "start", "duration_s")
        if (value := getattr(arguments, name)) is not None
    }
    scenario = dataclasses.replace(load_scenario(arguments.scenario), **changes)
    sys.stdout.write(RELAXED_HEAD if scenario.stages else HEAD)
    for seed in range(arguments.seeds):
        if scenario.stages:
            least = relaxation(scenario, seed)
            row = f"{least.violations_lower:10d} {least.accuracy_upper:9.4f}"
            row += "".join(f"{least.core_seconds(least.beyond(share)):9.1f}" for share in SHOWN)
        else:
            found = bound(scenario, seed, arguments.joint)
            row = f"{found.violations_lower:8d} {found.violations_upper:6d} "
            row += f"{found.core_seconds_lower:11.1f} {found.core_seconds_upper:10.1f} "
            row += f"{found.gap:6.2%}"
        sys.stdout.write(f"{seed:5d} {row}\n")
        sys.stdout.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main())
