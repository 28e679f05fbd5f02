from __future__ import annotations

import dataclasses
import math
import pickle
import warnings

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env as gymnasium_check_env
from scenarios import SHORT, STEADY_PROFILE, requests_at, short

from sponge_env.env.factory import make_system
from sponge_env.env.single import SpongeEnv
from sponge_env.errors import ConfigError
from sponge_env.interfaces import Allocation
from sponge_env.metrics import IntervalMetrics, names
from sponge_env.scenario.config import Arrivals, Network, Serving
from sponge_env.simulation.encoding import CLIP, FIELDS, OBS_DIM, decode, encode
from sponge_env.simulation.system import SimulatedSystem


def test_gymnasium_accepts_the_environment() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        gymnasium_check_env(gymnasium.make("Sponge-v0", scenario=SHORT).unwrapped)


def test_stable_baselines_accepts_the_environment() -> None:
    from stable_baselines3.common.env_checker import check_env

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(SpongeEnv(SHORT))


@pytest.mark.parametrize("scenario", ["paper", "bursty"])
def test_two_environments_with_one_seed_give_the_same_bytes(scenario: str) -> None:
    first, second = (gymnasium.make("Sponge-v0", scenario=scenario) for _ in range(2))
    assert first.reset(seed=7)[0].tobytes() == second.reset(seed=7)[0].tobytes()
    first.action_space.seed(1)
    for _ in range(200):
        action = first.action_space.sample()
        one, other = first.step(action), second.step(action)
        assert one[0].tobytes() == other[0].tobytes()
        assert repr(one[1:]) == repr(other[1:])


def test_episodes_end_by_truncation_and_differ() -> None:
    env = SpongeEnv(SHORT)
    seeds = []
    for seed in (3, None):
        _, info = env.reset(seed=seed)
        seeds.append(info["episode_seed"])
        ends = [env.step(np.array([7, 7]))[2:4] for _ in range(SHORT.intervals)]
        assert ends == [(False, False)] * (SHORT.intervals - 1) + [(False, True)]
    assert seeds[0] != seeds[1]


def test_an_episode_seed_repeats_the_episode_of_an_evaluation() -> None:
    env = SpongeEnv(SHORT)
    env.reset(options={"episode_seed": 5})
    info = env.step(np.array([7, 7]))[4]
    metrics = make_system(SHORT, 5).step(Allocation(8, 8))
    measured = {name: getattr(metrics, name) for name in names(IntervalMetrics)}
    del measured["reward"]
    assert info == measured | {"episode_seed": 5}


def test_infos_of_reset_and_step_have_the_same_numbers_without_nan() -> None:
    for rate_rps in (0.5, 60.0):  # hardly a request, and more than can be served
        arrivals, drops = Arrivals("constant", rate_rps), Serving(drop="expired")
        env = SpongeEnv(dataclasses.replace(SHORT, arrivals=arrivals, serving=drops))
        _check_infos([env.reset(seed=0)[1], *(env.step(np.array([3, 7]))[4] for _ in range(8))])


def _check_infos(infos: list[dict[str, float]]) -> None:
    assert len({tuple(info) for info in infos}) == 1
    assert "reward" not in infos[0]
    assert all(math.isfinite(value) for info in infos for value in info.values())
    kinds = [[type(value) for value in info.values()] for info in infos]
    assert all(each == kinds[0] for each in kinds)


def test_a_latency_of_what_was_given_up_is_how_long_it_had_waited() -> None:
    scenario = short(serving=Serving("expired"), network=Network("none"), duration_s=3.0)
    env = SpongeEnv(dataclasses.replace(scenario, arrivals=Arrivals("constant", 200.0)))
    env.reset(seed=0)
    infos = [env.step(np.array([0, 0]))[4] for _ in range(3)]
    dropped = [info for info in infos if info["dropped"] > info["on_time"] + info["late"]]
    assert dropped
    for info in dropped:
        assert scenario.slo_s < info["latency_p50_s"] == info["latency_p99_s"] < 3.0


@pytest.mark.parametrize("mode", ["NextStep", "SameStep"])
def test_infos_of_vector_environments_are_arrays_of_one_kind_at_every_step(mode: str) -> None:
    envs = gymnasium.make_vec("Sponge-v0", num_envs=3, scenario=SHORT, autoreset_mode=mode)
    infos = [envs.reset(seed=0)[1]]
    infos += [envs.step(np.full((3, 2), 7))[4] for _ in range(SHORT.intervals + 2)]
    for info in infos:
        shown = {name for name in info if "final" not in name}
        assert shown == set(infos[0])
        assert all(info[name].shape == (3,) for name in shown)
        assert all(info[name].dtype == infos[0][name].dtype for name in shown)
        assert all(np.isfinite(info[name]).all() for name in shown)
        assert all(info[name].all() for name in shown if name.startswith("_"))
    assert "reward" not in infos[0]


@pytest.mark.parametrize(
    "options", [{"episode_sed": 1}, {"episode_seed": -1}, {"episode_seed": "3"}]
)
def test_bad_reset_options_are_named(options: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match="episode_seed"):
        SpongeEnv(SHORT).reset(options=options)


def test_no_global_random_state() -> None:
    env = SpongeEnv(SHORT)
    np.random.seed(0)
    before = np.random.get_state()[1].copy()  # type: ignore[index,union-attr]
    env.reset(seed=0)
    env.step(np.array([3, 3]))
    assert np.array_equal(before, np.random.get_state()[1])  # type: ignore[index]


