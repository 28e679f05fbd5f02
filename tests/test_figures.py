import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.figure import Figure
from PIL import Image

from sponge_env.errors import RunDirectoryError
from sponge_env.metrics import IntervalMetrics
from sponge_env.results.figures import (
    COLOURS,
    draw_violations,
    log_axis,
    moving_mean,
    plot_comparison,
    series,
    style_of,
)


def run(intervals, violations=0, cores=4.0):
    return [
        IntervalMetrics(
            time_s=index + 1.0,
            violations=violations,
            cores=cores,
            delay_mean_s=0.1,
            delay_max_s=0.2,
        )
        for index in range(intervals)
    ]


def colours_in(path):
    """Return the colours of the pixels, as #RRGGBB."""
    with Image.open(path) as picture:
        colours = picture.convert("RGB").getcolors(maxcolors=picture.width * picture.height)
    return {"#{:02X}{:02X}{:02X}".format(*colour) for _, colour in colours}


def test_every_agent_is_drawn_in_its_own_colour(tmp_path):
    path = tmp_path / "comparison.png"
    agents = {name: run(60, index, 4.0 + index) for index, name in enumerate("abcd")}
    plot_comparison(agents, path, "four agents")
    assert set(COLOURS[:4]) <= colours_in(path)
    assert not set(COLOURS[4:6]) & colours_in(path)
    assert [file.name for file in tmp_path.iterdir()] == ["comparison.png"]


@pytest.mark.parametrize(
    "intervals",
    [
        {"a": run(1)},
        {"a": run(5), "interrupted at once": []},
        {"a": run(5), "interrupted": run(2)},
        {"a": [IntervalMetrics(time_s=1.0), IntervalMetrics(time_s=2.0)]},
        {str(index): run(3) for index in range(9)},
    ],
    ids=["one interval", "no intervals", "fewer", "no arrivals", "many agents"],
)
def test_odd_runs_are_drawn_without_a_warning(tmp_path, intervals):
    plot_comparison(intervals, tmp_path / "comparison.png", "odd")
    with Image.open(tmp_path / "comparison.png") as picture:
        assert picture.format == "PNG"


@pytest.mark.parametrize("intervals", [{}, {"a": []}], ids=["no agent", "no intervals"])
def test_without_any_interval_there_is_no_picture(tmp_path, intervals):
    plot_comparison(intervals, tmp_path / "comparison.png", "empty")
    assert not list(tmp_path.iterdir())


def test_the_same_runs_give_the_same_picture(tmp_path):
    for name in ("one.png", "two.png"):
        plot_comparison({"a": run(10, violations=1)}, tmp_path / name, "same")
    assert (tmp_path / "one.png").read_bytes() == (tmp_path / "two.png").read_bytes()


def test_a_picture_that_cannot_be_written_is_one_sentence(tmp_path):
    with pytest.raises(RunDirectoryError, match="cannot write"):
        plot_comparison({"a": run(2)}, tmp_path, "a folder")


@pytest.mark.parametrize(("accuracy", "there"), [(math.nan, False), (1.0, False), (0.8, True)])
def test_accuracy_has_a_panel_where_some_answers_are_wrong(tmp_path, monkeypatch, accuracy, there):
    drawn = []
    savefig = Figure.savefig
    monkeypatch.setattr(
        Figure, "savefig", lambda f, *a, **k: (drawn.append(f), savefig(f, *a, **k))[1]
    )
    intervals = [replace(i, accuracy=accuracy, effective_accuracy=0.7) for i in run(9)]
    plot_comparison({"a": intervals}, tmp_path / "comparison.png", "accuracy")
    (figure,) = drawn
    assert any("accuracy" in ax.get_ylabel() for ax in figure.axes) == there


@pytest.mark.parametrize("most", [0, 1, 3, 6, 12, 40, 90, 300, 20_000])
def test_the_axis_of_violations_has_a_few_whole_numbers(most):
    ax = Figure(figsize=(9, 1.6)).subplots()
    runs = {"a": {"time_s": [1.0, 2.0], "violations": [0, most]}}
    draw_violations(ax, runs, style_of(["a"]))
    ax.figure.draw_without_rendering()
    bottom, top = ax.get_ylim()
    ticks = [tick for tick in ax.get_yticks() if bottom <= tick <= top]
    assert 3 <= len(ticks) <= 7
    assert all(tick >= 0 and tick == int(tick) for tick in ticks)


def test_series_takes_a_metric_of_every_interval():
    np.testing.assert_array_equal(series(run(3), "time_s"), [1.0, 2.0, 3.0])


def test_a_moving_mean_averages_the_neighbours_there_are():
    values = np.array([0.0, 3.0, 6.0, 3.0])
    np.testing.assert_allclose(moving_mean(values, 3), [1.5, 3.0, 4.0, 4.5])


def test_a_moving_mean_leaves_out_what_was_not_measured():
    values = np.array([1.0, np.nan, 3.0, np.nan, np.nan, np.nan])
    np.testing.assert_allclose(moving_mean(values, 3), [1, 2, 3, 3, np.nan, np.nan])


@given(
    values=st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=50),
    width=st.integers(-2, 60),
)
def test_a_moving_mean_keeps_length_and_range(values, width):
    mean = moving_mean(np.array(values), width)
    assert mean.shape == (len(values),)
    assert np.all(mean >= min(values) - 1e-9)
    assert np.all(mean <= max(values) + 1e-9)


@pytest.mark.parametrize("ends", [(1.0, 9000.0), (90.0, 400.0), (100.0, 180.0), (5.1, 5.3)])
def test_a_logarithmic_axis_has_a_few_plain_numbers(ends):
    ax = Figure(figsize=(3.2, 2.4)).subplots()
    log_axis(ax)
    ax.set_xlim(*ends)
    ax.figure.draw_without_rendering()
    shown = [text.get_text() for text in ax.get_xticklabels() if text.get_text()]
    assert 3 <= len(shown) <= 7
    assert all(ends[0] <= float(text) <= ends[1] for text in shown)
    assert not any(text.get_text() for text in ax.get_xticklabels(minor=True))
