"""The fleet and the live worker over replicas in memory: no process, no wait."""

from __future__ import annotations

import gc
import os
import resource
import threading
from collections.abc import Callable, Iterator

import numpy as np
import pytest
from fake_replicas import CPU_S, FakeLauncher, FakeReplica

from sponge_env.errors import ConfigError, WorkerError
from sponge_env.interfaces import Allocation, Batch
from sponge_env.live import fleet as fleet_module
from sponge_env.live.fleet import START_ATTEMPTS, Ended, Fleet, Watch
from sponge_env.live.replica import LiveConfig
from sponge_env.live.worker import LiveWorker

TENSORS = [np.zeros(1), np.ones(1)]
CONFIG = LiveConfig(start_timeout_s=100.0, batch_timeout_s=10.0, cold_start_s=8.0)


def scale(fleet: Fleet, wanted: int) -> None:
    fleet.shrink(wanted)
    fleet.grow(wanted - len(fleet.staying))


class Monotonic:
    """Stands in for the module ``time`` in the fleet."""

    now_s = 1000.0

    def monotonic(self) -> float:
        return self.now_s


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Monotonic:
    clock = Monotonic()
    monkeypatch.setattr(fleet_module, "time", clock)
    return clock


class Rig:
    """A fleet of warm replicas that from now on do only what a test tells them."""

    def __init__(self, replicas: int) -> None:
        self.launcher = FakeLauncher()
        self.watch = Watch()
        self.fleet = Fleet(CONFIG, self.launcher, self.watch)
        self.fleet.warm_up(replicas, 0.5)
        while self.fleet.starting_s:
            self.poll()
        self.fleet.warmed_up()
        self.launcher.willing = False

    @property
    def replicas(self) -> list[FakeReplica]:
        """All that were ever launched, in that order."""
        return self.launcher.launched

    @property
    def open(self) -> list[int]:
        return [replica.id for replica in self.replicas if not replica.closed]

    def start(self, id: int) -> None:
        self.fleet.start(batch(id), TENSORS)

    def poll(self) -> list[Ended]:
        return self.watch.poll(0.0)[1]


@pytest.fixture
def make_rig() -> Iterator[Callable[[int], Rig]]:
    rigs: list[Rig] = []

    def make(replicas: int) -> Rig:
        rigs.append(Rig(replicas))
        return rigs[-1]

    yield make
    for rig in rigs:
        rig.watch.close()
        assert not rig.open


MakeRig = Callable[[int], Rig]


def batch(id: int) -> Batch:
    return Batch(id, (0, 1))


def test_the_first_replicas_load_at_full_speed_and_are_limited_then(make_rig: MakeRig) -> None:
    rig = make_rig(2)
    granted = [[cores for _, cores in replica._limits] for replica in rig.replicas]
    assert granted == [[1.0, 0.5], [1.0, 0.5]]
    scale(rig.fleet, 3)
    assert rig.replicas[2].granted_cores() == 0.5
    rig.fleet.limit(0.25)
    assert [replica.granted_cores() for replica in rig.replicas] == [0.25] * 3


def test_the_oldest_idle_replica_gets_the_batch(make_rig: MakeRig) -> None:
    rig = make_rig(2)
    rig.start(1)
    assert [replica.batch_id for replica in rig.replicas] == [1, None]
    assert rig.replicas[0].tensors is TENSORS
    rig.start(2)
    with pytest.raises(RuntimeError, match="no replica is idle"):
        rig.start(3)
    rig.replicas[1].answer()
    (ended,) = rig.poll()
    assert (ended.batch.id, ended.replica_id) == (2, 1)
    assert ended.answer is not None
    assert [member.replica.id for member in rig.fleet.idle] == [1]


def test_scale_in_takes_cold_ones_then_idle_ones_the_youngest_first(make_rig: MakeRig) -> None:
    rig = make_rig(3)
    rig.start(1)
    scale(rig.fleet, 5)
    assert (rig.fleet.serving, len(rig.fleet.starting_s)) == (3, 2)
    for wanted, left in ((4, [0, 1, 2, 3]), (3, [0, 1, 2]), (2, [0, 1]), (1, [0])):
        scale(rig.fleet, wanted)
        assert rig.open == left


