"""``SpongeJoint-v0``: the environment whose actions choose the number of replicas, too."""

from __future__ import annotations

import dataclasses
import warnings
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env as gymnasium_check_env
from gymnasium.vector import AutoresetMode
from scenarios import SHORT
from stable_baselines3.common.env_checker import check_env
from stable_baselines3.common.vec_env import DummyVecEnv

from sponge_env.core.fields import JOINT_OBS_DIM, STARTING_SLOTS
from sponge_env.env.factory import make_system
from sponge_env.env.sb3 import SpongeVecEnv
from sponge_env.env.single import SpongeEnv
from sponge_env.errors import ConfigError
from sponge_env.interfaces import Allocation
from sponge_env.scenario.config import Limits, Simulation
from sponge_env.simulation.encoding import FIELDS, JOINT, encode

BRIEF = dataclasses.replace(
    SHORT,
    duration_s=8.0,
    limits=Limits(cores=8, batch=8, replicas=12, total_cores=96),
    simulation=Simulation(cold_start_s=2.5),
)
FIRST = len(FIELDS) + 1
"""Entry of the replica that will serve first."""


def joint_env(**changes: Any) -> gymnasium.Env[Any, Any]:
    return gymnasium.make("SpongeJoint-v0", scenario=BRIEF, **changes)


def test_gymnasium_accepts_the_environment() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        gymnasium_check_env(joint_env().unwrapped)


def test_stable_baselines_accepts_the_environment() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(joint_env().unwrapped)


def test_it_chooses_cores_batch_and_replicas() -> None:
    env = joint_env()
    assert env.action_space == gymnasium.spaces.MultiDiscrete([8, 8, 12])
    env.reset(seed=0)
    info = env.step(np.array([1, 2, 3]))[4]
    assert (info["requested_cores"], info["batch"], info["replicas"]) == (2, 3, 4)


def test_the_reward_charges_the_cores_of_all_replicas() -> None:
    env = joint_env()
    env.reset(seed=0)
    _, reward, _, _, info = env.step(np.array([7, 0, 11]))
    ended = info["on_time"] + info["violations"]
    missed = info["violations"] / max(1, ended)
    assert info["cores"] == pytest.approx(96)
    assert reward == pytest.approx(-96 / 96 - BRIEF.reward.violation_weight * missed)


def test_there_are_no_more_replicas_than_the_machine_has_room_for() -> None:
    one_machine = dataclasses.replace(BRIEF, limits=Limits(cores=8, batch=8, replicas=12))
    env = gymnasium.make("SpongeJoint-v0", scenario=one_machine)
    env.reset(seed=0)
    for cores, replicas in ((8, 1), (4, 2), (3, 2), (1, 8)):
        info = env.step(np.array([cores - 1, 0, 11]))[4]
        assert (info["requested_cores"], info["replicas"]) == (cores, replicas)
        assert info["cores"] <= 8


def test_the_first_part_of_the_observation_is_the_vertical_one() -> None:
    joint, vertical = joint_env(), SpongeEnv(BRIEF)
    one, other = joint.reset(seed=3)[0], vertical.reset(seed=3)[0]
    for _ in range(BRIEF.intervals):
        np.testing.assert_array_equal(one[: len(FIELDS)], other)
        assert one.shape == (JOINT_OBS_DIM,)
        one, other = joint.step(np.array([3, 1, 0]))[0], vertical.step(np.array([3, 1]))[0]


