"""The vector environments behave like Gymnasium's and Stable-Baselines3's own."""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.wrappers.vector import NormalizeObservation, RecordEpisodeStatistics
from numpy.typing import NDArray
from scenarios import SHORT
from stable_baselines3 import PPO
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv

from sponge_env.core.records import METRICS
from sponge_env.env.sb3 import SpongeVecEnv
from sponge_env.env.single import SpongeEnv
from sponge_env.env.vector import SpongeVectorEnv
from sponge_env.errors import ConfigError
from sponge_env.scenario.config import Arrivals, Network
from sponge_env.simulation.encoding import OBS_DIM

BRIEF = dataclasses.replace(SHORT, duration_s=4.0)
BRIEFER = dataclasses.replace(BRIEF, name="briefer", duration_s=3.0, slo_s=0.7)
OWN_ORDER = ("latency_mean_s",)


def vector_env(**changes: Any) -> VectorEnv[Any, Any, Any]:
    options = {"num_envs": 3, "vectorization_mode": "vector_entry_point", "scenario": BRIEF}
    return gymnasium.make_vec("Sponge-v0", **{**options, **changes})


def sync_env(mode: AutoresetMode) -> VectorEnv[Any, Any, Any]:
    return gymnasium.make_vec(
        "Sponge-v0",
        num_envs=3,
        vectorization_mode="sync",
        scenario=BRIEF,
        vector_kwargs={"autoreset_mode": mode},
    )


def check_infos(infos: dict[str, Any], expected: dict[str, Any]) -> None:
    """Check that what Gymnasium's own environments say is said as well, where it counts."""
    for name in set(expected) & {*(METRICS.names or ()), "episode_seed"}:
        mask = expected["_" + name]
        np.testing.assert_array_equal(infos["_" + name], mask, err_msg=name)
        np.testing.assert_allclose(
            infos[name][mask].astype(float),
            expected[name][mask].astype(float),
            rtol=1e-12 if name in OWN_ORDER else 0,
            err_msg=name,
        )


@pytest.mark.parametrize("mode", [AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP])
def test_it_equals_a_sync_vector_env(mode: AutoresetMode) -> None:
    ours, theirs = vector_env(autoreset_mode=mode), sync_env(mode)
    one, other = ours.reset(seed=5), theirs.reset(seed=5)
    np.testing.assert_array_equal(one[0], other[0])
    check_infos(one[1], other[1])
    theirs.action_space.seed(0)
    for _ in range(15):
        actions = theirs.action_space.sample()
        one, other = ours.step(actions), theirs.step(actions)
        for mine, yours in zip(one[:4], other[:4], strict=True):
            np.testing.assert_array_equal(mine, yours)
        check_infos(one[4], other[4])
        assert ("final_obs" in one[4]) == ("final_obs" in other[4])
        if "final_obs" in other[4]:
            check_infos(one[4]["final_info"], other[4]["final_info"])
            for mine, yours in zip(one[4]["final_obs"], other[4]["final_obs"], strict=True):
                np.testing.assert_array_equal(mine, yours)


def test_a_reset_mask_resets_without_autoreset() -> None:
    ours, theirs = vector_env(autoreset_mode="Disabled"), sync_env(AutoresetMode.DISABLED)
    ours.reset(seed=1)
    theirs.reset(seed=1)
    actions = np.full((3, 2), 7)
    for _ in range(4):
        ours.step(actions)
        theirs.step(actions)
    with pytest.raises(RuntimeError, match="reset_mask"):
        ours.step(actions)
    for mask in ([True, False, True], [False, True, False]):
        options = {"reset_mask": np.array(mask)}
        observations, infos = ours.reset(options=dict(options))
        expected, expected_infos = theirs.reset(options=dict(options))
        np.testing.assert_array_equal(observations, expected)
        check_infos(infos, expected_infos)
    np.testing.assert_array_equal(ours.step(actions)[0], theirs.step(actions)[0])


def test_each_environment_can_have_its_own_scenario() -> None:
    scenarios = [BRIEF, BRIEFER, BRIEF]
    envs = vector_env(scenario=scenarios)
    singles = [SpongeEnv(scenario) for scenario in scenarios]
    observations, infos = envs.reset(seed=[3, 4, 9])
    for i, (single, seed) in enumerate(zip(singles, (3, 4, 9), strict=True)):
        observation, info = single.reset(seed=seed)
        np.testing.assert_array_equal(observations[i], observation)
        assert infos["episode_seed"][i] == info["episode_seed"]
    _, _, _, truncated, _ = [envs.step(np.full((3, 2), 3)) for _ in range(3)][-1]
    assert truncated.tolist() == [False, True, False]


