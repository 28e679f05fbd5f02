"""The benchmark of speed, with a step or two of everything."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import throughput

ROOT = Path(__file__).resolve().parents[1]


def test_everything_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(throughput, "BATCHES", {"a": (2, 1), throughput.GATE: (3, 2)})
    monkeypatch.setattr(throughput, "AGENTS", ("static-16",))
    monkeypatch.setattr(throughput, "STEPS", 600)
    monkeypatch.setattr(throughput, "REPEATS", 2)  # one alone may be disturbed
    found = throughput.measure(only_gate=False)
    assert [*found] == ["a", throughput.GATE, "one environment", "evaluate, static-16"]
    assert all(cpu > 0 and wall > 0 for cpu, wall in found.values())


def test_another_installation_is_not_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RuntimeError, match="there is no sponge_env in"):
        throughput.measure(only_gate=True)
