from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from scenarios import short
from stable_baselines3 import PPO

import evaluate
from agents.learn import LearnConfig, TrainingPlan
from agents.learn.environments import CorrectionEnv, make_environments
from agents.learn.training import make_validator, train
from agents.learned import CHOICES, CorrectedMPC, ResidualController, corrected, preset
from agents.lookahead import SpongeMPC
from agents.lookahead.options import MPCConfig
from agents.policy import POLICY_FILE, Policy, PolicyInfo, load_policy, save_policy
from sponge_env.env.factory import make_spec, scenario_profile
from sponge_env.env.single import SpongeEnv
from sponge_env.errors import ConfigError, PolicyError
from sponge_env.interfaces import Allocation, Controller, SystemSpec, SystemView
from sponge_env.run.rollout import Episode, Run, run_episode
from sponge_env.simulation.encoding import FIELDS, OBS_DIM
from sponge_env.simulation.system import SimulatedSystem
from train import main

SCENARIO = short(duration_s=12.0)
SPEC = make_spec(SCENARIO, scenario_profile(SCENARIO))
CONFIG = LearnConfig(
    rollout_steps=8, minibatch=16, epochs=1, hidden=(8,), evaluations=1, evaluation_episodes=2
)
PRESET = np.array(preset(MPCConfig()))


def plan(folder: Path, **changes: object) -> TrainingPlan:
    made = TrainingPlan((SCENARIO,), 32, envs=2, seed=0, folder=folder, agent="residual-ppo")
    return dataclasses.replace(made, **changes)  # type: ignore[arg-type]


def always(action: np.ndarray) -> Policy:
    """Return a policy that sees nothing and always takes the same action."""
    info = PolicyInfo(
        "residual-ppo", SPEC.fingerprint, ("short",), CHOICES, FIELDS, steps=1, seed=0
    )
    bias = np.zeros(sum(CHOICES), np.float32)
    bias[np.cumsum([0, *CHOICES[:-1]]) + action] = 1.0
    return Policy(info, ((np.zeros((bias.size, OBS_DIM), np.float32), bias),))


class Correcting:
    """The program under a given sequence of actions."""

    def __init__(self, actions: np.ndarray) -> None:
        self.program, self._actions = CorrectedMPC(), actions

    def reset(self, spec: SystemSpec, seed: int) -> None:
        self.program.reset(spec, seed)
        self._left = iter(self._actions)

    def decide(self, view: SystemView) -> Allocation:
        self.program.correct(next(self._left))
        return self.program.decide(view)


def played(controller: Controller, seed: int = 0) -> Episode:
    system = SimulatedSystem(SCENARIO, seed)
    return run_episode(system, controller, Run.of("agent", SCENARIO, "sim", seed))


def allocations(episode: Episode) -> list[tuple[float, int]]:
    return [(interval.cores, interval.batch) for interval in episode.intervals]


def test_the_preset_action_corrects_nothing() -> None:
    assert corrected(MPCConfig(), PRESET) == MPCConfig()
    actions = np.tile(PRESET, (SCENARIO.intervals, 1))
    assert allocations(played(Correcting(actions))) == allocations(played(SpongeMPC()))


def test_every_action_is_a_setting_of_its_own() -> None:
    actions = np.array(list(np.ndindex(CHOICES)))
    assert len({corrected(MPCConfig(), action) for action in actions}) == len(actions)


def test_corrections_hold_for_one_decision_and_leave_no_trace() -> None:
    rng = np.random.default_rng(0)
    wild = rng.integers(CHOICES, size=(SCENARIO.intervals, len(CHOICES)))
    controller = Correcting(wild)
    changed = allocations(played(controller))
    assert changed != allocations(played(SpongeMPC()))
    assert changed == allocations(played(controller))
    last = corrected(MPCConfig(), wild[-1])
    assert controller.program.config == last
    controller.program.correct(PRESET)
    assert controller.program.config == MPCConfig()


def test_more_margin_takes_more_cores(tmp_path: Path) -> None:
    cores = []
    for margin in (0, CHOICES[0] - 1):
        save_policy(always(np.array([margin, *PRESET[1:]])), tmp_path / POLICY_FILE)
        controller = ResidualController(str(tmp_path))
        cores.append(sum(played(controller, seed).summary.mean_cores for seed in range(4)))
    assert cores[0] < cores[1]


