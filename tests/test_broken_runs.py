"""Runs whose disk, folder or terminal goes away: one sentence, and what was measured is shown."""

import ctypes
import errno
import gzip
import json
import os
import signal
import sys
from pathlib import Path

import pytest
from project import ROOT, python

import evaluate
from sponge_env import cli
from sponge_env.errors import RunDirectoryError
from sponge_env.run import tensorboard
from sponge_env.utils.files import read_bytes, replacing, write_json

pytestmark = pytest.mark.usefixtures("unpainted", "own_folder")

RUN = "--agent static-8 --duration 20 --seeds 2 --run-dir run".split()


def full(*_, **__):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


class FullDisk:
    """An event file's, from some record on."""

    def __init__(self, file, records):
        self._file, self._left = file, records

    def write(self, data):
        self._left -= 1
        if self._left < 0:
            full()
        return int(self._file.write(data))

    def flush(self):
        self._file.flush()

    def close(self):
        self._file.close()
        full()


def failed(capsys, argv):
    """Run an evaluation that must fail; return what it printed, and its one sentence."""
    assert evaluate.main(argv) == cli.BAD_INPUT
    shown = capsys.readouterr()
    sentences = [line for line in shown.err.splitlines() if line.startswith("error: ")]
    assert len(sentences) == 1
    assert "Traceback" not in shown.err
    return shown.out, sentences[0]


def kept_episodes(run=Path("run")):
    (file,) = run.glob("results/*/*.json")
    return json.loads(file.read_text())["episodes"]


def test_a_full_disk_for_tables_loses_no_summary(monkeypatch, capsys):
    monkeypatch.setattr("pyarrow.parquet.write_table", full)
    out, said = failed(capsys, RUN)
    assert "No space left on device" in said
    assert "static-8" in out
    assert [episode["partial"] for episode in kept_episodes()] == [False]
    assert not [*Path("run").rglob("*.partial")]


def test_an_interrupt_within_a_table_has_the_episode_played_again(monkeypatch):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("pyarrow.parquet.write_table", interrupt)
        assert evaluate.main(RUN) == cli.INTERRUPTED
    assert evaluate.main(RUN) == 0
    assert len([*Path("run").rglob("*.parquet")]) == 4  # intervals and requests of two seeds


@pytest.mark.parametrize("records", [1, 3, 1000])
def test_a_full_disk_for_tensorboard_ends_an_episode_with_its_summary(monkeypatch, capsys, records):
    opened = tensorboard.EventFile.__init__

    def on_a_full_disk(self, folder):
        opened(self, folder)
        self._file = FullDisk(self._file, records)

    monkeypatch.setattr(tensorboard.EventFile, "__init__", on_a_full_disk)
    out, said = failed(capsys, RUN)
    assert "tfevents" in said
    assert "No space left on device" in said
    if records > 1:  # else it was full before anything was measured
        assert "static-8" in out
        assert kept_episodes()[0]["duration_s"] == 20, "seeds are played before they are shown"


REMOVER = """
import shutil
from sponge_env.interfaces import Allocation

class Remover:
    def reset(self, spec, seed):
        self.decisions = 0

    def decide(self, view):
        self.decisions += 1
        if self.decisions == 5:
            shutil.rmtree("run")
        return Allocation(cores=8, batch=1)
"""


def test_a_folder_that_is_removed_meanwhile_loses_no_summary(capsys):
    Path("remover_of_runs.py").write_text(REMOVER)
    argv = ["remover_of_runs:Remover" if word == "static-8" else word for word in RUN]
    argv[argv.index("2")] = "1"
    out, said = failed(capsys, argv)
    assert "was removed while the run wrote into it" in said
    assert "remover_of_runs:Remover" in out
    assert (len(kept_episodes()), sys.path[-1]) == (1, str(Path.cwd()))


def test_what_lies_in_the_working_folder_is_not_run():
    for name in ("coverage", "pandas", "agents", "psutil"):
        Path(f"{name}.py").write_text("raise SystemExit('it was run')")
    run = python(ROOT / "evaluate.py", *RUN)
    assert (run.returncode, "it was run" in run.stderr + run.stdout) == (0, False)


def test_a_link_in_place_of_the_partial_file_is_not_followed():
    Path("precious").write_text("kept")
    Path("result.json.partial").symlink_to("precious")
    with replacing(Path("result.json")) as partial:
        partial.write_text("new")
    assert (Path("precious").read_text(), Path("result.json").read_text()) == ("kept", "new")
    Path("folder.json.partial").mkdir()
    with pytest.raises(RunDirectoryError, match=r"cannot write 'folder\.json'"):
        write_json(Path("folder.json"), {})


@pytest.mark.parametrize("content", [b"x" * 2000, None])
def test_more_than_fits_is_refused(monkeypatch, content):
    monkeypatch.setattr("sponge_env.utils.files.MAX_BYTES", 1000)
    Path("big").write_bytes(content or gzip.compress(bytes(1001)))
    with pytest.raises(ValueError, match=r"it holds more than 0\.001 MB"):
        read_bytes(Path("big"))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_second_signal_interrupts_nothing(number, capsys):
    before = signal.getsignal(number)
    with cli.terminate_like_interrupt():
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), number)
        for again in cli.ENDING:
            os.kill(os.getpid(), again)
    assert capsys.readouterr().err.count("what was measured is being kept\n") == 3
    assert signal.getsignal(number) is before


def test_a_signal_within_c_code_is_not_lost():
    """As while numba compiles, which calls Python from C."""
    called_from_c = ctypes.CFUNCTYPE(None)(lambda: os.kill(os.getpid(), signal.SIGTERM))

    def interrupted():
        called_from_c()
        signal.pause()

    with cli.terminate_like_interrupt(), pytest.raises(KeyboardInterrupt):
        interrupted()


def test_a_signal_that_was_ignored_stays_so():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with cli.terminate_like_interrupt():
            os.kill(os.getpid(), signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, before)