def test_a_busy_replica_finishes_its_batch_before_it_goes(make_rig: MakeRig) -> None:
    rig = make_rig(2)
    rig.start(1)
    rig.start(2)
    scale(rig.fleet, 1)
    assert (rig.open, rig.fleet.serving) == ([0, 1], 1)
    rig.replicas[1].answer()
    assert [ended.batch.id for ended in rig.poll()] == [2]
    assert rig.open == [0]


def test_a_draining_replica_that_dies_is_not_replaced(make_rig: MakeRig) -> None:
    rig = make_rig(2)
    rig.start(1)
    rig.start(2)
    scale(rig.fleet, 1)
    rig.replicas[1].die()
    assert [(ended.batch.id, ended.answer) for ended in rig.poll()] == [(2, None)]
    assert (rig.open, rig.fleet.restarts) == ([0], 0)


def test_a_dead_replica_gives_its_batch_back_and_is_replaced(make_rig: MakeRig) -> None:
    rig = make_rig(1)
    rig.start(7)
    rig.replicas[0].die()
    (ended,) = rig.poll()
    assert (ended.batch.id, ended.replica_id, ended.answer) == (7, 0, None)
    assert (rig.open, rig.fleet.restarts, rig.fleet.serving) == ([1], 1, 0)
    rig.replicas[1].ready()
    rig.poll()
    rig.start(8)
    assert rig.replicas[1].batch_id == 8


def test_a_death_while_starting_or_idle_is_made_good(make_rig: MakeRig) -> None:
    rig = make_rig(1)
    for replica in (0, 1):  # idle at first, starting then
        rig.replicas[replica].die()
        assert rig.poll() == []
    assert (rig.open, rig.fleet.restarts) == ([2], 2)


def test_replicas_that_never_start_end_it_with_their_reason(make_rig: MakeRig) -> None:
    rig = make_rig(1)
    rig.start(1)
    rig.replicas[0].die()
    for attempt in range(1, START_ATTEMPTS):
        rig.poll()
        rig.replicas[attempt].die()
    rig.poll()
    rig.replicas[START_ATTEMPTS].die("no such operator")
    with pytest.raises(WorkerError, match=r"3 replicas died .* said: no such operator"):
        rig.poll()
    assert rig.open == [], "it gave up"


def test_while_another_serves_replicas_that_never_start_do_not_end_it(
    clock: Monotonic, make_rig: MakeRig, caplog: pytest.LogCaptureFixture
) -> None:
    rig = make_rig(1)
    scale(rig.fleet, 2)
    for attempt in range(1, START_ATTEMPTS + 1):
        rig.replicas[attempt].die("no such operator")
        rig.poll()
    scale(rig.fleet, 2)
    assert rig.open == [0], "it waits with the next attempt"
    clock.now_s += fleet_module.HEARTBEAT_S
    scale(rig.fleet, 2)
    rig.replicas[-1].die("no such operator")
    rig.poll()
    (said,) = (record.getMessage() for record in caplog.records)
    assert said.startswith("going on with 1 replicas: 3 replicas died")
    rig.start(1)
    rig.replicas[0].answer()
    assert [ended.batch.id for ended in rig.poll()] == [1]
    rig.start(2)
    rig.replicas[0].answer()
    rig.poll()
    rig.replicas[0].die()
    with pytest.raises(WorkerError, match="4 replicas died"):
        rig.poll()


def test_what_ended_is_handed_over_before_it_gives_up(make_rig: MakeRig) -> None:
    rig = make_rig(1)
    scale(rig.fleet, 2)
    rig.start(1)
    rig.fleet.members[0].draining = True
    for attempt in range(1, START_ATTEMPTS + 1):
        if attempt == START_ATTEMPTS:
            rig.replicas[0].answer()
        rig.replicas[attempt].die("no such operator")
        ended = rig.poll()
    assert [end.batch.id for end in ended] == [1]
    with pytest.raises(WorkerError, match="no such operator"):
        rig.poll()


def test_one_that_starts_in_between_lets_it_go_on(make_rig: MakeRig) -> None:
    rig = make_rig(1)
    for _ in range(2):
        for _ in range(START_ATTEMPTS - 1):
            rig.replicas[-1].die()
            rig.poll()
        rig.replicas[-1].ready()
        rig.poll()
    assert rig.fleet.serving == 1


