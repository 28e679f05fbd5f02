"""Choosing and driving the CPU limits, without and with the kernel."""

import os
import shutil
import signal
import subprocess
import sys
from unittest.mock import Mock

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sponge_env.errors import ConfigError, WorkerError
from sponge_env.live import cgroups, limits
from sponge_env.live.cgroups import CgroupLimiter, Hierarchy, RunGroup, find_hierarchy, sweep
from sponge_env.live.janitor import Janitor, kill, start_ticks
from sponge_env.live.limits import DutyCycleLimiter, enforcement_period_s, open_limits


@pytest.fixture(autouse=True)
def _unwarned(monkeypatch):
    """Let each test be the first of its process to fall back."""
    monkeypatch.setattr(limits, "_WARNED", [])


def test_the_period_is_as_short_as_a_quota_of_one_unit_allows():
    periods_s = {1: 0.01, 0.1: 0.01, 1 / 16: 0.02, 0.01: 0.1, 0.001: 1.0}
    assert {c: enforcement_period_s(c) for c in periods_s} == pytest.approx(periods_s)
    with pytest.raises(ConfigError, match=r"core unit of 0\.0005"):
        enforcement_period_s(0.0005)


@given(st.floats(0.001, 16))
def test_a_quota_of_one_unit_is_legal(core_unit):
    period_s = enforcement_period_s(core_unit)
    assert 0.01 <= period_s <= 1.0 + 1e-9
    assert round(core_unit * period_s * 1e6) >= 1000


def test_what_dead_runs_left_is_removed(tmp_path):
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    for pid, leaf in ((dead.pid, "replica-0"), (dead.pid, "replica-1"), (os.getpid(), "replica-0")):
        (tmp_path / f"sponge-{pid}-0a1b2c3d" / leaf).mkdir(parents=True)
    (tmp_path / f"sponge-{dead.pid}-0a1b2c3d-harness").mkdir()
    (tmp_path / f"sponge-{dead.pid}-busy" / "process").mkdir(parents=True)  # the kernel keeps it
    (tmp_path / "sponge-of-others").mkdir()
    sweep(tmp_path)
    left = {f"sponge-{os.getpid()}-0a1b2c3d", f"sponge-{dead.pid}-busy", "sponge-of-others"}
    assert {path.name for path in tmp_path.iterdir()} == left


def write_proc(folder, mounts, cgroup):
    """Write what the kernel says of mounts and memberships."""
    folder.mkdir(exist_ok=True)
    (folder / "mounts").write_text(mounts)
    (folder / "cgroup").write_text(cgroup)
    return folder


@pytest.mark.parametrize(("own", "found"), [("/own", "own"), ("/docker/abc", "")])
def test_version_1_is_found_where_we_are_or_where_it_is_mounted(tmp_path, own, found):
    (tmp_path / "cpu" / "own").mkdir(parents=True)
    mounts = f"cgroup {tmp_path}/mem cgroup rw,memory 0 0\ncgroup {tmp_path}/cpu cgroup rw,cpu 0 0"
    proc = write_proc(tmp_path / "proc", mounts, f"4:memory:/\n1:cpu,cpuacct:{own}\n0::/")
    assert find_hierarchy(proc) == Hierarchy(1, tmp_path / "cpu", tmp_path / "cpu" / found)


def test_version_2_counts_only_with_the_cpu_controller(tmp_path):
    (tmp_path / "cg" / "own").mkdir(parents=True)
    proc = write_proc(tmp_path / "proc", f"cgroup2 {tmp_path}/cg cgroup2 rw 0 0", "0::/own")
    controllers = tmp_path / "cg" / "cgroup.controllers"
    controllers.write_text("hugetlb memory")
    assert find_hierarchy(proc) is None
    controllers.write_text("cpuset cpu memory")
    assert find_hierarchy(proc) == Hierarchy(2, tmp_path / "cg", tmp_path / "cg" / "own")


def make_v2_group(path, hands_out="", root=False):
    """Make a directory with the files the kernel would put there."""
    path.mkdir(parents=True, exist_ok=True)
    (path / "cgroup.procs").write_text("")
    (path / "cgroup.controllers").write_text("cpu memory")
    (path / "cgroup.subtree_control").write_text(hands_out)
    (path / "cpu.stat").write_text("usage_usec 7\nnr_throttled 2\nthrottled_usec 1500000\n")
    if not root:
        (path / "cgroup.type").write_text("domain")
        (path / "cpu.max").write_text("max 100000\n")
        (path / "cpu.weight").write_text("100\n")
    return path


class FakeKernelGroup(RunGroup):
    """A run's group on an ordinary file system."""

    def _make(self, path, announced=True):
        if announced:
            self._announce(path)
        return make_v2_group(path)


@pytest.fixture
def fake_v2(tmp_path, monkeypatch):
    monkeypatch.setattr(cgroups, "remove_group", shutil.rmtree)
    return make_v2_group(tmp_path / "cg", root=True)


