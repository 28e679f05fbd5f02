from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from scenarios import short
from stable_baselines3 import PPO

from agents import ppo
from agents.judge import Judge
from agents.policy import POLICY_FILE, Policy, load_policy
from agents.ppo import PPOConfig, TrainingPlan, check_checkpoint, train
from sponge_env.env import SpongeEnv
from sponge_env.errors import PolicyError

SCENARIO = short(duration_s=10.0)
CONFIG = PPOConfig(
    rollout_steps=16, minibatch=32, epochs=2, hidden=(16, 16), evaluations=2, evaluation_episodes=2
)


def plan(folder: Path, **changes: object) -> TrainingPlan:
    folder.mkdir(exist_ok=True)
    made = TrainingPlan(SCENARIO, steps=64, envs=2, seed=0, folder=folder)
    return dataclasses.replace(made, **changes)  # type: ignore[arg-type]


def same(one: Policy, other: Policy) -> bool:
    pairs = zip(one.layers, other.layers, strict=True)
    return all(np.array_equal(a, b) for x, y in pairs for a, b in zip(x, y, strict=True))


def test_the_policy_file_decides_like_the_trained_model(tmp_path: Path) -> None:
    config = dataclasses.replace(CONFIG, evaluations=1)
    policy = load_policy(train(plan(tmp_path), config))
    model = PPO.load(tmp_path / "checkpoint.zip", device="cpu")
    for seed in range(50):
        shape = model.observation_space.shape
        observation = np.random.default_rng(seed).uniform(-1, 1, shape).astype(np.float32)
        expected, _ = model.predict(observation, deterministic=True)
        assert np.array_equal(policy.act(observation), expected)
    assert policy.info.steps == 64
    assert list(tmp_path.glob("events.out.tfevents.*"))


def test_progress_counts_the_steps_of_this_run(tmp_path: Path) -> None:
    seen: list[tuple[int, str]] = []
    train(plan(tmp_path), CONFIG, lambda *shown: seen.append(shown))
    assert [steps for steps, _ in seen] == list(range(2, 65, 2))
    assert "cores" in seen[-1][1]


def test_the_same_seed_trains_the_same_policy(tmp_path: Path) -> None:
    one, same_seed, other_seed = (
        load_policy(train(plan(tmp_path / name, seed=seed), CONFIG))
        for name, seed in (("one", 0), ("same", 0), ("other", 1))
    )
    assert same(one, same_seed)
    assert not same(one, other_seed)


def test_the_best_policy_is_kept_not_the_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rewards = iter([-1.0, -9.0])
    judged: list[Policy] = []

    class Scripted:
        def __init__(self, *_: object) -> None: ...

        def __call__(self, policy: Policy) -> dict[str, float]:
            judged.append(policy)
            return {"reward": next(rewards), "cores": 1.0, "violation_rate": 0.0}

    monkeypatch.setattr(ppo, "Judge", Scripted)
    kept = load_policy(train(plan(tmp_path), CONFIG))
    assert same(kept, judged[0])
    assert not same(kept, judged[1])


def test_an_interrupt_keeps_what_was_learned(tmp_path: Path) -> None:
    def interrupt(steps: int, status: str) -> None:
        if steps >= 48:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(plan(tmp_path), CONFIG, interrupt)
    assert load_policy(tmp_path / POLICY_FILE).info.steps > 0
    assert PPO.load(tmp_path / "checkpoint.zip", device="cpu").num_timesteps == 48


def test_training_goes_on_from_a_checkpoint(tmp_path: Path) -> None:
    train(plan(tmp_path / "first"), CONFIG)
    checkpoint = tmp_path / "first" / "checkpoint.zip"
    check_checkpoint(checkpoint, SCENARIO)
    seen: list[int] = []
    changed = plan(tmp_path / "second", resume=checkpoint)
    train(changed, CONFIG, lambda steps, status: seen.append(steps))
    assert seen[-1] == 64
    resumed = PPO.load(tmp_path / "second" / "checkpoint.zip", device="cpu")
    assert resumed.num_timesteps == 128


def test_a_checkpoint_of_another_system_is_refused(tmp_path: Path) -> None:
    train(plan(tmp_path), CONFIG)
    with pytest.raises(PolicyError, match="train anew"):
        check_checkpoint(tmp_path / "checkpoint.zip", short(profile="resnet18"))


def test_a_damaged_checkpoint_is_refused(tmp_path: Path) -> None:
    checkpoint = tmp_path / "checkpoint.zip"
    with pytest.raises(PolicyError, match="there is no checkpoint"):
        check_checkpoint(checkpoint, SCENARIO)
    checkpoint.write_bytes(b"not a checkpoint")
    with pytest.raises(PolicyError, match="cannot be resumed"):
        train(plan(tmp_path, resume=checkpoint), CONFIG)


@pytest.mark.parametrize(("total", "largest", "size"), [(384, 256, 192), (64, 256, 64), (7, 4, 1)])
def test_minibatches_divide_the_rollout(total: int, largest: int, size: int) -> None:
    assert ppo._divisor(total, largest) == size


def test_the_judge_scores_what_the_environment_gives(tmp_path: Path) -> None:
    policy = load_policy(train(plan(tmp_path), CONFIG))
    verdict = Judge(SCENARIO, episodes=1)(policy)
    env = SpongeEnv(SCENARIO)
    observation, _ = env.reset(options={"episode_seed": 2**31})
    rewards = []
    for _ in range(SCENARIO.windows):
        observation, reward, *_ = env.step(policy.act(observation))
        rewards.append(reward)
    assert verdict["reward"] == pytest.approx(np.mean(rewards))
