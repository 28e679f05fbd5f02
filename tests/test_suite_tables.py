"""A suite's tables, from results made up by hand."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from sponge_env.results.comparison import Comparison
from sponge_env.results.export import cell_rows, mean_rows
from sponge_env.results.layout import Table
from sponge_env.results.suite_tables import (
    all_tables,
    cell_table,
    failure_table,
    means_note,
    means_table,
    sweep_table,
)

COLD, OTHER = ("paper", "yolov5s", "cold"), ("bursty", "resnet18", "cold")
SEEDS = np.arange(10)
NOISE = np.linspace(-0.1, 0.1, 10)
DURATION_S = 60.0


def rows(agent: str, cell: tuple[str, str, str], violated: object, cores: object) -> pd.DataFrame:
    rates = "violation_rate", "avoidable_violation_rate", "beyond_common_bound_rate"
    values = {
        **dict.fromkeys(rates, violated), "cores_over_common_bound": np.asarray(cores) / 4.0,
        "accuracy": 1.0, "effective_accuracy": 1.0, "more_cores_rate": 0.0,
        "mean_cores": cores, "core_seconds": np.asarray(cores) * DURATION_S,
        "latency_p99_s": 0.5,
        "offered": 1000, "hopeless": 2, "duration_s": DURATION_S,
    }  # fmt: skip
    named = dict(zip(("agent", "scenario", "profile", "start"), (agent, *cell), strict=True))
    return pd.DataFrame({**named, "seed": SEEDS, **values})


def bounds(*cells: tuple[str, str, str]) -> pd.DataFrame:
    """Return a bound of 4 cores and 3 violations, of which 3.6 and 2 are proven."""
    frame = pd.concat([rows("oracle", cell, 0.0, 4.0) for cell in cells])
    sides = {"violations_lower": 2.0, "violations_upper": 3.0}
    sides |= {"core_seconds_lower": 3.6 * DURATION_S, "core_seconds_upper": 4.0 * DURATION_S}
    return frame[["agent", "scenario", "profile", "start", "seed"]].assign(**sides)


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


def entries(table: Table, agent: str) -> list[str]:
    """Return what stands in an agent's row, without its name."""
    (row,) = [row for row in table.rows if row[0] == agent]
    return [*row[1:]]


PAIR = rows("ip", COLD, 0.001, 8 + NOISE), rows("fa2", COLD, 0.021, 5 + NOISE)


def test_a_cell_table_shows_means_with_intervals_and_what_the_bound_attains() -> None:
    table = cell_table(comparison(*PAIR), COLD)
    assert table.headings[2:4] == ["avoidable [%]", "beyond attained bound [%]"]
    assert entries(table, "fa2") == [
        *["2.100 [2.100, 2.100]"] * 3, "5.00 [4.95, 5.05]", "1.25 [1.24, 1.26]",
        "500 [500, 500]",
    ]  # fmt: skip
    assert entries(table, "oracle") == [
        "0.300 [0.300, 0.300]", "0.100 [0.100, 0.100]", "0.000 [0.000, 0.000]",
        "4.00 [4.00, 4.00]", "1.00 [1.00, 1.00]", "-",
    ]  # fmt: skip


def test_a_difference_within_the_noise_is_marked() -> None:
    table = cell_table(comparison(PAIR[0], rows("fa2", COLD, 0.001, 8 - NOISE)), COLD)
    assert entries(table, "fa2")[1] == "0.100 [0.100, 0.100] n.s."
    assert entries(table, "fa2")[3] == "8.00 [7.95, 8.05] n.s."
    assert "n.s." not in " ".join(entries(table, "ip"))
    few = comparison(*(frame[frame["seed"] < 5] for frame in PAIR))
    assert "n.s." not in all_tables(few), "nothing can be significant"


@pytest.mark.parametrize(("agents", "different"), [("ip a", {"a"}), ("ip a b c d e", set())])
def test_the_more_agents_the_more_has_to_be_shown(agents: str, different: set[str]) -> None:
    # Eight seeds of ten the one way: p = 0.022 with a single agent, twice as much with two.
    slight = 8 + np.array([0.1] * 8 + [-0.05] * 2) * (1 + np.arange(10) / 100)
    names = agents.split()
    frames = [rows(name, COLD, 0.0, slight if name != "ip" else 8.0) for name in names]
    found = comparison(*frames, agents=agents)
    p_values = found.p_values("mean_cores", {name: [COLD] for name in names})
    assert {agent for agent, p in p_values.items() if p < 0.05} == different