def test_what_hangs_is_killed(clock: Monotonic, make_rig: MakeRig) -> None:
    rig = make_rig(2)
    scale(rig.fleet, 3)
    rig.start(1)
    clock.now_s += 10.5
    assert rig.poll() == []
    assert [replica.killed for replica in rig.replicas] == [True, False, False]
    assert [ended.answer for ended in rig.poll()] == [None]
    clock.now_s += 90.0
    rig.poll()
    assert [replica.killed for replica in rig.replicas] == [True, False, True, False]


def test_a_report_that_nobody_polled_in_time_counts(clock: Monotonic, make_rig: MakeRig) -> None:
    rig = make_rig(1)
    rig.start(1)
    rig.replicas[0].answer()
    clock.now_s += 100.0
    assert [ended.answer is not None for ended in rig.poll()] == [True]
    assert not rig.replicas[0].killed


def test_time_that_nobody_polled_is_no_time_to_hang(clock: Monotonic, make_rig: MakeRig) -> None:
    rig = make_rig(1)
    rig.start(1)
    clock.now_s += 100.0
    rig.fleet.extend_timeouts(100.0)
    assert rig.poll() == []
    assert not rig.replicas[0].killed
    clock.now_s += 10.5
    rig.poll()
    assert rig.replicas[0].killed


def test_the_cold_start_is_measured_but_not_at_full_speed(
    clock: Monotonic, make_rig: MakeRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fake_replicas.time", clock)
    rig = make_rig(1)
    assert rig.fleet.cold_start_s == 8.0
    scale(rig.fleet, 2)
    clock.now_s += 3.0
    assert rig.fleet.starting_s == [5.0]
    rig.replicas[1].ready()
    rig.poll()
    assert rig.fleet.cold_start_s == 3.0
    scale(rig.fleet, 3)
    clock.now_s += 4.0
    assert rig.fleet.starting_s == [0.0]


def test_counters_keep_what_past_replicas_used(make_rig: MakeRig) -> None:
    rig = make_rig(2)
    for id in (1, 2):
        rig.start(id)
    for replica in rig.replicas[:2]:
        replica.answer()
    rig.poll()
    scale(rig.fleet, 1)
    assert rig.fleet.cpu_s == pytest.approx(2 * CPU_S)
    assert rig.fleet.throttled_s == pytest.approx(CPU_S)


def test_a_refused_replica_leaves_the_others_running(
    clock: Monotonic, make_rig: MakeRig, caplog: pytest.LogCaptureFixture
) -> None:
    rig = make_rig(1)
    rig.launcher.refuses = True
    for _ in range(3):
        scale(rig.fleet, 2)
        clock.now_s += fleet_module.HEARTBEAT_S / 4
    assert rig.launcher.refused == 1, "it is not asked all the time"
    assert [r.getMessage() for r in caplog.records] == [
        "going on with 1 replicas: no replica is to be had"
    ]
    rig.start(1)
    rig.replicas[0].answer()
    assert len(rig.poll()) == 1
    rig.launcher.refuses = False
    clock.now_s += fleet_module.HEARTBEAT_S
    scale(rig.fleet, 2)
    assert rig.open == [0, 1]


def test_the_only_replica_that_is_refused_ends_it(make_rig: MakeRig) -> None:
    rig = make_rig(1)
    rig.launcher.refuses = True
    rig.replicas[0].die()
    with pytest.raises(WorkerError, match="no replica is to be had"):
        rig.poll()


def test_what_ended_is_handed_over_before_that_nothing_serves_any_more(make_rig: MakeRig) -> None:
    rig = make_rig(1)
    rig.start(1)
    rig.launcher.refuses = True
    rig.replicas[0].die()
    (ended,) = rig.poll()
    assert ended.answer is None
    with pytest.raises(WorkerError, match="no replica is to be had"):
        rig.poll()


def test_replicas_may_have_descriptors_that_select_does_not_take() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < 1200:
        pytest.skip("only few descriptors are allowed here")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 1200), hard))
    null = os.open(os.devnull, os.O_RDONLY)
    taken = [null]
    try:
        while taken[-1] < 1024:
            taken.append(os.dup(null))
        rig = Rig(2)
        assert rig.replicas[0].fileno() > 1024
        rig.start(1)
        rig.replicas[0].answer()
        assert [ended.batch.id for ended in rig.poll()] == [1]
        assert rig.watch.poll(0.001) == (False, [])
        rig.watch.close()
    finally:
        for descriptor in taken:
            os.close(descriptor)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_another_thread_wakes_a_poll(make_rig: MakeRig) -> None:
    rig = make_rig(1)
    thread = threading.Thread(target=rig.watch.wake)
    thread.start()
    assert rig.watch.poll(60.0) == (True, [])
    thread.join()
    assert rig.watch.poll(0.0) == (False, [])


