"""Run directories of suites and of evaluations give the same frames."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from report_runs import COLD, DURATION_S, WARM, WARMUP_S, keep, write, write_suite
from scenarios import short
from unit_runs import result

import evaluate
from sponge_env.errors import RunDirectoryError
from sponge_env.results.comparison import load_run
from sponge_env.run.unit import AgentUnit
from sponge_env.scenario.config import Arrivals, Serving

pytestmark = pytest.mark.usefixtures("unpainted")


@pytest.fixture(scope="module")
def evaluation(tmp_path_factory):
    path = tmp_path_factory.mktemp("runs") / "evaluation"
    argv = "--agent static-8 static-16 --seeds 2 --duration 40 --start warm --run-dir".split()
    assert evaluate.main([*argv, str(path)]) == 0
    return path


@pytest.fixture
def copy(evaluation, tmp_path):
    return Path(shutil.copytree(evaluation, tmp_path / "copy"))


def test_agents_come_in_the_order_of_the_standard_suite_and_cells_in_the_runs_own(tmp_path):
    other = ("aaa", "yolov5s", "cold")
    agents = {name: ([0, 1], 8.0) for name in ("mine", "static-8", "fa2", "sponge-ip")}
    run = load_run(write_suite(tmp_path / "run", agents, [other, WARM, COLD]))
    assert run.comparison.agents == ["fa2", "sponge-ip", "mine", "static-8"]
    assert run.comparison.shown.cells == (other, WARM, COLD)
    assert (run.command, run.comparison.seeds) == ("python evaluate.py", 2)


@pytest.mark.parametrize(
    ("agents", "said", "reference"), [("mine fa2 hpa", "mine", "mine"), ("mine fa2", "", "fa2"),
     ("mine fixed-hindsight hpa", "gone", "fixed-hindsight")],
    ids=["the suite's", "the first agent", "the usual one"],
)  # fmt: skip
def test_there_is_a_reference(tmp_path, agents, said, reference):
    played = {name: ([0], 8.0) for name in agents.split()}
    run = load_run(write_suite(tmp_path / "run", played, arrangement={"reference": said}))
    assert run.comparison.shown.reference == reference


def test_the_warm_up_is_left_out_and_a_cell_on_which_everybody_failed_is_still_one(tmp_path):
    lost = ("lost", *COLD[1:])
    shown = {"cells": [COLD, lost, WARM]}
    path = write_suite(tmp_path / "run", {"fa2": ([5], 8.0)}, [COLD, WARM], arrangement=shown)
    keep(path, "fa2", lost, {}, type="ValueError", message="no")
    run = load_run(path).comparison
    assert (run.shown.cells, len(run.failures)) == ((COLD, lost, WARM), 1)
    warm = run.intervals_of("fa2", WARM)["time_s"]
    assert (warm.min(), warm.max()) == (WARMUP_S + 1, WARMUP_S + DURATION_S)
    assert run.intervals_of("fa2", COLD)["time_s"].min() == 1


def test_an_evaluation_is_a_suite_of_one_cell(evaluation):
    run = load_run(evaluation)
    assert run.comparison.agents == ["static-16", "static-8"]
    (cell,) = run.comparison.shown.cells
    assert (cell, run.comparison.seeds) == (("paper", "yolov5s", "warm"), 2)
    assert run.comparison.bounds_on(cell) == []
    assert run.comparison.intervals_of("static-8", cell)["time_s"].min() == 31


def test_what_is_never_answered_has_an_infinite_latency(tmp_path):
    scenario = short(arrivals=Arrivals("constant", 30.0), serving=Serving(drop="expired"))
    unit = AgentUnit("one", "baselines.rules:Static", {"cores": 1, "batch": 1}, scenario, 1)
    run = write_suite(tmp_path / "run", {}, [])
    cell = (scenario.name, scenario.profile, scenario.start)
    keep(run, "one", cell, result(unit, tmp_path / "unit"))
    (episode,) = load_run(run).comparison.episodes.to_dict("records")
    assert np.isinf(episode["latency_p99_s"])
    assert episode["latency_mean_s"] < 2.0


@pytest.mark.parametrize(
    ("partial", "agents", "seeds"),
    [([1], ["static-16", "static-8"], 1), ([0, 1], ["static-16"], 2)],
)
def test_seeds_that_all_finished_are_compared_or_agents_left_out(copy, partial, agents, seeds):
    (file,) = (copy / "results" / "static-8").iterdir()
    data = json.loads(file.read_text())
    for seed in partial:
        data["episodes"][seed]["partial"] = True
    write(file, data | {"complete": False})
    run = load_run(copy)
    assert (run.comparison.agents, run.comparison.seeds) == (agents, seeds)
    assert (len(run.comparison.episodes), len(run.comparison.failures)) == (2, 2 - len(agents))


def test_what_is_no_run_or_has_no_finished_episode_is_refused(copy, tmp_path):
    for path in (tmp_path, tmp_path / "missing"):
        with pytest.raises(RunDirectoryError, match=r"is no run .* choose a folder"):
            load_run(path)
    shutil.rmtree(copy / "results")
    for path in (copy, write_suite(tmp_path / "run", {}, [])):
        with pytest.raises(RunDirectoryError, match="no finished episode"):
            load_run(path)


def test_runs_of_another_version_are_refused(copy, tmp_path):
    (file,) = (copy / "results" / "static-8").iterdir()
    data = json.loads(file.read_text())
    del data["episodes"][0]["mean_cores"]
    write(file, data)
    with pytest.raises(RunDirectoryError, match=r"another version \(it lacks mean_cores\)"):
        load_run(copy)
    data["episodes"][0] |= {"mean_cores": 1.0, "moons": 7}
    write(file, data)
    with pytest.raises(RunDirectoryError, match="a number that is not known, or lacks one"):
        load_run(copy)
    suite = write_suite(tmp_path / "run", {"sponge-ip": ([0], 8.0)})
    write(suite / "run.json", {"format": 99})
    with pytest.raises(RunDirectoryError, match="format 99"):
        load_run(suite)


@pytest.mark.parametrize("kind", ["intervals", "results"])
def test_a_broken_file_is_named(copy, kind):
    min((copy / kind / "static-8").iterdir()).write_text("nonsense\n")
    with pytest.raises(RunDirectoryError, match=f"cannot read .*{kind}/static-8/paper"):
        load_run(copy)
