"""A suite's tables and its score, from results made up by hand, and the picture of it."""

import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sponge_env.results import suite_tables
from sponge_env.results.comparison import Comparison
from sponge_env.results.drawing import profile_figure, styles_of
from sponge_env.results.suite_tables import cell_rows, cell_table, score_rows, scores
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
        failures=pd.DataFrame([failure] if failure else [], columns=columns), agents=agents.split(),
        shown=Arrangement((COLD, OTHER), "ip", **dict(shown)),
    )  # fmt: skip


def entries(table, agent):
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
    assert entries(tables[ALL], "fa2") == ["2 of 2", "0.53", "0.75", "1.06", "0.000"]
    groups = tables["by group, cold start: met · cores over ip"]
    assert entries(groups, "fa2") == ["1/1 · 0.75", "1/1 · 0.38"]
    assert "by group, cold start" in suite_tables.all_tables(one)
    assert "bound" in suite_tables.score_note(one)


def test_a_failed_agent_has_a_line_of_its_own():
    failure = dict(zip(("scenario", "profile", "start"), COLD, strict=True))
    failure |= {"agent": "fa2", "type": "ValueError", "message": "no good"}
    frames = [rows("ip", COLD, 0, 8.0), rows("ip", OTHER, 0, 8.0), rows("fa2", OTHER, 0, 5.0)]
    one = comparison(*frames, **failure)
    assert suite_tables.all_tables(one).count("fa2: failed with ValueError: no good") == 1
    assert entries(scores(one)[ALL], "fa2")[0] == "1 of 2"
    nobody = comparison(*frames[1:], **failure)
    assert entries(scores(nobody)[ALL], "ip")[0] == "1 of 2", "all failed in one"


def test_without_bounds_there_are_no_cores_over_one():
    frame = rows("ip", COLD, 0.0, 8.0).assign(latency_p99_s=np.where(SEEDS < 3, np.inf, 0.2))
    one = comparison(frame, agents="ip")
    assert cell_table(one, COLD).headings[-1] == "p99 [ms]"
    assert entries(cell_table(one, COLD), "ip")[-1] == "dropped (3 of 10)"
    assert "bound" not in suite_tables.all_tables(one)
    assert [*cell_rows(one)["agent"]] == ["ip"]


CELLS = [(f"{kind}-{load}", f"load {load}") for load in (0.1, 0.4) for kind in ("swing", "step")]
MISSED = {"fixed": [0.0, 0.0, 0.0009, 0.002], "good": [0.0, 0.001, 0.0, 0.0]}
MISSED |= {"bad": [0.01, 0.02, 0.03, 0.04]}
CORES = {"fixed": [2.0, 4.0, 8.0, 16.0], "good": [1.0, 4.0, 4.0, 16.0], "bad": [1.0] * 4}


def frame(start="warm"):
    """Return four cells of three agents, with a bound of one core that lacks the last."""
    rows = [
        (name, "m", start, group, agent, MISSED[agent][k], CORES[agent][k])
        for k, (name, group) in enumerate(CELLS)
        for agent in MISSED
    ]
    rows += [(name, "m", start, group, "oracle-joint", 0.0, 1.0) for name, group in CELLS[:3]]
    names = ["scenario", "profile", "start", "group", "agent"]
    return pd.DataFrame(rows, columns=[*names, "avoidable_violation_rate", "mean_cores"])


def of(rows, agent):
    (row,) = rows[rows["agent"] == agent].to_dict("records")
    names = ("cells", "met", "cores_over_reference", "cores_over_bound", "worst", "missed")
    return [row[name] for name in names]


def test_the_score_by_hand():
    rows = score_rows(frame(), "fixed")
    assert ([*rows["agent"]], {*rows["reference"]}) == ([*MISSED], {"fixed"})
    # Ratios 1/2, 1, 1/2, 1; the bound is known in three cells, of 1, 4 and 4 cores.
    assert of(rows, "good") == pytest.approx([4, 4, 0.25**0.25, 16 ** (1 / 3), 1.0, 0.00025])
    assert of(rows, "fixed") == pytest.approx([4, 3, 1.0, 64 ** (1 / 3), 1.0, 0.0029 / 4])
    assert of(rows, "bad") == pytest.approx([4, 0, *[math.nan] * 3, 0.025], nan_ok=True)
    table = suite_tables.score_table(rows, ["bad", "nobody", "good"])
    assert table.headings[2] == "cores over fixed"
    assert table.rows == [
        ["bad", "0 of 4", "-", "-", "-", "2.500"],
        ["good", "4 of 4", "0.71", "1.00", "2.52", "0.025"],
    ]


def test_a_cell_without_a_result_is_not_met_and_without_the_reference_not_compared():
    cells = frame()
    first = cells["scenario"] == CELLS[0][0]
    lost = score_rows(cells[~(first & (cells["agent"] == "good"))], "fixed")
    assert of(lost, "good")[:3] == pytest.approx([4, 3, 0.5 ** (1 / 3)])
    alone = score_rows(cells[~(first & (cells["agent"] == "fixed"))], "fixed")
    assert of(alone, "good")[:3] == pytest.approx([4, 4, 0.5 ** (1 / 3)])
    assert math.isnan(of(score_rows(cells, "nobody"), "good")[2])


def test_starts_and_groups_have_scores_of_their_own():
    cells = pd.concat([frame(), frame("cold")])
    assert len(score_rows(cells, "fixed")) == 2 * len(MISSED)
    grouped = score_rows(frame(), "fixed", "group")
    grid = suite_tables.score_grid(grouped, "group", ["good", "bad", "nobody"])
    assert [*grid.headings[1:]] == ["load 0.1", "load 0.4"]
    assert grid.rows == [["good", "2/2 · 0.71", "2/2 · 0.71"], ["bad", "0/2 · -", "0/2 · -"]]
    tables = suite_tables.score_tables(cells, "fixed", ["good"])
    kinds = "all scenarios and profiles, {} start", "by group, {} start: met · cores over fixed"
    assert [*tables] == [kind.format(start) for start in ("warm", "cold") for kind in kinds]


def test_the_profile_has_a_step_for_each_cell_that_is_met():
    rows = suite_tables.ratios(pd.concat([frame(), frame("cold")]), "fixed")
    figure = profile_figure(rows, "fixed", styles_of([*MISSED]))
    warm, _ = figure.axes
    assert [ax.get_title(loc="left") for ax in figure.axes] == ["warm start", "cold start"]
    lines = {line.get_label(): line.get_xydata() for line in warm.get_lines()}
    np.testing.assert_allclose(lines["good"][[0, 2, 4, 5]], [[0.5, 0], [0.5, 0.5], [1, 1], [4, 1]])
    np.testing.assert_allclose(lines["fixed"][[0, 3, 4]], [[0.5, 0], [1, 0.75], [4, 0.75]])
    np.testing.assert_allclose(lines["bad"], [[0.5, 0], [4, 0]])


@settings(max_examples=30, deadline=None)
@given(st.lists(st.floats(0.1, 100.0), min_size=4, max_size=4))
def test_the_unit_of_a_cells_cores_changes_nothing(factors):
    cells, by_cell = frame(), dict(zip((name for name, _ in CELLS), factors, strict=True))
    scaled = cells.assign(mean_cores=cells["mean_cores"] * cells["scenario"].map(by_cell))
    pd.testing.assert_frame_equal(score_rows(scaled, "fixed"), score_rows(cells, "fixed"))
