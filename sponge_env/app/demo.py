"""Measure this machine, train a policy, compare controllers: ``sponge demo``."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from sponge_env import cli
from sponge_env.run.store import new_folder
from sponge_env.run.suite import load_suite
from sponge_env.utils.installation import imported, require_extra

STEPS = {  # What each command is for, and its words
    "measure this machine's worker": "calibrate",
    "train PPO on 400,000 steps, a twentieth of the usual": "train --scenario {scenario} "
    "--steps 400000 --run-dir {folder}/training",
    "compare controllers, simulated and then live": "evaluate --agent {agents} --backend both "
    "--scenario {scenario} --duration {seconds:g} --policy {folder}/training/policy.safetensors "
    "--json {folder}/summaries.json --run-dir {folder}/comparison",
}


@cli.command
def main(argv: Sequence[str]) -> int:
    """Run the demo; return the exit code of the first command that fails, or else 0."""
    parser = cli.Parser(
        prog="sponge demo",
        description="Measure this machine's worker, train a small policy and compare it with other "
        "controllers in flash crowds, simulated and live. It takes about six minutes.",
    )
    cli.add_machine(parser)
    parser.parse_args(argv)
    for extra in ("live", "train", "report"):
        require_extra(extra, "the demo")
    folder, suite = new_folder("demo"), load_suite("demo")
    cells, names = suite.cells[0], {"agents": " ".join(suite.agents), "folder": folder}
    names |= {"scenario": cells.scenarios[0], "seconds": cells.changes["duration_s"]}
    run = imported("sponge_env.__main__:main")
    for number, (what, words) in enumerate(STEPS.items(), start=1):
        words = words.format(**names)
        sys.stdout.write(f"\n{number} of {len(STEPS)}: {what}\n$ sponge {words}\n")
        sys.stdout.flush()
        if code := run([*words.split(), *argv]):
            return int(code)
    sys.stdout.write(f"\n{findings(folder / 'summaries.json')}\n")
    sys.stdout.write(f"picture: {folder}/comparison/live/comparison.png\n")
    return 0


def findings(summaries: Path) -> str:
    """Say what a comparison found, and how much that is worth."""
    found: dict[str, list[str]] = {"live": [], "sim": []}
    for each in json.loads(summaries.read_text()):
        missed, cores = each["violation_rate"], each["mean_cores"]
        found[each["backend"]].append(f"{each['agent']} {missed:.1%} on {cores:.1f} cores")
    return (
        f"Deadlines missed on the real worker, and cores held: {', '.join(found['live'])}.\n"
        f"The same in the simulator: {', '.join(found['sim'])}.\n"
        "Each ran once, from a cold start, on a machine whose speed drifts; fixed-fleet is sized "
        "in the simulator. sponge fidelity repeats such runs."
    )
