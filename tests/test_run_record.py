import dataclasses
import json
import math
import shlex
import typing
from contextlib import suppress
from operator import attrgetter
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scenarios import SHORT
from unit_runs import IDENTITY

import sponge_env
from sponge_env.errors import RunDirectoryError
from sponge_env.metrics import EpisodeMetrics, IntervalMetrics, names, summary, to_columns
from sponge_env.run.rollout import Run
from sponge_env.run.store import IDENTITY as IDENTITY_COLUMNS
from sponge_env.run.store import RunStore, describe, new_folder
from sponge_env.run.suite import AgentEntry, CellGroup, Suite
from sponge_env.run.unit import AgentUnit, interval_columns, run_unit, write_table
from sponge_env.scenario.toml import from_mapping
from sponge_env.utils import installation
from sponge_env.utils.files import replacing, write_json

ROOT = Path(__file__).resolve().parent.parent
RUN = Run("fa2", "paper", "live", 3, "yolov5s", "warm")

INTERVALS = st.builds(
    IntervalMetrics,
    **{
        name: st.integers(0, 10**9) if hint is int else st.floats(allow_infinity=False)
        for name, hint in typing.get_type_hints(IntervalMetrics).items()
        if name in names(IntervalMetrics)
    },
)


def read(path):
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
        store.describe(suite, ["python", "evaluate.py", "again"])
    definition = read(store.path / "run.json")["definition"]
    assert from_mapping(Suite, definition) == suite
    lines = (store.path / "command.txt").read_text().splitlines()
    assert [shlex.split(line) for line in lines] == [command, ["python", "evaluate.py", "again"]]
    assert {file.name for file in (store.path / "profiles").iterdir()} == {
        "yolov5s.json",
        "resnet18.json",
    }
    assert not partials(tmp_path)


def test_versions_and_host_are_recorded(tmp_path):
    describe(tmp_path, ["python"])
    versions, machine = read(tmp_path / "versions.json"), read(tmp_path / "host.json")
    assert versions["numpy"] == np.__version__
    assert versions["sponge-env"] == sponge_env.__version__
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
    folder = tmp_path_factory.mktemp("intervals")
    values = attrgetter(*names(IntervalMetrics))
    write_table(folder / "a.parquet", interval_columns(RUN, to_columns(intervals)))
    frame = pd.read_parquet(folder / "a.parquet")
    parquet = frame[list(names(IntervalMetrics))].to_numpy()
    np.testing.assert_array_equal(parquet, [values(interval) for interval in intervals])
    assert list(frame) == [*IDENTITY_COLUMNS, *names(IntervalMetrics)]
    assert tuple(frame.iloc[0, :5]) == ("fa2", "paper", "yolov5s", "warm", 3)
    assert frame["offered"].dtype == np.int64
    assert frame["time_s"].dtype == np.float64


def test_results_are_written_while_a_unit_runs(tmp_path, monkeypatch):
    scenario = dataclasses.replace(SHORT, duration_s=5.0)
    unit = AgentUnit("killed", "baselines.fa2:FA2", {}, scenario, 3)
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
    assert read(path) == {"a": 1}
    assert not partials(tmp_path)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_number_that_json_does_not_know_becomes_null(value):
    assert summary(EpisodeMetrics(latency_p99_s=value))["latency_p99_s"] is None


def test_a_folder_in_place_of_a_file_is_one_sentence(tmp_path):
    with pytest.raises(RunDirectoryError, match="Is a directory"):
        write_json(tmp_path, [1])
