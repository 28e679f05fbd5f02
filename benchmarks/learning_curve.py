"""How fast a learner learns: several trainings, validated as they go on.

    python -m benchmarks.learning_curve [--agent sb3-ppo] [--scenario S] [--seeds N] [--steps N]
    python -m benchmarks.learning_curve --runs runs/policies/ppo-joint-yolov5s-* --out FILE

Every training has a seed of its own; all policies play the same episodes, deterministically, on
seeds that neither training nor evaluation uses. Prints a table and draws a picture: a line for
the mean over the trainings, a shade from the least to the most of them.

Of trainings in phases that were made already (``--runs``) the curves are those of their own
judge, on the episodes that set the prices of violations: means over all scenarios.
"""

from __future__ import annotations

import itertools
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from agents import LEARNERS
from agents.learn import TrainingPlan, learn_config, phased, training
from agents.learn.judge import Judge
from agents.learn.phases import ENVS, PhasedConfig
from agents.learn.systems import spec_of
from agents.learn.training import Validation
from agents.policy import POLICY_FILE, Policy, load_policy
from benchmarks.judged import unused_seed
from sponge_env import cli
from sponge_env.arrays import FloatArray
from sponge_env.errors import ConfigError
from sponge_env.results.figures import COLOURS, open_frame, png
from sponge_env.results.layout import aligned
from sponge_env.scenario.scenario import Scenario, load_scenario
from sponge_env.utils.files import check_writable, replacing

EPISODES = 32
"""Of each validation."""
SHOWN = ("avoidable violations [%]", "mean cores")


