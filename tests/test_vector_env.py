"""The vector environments behave like Gymnasium's and Stable-Baselines3's own."""

import dataclasses
import multiprocessing
import pickle

import gymnasium
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode
from gymnasium.wrappers.vector import NormalizeObservation, RecordEpisodeStatistics
from machine import PATIENCE_S
from scenarios import CONTROLLED, SHORT
from stable_baselines3 import PPO
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv

from sponge_env.core.records import METRICS
from sponge_env.env.sb3 import SpongeVecEnv
from sponge_env.env.single import SpongeEnv
from sponge_env.env.vector import SpongeVectorEnv
from sponge_env.errors import ConfigError
from sponge_env.scenario.config import Arrivals, Network, RequestClass, Serving
from sponge_env.simulation.encoding import OBS_DIM

BRIEF = dataclasses.replace(SHORT, duration_s=4.0)
BRIEFER = dataclasses.replace(BRIEF, name="briefer", duration_s=3.0, slo_s=0.7)
EACH = pytest.mark.parametrize("name", CONTROLLED)


def brief(name):
    return dataclasses.replace(CONTROLLED[name][0], duration_s=4.0)


def vector_env(name="Sponge-v0", **changes):
    options = {"num_envs": 3, "vectorization_mode": "vector_entry_point", "scenario": brief(name)}
    return gymnasium.make_vec(name, **{**options, **changes})


def sync_env(mode, name="Sponge-v0"):
    options = {"num_envs": 3, "vectorization_mode": "sync", "scenario": brief(name)}
    return gymnasium.make_vec(name, **options, vector_kwargs={"autoreset_mode": mode})


def check_infos(infos, expected):
    """Check that what Gymnasium's own environments show is shown as well, where it counts."""
    for name in set(expected) & {*(METRICS.names or ()), "episode_seed"}:
        mask = expected["_" + name]
        np.testing.assert_array_equal(infos["_" + name], mask, err_msg=name)
        one, other = (each[name][mask].astype(float) for each in (infos, expected))
        # The single system adds latencies up in another order.
        rtol = 1e-12 if name == "latency_mean_s" else 0
        np.testing.assert_allclose(one, other, rtol=rtol, err_msg=name)
    shown = [name for name in infos if "final" not in name]
    assert all(infos[name].shape == (3,) and np.isfinite(infos[name]).all() for name in shown)


@EACH
@pytest.mark.parametrize("mode", [AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP])
def test_it_equals_a_sync_vector_env(name, mode):
    ours, theirs = vector_env(name, autoreset_mode=mode), sync_env(mode, name)
    assert ours.single_action_space == theirs.single_action_space
    assert ours.single_observation_space == theirs.single_observation_space
    one, other = ours.reset(seed=5), theirs.reset(seed=5)
    assert one[0].tobytes() == other[0].tobytes()
    check_infos(one[1], other[1])
    theirs.action_space.seed(0)
    for _ in range(15):
        actions = theirs.action_space.sample()
        one, other = ours.step(actions), theirs.step(actions)
        assert one[0].tobytes() == other[0].tobytes()
        for mine, yours in zip(one[1:4], other[1:4], strict=True):
            np.testing.assert_array_equal(mine, yours)
        np.testing.assert_array_equal(ours.action_masks(), theirs.call("action_masks"))
        check_infos(one[4], other[4])
        assert ("final_obs" in one[4]) == ("final_obs" in other[4])
        if "final_obs" in other[4]:
            check_infos(one[4]["final_info"], other[4]["final_info"])
            for mine, yours in zip(one[4]["final_obs"], other[4]["final_obs"], strict=True):
                np.testing.assert_array_equal(mine, yours)


def test_a_reset_mask_resets_without_autoreset():
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


