"""The fleet and the live worker over replicas in memory: no process, no wait."""

import gc
import os
import resource
import threading
import time

import numpy as np
import pytest
from fake_replicas import CPU_S, LOAD_S, FakeLauncher, FakeReplica, Monotonic

from sponge_env.errors import ConfigError, WorkerError
from sponge_env.interfaces import Allocation, Batch
from sponge_env.live import fleet as fleet_module
from sponge_env.live.fleet import Fleet, Phase, Watch
from sponge_env.live.protocol import Death, LiveConfig
from sponge_env.live.worker import LiveWorker

TENSORS = [np.zeros(1), np.ones(1)]
CONFIG = LiveConfig(batch_timeout_s=10.0, cold_start_s=8.0, initial=Allocation(8, 1))


@pytest.fixture
def clock(monkeypatch):
    clock = Monotonic()
    monkeypatch.setattr(fleet_module, "time", clock)
    monkeypatch.setattr("fake_replicas.time", clock)
    return clock


class Rig:
    """A fleet of warm replicas that from now on do only what a test tells them."""

    def __init__(self, replicas):
        self.launcher, self.watch = FakeLauncher(), Watch()
        self.fleet = Fleet(CONFIG, self.launcher, self.watch)
        self.fleet.grow([0] * replicas, full_speed=True)
        while self.fleet.starting_s:
            self.poll()
        self.fleet.warmed_up()
        self.launcher.willing = False

    @property
    def replicas(self):
        """All that were ever launched, in that order."""
        return self.launcher.launched

    @property
    def open(self):
        return [replica.id for replica in self.replicas if not replica.closed]

    def scale(self, replicas):
        self.fleet.shrink(replicas, [1 << 30])
        self.fleet.grow([0] * (replicas - len(self.fleet.staying)))

    def start(self, *ids):
        for id in ids:
            self.fleet.start(batch(id), TENSORS)

    def poll(self):
        return self.watch.poll(0.0)[1]

    def poll_ids(self):
        return [ended.batch.id for ended in self.poll() if ended.answer is not None]

    def answer(self, replica):
        self.replicas[replica].answer()
        return self.poll_ids()

    def die(self):
        for member in self.fleet.members:
            if member.state is Phase.STARTING:
                member.replica.kill()
        self.poll()


@pytest.fixture
def make_rig():
    rigs = []

    def make(replicas):
        rigs.append(Rig(replicas))
        return rigs[-1]

    yield make
    for rig in rigs:
        rig.watch.close()
        assert not rig.open


def batch(id):
    return Batch(id, (0, 1))


def test_the_first_replicas_load_at_full_speed_and_are_limited_then(make_rig):
    rig = make_rig(2)
    granted = [[cores for _, cores in replica._limits] for replica in rig.replicas]
    assert granted == [[1.0, 0.5], [1.0, 0.5]]
    rig.scale(3)
    rig.fleet.limit(4)
    granted = [replica.granted_cores() for replica in rig.replicas]
    assert granted == [0.25, 0.25, 0.0625], "one that starts has one core unit"


def test_what_is_granted_counts_where_it_is_more_than_was_asked(make_rig, clock):
    rig = make_rig(2)
    rig.launcher.limit_delay_s = 2.0
    assert (rig.fleet.held, rig.fleet.in_force) == (16, 16.0)
    rig.fleet.limit(4)
    assert (rig.fleet.held, rig.fleet.in_force) == (8, 16.0), "a limit comes late"
    clock.now_s += 2.0
    assert rig.fleet.in_force == 8.0
    rig.fleet.limit(6)
    assert rig.fleet.in_force == 12.0, "what is asked for counts at once"
    for replica in rig.replicas:
        replica.limits_late = False
        replica.limit(1.0)
    clock.now_s += 2.0
    assert rig.fleet.in_force == 12.0, "where limits act at once nobody looks"


def test_the_oldest_idle_replica_gets_the_batch(make_rig):
    rig = make_rig(2)
    rig.start(1)
    assert [replica.batch_id for replica in rig.replicas] == [1, None]
    assert rig.replicas[0].tensors is TENSORS
    rig.start(2)
    rig.replicas[1].answer()
    (ended,) = rig.poll()
    assert (ended.batch.id, ended.replica_id, ended.answer is None) == (2, 1, False)
    assert [member.replica.id for member in rig.fleet.idle] == [1]


def test_scale_in_takes_cold_ones_then_idle_ones_the_youngest_first(make_rig):
    rig = make_rig(3)
    rig.start(1)
    rig.scale(5)
    assert (rig.fleet.serving, len(rig.fleet.starting_s)) == (3, 2)
    for left in ([0, 1, 2, 3], [0, 1, 2], [0, 1], [0]):
        rig.scale(len(left))
        assert rig.open == left


