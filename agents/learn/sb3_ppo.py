"""Training with PPO of Stable-Baselines3, on the batch simulator or on the real worker.

What it learns is saved as a policy of this project, which needs neither PyTorch nor
Stable-Baselines3 to decide. On the real worker the arrivals pause while the learner computes; see
:class:`~sponge_env.env.single.SpongeEnv`.
"""

from __future__ import annotations

import json
import math
import time
import zipfile
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import configure
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecMonitor
from torch import nn

from sponge_env.env.sb3 import SpongeVecEnv
from sponge_env.env.single import SpongeEnv
from sponge_env.errors import PolicyError, SpongeError
from sponge_env.scenario.seeds import stream
from sponge_env.simulation.encoding import reaching
from sponge_env.utils.files import write_json

from .. import LEARNERS
from ..policy import POLICY_FILE, Policy, load_policy, save_policy
from . import CHECKPOINT_FILE, SETTINGS_FILE, LearnConfig, Report, TrainingPlan
from .episodes import other
from .evaluation import PolicyEvaluator
from .ppo import as_array

ONE_REPLICA_LOGIT = 5.0
"""Of one replica when training begins; 0 for the others. Most numbers are too many for most loads,
and a policy that gives their cores up early never learns what cores are good for."""


def train(
    plan: TrainingPlan, config: LearnConfig, progress: Report = lambda steps, status: None
) -> Path:
    """Train a policy and return the file of the best that was seen.

    The best one so far is always in the policy file, the latest state in the checkpoint, also
    after an interrupt.
    """
    # The networks are too small for more threads to help, and the simulator uses them.
    torch.set_num_threads(1)
    envs = make_environments(plan)
    try:
        model = make_model(plan, config, envs)
        model.set_logger(configure(str(plan.folder), ["tensorboard"]))
        write_json(plan.folder / SETTINGS_FILE, asdict(config))
        keeper = _Keeper(plan, config, progress)
        try:
            model.learn(plan.steps, callback=keeper, reset_num_timesteps=False)
        except (KeyboardInterrupt, SpongeError):
            if hasattr(keeper, "model"):  # there is one to evaluate
                keeper.look()
            raise
    finally:
        envs.close()
    return keeper.policy_path


def make_environments(plan: TrainingPlan) -> VecEnv:
    """Make what a plan trains on, every other one of another system if it is randomised."""
    control = reaching(LEARNERS[plan.agent].control, plan.spec)
    scenarios = [plan.scenarios[k % len(plan.scenarios)] for k in range(plan.envs)]
    if plan.backend == "live":
        make = partial(SpongeEnv, backend="live", limiter=plan.limiter, control=control)
        return VecMonitor(DummyVecEnv([partial(make, each) for each in scenarios]))
    if plan.randomised:
        random = stream(plan.seed, "variants")
        scenarios = [each if k % 2 else other(each, random) for k, each in enumerate(scenarios)]
    return SpongeVecEnv(scenarios, plan.envs, control=control)


def make_model(plan: TrainingPlan, config: LearnConfig, envs: VecEnv) -> PPO:
    """Make the learner, or load the one to go on with."""
    transitions = config.rollout_steps * envs.num_envs
    settings: dict[str, Any] = {
        "learning_rate": lambda left: config.learning_rate * max(0.05, left),
        "n_steps": config.rollout_steps,
        "batch_size": divisor(transitions, config.minibatch),
        "n_epochs": config.epochs,
        "gamma": config.gamma,
        "gae_lambda": config.gae_lambda,
        "ent_coef": config.entropy,
        "device": "cpu",
    }
    if plan.resume is not None:
        try:
            model = PPO.load(plan.resume, env=envs, **settings)
        except Exception as error:  # SB3 unpickles, and a damaged file may fail in any way
            raise PolicyError(f"{plan.resume} cannot be resumed: {error}") from error
        # New episodes, not those of the first run again.
        model.set_random_seed(plan.seed + model.num_timesteps)
        return model
    network = {"net_arch": list(config.hidden)}
    model = PPO("MlpPolicy", envs, policy_kwargs=network, seed=plan.seed, **settings)
    parts = [name for _, name in plan.control.parts]
    edges = np.cumsum([0, *model.action_space.nvec[:-1]]).tolist()  # type: ignore[attr-defined]
    one = [edge for edge, name in zip(edges, parts, strict=True) if name == "replicas"]
    policy: Any = model.policy
    with torch.no_grad():
        policy.action_net.bias[one] = ONE_REPLICA_LOGIT
    return model


