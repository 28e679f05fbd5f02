"""``sponge validate``: a run's allocations played again."""

import json
import shutil
from pathlib import Path

import pandas as pd
import pytest

from sponge_env.app import evaluate, validate

LINE = "--agent sponge-ip hpa --scenario bursty --duration 20 --seeds 2-3 --run-dir run"


@pytest.fixture(scope="module")
def played(tmp_path_factory):
    folder = tmp_path_factory.mktemp("played")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert evaluate.main(LINE.split()) == 0
    return folder


@pytest.fixture(autouse=True)
def _in_a_folder_with_a_run(played, tmp_path, monkeypatch, inline):
    monkeypatch.chdir(shutil.copytree(played, tmp_path / "copy"))


def said(capsys, exit_code):
    capsys.readouterr()
    assert validate.main(["run", "--jobs", "1"]) == exit_code
    output = capsys.readouterr()
    return output.out + output.err


def test_a_run_is_what_its_allocations_make(capsys):
    assert "0 of 4 episodes differ from their replay" in said(capsys, 0)
    assert Path("run/comparison.png").is_file(), "of the first seed, whichever that is"


def test_another_summary_or_allocation_is_named(capsys):
    (file,) = Path("run/results/hpa").iterdir()
    result = json.loads(file.read_text())
    result["episodes"][1]["mean_cores"] -= 0.001
    file.write_text(json.dumps(result))
    text = said(capsys, 1)
    assert "hpa, bursty+resnet18+cold, seed 3: mean_cores is" in text
    assert "1 of 4 episodes differ" in text
    (table,) = Path("run/intervals/sponge-ip").glob("*-seed2.parquet")
    frame = pd.read_parquet(table)
    frame.loc[15, "requested_cores"] += 1
    frame.to_parquet(table)
    assert "sponge-ip, bursty+resnet18+cold, seed 2: mean_cores" in said(capsys, 1)
    frame[:19].to_parquet(table)
    assert "seed 2: 19 of 20 intervals are there" in said(capsys, 1)
    frame.assign(batch=99).to_parquet(table)
    assert "seed 2: allocation.batch must be" in said(capsys, 1)


def test_a_start_that_is_not_the_scenarios_and_results_that_lack_do_not_pass(capsys):
    (file,) = Path("run/results/hpa").iterdir()
    result = json.loads(file.read_text())
    result["initial"]["replicas"] = 8
    file.write_text(json.dumps(result))
    assert "0 of 4" in said(capsys, 0), "a cold start is the scenario's whatever a file says"
    del result["episodes"][0]
    file.write_text(json.dumps(result))
    assert "hpa, bursty+resnet18+cold, seed 2: there is no result" in said(capsys, 1)
    shutil.rmtree("run/results")
    assert "4 of 4 episodes differ" in said(capsys, 1)


def test_what_is_damaged_is_a_sentence(capsys):
    about = json.loads(Path("run/run.json").read_text())
    definition, changing = about["definition"], {"hpa": {"changes": {"slo_s": 9.0}}}
    for changes, sentence in (
        ({"backend": "live"}, "is no simulated run"),
        ({"definition": {**definition, "agents": changing}}, "unknown key"),
        ({"definition": {**definition, "starts": ["hot"]}}, "unknown starts"),
        ({"definition": {**definition, "cells": 5}}, "cells"),
        ({"definition": {**definition, "agents": {}, "bounds": ["joint"]}}, "has other cells"),
        ({"definition": {**definition, "seeds": 1}}, "has other cells or seeds than it says"),
        (
            {"definition": {**definition, "agents": {"hpa": {}}}},
            "results of an unnamed agent, 'sponge-ip'",
        ),
    ):
        Path("run/run.json").write_text(json.dumps(about | changes))
        assert sentence in said(capsys, 2)
