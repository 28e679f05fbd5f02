"""The folder of a run: what it records, keeps, refuses and gives back."""

import dataclasses
import json
import math
import shlex
import typing
from contextlib import suppress
from operator import attrgetter

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scenarios import SHORT
from unit_runs import IDENTITY
from unit_runs import result as run

import sponge_env
from sponge_env.errors import RunDirectoryError
from sponge_env.metrics import EpisodeMetrics, IntervalMetrics, names, summary, to_columns
from sponge_env.run import read
from sponge_env.run.rollout import Run
from sponge_env.run.store import IDENTITY as IDENTITY_COLUMNS
from sponge_env.run.store import RunStore, describe, new_folder, scenario_fingerprint
from sponge_env.run.suite import AgentEntry, CellGroup, Suite
from sponge_env.run.unit import AgentUnit, interval_columns, run_unit, write_table
from sponge_env.scenario.config import Stage, Variant
from sponge_env.scenario.profile import Facts, load_profile, save_profile
from sponge_env.scenario.scenario import Scenario
from sponge_env.scenario.toml import from_mapping
from sponge_env.utils import installation
from sponge_env.utils.files import replacing, write_json

TINY = dataclasses.replace(SHORT, duration_s=5.0)
UNIT = AgentUnit("eight", "baselines.rules:static_8", {}, TINY, seeds=2)


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    return run(UNIT, tmp_path_factory.mktemp("run"))


def test_a_result_comes_back_as_rows(tmp_path, result):
    with RunStore.open(tmp_path / "run", IDENTITY) as store:
        assert store.missing([UNIT]) == [UNIT]
        store.keep(UNIT, result, None)
        assert store.missing([UNIT]) == []
    frame = read.load_results(tmp_path / "run")
    assert (list(frame["seed"]), set(frame["agent"])) == ([0, 1], {"eight"})
    assert (set(frame["profile"]), list(frame["mean_cores"])) == ({"yolov5s"}, [8.0, 8.0])
    assert read.load_failures(tmp_path / "run").empty


def test_intervals_are_kept_for_pictures(tmp_path):
    run(UNIT, tmp_path)
    intervals = read.load_intervals(tmp_path)
    assert list(intervals.columns[:5]) == ["agent", "scenario", "profile", "start", "seed"]
    assert tuple(intervals.columns[5:]) == names(IntervalMetrics)
    assert list(intervals["time_s"]) == [1.0, 2.0, 3.0, 4.0, 5.0] * 2
    assert (list(intervals["seed"]), set(intervals["cores"])) == ([0] * 5 + [1] * 5, {8.0})
    assert set(intervals["agent"]) == {"eight"}
    few = read.load_intervals(tmp_path, ["violations"], seed=1)
    assert (list(few)[4:], list(few["seed"])) == (["seed", "violations"], [1] * 5)


def test_a_failure_is_kept_and_tried_again(tmp_path):
    with RunStore.open(tmp_path, IDENTITY) as store:
        store.keep(UNIT, {}, {"type": "ValueError", "message": "no good"})
        assert store.missing([UNIT]) == [UNIT]
    (row,) = read.load_failures(tmp_path).to_dict("records")
    assert [*row.values()] == ["eight", "short", "yolov5s", "cold", "ValueError", "no good"]
    assert read.load_results(tmp_path).empty


def test_two_runs_do_not_write_into_one_folder(tmp_path):
    with RunStore.open(tmp_path, IDENTITY):
        again = RunStore.open(tmp_path, IDENTITY)
        with pytest.raises(RunDirectoryError, match="another run is writing"):
            again.__enter__()
    with RunStore.open(tmp_path, IDENTITY):
        pass
    for key in IDENTITY:
        other = RunStore.open(tmp_path, {**IDENTITY, key: "other"})
        with pytest.raises(RunDirectoryError, match=rf"another suite or version \(other {key}\)"):
            other.__enter__()


def test_what_a_process_was_writing_when_it_was_ended_is_cleared_away(tmp_path):
    with RunStore.open(tmp_path, IDENTITY) as store:
        store.keep(UNIT, {}, None)
        half = store.file("intervals", UNIT, "-seed0.parquet.partial")
        half.parent.mkdir(parents=True)
        half.write_text("half")
    assert not half.exists()
    assert store.file("results", UNIT, ".json").exists()


