"""``SpongeVariants-v0`` and ``SpongePipeline-v0``: variants, and every stage of a pipeline."""

from __future__ import annotations

import dataclasses
import warnings
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env as gymnasium_check_env
from gymnasium.vector import AutoresetMode
from sb3_contrib import MaskablePPO
from scenarios import CHAIN, VARIANTS
from stable_baselines3 import DQN
from stable_baselines3.common.env_checker import check_env
from stable_baselines3.common.vec_env import DummyVecEnv

from sponge_env.core.entry import fit
from sponge_env.core.fields import REQUEST_NAMES, STAGE_NAMES, staged_names
from sponge_env.env.sb3 import SpongeVecEnv
from sponge_env.env.single import SpongeEnv
from sponge_env.errors import ConfigError
from sponge_env.interfaces import StageAllocation, fit_to_machine
from sponge_env.scenario.config import Arrivals, ControlName, Limits
from sponge_env.scenario.scenario import Scenario
from sponge_env.scenario.spec import make_spec, scenario_profile
from sponge_env.simulation.encoding import CLIP, FIELDS, ActionMasks, control_named, decode, encode
from sponge_env.simulation.system import SimulatedSystem

CASES: dict[str, tuple[Scenario, ControlName, list[int]]] = {
    "SpongeVariants-v0": (VARIANTS, "variants", [4, 4, 3]),
    "SpongePipeline-v0": (CHAIN, "pipeline", [4, 4, 3, 4, 4, 2, 2, 2, 3]),
}
EACH = pytest.mark.parametrize("name", CASES)


def make(name: str, **options: Any) -> gymnasium.Env[Any, Any]:
    return gymnasium.make(name, scenario=CASES[name][0], **options)


def spec_of(scenario: Scenario) -> Any:
    return make_spec(scenario, scenario_profile(scenario))


