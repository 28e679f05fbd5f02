import io
import sys
from itertools import count

import numpy as np
import pytest

from sponge_env.metrics import EpisodeMetrics, IntervalMetrics
from sponge_env.utils import console
from sponge_env.utils.console import ConsoleSink, Progress, frame

INTERVAL = IntervalMetrics(cores=8.0, queued=3, violations=2)


@pytest.fixture(autouse=True)
def clock(monkeypatch):
    """Let a second pass with each look at the clock, and a line be due every four."""
    seconds = count()
    monkeypatch.setattr(console.time, "monotonic", lambda: float(next(seconds)))
    monkeypatch.setattr(console, "EVERY_S", 4.0)


class Terminal(io.StringIO):
    def isatty(self):
        return True


def play(stream, intervals, monkeypatch):
    monkeypatch.setattr(sys, "stderr", stream)
    sink = ConsoleSink(Progress("fa2 seed 0", intervals, "interval"))
    for _ in range(intervals):
        sink.interval(INTERVAL)
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
