"""The comparison of policies with rules: which is the median, and what is counted."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from agents.learn.evaluation import Evaluation
from agents.policy import load_policy, save_policy
from benchmarks.judged import compared, comparison, main, median_of, table
from sponge_env.scenario.scenario import Scenario

JOINT = Path("agents/policies/ppo-joint-yolov5s.safetensors")
SCENARIOS = Scenario(name="calm"), Scenario(name="rough")


def reached(cores: list[float], violations: list[list[int]]) -> Evaluation:
    """Evaluate one that holds so many cores, and violates so many of 1000 in each episode."""
    one = np.ones((len(violations), len(cores)))
    return Evaluation.of(np.array([cores * one, np.array(violations), 1000 * one, one]))


RULE = reached([4.0, 3.0], [[0, 2]] * 8)
FRUGAL = reached([3.0, 2.0], [[0, 1], [1, 2]] * 4)


def test_the_median_is_one_of_them_and_the_worse_of_two() -> None:
    assert [median_of(scores) for scores in ([0.9, 0.7, 0.8], [0.9, 0.7], [0.9])] == [2, 0, 0]


def test_the_tables_have_a_row_for_each_scenario_and_policy() -> None:
    head, calm, rough = table(SCENARIOS, {"best rule": RULE, "seed 0": FRUGAL}).split("\n")
    assert head.split() == "cores best rule seed 0".split()
    assert calm.split() == "calm 4.00 (0.000%) 3.00 (0.050%)".split()
    assert rough.split() == "rough 3.00 (0.200%) 2.00 (0.150%)".split()
    row = comparison({"seed 0": FRUGAL}, RULE).split("\n")[1]
    assert row.split() == "seed 0 2 1 1 0 2 0.100% 0.707 0.750".split()


@pytest.mark.parametrize(
    ("cores", "violations", "counts"),
    [
        ([3.0, 2.0], [[1, 2]] * 8, (2, 1, 0, 1)),  # more in every episode
        ([3.0, 2.0], [[8, 2]] + [[0, 2]] * 7, (2, 1, 1, 0)),  # in one, perhaps by chance
        ([5.0, 2.0], [[8, 2]] + [[0, 2]] * 7, (1, 1, 0, 0)),  # on more cores
    ],
)
def test_more_violations_may_be_chance(
    cores: list[float], violations: list[list[int]], counts: tuple[int, ...]
) -> None:
    found = compared(reached(cores, violations), RULE)
    assert tuple(found[name] for name in ("fewer", "no more", "undecided", "more")) == counts


def test_what_is_kept_says_of_how_many_it_is_the_median(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sums = np.ones((4, 1, 9))
    monkeypatch.setattr("benchmarks.judged.play_program", lambda *_: sums)
    monkeypatch.setattr("benchmarks.judged.best_rules", lambda *_: (sums, []))
    result = reached([1.0] * 9, [[0] * 9])
    monkeypatch.setattr("benchmarks.judged.PolicyEvaluator", lambda *_, **__: lambda policy: result)
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
    ("changes", "profile", "sentence"),
    [
        ({"seed": 0}, "yolov5s", "policies that are compared need seeds of their own"),
        ({"planned": 1}, "yolov5s", "{1} and {0} were trained in different ways"),
        ({"command": "train.py"}, "yolov5s", "{1} and {0} were trained in different ways"),
        ({"partial": True}, "yolov5s", "{1} is of a training that did not end"),
        ({"score": None}, "yolov5s", "{1} does not say its score, by which the median is found"),
        ({"batches": ()}, "yolov5s", "{1} was not trained in phases"),
        ({}, "resnet18", "{0} is not for resnet18 under the limits of the suite"),
    ],
)
def test_policies_that_cannot_be_compared_are_refused_before_they_play(
    changes: dict[str, object],
    profile: str,
    sentence: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    policy, paths = load_policy(JOINT), [tmp_path / name for name in "ab"]
    first = dataclasses.replace(policy.info, seed=0)
    second = dataclasses.replace(first, **{"seed": 1, **changes})
    for path, info in zip(paths, (first, second), strict=True):
        save_policy(dataclasses.replace(policy, info=info), path)
    assert main([*map(str, paths), "--profile", profile]) == 2
    assert capsys.readouterr().err == f"error: {sentence.format(*paths)}\n"