@pytest.mark.parametrize("dies", [False, True])
def test_a_busy_replica_ends_its_batch_before_it_goes_for_good(make_rig, dies):
    rig = make_rig(2)
    rig.start(1, 2)
    rig.scale(1)
    assert (rig.open, rig.fleet.serving) == ([0, 1], 1)
    (rig.replicas[1].die if dies else rig.replicas[1].answer)()
    assert [(ended.batch.id, ended.answer is None) for ended in rig.poll()] == [(2, dies)]
    assert (rig.open, rig.fleet.restarts) == ([0], 0)


def test_a_dead_replica_gives_its_batch_back_and_is_replaced(clock, make_rig):
    rig = make_rig(1)
    rig.start(7)
    rig.replicas[0].die()
    (ended,) = rig.poll()
    assert (ended.batch.id, ended.replica_id, ended.answer) == (7, 0, None)
    assert (rig.open, rig.fleet.restarts, rig.fleet.serving) == ([1], 1, 0)
    rig.replicas[1].die()  # while it starts
    assert rig.poll() == []
    clock.now_s += 1.0
    rig.scale(1)
    rig.replicas[2].ready()
    rig.poll()
    rig.replicas[2].die()  # while it is idle
    rig.poll()
    assert (rig.open, rig.fleet.restarts) == ([3], 3)


@pytest.mark.parametrize("serving", [0, 1])
def test_replicas_that_fail_start_again_after_longer_pauses(serving, clock, make_rig, caplog):
    rig = make_rig(1)
    rig.scale(2 + serving)
    if not serving:
        rig.replicas[0].die()
        rig.poll()
    for pause_s in (1, 2, 4, 8, 16, 32, 32):
        clock.now_s += 0.1
        rig.die()  # both at once
        for _ in range(2):
            assert len(rig.open) == serving
            clock.now_s += pause_s / 2
            rig.scale(2 + serving)
        assert len(rig.open) == 2 + serving
    assert len(caplog.records) == 7
    rig.replicas[-1].ready()
    rig.poll()
    rig.die()
    rig.start(1)
    assert rig.answer(0 if serving else -1) == [1]
    clock.now_s += 1.0
    rig.scale(2 + serving)
    assert len(rig.open) == 2 + serving


def test_what_hangs_is_killed(clock, make_rig):
    rig = make_rig(2)
    rig.scale(3)
    rig.start(1)
    clock.now_s += 10.5
    assert rig.poll() == []
    assert [replica.killed for replica in rig.replicas] == [True, False, False]
    assert [ended.answer for ended in rig.poll()] == [None]
    rig.replicas[2].placed = False
    for killed in (False, True):  # it waits for a place to run, then it has one
        clock.now_s += fleet_module.START_TIMEOUT_S + 0.1
        rig.poll()
        assert rig.replicas[2].killed == killed
        rig.replicas[2].placed = True


def test_time_without_a_poll_is_no_time_to_hang(clock, make_rig):
    rig = make_rig(1)
    rig.start(1)
    rig.replicas[0].answer()
    clock.now_s += 100.0
    assert rig.poll_ids() == [1], "a report that was there in time counts"
    rig.start(2)
    clock.now_s += 100.0
    rig.fleet.extend_timeouts(100.0)
    assert rig.poll() == []
    assert not rig.replicas[0].killed


def test_the_cold_start_is_measured_but_not_at_full_speed(clock, make_rig):
    rig = make_rig(1)
    assert rig.fleet.cold_start_s == 8.0
    rig.scale(2)
    clock.now_s += 3.0
    assert rig.fleet.starting_s == [5.0]
    rig.replicas[1].ready()
    rig.poll()
    assert rig.fleet.cold_start_s == 3.0
    rig.scale(3)
    clock.now_s += 4.0
    assert rig.fleet.starting_s == [0.0]


def test_counters_keep_what_past_replicas_used(make_rig):
    rig = make_rig(2)
    rig.start(1, 2)
    rig.replicas[0].answer()
    rig.answer(1)
    rig.scale(1)
    assert rig.fleet.cpu_s == pytest.approx(2 * (CPU_S + LOAD_S))
    assert rig.fleet.throttled_s == pytest.approx(CPU_S + LOAD_S)


def test_replicas_that_die_with_their_first_batch_are_not_replaced_all_the_time(clock, make_rig):
    rig = make_rig(1)
    for k in range(9):
        if rig.fleet.members:
            rig.replicas[-1].ready()
            rig.poll()
            rig.start(k)
            rig.replicas[-1].die()
            rig.poll()
    assert len(rig.replicas) == fleet_module.START_ATTEMPTS + 1
    clock.now_s += fleet_module.HEARTBEAT_S
    rig.scale(1)
    assert len(rig.replicas) == fleet_module.START_ATTEMPTS + 2


