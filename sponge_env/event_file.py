"""Event files of TensorBoard: records with checksums, as TensorFlow lays them out.

TensorBoard's own writer computes the checksums byte by byte in Python, which takes longer than
all the rest of a simulated episode.
"""

from __future__ import annotations

import itertools
import os
import socket
import struct
import time
from functools import cache, lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

FLUSH_EVERY_S = 1.0
"""Wall time after which records are in the file, so that a killed process loses few."""

_CHUNK = 2048
"""Bytes whose checksum is looked up at once."""
_POLYNOMIAL = 0x82F63B78
"""Castagnoli's, its bits in reverse order."""
_PLACES = np.arange(_CHUNK)[::-1]
_NUMBERS = itertools.count()


class EventFile:
    """One run's file; records are appended."""

    def __init__(self, folder: Path) -> None:
        """Make a file of a new name in a folder, which is made if need be."""
        folder.mkdir(parents=True, exist_ok=True)
        parts = f"{int(time.time()):010d}", socket.gethostname(), os.getpid(), next(_NUMBERS)
        name = ".".join(map(str, parts))
        self._file = (folder / f"events.out.tfevents.{name}").open("xb")
        self._due_s = 0.0

    def add(self, record: bytes) -> None:
        """Append one record; ``length, checksum, record, checksum``."""
        self._file.write(_header(len(record)) + record + _check(record))
        if time.monotonic() >= self._due_s:
            self._file.flush()
            self._due_s = time.monotonic() + FLUSH_EVERY_S

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def crc32c(data: bytes) -> int:
    """Return the checksum CRC-32C.

    It is linear: what a byte adds depends on its value and on how many bytes follow it. What
    came before a chunk is added to the first bytes of it.
    """
    state = 0xFFFFFFFF
    for start in range(0, len(data), _CHUNK):
        chunk = np.frombuffer(data[start : start + _CHUNK], np.uint8).copy()
        head = min(4, chunk.size)
        chunk[:head] ^= np.frombuffer(struct.pack("<I", state), np.uint8)[:head]
        added = _table()[_PLACES[_CHUNK - chunk.size :], chunk]
        state = int(np.bitwise_xor.reduce(added)) ^ (state >> 8 * head)
    return state ^ 0xFFFFFFFF


@cache
def _table() -> NDArray[np.uint32]:
    """Return what each byte adds, shape (bytes that follow, 256)."""
    table = np.zeros((_CHUNK, 256), np.uint32)
    row: NDArray[np.uint32] = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        row = (row >> np.uint32(1)) ^ (row & np.uint32(1)) * np.uint32(_POLYNOMIAL)
    table[0] = row
    for place in range(1, _CHUNK):
        row = (row >> np.uint32(8)) ^ table[0, row & 0xFF]
        table[place] = row
    return table


def _check(data: bytes) -> bytes:
    """Return a checksum as it stands beside data, which may hold checksums itself."""
    check = crc32c(data)
    return struct.pack("<I", (((check >> 15) | (check << 17)) + 0xA282EAD8) & 0xFFFFFFFF)


@lru_cache(maxsize=100)
def _header(size: int) -> bytes:
    length = struct.pack("<Q", size)
    return length + _check(length)
