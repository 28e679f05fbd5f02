from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import save_file
from scenarios import SHORT, short

from agents import learned
from agents.learned import PolicyController, ppo
from agents.policy import POLICY_FILE, Policy, PolicyInfo, load_policy, save_policy
from sponge_env.env.factory import make_spec, make_system, scenario_profile
from sponge_env.errors import PolicyError
from sponge_env.interfaces import SystemSpec, SystemView
from sponge_env.run.rollout import Run, run_episode
from sponge_env.scenario.config import ControlName
from sponge_env.scenario.scenario import load_scenario
from sponge_env.scenario.seeds import EVALUATION_SEEDS
from sponge_env.simulation.encoding import (
    FIELDS,
    OBS_DIM,
    VERTICAL,
    Control,
    control_named,
    encode,
)

SPEC = make_spec(SHORT, scenario_profile(SHORT))
INFO = PolicyInfo("ppo", SPEC.fingerprint, ("short",), (16, 16), FIELDS, steps=1, seed=0)


def random_policy(info: PolicyInfo = INFO) -> Policy:
    rng = np.random.default_rng(0)
    shapes = ((8, OBS_DIM), (8, 8), (sum(info.actions), 8))
    layers = [(rng.normal(size=s).astype(np.float32), np.zeros(s[0], np.float32)) for s in shapes]
    return Policy(info, tuple(layers))


def test_a_policy_survives_saving(tmp_path: Path) -> None:
    policy = random_policy()
    save_policy(policy, tmp_path / POLICY_FILE)
    loaded = load_policy(tmp_path / POLICY_FILE)
    assert loaded.info == policy.info
    for seed in range(20):
        observation = np.random.default_rng(seed).normal(size=OBS_DIM).astype(np.float32)
        assert np.array_equal(policy.act(observation), loaded.act(observation))
    assert list(tmp_path.iterdir()) == [tmp_path / POLICY_FILE]


def test_a_policy_controls_an_episode(tmp_path: Path) -> None:
    save_policy(random_policy(), tmp_path / POLICY_FILE)
    controller = ppo(str(tmp_path))
    summary = run_episode(make_system(SHORT, 0), controller, Run("ppo", "short", "sim", 0)).summary
    assert controller.description == f"follows {tmp_path / POLICY_FILE}, trained for 1 steps"
    assert summary.offered > 0
    assert 1 <= summary.mean_cores <= 16


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-300])


def _replace_with_text(path: Path) -> None:
    path.write_text("not a policy")


def _replace_with_other_archive(path: Path) -> None:
    save_file({"weights": np.zeros(3)}, path)


@pytest.mark.parametrize("damage", [_truncate, _replace_with_text, _replace_with_other_archive])
def test_damaged_files_are_refused(tmp_path: Path, damage: object) -> None:
    path = tmp_path / POLICY_FILE
    save_policy(random_policy(), path)
    damage(path)  # type: ignore[operator]
    with pytest.raises(PolicyError, match="is damaged or not a policy file"):
        load_policy(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(PolicyError, match="there is no policy file"):
        load_policy(tmp_path / POLICY_FILE)


def test_inputs_that_are_not_observed_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / POLICY_FILE
    save_policy(random_policy(dataclasses.replace(INFO, inputs=("colour", *FIELDS[1:]))), path)
    with pytest.raises(PolicyError, match="reads colour, which observations do not hold; train"):
        ppo(str(path)).reset(SPEC, 0)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "one").mkdir(parents=True)
    path.rename(tmp_path / "runs" / "one" / POLICY_FILE)
    assert "policies/ppo-yolov5s" in followed(ppo()), "the newest cannot be followed"


