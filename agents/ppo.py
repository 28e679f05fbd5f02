"""Training with Stable-Baselines3's PPO. Deciding is in :mod:`agents.policy`."""

from __future__ import annotations

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

from agents.policy import Policy, PolicyInfo, save_policy
from sponge_env.config import Backend, Limiter, Scenario
from sponge_env.env import SpongeEnv
from sponge_env.errors import PolicyError


@dataclass(frozen=True, slots=True)
class PPOConfig:
    """Hyper-parameters."""

    learning_rate: float = 1e-3
    """At the start; falls linearly to a twentieth."""
    rollout_steps: int = 64
    """Steps of each environment between two updates."""
    minibatch: int = 256
    """Transitions in one gradient step."""
    epochs: int = 6
    """Passes over a rollout."""
    gamma: float = 0.9
    """Discount for one interval: what is decided now is over within seconds."""
    gae_lambda: float = 0.9
    entropy: float = 0.002
    """Weight of the entropy bonus."""
    hidden: tuple[int, ...] = (128, 128)
    """Units of the hidden layers."""


@dataclass(frozen=True, slots=True)
class TrainingPlan:
    """One training run."""

    scenario: Scenario
    steps: int
    """Environment steps over all environments."""
    envs: int
    seed: int
    folder: Path
    """An existing folder; receives policy.npz, checkpoint.zip and TensorBoard events."""
    backend: Backend = "sim"
    limiter: Limiter = "auto"
    resume: Path | None = None
    """A checkpoint.zip of an earlier run to go on from."""


def train(
    plan: TrainingPlan,
    config: PPOConfig | None = None,
    progress: Callable[[int], None] = lambda steps: None,
) -> Path:
    """Train a policy.

    On the live backend the arrivals pause while the learner computes; see
    :class:`~sponge_env.env.SpongeEnv`.

    Args:
        plan: What to train on.
        config: Hyper-parameters.
        progress: Called with the number of steps done.

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
        model = _model(plan, config, envs)
        model.set_logger(configure(str(plan.folder), ["tensorboard"]))
        model.learn(plan.steps, callback=_Progress(progress), reset_num_timesteps=False)
    finally:
        envs.close()
    model.save(plan.folder / "checkpoint.zip")
    path = plan.folder / "policy.npz"
    save_policy(export(model, plan), path)
    return path


def export(model: PPO, plan: TrainingPlan) -> Policy:
    """Take the policy network out of a model."""
    networks = [*model.policy.mlp_extractor.policy_net, model.policy.action_net]
    linear = [layer for layer in networks if isinstance(layer, nn.Linear)]
    limits = plan.scenario.limits
    return Policy(
        PolicyInfo(
            scenario=plan.scenario.name,
            system_hash=plan.scenario.system_hash,
            cores_max=limits.cores,
            batch_max=limits.batch,
            steps=model.num_timesteps,
            seed=plan.seed,
        ),
        tuple((_numpy(layer.weight), _numpy(layer.bias)) for layer in linear),
    )


def _numpy(tensor: torch.Tensor) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    return tensor.detach().cpu().numpy().astype(np.float32)


def _environments(plan: TrainingPlan) -> VecEnv:
    def make() -> SpongeEnv:
        return SpongeEnv(plan.scenario, backend=plan.backend, limiter=plan.limiter)

    envs = VecMonitor(DummyVecEnv([make] * plan.envs))
    envs.seed(plan.seed)
    return envs


def _model(plan: TrainingPlan, config: PPOConfig, envs: VecEnv) -> PPO:
    if plan.resume is not None:
        return _load(plan.resume, envs)
    return PPO(
        "MlpPolicy",
        envs,
        learning_rate=lambda left: config.learning_rate * max(0.05, left),
        n_steps=config.rollout_steps,
        batch_size=min(config.minibatch, config.rollout_steps * plan.envs),
        n_epochs=config.epochs,
        gamma=config.gamma,
        gae_lambda=config.gae_lambda,
        ent_coef=config.entropy,
        policy_kwargs={"net_arch": list(config.hidden)},
        seed=plan.seed,
        device="cpu",
    )


def _load(path: Path, envs: VecEnv) -> PPO:
    try:
        return PPO.load(path, env=envs, device="cpu")
    except FileNotFoundError:
        raise PolicyError(f"there is no checkpoint {str(path)!r} to resume from") from None
    except Exception as error:
        # SB3 unpickles, and a damaged file may fail in any way.
        raise PolicyError(f"{path} is not a checkpoint that can be resumed: {error}") from error


class _Progress(BaseCallback):
    def __init__(self, report: Callable[[int], None]) -> None:
        super().__init__()
        self._report = report

    def _on_step(self) -> bool:
        self._report(self.num_timesteps)
        return True