def test_starting_replicas_count_down_in_the_order_in_which_they_will_serve() -> None:
    env = joint_env()
    env.reset(seed=0)
    seen = env.step(np.array([0, 0, 1]))[0]
    assert seen[len(FIELDS)] == np.float32(1 / 12)
    assert seen[FIRST:] == pytest.approx([1.5 / 2.5] + [0.0] * (STARTING_SLOTS - 1))
    seen = env.step(np.array([0, 0, 2]))[0]
    assert seen[len(FIELDS)] == np.float32(2 / 12)
    assert seen[FIRST : FIRST + 3] == pytest.approx([0.5 / 2.5, 1.5 / 2.5, 0.0])
    seen = env.step(np.array([0, 0, 2]))[0]
    assert seen[FIELDS.index("replicas_ready")] == np.float32(2 / 12)
    assert seen[FIRST : FIRST + 2] == pytest.approx([0.5 / 2.5, 0.0])


def test_more_replicas_start_than_there_are_slots() -> None:
    env = joint_env()
    env.reset(seed=0)
    seen = env.step(np.array([0, 0, 11]))[0]
    assert seen[len(FIELDS)] == np.float32(11 / 12)
    assert seen[FIRST:] == pytest.approx([1.5 / 2.5] * STARTING_SLOTS)


def test_a_cold_start_of_no_time_is_never_seen() -> None:
    instant = dataclasses.replace(BRIEF, simulation=Simulation(cold_start_s=0.0))
    system = make_system(instant, 0)
    system.step(Allocation(1, 1, 5))
    assert not encode(system.view(), system.spec, JOINT)[len(FIELDS) :].any()


@pytest.mark.parametrize("mode", [AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP])
def test_the_batch_simulator_equals_a_sync_vector_env(mode: AutoresetMode) -> None:
    options = {"num_envs": 3, "scenario": BRIEF}
    ours = gymnasium.make_vec("SpongeJoint-v0", autoreset_mode=mode, **options)
    theirs = gymnasium.make_vec(
        "SpongeJoint-v0",
        vectorization_mode="sync",
        vector_kwargs={"autoreset_mode": mode},
        **options,
    )
    assert ours.single_action_space == theirs.single_action_space
    assert ours.single_observation_space == theirs.single_observation_space
    np.testing.assert_array_equal(ours.reset(seed=5)[0], theirs.reset(seed=5)[0])
    theirs.action_space.seed(0)
    for _ in range(2 * BRIEF.intervals + 3):
        actions = theirs.action_space.sample()
        one, other = ours.step(actions), theirs.step(actions)
        for mine, yours in zip(one[:4], other[:4], strict=True):
            np.testing.assert_array_equal(mine, yours)


def test_stable_baselines_steps_equal_a_dummy_vec_env() -> None:
    ours = SpongeVecEnv(BRIEF, 3, control="joint")
    theirs = DummyVecEnv([lambda: SpongeEnv(BRIEF, control="joint")] * 3)
    assert ours.action_space == theirs.action_space
    assert ours.observation_space == theirs.observation_space
    for envs in (ours, theirs):
        envs.seed(11)
    np.testing.assert_array_equal(ours.reset(), theirs.reset())
    rng = np.random.default_rng(0)
    for _ in range(10):
        actions = rng.integers(0, [8, 8, 12], (3, 3))
        for mine, yours in zip(ours.step(actions)[:3], theirs.step(actions)[:3], strict=True):
            np.testing.assert_array_equal(mine, yours)
    ours.close()


def test_actions_of_the_vertical_environment_are_refused() -> None:
    envs = gymnasium.make_vec("SpongeJoint-v0", num_envs=2, scenario=BRIEF)
    envs.reset(seed=0)
    with pytest.raises(ConfigError, match=r"shape \(2, 3\), not \(2, 2\)"):
        envs.step(np.zeros((2, 2), np.int64))


def test_an_unknown_control_is_named() -> None:
    with pytest.raises(ConfigError, match=r"unknown control 'joined'.*did you mean 'joint'"):
        SpongeEnv(BRIEF, control="joined")  # type: ignore[arg-type]


def test_the_live_environment_is_registered() -> None:
    spec = gymnasium.spec("SpongeJointLive-v0")
    assert spec.nondeterministic
    assert spec.kwargs == {"backend": "live", "scenario": "local", "control": "joint"}
