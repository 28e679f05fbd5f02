from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from scenarios import SHORT, short

from agents.policy import Policy, PolicyController, PolicyInfo, load_policy, save_policy
from sponge_env.encoding import OBS_DIM
from sponge_env.errors import PolicyError
from sponge_env.factory import make_system
from sponge_env.rollout import Run, run_episode

INFO = PolicyInfo("short", SHORT.system_hash, cores_max=16, batch_max=16, steps=1, seed=0)


def random_policy(info: PolicyInfo = INFO) -> Policy:
    rng = np.random.default_rng(0)
    shapes = ((8, OBS_DIM), (8, 8), (info.cores_max + info.batch_max, 8))
    layers = [(rng.normal(size=s).astype(np.float32), np.zeros(s[0], np.float32)) for s in shapes]
    return Policy(info, tuple(layers))


def test_a_policy_survives_saving(tmp_path: Path) -> None:
    policy = random_policy()
    save_policy(policy, tmp_path / "policy.npz")
    loaded = load_policy(tmp_path / "policy.npz")
    assert loaded.info == policy.info
    for seed in range(20):
        observation = np.random.default_rng(seed).normal(size=OBS_DIM).astype(np.float32)
        assert np.array_equal(policy.act(observation), loaded.act(observation))
    assert list(tmp_path.iterdir()) == [tmp_path / "policy.npz"]


def test_a_policy_controls_an_episode() -> None:
    summary = run_episode(
        make_system(SHORT, 0), PolicyController(random_policy()), Run("ppo", "short", "sim", 0)
    ).summary
    assert summary.offered > 0
    assert 1 <= summary.mean_cores <= 16


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-300])


def _replace_with_text(path: Path) -> None:
    path.write_text("not a policy")


def _replace_with_other_archive(path: Path) -> None:
    np.savez(path, weights=np.zeros(3))


@pytest.mark.parametrize("damage", [_truncate, _replace_with_text, _replace_with_other_archive])
def test_damaged_files_are_refused(tmp_path: Path, damage: object) -> None:
    path = tmp_path / "policy.npz"
    save_policy(random_policy(), path)
    damage(path)  # type: ignore[operator]
    with pytest.raises(PolicyError, match="is damaged or not a policy file"):
        load_policy(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(PolicyError, match="there is no policy file"):
        load_policy(tmp_path / "policy.npz")


def test_another_layout_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "policy.npz"
    save_policy(random_policy(dataclasses.replace(INFO, layout=999)), path)
    with pytest.raises(PolicyError, match="observation layout 999"):
        load_policy(path)


def test_layers_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    policy = random_policy()
    path = tmp_path / "policy.npz"
    save_policy(Policy(policy.info, policy.layers[1:]), path)
    with pytest.raises(PolicyError, match="layers do not fit together"):
        load_policy(path)
    save_policy(Policy(dataclasses.replace(INFO, cores_max=8), policy.layers), path)
    with pytest.raises(PolicyError, match="output does not fit its limits"):
        load_policy(path)


def test_another_system_is_refused() -> None:
    controller = PolicyController(random_policy())
    controller.check(SHORT.system_hash, "short")
    with pytest.raises(PolicyError, match=r"train\.py --agent ppo --scenario other"):
        controller.check(short(slo_s=2.0).system_hash, "other")