def test_each_environment_can_have_its_own_scenario_and_seed():
    scenarios, seeds = [BRIEF, BRIEFER, BRIEF], [3, 4, 9]
    envs, singles = vector_env(scenario=scenarios), [SpongeEnv(each) for each in scenarios]
    for options in (None, {"episode_seed": 5}):
        observations, infos = envs.reset(seed=seeds, options=options)
        for i, single in enumerate(singles):
            observation, info = single.reset(seed=seeds[i], options=options)
            np.testing.assert_array_equal(observations[i], observation)
            assert infos["episode_seed"][i] == info["episode_seed"]
            assert options is None or info["episode_seed"] == 5
    _, _, _, truncated, _ = [envs.step(np.full((3, 2), 3)) for _ in range(3)][-1]
    assert truncated.tolist() == [False, True, False]


def test_a_pickled_copy_goes_on_where_the_environments_are():
    envs = vector_env(threads=2)
    envs.reset(seed=0)
    envs.step(np.full((3, 2), 9))
    copy = pickle.loads(pickle.dumps(envs))
    for k in (3, 0, 7):
        expected, found = (each.step(np.full((3, 2), k)) for each in (envs, copy))
        np.testing.assert_array_equal(found[0], expected[0])
        np.testing.assert_array_equal(found[1], expected[1])
    envs.simulator._step_s = np.inf  # so that all threads work, which a fork has not
    forked = multiprocessing.get_context("fork").Process(target=envs.step, args=(np.eye(3, 2),))
    forked.start()
    again = pickle.loads(pickle.dumps(copy)).reset(seed=1)[0]
    np.testing.assert_array_equal(again, envs.reset(seed=1)[0])
    forked.join(PATIENCE_S)
    assert forked.exitcode == 0


def test_returned_arrays_are_not_written_to_again():
    envs = vector_env(autoreset_mode="SameStep")
    envs.reset(seed=0)
    steps = [envs.step(np.full((3, 2), k)) for k in range(6)]
    before = [(step[0].copy(), step[4]["offered"].copy()) for step in steps]
    envs.step(np.full((3, 2), 1))
    for step, (observations, offered) in zip(steps, before, strict=True):
        np.testing.assert_array_equal(step[0], observations)
        np.testing.assert_array_equal(step[4]["offered"], offered)
    last = envs.step(np.full((3, 2), 1))[0]
    last[:], expected = 0.0, last.copy()
    kept = envs.reset(options={"reset_mask": np.array([True, False, False])})[0]
    np.testing.assert_array_equal(kept[1:], expected[1:])


OTHER_LIMITS = dataclasses.replace(BRIEF, limits=dataclasses.replace(BRIEF.limits, cores=8))


@pytest.mark.parametrize(
    ("changes", "message"), [({"num_envs": 0}, "number of environments must be at least 1, not 0"),
     ({"scenario": [BRIEF] * 2}, "one for each of the 3 environments, not 2"),
     ({"scenario": [BRIEF, BRIEF, dataclasses.replace(BRIEF, interval_s=0.5)]}, "interval_s"),
     ({"scenario": [BRIEF, BRIEF, OTHER_LIMITS]}, "the same limits"),
     ({"queue_capacity": 0}, "queue_capacity must be at least 1, not 0"),
     ({"num_envs": 20_000, "queue_capacity": 1 << 20}, "20000 environments would take .* GB"),
     ({"num_envs": 10**12}, "number of environments must be at most 1000000"),
     ({"threads": 0}, "threads must be at least 1, not 0"),
     ({"scenario": "papre"}, "did you mean 'paper'"),
     ({"max_episode_steps": 0}, "the number of steps must be at least 1, not 0")],
)  # fmt: skip
def test_bad_settings_are_named(changes, message):
    with pytest.raises(ConfigError, match=message):
        vector_env(**changes)


def test_a_day_of_many_requests_is_played_where_none_is_kept():
    arrivals = Arrivals(rate_rps=1000.0)
    envs = vector_env(scenario=dataclasses.replace(BRIEF, duration_s=86400.0, arrivals=arrivals))
    envs.reset(seed=0)
    assert envs.step(envs.action_space.sample())[4]["offered"].min() > 500