def divisor(total: int, largest: int) -> int:
    """Return the largest divisor of ``total`` up to ``largest``."""
    return next(size for size in range(min(total, largest), 0, -1) if total % size == 0)


def steps_left(path: Path) -> int:
    """Return how many steps a checkpoint lacks of those that were planned; 0 if none."""
    try:
        with zipfile.ZipFile(path) as file:
            state = json.loads(file.read("data"))
        return max(0, int(state["_total_timesteps"]) - int(state["num_timesteps"]))
    except (OSError, LookupError, ValueError, TypeError, zipfile.BadZipFile) as error:
        raise PolicyError(f"{path} cannot be resumed: {error}") from error


class _Keeper(BaseCallback):
    """Evaluates now and then, keeps the best policy and the latest checkpoint."""

    def __init__(self, plan: TrainingPlan, config: LearnConfig, progress: Report) -> None:
        super().__init__()
        self.policy_path = plan.folder / POLICY_FILE
        self._plan, self._progress = plan, progress
        self._evaluate = PolicyEvaluator(plan.scenarios, config.evaluation_episodes)
        self._every = max(1, plan.steps // config.evaluations)
        first = plan.scenarios[0]
        self._total_cores = first.limits.machine_cores
        self._weight = first.reward.violation_weight
        self._best, self._status = -math.inf, ""
        self._start = self._evaluated_at = 0
        self._began_s = time.monotonic()

    def _on_training_start(self) -> None:
        self._start = self._evaluated_at = self.model.num_timesteps

    def _on_step(self) -> bool:
        self._progress(self.num_timesteps - self._start, self._status)
        return True

    def _on_rollout_start(self) -> None:
        if self.num_timesteps - self._evaluated_at >= self._every:
            self.look()

    def _on_training_end(self) -> None:
        self.look()
        best = load_policy(self.policy_path)
        save_policy(replace(best, info=replace(best.info, partial=False)), self.policy_path)

    def look(self) -> None:
        """Evaluate, and save what is best and what is latest.

        The score is a mean reward: minus the share of the machine's cores and the violations.
        """
        self._evaluated_at = self.num_timesteps
        policy = self._export()
        result = self._evaluate(policy)
        cores, rate = float(result.cores.mean()), float(result.violation_rate.mean())
        score = -cores / self._total_cores - self._weight * rate
        shown = {"cores": cores, "avoidable_violation_rate": rate, "score": score}
        for name, value in shown.items():
            self.logger.record(f"evaluation/{name}", value)
        self.logger.dump(self.num_timesteps)
        self._status = f"{rate:.2%} missed, {cores:.2f} cores"
        if score > self._best:
            self._best = score
            save_policy(replace(policy, input_range=result.input_range), self.policy_path)
        self.model.save(self._plan.folder / CHECKPOINT_FILE)

    def _export(self) -> Policy:
        """Take the policy network out of the model."""
        policy: Any = self.model.policy
        networks = [*policy.mlp_extractor.policy_net, policy.action_net]
        linear = [layer for layer in networks if isinstance(layer, nn.Linear)]
        info = self._plan.info(
            tuple(int(n) for n in policy.action_space.nvec),
            steps=self.num_timesteps,
            planned=self.model._total_timesteps,
            seconds=round(time.monotonic() - self._began_s, 1),
        )
        layers = [(as_array(layer.weight), as_array(layer.bias)) for layer in linear]
        return Policy(info, tuple(layers))
