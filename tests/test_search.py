from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import pytest

from agents.learn import LearnConfig, TrainingPlan, training
from agents.learn import search as searching
from agents.learn.search import Objective, finished, main, open_study
from agents.learn.training import Validation
from sponge_env.scenario.scenario import load_scenario

optuna = pytest.importorskip("optuna")

SCENARIO = """
name = "tiny"
profile = "yolov5s"
duration_s = 8.0
[arrivals]
kind = "poisson"
rate_rps = 15.0
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("tiny.toml").write_text(SCENARIO)


def search(*more: str) -> int:
    return main(["--scenario", "tiny.toml", "--steps", "128", "--envs", "2", *more])


def test_a_search_ends_with_a_command_and_goes_on_where_it_was(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert search("--trials", "2", "--out", "found.log") == 0
    first = capsys.readouterr().out
    assert "0 (defaults)" in first
    assert re.search(
        r"python train.py --agent sb3-ppo --scenario tiny.toml --steps \d+ "
        r".*--option learning_rate=",
        first,
    )
    before = Path("found.log").read_text()
    assert search("--trials", "2", "--out", "found.log") == 0
    assert capsys.readouterr().out == first
    assert Path("found.log").read_text() == before
    assert search("--trials", "3", "--out", "found.log") == 0
    assert Path("found.log").read_text() != before


def test_a_search_with_other_settings_is_not_gone_on_with(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert search("--trials", "1", "--out", "found.log") == 0
    assert search("--trials", "1", "--out", "found.log", "--seed", "7") == 2
    assert "found.log holds a search with seed 0" in capsys.readouterr().err


def test_a_trial_behind_the_others_is_given_up(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    validations: list[int] = []

    def scripted(plan: TrainingPlan, config: object, validated: Any) -> None:
        cores = 2.0 if len(validations) <= searching.TRIALS_BEFORE_PRUNING else 9.0
        validations.append(0)
        for _ in range(searching.VALIDATIONS):
            validations[-1] += 1
            validated(1, Validation(cores, 16, 0.0, 0.0))

    monkeypatch.setattr(training, "train", scripted)
    plan = TrainingPlan((load_scenario("tiny.toml"),), 1, 1, 0, tmp_path)
    wanted = Objective(plan, weight=20.0)
    study = open_study(wanted, tmp_path / "found.log")
    study.optimize(wanted.score, n_trials=searching.TRIALS_BEFORE_PRUNING + 2)
    assert validations[:-1] == [searching.VALIDATIONS] * (searching.TRIALS_BEFORE_PRUNING + 1)
    assert validations[-1] == 1
    assert finished(study) == len(validations)
    assert study.best_value == -2 / 16
    first = study.trials[0]
    assert first.params["learning_rate"] == LearnConfig().learning_rate
    assert first.params["violation_weight"] == wanted.weight


def test_what_is_no_search_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    Path("other.log").write_text("not a search\n")
    assert search("--out", "other.log") == 2
    assert "other.log holds no search" in capsys.readouterr().err
    assert search("--agent", "pppo") == 2
    assert "unknown agent to train 'pppo'" in capsys.readouterr().err
    assert Path("other.log").read_text() == "not a search\n"


def test_without_optuna_one_sentence_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    assert search() == 2
    error = capsys.readouterr().err
    assert error.startswith("error: the search of hyper-parameters needs ")
    assert "(optuna); run: pip install 'sponge-env[search]'" in error
