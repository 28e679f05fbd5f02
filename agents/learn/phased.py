"""Training in phases: what is learned in which order, evaluated, kept and resumed.

A policy that may change cores, batch size and replicas from the start stays with one replica: while
it does not know yet that two replicas need fewer cores each, a second one only costs cores. So it
first does as a program does (:mod:`.imitation`); then its critic learns what that is worth; then it
practises, and finds what is better.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.tensorboard import SummaryWriter

from sponge_env.errors import PolicyError
from sponge_env.scenario.scenario import Scenario
from sponge_env.scenario.seeds import SEED_LIMIT
from sponge_env.scenario.spec import scenario_profile
from sponge_env.simulation.traffic import rate_rps
from sponge_env.utils.files import write_json

from ..guard import InputRange
from ..history import DEPLOYMENT, FloatMatrix
from ..policy import POLICY_FILE, Policy, load_policy, save_policy
from ..stepwise import StageChoices
from . import (
    CHECKPOINT_FILE,
    EVALUATED_FILE,
    PhasedConfig,
    Report,
    TrainingPlan,
    save_settings,
    spec_of,
)
from .actor_critic import Actions, ActorCritic, Inputs
from .episodes import Episodes, batches_for
from .evaluation import TOLERANCE, Evaluation, PolicyEvaluator, known_rules
from .imitation import Demonstrations, demonstrations, imitate, joined
from .ppo import Demonstrated, Prices, Weights, collect, update

KICKSTART, KICKSTART_SHARE = 0.5, 0.3
"""Weight of the demonstrations when the practice begins, and the share of the steps in which it
falls to nothing (kickstarting: Schmitt et al., 2018). It keeps the policy from what only seems
better while its critic knows little."""
VALUES_SHARE = 0.04
"""Share of the steps in which rewards teach the critic only, and the policy still imitates."""
MIN_PRICE, MAX_PRICE = 10.0, 200.0
"""Core-seconds that a violation costs, first the minimum: too high a price fills all cores for
good, before a policy knows what they are good for."""
OTHER_PRICE = 40.0
"""The same in other systems, if the training is randomised."""
PRICE_STEP = 0.15
"""Largest change of the logarithm of a price at once."""
TARGET_SHARE = 0.75
"""Violations to reach, as a share of those of the best rule."""
MIN_TARGET = 1e-4
"""Lowest target of a violation rate: the evaluator's episodes cannot tell what is rarer."""
NEAR = 0.02
"""A policy whose score is this close to that of the kept one, on the same episodes, is looked at
more closely."""


