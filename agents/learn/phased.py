"""Training in phases: what is learned, judged, kept and resumed.

See :mod:`.phases` for what the phases are and why.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.tensorboard import SummaryWriter

from sponge_env.errors import ConfigError, PolicyError, unknown
from sponge_env.scenario.seeds import SEED_LIMIT
from sponge_env.utils.files import write_json

from ..guard import Range
from ..history import DEPLOYMENT, FloatMatrix
from ..policy import POLICY_FILE, Policy, PolicyInfo, load_policy, save_policy
from ..stepwise import StageChoices
from . import CHECKPOINT_FILE, JUDGED_FILE, Report, TrainingPlan, save_settings
from .actor_critic import Actions, ActorCritic, Inputs, Shown, Weights, update
from .collect import Prices, collect
from .episodes import Episodes
from .imitation import Demonstrations, demonstrations, imitate, joined
from .judge import TOLERANCE, Judge, Judgement, judgement, known_rules
from .phases import PhasedConfig
from .systems import least_cores

FEWEST = 1e-4
"""Lowest target of a violation rate: what is rarer than that, the judge's episodes cannot tell."""
PRICE_STEP = 0.15
"""Largest change of the logarithm of a price at once."""
NEAR = 0.02
"""A policy whose score is this close to that of the kept one, on the same episodes, is looked at
more closely."""


def train(
    plan: TrainingPlan,
    config: PhasedConfig,
    progress: Report = lambda steps, status: None,
    judged: Callable[[int, Policy], None] = lambda steps, policy: None,
) -> Path:
    """Train a policy and return the file of the best that was seen.

    ``judged`` is called with the steps done and the policy then, whenever it was judged.

    The best one so far is always in the policy file, the latest state in the checkpoint, also
    after an interrupt.
    """
    # The networks are too small for more threads to help, and the simulator wants them.
    torch.set_num_threads(1)
    save_settings(config, plan.folder)
    run = Training(plan, config, progress, judged)
    if plan.resume is not None:
        run.load(plan.resume)
    run.run()
    best = load_policy(run.policy_path)
    whole = dataclasses.replace(best.info, partial=False)
    save_policy(dataclasses.replace(best, info=whole), run.policy_path)
    return run.policy_path


def steps_left(path: Path) -> int:
    """Return how many steps a checkpoint lacks of those that were planned; 0 if none."""
    state = _checkpoint(path)
    return max(0, int(state["planned"]) - int(state["steps"]))


