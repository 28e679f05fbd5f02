"""The report: one page, its pictures, and its tables as data."""

import re
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from report_runs import COLD, WARM, keep, write_suite

from sponge_env.app.compare import _draw
from sponge_env.app.report import main
from sponge_env.errors import RunDirectoryError
from sponge_env.metrics import IntervalMetrics
from sponge_env.results import drawing
from sponge_env.results.comparison import load_run
from sponge_env.results.drawing import moving_mean, plot_comparison
from sponge_env.results.suite_tables import read_rows, score_rows
from sponge_env.results.tables import Table, markdown, with_block
from sponge_env.run.suite import AgentEntry, load_suite

FEW, MANY = ([0, 1, 0, 0, 0, 0, 0, 0], 8.0), ([40, 41, 40, 40, 40, 41, 40, 40], 5.0)
AGENTS = {"sponge-ip": FEW, "fa2": MANY, "static-8": FEW}
SLOW = ("paper-300kb-delay-2", *COLD[1:])


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    bounds = {"oracle": 4.0, "oracle-joint": 3.0}
    arrangement = {"cells": [COLD, WARM, SLOW], "groups": {COLD[0]: "delay 0", SLOW[0]: "delay 2"}}
    path = tmp_path_factory.mktemp("runs") / "run"
    write_suite(path, AGENTS, [COLD, WARM, SLOW], bounds=bounds, arrangement=arrangement)
    keep(path, "queue-rule", COLD, {}, type="ValueError", message="1 < 2")
    return path


@pytest.fixture(scope="module")
def page(run):
    assert main([str(run)]) == 0
    return (run / "report/report.html").read_text()


def row(page, agent, column):
    for table in re.findall(r"<table>(.*?)</table>", page, re.DOTALL):
        headings = re.findall(r"<th>(.*?)</th>", table)
        rows = re.findall(rf"<tr><td>{agent}</td>.*", table)
        if column in headings and rows:
            return re.findall(r"<td(.*?)</td>", rows[0])[headings.index(column)]
    raise AssertionError(f"no table has {agent} and {column}")


def test_the_page_needs_no_other_file_and_has_its_pictures_beside_it(run, page, tmp_path):
    assert main([str(run), "--out", str(tmp_path)]) == 0
    assert (tmp_path / "report.html").read_text() == page, "the same run gives the same page"
    assert not re.findall(r"""(?:src|href)=["'](?!data:|#)""", page)
    assert "<script" not in page
    cells = {f"series-{'-'.join(cell)}" for cell in (COLD, WARM, SLOW)}
    pictures = {path.stem for path in (run / "report").glob("*.png")}
    assert (pictures, page.count("data:image/png;base64,")) == ({"profile"} | cells, len(pictures))
    with Image.open(run / "report/profile.png") as picture:
        assert picture.width > 500


def test_the_page_has_every_table(page):
    assert "<td>paper-300kb, yolov5s, cold</td><td>ValueError: 1 &lt; 2</td>" in page
    assert row(page, "fa2", "delay 2") == ">0/1 · -"
    assert row(page, "static-8", "delay 2") == ">1/1 · 1.60"
    assert row(page, "static-8", "met") == ">2 of 2"
    assert len(re.findall(r"<tr><td>oracle-joint</td>.*<td>3.00 \[3.00, 3.00\]</td>", page)) == 3
    assert row(page, "static-8", "avoidable [%]") == ">0.013 [0.000, 0.100]"
    assert row(page, "fa2", "avoidable [%]") == ">4.025 [4.000, 4.100]"


def test_the_tables_are_there_as_data(run, page):
    cells, scores = (read_rows(run / f"report/{name}.csv") for name in ("cells", "score"))
    assert (len(cells), set(cells["agent"])) == (3 * (len(AGENTS) + 1), {*AGENTS, "oracle-joint"})
    pd.testing.assert_frame_equal(score_rows(cells, "fa2"), scores, rtol=1e-5, check_dtype=False)
    own = cells[(cells["start"] == "cold") & (cells["group"] == "delay 0")].set_index("agent")
    shown = own.loc[["fa2", "oracle-joint"], ["avoidable_violation_rate", "mean_cores", "n"]]
    np.testing.assert_allclose(shown, [[0.04025, 5, 8], [0, 3, 8]])