def train(
    plan: TrainingPlan, config: PhasedConfig, progress: Report = lambda steps, status: None
) -> Path:
    """Train a policy and return the file of the best that was seen.

    The best one so far is always in the policy file, the latest state in the checkpoint, also
    after an interrupt.
    """
    # The networks are too small for more threads to help, and the simulator uses them.
    torch.set_num_threads(1)
    save_settings(config, plan.folder)
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

    def __init__(self, plan: TrainingPlan, config: PhasedConfig, progress: Report) -> None:
        torch.manual_seed(plan.seed)
        scenarios, spec = plan.scenarios, plan.spec
        self.plan, self.config, self._progress = plan, config, progress
        self._every = config.every if plan.control.scales_out else 0
        self._action = StageChoices.of(spec, batches_for(spec))
        self.inputs = Inputs(len(plan.inputs))
        least = [least_cores(scenario) * spec.interval_s for scenario in scenarios]
        prices = [MIN_PRICE] * len(scenarios)
        if plan.randomised:  # other systems are scenarios of their own, which are not evaluated
            least, prices = least + least, prices + [OTHER_PRICE] * len(scenarios)
        self.prices = Prices(np.array(prices), np.array(least))
        self.model = ActorCritic(config.hidden, self._action, len(plan.inputs), len(least))
        count, others = config.evaluation_episodes, config.choice_episodes
        self._evaluate = PolicyEvaluator(scenarios, count)
        self._evaluate_choice = PolicyEvaluator(scenarios, others, SEED_LIMIT + count)
        sums, self._programs = known_rules(
            plan.control.scales_out,
            scenarios,
            count + others,
            lambda: progress(0, "measuring the best rules"),
        )
        self.rule, self._choice_rule = (
            Evaluation.of(sums[:, :count]),
            Evaluation.of(sums[:, count:]),
        )
        # What is rare takes all episodes to count.
        self.target = np.maximum(TARGET_SHARE * Evaluation.of(sums).violation_rate, MIN_TARGET)
        self.steps = self._start = 0
        self._planned = plan.steps
        self.policy_path = plan.folder / POLICY_FILE
        self._demonstrated: Demonstrated | None = None
        self._rates: Any = None
        """(scenarios,) recent violation rates."""
        self._best = self._promising = math.inf
        """Scores of the kept policy, on the episodes of the choice and on the others."""
        self._deployed = InputRange(len(plan.inputs))
        """Of all inputs in training."""
        self._status = ""
        self._began_s = time.monotonic()
        self._writer = SummaryWriter(str(plan.folder))

    def run(self) -> None:
        """Imitate the programs and practise, from where the run is."""
        try:
            if not self.steps:
                self._imitate()
            self._practise()
        except KeyboardInterrupt:
            self._choose(self.export(), math.inf)
            self.save()
            raise
        finally:
            self._writer.close()

    def _imitate(self) -> None:
        plan, config, policy = self.plan, self.config, None
        rounds: list[Demonstrations] = []
        for k in range(config.imitations):
            self._progress(0, f"imitating programs, round {k + 1} of {config.imitations}")
            seed = plan.seed * config.imitations + k
            rounds.append(demonstrations(plan, config, self._every, self._programs, seed, policy))
            self._deployed.widen(rounds[-1].seen)
            self._demonstrated = imitate(self.model, self.inputs, joined(rounds), config)
            policy = self.export()

    def _practise(self) -> None:
        plan, config = self.plan, self.config
        interval = max(1, self._planned // config.evaluations)
        optimizer = torch.optim.Adam(self.model.parameters(), eps=1e-5)
        # A run that is resumed draws other episodes than those it has learned from.
        drawn = plan.seed + self.steps, plan.randomised
        durations_s, evaluated_at = config.durations_s, self.steps
        if not self.steps:
            self._look()
        with closing(
            Episodes(plan.scenarios, plan.envs, durations_s, self._every, *drawn)
        ) as episodes:
            while self.steps < self._planned:
                self._learn(episodes, optimizer)
                self._progress(self.steps - self._start, self._status)
                if self.steps - evaluated_at >= interval or self.steps >= self._planned:
                    evaluated_at = self.steps
                    self._look()

    @property
    def weights(self) -> Weights:
        """Of the parts of the next update."""
        done = self.steps / self._planned
        return Weights(
            actor=done >= VALUES_SHARE,
            entropy=self.config.entropy * (1 - 0.8 * done),
            imitation=KICKSTART * max(0.0, 1 - done / KICKSTART_SHARE),
        )

    def _learn(self, episodes: Episodes, optimizer: torch.optim.Optimizer) -> None:
        """Play a rollout and learn from it."""
        config, left = self.config, 1 - self.steps / self._planned
        for group in optimizer.param_groups:
            group["lr"] = config.learning_rate * max(0.1, left)
        batch = collect(self.model, self.inputs, episodes, self.prices, config)
        self._deployed.widen(episodes.seen)
        losses = update(self.model, optimizer, batch, config, self.weights, self._demonstrated)
        self.steps += len(batch.inputs)
        for key, value in losses.items():
            self._writer.add_scalar(f"train/{key}", value, self.steps)

    def _look(self) -> None:
        """Evaluate the policy, keep it if it is the best, and move the prices."""
        policy = self.export()
        result = self._evaluate(policy)
        if self.weights.actor:
            self.move_prices(result)
        score = score_of(result, self.rule)
        # The best of many looks at the same episodes is partly the luckiest, so others decide.
        if score < self._promising + NEAR:
            self._choose(policy, score)
        self._show(result)
        self.save()

    def _choose(self, policy: Policy, promising: float) -> None:
        """Keep a policy if it is the best so far, on other episodes than those of the prices."""
        result = self._evaluate_choice(policy)
        score = score_of(result, self._choice_rule)
        if score < self._best:
            self._best, self._promising = score, promising
            info = replace(policy.info, score=round(score, 4))
            seen = with_deployments(self.plan.inputs, result.input_range, self._deployed.ends)
            save_policy(replace(policy, info=info, input_range=seen), self.policy_path)
            sides = {"policy": result, "rules": self._choice_rule}
            means = {
                name: {"cores": float(x.cores.mean()), "missed": float(x.violation_rate.mean())}
                for name, x in sides.items()
            }
            write_json(self.plan.folder / EVALUATED_FILE, means)

    def move_prices(self, result: Evaluation) -> None:
        """Let violations cost more where there are too many of them."""
        # So few episodes say little of what is rare; with the ones before they say more.
        before = result.violation_rate if self._rates is None else self._rates
        self._rates = (before + result.violation_rate) / 2
        # The addend keeps the ratio finite where nothing is missed.
        excess = np.log((self._rates + MIN_TARGET / 5) / (self.target + MIN_TARGET / 5))
        prices = self.prices.violation[: len(excess)]
        prices *= np.exp(np.clip(excess / 3, -PRICE_STEP, PRICE_STEP))
        np.clip(prices, MIN_PRICE, MAX_PRICE, out=prices)

    def _show(self, result: Evaluation) -> None:
        add = self._writer.add_scalar
        for k, scenario in enumerate(self.plan.scenarios):
            add(f"cores/{scenario.name}", result.cores[k], self.steps)
            add(f"violations/{scenario.name}", result.violation_rate[k], self.steps)
            add(f"price/{scenario.name}", self.prices.violation[k], self.steps)
            add(f"target/{scenario.name}", self.target[k], self.steps)
        add("evaluation/score", score_of(result, self.rule), self.steps)
        cores, rate = result.cores.mean(), result.violation_rate.mean()
        self._status = f"{rate:.3%} missed, {cores:.2f} cores"

    def export(self) -> Policy:
        """Return the policy as it is now."""
        info = self.plan.info(
            self._action.actions,
            steps=self.steps,
            planned=self._planned,
            seconds=round(time.monotonic() - self._began_s, 1),
            batches=tuple(self._action.sizes.tolist()),
            every=self._every,
        )
        return Policy(info, tuple(self.model.layers(self.inputs)))

    def save(self) -> None:
        """Write where the run is."""
        inputs, demonstrated = vars(self.inputs).items(), self._demonstrated
        state: dict[str, Any] = {
            "model": self.model.state_dict(),
            "inputs": {name: torch.as_tensor(value) for name, value in inputs},
            "prices": torch.from_numpy(self.prices.violation),
            "steps": self.steps,
            "planned": self._planned,
            "rates": None if self._rates is None else torch.from_numpy(self._rates),
            "shown": None,
        }
        if demonstrated is not None and self.weights.imitation:
            state["shown"] = [demonstrated.inputs, *demonstrated.actions]
        torch.save(state, self.plan.folder / CHECKPOINT_FILE)

    def load(self, path: Path) -> None:
        """Go on where another run was."""
        state = _checkpoint(path)
        try:
            self.model.load_state_dict(state["model"])
            vars(self.inputs).update({k: v.numpy() for k, v in state["inputs"].items()})
            self.prices.violation[:] = state["prices"].numpy()
            self.steps = int(state["steps"])
            if state["rates"] is not None:
                self._rates = state["rates"].numpy()
            if state["shown"] is not None:
                inputs, *actions = state["shown"]
                self._demonstrated = Demonstrated(inputs, Actions(*actions))
        except Exception as error:  # whatever a damaged file does
            raise PolicyError(f"{path} cannot be resumed: {error}") from error
        self._start, self._planned = self.steps, self.steps + self.plan.steps
        kept = load_policy(path.with_name(POLICY_FILE))
        if kept.input_range is not None:
            self._deployed.widen(kept.input_range)
        self._choose(kept, score_of(self._evaluate(kept), self.rule))


def _checkpoint(path: Path) -> dict[str, Any]:
    try:
        state: dict[str, Any] = torch.load(path, weights_only=True)
        _ = state["steps"], state["planned"]
    except Exception as error:  # whatever a damaged file does
        raise PolicyError(f"{path} cannot be resumed: {error}") from error
    return state


def score_of(result: Evaluation, rule: Evaluation) -> float:
    """Return one number, better when smaller: cores relative to the best rule's, on average.

    Violations beyond the rule's count like cores: as many more as the tolerance are a tenth.
    """
    over = np.maximum(0, result.violation_rate - rule.violation_rate - TOLERANCE) / TOLERANCE
    return float(np.mean(result.cores / rule.cores + 0.1 * np.minimum(over, 100)))


def with_deployments(
    inputs: Sequence[str], seen: FloatMatrix | None, deployed: FloatMatrix
) -> FloatMatrix | None:
    """Return (2, inputs) ranges, those of :data:`DEPLOYMENT` as far as training went."""
    if seen is None:
        return None
    ranges, own = seen.copy(), [inputs.index(name) for name in DEPLOYMENT]
    ranges[0, own] = np.minimum(seen[0, own], deployed[0, own])
    ranges[1, own] = np.maximum(seen[1, own], deployed[1, own])
    return ranges


def least_cores(scenario: Scenario) -> float:
    """Return the fewest cores that serve a scenario's mean load, at the best use of them."""
    core_s = 0.0
    for stage in spec_of(scenario).stages:
        cores, sizes = np.arange(1, stage.cores_max + 1), np.arange(1, stage.batch_max + 1)
        tables_s = [each.table_s(stage.batch_max, stage.cores_max) for each in stage.latencies]
        core_s += stage.mean_tasks * (np.array(tables_s) * cores / sizes[:, None]).min()
    return float(core_s * rate_rps(scenario, scenario_profile(scenario)))
