"""What the terminal shows: how far a run is, and the table of an evaluation."""

import io
import json
import math
import re
import sys
from itertools import count

import numpy as np
import pytest

from sponge_env.errors import RunDirectoryError
from sponge_env.metrics import EpisodeMetrics, IntervalMetrics, columns, names
from sponge_env.results.tables import comparison_table, write_summaries
from sponge_env.utils import console
from sponge_env.utils.console import ConsoleSink, Progress, frame


@pytest.fixture(autouse=True)
def clock(monkeypatch):
    """Let a second pass with each look at the clock, and a line be due every four."""
    monkeypatch.setattr(console.time, "monotonic", map(float, count()).__next__)
    monkeypatch.setattr(console, "EVERY_S", 4.0)


class Terminal(io.StringIO):
    def isatty(self):
        return True


def play(stream, intervals, monkeypatch):
    monkeypatch.setattr(sys, "stderr", stream)
    sink = ConsoleSink(Progress("fa2 seed 0", intervals, "interval"))
    for _ in range(intervals):
        sink.interval(IntervalMetrics(cores=8.0, queued=3, violations=2))
    sink.episode(EpisodeMetrics(violation_rate=0.015, mean_cores=5.0))
    sink.close()
    return stream.getvalue()


def test_without_a_terminal_a_line_appears_now_and_then(monkeypatch):
    text = play(io.StringIO(), 10, monkeypatch)
    *progress, last = text.splitlines()
    assert "\r" not in text
    assert 1 <= len(progress) < 10
    assert progress[0].startswith("fa2 seed 0: ")
    assert "/10 intervals, 8 cores, 3 queued, " in progress[0]
    assert last == "fa2 seed 0: done after 10 intervals, 1.500% violations, 5.00 cores"
    assert play(io.StringIO(), 3, monkeypatch).count("\n") == 1, "a fast episode"
    assert play(io.StringIO(), 0, monkeypatch) == "", "one that fails at once"


@pytest.mark.parametrize(("shown", "text"), [(True, "suite: 0/24 results\n"), (False, "")])
def test_that_nothing_is_done_yet_is_said_at_once(shown, text, capsys):
    progress = Progress("suite", 24, "result", shown=shown)
    progress.show(0)
    progress.show(1)
    assert capsys.readouterr().err == text


def test_a_terminal_shows_a_bar_and_then_the_last_line(monkeypatch):
    text = play(Terminal(), 10, monkeypatch)
    assert "\r" in text
    assert "fa2 seed 0:   0%" in text
    assert text.endswith("\rfa2 seed 0: done after 10 intervals, 1.500% violations, 5.00 cores\n")


def test_a_frame_shows_the_last_intervals():
    intervals = [IntervalMetrics(time_s=float(n), cores=16.0, queued=n) for n in range(90)]
    empty, full = frame([], 16), frame(intervals, 16)
    assert empty.shape == full.shape == (320, 480, 3)
    assert empty.dtype == np.uint8
    drawn = (full != empty).any(axis=2)
    assert drawn[:100, :450].any(axis=0).sum() > 400, "cores, over the whole width"
    assert np.array_equal(frame(intervals[30:], 16), full)
    assert not np.array_equal(frame(intervals[:60], 16), full)


def episode(**changes):
    measured = {"violation_rate": 0.0006, "mean_cores": 8.9, "latency_p99_s": 0.981}
    head = {"agent": "sponge-ip", "scenario": "paper", "backend": "sim"}
    return EpisodeMetrics(**{**head, **measured, **changes})


EPISODE = episode()


def cells(table, agent):
    (line,) = [line for line in table.splitlines() if line.split()[0].rstrip("*") == agent]
    values = re.split(r"  +", line.strip())[1:]
    return dict(zip((c.metric for c in columns("evaluation")), values, strict=True))


def test_times_are_shown_in_ms_and_rates_in_percent():
    row = cells(comparison_table([EPISODE]), "sponge-ip")
    assert [*row.values()] == ["0.060", "0.000", "8.90", "981"]
    assert [*row] == ["violation_rate", "avoidable_violation_rate", "mean_cores", "latency_p99_s"]


def test_an_agents_row_is_the_mean_over_its_seeds_in_the_order_in_which_agents_came():
    table = comparison_table(
        [episode(seed=0, mean_cores=8.0), episode(agent="fa2"), episode(seed=1, mean_cores=9.0)]
    )
    assert cells(table, "sponge-ip")["mean_cores"] == "8.50 [8.00, 9.00]"
    assert cells(table, "fa2")["mean_cores"] == "8.90"
    assert [line.split()[0] for line in table.splitlines()[3:5]] == ["sponge-ip", "fa2"]
    assert "mean of 1 to 2 seeds" in table.splitlines()[-1]


def test_what_was_not_measured_is_left_out_of_the_mean_and_shown_as_a_dash():
    nothing, half = episode(latency_p99_s=math.nan), episode(seed=1)
    assert cells(comparison_table([nothing]), "sponge-ip")["latency_p99_s"] == "-"
    row = cells(comparison_table([nothing, half]), "sponge-ip")
    assert row["latency_p99_s"] == "981"
    row = cells(comparison_table([episode(latency_p99_s=math.inf, dropped=1), half]), "sponge-ip")
    assert row["latency_p99_s"] == "dropped (1 of 2)"


def test_summaries_are_one_object_for_each_agent_and_seed(tmp_path):
    episodes = [EPISODE, episode(seed=1), episode(agent="fa2", latency_p99_s=math.nan)]
    write_summaries(tmp_path / "out.json", episodes)
    data = json.loads((tmp_path / "out.json").read_text())
    heads = [(row["agent"], row["seed"]) for row in data]
    assert heads == [("sponge-ip", 0), ("sponge-ip", 1), ("fa2", 0)]
    assert all(tuple(row) == names(EpisodeMetrics) for row in data)
    assert data[2]["latency_p99_s"] is None
    (tmp_path / "file").touch()
    with pytest.raises(RunDirectoryError, match=r"out\.json"):
        write_summaries(tmp_path / "file" / "out.json", [EPISODE])


def test_an_interrupted_agent_is_starred():
    table = comparison_table([episode(partial=True), episode(agent="fa2")])
    assert "sponge-ip* " in table
    assert "fa2*" not in table
    assert "*" not in comparison_table([EPISODE])
    warm = episode(start="warm", duration_s=570.0)
    assert "570 s each after the warm-up" in comparison_table([warm])