def open_group(mount, own):
    announced = []
    return FakeKernelGroup(Hierarchy(2, mount, own), 20_000, announced.append), announced


def test_root_makes_a_sibling_of_its_own_group(fake_v2):
    (fake_v2 / "cgroup.subtree_control").write_text("cpu memory")
    own = make_v2_group(fake_v2 / "session")
    run, announced = open_group(fake_v2, own)
    leaf = run.limiter(cpus=1)
    run_path, leaf_path = announced
    assert run_path.parent == fake_v2
    assert run_path.name.startswith(f"sponge-{os.getpid()}-")
    assert (run_path / "cgroup.subtree_control").read_text() == "+cpu"
    assert (leaf.group, leaf_path.parent) == (leaf_path, run_path)
    assert (own / "cgroup.procs").read_text() == ""
    run.close()
    assert not run_path.exists()


def test_in_a_delegated_group_the_harness_moves_into_a_leaf(fake_v2):
    """With its children, for a group with processes hands out nothing, but with nobody else."""
    own = make_v2_group(fake_v2 / "scope")
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE) as child:
        (own / "cgroup.procs").write_text(f"{os.getpid()}\n{child.pid}\n{os.getppid()}")
        run, (run_path,) = open_group(fake_v2, own)
        child.stdin.close()
    (shelter,) = own.glob("*-harness")
    assert {shelter.parent, run_path.parent} == {own}
    assert (shelter / "cgroup.procs").read_text() == str(child.pid)  # the last that was moved
    (shelter / "cgroup.procs").write_text(str(os.getpid()))
    assert (own / "cgroup.subtree_control").read_text() == "+cpu"
    run.close()
    assert (own / "cgroup.subtree_control").read_text() == "-cpu"
    assert (own / "cgroup.procs").read_text() == str(os.getpid())
    assert not any(path.exists() for path in (shelter, run_path))


def test_version_2_writes_quota_and_period_together(fake_v2):
    leaf = make_v2_group(fake_v2 / "leaf")
    limiter = CgroupLimiter(2, leaf, 20_000, cpus=1)
    for cores, quota in ((1 / 16, "1250 20000"), (1.0, "max 20000")):
        limiter.apply(cores)
        assert ((leaf / "cpu.max").read_text(), limiter.granted_cores()) == (quota, cores)
    assert limiter.throttled_s() == 1.5
    limiter.attach(4711)
    assert (leaf / "cgroup.procs").read_text() == "4711"
    limiter.close()
    limiter.close()
    assert limiter.granted_cores() == 1.0
    assert not leaf.exists()


class RefusingGroup(FakeKernelGroup):
    """Can be made, but takes no quota."""

    def _make(self, path):
        (super()._make(path) / "cpu.max").unlink()
        return path


def test_a_refused_quota_is_noticed_at_once(fake_v2, monkeypatch, caplog):
    monkeypatch.setattr(limits, "find_hierarchy", lambda: Hierarchy(2, fake_v2, fake_v2))
    monkeypatch.setattr(limits, "RunGroup", RefusingGroup)
    announced = []
    with pytest.raises(WorkerError, match=r"cpu\.max.*use the limiter 'duty-cycle'") as caught:
        open_limits("cgroup", 1 / 16, 1, announced.append)
    assert "\n" not in str(caught.value)
    opened = [open_limits("auto", 1 / 16, 1, announced.append) for _ in range(2)]
    assert {(each.kind, each.period_s) for each in opened} == {("duty-cycle", 0.02)}
    assert len(caplog.records) == 1, "it says so once"
    assert len(announced) == 6
    assert not any(path.exists() for path in announced)


@pytest.mark.parametrize("mounts", ["cgroup /proc cgroup rw,cpu 0 0", ""])
def test_without_rights_there_are_other_limiters(tmp_path, monkeypatch, mounts):
    def kind(limiter):
        return open_limits(limiter, 1 / 16, 1, lambda path: None).kind

    monkeypatch.setattr(cgroups, "PROC", write_proc(tmp_path / "proc", mounts, "1:cpu:/"))
    with pytest.raises(WorkerError, match="use the limiter 'duty-cycle'"):
        kind("cgroup")
    assert [kind("auto"), kind("duty-cycle"), kind("none")] == ["duty-cycle", "duty-cycle", "none"]


class SlowMachine:
    """A process that wants a whole CPU from a time on; waiting moves the clock on, to 500 ms."""

    def __init__(self, monkeypatch, cores, late_s, stops_s, from_s):
        # The limiter wakes up late, and it takes a while until a signal stops the process.
        self.now_s = self.cpu_s = 0.0
        self.stopped, self._late_s, self._stops_s, self._from_s = False, late_s, stops_s, from_s
        self.limiter = DutyCycleLimiter(0.01, cpus=1)
        self.limiter._cores = cores
        monkeypatch.setattr(limits.time, "monotonic", lambda: self.now_s)
        monkeypatch.setattr(limits, "process_cpu_s", lambda pid: self.cpu_s)
        monkeypatch.setattr(limits.os, "kill", self._kill)
        monkeypatch.setattr(self.limiter._changed, "wait", self._wait)

    def _kill(self, pid, number):
        self.stopped = number == limits.signal.SIGSTOP

    def _wait(self, seconds):
        seconds += self._late_s
        runs_s = seconds if not self.stopped else min(seconds, self._stops_s)
        self.now_s += seconds
        self.cpu_s += runs_s if self.now_s > self._from_s else 0.0
        if self.now_s >= 0.5:
            self.limiter.close()