def test_classes_whose_requests_are_kept_are_not_sent_to_where_they_come_from():
    classes, arrivals = (RequestClass(1.0, 1.0, 1e5),), Arrivals(rate_rps=1000.0)
    many = dataclasses.replace(BRIEF, duration_s=86400.0, arrivals=arrivals, classes=classes)
    with pytest.raises(ConfigError, match=r"which thins a trace as well$"):
        vector_env(scenario=many).reset(seed=0)


@pytest.mark.parametrize(
    ("options", "words"),
    [({"episode_seed": seed}, "episode_seed must be") for seed in (1.7, "7", [1, 2], 2**63, -1)]
    + [({"reset_mask": np.array([1, 0, 1])}, "reset_mask must be an array of booleans")],
)
def test_bad_options_of_a_reset_are_refused(options, words):
    with pytest.raises(ConfigError, match=words):
        vector_env(render_mode=None).reset(options=options)


@pytest.mark.parametrize(
    ("actions", "words"),
    [(np.full((3, 2), 16), r"actions .* 0 and \[15, 15\]"), (np.full((3, 2), -1), "between 0 and"),
     (np.full((3, 2), 6.5), "must be whole numbers"), (np.full((3, 2), np.inf), "between 0 and"),
     (np.ones((3, 2), bool), "must be whole numbers"), ([["a", "b"]] * 3, "must be whole numbers"),
     ([[1], [1, 2], [1]], r"not \(\)"), (np.zeros((3, 3), int), r"shape \(3, 2\), not \(3, 3\)")],
)  # fmt: skip
def test_actions_outside_the_space_are_refused(actions, words):
    envs, same = vector_env(), vector_env()
    for _ in range(2):
        with pytest.raises(RuntimeError, match="call reset"):
            envs.step(np.zeros((3, 2), np.int64))
        envs.reset(options={"reset_mask": np.array([True, False, False])})
    envs.reset(seed=0)
    assert envs.np_random_seed == 0
    with pytest.raises(ConfigError, match=words):
        envs.step(actions)
    same.reset(seed=np.int64(0))
    whole = [each.step(np.full((3, 2), seven))[0] for each, seven in ((envs, 7), (same, 7.0))]
    np.testing.assert_array_equal(*whole)


def test_it_truncates_as_a_time_limit_does():
    ours = vector_env(max_episode_steps=3)
    limited = {"scenario": BRIEF, "max_episode_steps": 3, "disable_env_checker": True}
    theirs = gymnasium.make_vec("Sponge-v0", 3, "sync", {}, **limited)
    np.testing.assert_array_equal(ours.reset(seed=4)[0], theirs.reset(seed=4)[0])
    for _ in range(9):
        actions = np.full((3, 2), 7)
        for one, other in zip(ours.step(actions)[:4], theirs.step(actions)[:4], strict=True):
            np.testing.assert_array_equal(one, other)


def test_requests_beyond_the_queue_s_capacity_are_dropped_and_counted():
    kept = Serving(drop="none")
    flood = dataclasses.replace(BRIEF, arrivals=Arrivals("constant", 200.0), serving=kept)
    envs = SpongeVectorEnv(1, flood, queue_capacity=60)
    envs.reset(seed=0)
    infos = [envs.step(np.zeros((1, 2), np.int64))[4] for _ in range(4)]
    counted = ("overflowed", "dropped", "on_time", "violations", "offered")
    totals = {name: sum(int(info[name][0]) for info in infos) for name in counted}
    assert totals["overflowed"] == totals["dropped"] > 0
    left = int(infos[-1]["queued"][0]) + int(infos[-1]["running"][0])
    assert (totals["offered"], left) == (totals["on_time"] + totals["violations"] + left, 64)


