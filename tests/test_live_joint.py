"""``sponge-joint`` on the real worker: several replicas, one queue, nothing left behind."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import pytest
from control_groups import groups_of
from machine import needs_two_cpus

from agents.sponge_joint import SpongeJoint
from sponge_env.env.factory import make_system
from sponge_env.live.worker import LiveWorker
from sponge_env.run.rollout import Run, run_episode
from sponge_env.scenario.config import Arrivals, Initial
from sponge_env.scenario.profile import load_profile
from sponge_env.scenario.scenario import load_scenario
from sponge_env.simulation.system import System

pytestmark = [pytest.mark.live, needs_two_cpus]


def small_live_system() -> System:
    """Return two replicas under a load that either could serve alone."""
    local = load_scenario("local")
    scenario = dataclasses.replace(
        local,
        duration_s=4.0,
        arrivals=Arrivals(rate_rps=15.0),
        # Until it knows the load it wants all cores for each replica that there is.
        limits=dataclasses.replace(local.limits, total_cores=32),
        initial=Initial(cores=8, batch=4, replicas=2),
    )
    return make_system(scenario, 1000, backend="live", profile=load_profile("lite0"))


def test_the_joint_controller_serves_live_and_leaves_nothing() -> None:
    system = small_live_system()
    assert isinstance(system.worker, LiveWorker)
    pids = [replica.pid for replica in system.worker.replicas]
    # So reluctant that it keeps both.
    controller = SpongeJoint(reluctance=0.99)
    try:
        episode = run_episode(system, controller, Run("sponge-joint", "local", "live", 1000))
        used = set(system.columns()["replica"].tolist())
    finally:
        system.close()
    total = episode.summary
    assert total.offered == total.on_time + total.late + total.dropped + total.failed > 30
    assert total.queued == total.running == 0
    assert total.on_time > total.offered / 2
    assert [interval.replicas_ready for interval in episode.intervals] == [2, 2, 2, 2]
    assert len(used - {-1}) == 2, "both served"
    assert not [pid for pid in pids if Path(f"/proc/{pid}").exists()]
    assert not groups_of(os.getpid())