@pytest.fixture
def launcher() -> FakeLauncher:
    return FakeLauncher()


@pytest.fixture
def worker(launcher: FakeLauncher) -> Iterator[LiveWorker]:
    with LiveWorker(CONFIG, launcher) as worker:
        yield worker
    assert launcher.closed
    assert all(replica.closed for replica in launcher.launched)


def test_a_worker_that_nobody_closed_is_released(launcher: FakeLauncher) -> None:
    worker = LiveWorker(CONFIG, launcher)
    assert not launcher.closed
    del worker
    gc.collect()
    assert launcher.closed
    assert all(replica.closed for replica in launcher.launched)


def test_a_fork_that_drops_a_worker_leaves_it_to_its_parent(
    launcher: FakeLauncher, monkeypatch: pytest.MonkeyPatch
) -> None:
    with LiveWorker(CONFIG, launcher) as worker:
        monkeypatch.setattr("sponge_env.live.worker.os.getpid", lambda: -1)
        _, release, arguments, _ = worker._finalizer.peek()  # type: ignore[misc] # it is alive
        release(*arguments)
        assert not launcher.closed
        monkeypatch.undo()


def test_the_worker_serves_on_any_replicas(worker: LiveWorker) -> None:
    assert worker.limiter == "fake"
    worker.start(batch(5))
    assert np.array_equal(worker.replicas[0].answers(2), [[0], [1]]), "a sample for each request"
    (completion,) = worker.wait(60.0)
    assert (completion.batch.id, completion.ok, completion.cpu_s) == (5, True, CPU_S)
    assert 0 <= completion.started_s <= completion.finished_s <= worker.now()
    assert worker.status().cpu_s == CPU_S


def test_a_limit_that_comes_late_shows_in_the_status(
    worker: LiveWorker, launcher: FakeLauncher
) -> None:
    launcher.limit_delay_s = 0.05
    worker.resize(Allocation(cores=4, batch=1))
    resized = worker.status()
    assert (resized.held_cores, resized.effective_cores) == (4.0, 1.0)
    while worker.status().effective_cores != 4.0:
        assert not worker.wait(worker.now() + 0.01)


def test_time_held_is_no_time_to_hang(
    clock: Monotonic, worker: LiveWorker, launcher: FakeLauncher, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sponge_env.live.worker.time", clock)
    launcher.willing = False
    worker.hold()
    worker.release()  # the clock's times are the stand-in's from here on
    worker.start(batch(1))
    worker.hold()
    clock.now_s += 100.0
    assert worker.release() == 100.0
    assert not worker.wait(worker.now())
    launcher.launched[0].answer()
    (completion,) = worker.wait(worker.now())
    assert completion.ok


def test_what_ends_while_the_clock_is_held_ends_at_that_instant(
    worker: LiveWorker, launcher: FakeLauncher
) -> None:
    launcher.willing = False
    worker.start(batch(1))
    worker.hold()
    held_s = worker.now()
    launcher.launched[0].answer()
    with pytest.raises(RuntimeError, match="held"):
        worker.wait(held_s + 1)
    assert worker.release() > 0
    (completion,) = worker.wait(worker.now() + 60.0)
    assert completion.finished_s == pytest.approx(held_s, abs=1e-6)


def test_a_worker_that_cannot_start_releases_everything(launcher: FakeLauncher) -> None:
    launcher.refuses = True
    with pytest.raises(WorkerError, match="no replica is to be had"):
        LiveWorker(CONFIG, launcher)
    assert launcher.closed


def test_an_allocation_beyond_the_limits_changes_nothing(
    worker: LiveWorker, launcher: FakeLauncher
) -> None:
    for allocation in (Allocation(17, 1), Allocation(1, 1, replicas=17)):
        with pytest.raises(ConfigError, match="must be a whole number between 1 and 16"):
            worker.resize(allocation)
    assert (len(launcher.launched), worker.status().effective_cores) == (1, 1.0)
