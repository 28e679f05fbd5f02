"""Pictures: their axes, their colours, and odd runs."""

import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from PIL import Image
from report_runs import COLD, WARM, write_suite

from sponge_env.app.compare import _draw
from sponge_env.errors import RunDirectoryError
from sponge_env.metrics import IntervalMetrics
from sponge_env.results.comparison import load_run
from sponge_env.results.drawing import (
    COLOURS,
    STANDARD,
    draw_violations,
    moving_mean,
    plot_comparison,
    styles_of,
    time_series,
)
from sponge_env.results.page import _pictures
from sponge_env.run.suite import AgentEntry, load_suite


def run(intervals, violations=0, cores=4.0):
    one = IntervalMetrics(violations=violations, cores=cores, delay_mean_s=0.1, delay_max_s=0.2)
    return pd.DataFrame([replace(one, time_s=index + 1.0) for index in range(intervals)])


def colours_in(path):
    """Return the colours of the pixels, as #RRGGBB."""
    with Image.open(path) as picture:
        colours = picture.convert("RGB").getcolors(maxcolors=picture.width * picture.height)
    return {"#{:02X}{:02X}{:02X}".format(*colour) for _, colour in colours}


def test_every_agent_has_its_own_colour_and_the_same_runs_the_same_picture(tmp_path):
    agents = {name: run(60, index, 4.0 + index) for index, name in enumerate("abcd")}
    for name, order in (("one.png", "abcd"), ("two.png", "dcab")):
        plot_comparison({agent: agents[agent] for agent in order}, tmp_path / name, "four agents")
    assert set(COLOURS[:4]) <= colours_in(tmp_path / "one.png")
    assert not set(COLOURS[4:6]) & colours_in(tmp_path / "one.png")
    assert (tmp_path / "one.png").read_bytes() == (tmp_path / "two.png").read_bytes()
    featured = load_suite(STANDARD).featured
    assert len({style["color"] for style in styles_of(featured).values()}) == len(featured) == 8


@pytest.mark.parametrize("count", [1, 7, 27])
def test_legends_lie_inside_the_canvas(tmp_path, count):
    agents = [f"a-controller-{n}" for n in range(count - 1)] + ["my_controllers:" + 40 * "A"]
    made = write_suite(
        tmp_path / "run", {agent: ([n], 4.0) for n, agent in enumerate(agents)}, [COLD, WARM]
    )
    names = []
    for name, _, draw in _pictures(load_run(made).comparison):
        figure = draw()
        figure.draw_without_rendering()
        for legend in figure.legends:
            ends = legend.get_window_extent()
            assert figure.bbox.x0 <= ends.x0 <= ends.x1 <= figure.bbox.x1, name
            assert figure.bbox.y0 <= ends.y0 <= ends.y1 <= figure.bbox.y1, name
        names += [name] * len(figure.legends)
    assert len(names) == 3


@pytest.mark.parametrize(
    "intervals",
    [
        {"one interval": run(1)},
        {"a": run(5), "interrupted": run(2)},
        {"no arrivals": pd.DataFrame([IntervalMetrics(time_s=1.0), IntervalMetrics(time_s=2.0)])},
        {str(index): run(3) for index in range(9)},
    ],
)
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
        plot_comparison({"a": run(2)}, tmp_path, "a folder")


@pytest.mark.parametrize(("accuracy", "shown"), [(math.nan, False), (1.0, False), (0.8, True)])
def test_accuracy_has_a_panel_where_some_answers_are_wrong(accuracy, shown):
    one = run(9).assign(accuracy=accuracy, effective_accuracy=0.7)
    figure = time_series({"a": one}, styles_of(["a"]))
    assert any("accuracy" in ax.get_ylabel() for ax in figure.axes) == shown


@pytest.mark.parametrize("total", [0, 1, 6, 40, 300, 20_000])
def test_the_axis_of_violations_has_a_few_whole_numbers(total):
    ax = Figure(figsize=(9, 1.6)).subplots()
    runs = {"a": {"time_s": [1.0, 2.0], "violations": [total - total // 2, total // 2]}}
    draw_violations(ax, runs, styles_of(["a"]))
    ax.figure.draw_without_rendering()
    bottom, top = ax.get_ylim()
    ticks = [tick for tick in ax.get_yticks() if bottom <= tick <= top]
    assert 3 <= len(ticks) <= 7
    assert all(tick >= 0 and tick == int(tick) for tick in ticks)
    assert ax.get_legend_handles_labels()[1] == [f"a: {total}"]


def test_a_moving_mean_averages_the_measured_neighbours():
    np.testing.assert_allclose(moving_mean(np.array([0.0, 3.0, 6.0, 3.0]), 3), [1.5, 3.0, 4.0, 4.5])
    values = np.array([1.0, np.nan, 3.0, np.nan, np.nan, np.nan])
    np.testing.assert_allclose(moving_mean(values, 3), [1, 2, 3, 3, np.nan, np.nan])
