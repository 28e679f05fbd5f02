"""Policy files: what is read, what is refused, and which one is followed."""

import dataclasses
import os

import numpy as np
import pytest
from safetensors.numpy import save_file
from scenarios import SHORT, episode_of, short
from tiny_policies import CHOICES, SCENARIO, SPEC, STEPWISE, drawn_policy

from agents import learned
from agents.history import INPUTS
from agents.learn import spec_of
from agents.learn.episodes import evaluated
from agents.learned import PolicyController
from agents.policy import ANY_MODEL, POLICY_FILE, load_policy, save_policy
from sponge_env import load_scenario
from sponge_env.errors import PolicyError
from sponge_env.scenario.seeds import EVALUATION_SEEDS


def saved(path, info=STEPWISE, **changes):
    path.parent.mkdir(exist_ok=True)
    save_policy(drawn_policy(info, **changes), path)
    return path


def played(controller):
    fields = ("cores", "batch", "replicas_ready", "late", "reward")
    intervals = episode_of(SHORT, controller).intervals
    return [tuple(getattr(one, name) for name in fields) for one in intervals]


def followed(controller):
    controller.reset(SPEC, 0)
    return controller.description


def test_a_policy_survives_saving_and_controls_an_episode(tmp_path):
    policy, path = drawn_policy(), saved(tmp_path / POLICY_FILE)
    loaded = load_policy(path)
    assert loaded.info == policy.info
    observations = np.random.default_rng(0).normal(size=(20, len(INPUTS))).astype(np.float32)
    assert np.array_equal(policy.logits(observations), loaded.logits(observations))
    assert list(tmp_path.iterdir()) == [path]
    controller = PolicyController("ppo-joint", str(tmp_path))
    assert len(set(played(controller))) > 1
    assert controller.description.startswith(f"follows {path}, trained for 1 steps")


POLICY = drawn_policy()
FIRST, HIDDEN, LAST = POLICY.layers
NO_NUMBER = LAST[0].copy()
NO_NUMBER[0, 0] = np.nan
DAMAGES = {  # what is done to a file, or what changes of the policy in it
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:-300]),
    "text": lambda path: path.write_text("not a policy"),
    "other arrays": lambda path: save_file({"weights": np.zeros(3)}, path),
    "layers": {"layers": (FIRST, LAST, LAST)},
    "no number": {"layers": (FIRST, HIDDEN, (NO_NUMBER, LAST[1]))},
    "range": {"input_range": np.zeros((2, 3), np.float32)},
    "actions": {"info": dataclasses.replace(STEPWISE, actions=(8, *CHOICES.actions[1:]))},
    "batches": {"info": dataclasses.replace(STEPWISE, batches=(1, 2))},
}


@pytest.mark.parametrize("kind", DAMAGES)
def test_damaged_files_are_refused(tmp_path, kind):
    path, damage = saved(tmp_path / POLICY_FILE), DAMAGES[kind]
    if isinstance(damage, dict):
        save_policy(dataclasses.replace(POLICY, **damage), path)
    else:
        damage(path)
    with pytest.raises(PolicyError, match=f"{path} is damaged"):
        load_policy(path)


def test_what_is_no_policy_of_this_version_is_refused(tmp_path):
    other = r"of recurrent-ppo that this version cannot follow; train one of ppo, .*sb3:FILE"
    for path, sentence in (
        (tmp_path / POLICY_FILE, "there is no policy file"),
        (saved(tmp_path / "2", format=2), "is of format 2, this version reads 3; train it again"),
        (saved(tmp_path / "r", agent="recurrent-ppo"), other),
        (saved(tmp_path / "p", batches=()), "a policy of ppo-joint that this version cannot"),
    ):
        with pytest.raises(PolicyError, match=sentence):
            load_policy(path)


def test_inputs_that_are_not_observed_are_named(tmp_path):
    path = saved(tmp_path / POLICY_FILE, inputs=("colour", *INPUTS[1:]))
    with pytest.raises(PolicyError, match="reads colour, which observations do not hold; train"):
        PolicyController("ppo-joint", str(path)).reset(SPEC, 0)


def test_a_policy_finds_its_inputs_by_their_names(tmp_path):
    info, path = STEPWISE, tmp_path / POLICY_FILE
    seen = np.full((2, len(info.inputs)), 100.0, np.float32)
    seen[0] = -100.0
    seen[:, info.inputs.index("bandwidth")] = 0.0  # which is clipped, without alarm
    policy = dataclasses.replace(drawn_policy(info), input_range=seen)
    order = np.random.default_rng(0).permutation(len(info.inputs))
    (weight, bias), *others = policy.layers
    moved = dataclasses.replace(info, inputs=tuple(info.inputs[k] for k in order))
    layers = (weight[:, order], bias), *others
    other = dataclasses.replace(policy, info=moved, layers=layers, input_range=seen[:, order])
    decisions = []
    for each in (policy, other):
        save_policy(each, path)
        decisions.append(played(PolicyController(info.agent, str(path))))
    # Sums of another order differ in their last digits, which decides nothing here.
    assert decisions[0] == decisions[1]
    assert len({each[:2] for each in decisions[0]}) > 1
    expected, result = (evaluated(each, [SCENARIO], 1) for each in (policy, other))
    assert result.cores == expected.cores
    np.testing.assert_array_equal(result.input_range, expected.input_range[:, order])