class Training:
    """A run, and where it is."""

    def __init__(
        self,
        plan: TrainingPlan,
        config: PhasedConfig,
        progress: Report,
        judged: Callable[[int, Policy], None] = lambda steps, policy: None,
    ) -> None:
        torch.manual_seed(plan.seed)
        scenarios, spec = plan.scenarios, plan.spec
        largest = max(stage.batch_max for stage in spec.stages)
        sizes = tuple(size for size in config.batches if size <= largest)
        every = config.every if plan.control.scales_out else 0
        self.config, self._every = dataclasses.replace(config, batches=sizes), every
        self.plan, self._progress, self._judged = plan, progress, judged
        self._inputs, self._action = plan.inputs, StageChoices.of(spec, sizes)
        self.inputs = Inputs(len(self._inputs), blinded(self._inputs, config.blind_to))
        least = [least_cores(scenario) * spec.interval_s for scenario in scenarios]
        prices = [config.price] * len(scenarios)
        if plan.randomised:  # other systems are scenarios of their own, which nobody judges
            least, prices = least + least, prices + [config.other_price] * len(scenarios)
        self.prices = Prices(np.array(prices), np.array(least))
        self.model = ActorCritic(self.config, self._action, len(self._inputs), len(least))
        count, others = config.evaluation_episodes, config.choice_episodes
        self.judge = Judge(scenarios, count)
        self._second_judge = Judge(scenarios, others, SEED_LIMIT + count)
        rules, self._programs = known_rules(
            plan.control.scales_out,
            scenarios,
            count + others,
            lambda: progress(0, "measuring the best rules"),
        )
        self.rule, self._second_rule = judgement(rules[:, :count]), judgement(rules[:, count:])
        # What is rare takes all episodes to count.
        rare = judgement(rules).violation_rate
        self.target = np.maximum(config.target_share * rare, FEWEST)
        self.steps = self._start = 0
        self._planned = plan.steps
        self.policy_path = plan.folder / POLICY_FILE
        self._shown: Shown | None = None
        self._rates: Any = None
        self._best = self._promising = math.inf
        """Scores of the policy that is kept, on the episodes of the choice and on the judge's."""
        self._deployed = Range(len(self._inputs))
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
        shown: list[Demonstrations] = []
        for k in range(config.imitations):
            self._progress(0, f"imitating programs, round {k + 1} of {config.imitations}")
            seed = plan.seed * config.imitations + k
            asked = self._every, self._programs, seed, policy
            shown.append(demonstrations(plan, config, *asked))
            self._deployed.widen(shown[-1].seen)
            self._shown = imitate(self.model, self.inputs, joined(shown), config)
            policy = self.export()

    def _practise(self) -> None:
        plan, config = self.plan, self.config
        interval = max(1, self._planned // config.evaluations)
        optimizer = torch.optim.Adam(self.model.parameters(), eps=1e-5)
        # Who resumes draws other episodes than those it has learned from.
        drawn = plan.seed + self.steps, plan.randomised
        judged_at = self.steps
        if not self.steps:
            self._judge()
        with closing(Episodes(plan.scenarios, plan.envs, config, self._every, *drawn)) as episodes:
            while self.steps < self._planned:
                self._learn(episodes, optimizer)
                self._progress(self.steps - self._start, self._status)
                if self.steps - judged_at >= interval or self.steps >= self._planned:
                    judged_at = self.steps
                    self._judge()

    @property
    def weights(self) -> Weights:
        """Of what the next update learns from."""
        config, done = self.config, self.steps / self._planned
        return Weights(
            actor=done >= config.values_share,
            entropy=config.entropy * (1 - 0.8 * done),
            shown=config.kickstart * max(0.0, 1 - done / config.kickstart_share),
        )

    def _learn(self, episodes: Episodes, optimizer: torch.optim.Optimizer) -> None:
        """Play a rollout and learn from it."""
        config, left = self.config, 1 - self.steps / self._planned
        for group in optimizer.param_groups:
            group["lr"] = config.learning_rate * max(0.1, left)
        batch = collect(self.model, self.inputs, episodes, self.prices, config)
        self._deployed.widen(episodes.seen)
        losses = update(self.model, optimizer, batch, config, self.weights, self._shown)
        self.steps += len(batch.shown)
        for key, value in losses.items():
            self._writer.add_scalar(f"train/{key}", value, self.steps)

    def _judge(self) -> None:
        """Judge the policy, keep it if it is the best, and move the prices."""
        policy = self.export()
        result = self.judge(policy)
        if self.weights.actor:
            self._move_prices(result)
        score = score_of(result, self.rule)
        # The best of many looks at the same episodes is in part the luckiest, so others decide.
        if score < self._promising + NEAR:
            self._choose(policy, score)
        self._show(result)
        self._judged(self.steps, policy)
        self.save()

    def _choose(self, policy: Policy, promising: float) -> None:
        """Keep a policy if it is the best so far, on other episodes than those of the prices."""
        result = self._second_judge(policy)
        score = score_of(result, self._second_rule)
        if score < self._best:
            self._best, self._promising = score, promising
            info = dataclasses.replace(policy.info, score=round(score, 4))
            seen = with_deployments(self._inputs, result.input_range, self._deployed.ends)
            kept = dataclasses.replace(policy, info=info, input_range=seen)
            save_policy(kept, self.policy_path)
            sides = {"policy": result, "rules": self._second_rule}
            reached = {name: _in_the_mean(found) for name, found in sides.items()}
            write_json(self.plan.folder / JUDGED_FILE, reached)

    def _move_prices(self, result: Judgement) -> None:
        """Let violations cost more where there are too many of them."""
        # So few episodes say little of what is rare; with the ones before they say more.
        before = result.violation_rate if self._rates is None else self._rates
        self._rates = (before + result.violation_rate) / 2
        # The addend keeps the ratio finite where nothing is missed.
        excess = np.log((self._rates + FEWEST / 5) / (self.target + FEWEST / 5))
        prices = self.prices.violation[: len(excess)]
        prices *= np.exp(np.clip(excess / 3, -PRICE_STEP, PRICE_STEP))
        np.clip(prices, self.config.price, self.config.price_most, out=prices)

    def _show(self, result: Judgement) -> None:
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
        plan, config = self.plan, self.config
        layers = self.model.layers(self.inputs)
        info = PolicyInfo(
            agent=plan.agent,
            fingerprint=plan.fingerprint,
            scenarios=tuple(dict.fromkeys(scenario.name for scenario in plan.scenarios)),
            actions=self._action.actions,
            inputs=self._inputs,
            steps=self.steps,
            seed=plan.seed,
            planned=self._planned,
            partial=True,
            command=plan.command,
            seconds=round(time.monotonic() - self._began_s, 1),
            batches=config.batches,
            every=self._every,
        )
        return Policy(info, tuple(layers))

    def save(self) -> None:
        """Write where the run is."""
        inputs = self.inputs
        state: dict[str, Any] = {
            "model": self.model.state_dict(),
            "inputs": {name: torch.as_tensor(value) for name, value in vars(inputs).items()},
            "prices": torch.from_numpy(self.prices.violation),
            "steps": self.steps,
            "planned": self._planned,
            "rates": None if self._rates is None else torch.from_numpy(self._rates),
            "shown": None,
        }
        if self._shown is not None and self.weights.shown:
            state["shown"] = [self._shown.seen, *self._shown.actions]
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
                seen, *actions = state["shown"]
                self._shown = Shown(seen, Actions(*actions))
        except Exception as error:  # whatever a damaged file does
            raise PolicyError(f"{path} cannot be resumed: {error}") from error
        self._start, self._planned = self.steps, self.steps + self.plan.steps
        kept = load_policy(path.with_name(POLICY_FILE))
        if kept.input_range is not None:
            self._deployed.widen(kept.input_range)
        self._choose(kept, score_of(self.judge(kept), self.rule))


def _checkpoint(path: Path) -> dict[str, Any]:
    try:
        state: dict[str, Any] = torch.load(path, weights_only=True)
        _ = state["steps"], state["planned"]
    except Exception as error:  # whatever a damaged file does
        raise PolicyError(f"{path} cannot be resumed: {error}") from error
    return state


def _in_the_mean(found: Judgement) -> dict[str, float]:
    """Return the means over the scenarios, under the names that a training shows."""
    return {"cores": float(found.cores.mean()), "missed": float(found.violation_rate.mean())}


def score_of(result: Judgement, rule: Judgement) -> float:
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


def blinded(inputs: Sequence[str], blind_to: tuple[str, ...]) -> list[int]:
    """Return the places of the inputs whose names begin with one of some words.

    In a pipeline a name begins with that of its stage, which does not count.
    """
    names = [name.rpartition(".")[2] for name in inputs]
    for word in blind_to:
        if not any(name.startswith(word) for name in names):
            raise ConfigError(unknown("input", word, tuple(dict.fromkeys(names))))
    return [k for k, name in enumerate(names) if name.startswith(blind_to)] if blind_to else []
