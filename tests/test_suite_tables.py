"""A suite's tables, from results made up by hand."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from tensorboard.backend.event_processing.plugin_event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar import metadata as custom_scalars
from tensorboard.plugins.custom_scalar.layout_pb2 import Layout
from tensorboard.plugins.hparams import metadata as hparams
from tensorboard.util.tensor_util import make_ndarray

from sponge_env.results.comparison import Comparison
from sponge_env.results.tables import (
    all_tables,
    cell_text,
    mark_note,
    pooled_note,
    pooled_text,
    sweep_table,
)
from sponge_env.run.tensorboard import write_runs

COLD, OTHER = ("paper", "yolov5s", "cold"), ("bursty", "resnet18", "cold")
SEEDS = np.arange(10)
NOISE = np.linspace(-0.1, 0.1, 10)
DURATION_S = 60.0


def rows(agent: str, cell: tuple[str, str, str], violated: object, cores: object) -> pd.DataFrame:
    scenario, profile, start = cell
    return pd.DataFrame(
        {
            "agent": agent,
            "scenario": scenario,
            "profile": profile,
            "start": start,
            "seed": SEEDS,
            "violation_rate": violated,
            "avoidable_violation_rate": violated,
            "more_cores_rate": 0.0,
            "accuracy": 1.0,
            "bound": "oracle",
            "beyond_bound_rate": violated,
            "beyond_common_bound_rate": violated,
            "mean_cores": cores,
            "core_seconds": np.asarray(cores) * DURATION_S,
            "cores_over_bound": np.asarray(cores) / 4.0,
            "cores_over_common_bound": np.asarray(cores) / 4.0,
            "cores_over_relaxation": np.nan,
            "latency_p99_s": 0.5,
            "offered": 1000,
            "hopeless": 2,
            "duration_s": DURATION_S,
        }
    )


def bounds(*cells: tuple[str, str, str]) -> pd.DataFrame:
    """Return a bound of 4 cores and 3 violations, of which 3.6 and 2 are proven."""
    found = pd.concat([rows("oracle", cell, 0.0, 4.0) for cell in cells])
    sides = {"violations_lower": 2.0, "violations_upper": 3.0}
    sides |= {"core_seconds_lower": 3.6 * DURATION_S, "core_seconds_upper": 4.0 * DURATION_S}
    return found[["agent", "scenario", "profile", "start", "seed"]].assign(**sides)


def comparison(*frames: pd.DataFrame, agents: str = "ip fa2", **failure: str) -> Comparison:
    columns = ["agent", "scenario", "profile", "start", "type", "message"]
    return Comparison(
        episodes=pd.concat(frames, ignore_index=True),
        failures=pd.DataFrame([failure] if failure else [], columns=columns),
        agents=agents.split(),
        cells=[COLD, OTHER],
        reference="ip",
        bounds=bounds(COLD, OTHER),
    )


def row(table: str, agent: str) -> str:
    return " ".join(next(line for line in table.splitlines() if line.startswith(agent)).split())


def test_a_cell_table_shows_means_intervals_and_differences() -> None:
    table = cell_text(
        comparison(rows("ip", COLD, 0.001, 8 + NOISE), rows("fa2", COLD, 0.021, 5 + NOISE)),
        COLD,
    )
    assert table.startswith("paper, yolov5s, cold start\n")
    assert row(table, "ip") == "ip 0.100 0.100 - 0.100 8.00 [7.95, 8.05] - 2.000 500"
    assert row(table, "fa2") == "fa2 2.100 2.100 +2.000 2.100 5.00 [4.95, 5.05] -3.00 1.250 500"


def test_a_difference_within_the_noise_is_called_not_significant() -> None:
    table = cell_text(
        comparison(rows("ip", COLD, 0.001, 8 + NOISE), rows("fa2", COLD, 0.001, 8 - NOISE)), COLD
    )
    assert row(table, "fa2") == (
        "fa2 0.100 0.100 +0.000 n.s. 0.100 8.00 [7.95, 8.05] +0.00 n.s. 2.000 500"
    )


def test_the_more_agents_the_more_has_to_be_shown() -> None:
    # Eight seeds of ten the one way: p = 0.022 with a single agent, twice as much with two.
    slight = 8 + np.array([0.1] * 8 + [-0.05] * 2) * (1 + np.arange(10) / 100)
    frames = [rows("ip", COLD, 0.0, 8.0), rows("a", COLD, 0.0, slight)]
    alone = comparison(*frames, agents="ip a")
    beside = comparison(
        *frames, *(rows(n, COLD, 0.0, slight) for n in "bcde"), agents="ip a b c d e"
    )
    assert alone.different_on("mean_cores", COLD) == {"a"}
    assert beside.different_on("mean_cores", COLD) == set()


def test_too_few_seeds_are_called_so_and_nothing_else() -> None:
    frames = [rows("ip", COLD, 0.0, 8.0), rows("fa2", COLD, 0.8548, 8 - NOISE)]
    few = [frame[frame["seed"] < 5] for frame in frames]
    table = all_tables(replace(comparison(*few), cells=[COLD]))
    assert "+85.480 ?" in row(table, "fa2")
    assert "?: too few seeds to tell; with 1 agent it takes 6" in table
    assert "n.s." not in table
    assert "[7." not in table  # nor an interval


def test_more_agents_need_more_seeds() -> None:
    six = [rows(name, COLD, 0.0, 8 - n) for n, name in enumerate(["ip", *"abcdef"])]
    found = comparison(*(f[f["seed"] < 6] for f in six), agents="ip a b c d e f")
    assert found.can_tell(1)
    assert not found.can_tell(6)
    assert "?: too few seeds to tell" in mark_note(found)
    assert row(cell_text(found, COLD), "b").count("?") == 2


def test_nearly_equal_scenarios_count_once() -> None:
    small, large = (("paper-" + size, "yolov5s", "cold") for size in ("100kb", "500kb"))
    frames = [rows("ip", c, v, 8.0) for c, v in ((small, 0.1), (large, 0.3), (OTHER, 0.0))]
    found = replace(
        comparison(*frames, agents="ip"),
        cells=[small, large, OTHER],
        families={"paper-100kb": "paper", "paper-500kb": "paper"},
    )
    assert found.mean("ip", "violation_rate", *found.cells) == pytest.approx(0.1)
    assert found.mean("ip", "violation_rate", small, large) == pytest.approx(0.2)
    note = pooled_note(found)
    assert "paper-100kb and paper-500kb count as one scenario" in note


def test_a_sweep_has_a_row_for_each_agent_and_a_column_for_each_value() -> None:
    slow = ("paper-delay-2", "yolov5s", "cold")
    frames = [rows("ip", COLD, 0.001, 8.0), rows("ip", slow, 0.021, 9.0), rows("fa2", COLD, 0, 5.0)]
    found = replace(
        comparison(*frames), cells=[COLD], sweeps={"delay [s]": {"0": [COLD], "2": [slow]}}
    )
    table = sweep_table(found, "delay [s]", "cold")
    assert table.headings == ["agent", "0", "2"]
    assert [[e.text for e in line] for line in table.rows] == [
        ["ip", "0.10 % · 8.00", "2.10 % · 9.00"],
        ["fa2", "0.00 % · 5.00", "-"],
    ]
    assert "delay [s], cold start" in all_tables(found)


def test_a_bound_stands_below_the_agents_with_both_sides() -> None:
    table = cell_text(comparison(rows("ip", COLD, 0.001, 8.0), agents="ip"), COLD)
    assert row(table, "oracle") == "oracle 0.200 .. 0.300 0.000 .. 0.100 - - 3.60 .. 4.00 - - -"


def test_who_violates_less_than_the_bound_is_below_zero() -> None:
    frame = rows("ip", COLD, 0.001, 8.0).assign(beyond_bound_rate=-0.002)
    assert row(cell_text(comparison(frame, agents="ip"), COLD), "ip").split()[4] == "-0.200"


def test_who_drops_has_no_p99_to_show_off_with() -> None:
    p99_s = np.where(SEEDS < 3, np.inf, 0.2)
    frame = rows("ip", COLD, 0.02, 8.0).assign(latency_p99_s=p99_s)
    assert row(cell_text(comparison(frame, agents="ip"), COLD), "ip").endswith("dropped (3 of 10)")


def test_a_failed_agent_stands_below_the_table() -> None:
    failure = dict(zip(("scenario", "profile", "start"), COLD, strict=True))
    table = all_tables(
        comparison(
            rows("ip", COLD, 0.0, 8.0),
            rows("ip", OTHER, 0.0, 8.0),
            rows("fa2", OTHER, 0.0, 5.0),
            agent="fa2",
            type="ValueError",
            message="no good",
            **failure,
        )
    )
    assert table.count("fa2: failed with ValueError: no good") == 1
    assert row(table.split("all scenarios")[1], "fa2").startswith("fa2 1/2 ")


def test_where_the_reference_failed_nothing_is_compared_with_it() -> None:
    table = cell_text(comparison(rows("fa2", COLD, 0.0, 5.0)), COLD)
    assert row(table, "fa2").split()[3] == "-"


def pooled(*missing: tuple[str, str, str]) -> str:
    """Return the aggregate of two agents on two cells, some without their bound."""
    frames = [
        rows("ip", COLD, 0.0, 8.0),
        rows("ip", OTHER, 0.0, 4.0),
        rows("fa2", COLD, 0.02, 4.0),
        rows("fa2", OTHER, 0.0, 2.0),
    ]
    relative = ["beyond_common_bound_rate", "cores_over_common_bound"]
    for frame in frames:
        if tuple(frame[["scenario", "profile", "start"]].iloc[0]) in missing:
            frame[relative] = np.nan
    return pooled_text(comparison(*frames), "cold")


def test_the_aggregate_pools_the_cells() -> None:
    table = pooled()
    assert "beyond attained" in table
    assert "cores over" in table
    assert "bound: what oracle attains, for every agent, on 2 of 2 cells" in table
    assert row(table, "fa2") == (
        "fa2 2/2 1.000 [1.000, 1.000] 1.000 [1.000, 1.000] 0.000 [0.000, 0.000] "
        "1.000 [1.000, 1.000] 0.75 [0.75, 0.75] 0.25 [0.25, 0.25] 1.00 [1.00, 1.00]"
    )


def test_a_bound_that_is_missing_takes_nothing_from_other_cells() -> None:
    table = pooled(OTHER)
    assert "on 1 of 2 cells" in table
    assert row(table, "fa2") == (
        "fa2 2/2 1.000 [1.000, 1.000] 1.000 [1.000, 1.000] 0.000 [0.000, 0.000] "
        "2.000 [2.000, 2.000] 1.00 [1.00, 1.00] 0.25 [0.25, 0.25] 1.00 [1.00, 1.00]"
    )


def test_without_bounds_the_aggregate_says_what_it_shows_instead() -> None:
    found = comparison(rows("ip", COLD, 0.0, 8.0), agents="ip")
    table = pooled_text(replace(found, bounds=pd.DataFrame()), "cold")
    assert "avoidable %" in table
    assert "bound" not in table
    assert "8.00 [8.00, 8.00]" in table


def test_tensorboard_has_one_run_per_agent_and_nothing_stale(tmp_path: Path) -> None:
    (tmp_path / "gone").mkdir()
    write_runs(
        tmp_path, pd.concat([rows("ip", COLD, 0.001, 8 + NOISE), rows("fa2", COLD, 0.0, 5.0)])
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["fa2", "ip"]
    events = EventAccumulator(str(tmp_path / "ip")).Reload()
    (event,) = events.Tensors("cold mean_cores/paper yolov5s")
    assert event.tensor_proto.float_val[0] == pytest.approx(8.0)


def test_tensorboard_compares_the_agents_of_a_suite(tmp_path: Path) -> None:
    write_runs(tmp_path, pd.concat([rows("ip", COLD, 0.001, 8.0), rows("ip", OTHER, 0.0, 6.0)]))
    events = EventAccumulator(str(tmp_path / "ip")).Reload()
    (event,) = events.Tensors("whole_suite/cold mean_cores")
    assert event.tensor_proto.float_val[0] == pytest.approx(7.0)
    content = events.PluginTagToContent("hparams")
    start = hparams.parse_session_start_info_plugin_data(content[hparams.SESSION_START_INFO_TAG])
    assert start.hparams["agent"].string_value == "ip"
    experiment = hparams.parse_experiment_plugin_data(content[hparams.EXPERIMENT_TAG])
    assert "whole_suite/cold mean_cores" in [m.name.tag for m in experiment.metric_infos]
    series = events.Tensors("resources/mean_cores, cold")
    assert sorted(point.tensor_proto.float_val[0] for point in series) == [6.0, 8.0]
    assert [point.step for point in series] == [0, 1]
    (event,) = events.Tensors(custom_scalars.CONFIG_SUMMARY_TAG)
    layout = Layout.FromString(make_ndarray(event.tensor_proto).item())
    patterns = [chart.multiline.tag[0] for c in layout.category for chart in c.chart]
    assert any(re.match(pattern, "resources/mean_cores, cold") for pattern in patterns)
