"""Training with PPO of Stable-Baselines3."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from scenarios import CHAIN, VARIANTS, short
from stable_baselines3 import PPO
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tiny_policies import SB3_CONFIG, plan

from agents.learn import LearnConfig, TrainingPlan, settings
from agents.learn.command import check_checkpoint
from agents.learn.evaluation import Evaluation
from agents.learn.sb3_ppo import divisor, make_environments, steps_left, train
from agents.learned import PolicyController
from agents.policy import POLICY_FILE, Policy, load_policy
from sponge_env.env.factory import make_system
from sponge_env.env.single import SpongeEnv
from sponge_env.errors import ConfigError, PolicyError
from sponge_env.run.rollout import Run, run_episode
from sponge_env.scenario.config import ControlName
from sponge_env.scenario.scenario import Scenario
from sponge_env.simulation.encoding import reaching

SCENARIO = short(duration_s=10.0)


def sb3(folder: Path, **changes: object) -> TrainingPlan:
    usual = {"agent": "sb3-ppo", "scenarios": (SCENARIO,), "envs": 2, "steps": 64}
    return plan(folder, **{**usual, **changes})


@pytest.fixture(scope="module")
def learned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a training that many only read."""
    folder = tmp_path_factory.mktemp("sb3")
    train(sb3(folder), SB3_CONFIG)
    return folder


def test_the_policy_file_decides_like_the_trained_model(tmp_path: Path) -> None:
    reports: list[tuple[int, str]] = []
    config = dataclasses.replace(SB3_CONFIG, evaluations=1)
    policy = load_policy(train(sb3(tmp_path), config, lambda *each: reports.append(each)))
    model = PPO.load(tmp_path / "checkpoint.zip", device="cpu")
    shape = 50, *(model.observation_space.shape or ())
    observations = np.random.default_rng(0).uniform(-1, 1, shape).astype(np.float32)
    expected, _ = model.predict(observations, deterministic=True)
    assert np.array_equal(policy.act(observations), expected)
    assert (policy.info.steps, policy.info.planned, policy.info.partial) == (64, 64, False)
    assert policy.input_range is not None
    assert [steps for steps, _ in reports] == list(range(2, 65, 2))


def test_the_same_seed_trains_the_same_policy_and_tensorboard_shows_it(
    learned: Path, tmp_path: Path
) -> None:
    one, same, other = (
        load_policy(path).layers[0][0]
        for path in (
            learned / POLICY_FILE,
            train(sb3(tmp_path / "same"), SB3_CONFIG),
            train(sb3(tmp_path / "other", seed=1), SB3_CONFIG),
        )
    )
    assert np.array_equal(one, same)
    assert not np.array_equal(one, other)
    events = EventAccumulator(str(learned)).Reload()
    assert len(events.Scalars("evaluation/score")) > 1
    assert {"evaluation/cores", "evaluation/avoidable_violation_rate"} < set(
        events.Tags()["scalars"]
    )


def test_the_best_policy_is_kept_not_the_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cores, seen = iter([1.0, 9.0]), list[Policy]()

    def evaluate(policy: Policy) -> Evaluation:
        seen.append(policy)
        return Evaluation(np.array([next(cores)]), np.zeros(1), np.zeros((1, 1)))

    monkeypatch.setattr("agents.learn.sb3_ppo.PolicyEvaluator", lambda *_, **__: evaluate)
    kept = load_policy(train(sb3(tmp_path), SB3_CONFIG))
    alike = [np.array_equal(kept.layers[0][0], each.layers[0][0]) for each in seen]
    assert alike == [True, False]


def test_an_interrupted_training_keeps_what_was_learned_and_goes_on(tmp_path: Path) -> None:
    def interrupt(steps: int, status: str) -> None:
        if steps >= 48:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(sb3(tmp_path / "short"), SB3_CONFIG, interrupt)
    info = load_policy(tmp_path / "short" / POLICY_FILE).info
    assert (info.partial, info.planned) == (True, 64)
    checkpoint = tmp_path / "short" / "checkpoint.zip"
    left = steps_left(checkpoint)
    assert left == 64 - PPO.load(checkpoint, device="cpu").num_timesteps > 0
    changed = settings(LearnConfig, {"learning_rate": 1e-4, "epochs": 5}, checkpoint)
    assert changed == dataclasses.replace(SB3_CONFIG, learning_rate=1e-4, epochs=5)
    train(sb3(tmp_path / "more", steps=left, resume=checkpoint), changed)
    more = tmp_path / "more" / "checkpoint.zip"
    assert steps_left(more) == 0
    resumed = PPO.load(more, device="cpu")
    assert (resumed.num_timesteps, resumed.n_epochs, resumed.lr_schedule(1.0)) == (64, 5, 1e-4)
    assert settings(LearnConfig, {}, more) == changed