@pytest.mark.parametrize(
    ("cores", "late_s", "stops_s", "from_s"),
    [(0.4, 0, 0, 0), (0.4, 0.0015, 0, 0), (0.4, 0.03, 0, 0), (0.4, 0, 0.0015, 0),
     (0.1, 0, 0.003, 0), (0.4, 0.0002, 0, 0.25)],
)  # fmt: skip
def test_the_duty_cycle_grants_the_quota_and_takes_back_what_was_too_much(
    monkeypatch, cores, late_s, stops_s, from_s
):
    machine = SlowMachine(monkeypatch, cores, late_s, stops_s, from_s)
    machine.limiter._enforce(1)
    granted_s = cores * (machine.now_s - from_s)  # what was not used is not saved
    off_s = 0.01 * cores + late_s + stops_s
    least_s = granted_s - off_s if late_s < 0.01 else 0.75 * granted_s
    assert least_s <= machine.cpu_s <= granted_s + off_s
    rest_s = machine.now_s - from_s - machine.cpu_s
    assert rest_s <= machine.limiter.throttled_s() + off_s <= rest_s + 50 * stops_s + 2 * off_s
    if not stops_s and not from_s:
        assert machine.limiter.throttled_s() == pytest.approx(rest_s)


@pytest.fixture
def idle_process():
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        yield process
        process.kill()


def test_the_duty_cycle_ends_with_its_process(idle_process):
    limiter = DutyCycleLimiter(0.01, cpus=1)
    limiter.apply(0.5)
    limiter.attach(idle_process.pid)
    idle_process.kill()
    idle_process.wait()
    limiter.close()
    assert not limiter._thread.is_alive()


def test_a_refused_thread_is_an_error_of_the_system(monkeypatch):
    monkeypatch.setattr(limits.threading.Thread, "start", Mock(side_effect=RuntimeError("no more")))
    limiter = DutyCycleLimiter(0.01, cpus=1)
    with pytest.raises(OSError, match="no more"):
        limiter.attach(1)
    limiter.close()


def test_a_recycled_process_id_is_not_hit(idle_process, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr("sponge_env.live.janitor.os.kill", lambda *_: pytest.fail("killed"))
        kill(idle_process.pid, "1")
        kill(idle_process.pid, "")
    kill(idle_process.pid, start_ticks(idle_process.pid))
    assert idle_process.wait(30) < 0
    assert start_ticks(idle_process.pid) == ""


def test_a_janitor_that_is_closed_cleans_up():
    with subprocess.Popen([sys.executable, "-S", "-c", "input()"], stdin=subprocess.PIPE) as left:
        janitor = Janitor()
        janitor.send("process", left.pid, start_ticks(left.pid))
        janitor.close()
        janitor.close()
        assert left.wait() == -signal.SIGKILL


def test_a_janitor_that_was_stopped_holds_nobody_up():
    janitor = Janitor()
    os.kill(janitor._process.pid, signal.SIGSTOP)
    for pid in range(10_000):  # more than a pipe holds
        janitor.send("process", pid, 0)
    janitor.close()
    assert janitor._process.returncode == -signal.SIGKILL


@pytest.mark.parametrize(
    ("files", "cores"),
    [({"cpu.max": "150000 100000\n", "cpu.stat": "throttled_usec 2000000"}, 1.5),
     ({"cpu.max": "max 100000\n", "cpu.stat": "throttled_usec 2000000"}, 4.0),
     ({"cpu.cfs_quota_us": "50000\n", "cpu.cfs_period_us": "100000\n"}, 0.5),
     ({"cpu.cfs_quota_us": "-1\n", "cpu.cfs_period_us": "100000\n"}, 4.0),
     ({"cpu.max": "900000 100000\n"}, 4.0), ({}, 4.0)],
)  # fmt: skip
def test_a_limit_from_outside_is_read_and_never_set(files, cores, tmp_path, monkeypatch):
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(cgroups, "find_hierarchy", lambda: Hierarchy(2, tmp_path, tmp_path))
    limiter = open_limits("outside", 1 / 16, 4, announce=lambda path: None).limiter()
    limiter.attach(1)
    limiter.apply(0.25)
    assert limiter.granted_cores() == cores
    assert limiter.throttled_s() == 0.0  # what came before it is another's
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == files
    if "cpu.stat" in files:
        (tmp_path / "cpu.stat").write_text("throttled_usec 2500000\n")
        assert limiter.throttled_s() == 0.5