def test_files_that_name_no_inputs_have_those_of_their_format(tmp_path: Path) -> None:
    policy, path = random_policy(), tmp_path / POLICY_FILE
    arrays = {f"weight_{k}": weight for k, (weight, _) in enumerate(policy.layers)}
    arrays |= {f"bias_{k}": bias for k, (_, bias) in enumerate(policy.layers)}
    described = dataclasses.asdict(policy.info) | {"layout": 1, "format": 2}
    del described["inputs"]
    save_file(arrays, path, {"policy": json.dumps(described)})
    assert load_policy(path).info == policy.info
    save_file(arrays, path, {"policy": json.dumps(described | {"format": 1})})
    with pytest.raises(PolicyError, match="is of format 1, this version reads 3; train it again"):
        load_policy(path)


def decisions(controller: PolicyController) -> list[tuple[float, ...]]:
    """Return what a policy does in a short episode."""
    episode = run_episode(make_system(SHORT, 0), controller, Run("ppo", "short", "sim", 0))
    fields = ("cores", "batch", "replicas_ready", "late", "reward")
    return [tuple(getattr(one, name) for name in fields) for one in episode.intervals]


def test_a_stepwise_policy_finds_its_inputs_by_their_names(tmp_path: Path) -> None:
    policy = load_policy(learned.SHIPPED / "ppo-joint-yolov5s.safetensors")
    assert policy.info.batches
    assert policy.input_range is not None
    order = np.random.default_rng(0).permutation(len(policy.info.inputs))
    names = tuple(policy.info.inputs[k] for k in order)
    (weight, bias), *others = policy.layers
    other = dataclasses.replace(
        policy,
        info=dataclasses.replace(policy.info, inputs=names),
        layers=((weight[:, order], bias), *others),
        input_range=policy.input_range[:, order],
    )
    save_policy(other, tmp_path / POLICY_FILE)
    expected = decisions(PolicyController("ppo-joint", "shipped"))
    assert decisions(PolicyController("ppo-joint", str(tmp_path))) == expected
    assert len({tuple(each[:2]) for each in expected}) > 1


