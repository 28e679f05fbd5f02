"""What every worker must do; each test runs on all of them.

Times differ by orders of magnitude between a virtual and a real worker, so the tests
compare durations with each other, never with a clock.
"""

from functools import partial

import busy_model
import numpy as np
import pytest
from fake_replicas import crash
from nodes import remote_launcher
from reference.worker import ProfileService, SimulatedWorker

from sponge_env.interfaces import Allocation, Batch
from sponge_env.live.worker import LiveWorker

CORES, BATCH, REPLICAS = 16, 8, 3
PATIENCE_S = 60.0  # episode time after which a test gives up on an event


class Rig:
    def __init__(self, worker, crash):
        self.worker, self.crash = worker, crash
        self.batches, self.done = 0, []

    def batch(self, size):
        self.batches += 1
        return Batch(self.batches, tuple(self.batches * 1000 + i for i in range(size)))

    def wait_until(self, condition):
        limit_s = self.worker.now() + PATIENCE_S
        while not condition():
            assert self.worker.now() < limit_s, "the worker never got there"
            self.done.extend(self.worker.wait(limit_s))

    def run(self, size):
        before = len(self.done)
        self.worker.start(self.batch(size))
        self.wait_until(lambda: len(self.done) > before)
        return self.done[-1]


def _profile_rig(initial):
    latency_s = np.array([[0.01 * b * CORES / c for c in range(1, 17)] for b in range(1, 9)])
    worker = SimulatedWorker(partial(ProfileService, latency_s), initial, cold_start_s=2.0)
    return Rig(worker, worker.crash)


def _live_rig(launcher, initial):
    limits = {"batch_max": BATCH, "cores_max": CORES, "replicas_max": REPLICAS}
    config = busy_model.config(**limits, initial=initial)
    worker = LiveWorker(config, launcher=launcher([config]))
    return Rig(worker, lambda: crash(worker))


RIGS = {
    "profile": _profile_rig, "real": partial(_live_rig, lambda configs: None),
    "remote": partial(_live_rig, remote_launcher),
}  # fmt: skip


@pytest.fixture(params=[pytest.param(n, marks=[pytest.mark.live] * (n != "profile")) for n in RIGS])
def make_rig(request):
    rigs = []

    def make(initial):
        rigs.append(RIGS[request.param](initial))
        return rigs[-1]

    yield make
    for rig in rigs:
        rig.worker.close()


FULL = Allocation(cores=CORES, batch=BATCH)


def test_a_batch_comes_back_whole_and_in_time_order(make_rig):
    rig = make_rig(FULL)
    assert rig.worker.idle() == 1
    batch, started_s = rig.batch(3), rig.worker.now()
    rig.worker.start(batch)
    assert rig.worker.idle() == 0
    with pytest.raises(RuntimeError, match="no replica is idle"):
        rig.worker.start(rig.batch(1))
    rig.wait_until(lambda: bool(rig.done))
    (completion,) = rig.done
    assert completion.batch is batch
    assert completion.ok
    assert started_s <= completion.started_s < completion.finished_s <= rig.worker.now()
    assert rig.worker.idle() == 1
    until_s = rig.worker.now() + 0.05
    assert not rig.worker.wait(until_s)
    assert rig.worker.now() >= until_s, "nothing happens, so that it returns at its time"


def test_fewer_cores_make_back_to_back_work_slower(make_rig):
    rig = make_rig(FULL)

    def total_s():
        return sum(c.finished_s - c.started_s for c in (rig.run(4) for _ in range(3)))

    fast_s = total_s()
    rig.worker.resize(Allocation(cores=4, batch=BATCH))
    assert total_s() > 2 * fast_s


def test_a_resize_acts_on_the_running_batch(make_rig):
    rig = make_rig(Allocation(cores=1, batch=BATCH))
    slow = rig.run(BATCH)
    slow_s = slow.finished_s - slow.started_s
    rig.worker.start(rig.batch(BATCH))
    rig.worker.wait(rig.worker.now() + slow_s / 10)
    rig.worker.resize(FULL)
    rig.wait_until(lambda: len(rig.done) == 2)
    assert rig.done[1].finished_s - rig.done[1].started_s < slow_s / 2


