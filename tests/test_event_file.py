"""The files that TensorBoard reads."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.tensorflow_stub.pywrap_tensorflow import crc32c as tensorboards

from sponge_env.event_file import EventFile, crc32c


def test_a_known_checksum() -> None:
    assert crc32c(b"123456789") == 0xE3069283  # RFC 3720
    assert crc32c(b"") == 0


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 8, 2047, 2048, 2049, 2051, 2052, 6000])
def test_checksums_are_those_of_tensorboard(size: int) -> None:
    data = np.random.default_rng(size).bytes(size)
    assert crc32c(data) == tensorboards(data)


def test_tensorboard_reads_back_what_was_added(tmp_path: Path) -> None:
    file = EventFile(tmp_path / "run")
    for step in range(3):
        file.add(Event(step=step, wall_time=1.0 + step).SerializeToString())
    file.close()
    (path,) = (tmp_path / "run").iterdir()
    assert [event.step for event in EventFileLoader(str(path)).Load()] == [0, 1, 2]


def test_what_was_added_is_soon_in_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sponge_env.event_file.FLUSH_EVERY_S", 0.0)
    file = EventFile(tmp_path)
    (path,) = tmp_path.iterdir()
    before = path.stat().st_size
    file.add(b"abc")
    assert path.stat().st_size == before + 8 + 4 + 3 + 4
    file.close()
