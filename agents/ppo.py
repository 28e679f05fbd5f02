"""Training with Stable-Baselines3's PPO. Deciding is in :mod:`agents.policy`."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import configure
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecMonitor
from torch import nn

from agents.judge import Judge
from agents.policy import POLICY_FILE, Policy, PolicyInfo, load_policy, save_policy
from sponge_env.config import Backend, Limiter
from sponge_env.env import SpongeEnv
from sponge_env.errors import PolicyError, SpongeError
from sponge_env.factory import make_spec, scenario_profile
from sponge_env.scenario import Scenario
from sponge_env.vector.sb3_env import SpongeVecEnv


@dataclass(frozen=True, slots=True)
class PPOConfig:
    """Hyper-parameters, for a few hundred simulated environments at once."""

    learning_rate: float = 3e-3
    """At the start; falls linearly to a twentieth."""
    rollout_steps: int = 32
    """Steps of each environment between two updates."""
    minibatch: int = 2048
    """Largest number of transitions in one gradient step."""
    epochs: int = 3
    """Passes over a rollout."""
    gamma: float = 0.9
    """Discount for one interval: what is decided now is over within seconds."""
    gae_lambda: float = 0.9
    entropy: float = 0.002
    """Weight of the entropy bonus."""
    hidden: tuple[int, ...] = (64, 64)
    """Units of the hidden layers."""
    evaluations: int = 10
    """How often the policy is evaluated during training."""
    evaluation_episodes: int = 16
    """Episodes of each evaluation, always the same."""


@dataclass(frozen=True, slots=True)
class TrainingPlan:
    """One training run."""

    scenario: Scenario
    steps: int
    """Environment steps over all environments."""
    envs: int
    seed: int
    folder: Path
    """An existing folder; receives the policy, checkpoint.zip and TensorBoard events."""
    backend: Backend = "sim"
    limiter: Limiter = "auto"
    resume: Path | None = None
    """A checkpoint.zip of an earlier run to go on from."""


def train(
    plan: TrainingPlan,
    config: PPOConfig | None = None,
    progress: Callable[[int, str], None] = lambda steps, status: None,
) -> Path:
    """Train a policy and keep the best that was seen.

    The policy is evaluated now and then on simulated episodes that training never uses;
    the best one so far is always in the policy file, the latest state in
    ``checkpoint.zip``, also after an interrupt.

    On the live backend the arrivals pause while the learner computes; see
    :class:`~sponge_env.env.SpongeEnv`.

    Args:
        plan: What to train on.
        config: Hyper-parameters.
        progress: Called with the number of steps done in this run, and a word about how
            good the policy is.

    Returns:
        The policy file.

    Raises:
        SpongeError: The scenario, checkpoint or machine does not allow it.
    """
    config = config or PPOConfig()
    # The networks are too small for more threads to help, and the simulator wants them.
    torch.set_num_threads(1)
    envs = _environments(plan)
    try:
        model = make_model(plan, config, envs)
        model.set_logger(configure(str(plan.folder), ["tensorboard"]))
        keeper = _Keeper(plan, config, progress)
        try:
            model.learn(plan.steps, callback=keeper, reset_num_timesteps=False)
        except (KeyboardInterrupt, SpongeError):
            keeper.keep()
            raise
    finally:
        envs.close()
    return keeper.policy_path


def check_checkpoint(path: Path, scenario: Scenario) -> None:
    """Check that a checkpoint can be resumed on a scenario.

    Raises:
        PolicyError: It is missing or was trained on another system or layout.
    """
    if not path.is_file():
        raise PolicyError(f"there is no checkpoint {str(path)!r} to resume from")
    info = load_policy(path.with_name(POLICY_FILE)).info
    if info.fingerprint != _fingerprint(scenario):
        raise PolicyError(
            f"the checkpoint was trained on {', '.join(info.scenarios)}, whose profile, interval "
            f"or limits differ from those of {scenario.name!r}; train anew"
        )


def _fingerprint(scenario: Scenario) -> str:
    return make_spec(scenario, scenario_profile(scenario)).fingerprint


def export(model: PPO, plan: TrainingPlan) -> Policy:
    """Take the policy network out of a model."""
    networks = [*model.policy.mlp_extractor.policy_net, model.policy.action_net]
    linear = [layer for layer in networks if isinstance(layer, nn.Linear)]
    limits = plan.scenario.limits
    return Policy(
        PolicyInfo(
            agent="ppo",
            fingerprint=_fingerprint(plan.scenario),
            scenarios=(plan.scenario.name,),
            actions=(limits.cores, limits.batch),
            steps=model.num_timesteps,
            seed=plan.seed,
        ),
        tuple((_numpy(layer.weight), _numpy(layer.bias)) for layer in linear),
    )


def _numpy(tensor: torch.Tensor) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    return tensor.detach().cpu().numpy().astype(np.float32)


def _environments(plan: TrainingPlan) -> VecEnv:
    if plan.backend == "sim":
        envs: VecEnv = SpongeVecEnv(scenario=plan.scenario, num_envs=plan.envs)
    else:
        live = SpongeEnv(plan.scenario, backend="live", limiter=plan.limiter)
        envs = VecMonitor(DummyVecEnv([lambda: live]))
    return envs


def make_model(plan: TrainingPlan, config: PPOConfig, envs: VecEnv) -> PPO:
    """Make the learner, or load the one to go on with.

    Raises:
        PolicyError: The checkpoint to resume cannot be read.
    """
    if plan.resume is None:
        return PPO(
            "MlpPolicy",
            envs,
            learning_rate=lambda left: config.learning_rate * max(0.05, left),
            n_steps=config.rollout_steps,
            batch_size=_divisor(config.rollout_steps * envs.num_envs, config.minibatch),
            n_epochs=config.epochs,
            gamma=config.gamma,
            gae_lambda=config.gae_lambda,
            ent_coef=config.entropy,
            policy_kwargs={"net_arch": list(config.hidden)},
            seed=plan.seed,
            device="cpu",
        )
    try:
        model = PPO.load(plan.resume, env=envs, device="cpu")
    except Exception as error:
        # SB3 unpickles, and a damaged file may fail in any way.
        raise PolicyError(f"{plan.resume} cannot be resumed: {error}") from error
    # New episodes, not those of the first run again.
    model.set_random_seed(plan.seed + model.num_timesteps)
    return model


def _divisor(total: int, largest: int) -> int:
    """Return the largest divisor of ``total`` up to ``largest``."""
    return next(size for size in range(min(total, largest), 0, -1) if total % size == 0)


class _Keeper(BaseCallback):
    """Evaluates now and then, keeps the best policy and the latest checkpoint."""

    def __init__(
        self, plan: TrainingPlan, config: PPOConfig, progress: Callable[[int, str], None]
    ) -> None:
        super().__init__()
        self.policy_path = plan.folder / POLICY_FILE
        self._plan = plan
        self._progress = progress
        self._judge = Judge(plan.scenario, config.evaluation_episodes)
        self._every = max(1, plan.steps // config.evaluations)
        self._best = -math.inf
        self._status = ""
        self._start = self._judged = 0

    def _on_training_start(self) -> None:
        self._start = self._judged = self.model.num_timesteps

    def _on_step(self) -> bool:
        self._progress(self.num_timesteps - self._start, self._status)
        return True

    def _on_rollout_start(self) -> None:
        if self.num_timesteps - self._judged >= self._every:
            self.keep()

    def _on_training_end(self) -> None:
        self.keep()

    def keep(self) -> None:
        """Evaluate, and save what is best and what is latest."""
        self._judged = self.num_timesteps
        policy = export(self.model, self._plan)  # type: ignore[arg-type]  # it is a PPO
        verdict = self._judge(policy)
        for name, value in verdict.items():
            self.logger.record(f"evaluation/{name}", value)
        self._status = f"{verdict['violation_rate']:.2%} missed, {verdict['cores']:.2f} cores"
        if verdict["reward"] > self._best:
            self._best = verdict["reward"]
            save_policy(policy, self.policy_path)
        self.model.save(self._plan.folder / "checkpoint.zip")