def test_what_cannot_be_resumed_is_refused(learned: Path, tmp_path: Path) -> None:
    checkpoint = tmp_path / "checkpoint.zip"
    with pytest.raises(ConfigError, match=r"hidden cannot change with --resume.*\(8, 8\)"):
        settings(LearnConfig, {"hidden": "32,32"}, learned / "checkpoint.zip")
    with pytest.raises(PolicyError, match=r"hyper-parameters in .*learn\.json cannot be read"):
        settings(LearnConfig, {}, checkpoint)
    check_checkpoint(learned / "checkpoint.zip", sb3(tmp_path))
    other = short(profile="resnet18")
    with pytest.raises(PolicyError, match="trained on short, whose profile or stages"):
        check_checkpoint(learned / "checkpoint.zip", sb3(tmp_path, scenarios=(other,)))
    checkpoint.write_bytes(b"not a checkpoint")
    with pytest.raises(PolicyError, match="cannot be resumed"):
        train(sb3(tmp_path, resume=checkpoint), SB3_CONFIG)
    with pytest.raises(PolicyError, match=r"checkpoint\.zip cannot be resumed"):
        steps_left(checkpoint)


@pytest.mark.parametrize(("total", "largest", "size"), [(384, 256, 192), (64, 256, 64), (7, 4, 1)])
def test_minibatches_divide_the_rollout(total: int, largest: int, size: int) -> None:
    assert divisor(total, largest) == size


def test_training_on_scenarios_of_two_systems_is_refused(tmp_path: Path) -> None:
    mixed = sb3(tmp_path, scenarios=(SCENARIO, short(profile="resnet18")))
    with pytest.raises(ConfigError, match="cannot be trained on together"):
        train(mixed, SB3_CONFIG)


def test_every_other_environment_of_a_randomised_training_is_of_another_system(
    tmp_path: Path,
) -> None:
    envs = make_environments(sb3(tmp_path, envs=8, randomised=True))
    scenarios = envs.get_attr("scenario")
    assert scenarios[1::2] == [SCENARIO] * 4
    assert len({scenario.slo_s for scenario in scenarios[::2]}) == 4
    envs.close()


def test_the_real_worker_trains_one_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def make(scenario: Scenario, control: ControlName, **live: object) -> SpongeEnv:
        assert live == {"backend": "live", "limiter": "auto"}
        return SpongeEnv(scenario, control=control)  # in place of the real worker

    monkeypatch.setattr("agents.learn.sb3_ppo.SpongeEnv", make)
    made = sb3(tmp_path, agent="ppo-joint", backend="live", envs=1)
    policy = load_policy(train(made, SB3_CONFIG))
    assert policy.info.actions == (16, 16, 16)
    controller = PolicyController("ppo-joint", str(tmp_path), guard=False)
    played = run_episode(make_system(SCENARIO, 0), controller, Run("ppo-joint", "s", "sim", 0))
    assert {interval.replicas for interval in played.intervals} == {1}, "it begins with one"


@pytest.mark.parametrize(
    ("scenario", "actions"), [(VARIANTS, (4, 4, 3)), (CHAIN, (4, 4, 3, 4, 4, 2, 2, 2, 3, 3))]
)
def test_variants_and_pipelines_are_learned_and_followed(
    tmp_path: Path, scenario: Scenario, actions: tuple[int, ...]
) -> None:
    made = sb3(tmp_path, scenarios=(scenario,))
    policy = load_policy(train(made, SB3_CONFIG))
    assert policy.info.actions == actions
    assert policy.info.inputs == made.control.fields
    controller = PolicyController("sb3-ppo", str(tmp_path), guard=False)
    system = make_system(scenario, 0)
    env = SpongeEnv(scenario, control=reaching("vertical", system.spec))
    observation, _ = env.reset(options={"episode_seed": 0})
    controller.reset(system.spec, 0)
    while not system.done:
        observation, reward, *_ = env.step(policy.act(observation))
        assert system.step(controller.decide(system.view())).reward == reward
    first, *others = scenario.stages
    renamed = dataclasses.replace(
        scenario, stages=(dataclasses.replace(first, name="search"), *others)
    )
    with pytest.raises(PolicyError, match=f"was trained on {scenario.name}, whose profile or"):
        controller.reset(make_system(renamed, 0).spec, 0)
