"""The benchmark of speed, with a step or two of everything."""

from itertools import count
from pathlib import Path

import pytest

from benchmarks import throughput

ROOT = Path(__file__).resolve().parents[1]


def test_everything_is_measured(monkeypatch, inline):
    cpu, wall = throughput.shortest_ns(lambda: sum(range(100_000)))
    assert 0 < cpu < 1.5 * wall
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(throughput, "BATCHES", {"a": (2, 1), throughput.GATE: (3, 2)})
    monkeypatch.setattr(throughput, "AGENTS", ("static-16",))
    monkeypatch.setattr(throughput, "STEPS", 600)
    monkeypatch.setattr(throughput, "SEEDS", 1)
    calls = count(1)

    def longer_each_time(work):
        work()
        return float(next(calls)), 1.0 + next(calls)

    monkeypatch.setattr(throughput, "shortest_ns", longer_each_time)
    found = throughput.measure(only_gate=False)
    assert [*found] == ["a", throughput.GATE, "one environment", "evaluate, static-16"]
    assert all(cpu > 0 and wall > 0 for cpu, wall in found.values())


def test_another_installation_is_not_measured(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RuntimeError, match="there is no sponge_env in"):
        throughput.measure(only_gate=True)
