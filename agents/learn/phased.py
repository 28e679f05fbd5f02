"""Training in phases: what is learned in which order, evaluated, kept and resumed.

A policy that may change cores, batch size and replicas from the start stays with one replica: while
it does not know yet that two replicas need fewer cores each, a second one only costs cores. So it
first does as a program does (:mod:`.imitation`), and then practises and finds what is better.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.optim.swa_utils import AveragedModel
from torch.utils.tensorboard import SummaryWriter

from sponge_env.errors import PolicyError
from sponge_env.scenario.scenario import Scenario
from sponge_env.scenario.seeds import stream
from sponge_env.utils.files import write_json

from ..guard import InputRange
from ..history import DEPLOYMENT
from ..policy import POLICY_FILE, Policy, load_policy, save_policy
from . import CHECKPOINT_FILE, EVALUATED_FILE, SETTINGS_FILE, LearnConfig, Report, TrainingPlan
from .episodes import DRAWS, Episodes
from .evaluation import FEW_VIOLATIONS, TOLERANCE, Evaluation, PolicyEvaluator, best_rules
from .imitation import Demonstrations, demonstrations, imitate, joined
from .ppo import ActorCritic, Transitions, collect, update
from .systems import random_systems

RENEWED = 1_200_000
"""Steps after which random systems are drawn anew."""
AVERAGED = 0.2
"""Share of the steps, the last ones, over which the weights of the policy are averaged."""
CRITIC_FIRST = 0.02
"""Share of the steps in which only the critic learns: what it says of a policy that imitates is
noise at first."""


def train(
    plan: TrainingPlan, config: LearnConfig, progress: Report = lambda steps, status: None
) -> Path:
    """Train a policy and return the file of the best that was seen.

    The best one so far is always in the policy file, the latest state in the checkpoint, also
    after an interrupt.
    """
    # The networks are too small for more threads to help, and the simulator uses them.
    torch.set_num_threads(1)
    write_json(plan.folder / SETTINGS_FILE, asdict(config))
    run = Training(plan, config, progress)
    if plan.resume is not None:
        run.load(plan.resume)
    run.run()
    best = load_policy(run.policy_path)
    save_policy(replace(best, info=replace(best.info, partial=False)), run.policy_path)
    return run.policy_path


def steps_left(path: Path) -> int:
    """Return how many steps a checkpoint lacks of those that were planned; 0 if none."""
    state = _checkpoint(path)
    return max(0, int(state["planned"]) - int(state["steps"]))


class Training:
    """A run, and where it is."""

    def __init__(self, plan: TrainingPlan, config: LearnConfig, progress: Report) -> None:
        torch.manual_seed(plan.seed)
        self.plan, self.config, self._progress = plan, config, progress
        scenarios, choices = plan.scenarios, list(plan.choices.values())
        self._actions = choices[0].actions
        self.model = ActorCritic(config.hidden, choices, len(plan.inputs))
        self._exported = self.model
        self._evaluate = PolicyEvaluator(scenarios, config.evaluation_episodes)
        if plan.resume is None:
            progress(0, "measuring the programs")
        sums, self._programs = best_rules(
            plan.control.scales_out, scenarios, config.evaluation_episodes
        )
        self.rule = Evaluation.of(sums)
        self.steps = self._start = 0
        self._planned = plan.steps
        self.policy_path = plan.folder / POLICY_FILE
        self._best = math.inf
        """Score of the kept policy."""
        self._deployed = InputRange(len(plan.inputs))
        """Of all inputs in training."""
        self._status = ""
        self._began_s = time.monotonic()
        self._writer = SummaryWriter(str(plan.folder))

    def run(self) -> None:
        """Imitate the programs and practise, from where the run is."""
        try:
            if self.plan.start is not None:
                self.model.begin_with(self.plan.start.layers)
            elif not self.steps and self.plan.resume is None:
                self._imitate()
            self._practise()
        except KeyboardInterrupt:
            self._look()
            raise
        finally:
            self._writer.close()

    def _imitate(self) -> None:
        plan, config, policy = self.plan, self.config, None
        rounds: list[Demonstrations] = []
        for k in range(config.imitations):
            which = f"round {k + 1} of {config.imitations}"
            self._progress(0, f"imitating programs before the first step, {which}")
            seed = plan.seed * config.imitations + k
            rounds.append(demonstrations(plan, config, self._programs, seed, policy))
            self._deployed.widen(rounds[-1].seen)
            imitate(self.model, joined(rounds), config)
            policy = self.export()

    def _practise(self) -> None:
        plan, config = self.plan, self.config
        interval = max(1, self._planned // config.evaluations)
        optimizer = torch.optim.Adam(self.model.parameters(), eps=1e-5, fused=True)
        mean, looked_at = AveragedModel(self.model), self.steps
        if not self.steps:
            self._look()
        while self.steps < self._planned:
            until = min(self.steps + RENEWED, self._planned) if plan.systems else self._planned
            with self._episodes() as groups:
                while self.steps < until:
                    left = 1 - self.steps / self._planned
                    for group in optimizer.param_groups:
                        group["lr"] = config.learning_rate * max(0.1, left)
                    parts = [collect(self.model, episodes, config) for episodes in groups]
                    batch = Transitions(*map(torch.cat, zip(*parts, strict=True)))
                    for episodes in groups:
                        self._deployed.widen(episodes.state.seen)
                    entropy, first = config.entropy * (0.2 + 0.8 * left), left > 1 - CRITIC_FIRST
                    losses = update(self.model, optimizer, batch, config, entropy, first)
                    self.steps += len(batch.inputs)
                    if left < AVERAGED:
                        mean.update_parameters(self.model)
                        assert isinstance(mean.module, ActorCritic)
                        self._exported = mean.module
                    for key, value in losses.items():
                        self._writer.add_scalar(f"train/{key}", value, self.steps)
                    self._progress(self.steps - self._start, self._status)
                    if self.steps - looked_at >= interval or self.steps >= self._planned:
                        looked_at = self.steps
                        self._look()

    @contextmanager
    def _episodes(self) -> Iterator[list[Episodes]]:
        """Begin episodes on each machine that there is."""
        # A run that is resumed draws other episodes than those it has learned from.
        plan, seed, draws = self.plan, self.plan.seed + self.steps, DRAWS
        with random_systems(stream(seed, "systems"), plan.systems) as systems, ExitStack() as stack:
            scenarios: Sequence[Scenario] = plan.scenarios
            if plan.systems:
                scenarios, draws = systems, 1
            groups = []
            for machine, limits in enumerate(plan.choices):
                own = [each for each in scenarios if each.limits == limits]
                count = plan.envs * len(own) // len(scenarios)
                episodes = Episodes(
                    own, count, plan.form, seed, plan.randomised, draws=draws, machine=machine
                )
                groups.append(stack.enter_context(closing(episodes)))
            yield groups

    def _look(self) -> None:
        """Evaluate the policy, keep it if it is the best so far, and write where the run is."""
        policy = self.export()
        result = self._keep(policy)
        add = self._writer.add_scalar
        for k, scenario in enumerate(() if self.plan.systems else self.plan.scenarios):
            add(f"cores/{scenario.name}", result.cores[k], self.steps)
            add(f"violations/{scenario.name}", result.violation_rate[k], self.steps)
        add("evaluation/cost", score_of(result, self.rule), self.steps)
        cores, rate = result.cores.mean(), result.violation_rate.mean()
        self._status = f"{rate:.3%} missed, {cores:.2f} cores"
        self.save()

    def _keep(self, policy: Policy) -> Evaluation:
        """Keep a policy if it is the best so far, and return what it reaches."""
        result = self._evaluate(policy)
        score = score_of(result, self.rule)
        # Of random systems many are hopeless, so that the score says less than the training's end.
        if score < self._best or self.plan.systems:
            self._best = score
            info = replace(policy.info, score=round(score, 4))
            assert result.input_range is not None
            seen, trained = result.input_range.copy(), self._deployed.ends
            own = [self.plan.inputs.index(name) for name in DEPLOYMENT]
            seen[0, own] = np.minimum(seen[0, own], trained[0, own])
            seen[1, own] = np.maximum(seen[1, own], trained[1, own])
            save_policy(replace(policy, info=info, input_range=seen), self.policy_path)
            sides = {"policy": result, "rules": self.rule}
            means = {
                name: {"cores": float(x.cores.mean()), "missed": float(x.violation_rate.mean())}
                for name, x in sides.items()
            }
            write_json(self.plan.folder / EVALUATED_FILE, means)
        return result

    def export(self) -> Policy:
        """Return the policy as it is now."""
        info = self.plan.info(
            self._actions,
            steps=self.steps,
            planned=self._planned,
            seconds=round(time.monotonic() - self._began_s, 1),
        )
        return Policy(info, tuple(self._exported.layers()))

    def save(self) -> None:
        """Write where the run is."""
        state = {"model": self.model.state_dict(), "steps": self.steps, "planned": self._planned}
        torch.save(state, self.plan.folder / CHECKPOINT_FILE)

    def load(self, path: Path) -> None:
        """Go on where another run was."""
        state = _checkpoint(path)
        try:
            self.model.load_state_dict(state["model"])
            self.steps = int(state["steps"])
        except Exception as error:  # whatever a damaged file does
            raise PolicyError(f"{path} cannot be resumed: {error}") from error
        self._start, self._planned = self.steps, self.steps + self.plan.steps
        kept = load_policy(path.with_name(POLICY_FILE))
        if kept.input_range is not None:
            self._deployed.widen(kept.input_range)
        self._keep(kept)


def _checkpoint(path: Path) -> dict[str, Any]:
    try:
        state: dict[str, Any] = torch.load(path, weights_only=True)
        _ = state["steps"], state["planned"]
    except Exception as error:  # whatever a damaged file does
        raise PolicyError(f"{path} cannot be resumed: {error}") from error
    return state


def score_of(result: Evaluation, rule: Evaluation) -> float:
    """Return one number, better when smaller: cores relative to the best rule's, on average.

    Violations beyond the rule's, or beyond few where it has more, count like cores: as many more
    as the tolerance are a tenth, and the more there are the less each counts, for some systems are
    hopeless.
    """
    allowed = np.minimum(rule.violation_rate, FEW_VIOLATIONS) + TOLERANCE
    over = np.maximum(0, result.violation_rate - allowed) / TOLERANCE
    return float(np.mean(result.cores / rule.cores + np.log1p(0.1 * over)))
