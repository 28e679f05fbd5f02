"""What every replica must do, wherever it runs; each test runs on all of them."""

import os
import select
import time
from contextlib import nullcontext

import busy_model
import numpy as np
import pods
import pytest
from fake_replicas import FakeLauncher
from machine import PATIENCE_S, wait_until
from nodes import NodeProcess

from sponge_env.k8s.launcher import KubernetesLauncher
from sponge_env.live import remote
from sponge_env.live.janitor import start_ticks
from sponge_env.live.local import LocalLauncher
from sponge_env.live.protocol import Answered, Death, Ready
from sponge_env.live.remote import RemoteLauncher

BATCH = 8


def readable(replica, timeout_s=0.0):
    return bool(select.select([replica], [], [], timeout_s)[0])


def next_event(replica):
    end_s = time.monotonic() + PATIENCE_S
    while readable(replica, end_s - time.monotonic()):  # news may be no event
        if (event := replica.poll()) is not None:
            return event
    pytest.fail("nothing happened")


def has_no_event(replica):
    while readable(replica):
        if replica.poll() is not None:
            return False
    return replica.poll() is None


def granted_cores(replica):
    replica.poll()  # an answer may have come before the news
    return replica.granted_cores()


class Rig:
    """A launcher, and the replicas that a test started on it."""

    def __init__(self, launcher):
        self.launcher, self.replicas = launcher, []

    def samples(self, count):
        return [self.launcher.sample(request) for request in range(count)]

    def launch(self, cores=1.0, *, full_speed=False):
        replica = self.launcher.launch(len(self.replicas), cores, full_speed=full_speed)
        self.replicas.append(replica)
        return replica

    def launch_idle(self):
        replica = self.launch()
        assert isinstance(next_event(replica), Ready)
        return replica

    def start_long_batch(self, replica):
        """Start a batch that is still running when the test goes on."""
        if isinstance(self.launcher, FakeLauncher):
            self.launcher.willing = False
        replica.limit(1 / 16)
        if isinstance(self.launcher, KubernetesLauncher):
            wait_until(lambda: replica.granted_cores() < 0.1, "a resize")
        replica.start(1, self.samples(BATCH))
        assert has_no_event(replica)

    def close(self):
        for replica in self.replicas:
            replica.close()
        self.launcher.close()


CONFIG = busy_model.config(batch_max=BATCH)


@pytest.fixture(
    scope="module",  # so that all tests of one are together: a node holds the CPUs while it lives
    params=[
        "fake",
        pytest.param("local", marks=pytest.mark.live),
        pytest.param("remote", marks=pytest.mark.live),
        pytest.param("pods", marks=[pytest.mark.live, pytest.mark.slow, pods.needs_v1]),
    ],
)
def place(request):
    node = NodeProcess() if request.param == "remote" else None
    with pytest.MonkeyPatch.context() as patch:
        for name in ("SILENT_S", "GONE_S") if node else ():  # a busy machine's may beat late
            patch.setattr(remote, name, PATIENCE_S)
        yield request.param, node
    if node:
        node.end()


def launcher_of(kind, node):
    if kind == "remote":
        return RemoteLauncher([CONFIG], [node.address], "")
    if kind == "pods":
        return pods.launcher(pods.BUSY)
    return FakeLauncher() if kind == "fake" else LocalLauncher([CONFIG])


@pytest.fixture
def rig(place, tmp_path):
    with pods.pods(tmp_path) if place[0] == "pods" else nullcontext():
        rig = Rig(launcher_of(*place))
        yield rig
        rig.close()


def test_it_gets_ready_and_answers_batch_after_batch(rig):
    begin_s, replica = time.monotonic(), rig.launch()
    assert replica.id == 0
    assert begin_s <= next_event(replica).at_s <= time.monotonic()
    for batch_id, size in ((7, 3), (9, BATCH)):
        sent_s = time.monotonic()
        replica.start(batch_id, rig.samples(size))
        answer = next_event(replica)
        assert answer.batch_id == batch_id
        assert sent_s <= answer.started_s <= answer.finished_s <= time.monotonic()
        assert answer.cpu_s > 0
        assert len(replica.answers(size)) == size
        assert has_no_event(replica)


def test_answers_are_to_the_tensors_in_their_order(rig):
    replica, tensors, answers = rig.launch_idle(), rig.samples(3), []
    for order in ((0, 1, 2), (2, 0, 1)):
        replica.start(1, [tensors[task] for task in order])
        assert isinstance(next_event(replica), Answered)
        answers.append(replica.answers(3))
    for place, task in enumerate((2, 0, 1)):
        assert np.allclose(answers[1][place], answers[0][task], atol=1e-3)
        assert not np.allclose(answers[1][place], answers[0][task - 1], atol=1e-3)


def test_a_limit_comes_into_force_also_under_a_running_batch(rig):
    replica = rig.launch(0.5, full_speed=True)
    assert replica.granted_cores() == 1.0
    assert isinstance(next_event(replica), Ready)
    rig.start_long_batch(replica)
    for cores in (0.25, 0.5):
        replica.limit(cores)
        wait_until(lambda cores=cores: granted_cores(replica) == pytest.approx(cores))
    assert rig.launch(0.5).granted_cores() == pytest.approx(0.5), "limited from its start"


def test_a_killed_replica_takes_its_batch_along_and_no_other_replica(rig):
    other, replica = rig.launch_idle(), rig.launch_idle()
    assert other.id != replica.id
    rig.start_long_batch(replica)
    replica.kill()
    assert next_event(replica).reason
    assert has_no_event(other)
    other.kill()
    assert readable(other, PATIENCE_S)
    other.start(2, rig.samples(2))  # in vain
    assert isinstance(next_event(other), Death)


def test_counters_grow_and_outlive_the_replica(rig):
    replica = rig.launch_idle()
    before_s = replica.cpu_s()
    replica.start(1, rig.samples(BATCH))
    answer, used_s = next_event(replica), replica.cpu_s()
    assert used_s >= before_s + answer.cpu_s > before_s
    throttled_s = replica.throttled_s()
    replica.close()
    assert replica.cpu_s() >= used_s
    assert replica.throttled_s() >= throttled_s


@pytest.mark.parametrize("state", ["starting", "idle", "busy", "dead"])
def test_close_leaves_nothing_whatever_it_does(rig, state):
    if isinstance(rig.launcher, FakeLauncher) and state == "starting":
        rig.launcher.willing = False
    files = len(os.listdir("/proc/self/fd"))
    replica = rig.launch() if state == "starting" else rig.launch_idle()
    if state == "busy":
        rig.start_long_batch(replica)
    if state == "dead":
        replica.kill()
        next_event(replica)
    replica.close()
    replica.close()
    assert replica.pid is None or not start_ticks(replica.pid)
    # The fake cluster, in this process, may have had a connection then that is closed now.
    wait_until(lambda: len(os.listdir("/proc/self/fd")) <= files)