@pytest.mark.parametrize(
    "damage", [lambda data: data["episodes"][0].update(mean_cores="few"),
     lambda data: data.update(episodes={}), lambda data: data.pop("complete")],
)  # fmt: skip
def test_a_damaged_result_is_one_sentence_when_the_run_goes_on(tmp_path, result, damage):
    with RunStore.open(tmp_path, IDENTITY) as store:
        store.keep(UNIT, result, None)
        (path,) = tmp_path.rglob("short+yolov5s+cold.json")
        data = json.loads(path.read_text())
        damage(data)
        for text, said in ((json.dumps(data), "is damaged"), ("{", "cannot read")):
            path.write_text(text)
            with pytest.raises(RunDirectoryError, match=said):
                store.missing([UNIT])


DAMAGES = {"arrangement": []}, {"arrangement": None}, {"definition": None}


@pytest.mark.parametrize("damage", [*DAMAGES, {"definition": {"agents": []}}])
def test_a_damaged_definition_is_named(tmp_path, damage):
    with RunStore.open(tmp_path, IDENTITY):
        pass
    write_json(tmp_path / "run.json", json.loads((tmp_path / "run.json").read_text()) | damage)
    damaged = pytest.raises(RunDirectoryError, match=r"run\.json.* is damaged")
    with damaged, RunStore.open(tmp_path, IDENTITY):
        pass
    if "arrangement" in damage:
        with pytest.raises(RunDirectoryError, match=r"run\.json.* is damaged"):
            read.load_arrangement(tmp_path)


@pytest.mark.parametrize(
    "changes", [{"options": {"batch": 2}}, {"controller": "baselines.rules:static_16"},
     {"scenario": dataclasses.replace(TINY, slo_s=2.0)}],
    ids=lambda changes: next(iter(changes)),
)  # fmt: skip
def test_results_of_an_agent_that_changed_are_refused(tmp_path, changes):
    with RunStore.open(tmp_path, IDENTITY) as store:
        store.keep(UNIT, {}, None)
        with pytest.raises(RunDirectoryError, match="agent 'eight' with other options"):
            store.missing([dataclasses.replace(UNIT, **changes)])


def test_a_controller_of_ones_own_counts_by_its_file(tmp_path, monkeypatch):
    module, weights = tmp_path / "their_controller.py", tmp_path / "weights.bin"
    monkeypatch.syspath_prepend(tmp_path)
    options = {"weights": str(weights)}
    unit = dataclasses.replace(UNIT, controller="their_controller:Mine", options=options)
    seen = set()
    for code, content in (("a = 1", "x"), ("a = 2", "x"), ("a = 2", "y")):
        module.write_text(code)
        weights.write_text(content)
        seen.add(unit.fingerprint())
    assert len(seen) == 3


def test_a_result_belongs_to_the_profiles_of_all_stages(tmp_path):
    def fingerprint_with(scale, **facts):
        first, second = load_profile("resnet18"), load_profile("yolov5s").scaled(scale)
        for name, profile in (("a", first), ("b", second)):
            profile = dataclasses.replace(profile, facts=Facts(**facts))
            save_profile(profile, tmp_path / f"{name}.json")
        stages = tuple(Stage(n, (Variant(str(tmp_path / f"{n}.json")),)) for n in "ab")
        return scenario_fingerprint(Scenario("two", stages=stages))

    assert fingerprint_with(1.0) == fingerprint_with(1.0, load_cpu_s=3.0) != fingerprint_with(1.1)


RUN = Run("fa2", "paper", "live", 3, "yolov5s", "warm")

COUNTS, NUMBERS = st.integers(0, 10**9), st.floats(allow_infinity=False)
TYPES = typing.get_type_hints(IntervalMetrics)
DRAWN = {name: COUNTS if TYPES[name] is int else NUMBERS for name in names(IntervalMetrics)}
INTERVALS = st.builds(IntervalMetrics, **DRAWN)


def json_of(path):
    return json.loads(path.read_text())


def partials(folder):
    return list(folder.rglob("*.partial"))


