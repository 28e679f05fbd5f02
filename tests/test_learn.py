from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from sb3_contrib import MaskablePPO, RecurrentPPO
from scenarios import CHAIN, VARIANTS, short
from stable_baselines3 import PPO
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from agents import LEARNERS
from agents.learn import LearnConfig, TrainingPlan, learn_config, training
from agents.learn.environments import ConstrainedRewards, make_environments, variant
from agents.learn.training import (
    Validation,
    check_checkpoint,
    make_validator,
    steps_left,
    train,
)
from agents.learned import PolicyController, control_of, ppo_joint
from agents.policy import POLICY_FILE, Policy, load_policy
from sponge_env.env.factory import make_system
from sponge_env.env.single import SpongeEnv
from sponge_env.errors import ConfigError, PolicyError
from sponge_env.run.rollout import Run, run_episode
from sponge_env.scenario.scenario import Scenario
from sponge_env.simulation.encoding import FIELDS, OBS_DIM, ActionMasks, reaching

SCENARIO = short(duration_s=10.0)
CONFIG = LearnConfig(
    rollout_steps=16, minibatch=32, epochs=2, hidden=(16, 16), evaluations=2, evaluation_episodes=2
)


def plan(folder: Path, **changes: object) -> TrainingPlan:
    folder.mkdir(exist_ok=True)
    made = TrainingPlan((SCENARIO,), steps=64, envs=2, seed=0, folder=folder, agent="sb3-ppo")
    return dataclasses.replace(made, **changes)  # type: ignore[arg-type]


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a training that many only read."""
    folder = tmp_path_factory.mktemp("learn") / "trained"
    train(plan(folder), CONFIG)
    return folder


def same(one: Policy, other: Policy) -> bool:
    pairs = zip(one.layers, other.layers, strict=True)
    return all(np.array_equal(a, b) for x, y in pairs for a, b in zip(x, y, strict=True))


def decisions(policy: Policy, observation: np.ndarray) -> np.ndarray:
    """Return the first hidden layer, which tells more than the few actions that follow."""
    if policy.recurrence is not None:
        memory = policy.memory()
        assert memory is not None
        return policy.recurrence(observation, memory)
    weight, bias = policy.layers[0]
    return observation @ weight.T + bias


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


def test_the_same_seed_trains_the_same_policy(trained: Path, tmp_path: Path) -> None:
    one = load_policy(trained / POLICY_FILE)
    same_seed, other_seed = (
        load_policy(train(plan(tmp_path / name, seed=seed), CONFIG))
        for name, seed in (("same", 0), ("other", 1))
    )
    assert same(one, same_seed)
    assert not same(one, other_seed)


def test_the_best_policy_is_kept_not_the_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cores = iter([1.0, 9.0])
    validated: list[Policy] = []

    def scripted(policy: Policy) -> Validation:
        validated.append(policy)
        return Validation(next(cores), 16, 0.0, 0.0)

    monkeypatch.setattr(training, "make_validator", lambda *_: scripted)
    kept = load_policy(train(plan(tmp_path), CONFIG))
    assert same(kept, validated[0])
    assert not same(kept, validated[1])


def test_a_policy_says_whether_its_training_came_to_an_end(tmp_path: Path, trained: Path) -> None:
    def interrupt(steps: int, status: str) -> None:
        if steps >= 48:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(plan(tmp_path / "short"), CONFIG, interrupt)
    whole, short = (load_policy(f / POLICY_FILE).info for f in (trained, tmp_path / "short"))
    assert (whole.partial, whole.planned) == (False, 64)
    assert (short.partial, short.planned) == (True, 64)
    checkpoint = tmp_path / "short" / "checkpoint.zip"
    left = steps_left(checkpoint)
    assert left == 64 - PPO.load(checkpoint, device="cpu").num_timesteps > 0
    more = plan(tmp_path / "more", steps=left, resume=checkpoint)
    assert load_policy(train(more, CONFIG)).info.planned == 64
    assert steps_left(tmp_path / "more" / "checkpoint.zip") == 0
    (tmp_path / "bad.zip").write_text("nothing")
    with pytest.raises(PolicyError, match=r"bad\.zip cannot be resumed"):
        steps_left(tmp_path / "bad.zip")


def test_an_interrupt_keeps_what_was_learned(tmp_path: Path) -> None:
    def interrupt(steps: int, status: str) -> None:
        if steps >= 48:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(plan(tmp_path), CONFIG, interrupt)
    assert load_policy(tmp_path / POLICY_FILE).info.steps > 0
    assert PPO.load(tmp_path / "checkpoint.zip", device="cpu").num_timesteps == 48


def test_training_goes_on_from_a_checkpoint(trained: Path, tmp_path: Path) -> None:
    checkpoint = trained / "checkpoint.zip"
    check_checkpoint(checkpoint, plan(tmp_path))
    seen: list[int] = []
    changed = plan(tmp_path / "second", resume=checkpoint)
    train(changed, CONFIG, lambda steps, status: seen.append(steps))
    assert seen[-1] == 64
    resumed = PPO.load(tmp_path / "second" / "checkpoint.zip", device="cpu")
    assert resumed.num_timesteps == 128


def test_a_run_that_goes_on_keeps_its_settings_but_for_those_given(tmp_path: Path) -> None:
    first = dataclasses.replace(CONFIG, gamma=0.8, violation_weight=7.0)
    train(plan(tmp_path / "first"), first)
    checkpoint = tmp_path / "first" / "checkpoint.zip"
    assert learn_config("sb3-ppo", {}, checkpoint) == first
    changed = learn_config(
        "ppo", {"learning_rate": 1e-4, "epochs": 5, "rollout_steps": 8}, checkpoint
    )
    assert (changed.gamma, changed.violation_weight) == (0.8, 7.0)
    train(plan(tmp_path / "second", resume=checkpoint), changed)
    resumed = PPO.load(tmp_path / "second" / "checkpoint.zip", device="cpu")
    assert (resumed.n_epochs, resumed.n_steps, resumed.gamma) == (5, 8, 0.8)
    assert resumed.lr_schedule(1.0) == 1e-4
    assert learn_config("sb3-ppo", {}, tmp_path / "second" / "checkpoint.zip") == changed


def test_a_network_cannot_change_its_size_on_the_way(trained: Path) -> None:
    with pytest.raises(ConfigError, match=r"hidden cannot change with --resume.*\(16, 16\)"):
        learn_config("sb3-ppo", {"hidden": "32,32"}, trained / "checkpoint.zip")


def test_lost_settings_are_named(tmp_path: Path) -> None:
    with pytest.raises(PolicyError, match=r"hyper-parameters in .*learn\.json cannot be read"):
        learn_config("sb3-ppo", {}, tmp_path / "checkpoint.zip")


def test_lists_are_given_with_commas() -> None:
    assert learn_config("sb3-ppo", {"hidden": "32,16"}).hidden == (32, 16)
    assert learn_config("sb3-ppo", {"hidden": 32}).hidden == (32,)
    assert learn_config("sb3-ppo", {"blind_to": "due,delay_trend"}).blind_to == (
        "due",
        "delay_trend",
    )
    with pytest.raises(ConfigError, match="hidden must be a whole number"):
        learn_config("sb3-ppo", {"hidden": "wide"})


def test_a_checkpoint_of_another_system_is_refused(trained: Path, tmp_path: Path) -> None:
    with pytest.raises(PolicyError, match="whose profile or stages"):
        check_checkpoint(
            trained / "checkpoint.zip", plan(tmp_path, scenarios=(short(profile="resnet18"),))
        )


def test_a_damaged_checkpoint_is_refused(tmp_path: Path) -> None:
    checkpoint = tmp_path / "checkpoint.zip"
    with pytest.raises(PolicyError, match="there is no checkpoint"):
        check_checkpoint(checkpoint, plan(tmp_path))
    checkpoint.write_bytes(b"not a checkpoint")
    with pytest.raises(PolicyError, match="cannot be resumed"):
        train(plan(tmp_path, resume=checkpoint), CONFIG)


@pytest.mark.parametrize(("total", "largest", "size"), [(384, 256, 192), (64, 256, 64), (7, 4, 1)])
def test_minibatches_divide_the_rollout(total: int, largest: int, size: int) -> None:
    assert training.divisor(total, largest) == size


def test_validation_scores_what_the_environment_gives(trained: Path) -> None:
    policy = load_policy(trained / POLICY_FILE)
    result = make_validator([SCENARIO], episodes=1)(policy)
    env = SpongeEnv(SCENARIO)
    observation, _ = env.reset(options={"episode_seed": 2**31})
    cores, violations, avoidable, offered = [], 0, 0, 0
    for _ in range(SCENARIO.intervals):
        observation, _, _, _, info = env.step(policy.act(observation))
        cores.append(info["cores"])
        violations += info["violations"]
        avoidable += info["avoidable_violations"]
        offered += info["offered"]
    assert result.cores == pytest.approx(np.mean(cores))
    assert result.violation_rate == violations / offered
    assert result.score(2.0) == pytest.approx(-np.mean(cores) / 16 - 2 * avoidable / offered)


def test_a_masked_learner_decides_as_it_was_trained(tmp_path: Path) -> None:
    config = dataclasses.replace(CONFIG, evaluations=1)
    policy = load_policy(train(plan(tmp_path, agent="maskable-ppo"), config))
    spec = plan(tmp_path).spec
    masks = ActionMasks(spec)
    model = MaskablePPO.load(tmp_path / "checkpoint.zip", device="cpu")
    rng = np.random.default_rng(0)
    for _ in range(50):
        observation = rng.uniform(0, 1, policy.layers[0][0].shape[1]).astype(np.float32)
        allowed = masks(observation)
        expected, _ = model.predict(observation, deterministic=True, action_masks=allowed)
        assert np.array_equal(policy.act(observation, allowed), expected)


@pytest.mark.parametrize("agent", ["recurrent-ppo", "recurrent-ppo-joint"])
def test_a_recurrent_policy_remembers_like_the_trained_model(tmp_path: Path, agent: str) -> None:
    config = dataclasses.replace(CONFIG, evaluations=1)
    policy = load_policy(train(plan(tmp_path, agent=agent), config))
    model = RecurrentPPO.load(tmp_path / "checkpoint.zip", device="cpu")
    rng = np.random.default_rng(0)
    memory, state, starts = policy.memory(), None, np.ones(1, np.bool_)
    for _ in range(20):
        observation = rng.uniform(0, 3, len(policy.info.inputs)).astype(np.float32)
        expected, state = model.predict(observation, state, starts, deterministic=True)
        starts = np.zeros(1, np.bool_)
        assert np.array_equal(policy.act(observation, memory=memory), expected)


def test_a_joint_policy_chooses_replicas(tmp_path: Path) -> None:
    train(plan(tmp_path, agent="ppo-joint"), CONFIG)
    system = make_system(SCENARIO, 0)
    summary = run_episode(system, ppo_joint(str(tmp_path)), Run("ppo-joint", "s", "sim", 0)).summary
    assert summary.mean_cores > 1
    assert load_policy(tmp_path / POLICY_FILE).info.actions == (16, 16, 16)


def test_masks_leave_the_cores_that_serve_the_recent_rate(tmp_path: Path) -> None:
    spec = plan(tmp_path).spec
    allowed = ActionMasks(spec)(np.zeros(OBS_DIM, np.float32))
    assert allowed[: spec.first.cores_max].all()
    busy = np.full(OBS_DIM, 5.0, np.float32)
    assert list(np.flatnonzero(ActionMasks(spec)(busy)[: spec.first.cores_max])) == [
        spec.first.cores_max - 1
    ]


def test_the_multiplier_grows_with_too_many_violations_and_falls_again(tmp_path: Path) -> None:
    config = dataclasses.replace(CONFIG, violation_target=0.01, violation_weight=10.0)
    envs = make_environments(plan(tmp_path), config)
    assert isinstance(envs, ConstrainedRewards)
    envs.reset()
    starved, everything = np.zeros((2, 2), np.int64), np.full((2, 2), 15)
    for _ in range(5):
        envs.step(starved)
        envs.adapt()
    assert (grown := envs.multiplier) > 10.0
    for _ in range(300):
        envs.step(everything)
        envs.adapt()
    assert envs.multiplier < grown


@pytest.mark.parametrize("agent", ["ppo", "recurrent-ppo"])
def test_a_blind_policy_does_not_depend_on_what_it_did_not_see(tmp_path: Path, agent: str) -> None:
    config = dataclasses.replace(CONFIG, blind_to=("due", "delay_trend"))
    envs = make_environments(plan(tmp_path, agent=agent), config)
    hidden = [k for k, name in enumerate(FIELDS) if name.startswith("due") or name == "delay_trend"]
    assert len(hidden) == 9
    seen = [envs.reset(), *(envs.step(np.zeros((2, 2), np.int64))[0] for _ in range(5))]
    used = np.any(seen, axis=(0, 1))
    assert not used[hidden].any()
    assert used[FIELDS.index("queue_length")]
    policy = load_policy(train(plan(tmp_path, agent=agent), config))
    observation = np.random.default_rng(0).normal(size=OBS_DIM).astype(np.float32)
    other = observation.copy()
    other[hidden] += 3.0
    assert np.array_equal(decisions(policy, observation), decisions(policy, other))
    other[0] += 3.0
    assert not np.array_equal(decisions(policy, observation), decisions(policy, other))


def test_unknown_fields_cannot_be_hidden(tmp_path: Path) -> None:
    config = dataclasses.replace(CONFIG, blind_to=("budgett",))
    with pytest.raises(ConfigError, match="unknown observation field 'budgett'"):
        make_environments(plan(tmp_path), config)


def test_variants_differ_but_stay_of_one_system() -> None:
    drawn = [variant(SCENARIO, seed) for seed in range(30)]
    assert len({scenario.arrivals for scenario in drawn}) == 30
    assert {scenario.arrivals.kind for scenario in drawn} >= {"constant", "poisson", "diurnal"}
    plan_of_all = TrainingPlan(tuple(drawn), steps=1, envs=1, seed=0, folder=Path())
    assert plan_of_all.spec.first.cores_max == SCENARIO.limits.cores
    assert drawn == [variant(SCENARIO, seed) for seed in range(30)]
    assert drawn[0] != variant(SCENARIO, seed=30)


def test_training_on_scenarios_of_two_systems_is_refused(tmp_path: Path) -> None:
    mixed = plan(tmp_path, scenarios=(SCENARIO, short(profile="resnet18")))
    with pytest.raises(ConfigError, match="cannot be trained on together"):
        train(mixed, CONFIG)


@pytest.mark.parametrize(
    ("agent", "scenario", "actions"),
    [
        ("sb3-ppo", VARIANTS, (4, 4, 3)),
        ("sb3-ppo", CHAIN, (4, 4, 3, 4, 4, 2, 2, 2, 3)),
        ("recurrent-ppo-joint", VARIANTS, (4, 4, 3, 3)),
        ("maskable-ppo", CHAIN, (4, 4, 3, 4, 4, 2, 2, 2, 3)),
        ("recurrent-ppo", VARIANTS, (4, 4, 3)),
    ],
)
def test_variants_and_pipelines_are_learned_and_followed(
    tmp_path: Path, agent: str, scenario: Scenario, actions: tuple[int, ...]
) -> None:
    on_it = plan(tmp_path, agent=agent, scenarios=(scenario,))
    policy = load_policy(train(on_it, dataclasses.replace(CONFIG, blind_to=("bandwidth",))))
    assert policy.info.actions == actions
    assert policy.info.inputs == on_it.control.fields
    controller, system = PolicyController(agent, str(tmp_path)), make_system(scenario, 0)
    env = SpongeEnv(scenario, control=reaching(LEARNERS[agent].control, system.spec))
    observation, _ = env.reset(options={"episode_seed": 0})
    controller.reset(system.spec, 0)
    memory = policy.memory()
    while not system.done:
        allowed = env.action_masks() if agent.startswith("maskable") else None
        observation, reward, *_ = env.step(policy.act(observation, allowed, memory))
        assert system.step(controller.decide(system.view())).reward == reward


def test_a_policy_of_another_pipeline_is_refused(tmp_path: Path) -> None:
    train(plan(tmp_path, scenarios=(CHAIN,)), CONFIG)
    first, *others = CHAIN.stages
    other = dataclasses.replace(first, name="search")
    for stages in ((other, *others), (dataclasses.replace(first, fan_out_shares=(1.0,)), *others)):
        changed = dataclasses.replace(CHAIN, stages=stages)
        with pytest.raises(PolicyError, match=r"was trained on chain, whose profile or stages, .*"):
            PolicyController("sb3-ppo", str(tmp_path)).reset(make_system(changed, 0).spec, 0)
        with pytest.raises(PolicyError, match="the checkpoint was trained on chain, whose"):
            check_checkpoint(
                tmp_path / "checkpoint.zip", plan(tmp_path / "again", scenarios=(changed,))
            )
    warm = dataclasses.replace(first, initial=dataclasses.replace(first.initial, batch=2))
    same_but_start = dataclasses.replace(CHAIN, stages=(warm, *others), slo_s=0.5)
    PolicyController("sb3-ppo", str(tmp_path)).reset(make_system(same_but_start, 0).spec, 0)


def test_a_program_for_one_model_is_not_corrected_on_several(tmp_path: Path) -> None:
    for scenario in (CHAIN, VARIANTS):
        with pytest.raises(ConfigError, match="residual-ppo corrects a program for one model"):
            train(plan(tmp_path, agent="residual-ppo", scenarios=(scenario,)), CONFIG)


def test_variants_of_a_pipeline_are_of_the_same_system(tmp_path: Path) -> None:
    drawn = [variant(CHAIN, seed) for seed in range(10)]
    assert {each.stages for each in drawn} == {CHAIN.stages}
    assert all(0.5 <= each.slo_s / CHAIN.slo_s <= 2.0 for each in drawn)
    assert (
        plan(tmp_path, scenarios=tuple(drawn)).control.choices
        == control_of("ppo", make_system(CHAIN, 0).spec).choices
    )
    train(plan(tmp_path, scenarios=(CHAIN,), randomised=True), CONFIG)


def test_validation_credits_accuracy(tmp_path: Path) -> None:
    policy = load_policy(train(plan(tmp_path, scenarios=(VARIANTS,)), CONFIG))
    result = make_validator([VARIANTS], episodes=2)(policy)
    assert 0 < result.effective_accuracy <= 0.9
    gained = result.score(20.0, accuracy_weight=2.0) - result.score(20.0)
    assert gained == pytest.approx(2.0 * result.effective_accuracy)
    config = dataclasses.replace(CONFIG, accuracy_weight=3.0, violation_target=0.01)
    envs = make_environments(plan(tmp_path, scenarios=(VARIANTS,)), config)
    envs.reset()
    assert isinstance(envs, ConstrainedRewards)
    _, rewards, _, _ = envs.step(np.full((2, 3), 2))
    metrics = envs.venv.metrics
    missed = metrics["avoidable_violations"] / (metrics["on_time"] + metrics["violations"])
    expected = 3.0 * metrics["effective_accuracy"] - metrics["cores"] / 12
    assert rewards == pytest.approx(expected - envs.multiplier * missed)


def test_tensorboard_says_what_a_validation_measured(trained: Path) -> None:
    events = EventAccumulator(str(trained)).Reload()
    tags = {tag for tag in events.Tags()["tensors"] if tag.startswith("evaluation/")}
    assert tags == {f"evaluation/{name}" for name in training.SHOWN}
    assert len(events.Tensors("evaluation/score")) > 1
    about = events.SummaryMetadata("evaluation/score").summary_description
    assert about == training.SHOWN["score"]
