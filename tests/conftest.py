"""The same examples in every run; ``HYPOTHESIS_PROFILE=explore`` looks for new ones."""

import os
import signal
import sys
from pathlib import Path

import pytest
from hypothesis import Phase, settings
from unit_runs import Inline

from sponge_env.live import bench, calibration, cpus
from sponge_env.live.protocol import LiveConfig

SAME = {"derandomize": True, "database": None, "deadline": None}
settings.register_profile("repeatable", **SAME)
# Says that there is a failing example, and not the smallest one.
settings.register_profile("mutants", **SAME, phases=(Phase.explicit, Phase.generate))
settings.register_profile("explore", max_examples=1000, deadline=None)
settings.register_profile("fuzz", max_examples=100_000 // 8, database=None, deadline=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "repeatable"))

# Else each process that a test starts compiles the source of all that it imports, for seconds.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False

# A shell's background jobs ignore the first, what nohup starts the second, and so would children.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)


@pytest.fixture(scope="session", autouse=True)
def _logs_of_sb3(tmp_path_factory):
    """Its loggers make a folder in the temporary one of the machine if nobody says where."""
    os.environ.setdefault("SB3_LOGDIR", str(tmp_path_factory.mktemp("sb3")))


# Tests of the real worker wait for each other where several run; no other test waits for them.
cpus.RESERVATIONS.patient = True


@pytest.fixture(scope="session")
def _own_locks(tmp_path_factory):
    return tmp_path_factory.mktemp("locks")


@pytest.fixture(autouse=True)
def _locks_of_the_machine(request, _own_locks, monkeypatch):
    if request.node.get_closest_marker("live") is None:
        monkeypatch.setattr(cpus, "LOCK_FOLDER", _own_locks)


def _measure_less(patch):
    """Calibrate on fewer replicas, pauses, runs and cells: tests need no more precision."""
    for name, value in {"CONTENDING": 2, "PAUSED_RUNS": 8}.items():
        patch.setattr(bench, name, value)
    patch.setattr(bench, "_powers_of_two", lambda n: sorted({n, *(min(n, 4**i) for i in range(3))}))
    patch.setattr(calibration, "WORK_RUNS", 4)


@pytest.fixture
def quick_bench(monkeypatch):
    _measure_less(monkeypatch)


@pytest.fixture(scope="session")
def machine_profile():
    """Return this machine's profile, measured once for all live tests."""
    with pytest.MonkeyPatch.context() as patch:
        _measure_less(patch)
        config = LiveConfig(batch_max=8, cores_max=8, core_unit=1 / 8)
        (profile,) = calibration.calibrate_all([config], seconds=1)
    return profile


@pytest.fixture(scope="session")
def quick_rules(tmp_path_factory):
    """Keep measured rules out of the user's cache, and short episodes in this process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("agents.learn.programs.cache_dir", lambda: tmp_path_factory.getbasetemp())
        # Episodes this short are over before a process has begun.
        patch.setattr("agents.learn.programs.Processes", Inline)
        yield


@pytest.fixture
def inline(monkeypatch):
    """Run the tasks of a command in this process; ``test_suite`` has some with processes."""
    monkeypatch.setattr("sponge_env.run.cluster.Processes", Inline)


@pytest.fixture(scope="session")
def files(tmp_path_factory):
    from drawn_scenarios import write_files

    return write_files(tmp_path_factory.mktemp("drawn"))


@pytest.fixture
def own_folder(tmp_path, monkeypatch):
    """Work in an empty folder, from which modules may be imported in this test only."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    return tmp_path


@pytest.fixture
def refused(own_folder, capsys):
    """Run a command that must end with one sentence and write nothing here; return the sentence."""

    def there():
        return {path for path in Path().rglob("*") if "__pycache__" not in path.parts}

    def run(main, line):
        before = there()
        assert main(line.split()) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: ")
        assert error.count("\n") == 1
        assert there() == before, "something was written"
        return error

    return run


@pytest.fixture(scope="module")
def server(request):
    """Serve, with a fake engine and what the module of the tests says in ``OPTIONS``."""
    from served import running

    with running(**getattr(request.module, "OPTIONS", {})) as found:
        yield found


@pytest.fixture
def unpainted(monkeypatch):
    """Lay pictures out without painting them, which takes longer than a short evaluation."""
    for name in ("page", "drawing"):  # one takes it from the other when it is imported
        monkeypatch.setattr(f"sponge_env.results.{name}.png", lambda figure: b"no picture")


@pytest.fixture(scope="session")
def trained(tmp_path_factory, quick_rules):
    import tiny_policies

    from agents.learn import phased

    folder = tmp_path_factory.mktemp("trained")
    phased.train(tiny_policies.plan(folder), tiny_policies.CONFIG)
    return folder