def learn(
    agent: str, scenario: Scenario, steps: int, seed: int, points: int
) -> list[tuple[int, float, float]]:
    """Train once; return steps, avoidable violations in percent and cores at about so many points.

    They are those of the policy at that moment, and not of the best so far, which training keeps.
    """
    found = list[tuple[int, float, float]]()

    def validated(done: int, result: Validation) -> None:
        found.append((done, 100 * result.avoidable_violation_rate, result.cores))

    def judged(done: int, policy: Policy) -> None:
        if done >= steps or next(count) % every == 0:
            result = judge(policy)
            found.append((done, 100 * result.violation_rate[0], result.cores[0]))

    with tempfile.TemporaryDirectory() as folder:
        plan = TrainingPlan((scenario,), steps, LEARNERS[agent].envs, seed, Path(folder), agent)
        if plan.phased:  # what is judged there decides on prices, and how often
            in_phases = PhasedConfig()
            judge = Judge((scenario,), EPISODES, unused_seed(in_phases))
            every, count = max(1, in_phases.evaluations // points), itertools.count()
            phased.train(replace(plan, envs=ENVS), in_phases, judged=judged)
        else:
            options = {"evaluations": points, "evaluation_episodes": EPISODES}
            training.train(plan, learn_config(agent, options), validated=validated)
    return found


def learned(run: Path, points: int) -> list[tuple[int, float, float]]:
    """Return the same of what a training in phases has written for TensorBoard."""
    events = EventAccumulator(str(run), size_guidance={"scalars": 0}).Reload()
    tags = events.Tags()["scalars"]
    parts = [
        np.array([[e.value for e in events.Scalars(tag)] for tag in tags if tag.startswith(part)])
        for part in ("violations/", "cores/")
    ]
    if not all(part.size for part in parts):
        raise ConfigError(f"{run} holds no events of a training in phases")
    steps = [event.step for event in events.Scalars("evaluation/score")]
    missed, cores = (part.mean(axis=0) for part in parts)
    found = list(zip(steps, 100 * missed, cores, strict=True))
    return [*found[: -1 : max(1, len(found) // points)], found[-1]]


def table(curves: FloatArray) -> str:
    """Return the table of curves of shape (seeds, points, 3), as :func:`learn` has them."""
    rows = [["steps", *(heading for name in SHOWN for heading in (name, "least .. most"))]]
    for points in np.swapaxes(curves, 0, 1):
        row = [f"{points[0, 0]:.0f}"]
        for values, digits in zip(points.T[1:], (3, 2), strict=True):
            least, most = f"{values.min():.{digits}f}", f"{values.max():.{digits}f}"
            row += [f"{values.mean():.{digits}f}", f"{least} .. {most}"]
        rows.append(row)
    return "\n".join(aligned(rows))


def draw(curves: FloatArray, title: str) -> Figure:
    """Draw the curves of :func:`table`."""
    figure = Figure(figsize=(9, 3.2), dpi=90, layout="constrained")
    figure.suptitle(title, fontsize="medium")
    for ax, name, part in zip(figure.subplots(1, 2), SHOWN, (1, 2), strict=True):
        steps, values = curves[0, :, 0] / 1000, curves[:, :, part]
        ax.fill_between(steps, values.min(axis=0), values.max(axis=0), color=COLOURS[0], alpha=0.2)
        ax.plot(steps, values.mean(axis=0), color=COLOURS[0], marker="o", markersize=3)
        ax.set_xlabel("thousand steps")
        ax.set_ylabel(name)
        open_frame(ax)
        ax.set_ylim(bottom=0)
    return figure


def main(argv: Sequence[str] | None = None) -> int:
    """Run the script; bad input ends with one sentence and exit code 2."""
    return cli.run_script(run, argv)


def run(argv: Sequence[str]) -> int:
    """Train, print the table and draw the picture."""
    parser = cli.Parser(
        prog="python -m benchmarks.learning_curve", description=__doc__.split("\n")[0]
    )
    add, known = parser.add_argument, cli.one_of("agent to train", LEARNERS)
    add("--agent", default="sb3-ppo", type=known, help="default: sb3-ppo")
    add("--scenario", default="bursty", help="default: bursty")
    add("--seeds", type=cli.at_least(1), default=5, help="trainings (default: 5)")
    add("--steps", type=cli.at_least(1), default=300_000, help="of each (default: 300000)")
    add("--points", type=cli.at_least(1), default=40, help="validations of each (default: 40)")
    add("--runs", type=Path, nargs="+", metavar="RUN", help="folders of trainings to show instead")
    add(
        "--out",
        type=Path,
        help="picture to write (default: docs/learning-curve.png, but of --runs)",
    )
    arguments = parser.parse_args(argv)
    if arguments.runs and arguments.out is None:
        raise ConfigError("--runs needs --out: docs/learning-curve.png shows another learner")
    arguments.out = arguments.out or Path("docs/learning-curve.png")
    check_writable(arguments.out)
    if arguments.runs:
        found = [learned(run, arguments.points) for run in arguments.runs]
        infos = [load_policy(run / POLICY_FILE).info for run in arguments.runs]
        learned_alike = {(each.agent, each.fingerprint, each.scenarios) for each in infos}
        if len(learned_alike) > 1 or len({tuple(each[0] for each in own) for own in found}) > 1:
            raise ConfigError(
                "these trainings are of several agents or systems, or judged otherwise"
            )
        learns = f"{infos[0].agent} learns {len(infos[0].scenarios)} scenarios"
    else:
        scenario = load_scenario(arguments.scenario)
        if spec_of(scenario).has_variants:
            raise ConfigError("cores alone say too little of a scenario with variants")
        one = partial(learn, arguments.agent, scenario, arguments.steps, points=arguments.points)
        found = [one(seed=seed) for seed in range(arguments.seeds)]
        learns = f"{arguments.agent} learns {scenario.name}"
    curves = np.array(found)
    print(table(curves))
    title = f"{learns}: {len(curves)} trainings"
    with replacing(arguments.out) as partial_file:
        partial_file.write_bytes(png(draw(curves, title)))
    print(f"\nwritten to {arguments.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