@EACH
def test_both_checkers_accept_the_environment(name: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        gymnasium_check_env(make(name).unwrapped)
        check_env(make(name).unwrapped)


@EACH
@pytest.mark.parametrize("actions", ["SpongeDiscrete-v0", "SpongeContinuous-v0"])
def test_both_checkers_accept_other_actions(name: str, actions: str) -> None:
    scenario, control, _ = CASES[name]
    env = gymnasium.make(actions, scenario=scenario, control=control)
    gymnasium_check_env(env.unwrapped, skip_render_check=True)
    check_env(env)


def test_the_ids_are_presets_of_one_class() -> None:
    for name, scenario in (
        ("SpongeVariants-v0", "variants"),
        ("SpongePipeline-v0", "pipeline-video"),
    ):
        spec = gymnasium.spec(name)
        assert spec.entry_point == gymnasium.spec("Sponge-v0").entry_point
        assert spec.kwargs == {"scenario": scenario, "control": CASES[name][1]}
    assert gymnasium.make("SpongePipeline-v0").observation_space.shape == (
        len(REQUEST_NAMES) + 2 * len(STAGE_NAMES),
    )


@EACH
def test_an_action_chooses_what_there_is_to_choose(name: str) -> None:
    env = make(name)
    assert env.action_space == gymnasium.spaces.MultiDiscrete(CASES[name][2])
    assert env.observation_space.shape == (9 + len(CASES[name][0].stages) * 39,)


def test_the_parts_of_an_action_reach_their_stages() -> None:
    control = control_named("pipeline", spec_of(CHAIN))
    allocation = decode(np.array([3, 1, 2, 0, 3, 1, 1, 0, 2]), control)
    assert allocation.stages == (
        StageAllocation(4, 2, 3),
        StageAllocation(1, 4, 1, 1),
        StageAllocation(2, 1, 3),
    )
    control = control_named("variants", spec_of(VARIANTS))
    assert decode(np.array([3, 0, 2]), control).stages == (StageAllocation(4, 1, 1, 2),)


@pytest.mark.parametrize("stages", [1, 2, 3])
def test_batches_of_environments_share_a_machine_as_controllers_do(stages: int) -> None:
    rng = np.random.default_rng(stages)
    asked = rng.integers(1, 9, (200, stages, 4))
    most, fitted = np.full((stages, 4), 8), asked.copy()
    assert fit(fitted, most, 20)
    for before, now in zip(asked.tolist(), fitted.tolist(), strict=True):
        expected = fit_to_machine([StageAllocation(*row) for row in before], 20)
        assert expected == tuple(StageAllocation(*row) for row in now)
        assert sum(cores * replicas for cores, _, replicas, _ in now) <= 20
    for part, value in ((0, 0), (0, 9), (2, 9), (3, -1), (3, 9)):
        beyond = asked.copy()
        beyond[-1, -1, part] = value
        assert not fit(beyond, most, 20)


def test_an_action_beyond_the_machine_is_fitted() -> None:
    env = make("SpongePipeline-v0")
    env.reset(seed=0)
    info = env.step(np.array([3, 3, 2, 3, 3, 0, 1, 1, 2]))[4]
    assert (info["requested_cores"], info["replicas"]) == (4, 1)
    assert info["cores"] <= 14


@EACH
@pytest.mark.parametrize("mode", [AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP])
def test_the_batch_simulator_equals_a_sync_vector_env(name: str, mode: AutoresetMode) -> None:
    options: dict[str, Any] = {"num_envs": 3, "scenario": CASES[name][0]}
    ours = gymnasium.make_vec(name, autoreset_mode=mode, **options)
    kwargs = {"autoreset_mode": mode}
    theirs = gymnasium.make_vec(name, vectorization_mode="sync", vector_kwargs=kwargs, **options)
    assert ours.single_action_space == theirs.single_action_space
    assert ours.single_observation_space == theirs.single_observation_space
    assert ours.reset(seed=5)[0].tobytes() == theirs.reset(seed=5)[0].tobytes()
    theirs.action_space.seed(0)
    for _ in range(15):
        actions = theirs.action_space.sample()
        one, other = ours.step(actions), theirs.step(actions)
        assert one[0].tobytes() == other[0].tobytes()
        for mine, yours in zip(one[1:4], other[1:4], strict=True):
            np.testing.assert_array_equal(mine, yours)
    assert len(np.unique(one[1])) > 1


@EACH
def test_stable_baselines_steps_and_masks_equal_a_dummy_vec_env(name: str) -> None:
    scenario, control, counts = CASES[name]
    ours = SpongeVecEnv(scenario, 3, control=control)
    theirs = DummyVecEnv([lambda: SpongeEnv(scenario, control=control)] * 3)
    for envs in (ours, theirs):
        envs.seed(11)
    np.testing.assert_array_equal(ours.reset(), theirs.reset())
    rng = np.random.default_rng(0)
    for _ in range(10):
        actions = rng.integers(0, counts, (3, len(counts)))
        for mine, yours in zip(ours.step(actions)[:3], theirs.step(actions)[:3], strict=True):
            np.testing.assert_array_equal(mine, yours)
        masks = [np.stack(envs.env_method("action_masks")) for envs in (ours, theirs)]
        np.testing.assert_array_equal(*masks)
    ours.close()


@EACH
def test_a_view_says_what_the_core_observes(name: str) -> None:
    scenario, kind, counts = CASES[name]
    system = SimulatedSystem(dataclasses.replace(scenario, duration_s=40.0), 4)
    control, rng = control_named(kind, system.spec), np.random.default_rng(3)
    assert (
        system.observe(control).tobytes() == encode(system.view(), system.spec, control).tobytes()
    )
    seen = []
    while not system.done:
        system.step(system.spec.fitting(decode(rng.integers(0, counts), control)))
        seen.append(system.observe(control))
        assert seen[-1].tobytes() == encode(system.view(), system.spec, control).tobytes()
    used = {control.fields[k] for k in np.flatnonzero(np.any(seen, axis=0))}
    own = [stage.name for stage in scenario.stages]
    wanted = ("queue_length", "due_1_of_8", "arrivals_30s", "running_left", "done", "utilisation")
    assert {f"{stage}.{field}" for stage in own for field in wanted} <= used
    assert {"bandwidth", "delay_trend", "on_time", "dropped", "effective_accuracy"} <= used
    rarer = {"model.variant", "find.given_up", "name.variant", "judge.ready_in_2"}
    assert {field for field in rarer if field in control.fields} <= used


def test_fields_mean_what_their_names_say() -> None:
    system = SimulatedSystem(CHAIN, 0)
    control = control_named("pipeline", system.spec)
    assert control.fields == staged_names(["find", "name", "judge"])
    wanted = (StageAllocation(2, 3, 2), StageAllocation(3, 1, 1, 1), StageAllocation(1, 2, 1))
    for _ in range(3):
        last = system.step(decode(np.array([1, 2, 1, 2, 0, 1, 0, 1, 0]), control))
    assert system.view().allocation.stages == wanted
    view, seen = system.view(), dict(zip(control.fields, system.observe(control), strict=True))
    assert [seen[f"find.{each}"] for each in ("cores", "batch", "replicas")] == pytest.approx(
        [2 / 4, 3 / 4, 2 / 3]
    )
    assert (seen["name.variant"], seen["judge.variant"]) == (1.0, 0.0)
    assert seen["effective_accuracy"] == pytest.approx(last.effective_accuracy)
    for stage, own, spec in zip(
        ("find", "name", "judge"), view.stages, system.spec.stages, strict=True
    ):
        assert own.last is not None
        rate = spec.capacity_rps
        assert seen[f"{stage}.done"] == pytest.approx(min(CLIP, own.last.answered / rate))
        assert seen[f"{stage}.given_up"] == pytest.approx(own.last.dropped / rate)
        assert seen[f"{stage}.utilisation"] == pytest.approx(own.last.utilisation)
        waiting = own.queued_deadlines_s.size / (rate * CHAIN.slo_s)
        assert seen[f"{stage}.queue_length"] == pytest.approx(min(CLIP, waiting))
        assert seen[f"{stage}.arrivals_last"] == pytest.approx(own.arrivals[-1] / rate)
    assert view.stages[0].arrivals[-1] == last.offered


def test_accuracy_is_worth_its_weight() -> None:
    rewards = {}
    for weight in (0.0, 2.0):
        reward = dataclasses.replace(VARIANTS.reward, accuracy_weight=weight)
        env = SpongeEnv(dataclasses.replace(VARIANTS, reward=reward), control="variants")
        env.reset(seed=1)
        _, rewards[weight], _, _, info = env.step(np.array([3, 3, 1]))
    assert 0 < info["effective_accuracy"] <= 0.7
    assert rewards[2.0] - rewards[0.0] == pytest.approx(2.0 * info["effective_accuracy"])
    quiet = dataclasses.replace(VARIANTS, arrivals=Arrivals(rate_rps=1e-6))
    env = SpongeEnv(quiet, control="variants")
    env.reset(seed=1)
    assert env.step(np.array([2, 0, 0]))[1] == pytest.approx(-3 / 12)


@EACH
def test_masks_leave_a_choice_for_each_part(name: str) -> None:
    scenario, kind, counts = CASES[name]
    tight = dataclasses.replace(scenario, slo_s=0.02)
    for each in (scenario, tight):
        spec = spec_of(each)
        control = control_named(kind, spec)
        busy = np.full((2, control.obs_dim), CLIP, np.float32)
        masks = ActionMasks(spec, control)(busy)
        assert masks.shape == (2, sum(counts))
        for part in np.split(masks, np.cumsum(counts)[:-1], axis=1):
            assert part.any(axis=1).all()
    assert not masks.all()


def test_masks_know_slow_variants_and_few_cores() -> None:
    spec = spec_of(dataclasses.replace(VARIANTS, slo_s=0.018))
    control = control_named("variants", spec)
    masks = ActionMasks(spec, control)(np.full(control.obs_dim, CLIP, np.float32))
    slowest_s = [float(each.table_s(1, 4)[0, -1]) for each in spec.stages[0].latencies]
    assert masks[:4].tolist() == [False, False, False, True]
    assert masks[8:].tolist() == [each <= 0.018 for each in slowest_s]
    assert set(masks[8:]) == {False, True}


@pytest.mark.parametrize(
    ("scenario", "control", "words"),
    [
        (CHAIN, "vertical", "a system with 3 stages; use control 'pipeline'"),
        (CHAIN, "variants", "use control 'pipeline'"),
        (VARIANTS, "vertical", "3 variants of its model; use control 'variants'"),
        (VARIANTS, "joint", "use control 'pipeline'"),
    ],
)
def test_a_control_that_cannot_reach_all_is_refused(
    scenario: Scenario, control: ControlName, words: str
) -> None:
    for make_it in (SpongeEnv, lambda *a, **k: SpongeVecEnv(*a, 1, **k)):
        with pytest.raises(ConfigError, match=words):
            make_it(scenario, control=control)


def test_a_pipeline_of_one_model_is_controlled_jointly() -> None:
    env = gymnasium.make("SpongePipeline-v0", scenario="paper")
    assert env.action_space == gymnasium.make("SpongeJoint-v0").action_space
    assert env.observation_space.shape > (len(FIELDS),)


def test_too_many_combinations_for_one_number_are_counted() -> None:
    stages = tuple(dataclasses.replace(CHAIN.stages[0], name=name) for name in "abcdef")
    many = dataclasses.replace(CHAIN, stages=stages, limits=Limits(total_cores=64))
    with pytest.raises(ConfigError, match=r"12,230,590,464 combinations"):
        gymnasium.make("SpongeDiscrete-v0", scenario=many, control="pipeline")


@EACH
def test_masked_ppo_and_dqn_train(name: str) -> None:
    scenario, control, _ = CASES[name]
    envs = SpongeVecEnv(scenario, 2, control=control)
    masked = MaskablePPO("MlpPolicy", envs, n_steps=8, batch_size=16, n_epochs=1, seed=0)
    masked.learn(32)
    env = gymnasium.make("SpongeDiscrete-v0", scenario=VARIANTS, control="variants")
    DQN("MlpPolicy", env, learning_starts=8, batch_size=8, seed=0, device="cpu").learn(32)
