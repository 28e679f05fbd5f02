"""Stepwise policies: what they see, how they decide, and how they are trained in phases."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from scenarios import VARIANTS, short

from agents.history import INPUTS, REMEMBERED, Scales, may_step, remember
from agents.learn import TrainingPlan, settings
from agents.learn.actor_critic import ActorCritic, Inputs
from agents.learn.collect import Prices, _compared
from agents.learn.episodes import Episodes, Outcomes
from agents.learn.judge import Judge, Judgement, best_rules
from agents.learn.phased import Training, score_of, steps_left, train
from agents.learn.phases import PHASES, PhasedConfig
from agents.learned import PolicyController, ppo_joint
from agents.policy import POLICY_FILE, Policy, load_policy, save_policy
from agents.stepwise import Progress, decide
from sponge_env.encoding import JOINT
from sponge_env.errors import ConfigError, PolicyError
from sponge_env.factory import make_spec, make_system, scenario_profile
from sponge_env.run.rollout import Run, run_episode
from sponge_env.scenario import Scenario
from sponge_env.seeds import SEED_LIMIT

SCENARIO = short(duration_s=30.0)
SPEC = make_spec(SCENARIO, scenario_profile(SCENARIO))
CONFIG = PhasedConfig(
    rollout_steps=4,
    minibatch=16,
    epochs=1,
    hidden=(8, 8),
    evaluations=2,
    evaluation_episodes=1,
    durations_s=(5.0, 9.0),
    every=4,
)


def plan(folder: Path, *, steps: int = 128, seed: int = 0, resume: Path | None = None) -> TrainingPlan:
    folder.mkdir(exist_ok=True)
    made = TrainingPlan((SCENARIO,), steps, envs=4, seed=seed, folder=folder, agent="ppo-joint")
    return dataclasses.replace(made, resume=resume)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a training that many only read."""
    folder = tmp_path_factory.mktemp("phased") / "trained"
    train(plan(folder), CONFIG)
    return folder


def drawn_policy(seed: int = 0) -> Policy:
    """Return a policy that no training made, of large weights, so that it moves about."""
    torch.manual_seed(seed)
    model = ActorCritic(CONFIG, SPEC.cores_max, SPEC.total_cores, 1)
    with torch.no_grad():
        model.actor[-1].weight.normal_()
        model.actor[-1].bias.normal_()
    return Policy(info(), tuple(model.layers(Inputs())), known=Inputs().known)


def info() -> object:
    from agents.policy import PolicyInfo

    actions = SPEC.cores_max, len(CONFIG.batches), 3
    fingerprint = JOINT.fingerprint(SPEC)
    given = {"batches": CONFIG.batches, "every": CONFIG.every}
    return PolicyInfo("ppo-joint", fingerprint, ("short",), actions, INPUTS, 1, 0, **given)