@pytest.mark.parametrize("scenario", ["variants-fade", "pipeline-video", "pipeline-fanout"])
def test_policies_ship_for_variants_and_pipelines(scenario):
    controller = PolicyController("ppo", "shipped")
    where = dataclasses.replace(load_scenario(scenario), duration_s=120.0)
    summary = episode_of(where, controller, EVALUATION_SEEDS).summary
    assert f"policies/ppo-{scenario.removesuffix('-fade')}.safetensors" in controller.description
    assert scenario in controller.policy.info.scenarios
    assert summary.avoidable_violation_rate < 0.01
    assert summary.mean_cores < where.limits.machine_cores / 1.2


def test_another_system_is_refused_but_any_load_network_and_slo_is_fine(tmp_path):
    path = saved(tmp_path / POLICY_FILE)
    controller, scenario = PolicyController("ppo-joint", str(path)), short(profile="resnet18")
    with pytest.raises(PolicyError, match=r"was trained on short.*train\.py --agent ppo-joint"):
        controller.reset(spec_of(scenario), 0)
    with pytest.raises(PolicyError, match="is a policy of ppo-joint, not of ppo"):
        PolicyController("ppo", str(path)).reset(SPEC, 0)
    controller.reset(spec_of(short(slo_s=2.0)), 0)
    saved(path, STEPWISE, actions=(15, 8, 4))
    with pytest.raises(PolicyError, match="chooses other things than there are"):
        PolicyController("ppo-joint", str(path)).reset(SPEC, 0)


@pytest.fixture
def places(tmp_path, monkeypatch):
    runs, shipped = tmp_path / "runs", tmp_path / "policies"
    for folder in (runs, shipped):
        folder.mkdir()
    monkeypatch.setattr(learned, "RUNS", runs)
    monkeypatch.setattr(learned, "SHIPPED", shipped)
    return runs, shipped


def test_the_newest_policy_that_fits_wins_over_the_shipped_one(places):
    runs, shipped = places

    def newest(source="newest"):
        return followed(PolicyController("ppo-joint", source))

    with pytest.raises(PolicyError, match="no policy of ppo-joint"):
        newest()
    own = saved(shipped / "short.safetensors")
    saved(runs / "other" / POLICY_FILE, agent="ppo")
    saved(runs / "removed" / POLICY_FILE, agent="residual-ppo")
    saved(runs / "elsewhere" / POLICY_FILE, fingerprint="0")
    saved(runs / "unknown" / POLICY_FILE, inputs=("colour", *INPUTS[1:]))
    (runs / "broken").mkdir()
    (runs / "broken" / POLICY_FILE).write_text("nothing")
    assert str(own) in newest()
    older, newer = (saved(runs / name / POLICY_FILE) for name in ("b", "a"))
    os.utime(older, (1, 1))
    assert str(newer) in newest()
    assert str(own) in newest("shipped")
    short = saved(runs / "c" / POLICY_FILE, partial=True, planned=9)
    os.utime(short, (9e9, 9e9))
    assert str(newer) in newest()
    assert newest(str(short)).endswith("1 steps of 9, when training was interrupted")
    whole = saved(runs / "d" / POLICY_FILE, planned=9)
    assert newest(str(whole)).endswith("trained for 9 steps, the best by validation after 1")
    saved(own, steps=90)
    assert newest("shipped").endswith("trained for 90 steps")


def test_a_policy_of_another_scenario_gives_way_to_the_shipped_one(places):
    runs, shipped = places
    controller = PolicyController("ppo-joint")
    own = saved(runs / "a" / POLICY_FILE, scenarios=("elsewhere",))
    with pytest.raises(PolicyError, match="name one with --policy or train one"):
        followed(controller)
    for_any = saved(shipped / "any.safetensors", fingerprint=ANY_MODEL)
    assert str(for_any) in followed(PolicyController("ppo-joint")), "better than none"
    there = saved(shipped / "short.safetensors", scenarios=("anything",))
    assert followed(controller).startswith(f"follows {there}, trained for 1")
    assert str(own) in followed(PolicyController("ppo-joint", str(own))), "it is named"
    controller.reset(dataclasses.replace(SPEC, scenario="elsewhere"), 0)
    assert controller.description.startswith(f"follows {own}, trained for 1")