def test_an_episode_seed_fixes_the_episode() -> None:
    envs = vector_env()
    infos = envs.reset(options={"episode_seed": 5})[1]
    single = SpongeEnv(BRIEF)
    single.reset(options={"episode_seed": 5})
    assert infos["episode_seed"].tolist() == [5, 5, 5]
    actions = np.full((3, 2), 7)
    np.testing.assert_array_equal(envs.step(actions)[0][1], single.step(actions[0])[0])


def test_returned_arrays_are_not_written_to_again() -> None:
    envs = vector_env(autoreset_mode="SameStep")
    envs.reset(seed=0)
    steps = [envs.step(np.full((3, 2), k)) for k in range(6)]
    offered = [step[4]["offered"].copy() for step in steps]
    observations = [step[0].copy() for step in steps]
    envs.step(np.full((3, 2), 1))
    for step, arrivals, observation in zip(steps, offered, observations, strict=True):
        np.testing.assert_array_equal(step[4]["offered"], arrivals)
        np.testing.assert_array_equal(step[0], observation)


def test_gymnasium_wrappers_take_it() -> None:
    envs = RecordEpisodeStatistics(NormalizeObservation(vector_env()))
    envs.reset(seed=0)
    infos: dict[str, Any] = {}
    for _ in range(BRIEF.intervals):
        observations, _, _, truncated, infos = envs.step(envs.action_space.sample())
        assert observations.shape == (3, OBS_DIM)
    assert truncated.all()
    assert infos["episode"]["l"].tolist() == [BRIEF.intervals] * 3
    envs.close()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_envs": 0}, "number of environments must be at least 1, not 0"),
        ({"scenario": [BRIEF] * 2}, "one for each of the 3 environments, not 2"),
        ({"scenario": [BRIEF, BRIEF, dataclasses.replace(BRIEF, interval_s=0.5)]}, "interval_s"),
        (
            {
                "scenario": [
                    BRIEF,
                    BRIEF,
                    dataclasses.replace(BRIEF, limits=dataclasses.replace(BRIEF.limits, cores=8)),
                ]
            },
            "the same limits",
        ),
        ({"queue_capacity": 0}, "queue_capacity must be at least 1, not 0"),
        ({"threads": 0}, "threads must be at least 1, not 0"),
        ({"scenario": "papre"}, "did you mean 'paper'"),
    ],
)
def test_bad_settings_are_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        vector_env(**changes)


@pytest.mark.parametrize("actions", [np.full((3, 2), 16), np.full((3, 2), -1)])
def test_actions_outside_the_space_are_refused(actions: NDArray[np.int64]) -> None:
    envs = vector_env()
    envs.reset(seed=0)
    with pytest.raises(ConfigError, match="between 1 and"):
        envs.step(actions)


def test_whole_floats_are_actions_and_others_are_not() -> None:
    envs, same = vector_env(), vector_env()
    envs.reset(seed=0)
    same.reset(seed=np.int64(0))
    expected = envs.step(np.full((3, 2), 7))[0]
    np.testing.assert_array_equal(same.step(np.full((3, 2), 7.0))[0], expected)
    with pytest.raises(ConfigError, match="must be whole numbers"):
        envs.step(np.full((3, 2), 6.5))


def test_it_truncates_as_a_time_limit_does() -> None:
    ours = vector_env(max_episode_steps=3)
    theirs = gymnasium.make_vec(
        "Sponge-v0", 3, "sync", {}, scenario=BRIEF, max_episode_steps=3, disable_env_checker=True
    )
    np.testing.assert_array_equal(ours.reset(seed=4)[0], theirs.reset(seed=4)[0])
    for _ in range(9):
        actions = np.full((3, 2), 7)
        for one, other in zip(ours.step(actions)[:4], theirs.step(actions)[:4], strict=True):
            np.testing.assert_array_equal(one, other)
    assert ours.autoreset_mode == theirs.autoreset_mode  # type: ignore[attr-defined]
    with pytest.raises(ConfigError, match="the number of steps must be at least 1, not 0"):
        vector_env(max_episode_steps=0)


