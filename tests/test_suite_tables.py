"""A suite's tables, from results made up by hand."""

import numpy as np
import pandas as pd

from sponge_env.results.comparison import Comparison
from sponge_env.results.suite_tables import all_tables, cell_rows, cell_table, failure_table, scores
from sponge_env.run.suite import Arrangement

COLD, OTHER = ("paper", "yolov5s", "cold"), ("bursty", "resnet18", "cold")
ALL = "all scenarios and profiles, cold start"
SEEDS = np.arange(10)
NOISE = np.linspace(-0.1, 0.1, 10)


def rows(agent, cell, violated, cores):
    values = {
        **dict.fromkeys(("violation_rate", "avoidable_violation_rate"), violated),
        "accuracy": 1.0, "effective_accuracy": 1.0, "mean_cores": cores, "latency_p99_s": 0.5,
        "offered": 1000,
    }  # fmt: skip
    named = dict(zip(("agent", "scenario", "profile", "start"), (agent, *cell), strict=True))
    return pd.DataFrame({**named, "seed": SEEDS, **values})


def comparison(*frames, agents="ip fa2", shown=(), **failure):
    columns = ["agent", "scenario", "profile", "start", "type", "message"]
    return Comparison(
        episodes=pd.concat(frames, ignore_index=True),
        failures=pd.DataFrame([failure] if failure else [], columns=columns),
        agents=agents.split(),
        shown=Arrangement((COLD, OTHER), "ip", **dict(shown)),
    )


def entries(table, agent):
    """Return what stands in an agent's row, without its name."""
    (row,) = [row for row in table.rows if row[0] == agent]
    return [*row[1:]]


BOUNDS = [rows("oracle", cell, 0.003, 4.0) for cell in (COLD, OTHER)]
PAIR = rows("ip", COLD, 0.001, 8 + NOISE), rows("fa2", COLD, 0.021, 5 + NOISE)


def test_a_cell_table_shows_means_with_ranges_and_what_the_bound_attains():
    table = cell_table(comparison(*PAIR, *BOUNDS), COLD)
    assert table.headings[2:4] == ["avoidable [%]", "mean cores"]
    assert entries(table, "fa2") == [
        *["2.100 [2.100, 2.100]"] * 2, "5.00 [4.90, 5.10]", "500 [500, 500]", "1.25"
    ]  # fmt: skip
    assert entries(table, "oracle") == [
        *["0.300 [0.300, 0.300]"] * 2, "4.00 [4.00, 4.00]", "500 [500, 500]", "1.00"
    ]  # fmt: skip
    replayed = comparison(*PAIR, shown={"replayed": {"paper": "one sample"}})
    assert entries(cell_table(replayed, COLD), "fa2")[:3] == ["2.100", "2.100", "5.00"]
    assert {*cell_rows(replayed)["n"]} == {1}


def test_a_suite_has_one_score_and_one_for_each_group():
    frames = [rows("ip", COLD, 0.001, 8.0), rows("fa2", COLD, 0, 6.0)]
    frames += [rows("ip", OTHER, 0.0, 8.0), rows("fa2", OTHER, 0.0, 3.0)]
    one = comparison(*frames, *BOUNDS, shown={"groups": {"paper": "a", "bursty": "b"}})
    tables = scores(one)
    assert entries(tables[ALL], "fa2") == ["2 of 2", "0.53", "1.06", "0.75", "0.000"]
    assert entries(tables["by group, cold start: met · cores over ip"], "fa2") == [
        "1/1 · 0.75",
        "1/1 · 0.38",
    ]
    assert "by group, cold start" in all_tables(one)


def test_a_failed_agent_has_a_line_of_its_own():
    failure = dict(zip(("scenario", "profile", "start"), COLD, strict=True))
    failure |= {"agent": "fa2", "type": "ValueError", "message": "no good"}
    frames = [rows("ip", COLD, 0, 8.0), rows("ip", OTHER, 0, 8.0), rows("fa2", OTHER, 0, 5.0)]
    one = comparison(*frames, **failure)
    assert all_tables(one).count("fa2: failed with ValueError: no good") == 1
    assert entries(failure_table(one), "fa2") == ["paper, yolov5s, cold", "ValueError: no good"]
    assert entries(scores(one)[ALL], "fa2")[0] == "1 of 2"


def test_without_bounds_there_are_no_cores_over_one():
    frame = rows("ip", COLD, 0.0, 8.0).assign(latency_p99_s=np.where(SEEDS < 3, np.inf, 0.2))
    one = comparison(frame, agents="ip")
    assert cell_table(one, COLD).headings[-1] == "p99 [ms]"
    assert entries(cell_table(one, COLD), "ip")[-1] == "dropped (3 of 10)"
    assert "cores over bound" not in scores(one)[ALL].headings
    assert [*cell_rows(one)["agent"]] == ["ip"]
