import csv
import dataclasses
import json
import math
import os
import shlex
import subprocess
import sys
import typing
from operator import attrgetter
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scenarios import SHORT
from unit_runs import IDENTITY

import sponge_env
from sponge_env.errors import RunDirectoryError, SpongeError
from sponge_env.metrics import EpisodeMetrics, IntervalMetrics, from_summary, names, summary
from sponge_env.run.read import load_intervals, read_intervals
from sponge_env.run.record import COLUMNS, Journal, interval_columns, write_table
from sponge_env.run.rollout import Run
from sponge_env.run.store import RunStore, describe, new_folder
from sponge_env.run.suite import AgentEntry, CellGroup, Suite
from sponge_env.run.unit import AgentUnit, run_unit
from sponge_env.scenario.toml import from_mapping
from sponge_env.utils import installation
from sponge_env.utils.files import replacing, write_json

ROOT = Path(__file__).resolve().parent.parent
RUN = Run("fa2", "paper", "live", 3, "yolov5s", "warm")
REQUIRED = """
    agent scenario backend seed start offered on_time late dropped failed hopeless violation_rate
    avoidable_violation_rate mean_cores core_seconds latency_p50_s latency_p99_s
    infeasible_decisions decision_p50_s decision_p99_s
"""

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


def test_a_package_that_is_missing_has_no_version(monkeypatch):
    monkeypatch.setattr(installation, "PACKAGES", ("no-such-package",))
    assert installation.describe_versions()["no-such-package"] is None


def test_a_machine_that_does_not_say_its_cpu_model_is_described_by_its_kind(monkeypatch):
    monkeypatch.setattr(Path, "read_text", _refuse)
    assert installation.describe_host()["cpu_model"]


def _refuse(*args, **kwargs):
    raise PermissionError(13, "Permission denied")


def test_an_existing_directory_is_refused_and_left_alone(tmp_path):
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "config.json").write_text("mine")
    with pytest.raises(RunDirectoryError, match=r"one' exists already; choose another name"):
        new_folder("", tmp_path / "one")
    assert (tmp_path / "one" / "config.json").read_text() == "mine"
    assert len(list((tmp_path / "one").iterdir())) == 1