def test_vector_environments_are_made() -> None:
    envs = gymnasium.make_vec("Sponge-v0", num_envs=3, vectorization_mode="sync", scenario=SHORT)
    observations, _ = envs.reset(seed=1)
    assert observations.shape == (3, OBS_DIM)
    observations, rewards, *_ = envs.step(envs.action_space.sample())
    assert observations.shape == (3, OBS_DIM)
    assert rewards.shape == (3,)
    envs.close()


def test_environments_can_be_pickled() -> None:
    env = pickle.loads(pickle.dumps(SpongeEnv(SHORT)))
    env.reset(seed=0)
    env.step(np.array([0, 0]))


def test_rendering() -> None:
    env = SpongeEnv(SHORT, render_mode="ansi")
    env.reset(seed=0)
    assert "nothing has happened yet" in env.render()
    env.step(np.array([7, 3]))
    assert "8 cores x 1, batch 4" in env.render()
    env = SpongeEnv(SHORT, render_mode="rgb_array")
    env.reset(seed=0)
    blank = env.render()
    env.step(np.array([7, 3]))
    drawn = env.render()
    assert drawn.shape == blank.shape == (320, 480, 3)
    assert drawn.dtype == np.uint8
    assert not np.array_equal(blank, drawn)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"scenario": "papre"}, "did you mean 'paper'"),
        ({"render_mode": "human"}, "render_mode must be one of"),
    ],
)
def test_bad_arguments(arguments: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        SpongeEnv(**arguments)  # type: ignore[arg-type]


def test_an_unknown_backend_is_named() -> None:
    env = SpongeEnv(SHORT, backend="simm")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="unknown backend 'simm'"):
        env.reset(seed=0)


@pytest.mark.parametrize("action", [[3, 2], (3, 2), np.array([3.0, 2.0]), np.array([3, 2], "u1")])
def test_any_whole_numbers_are_an_action(action: object) -> None:
    env = SpongeEnv(SHORT)
    env.reset(seed=0)
    info = env.step(action)[4]  # type: ignore[arg-type]
    assert (info["requested_cores"], info["batch"]) == (4, 3)


@pytest.mark.parametrize(
    "action",
    [5, [5], [1, 2, 3], [16, 0], [-1, 0], [0.5, 1], [np.nan, 1], "ab", None, [[1, 2]], [2**70, 1]],
)
def test_an_action_outside_the_space_is_named(action: object) -> None:
    env = SpongeEnv(SHORT)
    env.reset(seed=0)
    with pytest.raises(ConfigError, match=r"must be 2 whole numbers from 0 to \[15, 15\], not"):
        env.step(action)  # type: ignore[arg-type]


def test_step_before_reset_is_refused() -> None:
    with pytest.raises(RuntimeError, match="call reset"):
        SpongeEnv(SHORT).step(np.array([0, 0]))


def test_observation_fields_mean_what_their_names_say() -> None:
    system = make_system(SHORT, 0)
    empty = dict(zip(FIELDS, encode(system.view(), system.spec), strict=True))
    assert empty["queue_length"] == empty["running_size"] == empty["arrivals_last"] == 0
    assert empty["budget_q0"] == 1.0
    for _ in range(6):
        system.step(Allocation(1, 1))
    view = system.view()
    seen = dict(zip(FIELDS, encode(view, system.spec), strict=True))
    assert seen["cores"] == seen["batch"] == pytest.approx(1 / 16)
    assert seen["running_size"] == pytest.approx(1 / 16)
    assert seen["delay_max"] == pytest.approx(view.delays_s.max() / SHORT.slo_s)
    due = [seen[f"due_{i}_of_8"] for i in range(1, 9)]
    assert sum(due) == pytest.approx(seen["queue_length"], rel=1e-5)
    quantiles = [seen[f"budget_q{q}"] for q in (0, 10, 25, 50, 75, 90)]
    assert quantiles == sorted(quantiles)
    assert quantiles[0] == pytest.approx(
        max(-CLIP, (view.first.queued_deadlines_s[0] - view.now_s) / SHORT.slo_s), rel=1e-5
    )


def test_actions_decode_to_allocations() -> None:
    assert decode(np.array([0, 0])) == Allocation(1, 1)
    assert decode(np.array([15, 7])) == Allocation(16, 8)


@pytest.mark.parametrize(
    ("deadlines_s", "expected"),
    [
        ([9.0] * 5, -0.5),  # nothing is missed
        ([0.05, 0.3, 9.0, 9.0, 9.0], -0.5 - 20 * 2 / 5),  # one late, one dropped
        ([], -0.5),
    ],
)
def test_reward_charges_cores_and_misses(deadlines_s: list[float], expected: float) -> None:
    """Each is served for 0.2 s, one after the other."""
    workload = requests_at(*((0.0, deadline_s) for deadline_s in deadlines_s))
    scenario = short(serving=Serving("expired"), duration_s=2.0)
    system = SimulatedSystem(scenario, 0, STEADY_PROFILE, workload)
    metrics = system.step(Allocation(8, 1))
    assert metrics.on_time == sum(deadline_s == 9.0 for deadline_s in deadlines_s)
    assert metrics.reward == pytest.approx(expected)
    assert system.step(Allocation(16, 1)).reward == pytest.approx(-1.0)


def test_masks_fit_the_actions_of_either_control() -> None:
    for control in ("vertical", "joint"):
        env = SpongeEnv(SHORT, control=control)  # type: ignore[arg-type]
        env.reset(seed=0)
        masks = env.action_masks()
        assert masks.shape == (int(env.action_space.nvec.sum()),)  # type: ignore[attr-defined]
        assert masks[:16].any()
        assert masks[16:32].any()
