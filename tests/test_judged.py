"""The comparison of policies with rules: which is the median, and what is counted."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from agents.learn.evaluation import Evaluation
from agents.policy import load_policy, save_policy
from benchmarks.judged import main, median_of, table
from sponge_env.scenario.scenario import Scenario

JOINT = Path("agents/policies/ppo-joint-yolov5s.safetensors")
SCENARIOS = Scenario(name="calm"), Scenario(name="rough")


def reached(cores: list[float], violations: list[list[int]]) -> Evaluation:
    """Evaluate one that holds so many cores, and violates so many of 1000 in each episode."""
    one = np.ones((len(violations), len(cores)))
    return Evaluation.of(np.array([cores * one, np.array(violations), 1000 * one, one]))


def save(path: Path, **changes: object) -> None:
    policy = load_policy(JOINT)
    save_policy(dataclasses.replace(policy, info=dataclasses.replace(policy.info, **changes)), path)


def test_the_median_is_one_of_them_and_the_worse_of_two() -> None:
    assert [median_of(scores) for scores in ([0.9, 0.7, 0.8], [0.9, 0.7], [0.9])] == [2, 0, 0]


def test_the_table_has_a_row_for_each_scenario_and_for_all() -> None:
    rule = reached([4.0, 3.0], [[0, 2]] * 8)
    frugal = reached([3.0, 3.0], [[0, 1], [1, 2]] * 4)
    lines = table(SCENARIOS, {"seed 0": frugal}, rule).split("\n")
    assert [line.split() for line in lines] == [
        "cores best rule seed 0".split(),
        "calm 4.00 (0.000%) 3.00 (0.050%)".split(),
        "rough 3.00 (0.200%) 3.00 (0.150%)".split(),
        "cores / rule's 1.000 0.866".split(),
        "violations 0.100% 0.100%".split(),
        "fewer cores in 0 1".split(),
    ]


def test_what_is_kept_says_of_how_many_it_is_the_median(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("benchmarks.judged.best_rules", lambda *_: (np.ones((4, 1, 24)), []))
    result = reached([1.0] * 24, [[0] * 24])
    monkeypatch.setattr("benchmarks.judged.PolicyEvaluator", lambda *_, **__: lambda policy: result)
    paths = [tmp_path / name for name in "abc"]
    for path, seed, score in zip(paths, (0, 1, 2), (0.9, 0.7, 0.8), strict=True):
        save(path, seed=seed, score=score, median_of=1)
    kept = tmp_path / "kept"
    assert main([*map(str, paths), "--profile", "yolov5s", "--keep", str(kept)]) == 0
    info = load_policy(kept).info
    assert (info.score, info.median_of) == (0.8, 3)


@pytest.mark.parametrize(
    ("changes", "profile", "sentence"),
    [
        ({"score": None}, "yolov5s", "{1} has no score: its training in phases did not end"),
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
    paths = [tmp_path / name for name in "ab"]
    save(paths[0], seed=0)
    save(paths[1], **{"seed": 1, **changes})
    assert main([*map(str, paths), "--profile", profile]) == 2
    assert capsys.readouterr().err == f"error: {sentence.format(*paths)}\n"