def test_nothing_runs_before_a_reset() -> None:
    with pytest.raises(RuntimeError, match="call reset"):
        vector_env().step(np.zeros((3, 2), np.int64))


def test_what_is_too_much_for_the_queue_is_dropped_and_counted() -> None:
    flood = dataclasses.replace(BRIEF, arrivals=Arrivals("constant", 200.0))
    envs = SpongeVectorEnv(1, flood, queue_capacity=60)
    envs.reset(seed=0)
    infos = [envs.step(np.zeros((1, 2), np.int64))[4] for _ in range(4)]
    counted = [name for name in METRICS.names or () if name != "reward"]
    totals = {name: sum(int(info[name][0]) for info in infos) for name in counted}
    assert totals["overflowed"] > 0
    assert totals["dropped"] == totals["overflowed"]
    ended = totals["on_time"] + totals["violations"]
    left = int(infos[-1]["queued"][0]) + int(infos[-1]["running"][0])
    assert totals["offered"] == ended + left
    assert left <= 64


def test_unless_told_otherwise_the_queue_has_room_for_a_whole_episode() -> None:
    flood = dataclasses.replace(
        BRIEF, arrivals=Arrivals("constant", 400.0), network=Network("none"), duration_s=8.0
    )
    envs = SpongeVectorEnv(1, flood)
    envs.reset(seed=0)
    infos = [envs.step(np.zeros((1, 2), np.int64))[4] for _ in range(8)]
    assert infos[-1]["queued"][0] > 2048
    assert not any(info["overflowed"].any() for info in infos)


def test_stable_baselines_steps_equal_a_dummy_vec_env() -> None:
    ours = SpongeVecEnv(BRIEF, 3)
    theirs = DummyVecEnv([lambda: Monitor(SpongeEnv(BRIEF))] * 3)
    for envs in (ours, theirs):
        envs.seed(11)
    np.testing.assert_array_equal(ours.reset(), theirs.reset())
    rng = np.random.default_rng(0)
    for _ in range(10):
        actions = rng.integers(0, 16, (3, 2))
        mine, yours = ours.step(actions), theirs.step(actions)
        for one, other in zip(mine[:3], yours[:3], strict=True):
            np.testing.assert_array_equal(one, other)
        for one, other, done in zip(mine[3], yours[3], mine[2], strict=True):
            assert bool(one) == done
            if done:
                assert one["TimeLimit.truncated"] == other["TimeLimit.truncated"]
                assert one["episode"]["l"] == other["episode"]["l"]
                assert one["episode"]["r"] == pytest.approx(other["episode"]["r"], abs=1e-5)
                np.testing.assert_array_equal(
                    one["terminal_observation"], other["terminal_observation"]
                )
    ours.close()


def test_stable_baselines_masks_equal_those_of_single_environments() -> None:
    ours = SpongeVecEnv([BRIEF, BRIEFER, BRIEF], 3)
    theirs = DummyVecEnv([partial(SpongeEnv, each) for each in (BRIEF, BRIEFER, BRIEF)])
    for envs in (ours, theirs):
        envs.seed(11)
        envs.reset()
    assert ours.has_attr("action_masks")
    assert not ours.has_attr("system")
    for _ in range(10):
        for envs in (ours, theirs):
            envs.step(np.full((3, 2), 2))
        mine, yours = (np.stack(envs.env_method("action_masks")) for envs in (ours, theirs))
        np.testing.assert_array_equal(mine, yours)
    assert not mine.all()
    np.testing.assert_array_equal(ours.env_method("action_masks", indices=1), yours[[1]])


def test_stable_baselines_trains_and_evaluates_on_it() -> None:
    envs = SpongeVecEnv([BRIEF, BRIEFER] * 2, 4)
    model = PPO("MlpPolicy", envs, n_steps=8, batch_size=16, n_epochs=1, seed=0, device="cpu")
    model.learn(64)
    assert len(model.ep_info_buffer or ()) == 2 * (16 // 4) + 2 * (16 // 3)
    rewards, lengths = evaluate_policy(model, envs, 4, return_episode_rewards=True)
    assert set(lengths) == {BRIEF.intervals, BRIEFER.intervals}
    assert all(reward < 0 for reward in rewards)  # type: ignore[union-attr]
    assert envs.get_attr("scenario", 1) == [BRIEFER]
    with pytest.raises(AttributeError, match="no attribute 'system'"):
        envs.get_attr("system")
