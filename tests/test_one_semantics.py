"""Every way to run an episode goes through the same functions of the core."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from fake_worker import FakeWorker
from reference import worker_settings
from scenarios import SHORT
from unit_runs import Inline

import evaluate
from sponge_env.core import entry
from sponge_env.interfaces import Allocation, SystemSpec
from sponge_env.live.system import LiveSystem
from sponge_env.run import executor
from sponge_env.scenario.spec import scenario_profile
from sponge_env.simulation import batch as simulator

SCENARIO = "duration_s = 3.0\nprofile = 'yolov5s'\n[arrivals]\nrate_rps = 15\n"
SUITE = """
seeds = 1
starts = ["cold"]
[[cells]]
scenarios = ["paper"]
profiles = ["yolov5s"]
changes = { duration_s = 3.0, warmup_s = 1.0 }
[agents.static-8]
"""


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The entry points that are called from now on; an episode's start and its moves count."""
    called: list[str] = []

    def counted(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            called.append(name)
            return function(*arguments)

        return call

    for name in ("run_range", "form_batch", "end_batch", "end_live_interval"):
        wrapped = counted(name, getattr(entry, name))
        if hasattr(simulator, name):
            assert getattr(simulator, name) is getattr(entry, name)
            monkeypatch.setattr(simulator, name, wrapped)
        monkeypatch.setattr(entry, name, wrapped)
    return called


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here.toml").write_text(SCENARIO)
    (tmp_path / "suite.toml").write_text(SUITE)
    return tmp_path


def test_single_and_vector_environments_step_the_core(calls: list[str]) -> None:
    env = gymnasium.make("Sponge-v0", scenario=SHORT)
    envs = gymnasium.make_vec("Sponge-v0", 4, "vector_entry_point", scenario=SHORT)
    for each, action in ((env, np.array([7, 3])), (envs, np.full((4, 2), 7))):
        calls.clear()
        each.reset(seed=0)
        for _ in range(3):
            each.step(action)
        assert calls == ["run_range"] * 4  # a reset and three steps


@pytest.mark.parametrize(
    "arguments",
    [["--agent", "static-8", "--scenario", "here.toml"], ["--suite", "suite.toml"]],
    ids=["evaluation", "suite"],
)
def test_evaluations_and_suites_step_the_core(
    calls: list[str], folder: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str]
) -> None:
    # A suite's processes cannot be watched from here.
    monkeypatch.setattr(executor, "Processes", Inline)
    assert evaluate.main([*arguments, "--run-dir", str(folder / "run")]) == 0
    # a reset and three intervals, and what is left is drained
    assert calls == ["run_range"] * 5


def test_a_live_system_makes_the_core_s_moves(calls: list[str]) -> None:
    profile = scenario_profile(SHORT)

    def make_worker(spec: SystemSpec) -> FakeWorker:
        return FakeWorker(**worker_settings(SHORT, profile, spec, 0))

    system = LiveSystem(SHORT, 0, make_worker, profile)
    calls.clear()  # of the rehearsal
    for _ in range(3):
        system.step(Allocation(8, 4))
    assert calls.count("end_live_interval") == 3
    batches = len(system.worker.batches)  # type: ignore[attr-defined]
    assert calls.count("form_batch") >= batches > 10
    assert calls.count("end_batch") == batches - len(system.view().first.running)
    assert "run_range" not in calls
