from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from scenarios import SHORT
from stable_baselines3.common.env_checker import check_env as check_env_sb3

import sponge_env  # noqa: F401  # registers the environments
from sponge_env.errors import ConfigError


@pytest.mark.parametrize("name", ["SpongeDiscrete-v0", "SpongeContinuous-v0"])
def test_other_action_spaces_pass_both_checkers(name: str) -> None:
    env = gym.make(name, scenario=SHORT)
    check_env(env.unwrapped, skip_render_check=True)
    check_env_sb3(env)


def test_every_combination_of_choices_has_one_number() -> None:
    env = gym.make("SpongeDiscrete-v0", scenario=SHORT).env.env  # type: ignore[attr-defined]
    assert env.action_space.n == 256
    assert {tuple(env.action(k)) for k in range(256)} == {
        (c, b) for c in range(16) for b in range(16)
    }


@pytest.mark.parametrize("name", ["SpongeDiscrete-v0", "SpongeContinuous-v0"])
def test_gymnasium_collects_their_pictures(name: str) -> None:
    env = gym.make(name, scenario=SHORT, render_mode="rgb_array_list")
    env.reset(seed=0)
    env.step(env.action_space.sample())
    frames = env.render()
    assert isinstance(frames, list)
    assert [np.shape(frame) for frame in frames] == [(320, 480, 3)] * 2


@pytest.mark.parametrize("action", [256, -1, 1.5, [3], np.nan])
def test_a_number_of_no_combination_is_named(action: object) -> None:
    env = gym.make("SpongeDiscrete-v0", scenario=SHORT).env.env  # type: ignore[attr-defined]
    with pytest.raises(ConfigError, match="a whole number from 0 to 255, not"):
        env.action(action)


@pytest.mark.parametrize("action", [[0.0], 0.0, [0.0, np.nan], [[0.0, 0.0]]])
def test_what_is_no_real_action_is_named(action: object) -> None:
    env = gym.make("SpongeContinuous-v0", scenario=SHORT).env.env  # type: ignore[attr-defined]
    with pytest.raises(ConfigError, match="an action must be 2 real numbers, not"):
        env.action(action)


def test_real_numbers_cover_every_choice_equally() -> None:
    env = gym.make("SpongeContinuous-v0", scenario=SHORT).env.env  # type: ignore[attr-defined]
    drawn = [env.action(np.array([x, -x], np.float32)) for x in np.linspace(-1, 1, 3201)]
    counts = np.bincount([cores for cores, _ in drawn])
    assert len(counts) == 16
    assert counts.max() - counts.min() <= 2
    assert list(env.action(np.array([9.0, -9.0], np.float32))) == [15, 0]


def test_the_numbers_do_what_the_choices_do() -> None:
    plain, numbered = (
        gym.make("Sponge-v0", scenario=SHORT),
        gym.make("SpongeDiscrete-v0", scenario=SHORT),
    )
    for env in (plain, numbered):
        env.reset(seed=1)
    for cores, batch in [(3, 1), (15, 15), (0, 7)]:
        expected = plain.step(np.array([cores, batch]))
        seen = numbered.step(cores * 16 + batch)
        assert np.array_equal(expected[0], seen[0])
        assert expected[1] == seen[1]


def test_a_combination_is_masked_as_its_choices_are() -> None:
    env = gym.make("SpongeDiscrete-v0", scenario=SHORT)
    env.reset(seed=0)
    for _ in range(6):
        env.step(255)
    masks = env.get_wrapper_attr("action_masks")()
    parts = env.unwrapped.action_masks()  # type: ignore[attr-defined]
    assert not parts.all()
    expected = [parts[c] and parts[16 + b] for c in range(16) for b in range(16)]
    assert masks.tolist() == expected