def test_a_directory_below_a_file_cannot_be_made(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(RunDirectoryError, match=r"file/one': Not a directory; choose a path"):
        new_folder("", tmp_path / "file" / "one")


def test_a_directory_without_permission_is_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setattr(Path, "mkdir", _refuse)
    with pytest.raises(SpongeError) as error:
        new_folder("", tmp_path / "one")
    assert str(error.value) == (
        f"cannot write {str(tmp_path / 'one')!r}: Permission denied; "
        "choose a path that can be written"
    )


def test_folders_made_at_the_same_time_have_different_names(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert len({new_folder("paper-sim") for _ in range(3)}) == 3


def test_the_header_of_the_journal_is_the_schema(tmp_path):
    Journal(tmp_path / "intervals.csv", RUN).close()
    with (tmp_path / "intervals.csv").open() as file:
        assert next(csv.reader(file)) == list(COLUMNS)
    assert COLUMNS[5:] == names(IntervalMetrics)


@settings(max_examples=30)
@given(intervals=st.lists(INTERVALS, min_size=1, max_size=4))
def test_intervals_read_back_as_they_were_written(tmp_path_factory, intervals):
    folder = tmp_path_factory.mktemp("intervals")
    journal = Journal(folder / "a.csv", RUN)
    for interval in intervals:
        journal.interval(interval)
    journal.episode(EpisodeMetrics())
    journal.close()
    with (folder / "a.csv").open(newline="") as file:
        exact = [[float(cell) for cell in row[5:]] for row in list(csv.reader(file))[1:]]
    values = attrgetter(*names(IntervalMetrics))
    written = [values(interval) for interval in intervals]
    np.testing.assert_array_equal(exact, written)
    write_table(folder / "a.parquet", interval_columns(RUN, intervals))
    parquet = [values(interval) for interval in read_intervals(folder / "a.parquet")]
    np.testing.assert_array_equal(parquet, written)
    frame = pd.read_parquet(folder / "a.parquet")
    assert list(frame) == list(COLUMNS)
    assert tuple(frame.iloc[0, :5]) == ("fa2", "paper", "yolov5s", "warm", 3)
    assert frame["offered"].dtype == np.int64
    assert frame["time_s"].dtype == np.float64


def test_an_interrupted_run_leaves_a_readable_journal(tmp_path):
    journal = Journal(tmp_path / "intervals.csv", RUN)
    for index in range(3):
        journal.interval(IntervalMetrics(time_s=index + 1.0))
        frame = pd.read_csv(tmp_path / "intervals.csv")
        assert list(frame["time_s"]) == [1.0, 2.0, 3.0][: index + 1]
    journal.close()


def test_an_episode_without_an_interval_has_a_file_of_no_rows(tmp_path):
    write_table(tmp_path / "a.parquet", interval_columns(RUN, []))
    assert read_intervals(tmp_path / "a.parquet") == []
    assert list(pd.read_parquet(tmp_path / "a.parquet")) == list(COLUMNS)


KILLED = """
import os, signal, sys
from pathlib import Path
import sponge_env.run.unit as unit
from sponge_env.env.factory import make_system
from sponge_env.interfaces import Allocation
from test_run_record import live_unit
from unit_runs import result

class Killed:
    def reset(self, spec, seed):
        self.seed = seed

    def decide(self, view):
        if self.seed == 1 and view.now_s >= 3:
            os.kill(os.getpid(), signal.SIGKILL)
        return Allocation(4, 4)

unit.make_controller = lambda *_: Killed()
unit.make_system = lambda scenario, seed, **_: make_system(scenario, seed)
result(live_unit(), Path(sys.argv[1]), requests=2, watched=True)
"""


def live_unit():
    scenario = dataclasses.replace(SHORT, duration_s=5.0)
    static = "baselines.rules:static_8"
    return AgentUnit("killed", static, {}, "vertical", scenario, 3, backend="live")


def test_a_killed_live_run_keeps_its_episodes_and_intervals(tmp_path):
    """The real worker is a simulated one here; what is recorded is that of a live episode."""
    path = {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"}
    command = [sys.executable, "-c", KILLED, str(tmp_path / "run")]
    assert subprocess.run(command, env=path, check=False, cwd=tmp_path).returncode == -9
    intervals = load_intervals(tmp_path / "run")
    assert intervals.groupby("seed")["time_s"].max().to_dict() == {0: 5.0, 1: 3.0}
    files = sorted(path.name for path in (tmp_path / "run/intervals/killed").iterdir())
    assert files == ["short+yolov5s+cold-seed0.parquet", "short+yolov5s+cold-seed1.csv"]
    assert len(list((tmp_path / "run/requests/killed").iterdir())) == 1
    with RunStore.open(tmp_path / "run", IDENTITY) as store:
        assert not store.kept(live_unit()).get("complete")


def test_results_are_written_while_a_unit_runs(tmp_path, monkeypatch):
    monkeypatch.setattr("sponge_env.run.record._KEEP_EVERY_S", 0.0)
    unit = dataclasses.replace(live_unit(), backend="sim")
    kept, keep = [], RunStore.keep

    def remember(self, unit, result, error=None, complete=True):
        kept.append((len(result["episodes"]), complete))
        keep(self, unit, result, error, complete)

    monkeypatch.setattr(RunStore, "keep", remember)
    with RunStore.open(tmp_path, IDENTITY) as store:
        run_unit(unit, store)
    assert kept == [(1, False), (2, False), (3, False), (3, True)]


def test_a_summary_has_the_names_of_the_schema_and_all_that_are_promised():
    data = summary(EpisodeMetrics(agent="fa2", seed=3, violation_rate=0.015, partial=True))
    assert tuple(data) == names(EpisodeMetrics)
    assert set(REQUIRED.split()) <= set(data)
    assert (data["agent"], data["seed"], data["violation_rate"]) == ("fa2", 3, 0.015)
    assert data["partial"] is True
    assert summary(from_summary(data)) == data


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_number_that_json_does_not_know_becomes_null(value):
    assert summary(EpisodeMetrics(latency_p99_s=value))["latency_p99_s"] is None


def test_requests_survive_parquet(tmp_path):
    columns = {
        "id": np.arange(3),
        "finished_s": np.array([0.5, np.nan, 1e-9]),
        "outcome": np.array(["on_time", "dropped", "late"]),
        "hopeless": np.array([True, False, False]),
    }
    write_table(tmp_path / "requests.parquet", columns)
    frame = pd.read_parquet(tmp_path / "requests.parquet")
    assert list(frame) == list(columns)
    for name, values in columns.items():
        np.testing.assert_array_equal(frame[name].to_numpy().astype(values.dtype), values)
    assert not partials(tmp_path)


def test_requests_that_cannot_be_written_leave_nothing(tmp_path):
    with pytest.raises(pyarrow.ArrowInvalid):
        write_table(tmp_path / "requests.parquet", {"a": np.zeros(2), "b": np.zeros(3)})
    assert not list(tmp_path.iterdir())


def test_a_failed_write_keeps_what_was_there(tmp_path):
    path = tmp_path / "data.json"
    write_json(path, {"a": 1})
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(path, {"a": math.nan})
    with pytest.raises(ZeroDivisionError):
        _write_half(path)
    assert read(path) == {"a": 1}
    assert not partials(tmp_path)


def _write_half(path):
    with replacing(path) as partial:
        partial.write_text("half")
        raise ZeroDivisionError


def test_json_creates_the_folders_above_it(tmp_path):
    write_json(tmp_path / "a" / "b.json", [1])
    assert read(tmp_path / "a" / "b.json") == [1]


def test_json_goes_through_a_link_to_its_file(tmp_path):
    (tmp_path / "real.json").touch()
    (tmp_path / "link.json").symlink_to(tmp_path / "real.json")
    write_json(tmp_path / "link.json", [1])
    assert read(tmp_path / "real.json") == [1]
    assert (tmp_path / "link.json").is_symlink()


def test_a_pipe_is_written_to_and_not_replaced(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    try:
        write_json(pipe, [1])
        assert json.loads(os.read(reader, 100)) == [1]
    finally:
        os.close(reader)
    assert pipe.is_fifo()


def test_a_folder_in_place_of_a_file_is_one_sentence(tmp_path):
    with pytest.raises(RunDirectoryError, match="Is a directory"):
        write_json(tmp_path, [1])
