from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from baselines import tune, tuned_options
from baselines.options import cell_key
from baselines.searches import SEARCHES, Outcome, Search, search_options
from baselines.tune import Task, tune_cell
from sponge_env.config import Arrivals
from sponge_env.registry import known_controllers, make_controller
from sponge_env.scenario import Scenario

SHORT = Scenario(
    name="short",
    profile="resnet18",
    duration_s=20.0,
    start="warm",
    warmup_s=5.0,
    arrivals=Arrivals(rate_rps=40.0),
)
SUITE = """
seeds = 1
[[cells]]
scenarios = ["{}"]
profiles = ["resnet18"]
[agents.static]
"""
SCENARIO = """
duration_s = 20.0
warmup_s = 5.0
[arrivals]
rate_rps = 40.0
"""


@pytest.mark.parametrize("agent", SEARCHES)
def test_every_combination_is_one_that_the_controller_takes(agent: str) -> None:
    search = SEARCHES[agent]
    assert search.combinations()
    for options in search.combinations():
        smallest = {search.smallest: 1} if search.smallest else {}
        make_controller(agent, known_controllers(), options | smallest)


@pytest.mark.parametrize("fewest", range(1, 17))
def test_bisection_finds_the_fewest_cores(fewest: int) -> None:
    tried: list[int] = []

    def attempt(options: dict[str, Any]) -> Outcome:
        tried.append(options["cores"])
        return Outcome(options, 0.5 * (options["cores"] < fewest), float(options["cores"]))

    search = Search({"batch": (4,)}, smallest="cores")
    outcomes = list(search_options(search, allowed=0.0, cores_max=16, attempt=attempt))
    best = min(outcomes, key=lambda outcome: outcome.rank(0.0))
    assert best.options == {"batch": 4, "cores": fewest}
    assert len(set(tried)) == len(tried) <= 5


def test_violations_come_first_and_the_allowed_ones_do_not_count() -> None:
    few, cheap, bad = (Outcome({}, *pair) for pair in ((0.0, 9.0), (0.001, 8.0), (0.002, 1.0)))
    assert sorted([few, bad, cheap], key=lambda o: o.rank(allowed=0.001)) == [cheap, few, bad]


def test_static_gets_the_smallest_allocation_without_avoidable_violations() -> None:
    task = Task("static-tuned", SHORT, seeds=(1000, 1001))
    best = tune_cell(task)
    assert best.avoidable_violation_rate == 0.0
    assert best.mean_cores == best.options["cores"] < 16
    smaller = task.try_options({**best.options, "cores": best.options["cores"] - 1})
    assert smaller.avoidable_violation_rate > 0


def test_outcomes_repeat() -> None:
    task = Task("vpa", SHORT, seeds=(1000,))
    assert task.try_options({"margin": 1.5}) == task.try_options({"margin": 1.5})


def test_script_writes_what_the_suite_reads(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "short.toml").write_text(SCENARIO)
    suite, out = tmp_path / "suite.toml", tmp_path / "tuned.json"
    suite.write_text(SUITE.format("short.toml"))
    out.write_text(json.dumps({"agents": {"other": {"cells": {}}}}))
    arguments = ["--suite", str(suite), "--seeds", "1", "--jobs", "1", "--out", str(out)]
    assert tune.main([*arguments, "--agents", "sponge-no-scaling"]) == 0
    assert "sponge-no-scaling on short/resnet18" in capsys.readouterr().out
    data = json.loads(out.read_text())
    assert set(data["agents"]) == {"other", "sponge-no-scaling"}
    entry = data["agents"]["sponge-no-scaling"]
    assert entry["seeds"] == [1000]
    monkeypatch.setattr("baselines.options._tuned", lambda: data["agents"])
    options = tuned_options("sponge-no-scaling", "short", "resnet18")
    assert options == entry["cells"]["short/resnet18"]["options"]
    assert 1 <= options["cores_fixed"] <= 16


def test_a_cell_that_was_not_tuned_gets_defaults_and_a_warning(
    caplog: pytest.LogCaptureFixture,
) -> None:
    assert tuned_options("hpa", "my-own", "/home/me/mine.json") == {}
    assert "no tuned options of hpa for my-own/mine" in caplog.text
    assert "python -m baselines.tune --agents hpa" in caplog.text


def test_profiles_count_by_name() -> None:
    assert cell_key("paper", "profiles/lite0.json") == cell_key("paper", "lite0") == "paper/lite0"


def test_what_is_shipped_fits_the_controllers() -> None:
    shipped = json.loads((Path(tune.__file__).parent / "tuned.json").read_text())
    for agent, entry in shipped["agents"].items():
        assert entry["grid"].keys() == SEARCHES[agent].grid.keys()
        for cell in entry["cells"].values():
            make_controller(agent, known_controllers(), cell["options"])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--agents", "hpaa"], "did you mean 'hpa'?"),
        (["--suite", "standart"], "did you mean 'standard'?"),
        (["--seeds", "0"], "must be a whole number of at least 1"),
    ],
)
def test_bad_input_ends_with_one_sentence(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert tune.main(arguments) == 2
    error = capsys.readouterr().err
    assert words in error
    assert error.count("\n") == 1


def test_a_failing_controller_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    scenario = dataclasses.replace(SHORT, profile="no-such-profile")
    with pytest.raises(tune.ConfigError, match="static failed on short/no-such-profile"):
        tune.tune([scenario], ["vpa"], seeds=[1000], processes=1)
