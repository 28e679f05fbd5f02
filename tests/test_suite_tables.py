"""A suite's tables, from results made up by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from sponge_env.suite.tables import Comparison, aggregate_table, all_tables, cell_table
from sponge_env.suite.tensorboard import write_runs

COLD, OTHER = ("paper", "yolov5s", "cold"), ("bursty", "resnet18", "cold")
SEEDS = np.arange(10)
NOISE = np.linspace(-0.1, 0.1, 10)


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
            "beyond_bound_rate": violated,
            "mean_cores": cores,
            "core_seconds": cores,
            "cores_over_bound": np.asarray(cores) / 4.0,
            "latency_p99_s": 0.5,
        }
    )


def comparison(*frames: pd.DataFrame, agents: str = "ip fa2", **failure: str) -> Comparison:
    columns = ["agent", "scenario", "profile", "start", "type", "message"]
    return Comparison(
        episodes=pd.concat(frames, ignore_index=True),
        failures=pd.DataFrame([failure] if failure else [], columns=columns),
        agents=agents.split(),
        cells=[COLD, OTHER],
        reference="ip",
    )


def row(table: str, agent: str) -> str:
    return " ".join(next(line for line in table.splitlines() if line.startswith(agent)).split())


def test_a_cell_table_shows_means_intervals_and_differences() -> None:
    table = cell_table(
        comparison(rows("ip", COLD, 0.001, 8 + NOISE), rows("fa2", COLD, 0.021, 5 + NOISE)),
        COLD,
    )
    assert table.startswith("paper, yolov5s, cold start\n")
    assert row(table, "ip") == "ip 0.100 0.100 0.100 - 8.00 [7.96, 8.04] - 2.000 500"
    assert row(table, "fa2") == "fa2 2.100 2.100 2.100 +2.000 5.00 [4.96, 5.04] -3.00 1.250 500"


def test_a_difference_within_the_noise_is_called_not_significant() -> None:
    table = cell_table(
        comparison(rows("ip", COLD, 0.001, 8 + NOISE), rows("fa2", COLD, 0.001, 8 - NOISE)), COLD
    )
    assert row(table, "fa2").split()[4:9] == ["n.s.", "8.00", "[7.96,", "8.04]", "n.s."]


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
    table = cell_table(comparison(rows("fa2", COLD, 0.0, 5.0)), COLD)
    assert row(table, "fa2").split()[4] == "-"


def test_the_aggregate_pools_the_cells() -> None:
    table = aggregate_table(
        comparison(
            rows("ip", COLD, 0.0, 8.0),
            rows("ip", OTHER, 0.0, 4.0),
            rows("fa2", COLD, 0.02, 4.0),
            rows("fa2", OTHER, 0.0, 2.0),
        ),
        "cold",
    )
    assert "beyond bound %" in table
    assert "cores over bound" in table
    assert row(table, "fa2") == (
        "fa2 2/2 1.000 [1.000, 1.000] 1.000 [1.000, 1.000] 0.75 [0.75, 0.75] "
        "0.25 [0.25, 0.25] 1.00 [1.00, 1.00]"
    )


def test_without_bounds_the_aggregate_says_what_it_shows_instead() -> None:
    frame = rows("ip", COLD, 0.0, 8.0).assign(beyond_bound_rate=np.nan, cores_over_bound=np.nan)
    table = aggregate_table(comparison(frame, agents="ip"), "cold")
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
