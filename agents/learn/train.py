"""Training runs: learn, judge now and then, keep the best."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import configure

from agents.learn.environments import ConstrainedRewards, make_environments
from agents.learn.judge import Verdict, make_judge
from agents.learn.learners import export, make_model
from agents.learn.plan import (
    CHECKPOINT_FILE,
    LearnConfig,
    TrainingPlan,
    learn_config,
    save_settings,
)
from agents.policy import POLICY_FILE, load_policy, save_policy
from sponge_env.errors import PolicyError, SpongeError

Report = Callable[[int, str], None]
"""Called with the number of steps done in this run, and a word about how good the policy is."""

Judged = Callable[[int, Verdict], None]
"""Called with the number of steps done in this run, and how good the policy then is."""


def train(
    plan: TrainingPlan,
    config: LearnConfig | None = None,
    progress: Report = lambda steps, status: None,
    judged: Judged = lambda steps, verdict: None,
) -> Path:
    """Train a policy and keep the best that was seen.

    The policy is evaluated now and then on simulated episodes that training never uses;
    the best one so far is always in the policy file, the latest state in
    ``checkpoint.zip``, also after an interrupt. ``learn.json`` says with which settings.

    On the live backend the arrivals pause while the learner computes; see
    :class:`~sponge_env.env.SpongeEnv`.

    Args:
        plan: What to train on.
        config: Hyper-parameters; the learner's if left out.
        progress: See :data:`Report`.
        judged: See :data:`Judged`; what it raises ends the training.

    Returns:
        The policy file.

    Raises:
        SpongeError: The scenario, checkpoint or machine does not allow it.
    """
    config = config or learn_config(plan.agent, {})
    # The networks are too small for more threads to help, and the simulator wants them.
    torch.set_num_threads(1)
    envs = make_environments(plan, config)
    try:
        model = make_model(plan, config, envs)
        model.set_logger(configure(str(plan.folder), ["tensorboard"]))
        save_settings(config, plan.folder)
        keeper = _Keeper(plan, config, envs, progress, judged)
        try:
            model.learn(plan.steps, callback=keeper, reset_num_timesteps=False)
        except (KeyboardInterrupt, SpongeError):
            keeper.keep()
            raise
    finally:
        envs.close()
    return keeper.policy_path


def check_checkpoint(path: Path, plan: TrainingPlan) -> None:
    """Check that a checkpoint can be resumed.

    Raises:
        PolicyError: It is missing, or of another learner, system or layout.
    """
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


class _Keeper(BaseCallback):
    """Evaluates now and then, keeps the best policy and the latest checkpoint."""

    def __init__(
        self,
        plan: TrainingPlan,
        config: LearnConfig,
        envs: Any,
        progress: Report,
        judged: Judged,
    ) -> None:
        super().__init__()
        self.policy_path = plan.folder / POLICY_FILE
        self._plan, self._config = plan, config
        self._progress, self._report = progress, judged
        self._constrained = envs if isinstance(envs, ConstrainedRewards) else None
        weight = config.violation_weight or plan.scenarios[0].reward.violation_weight
        self._weight = weight if config.violation_target is None else 1 / config.violation_target
        self._judge = make_judge(plan.scenarios, config.evaluation_episodes, plan.agent)
        self._every = max(1, plan.steps // config.evaluations)
        self._best = -math.inf
        self._status = ""
        self._start = self._judged = 0
        self._began_s = time.monotonic()

    def _on_training_start(self) -> None:
        self._start = self._judged = self.model.num_timesteps
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
        if self.num_timesteps - self._judged >= self._every:
            self.keep()

    def _on_training_end(self) -> None:
        self.keep()

    def keep(self) -> None:
        """Evaluate, and save what is best and what is latest."""
        self._judged = self.num_timesteps
        policy = export(self.model, self._plan, self._config, time.monotonic() - self._began_s)
        verdict = self._judge(policy)
        score = verdict.score(self._weight)
        for name, value in {**dataclasses.asdict(verdict), "score": score}.items():
            self.logger.record(f"evaluation/{name}", value)
        self._status = f"{verdict.violation_rate:.2%} missed, {verdict.cores:.2f} cores"
        if score > self._best:
            self._best = score
            save_policy(policy, self.policy_path)
        self.model.save(self._plan.folder / CHECKPOINT_FILE)
        self._report(self.num_timesteps - self._start, verdict)
