"""What a replica's process and the janitor may not do any more, and what they still can."""

import ctypes
import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import busy_model
import pytest
from machine import needs_two_cpus
from test_models import write_model
from test_real_worker import run

from sponge_env.interfaces import Allocation
from sponge_env.live.local import SANDBOX, LocalLauncher
from sponge_env.live.protocol import LiveConfig
from sponge_env.live.worker import LiveWorker

PROBE = """
    import ctypes, json, os, socket, subprocess, sys
    from pathlib import Path
    def outcome(action, *arguments):
        try:
            action(*arguments)
        except OSError as error:
            return error.strerror
        return "done"
    folder = Path(__file__).parent
    print(json.dumps({
        "arguments": sys.argv[1:],
        "status": Path("/proc/self/status").read_text(),
        "write": outcome(Path(__file__).write_text, ""),
        "make": outcome((folder / "new").touch),
        "remove": outcome((folder / "old").rmdir),
        "program": outcome(subprocess.run, ["true"]),
        "tcp": outcome(socket.socket, socket.AF_INET),
        "unix": outcome(socket.socket, socket.AF_UNIX),
        "signal": outcome(os.kill, os.getppid(), 0),
        "memory": outcome(open, f"/proc/{os.getppid()}/mem", "rb"),
        "read": outcome(Path(__file__).read_bytes),
        "silence": outcome(open, os.devnull, "w"),
        "pair": outcome(socket.socketpair),
        "share": outcome(os.ftruncate, os.memfd_create("shared"), 4096),
    }))
"""
LANDLOCK = ctypes.CDLL(None).syscall(444, None, ctypes.c_ulong(0), ctypes.c_ulong(1))
needs_landlock = pytest.mark.skipif(LANDLOCK < 6, reason="needs Landlock of Linux 6.12")


def fields(status):
    return dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)


def assert_unprivileged(status):
    assert (status["NoNewPrivs"], status["Seccomp"]) == ("1", "2")
    for held in ("CapEff", "CapPrm"):
        assert int(status[held], 16) in ((0, 2) if os.geteuid() == 0 else (0,))
    assert int(status["CapInh"], 16) == int(status["CapAmb"], 16) == 0
    if os.geteuid() == 0:
        assert int(status["CapBnd"], 16) == 0


def probed(folder, task):
    (folder / "old").mkdir()
    script = folder / "probe.py"
    script.write_text(textwrap.dedent(PROBE))
    command = [sys.executable, "-P", str(SANDBOX), task, str(script), "one", "two"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert not ended.stderr
    found = json.loads(ended.stdout)
    assert found["arguments"] == ["one", "two"]
    assert_unprivileged(fields(found["status"]))
    assert {found[each] for each in ("tcp", "unix")} == {"Operation not permitted"}
    assert {found[each] for each in ("read", "silence", "pair", "share")} == {"done"}
    return found


@needs_landlock
def test_who_computes_can_change_nothing_of_others(tmp_path):
    found = probed(tmp_path, "computes")
    forbidden = {found[each] for each in ("write", "make", "remove", "program", "memory")}
    assert forbidden == {"Permission denied"}
    assert found["signal"] == "Operation not permitted"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["old", "probe.py"]


def test_who_cleans_can_kill_and_remove(tmp_path):
    found = probed(tmp_path, "cleans")
    assert (found["signal"], found["remove"]) == ("done", "done")


@pytest.mark.live
def test_no_thread_of_a_replica_has_privileges_nor_its_janitor(monkeypatch):
    monkeypatch.setenv("SPONGE_TOKEN", "secret")
    launcher = LocalLauncher([busy_model.config()])
    with LiveWorker(busy_model.config(), launcher=launcher) as worker:
        pids = worker.replicas[0].pid, launcher.janitor._process.pid
        threads = [thread for pid in pids for thread in Path(f"/proc/{pid}/task").iterdir()]
        assert len(threads) >= 2
        for thread in threads:
            assert_unprivileged(fields((thread / "status").read_text()))
        assert int(fields(Path(f"/proc/{pids[0]}/status").read_text())["CapPrm"], 16) == 0
        assert not [pid for pid in pids if b"secret" in Path(f"/proc/{pid}/environ").read_bytes()]
        assert Path(f"/proc/{pids[0]}/oom_score_adj").read_text() == "1000\n"


@pytest.mark.live
@needs_two_cpus
@pytest.mark.skipif(os.geteuid() != 0, reason="only root may read others' files at all")
@pytest.mark.parametrize("cores", [1, 2])
def test_a_model_in_anothers_home_is_made_ready_for_other_threads(cores, tmp_path):
    model = write_model(tmp_path / "own.onnx")
    os.chown(tmp_path, 65534, 65534)
    tmp_path.chmod(0o700)
    whole = {"cores_max": 2, "core_unit": 1.0, "limiter": "none"}
    config = LiveConfig(model=str(model), batch_max=2, initial=Allocation(cores, 2), **whole)
    with LiveWorker(config) as worker:
        for now in (cores, 3 - cores):
            worker.resize(Allocation(now, 2))
            assert run(worker, 2).ok
        for thread in Path(f"/proc/{worker.replicas[0].pid}/task").iterdir():
            assert int(fields((thread / "status").read_text())["CapPrm"], 16) == 0