def test_by_default_the_queue_has_room_for_a_whole_episode():
    kept = {"network": Network("none"), "serving": Serving(drop="none"), "duration_s": 8.0}
    flood = dataclasses.replace(BRIEF, arrivals=Arrivals("constant", 400.0), **kept)
    envs = SpongeVectorEnv(1, flood)
    envs.reset(seed=0)
    infos = [envs.step(np.zeros((1, 2), np.int64))[4] for _ in range(8)]
    assert infos[-1]["queued"][0] > 2048
    assert not any(info["overflowed"].any() for info in infos)


@EACH
def test_stable_baselines_steps_and_masks_equal_a_dummy_vec_env(name):
    scenario, (_, control, counts) = brief(name), CONTROLLED[name]
    shorter = dataclasses.replace(scenario, duration_s=3.0, slo_s=0.7 * scenario.slo_s)
    each = [scenario, shorter, scenario]
    ours = SpongeVecEnv(each, 3, control=control)
    theirs = DummyVecEnv([lambda s=s: Monitor(SpongeEnv(s, control=control)) for s in each])
    for envs in (ours, theirs):
        envs.seed(11)
        envs.set_options([{"episode_seed": 5}, {}, {"episode_seed": 7}])
    np.testing.assert_array_equal(ours.reset(), theirs.reset())
    rng = np.random.default_rng(0)
    for _ in range(10):
        actions = rng.integers(0, counts, (3, len(counts)))
        mine, yours = ours.step(actions), theirs.step(actions)
        for one, other in zip(mine[:3], yours[:3], strict=True):
            np.testing.assert_array_equal(one, other)
        assert len(set(map(id, mine[3]))) == 3
        for one, other, done in zip(mine[3], yours[3], mine[2], strict=True):
            assert bool(one) == done
            if done:
                assert one["TimeLimit.truncated"] == other["TimeLimit.truncated"]
                assert one["episode"]["l"] == other["episode"]["l"]
                assert one["episode"]["r"] == pytest.approx(other["episode"]["r"], abs=1e-5)
                np.testing.assert_array_equal(*(i["terminal_observation"] for i in (one, other)))
        masks = [np.stack(envs.env_method("action_masks")) for envs in (ours, theirs)]
        np.testing.assert_array_equal(*masks)
        np.testing.assert_array_equal(ours.env_method("action_masks", indices=1), masks[1][[1]])
    assert ours.get_attr("scenario", 1) == [shorter]
    assert ours.has_attr("action_masks")
    assert not ours.has_attr("system")
    with pytest.raises(AttributeError, match="no attribute 'system'"):
        ours.get_attr("system")
    ours.close()


def test_stable_baselines_trains_and_evaluates_on_it():
    envs = SpongeVecEnv([BRIEF, BRIEFER] * 2, 4)
    model = PPO("MlpPolicy", envs, n_steps=8, batch_size=16, n_epochs=1, seed=0, device="cpu")
    model.learn(64)
    assert len(model.ep_info_buffer or ()) == 2 * (16 // 4) + 2 * (16 // 3)
    assert [info["episode_seed"] for info in envs.reset_infos] == envs._envs.episode_seeds.tolist()
    rewards, lengths = evaluate_policy(model, envs, 4, return_episode_rewards=True)
    assert set(lengths) == {BRIEF.intervals, BRIEFER.intervals}
    assert all(reward < 0 for reward in rewards)


def test_gymnasium_wrappers_take_it():
    envs = RecordEpisodeStatistics(NormalizeObservation(vector_env()))
    envs.reset(seed=0)
    for _ in range(BRIEF.intervals):
        observations, _, _, truncated, infos = envs.step(envs.action_space.sample())
        assert observations.shape == (3, OBS_DIM)
    assert truncated.all()
    assert infos["episode"]["l"].tolist() == [BRIEF.intervals] * 3
    envs.close()
