"""The real worker: limits that hold, crashes that are survived, nothing left behind.

What it shares with the simulated worker is in ``test_worker_contract.py``.
"""

import dataclasses
import errno
import gc
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import busy_model
import pytest
from control_groups import groups_of
from machine import PATIENCE_S, needs_cgroup, needs_two_cpus, wait_until
from test_models import write_model

from sponge_env.errors import ConfigError, WorkerError
from sponge_env.interfaces import Allocation, Batch
from sponge_env.live import cgroups
from sponge_env.live.janitor import start_ticks
from sponge_env.live.limits import process_cpu_s
from sponge_env.live.protocol import LiveConfig
from sponge_env.live.worker import LiveWorker
from sponge_env.models.registry import inspect_onnx

pytestmark = pytest.mark.live

FULL = Allocation(cores=16, batch=16)
FAST = busy_model.config(initial=FULL)


def batch(size):
    return Batch(1, tuple(range(size)))


def run(worker, size):
    worker.start(batch(size))
    end_s = worker.now() + PATIENCE_S
    while not (done := worker.wait(end_s)):
        assert worker.now() < end_s, "no batch ended"
    return done[0]


def cpu_group(pid):
    """Return the version 1 CPU group a process is in, as the kernel tells it."""
    lines = Path(f"/proc/{pid}/cgroup").read_text().splitlines()
    path = next(p for _, names, p in (x.split(":", 2) for x in lines) if "cpu" in names.split(","))
    return cgroups.find_hierarchy().mount / path.lstrip("/")


@pytest.fixture(scope="module")
def shared():
    with LiveWorker(FAST) as shared:
        yield shared


@pytest.fixture
def worker(shared):
    """Return a worker that other tests use as well, at full speed."""
    shared.resize(FULL)
    return shared


@pytest.fixture
def own_worker():
    with LiveWorker(FAST) as own:
        yield own


@pytest.mark.cgroup
@needs_cgroup
def test_the_group_shows_the_quota_after_each_resize(worker):
    if worker.limiter != "cgroup-v1":
        pytest.skip("reads the files of version 1")
    group = cpu_group(worker.replicas[0].pid)
    for cores, quota_us in ((1, 1250), (8, 10_000), (15, 18_750), (16, -1), (2, 2500)):
        worker.resize(Allocation(cores, 16))
        assert int((group / "cpu.cfs_quota_us").read_text()) == quota_us
        assert int((group / "cpu.cfs_period_us").read_text()) == 20_000
        assert worker.status().effective_cores == pytest.approx(cores)


def test_a_child_cannot_cut_the_memory_that_it_shares(worker):
    """To read there what is gone would end this process."""
    files = Path(f"/proc/{worker.replicas[0].pid}/fd").iterdir()
    memory = next(path for path in files if "sponge-tensors" in os.readlink(path))
    with pytest.raises(PermissionError):
        os.truncate(memory, 0)


def granted_share(worker, cores):
    """Measure CPU time per wall time of work without a pause."""
    worker.resize(Allocation(cores, 16))
    run(worker, 1)
    # the wall time encloses the CPU time: to be interrupted between two clocks adds no share
    begin_s, cpu_s = worker.now(), process_cpu_s(worker.replicas[0].pid)
    while worker.now() < begin_s + 0.8:
        run(worker, 8)
    return (process_cpu_s(worker.replicas[0].pid) - cpu_s) / (worker.now() - begin_s)


@pytest.mark.parametrize(
    ("limiter", "too_much"),
    [pytest.param("cgroup", 0.1, marks=[pytest.mark.cgroup, needs_cgroup]), ("duty-cycle", 0.3)],
)
def test_the_limiter_grants_the_share_and_no_more(limiter, too_much):
    with LiveWorker(busy_model.config(initial=FULL, limiter=limiter)) as worker:
        assert worker.limiter.startswith(limiter)
        shares = []
        for _ in range(6):  # less may be others' doing, but more is never granted
            shares.append(granted_share(worker, cores=6) / (6 / 16))
            assert shares[-1] <= 1 + too_much
            if abs(shares[-1] - 1) <= 0.1:
                assert worker.status().throttled_s > 0
                return
    pytest.fail(f"the replica got {shares} of what it was granted")


@needs_two_cpus
def test_threads_follow_the_cores():
    limits = {"batch_max": 2, "cores_max": 2, "core_unit": 1.0, "limiter": "none"}
    with LiveWorker(busy_model.config(**limits, initial=Allocation(2, 2))) as worker:
        for cores in (2, 1):
            worker.resize(Allocation(cores, 2))
            assert worker.replicas[0].threads == cores
            assert run(worker, 2).ok


def test_more_cores_than_there_are_cpus_are_refused():
    with pytest.raises(ConfigError, match="4096 cores, more than the"):
        LiveWorker(LiveConfig(cores_max=4096, core_unit=1.0))


def test_a_hung_batch_is_given_up():
    with LiveWorker(busy_model.config(initial=FULL, batch_timeout_s=0.5)) as worker:
        os.kill(worker.replicas[0].pid, signal.SIGSTOP)
        assert not run(worker, 1).ok
        while not worker.idle():
            assert worker.now() < PATIENCE_S
            worker.wait(worker.now() + 1.0)
        assert run(worker, 1).ok


