"""Policies that no training made, and the plan of a tiny training."""

import dataclasses

import numpy as np
from scenarios import short

from agents.history import INPUTS
from agents.learn import LearnConfig, TrainingPlan, spec_of
from agents.policy import Policy, PolicyInfo
from agents.stepwise import MAX_REPLICAS, Form, StageChoices
from sponge_env.simulation.encoding import JOINT

SCENARIO = short(duration_s=30.0)
SPEC = spec_of(SCENARIO)
BATCHES = (1, 2, 3, 4, 6, 8, 12, 16)
EVERY = 4
CHOICES = StageChoices.of(SPEC, Form(EVERY, BATCHES))
CONFIG = LearnConfig(
    rollout_steps=4, minibatch=16, epochs=1, hidden=(8, 8), evaluations=2, evaluation_episodes=1,
    imitations=2, demonstrations=1, imitation_epochs=2,
)  # fmt: skip

STEPWISE = PolicyInfo(
    agent="ppo-joint", fingerprint=JOINT.fingerprint(SPEC), scenarios=("short",),
    actions=CHOICES.actions, inputs=INPUTS, steps=1, seed=0, batches=BATCHES, every=EVERY,
    replicas=MAX_REPLICAS,
)  # fmt: skip


def plan(folder, **changes):
    folder.mkdir(exist_ok=True)
    made = TrainingPlan((SCENARIO,), 128, envs=4, seed=0, folder=folder, agent="ppo-joint")
    return dataclasses.replace(made, **changes)


def drawn_policy(info=STEPWISE, seed=7, **changes):
    """Return a policy of large random weights, so that it moves about."""
    random, info = np.random.default_rng(seed), dataclasses.replace(info, **changes)
    shapes = ((8, len(info.inputs)), (8, 8), (sum(info.actions), 8))
    layers = [(random.normal(size=s).astype("f4"), np.zeros(s[0], np.float32)) for s in shapes]
    return Policy(info, tuple(layers))
