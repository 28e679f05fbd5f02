"""Training runs: learn, validate now and then, keep the best policy.

Validation is on simulated episodes that neither training nor evaluation uses.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import configure

from sponge_env.arrays import IntArray
from sponge_env.encoding import control_named
from sponge_env.env import SpongeEnv
from sponge_env.errors import PolicyError, SpongeError
from sponge_env.scenario import Scenario
from sponge_env.seeds import SEED_LIMIT
from sponge_env.simulation.workload import as_long_as_its_traces
from sponge_env.vector.simulator import BatchSimulator

from .. import LEARNERS
from ..learned import masks_for
from ..policy import POLICY_FILE, Policy, load_policy, save_policy
from . import CHECKPOINT_FILE, LearnConfig, TrainingPlan, learn_config, save_settings
from .algorithms import ConstrainedRewards, export, make_model
from .environments import CorrectionEnv, make_environments


@dataclass(frozen=True, slots=True)
class Validation:
    """What a policy costs: means over all intervals."""

    cores: float
    cores_max: int
    """Those of one replica, to which the reward relates."""
    violation_rate: float
    avoidable_violation_rate: float

    def score(self, violation_weight: float) -> float:
        """Return one number, which is better when larger.

        A violated request costs that weight, against 1 for holding all cores for an interval of
        average load.
        """
        return -self.cores / self.cores_max - violation_weight * self.avoidable_violation_rate


Report = Callable[[int, str], None]
"""Called with the number of steps done in this run, and a word about how good the policy is."""

Validated = Callable[[int, Validation], None]
"""Called with the number of steps done in this run, and how good the policy then is."""


def train(
    plan: TrainingPlan,
    config: LearnConfig | None = None,
    progress: Report = lambda steps, status: None,
    validated: Validated = lambda steps, result: None,
) -> Path:
    """Train a policy and return the file of the best that was seen.

    The policy is evaluated now and then on simulated episodes that training never uses;
    the best one so far is always in the policy file, the latest state in
    ``checkpoint.zip``, also after an interrupt. ``learn.json`` says with which settings.

    On the live backend the arrivals pause while the learner computes; see
    :class:`~sponge_env.env.SpongeEnv`.

    Args:
        plan: What to train on.
        config: Hyper-parameters; the learner's if left out.
        progress: See :data:`Report`.
        validated: See :data:`Validated`; what it raises ends the training.
    """
    config = config or learn_config(plan.agent, {})
    # The networks are too small for more threads to help, and the simulator wants them.
    torch.set_num_threads(1)
    envs = make_environments(plan, config)
    try:
        model = make_model(plan, config, envs)
        model.set_logger(configure(str(plan.folder), ["tensorboard"]))
        save_settings(config, plan.folder)
        keeper = _Keeper(plan, config, envs, progress, validated)
        try:
            model.learn(plan.steps, callback=keeper, reset_num_timesteps=False)
        except (KeyboardInterrupt, SpongeError):
            keeper.keep()
            raise
    finally:
        envs.close()
    return keeper.policy_path


def check_checkpoint(path: Path, plan: TrainingPlan) -> None:
    """Refuse a checkpoint that is missing, or of another learner, system or observation."""
    if not path.is_file():
        raise PolicyError(f"there is no checkpoint {str(path)!r} to resume from")
    info = load_policy(path.with_name(POLICY_FILE)).info
    if info.agent != plan.agent:
        raise PolicyError(f"the checkpoint is one of {info.agent}, not of {plan.agent}")
    if info.fingerprint != plan.spec.fingerprint:
        names = ", ".join(scenario.name for scenario in plan.scenarios)
        raise PolicyError(
            f"the checkpoint was trained on {', '.join(info.scenarios)}, whose profile, interval "
            f"or limits differ from those of {names}; train anew"
        )
    if info.inputs != control_named(plan.learner.control).fields:
        raise PolicyError("the checkpoint was trained on other observation fields; train anew")


class _Keeper(BaseCallback):
    """Evaluates now and then, keeps the best policy and the latest checkpoint."""

    def __init__(
        self,
        plan: TrainingPlan,
        config: LearnConfig,
        envs: Any,
        progress: Report,
        validated: Validated,
    ) -> None:
        super().__init__()
        self.policy_path = plan.folder / POLICY_FILE
        self._plan, self._config = plan, config
        self._progress, self._report = progress, validated
        self._constrained = envs if isinstance(envs, ConstrainedRewards) else None
        weight = config.violation_weight or plan.scenarios[0].reward.violation_weight
        self._weight = weight if config.violation_target is None else 1 / config.violation_target
        self._validate = make_validator(plan.scenarios, config.evaluation_episodes, plan.agent)
        self._every = max(1, plan.steps // config.evaluations)
        self._best = -math.inf
        self._status = ""
        self._start = self._validated_at = 0
        self._began_s = time.monotonic()

    def _on_training_start(self) -> None:
        self._start = self._validated_at = self.model.num_timesteps
        self._began_s = time.monotonic()
        if self._plan.learner.corrects and self._plan.resume is None:
            self.keep()  # the program as it is: not to be worse than that

    def _on_step(self) -> bool:
        self._progress(self.num_timesteps - self._start, self._status)
        return True

    def _on_rollout_start(self) -> None:
        if self._constrained is not None:
            self._constrained.adapt()
            self.logger.record("train/violation_weight", self._constrained.multiplier)
        if self.num_timesteps - self._validated_at >= self._every:
            self.keep()

    def _on_training_end(self) -> None:
        self.keep()

    def keep(self) -> None:
        """Evaluate, and save what is best and what is latest."""
        self._validated_at = self.num_timesteps
        policy = export(self.model, self._plan, self._config, time.monotonic() - self._began_s)
        result = self._validate(policy)
        score = result.score(self._weight)
        for name, value in {**dataclasses.asdict(result), "score": score}.items():
            self.logger.record(f"evaluation/{name}", value)
        self._status = f"{result.violation_rate:.2%} missed, {result.cores:.2f} cores"
        if score > self._best:
            self._best = score
            save_policy(policy, self.policy_path)
        self.model.save(self._plan.folder / CHECKPOINT_FILE)
        self._report(self.num_timesteps - self._start, result)


def make_validator(
    scenarios: Sequence[Scenario], episodes: int, agent: str = "ppo"
) -> Callable[[Policy], Validation]:
    """Prepare episodes on which a learner's policies are validated, always the same.

    They are shared out to the scenarios, at least one each.
    """
    seeds = SEED_LIMIT + np.arange(max(episodes, len(scenarios)))
    play = _play_corrections if LEARNERS[agent].corrects else _play_batch
    return partial(_validated, play(scenarios, seeds, agent), scenarios[0].limits.cores)


_METRICS = ("cores", "violations", "avoidable_violations", "offered")

Played = Iterator[tuple[int, Any]]
"""Number of intervals, and their metrics by name: one or an array of each."""


def _validated(play: Callable[[Policy], Played], cores_max: int, policy: Policy) -> Validation:
    sums = np.zeros(1 + len(_METRICS))
    for count, metrics in play(policy):
        sums += (count, *(float(np.sum(metrics[name])) for name in _METRICS))
    intervals, cores, violations, avoidable, offered = sums.tolist()
    offered = max(1.0, offered)
    return Validation(cores / intervals, cores_max, violations / offered, avoidable / offered)


def _play_batch(
    scenarios: Sequence[Scenario], seeds: IntArray, agent: str
) -> Callable[[Policy], Played]:
    """Play all episodes at once, with policies that choose allocations."""
    length = max(as_long_as_its_traces(each).intervals for each in scenarios)
    obs_dim = control_named(LEARNERS[agent].control).obs_dim
    assigned = np.arange(seeds.size) % len(scenarios)
    simulator = BatchSimulator(scenarios, assigned, obs_dim=obs_dim)
    masks = masks_for(agent, simulator.specs[0])

    def play(policy: Policy) -> Played:
        observations = np.zeros((seeds.size, obs_dim), np.float32)
        simulator.reset(np.ones(seeds.size, np.bool_), seeds, observations)
        memory = policy.memory(seeds.size)
        for _ in range(length):
            intervals = int(np.count_nonzero(~simulator.over))
            allowed = masks(observations) if masks is not None else None
            chosen = policy.act(observations, allowed, memory) + 1
            # Where an action does not choose them, there is one replica.
            replicas = np.ones((seeds.size, 3 - chosen.shape[1]), np.int64)
            observations, metrics = simulator.step(np.hstack([chosen, replicas]))
            yield intervals, metrics

    return play


def _play_corrections(
    scenarios: Sequence[Scenario], seeds: IntArray, agent: str
) -> Callable[[Policy], Played]:
    """Play one episode after the other, with policies that correct the look-ahead program."""
    envs = [CorrectionEnv(SpongeEnv(each)) for each in scenarios]

    def play(policy: Policy) -> Played:
        for number, seed in enumerate(seeds.tolist()):
            env, over = envs[number % len(envs)], False
            observation, _ = env.reset(options={"episode_seed": seed})
            while not over:
                observation, _, _, over, _ = env.step(policy.act(observation))
                yield 1, env.metrics

    return play