@pytest.mark.parametrize("dies", [False, True])
def test_a_refused_replica_leaves_the_others_running(dies, clock, make_rig, caplog):
    rig = make_rig(1)
    rig.launcher.refuses = True
    rig.start(1)
    if dies:
        rig.replicas[0].die()
        assert len(rig.poll()) == 1
    for _ in range(3):
        rig.scale(2)
        clock.now_s += fleet_module.HEARTBEAT_S / 4
    assert rig.launcher.refused == len(caplog.records) == 1, "it is not asked all the time"
    assert dies or rig.answer(0) == [1]
    rig.launcher.refuses = False
    clock.now_s += fleet_module.HEARTBEAT_S
    rig.scale(2)
    assert rig.open == ([1, 2] if dies else [0, 1])


def test_replicas_may_have_descriptors_that_select_does_not_take():
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < 1200:
        pytest.skip("only few descriptors are allowed here")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 1200), hard))
    descriptors = [os.open(os.devnull, os.O_RDONLY)]
    try:
        while descriptors[-1] < 1024:
            descriptors.append(os.dup(descriptors[0]))
        rig = Rig(2)
        assert rig.replicas[0].fileno() > 1024
        rig.start(1)
        assert (rig.answer(0), rig.watch.poll(0.001)) == ([1], (False, []))
        rig.watch.close()
    finally:
        for descriptor in descriptors:
            os.close(descriptor)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_another_thread_wakes_a_poll(make_rig):
    rig = make_rig(1)
    thread = threading.Thread(target=rig.watch.wake)
    thread.start()
    assert rig.watch.poll(60.0) == (True, [])
    thread.join()
    assert rig.watch.poll(0.0) == (False, [])


@pytest.fixture
def launcher():
    launcher = FakeLauncher()
    yield launcher
    assert launcher.closed
    assert all(replica.closed for replica in launcher.launched)


def make_worker(launcher):
    return LiveWorker(CONFIG, launcher=launcher)


def test_a_worker_that_is_dropped_is_closed_but_not_by_a_fork(launcher, monkeypatch):
    worker = make_worker(launcher)
    monkeypatch.setattr("sponge_env.live.worker.os.getpid", lambda: -1)
    _, release, arguments, _ = worker._finalizer.peek()  # it is alive
    release(*arguments)
    assert not launcher.closed
    monkeypatch.undo()
    del worker, release, arguments
    gc.collect()
    assert launcher.closed


def test_a_worker_tries_again_by_itself_after_a_pause(clock, launcher, monkeypatch):
    monkeypatch.setattr("sponge_env.live.worker.time", clock)
    with make_worker(launcher) as worker:
        launcher.refuses = True
        worker.resize(Allocation(5, 1, replicas=2))
        launcher.refuses = False
        for pause_s, count in ((0.0, 1), (fleet_module.HEARTBEAT_S, 2)):
            clock.now_s += pause_s
            worker.wait(worker.now())
            assert len(launcher.launched) == count


def test_cores_are_charged_as_they_are_held(clock, launcher, monkeypatch):
    monkeypatch.setattr("sponge_env.live.worker.time", clock)
    with make_worker(launcher) as worker:
        clock.now_s += 2.0
        launcher.willing = False
        worker.resize(Allocation(5, 1, replicas=2))
        worker.start(batch(1))
        launcher.launched[0].answer()
        worker.wait(worker.now())
        clock.now_s += 1.0
        with pytest.raises(ConfigError, match="must be a whole number between 1 and 16"):
            worker.resize(Allocation(17, 1))
        worker.hold()
        clock.now_s += 100.0
        assert worker.release() == 100.0
        status = worker.status()
    assert (status.held_cores, status.core_seconds) == (6.0, 2.0 * 8 + 1.0 * (5 + 1))
    assert status.used_core_seconds == pytest.approx(CPU_S * 16), "not what loading took at first"


def test_a_limit_that_comes_late_shows_in_the_status(launcher):
    with make_worker(launcher) as worker:
        worker.resize(Allocation(cores=8, batch=1, replicas=2))
        worker.wait(worker.now())
        launcher.limit_delay_s = 0.05
        worker.resize(Allocation(cores=4, batch=1, replicas=2))
        resized = worker.status()
        assert (resized.held_cores, resized.effective_cores) == (16.0, 8.0)
        while worker.status().effective_cores != 4.0:
            assert not worker.wait(worker.now() + 0.01)
        assert worker.status().held_cores == 8.0
        assert worker.status().core_seconds >= resized.core_seconds + 0.04 * 16
        launcher.launched[1].limit(0.75)  # by somebody else
        time.sleep(launcher.limit_delay_s)
        status = worker.status()
    assert (status.held_cores, status.effective_cores) == (16.0, 8.0), "of all replicas"


@pytest.mark.parametrize("refuses", [False, True])
def test_a_worker_that_cannot_start_releases_everything(refuses, launcher, monkeypatch):
    launcher.refuses = refuses
    monkeypatch.setattr(FakeReplica, "poll", lambda _: Death("no such operator"))
    monkeypatch.setattr(FakeReplica, "ready", FakeReplica.die)
    reason = "no replica is to be had" if refuses else "attempt 3: no such operator"
    with pytest.raises(WorkerError, match=reason):
        make_worker(launcher)
