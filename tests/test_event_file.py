"""The files that TensorBoard reads."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_file_loader import RawEventFileLoader
from tensorboard.compat.proto.event_pb2 import Event

from sponge_env.run.tensorboard import EventFile


@pytest.mark.parametrize("size", [0, 1, 2, 3, 4, 5, 8, 2047, 2048, 2049, 2051, 2052, 6000])
def test_tensorboard_reads_back_what_was_added(tmp_path: Path, size: int) -> None:
    content = np.random.default_rng(size).bytes(size)
    file = EventFile(tmp_path / "run")
    added = [Event(step=step, wall_time=1.0 + step, graph_def=content) for step in range(3)]
    for event in added:
        file.add(event)
    file.close()
    (path,) = (tmp_path / "run").iterdir()
    first, *read = RawEventFileLoader(str(path)).Load()  # which compares the checksums
    assert Event.FromString(first).file_version == "brain.Event:2"
    assert [Event.FromString(event) for event in read] == added


def test_what_was_added_is_soon_in_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sponge_env.run.tensorboard.FLUSH_EVERY_S", 0.0)
    file = EventFile(tmp_path)
    (path,) = tmp_path.iterdir()
    before, event = path.stat().st_size, Event(step=1)
    file.add(event)
    assert path.stat().st_size == before + 8 + 4 + len(event.SerializeToString()) + 4
    file.close()
