from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scenarios import short
from stable_baselines3 import PPO

from agents.policy import load_policy
from agents.ppo import PPOConfig, TrainingPlan, train
from sponge_env.errors import PolicyError

CONFIG = PPOConfig(rollout_steps=16, minibatch=32, epochs=2, hidden=(16, 16))


def plan(folder: Path, **changes: object) -> TrainingPlan:
    scenario = short(duration_s=10.0)
    return TrainingPlan(scenario, steps=64, envs=2, seed=0, folder=folder, **changes)  # type: ignore[arg-type]


def test_the_policy_file_decides_like_the_trained_model(tmp_path: Path) -> None:
    seen: list[int] = []
    policy = load_policy(train(plan(tmp_path), CONFIG, seen.append))
    model = PPO.load(tmp_path / "checkpoint.zip", device="cpu")
    for seed in range(50):
        shape = model.observation_space.shape
        observation = np.random.default_rng(seed).uniform(-1, 1, shape).astype(np.float32)
        expected, _ = model.predict(observation, deterministic=True)
        assert np.array_equal(policy.act(observation), expected)
    assert policy.info.steps == 64
    assert seen[-1] == 64
    assert list(tmp_path.glob("events.out.tfevents.*"))


def test_the_same_seed_trains_the_same_policy(tmp_path: Path) -> None:
    policies = []
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
        policies.append(load_policy(train(plan(tmp_path / name), CONFIG)))
    for (weight, bias), (other_weight, other_bias) in zip(
        policies[0].layers, policies[1].layers, strict=True
    ):
        assert np.array_equal(weight, other_weight)
        assert np.array_equal(bias, other_bias)


def test_training_goes_on_from_a_checkpoint(tmp_path: Path) -> None:
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
    train(plan(tmp_path / "first"), CONFIG)
    checkpoint = tmp_path / "first" / "checkpoint.zip"
    path = train(plan(tmp_path / "second", resume=checkpoint), CONFIG)
    assert load_policy(path).info.steps == 128


@pytest.mark.parametrize("content", [None, b"not a checkpoint"])
def test_bad_checkpoints_are_refused(tmp_path: Path, content: bytes | None) -> None:
    checkpoint = tmp_path / "checkpoint.zip"
    if content is not None:
        checkpoint.write_bytes(content)
    with pytest.raises(PolicyError, match="checkpoint"):
        train(plan(tmp_path, resume=checkpoint), CONFIG)