def test_nearly_equal_scenarios_count_once() -> None:
    small, large = (("paper-" + size, "yolov5s", "cold") for size in ("100kb", "500kb"))
    frames = [rows("ip", c, v, 8.0) for c, v in ((small, 0.1), (large, 0.3), (OTHER, 0.0))]
    one = replace(
        comparison(*frames, agents="ip"),
        cells=[small, large, OTHER],
        families={"paper-100kb": "paper", "paper-500kb": "paper"},
    )
    assert one.mean("ip", "violation_rate", one.cells) == pytest.approx(0.1)
    assert one.mean("ip", "violation_rate", [small, large]) == pytest.approx(0.2)
    assert "paper-100kb, paper-500kb count as one scenario" in means_note(one)
    means = mean_rows(one).set_index("scenario")
    assert [*means.index] == ["all", "paper", "bursty"]
    assert [*means["cells"]] == [3, 2, 1]
    assert means.loc["all", "avoidable_violation_rate"] == pytest.approx(0.1)
    assert means.loc["all", "avoidable_violation_rate_max"] == pytest.approx(0.3)
    assert means.loc["all", "cell_of_max"] == "paper-500kb, yolov5s"


def test_a_sweep_has_a_row_for_each_agent_and_a_column_for_each_value() -> None:
    slow = ("paper-delay-2", "yolov5s", "cold")
    frames = [rows("ip", COLD, 0.001, 8.0), rows("ip", slow, 0.021, 9.0), rows("fa2", COLD, 0, 5.0)]
    one = replace(
        comparison(*frames), cells=[COLD], sweeps={"delay [s]": {"0": [COLD], "2": [slow]}}
    )
    table = sweep_table(one, "delay [s]", "cold")
    assert table.headings == ["agent", "0", "2"]
    assert entries(table, "ip") == ["0.10 % · 8.00", "2.10 % · 9.00"]
    assert entries(table, "fa2") == ["0.00 % · 5.00", "-"]
    assert "delay [s], cold start" in all_tables(one)


def test_less_than_the_bound_is_below_zero_and_drops_have_no_latency() -> None:
    p99_s = np.where(SEEDS < 3, np.inf, 0.2)
    frame = rows("ip", COLD, 0.001, 8.0).assign(
        beyond_common_bound_rate=-0.002, latency_p99_s=p99_s
    )
    row = entries(cell_table(comparison(frame, agents="ip"), COLD), "ip")
    assert row[2] == "-0.200 [-0.200, -0.200]"
    assert row[-1] == "dropped (3 of 10)"


def test_a_failed_agent_has_a_line_of_its_own() -> None:
    failure = dict(zip(("scenario", "profile", "start"), COLD, strict=True))
    failure |= {"agent": "fa2", "type": "ValueError", "message": "no good"}
    frames = [rows("ip", COLD, 0, 8.0), rows("ip", OTHER, 0, 8.0), rows("fa2", OTHER, 0, 5.0)]
    one = comparison(*frames, **failure)
    assert all_tables(one).count("fa2: failed with ValueError: no good") == 1
    assert entries(failure_table(one), "fa2") == ["paper, yolov5s, cold", "ValueError: no good"]
    assert entries(means_table(one, "cold"), "fa2")[0] == "1/2"
    assert [*mean_rows(one).query("scenario == 'all'")["cells"]] == [2, 1]
    # where the reference failed nothing is compared with it
    alone = comparison(rows("fa2", COLD, 0.0, 5.0))
    assert entries(cell_table(alone, COLD), "fa2")[1] == "0.000 [0.000, 0.000]"


def pooled(*missing: tuple[str, str, str]) -> Comparison:
    """Return two agents on two cells, some without their bound."""
    frames = [
        rows("ip", COLD, 0.0, 8.0), rows("ip", OTHER, 0.0, 4.0),
        rows("fa2", COLD, 0.02, 4.0), rows("fa2", OTHER, 0.0, 2.0),
    ]  # fmt: skip
    relative = ["beyond_common_bound_rate", "cores_over_common_bound"]
    for frame in frames:
        if tuple(frame[["scenario", "profile", "start"]].iloc[0]) in missing:
            frame[relative] = np.nan
    return comparison(*frames)


@pytest.mark.parametrize(
    ("missing", "beyond", "cores"), [((), "1.000", "0.75"), ((OTHER,), "2.000", "1.00")]
)
def test_means_over_all_cells_leave_out_those_without_a_bound(
    missing: tuple[tuple[str, str, str], ...], beyond: str, cores: str
) -> None:
    one = pooled(*missing)
    assert f"on {2 - len(missing)} of 2 cells" in means_note(one)
    row = [text.partition(" ")[0] for text in entries(means_table(one, "cold"), "fa2")]
    assert row == ["2/2", "1.000", "0.000", beyond, cores]
    mean = mean_rows(one).query("agent == 'fa2' and scenario == 'all'").iloc[0]
    assert mean["cores_over_common_bound"] == pytest.approx(float(cores))
    assert mean["mean_cores_p"] == 2 / 2**10


def test_without_bounds_means_show_cores() -> None:
    one = replace(comparison(rows("ip", COLD, 0.0, 8.0), agents="ip"), bounds=pd.DataFrame())
    assert entries(means_table(one, "cold"), "ip")[-1] == "8.00 [8.00, 8.00]"
    assert math.isnan(mean_rows(replace(one, cells=[COLD]))["cores_over_common_bound"].iloc[0])
    assert [*cell_rows(one)["agent"]] == ["ip"]
