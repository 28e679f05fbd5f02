import csv
import dataclasses
import json
import math
import os
import shlex
import typing
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sponge_env import host
from sponge_env.errors import RunDirectoryError, SpongeError
from sponge_env.mapping import from_mapping
from sponge_env.metrics import EpisodeMetrics, IntervalMetrics, names
from sponge_env.run.record import (
    CsvSink,
    RunDirectory,
    SummarySink,
    file_sinks,
    replacing,
    summary,
    write_json,
    write_requests,
)
from sponge_env.scenario import Scenario

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
    },
)


def create(path, **options):
    return RunDirectory.create(path, Scenario(name="paper"), options, ["python", "evaluate.py"])


def read(path):
    return json.loads(path.read_text())


def partials(folder):
    return list(folder.rglob("*.partial"))


def test_a_run_directory_holds_what_defines_the_run(tmp_path):
    scenario = Scenario(name="paper", slo_s=0.8)
    command = ["python", "evaluate.py", "--scenario", "my scenario.toml"]
    options = {"agent": ["fa2", "ppo"], "policy": Path("a/policy.zip")}
    run = RunDirectory.create(tmp_path / "runs" / "one", scenario, options, command)
    config = read(run.path / "config.json")
    assert from_mapping(Scenario, _without_none(config["scenario"])) == scenario
    assert config["options"] == {"agent": ["fa2", "ppo"], "policy": "a/policy.zip"}
    assert shlex.split((run.path / "command.txt").read_text()) == command
    assert not partials(tmp_path)


def _without_none(data):
    """TOML has no null: a setting that is None was left out."""
    if isinstance(data, dict):
        return {key: _without_none(value) for key, value in data.items() if value is not None}
    return data


def test_versions_and_host_are_recorded(tmp_path):
    run = create(tmp_path / "one")
    versions, machine = read(run.path / "versions.json"), read(run.path / "host.json")
    assert versions["numpy"] == np.__version__
    assert set(versions) == {"python", "platform", *host.PACKAGES}
    assert machine["cpu_model"]
    assert machine["kernel"].startswith("Linux ")
    assert 1 <= machine["cpus_allowed"] <= machine["cpus"]
    assert machine["memory_bytes"] > 2**20


def test_a_package_that_is_missing_has_no_version(monkeypatch):
    monkeypatch.setattr(host, "PACKAGES", ("no-such-package",))
    assert host.describe_versions()["no-such-package"] is None


def test_a_machine_that_does_not_say_its_cpu_model_is_described_by_its_kind(monkeypatch):
    monkeypatch.setattr(Path, "read_text", _refuse)
    assert host.describe_host()["cpu_model"]


def _refuse(*args, **kwargs):
    raise PermissionError(13, "Permission denied")


def test_an_existing_directory_is_refused_and_left_alone(tmp_path):
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "config.json").write_text("mine")
    with pytest.raises(RunDirectoryError, match=r"one' exists already; choose another name"):
        create(tmp_path / "one")
    assert (tmp_path / "one" / "config.json").read_text() == "mine"
    assert len(list((tmp_path / "one").iterdir())) == 1


def test_a_directory_below_a_file_cannot_be_made(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(RunDirectoryError, match=r"file/one': Not a directory; choose a path"):
        create(tmp_path / "file" / "one")


def test_a_directory_without_permission_is_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setattr(Path, "mkdir", _refuse)
    with pytest.raises(SpongeError) as error:
        create(tmp_path / "one")
    assert str(error.value) == (
        f"cannot write {str(tmp_path / 'one')!r}: Permission denied; "
        "choose a path that can be written"
    )


def test_each_agent_and_seed_gets_one_folder_once(tmp_path):
    run = create(tmp_path / "one")
    assert run.episode("fa2", 3) == run.path / "fa2-seed3"
    assert run.episode("fa2", 4).is_dir()
    with pytest.raises(RunDirectoryError, match="fa2-seed3"):
        run.episode("fa2", 3)


def test_the_csv_header_is_the_schema(tmp_path):
    CsvSink(tmp_path / "intervals.csv").close()
    with (tmp_path / "intervals.csv").open() as file:
        assert next(csv.reader(file)) == list(names(IntervalMetrics))


@settings(max_examples=30)
@given(intervals=st.lists(INTERVALS, min_size=1, max_size=4))
def test_a_csv_reads_back_as_the_metrics_that_were_written(tmp_path_factory, intervals):
    path = tmp_path_factory.mktemp("csv") / "intervals.csv"
    sink = CsvSink(path)
    for interval in intervals:
        sink.interval(interval)
    sink.episode(EpisodeMetrics())
    sink.close()
    with path.open(newline="") as file:
        exact = [[float(cell) for cell in row] for row in list(csv.reader(file))[1:]]
    written = [dataclasses.astuple(interval) for interval in intervals]
    np.testing.assert_array_equal(exact, written)
    np.testing.assert_allclose(pd.read_csv(path).to_numpy(), written, rtol=1e-12)


def test_an_interrupted_run_leaves_a_readable_csv(tmp_path):
    sink = CsvSink(tmp_path / "intervals.csv")
    for index in range(3):
        sink.interval(IntervalMetrics(time_s=index + 1.0))
        frame = pd.read_csv(tmp_path / "intervals.csv")
        assert list(frame["time_s"]) == [1.0, 2.0, 3.0][: index + 1]
    sink.close()


def test_a_csv_is_not_written_over(tmp_path):
    CsvSink(tmp_path / "intervals.csv").close()
    with pytest.raises(RunDirectoryError, match=r"intervals\.csv': File exists"):
        CsvSink(tmp_path / "intervals.csv")


def test_a_summary_has_the_names_of_the_schema_and_all_that_are_promised(tmp_path):
    sink = SummarySink(tmp_path / "summary.json")
    sink.interval(IntervalMetrics())
    assert not list(tmp_path.iterdir())
    sink.episode(EpisodeMetrics(agent="fa2", seed=3, violation_rate=0.015, partial=True))
    sink.close()
    data = read(tmp_path / "summary.json")
    assert tuple(data) == names(EpisodeMetrics)
    assert set(REQUIRED.split()) <= set(data)
    assert (data["agent"], data["seed"], data["violation_rate"]) == ("fa2", 3, 0.015)
    assert data["partial"] is True


def test_the_files_of_an_episode_have_the_names_of_the_layout(tmp_path):
    for sink in file_sinks(tmp_path):
        sink.interval(IntervalMetrics())
        sink.episode(EpisodeMetrics())
        sink.close()
    assert {file.name for file in tmp_path.iterdir()} == {"intervals.csv", "summary.json"}


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
    write_requests(tmp_path / "requests.parquet", columns)
    frame = pd.read_parquet(tmp_path / "requests.parquet")
    assert list(frame) == list(columns)
    for name, values in columns.items():
        np.testing.assert_array_equal(frame[name].to_numpy().astype(values.dtype), values)
    assert not partials(tmp_path)


def test_requests_that_cannot_be_written_leave_nothing(tmp_path):
    with pytest.raises(pyarrow.ArrowInvalid):
        write_requests(tmp_path / "requests.parquet", {"a": np.zeros(2), "b": np.zeros(3)})
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
