"""The comparison of policies with rules: which is the median, and what is said of them."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from agents.learn.judge import Judgement, judgement
from agents.policy import load_policy, save_policy
from benchmarks.judged import main, median_of, said_of, table
from sponge_env.scenario.scenario import Scenario

JOINT = Path("agents/policies/ppo-joint-yolov5s.safetensors")
SCENARIOS = Scenario(name="calm"), Scenario(name="rough")


def reached(cores: list[float], violations: list[list[int]]) -> Judgement:
    """Judge one that holds so many cores, and violates so many of 1000 in each episode."""
    one = np.ones((len(violations), len(cores)))
    return judgement(np.array([cores * one, np.array(violations), 1000 * one, one]))


RULE = reached([4.0, 3.0], [[0, 2]] * 8)
NINE = reached([1.0] * 9, [[0] * 9])
FRUGAL = reached([3.0, 2.0], [[0, 1], [1, 2]] * 4)
LAVISH = reached([5.0, 2.5], [[0, 0]] * 8)


def test_the_median_is_one_of_them_and_the_worse_of_two() -> None:
    assert median_of([0.9, 0.7, 0.8]) == 2
    assert median_of([0.9, 0.7]) == 0
    assert median_of([0.9]) == 0


def test_a_policy_alone_is_not_spread() -> None:
    head, *rows, _, said = table(SCENARIOS, {"a-program": RULE}, RULE, [FRUGAL]).split("\n")
    assert head.split("  ")[-1].strip() == "policy"
    assert [row.split()[0] for row in rows] == ["calm", "rough"]
    assert "3.00 (0.050%)" in rows[0]
    assert "2.00 (0.150%)" in rows[1]
    # In the calm scenario it has more violations than the rule's none, but few.
    assert said.startswith("fewer cores in 2 of 2: 1 with at most 0.01 % of the requests ")
    assert "in 2 of them no more than the rule's or 0.1%; 0.100% violated in the mean" in said


@pytest.mark.parametrize(
    ("violations", "undecided", "more"),
    [([[1, 2]] * 8, 0, 1), ([[8, 2]] + [[0, 2]] * 7, 1, 0)],
    ids=["in every episode", "in one episode"],
)
def test_more_violations_may_be_chance(
    violations: list[list[int]], undecided: int, more: int
) -> None:
    said = said_of(reached([3.0, 2.0], violations), RULE)
    assert "1 with at most 0.01 % of the requests more violated" in said
    assert f"{undecided} with more, not significantly" in said
    assert f"{more} with significantly more" in said


def test_more_violations_on_more_cores_are_no_cell_won() -> None:
    said = said_of(reached([5.0, 2.0], [[8, 2]] + [[0, 2]] * 7), RULE)
    assert said.startswith("fewer cores in 1 of 2: 1 with at most")
    assert "0 with more, not significantly" in said


def test_rates_of_episodes_add_up_to_that_of_all_requests() -> None:
    offered, violations = np.array([[1000], [10]]), np.array([[10], [0]])
    found = judgement(np.array([offered, violations, offered, offered], np.float64))
    assert found.episode_rates.mean() == pytest.approx(found.violation_rate[0])


def test_of_several_the_median_stands_beside_all() -> None:
    head, calm, _, _, said, _, first, second = table(
        SCENARIOS, {"one": RULE, "other": LAVISH}, RULE, [FRUGAL, LAVISH], median=1
    ).split("\n")
    assert head.split() == "cores one other best rule median policy all 2".split()
    assert "5.00 (0.000%)" in calm
    assert calm.endswith("3.00 to 5.00 (0.000 to 0.050%)")
    assert said.startswith("fewer cores in 1 of 2:")
    assert first.startswith("training 0: fewer cores in 2 of 2")
    assert second.startswith("training 1: fewer cores in 1 of 2")


def test_what_is_kept_says_of_how_many_it_is_the_median(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("program_alone", "best_rules"):
        sums = np.ones((4, 1, 9))
        monkeypatch.setattr(f"benchmarks.judged.{name}", lambda *_, sums=sums, **__: sums)
    monkeypatch.setattr("benchmarks.judged.Judge", lambda *_: lambda policy: NINE)
    policy, paths = load_policy(JOINT), [tmp_path / name for name in "abc"]
    for path, seed, score in zip(paths, (0, 1, 2), (0.9, 0.7, 0.8), strict=True):
        command = f"train.py --seed {seed} --randomised --run-dir runs/{seed}"
        changes = {"seed": seed, "score": score, "median_of": 1, "command": command}
        info = dataclasses.replace(policy.info, **changes)
        save_policy(dataclasses.replace(policy, info=info), path)
    kept = tmp_path / "kept"
    assert main([*map(str, paths), "--profile", "yolov5s", "--keep", str(kept)]) == 0
    info = load_policy(kept).info
    assert (info.score, info.median_of) == (0.8, 3)


@pytest.mark.parametrize(
    ("changes", "profile", "said"),
    [
        ({"seed": 0}, "yolov5s", "policies that are compared need seeds of their own"),
        ({"planned": 1}, "yolov5s", "{1} and {0} were trained in different ways"),
        ({"command": "train.py"}, "yolov5s", "{1} and {0} were trained in different ways"),
        ({"partial": True}, "yolov5s", "{1} is of a training that did not end"),
        ({"score": None}, "yolov5s", "{1} does not say its score, by which the median is found"),
        ({}, "resnet18", "{0} is not for resnet18 under the limits of the suite"),
    ],
)
def test_policies_that_cannot_be_compared_are_refused_before_they_play(
    changes: dict[str, object],
    profile: str,
    said: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    policy, paths = load_policy(JOINT), [tmp_path / name for name in "ab"]
    first = dataclasses.replace(policy.info, seed=0)
    second = dataclasses.replace(first, **{"seed": 1, **changes})
    for path, info in zip(paths, (first, second), strict=True):
        save_policy(dataclasses.replace(policy, info=info), path)
    assert main([*map(str, paths), "--profile", profile]) == 2
    assert capsys.readouterr().err == f"error: {said.format(*paths)}\n"


def test_other_policies_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    policy, path = load_policy(JOINT), tmp_path / "policy"
    save_policy(
        dataclasses.replace(policy, info=dataclasses.replace(policy.info, batches=())), path
    )
    assert main([str(path), "--profile", "yolov5s"]) == 2
    assert capsys.readouterr().err == f"error: {path} was not trained in phases\n"