def test_a_model_that_cannot_run_ends_with_its_last_words(tmp_path, monkeypatch):
    path = write_model(tmp_path / "bad.onnx", op="NoSuchOp")
    with pytest.raises(ConfigError, match="NoSuchOp"):
        inspect_onnx(path)
    model = dataclasses.replace(inspect_onnx(write_model(tmp_path / "good.onnx")), path=str(path))
    monkeypatch.setattr("sponge_env.models.registry.inspect_onnx", lambda path: model)
    affinity = os.sched_getaffinity(0)
    with pytest.raises(WorkerError, match="NoSuchOp"):
        LiveWorker(LiveConfig(model=str(path)))
    assert os.sched_getaffinity(0) == affinity


@pytest.mark.cgroup
@needs_cgroup
def test_a_group_that_somebody_removed_ends_with_a_sentence(own_worker):
    if own_worker.limiter != "cgroup-v1":
        pytest.skip("moves a process between groups of version 1")
    pid = own_worker.replicas[0].pid
    group = cpu_group(pid)
    (group.parent.parent / "cgroup.procs").write_text(str(pid))
    group.rmdir()
    message = "the control group was removed .*replica-"
    with pytest.raises(WorkerError, match=message):
        own_worker.status()
    with pytest.raises(WorkerError, match=message):
        own_worker.resize(Allocation(cores=2, batch=1))


def test_without_processes_for_another_replica_the_others_go_on(own_worker, caplog, monkeypatch):
    def refuse(*_, **__):
        raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))

    files, groups = open_files(), groups_of(os.getpid())
    monkeypatch.setattr("sponge_env.live.local.subprocess.Popen", refuse)
    own_worker.resize(Allocation(cores=4, batch=16, replicas=3))
    assert f"refuses another replica: {os.strerror(errno.EAGAIN)}; allow more" in caplog.text
    assert run(own_worker, 2).ok
    assert (open_files(), groups_of(os.getpid())) == (files, groups)
    own_worker.close()
    with pytest.raises(WorkerError, match=os.strerror(errno.EAGAIN)):
        LiveWorker(FAST)


def open_files():
    gc.collect()
    return set(os.listdir("/proc/self/fd"))


@pytest.mark.parametrize("closed", [True, False])
def test_nothing_is_left_behind_whether_it_is_closed_or_dropped(closed):
    files, affinity, groups = open_files(), os.sched_getaffinity(0), groups_of(os.getpid())
    worker = LiveWorker(busy_model.config(initial=Allocation(8, 1, replicas=2)))
    pids = [replica.pid for replica in worker.replicas]
    assert (groups_of(os.getpid()) > groups) == worker.limiter.startswith("cgroup")
    if len(affinity) > 1:  # harness and replicas keep to different CPUs
        assert not os.sched_getaffinity(0) & os.sched_getaffinity(pids[0] or 0)
    worker.start(batch(4))
    if closed:
        worker.close()
        worker.close()
        worker.wake()
    del worker
    assert open_files() == files
    assert not [pid for pid in pids if pid and start_ticks(pid)]
    assert (groups_of(os.getpid()), os.sched_getaffinity(0)) == (groups, affinity)


HARNESS = """# In the middle of a slow batch and of a cold start.
import json, pathlib, sys
sys.path.insert(0, sys.argv[2])
from sponge_env.live import cpus
cpus.LOCK_FOLDER = pathlib.Path(sys.argv[3])  # where there is one CPU only, the tests have it
import busy_model
from sponge_env.interfaces import Allocation, Batch
from sponge_env.live.worker import LiveWorker
with LiveWorker(busy_model.config(initial=Allocation(16, 16), limiter=sys.argv[1])) as worker:
    worker.start(Batch(1, tuple(range(16))))
    worker.resize(Allocation(1, 16, replicas=2))
    pids = [replica.pid for replica in worker.replicas]
    print(json.dumps({"pids": pids, "limiter": worker.limiter}), flush=True)
    while True:
        worker.wait(worker.now() + 60.0)
"""


@pytest.mark.parametrize(
    ("limiter", "end"),
    [("auto", signal.SIGKILL), ("duty-cycle", signal.SIGKILL), ("auto", signal.SIGTERM)],
)
def test_nothing_outlives_the_harness(limiter, end, tmp_path):
    command = [sys.executable, "-c", HARNESS, limiter, str(Path(__file__).parent), str(tmp_path)]
    pipes = dict.fromkeys(("stdout", "stderr"), subprocess.PIPE)
    with subprocess.Popen(command, **pipes, text=True) as harness:
        facts = json.loads(harness.stdout.readline())
        assert len(facts["pids"]) == 2
        assert bool(groups_of(harness.pid)) == facts["limiter"].startswith("cgroup")
        harness.send_signal(end)
        harness.communicate(timeout=PATIENCE_S)
    assert harness.returncode != 0
    wait_until(lambda: not [pid for pid in facts["pids"] if start_ticks(pid)])
    wait_until(lambda: not groups_of(harness.pid))