def test_a_run_directory_holds_what_defines_the_run(tmp_path):
    changes = {"slo_s": 0.8, "network.trace": "none"}
    cells = (CellGroup(("paper",), ("yolov5s", "resnet18"), changes),)
    agents = {"fa2": AgentEntry(options={"slo_fraction": 0.8}), "static-8": AgentEntry()}
    suite = Suite("mine", seeds=3, starts=("warm",), cells=cells, agents=agents)
    command = ["python", "evaluate.py", "--scenario", "my scenario.toml"]
    with RunStore.open(tmp_path / "runs" / "one", IDENTITY) as store:
        store.describe(suite, command)
        more = dataclasses.replace(suite, agents={"hpa": AgentEntry()})
        store.describe(more, ["python", "evaluate.py", "more"])
        assert json_of(store.path / "run.json")["arrangement"]["reference"] == "fa2"
        store.describe(suite, ["python", "evaluate.py", "again"])
    every = dataclasses.replace(suite, agents=suite.agents | more.agents)
    assert from_mapping(Suite, json_of(store.path / "run.json")["definition"]) == every
    lines = (store.path / "command.txt").read_text().splitlines()
    calls = [command, *(["python", "evaluate.py", word] for word in ("more", "again"))]
    assert [shlex.split(line) for line in lines] == calls
    profiles = {file.name for file in (store.path / "profiles").iterdir()}
    assert profiles == {"yolov5s.json", "resnet18.json"}
    assert not partials(tmp_path)


def test_versions_and_host_are_recorded(tmp_path):
    describe(tmp_path, ["python"])
    versions, machine = json_of(tmp_path / "versions.json"), json_of(tmp_path / "host.json")
    assert (versions["numpy"], versions["sponge-env"]) == (np.__version__, sponge_env.__version__)
    assert set(versions) == {"python", "platform", *installation.PACKAGES}
    assert machine["cpu_model"]
    assert machine["kernel"].startswith("Linux ")
    assert 1 <= machine["cpus_allowed"] <= machine["cpus"]
    assert machine["memory_bytes"] > 2**20


def test_an_existing_directory_is_refused_and_left_alone(tmp_path):
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "config.json").write_text("mine")
    with pytest.raises(RunDirectoryError, match=r"one' exists already; choose another name"):
        new_folder("", tmp_path / "one")
    assert (tmp_path / "one" / "config.json").read_text() == "mine"
    assert len(list((tmp_path / "one").iterdir())) == 1


@settings(max_examples=30)
@given(intervals=st.lists(INTERVALS, min_size=1, max_size=4))
def test_intervals_read_back_as_they_were_written(tmp_path_factory, intervals):
    folder, values = tmp_path_factory.mktemp("intervals"), attrgetter(*names(IntervalMetrics))
    write_table(folder / "a.parquet", interval_columns(RUN, to_columns(intervals)))
    frame = pd.read_parquet(folder / "a.parquet")
    parquet = frame[list(names(IntervalMetrics))].to_numpy()
    np.testing.assert_array_equal(parquet, [values(interval) for interval in intervals])
    assert list(frame) == [*IDENTITY_COLUMNS, *names(IntervalMetrics)]
    assert tuple(frame.iloc[0, :5]) == ("fa2", "paper", "yolov5s", "warm", 3)
    assert (frame["offered"].dtype, frame["time_s"].dtype) == (np.int64, np.float64)


def test_results_are_written_while_a_unit_runs(tmp_path, monkeypatch):
    unit = dataclasses.replace(UNIT, controller="baselines.fa2:FA2", seeds=3)
    kept, keep = [], RunStore.keep

    def remember(self, unit, result, error=None, complete=True):
        kept.append((len(result["episodes"]), complete))
        keep(self, unit, result, error, complete)

    monkeypatch.setattr(RunStore, "keep", remember)
    with RunStore.open(tmp_path, IDENTITY) as store:
        run_unit(unit, store)
    assert kept == [(1, False), (2, False), (3, False), (3, True)]


def test_a_failed_write_keeps_what_was_there(tmp_path):
    path = tmp_path / "data.json"
    write_json(path, {"a": 1})
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(path, {"a": math.nan})
    with suppress(ZeroDivisionError), replacing(path) as partial:
        partial.write_text("half")
        raise ZeroDivisionError
    assert json_of(path) == {"a": 1}
    assert not partials(tmp_path)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_number_that_json_does_not_know_becomes_null(value):
    assert summary(EpisodeMetrics(latency_p99_s=value))["latency_p99_s"] is None


def test_a_folder_in_place_of_a_file_is_one_sentence(tmp_path):
    with pytest.raises(RunDirectoryError, match="Is a directory"):
        write_json(tmp_path, [1])