def test_the_environment_plays_the_episodes_of_the_controller(tmp_path: Path) -> None:
    action = np.array([0, 2, 1])
    save_policy(always(action), tmp_path / POLICY_FILE)
    expected = played(ResidualController(str(tmp_path)), seed=1234).intervals
    env = CorrectionEnv(SpongeEnv(SCENARIO))
    observation, info = env.reset(options={"episode_seed": 1234})
    assert info["episode_seed"] == 1234
    for number, interval in enumerate(expected, start=1):
        observation, reward, ended, over, _ = env.step(action)
        assert (reward, ended, over) == (interval.reward, False, number == len(expected))
        assert observation in env.observation_space
        assert env.metrics["cores"] == interval.cores


def test_validation_plays_what_the_controller_decides(tmp_path: Path) -> None:
    action = np.array([3, 0, 2])
    save_policy(always(action), tmp_path / POLICY_FILE)
    result = make_validator([SCENARIO], 1, "residual-ppo")(always(action))
    intervals = played(ResidualController(str(tmp_path)), seed=2**31).intervals
    assert result.cores == pytest.approx(np.mean([interval.cores for interval in intervals]))
    offered = sum(interval.offered for interval in intervals)
    assert result.violation_rate == sum(interval.violations for interval in intervals) / offered


def test_the_program_as_it_is_is_validated_before_training(tmp_path: Path) -> None:
    seen: list[int] = []
    path = train(plan(tmp_path), CONFIG, validated=lambda steps, result: seen.append(steps))
    assert seen == [0, 32]
    assert load_policy(path).info.actions == CHOICES
    assert PPO.load(tmp_path / "checkpoint.zip", device="cpu").num_timesteps == 32


def test_a_new_policy_leaves_the_program_as_it_is(tmp_path: Path) -> None:
    kept: list[Policy] = []

    def interrupt(steps: int, status: str) -> None:
        kept.append(load_policy(tmp_path / POLICY_FILE))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(plan(tmp_path), CONFIG, interrupt)
    observations = np.random.default_rng(0).uniform(-1, 2, (50, OBS_DIM)).astype(np.float32)
    assert (kept[0].act(observations) == PRESET).all()


def test_a_trained_policy_goes_on_learning_and_controls(tmp_path: Path) -> None:
    train(plan(tmp_path), CONFIG)
    (tmp_path / "more").mkdir()
    checkpoint = tmp_path / "checkpoint.zip"
    train(plan(tmp_path / "more", resume=checkpoint), CONFIG)
    assert PPO.load(tmp_path / "more" / "checkpoint.zip", device="cpu").num_timesteps == 64
    controller = ResidualController(str(tmp_path / "more"))
    assert played(controller).summary.offered > 0
    assert "trained for" in controller.description


def test_a_policy_with_other_corrections_is_refused(tmp_path: Path) -> None:
    policy = always(PRESET)
    info = dataclasses.replace(policy.info, actions=(2, sum(CHOICES) - 2))
    save_policy(dataclasses.replace(policy, info=info), tmp_path / POLICY_FILE)
    with pytest.raises(PolicyError, match="makes other corrections"):
        ResidualController(str(tmp_path)).reset(SPEC, 0)


def test_a_learned_weight_is_refused(tmp_path: Path) -> None:
    config = dataclasses.replace(CONFIG, violation_target=0.01)
    with pytest.raises(ConfigError, match="violation_target is for learners that choose"):
        make_environments(plan(tmp_path), config)


def test_the_scripts_train_resume_and_follow_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("tiny.toml").write_text("profile = 'yolov5s'\nduration_s = 6.0\n")
    argv = "--agent residual-ppo --scenario tiny.toml --steps 16 --envs 2 --option rollout_steps=4"
    small = "--option evaluations=1 --option evaluation_episodes=1 --option hidden=8,8"
    assert main([*argv.split(), *small.split(), "--run-dir", "runs/one"]) == 0
    more = ["--resume", "runs/one", "--run-dir", "runs/two", "--option", "gamma=0.5"]
    assert main([*argv.split(), *more]) == 0
    settings = json.loads(Path("runs/two/learn.json").read_text())
    assert (settings["gamma"], settings["hidden"]) == (0.5, [8, 8])
    assert load_policy(Path("runs/two/policy.safetensors")).info.steps == 32
    refused = ["--resume", "runs/one", "--option", "hidden=16", "--run-dir", "runs/three"]
    assert main([*argv.split(), *refused]) == 2
    capsys.readouterr()
    followed = "--agent residual-ppo sponge-mpc --scenario tiny.toml --run-dir run"
    assert evaluate.main(followed.split()) == 0
    assert "agent residual-ppo follows runs/two/policy" in capsys.readouterr().out
    assert evaluate.main([*followed.split()[:-1], "run2", "--policy", "runs/one"]) == 0