def test_new_replicas_hold_one_core_at_once_and_the_others_when_they_serve(make_rig):
    rig = make_rig(Allocation(cores=4, batch=BATCH))
    rig.worker.resize(Allocation(cores=4, batch=BATCH, replicas=3))
    status = rig.worker.status()
    assert (status.ready, len(status.starting_s), status.held_cores) == (1, 2, 6)
    assert rig.worker.idle() == 1
    rig.worker.resize(Allocation(cores=4, batch=BATCH, replicas=2))  # a cold one goes first
    status = rig.worker.status()
    assert (status.ready, len(status.starting_s), status.held_cores) == (1, 1, 5)
    rig.wait_until(lambda: rig.worker.status().ready == 2)
    assert rig.worker.idle() == 2
    status = rig.worker.status()
    assert (status.starting_s, status.held_cores) == ((), 8)


def test_scale_in_lets_running_batches_finish(make_rig):
    rig = make_rig(Allocation(cores=4, batch=BATCH, replicas=2))
    for _ in range(2):
        rig.worker.start(rig.batch(2))
    rig.worker.resize(Allocation(cores=4, batch=BATCH, replicas=1))
    assert rig.worker.status().held_cores == 8
    rig.wait_until(lambda: len(rig.done) == 2)
    assert all(completion.ok for completion in rig.done)
    rig.wait_until(lambda: rig.worker.status().held_cores == 4)
    assert rig.worker.idle() == 1


def test_cores_are_charged_while_they_are_held(make_rig):
    rig = make_rig(Allocation(cores=4, batch=BATCH))
    begin = Reading(rig.worker)
    rig.worker.wait(begin.latest_s + 0.1)
    middle = Reading(rig.worker)
    rig.worker.resize(Allocation(cores=8, batch=BATCH))
    resized_s = rig.worker.now()
    rig.worker.wait(resized_s + 0.1)
    end = Reading(rig.worker)
    charged = end.status.core_seconds - begin.status.core_seconds
    least = 4 * (middle.latest_s - begin.latest_s) + 8 * (end.earliest_s - resized_s)
    most = 4 * (middle.latest_s - begin.earliest_s) + 8 * (end.latest_s - middle.latest_s)
    assert least - 1e-9 <= charged <= most + 1e-9
    assert middle.status.core_seconds > begin.status.core_seconds


class Reading:
    def __init__(self, worker):
        self.earliest_s, self.status = worker.now(), worker.status()
        self.latest_s = worker.now()


def test_cores_are_in_use_while_a_batch_runs(make_rig):
    rig = make_rig(Allocation(cores=1, batch=BATCH))
    before = rig.worker.status()
    rig.worker.start(rig.batch(BATCH))
    for _ in range(2):
        last = rig.worker.status()
        while rig.worker.status().used_core_seconds <= last.used_core_seconds:
            assert not rig.worker.wait(rig.worker.now() + 0.05)
    during = rig.worker.status()
    assert during.cpu_s == before.cpu_s, "counts batches when they end"
    rig.crash()
    rig.wait_until(lambda: rig.worker.status().restarts == 1)
    assert rig.worker.status().used_core_seconds >= during.used_core_seconds


def test_a_crash_returns_the_batch_and_serving_goes_on(make_rig):
    rig = make_rig(Allocation(cores=1, batch=BATCH))
    batch = rig.batch(BATCH)
    rig.worker.start(batch)
    rig.worker.wait(rig.worker.now() + 0.01)
    rig.crash()
    rig.wait_until(lambda: bool(rig.done))
    assert [(c.batch, c.ok) for c in rig.done] == [(batch, False)]
    assert rig.worker.status().restarts == 1
    with pytest.raises(RuntimeError, match="no replica serves"):
        rig.crash()
    rig.worker.resize(FULL)
    rig.wait_until(lambda: rig.worker.idle() == 1)
    assert rig.run(1).ok


def test_a_held_clock_stands_still_and_close_is_safe_twice(make_rig):
    rig = make_rig(FULL)
    rig.worker.hold()
    held_s = rig.worker.now()
    assert rig.worker.now() == held_s
    assert rig.worker.release() >= 0.0
    assert rig.run(1).ok
    rig.worker.close()
    rig.worker.close()
