"""The whole harness on the real worker: parity with the simulator, and rough treatment."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from machine import needs_cgroup, needs_two_cpus

from agents.sponge_ip import SpongeIP
from sponge_env.calibrate import calibrate
from sponge_env.config import load_scenario
from sponge_env.env import SpongeEnv
from sponge_env.factory import make_system
from sponge_env.interfaces import Allocation
from sponge_env.profile import Profile, save_profile
from sponge_env.rollout import Run, run_episode
from sponge_env.workers.cgroups import find_hierarchy
from sponge_env.workers.pool import PoolWorker, RealWorkerConfig

ROOT = Path(__file__).resolve().parent.parent
PATIENCE_S = 60.0

pytestmark = [pytest.mark.live, needs_two_cpus]


@pytest.fixture(scope="module")
def profile() -> Profile:
    return calibrate(RealWorkerConfig(), seconds=15)


@pytest.fixture
def scenario_file(tmp_path: Path, profile: Profile) -> Path:
    save_profile(profile, tmp_path / "here.json")
    path = tmp_path / "here.toml"
    path.write_text(
        "profile = 'here.json'\nduration_s = 12\n"
        "[arrivals]\nload = 0.4\n[network]\npayload_bytes = 300_000\n"
    )
    return path


def wait_for(condition: Callable[[], bool], what: str) -> None:
    limit_s = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < limit_s, f"never happened: {what}"
        time.sleep(0.02)  # the pause between two looks, not the wait itself


def start_evaluation(scenario_file: Path) -> tuple[subprocess.Popen[bytes], Path]:
    """Start a live evaluation in a process of its own; return it in mid-run."""
    run = scenario_file.parent / "run"
    command = [
        sys.executable, "evaluate.py", "--agent", "static-8", "--backend", "live",
        "--scenario", str(scenario_file), "--run-dir", str(run),
    ]  # fmt: skip
    with (scenario_file.parent / "stderr").open("w") as stderr:
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=stderr)
    windows = run / "static-8-seed0" / "windows.csv"
    wait_for(
        lambda: (
            process.poll() is not None or (windows.exists() and windows.read_text().count("\n") > 3)
        ),
        "three intervals",
    )
    assert process.poll() is None, (scenario_file.parent / "stderr").read_text()
    return process, run / "static-8-seed0"


def children(pid: int) -> list[int]:
    return [int(p) for p in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def replica_of(pid: int) -> int:
    (replica,) = [c for c in children(pid) if "child.py" in Path(f"/proc/{c}/cmdline").read_text()]
    return replica


def gone(pid: int) -> bool:
    return not Path(f"/proc/{pid}").exists()


def groups_of(pid: int) -> list[Path]:
    hierarchy = find_hierarchy()
    return list(hierarchy.own.glob(f"**/sponge-{pid}-*")) if hierarchy else []


def test_simulator_and_real_worker_agree(profile: Profile, scenario_file: Path) -> None:
    """Same arrivals, same controller: the violations and the latencies are alike."""
    scenario = dataclasses.replace(load_scenario(scenario_file), duration_s=20.0)
    episodes, ledgers = {}, {}
    for backend in ("sim", "live"):
        system = make_system(scenario, 3, backend=backend, profile=profile)  # type: ignore[arg-type]
        try:
            run = Run("sponge-ip", "here", backend, 3)
            episodes[backend] = run_episode(system, SpongeIP(), run).summary
        finally:
            system.close()
        ledgers[backend] = pd.DataFrame(system.core.ledger.columns()).set_index("id").sort_index()
    sim, live = ledgers["sim"], ledgers["live"]
    columns = ["sent_s", "arrival_s", "deadline_s"]
    common = sim.index.intersection(live.index)
    assert len(common) >= 0.97 * max(len(sim), len(live))
    assert np.allclose(sim.loc[common, columns], live.loc[common, columns])
    assert abs(episodes["sim"].violation_rate - episodes["live"].violation_rate) <= 0.01
    latency = {k: (e["finished_s"] - e["sent_s"]).loc[common] for k, e in ledgers.items()}
    assert latency["live"].mean() == pytest.approx(latency["sim"].mean(), rel=0.15)
    assert latency["live"].median() == pytest.approx(latency["sim"].median(), rel=0.15)


@pytest.mark.cgroup
@needs_cgroup
def test_the_quota_in_force_is_the_one_asked_for(profile: Profile, scenario_file: Path) -> None:
    scenario = load_scenario(scenario_file)
    system = make_system(scenario, 0, backend="live", profile=profile, limiter="cgroup")
    try:
        for cores in (1, 5, 16, 2):
            metrics = system.step(Allocation(cores, 8))
            assert metrics.requested_cores == cores
            assert metrics.effective_cores == pytest.approx(cores)
        assert metrics.throttled_share > 0
        assert metrics.cpu_s > 0
    finally:
        system.close()


def test_a_killed_worker_costs_no_request(scenario_file: Path) -> None:
    process, folder = start_evaluation(scenario_file)
    os.kill(replica_of(process.pid), signal.SIGKILL)
    assert process.wait(PATIENCE_S) == 0
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["restarts"] == 1
    assert not summary["partial"]
    ended = ("on_time", "late", "dropped", "failed")
    assert summary["offered"] == sum(summary[key] for key in ended)
    requests = pd.read_parquet(folder / "requests.parquet")
    assert set(requests["outcome"]) <= set(ended)
    after = pd.read_csv(folder / "windows.csv").tail(5)
    assert after["on_time"].sum() > 0


def test_a_killed_harness_leaves_nothing(scenario_file: Path) -> None:
    process, _ = start_evaluation(scenario_file)
    replica = replica_of(process.pid)
    process.kill()
    process.wait(PATIENCE_S)
    wait_for(lambda: gone(replica), "the replica's end")
    wait_for(lambda: not groups_of(process.pid), "the removal of its control groups")


@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_keeps_what_it_has(scenario_file: Path, end: signal.Signals) -> None:
    process, folder = start_evaluation(scenario_file)
    replica = replica_of(process.pid)
    process.send_signal(end)
    assert process.wait(PATIENCE_S) == 130
    assert gone(replica)
    assert not groups_of(process.pid)
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["partial"]
    windows = pd.read_csv(folder / "windows.csv")
    assert 3 <= len(windows) < 12
    assert summary["offered"] == len(pd.read_parquet(folder / "requests.parquet"))


def test_learning_live_pauses_the_world(profile: Profile, scenario_file: Path) -> None:
    env = SpongeEnv(load_scenario(scenario_file), backend="live")
    try:
        env.reset(seed=0)
        env.step(np.array([15, 7]))
        time.sleep(0.3)  # a learner at work
        info = env.step(np.array([15, 7]))[4]
        assert info["paused_s"] >= 0.3
        assert info["time_s"] == 2.0
        assert env.system.worker.now() < 2.3
    finally:
        env.close()


def test_insisting_on_cgroups_without_the_right_fails_in_one_sentence(
    scenario_file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import evaluate
    from sponge_env.workers import limits

    monkeypatch.setattr(limits, "find_hierarchy", lambda: None)
    monkeypatch.chdir(scenario_file.parent)
    argv = ["--agent", "static-8", "--backend", "live", "--scenario", str(scenario_file)]
    assert evaluate.main([*argv, "--limiter", "cgroup"]) == 2
    assert capsys.readouterr().err.count("error: ") == 1
    assert not (scenario_file.parent / "runs").exists()


def test_a_live_worker_falls_back_and_says_so(
    profile: Profile, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from sponge_env.workers import limits

    monkeypatch.setattr(limits, "find_hierarchy", lambda: None)
    with PoolWorker(RealWorkerConfig(initial=Allocation(8, 8))) as worker:
        assert worker.limiter == "duty-cycle"
    assert "duty cycle" in caplog.text