def test_a_new_field_changes_no_decision_of_a_policy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A field in the middle, and in the place of the first one the last."""
    save_policy(random_policy(), tmp_path / POLICY_FILE)

    def extended(values: Sequence[Any]) -> list[Any]:
        return [values[-1], *values[1:20], values[3], *values[20:-1], values[0]]

    expected = decisions(PolicyController("ppo", str(tmp_path)))

    def control(name: ControlName, spec: SystemSpec) -> Control:
        known = control_named(name, spec)
        names = extended(known.fields)
        names[20] = "new"
        return dataclasses.replace(known, fields=tuple(names))

    def observe(view: SystemView, spec: SystemSpec, control: Control) -> NDArray[np.float32]:
        return np.array(extended(encode(view, spec, VERTICAL)), np.float32)

    monkeypatch.setattr(learned, "control_named", control)
    monkeypatch.setattr(learned, "encode", observe)
    assert decisions(PolicyController("ppo", str(tmp_path))) == expected
    assert len({tuple(each[:2]) for each in expected}) > 1


@pytest.mark.parametrize(
    ("scenario", "file"),
    [
        ("variants", "ppo-variants"),
        ("variants-fade", "ppo-variants"),
        ("pipeline-video", "ppo-pipeline-video"),
        ("pipeline-fanout", "ppo-pipeline-fanout"),
    ],
)
def test_policies_ship_for_variants_and_pipelines(scenario: str, file: str) -> None:
    controller = PolicyController("ppo", "shipped")
    where = dataclasses.replace(load_scenario(scenario), duration_s=120.0)
    run = Run("ppo", scenario, "sim", EVALUATION_SEEDS)
    summary = run_episode(make_system(where, EVALUATION_SEEDS), controller, run).summary
    assert f"policies/{file}.safetensors" in controller.description
    assert scenario in controller.policy.info.scenarios
    assert summary.avoidable_violation_rate < 0.01
    assert summary.mean_cores < where.limits.machine_cores / 1.2


def test_layers_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    policy = random_policy()
    path = tmp_path / POLICY_FILE
    save_policy(Policy(policy.info, (policy.layers[0], policy.layers[2], policy.layers[2])), path)
    with pytest.raises(PolicyError, match="layers do not fit together"):
        load_policy(path)
    save_policy(Policy(dataclasses.replace(INFO, actions=(8, 16)), policy.layers), path)
    with pytest.raises(PolicyError, match="output does not fit its actions"):
        load_policy(path)


def test_a_checkpoint_is_no_policy(tmp_path: Path) -> None:
    with pytest.raises(PolicyError, match="which is for resuming only"):
        load_policy(tmp_path / "checkpoint.zip")


def test_another_system_is_refused(tmp_path: Path) -> None:
    save_policy(random_policy(), tmp_path / POLICY_FILE)
    scenario = short(profile="resnet18")
    other = make_spec(scenario, scenario_profile(scenario))
    with pytest.raises(PolicyError, match=r"was trained on short.*train\.py --agent ppo"):
        ppo(str(tmp_path)).reset(other, 0)


def test_a_policy_is_for_any_load_network_and_slo() -> None:
    scenario = short(slo_s=2.0)
    assert make_spec(scenario, scenario_profile(scenario)).fingerprint == SPEC.fingerprint


@pytest.fixture
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    runs, shipped = tmp_path / "runs", tmp_path / "policies"
    for folder in (runs, shipped):
        folder.mkdir()
    monkeypatch.setattr(learned, "RUNS", runs)
    monkeypatch.setattr(learned, "SHIPPED", shipped)
    return runs, shipped


def made(path: Path, **info: object) -> Path:
    path.parent.mkdir(exist_ok=True)
    save_policy(random_policy(dataclasses.replace(INFO, **info)), path)  # type: ignore[arg-type]
    return path


def followed(controller: PolicyController) -> str:
    controller.reset(SPEC, 0)
    return controller.description


def test_the_newest_policy_that_fits_wins_over_the_shipped_one(places: tuple[Path, Path]) -> None:
    runs, shipped = places
    with pytest.raises(PolicyError, match="no policy of ppo"):
        ppo().reset(SPEC, 0)
    own = made(shipped / "ppo-short.safetensors")
    made(runs / "other" / POLICY_FILE, agent="residual-ppo")
    made(runs / "elsewhere" / POLICY_FILE, fingerprint="0")
    (runs / "broken").mkdir()
    (runs / "broken" / POLICY_FILE).write_text("nothing")
    assert str(own) in followed(ppo())
    older, newer = (made(runs / name / POLICY_FILE) for name in ("b", "a"))
    os.utime(older, (1, 1))
    assert str(newer) in followed(ppo())
    assert str(own) in followed(ppo("shipped"))
    short = made(runs / "c" / POLICY_FILE, partial=True, planned=9)
    os.utime(short, (9e9, 9e9))
    assert str(newer) in followed(ppo())
    assert followed(ppo(str(short))).endswith("1 steps of 9, when training was interrupted")
    whole = made(runs / "d" / POLICY_FILE, planned=9)
    assert followed(ppo(str(whole))).endswith("trained for 9 steps, the best by validation after 1")


def test_a_policy_of_another_scenario_gives_way_to_the_shipped_one(
    places: tuple[Path, Path],
) -> None:
    runs, shipped = places
    controller = ppo()
    own = made(runs / "a" / POLICY_FILE, scenarios=("elsewhere",))
    assert "a/policy.safetensors, trained on elsewhere, not on short, for 1" in followed(controller)
    there = made(shipped / "ppo-short.safetensors", scenarios=("anything",))
    assert followed(ppo()).startswith(f"follows {there}, trained for 1")
    assert str(own) in followed(ppo(str(own))), "it is named"
    controller.reset(dataclasses.replace(SPEC, scenario="elsewhere"), 0)
    assert controller.description.startswith(f"follows {own}, trained for 1")