@pytest.mark.usefixtures("unpainted")
def test_the_runs_of_both_backends_share_a_page_in_their_folder(tmp_path):
    for backend in ("sim", "live"):
        write_suite(tmp_path / "both" / backend, {"fa2": ([0], 8.0), "static-8": ([0], 8.0)})
    assert main([str(tmp_path / "both")]) == 0
    page = (tmp_path / "both/report/report.html").read_text()
    assert sorted(re.findall(r"<h1>(.*)</h1>", page)) == ["Run both/live", "Run both/sim"]
    assert (tmp_path / "both/report/2-series-flash-crowd-yolov5s-warm.png").exists()
    assert row(page, "fa2", "mean cores, simulated").endswith(">8.00"), "the table of both"


@pytest.mark.usefixtures("unpainted")
def test_one_cell_is_shown_once_and_the_reference_is_the_users(run, tmp_path):
    assert main([str(write_suite(tmp_path / "run", AGENTS, [COLD]))]) == 0
    page = (tmp_path / "run/report/report.html").read_text()
    assert "All cells" not in page
    assert not (tmp_path / "run/report/profile.png").exists()
    assert main([str(run), "--reference", "static-8", "--out", str(tmp_path)]) == 0
    page = (tmp_path / "report.html").read_text()
    assert row(page, "sponge-ip", "cores over static-8") == ">1.00"


def test_few_agents_are_shown_where_there_is_no_room(tmp_path):
    many = dict.fromkeys("a b c d e hpa sponge-joint static-8".split(), ([0], 8.0))
    crowded = load_run(write_suite(tmp_path / "run", many, [COLD]))
    assert drawing.featured_of(crowded.comparison.agents) == ["hpa", "sponge-joint"]


@pytest.mark.parametrize(
    ("argv", "sentence"),
    [("missing", "is no run"), ("{run} --reference fa3", "unknown agent 'fa3'"),
     ("{run} --out bare.md", "cannot write")],
)  # fmt: skip
def test_bad_input_is_one_sentence_and_writes_nothing(run, own_folder, refused, argv, sentence):
    (own_folder / "bare.md").write_text("no marks\n")
    line = argv.format(run=run) + ("" if "--out" in argv else " --out out")
    assert sentence in refused(main, line)


def test_text_from_files_is_no_markup():
    text = "<script>1 & 2</script> | [click](javascript:x)\nend"
    escaped = r"&lt;script>1 &amp; 2&lt;/script> \| [click]\(javascript:x) end"
    assert markdown(Table([text], [[text]])).splitlines()[::2] == [f"| {escaped} |"] * 2


def test_only_the_lines_between_the_marks_change():
    page = "# Head\n<!-- t:begin -->\nformer\n<!-- t:end -->\ntail\n"
    assert with_block(page, "t", "\nnew\n") == page.replace("former", "new")


def measured(intervals, violations=0, cores=4.0):
    one = IntervalMetrics(violations=violations, cores=cores, delay_mean_s=0.1, delay_max_s=0.2)
    return pd.DataFrame([replace(one, time_s=index + 1.0) for index in range(intervals)])


@pytest.mark.parametrize(
    "intervals", [{"one interval": measured(1)}, {"a": measured(5), "interrupted": measured(2)},
     {"no arrivals": pd.DataFrame([IntervalMetrics(time_s=1.0), IntervalMetrics(time_s=2.0)])},
     {str(index): measured(3) for index in range(9)}],
)  # fmt: skip
def test_odd_runs_are_drawn_without_a_warning(tmp_path, intervals):
    plot_comparison(intervals, tmp_path / "comparison.png", "odd")
    with Image.open(tmp_path / "comparison.png") as picture:
        assert picture.format == "PNG"


def test_where_no_agent_has_intervals_there_is_no_picture(tmp_path):
    made = write_suite(tmp_path / "run", {"a": ([1], 4.0)}, [COLD])
    for agent, drawn in (("b", False), ("a", True)):
        suite = replace(load_suite("quick"), agents={agent: AgentEntry()}, reference="")
        _draw(made, replace(suite, featured=()), "one agent")
        assert (made / "comparison.png").exists() == drawn


def test_without_a_place_for_the_picture_there_is_one_sentence(tmp_path):
    with pytest.raises(RunDirectoryError, match="cannot write"):
        plot_comparison({"a": measured(2)}, tmp_path, "a folder")


def test_a_moving_mean_averages_the_measured_neighbours():
    np.testing.assert_allclose(moving_mean(np.array([0.0, 3.0, 6.0, 3.0]), 3), [1.5, 3.0, 4.0, 4.5])
    values = np.array([1.0, np.nan, 3.0, np.nan, np.nan, np.nan])
    np.testing.assert_allclose(moving_mean(values, 3), [1, 2, 3, 3, np.nan, np.nan])
