"""The whole harness on the real worker: parity with the simulator, and rough treatment."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from control_groups import groups_of
from machine import PATIENCE_S, needs_two_cpus, wait_until
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from agents.sponge_ip import SpongeIP
from sponge_env.env.single import SpongeEnv
from sponge_env.fidelity.trial import MeasuredWork, RecordedSystem, real_worker
from sponge_env.metrics import IntervalMetrics, tag
from sponge_env.run.rollout import Run, run_episode
from sponge_env.scenario.profile import save_profile
from sponge_env.scenario.scenario import load_scenario
from sponge_env.simulation.system import SimulatedSystem
from sponge_env.simulation.workload import draw_workload

ROOT = Path(__file__).resolve().parent.parent
AGENT = "static-8"

pytestmark = [pytest.mark.live, needs_two_cpus]


@pytest.fixture
def scenario_file(tmp_path, machine_profile):
    save_profile(machine_profile, tmp_path / "here.json")
    path = tmp_path / "here.toml"
    path.write_text(
        "profile = 'here.json'\nduration_s = 600\ninterval_s = 0.5\n"
        "[limits]\ncores = 8\nbatch = 8\n"
        "[arrivals]\nload = 0.4\n[network]\npayload_bytes = 300_000\n"
    )
    return path


def start_evaluation(scenario_file):
    """Start a live evaluation in a process of its own; return it in mid-run, and its folder."""
    # Its controller has cores to spare, for a machine that is slower than when it was measured.
    run, said = scenario_file.parent / "run", scenario_file.parent / "stderr"
    command = [sys.executable, *f"evaluate.py --agent {AGENT} --backend live".split()]
    command += ["--scenario", str(scenario_file), "--run-dir", str(run)]
    with said.open("w") as stderr:
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=stderr)
    try:
        wait_until(
            lambda: process.poll() is not None or len(followed(run, "on_time")) > 2,
            "three intervals",
        )
    except AssertionError:
        process.kill()  # its janitor takes the rest away
        process.wait()
        raise
    assert process.poll() is None, said.read_text()
    return process, run


def followed(run, metric):
    """Return a metric of each interval so far, as TensorBoard shows it meanwhile."""
    folder = run / "tensorboard" / AGENT
    if not folder.is_dir():
        return []
    events, name = EventAccumulator(str(folder)).Reload(), tag(IntervalMetrics, metric)
    known = name in events.Tags()["scalars"]
    return [event.value for event in events.Scalars(name)] if known else []


def the_summary(run):
    (file,) = (run / "results" / AGENT).iterdir()
    (summary,) = json.loads(file.read_text())["episodes"]
    return summary


def replica_of(pid):
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    (replica,) = [c for c in children if "child.py" in Path(f"/proc/{c}/cmdline").read_text()]
    return int(replica)


def test_simulator_and_real_worker_agree(machine_profile, scenario_file):
    """Same arrivals, same controller: the violations and the latencies are alike."""
    # A shared machine's speed drifts after the calibration, and others take the CPU now and then.
    # So the simulator gets the CPU work of each batch that the live run measured, and one live run
    # in three that agrees will do.
    profile = machine_profile
    scenario, differences = dataclasses.replace(load_scenario(scenario_file), duration_s=10.0), []
    for _ in range(3):
        system = RecordedSystem(scenario, 3, real_worker(scenario, profile, "auto"), profile)
        live = play(system, "live")
        work = MeasuredWork(system.completions, profile.work_table_s(scenario.limits.batch))
        workload = draw_workload(scenario, profile, 3)
        sim = play(SimulatedSystem(scenario, 3, profile, workload, [work.table()]), "sim")
        differences.append(compare(sim, live))
        if max(differences[-1].values()) <= 1:
            return
    pytest.fail(f"they differ, relative to what is allowed, by {differences}")


def play(system, backend):
    """Play an episode; return its requests by id, and the share that was violated."""
    with closing(system):
        summary = run_episode(system, SpongeIP(), Run("sponge-ip", "here", backend, 3)).summary
        requests = pd.DataFrame(system.columns()).set_index("id").sort_index()
        requests["latency_s"] = requests["finished_s"] - requests["sent_s"]
        return requests, summary.violation_rate


def compare(sim, live):
    """Return the differences in units of what is allowed."""
    (sim, sim_rate), (live, live_rate) = sim, live
    common = sim.index.intersection(live.index)
    assert len(common) >= 0.97 * max(len(sim), len(live))
    columns = ["sent_s", "arrival_s", "deadline_s"]
    assert np.allclose(sim.loc[common, columns], live.loc[common, columns])
    sim_s, live_s = (each.loc[common, "latency_s"] for each in (sim, live))
    return {
        "violations": abs(sim_rate - live_rate) / 0.01,
        "mean": abs(live_s.mean() / sim_s.mean() - 1) / 0.15,
        "median": abs(live_s.median() / sim_s.median() - 1) / 0.15,
    }


def test_a_killed_worker_costs_no_request(scenario_file):
    process, run = start_evaluation(scenario_file)
    os.kill(replica_of(process.pid), signal.SIGKILL)
    wait_until(lambda: serves_again(run), "serving after the restart")
    process.send_signal(signal.SIGTERM)
    assert process.wait(PATIENCE_S) == 130
    assert not groups_of(process.pid)
    summary = the_summary(run)
    assert (summary["partial"], summary["restarts"]) == (True, 1)
    outcomes = ("on_time", "late", "dropped", "failed", "queued", "running")
    ended = {key: summary[key] for key in outcomes if summary[key]}
    assert summary["offered"] == sum(ended.values())
    assert pd.read_parquet(run / "requests")["outcome"].value_counts().to_dict() == ended


def serves_again(run):
    """Tell whether requests met their deadlines in an interval after that of a restart."""
    restarts, on_time = np.cumsum([0.0, *followed(run, "restarts")]), followed(run, "on_time")
    return any(before and served for before, served in zip(restarts, on_time, strict=False))


def test_learning_live_pauses_the_world(machine_profile, scenario_file):
    with closing(SpongeEnv(load_scenario(scenario_file), backend="live")) as env:
        env.reset(seed=0)
        env.step(np.array([7, 7]))
        time.sleep(0.3)  # a learner at work
        info = env.step(np.array([7, 7]))[4]
        assert info["paused_s"] >= 0.3
        assert info["time_s"] == 1.0  # two intervals
        assert env.system.worker.now() == env.system.worker.now(), "it is held again"
