"""Triton's extension ``system_shared_memory``: tensors in POSIX shared memory of this machine.

It is read and written like a file, never mapped: a client that cuts its own would end the server.
"""

import os
import stat
import weakref
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, NamedTuple, TypeGuard

from sponge_env.serve.interface import Status
from sponge_env.serve.wire.outcomes import WireError
from sponge_env.serve.wire.tensors import brief

REGION, SIZE, OFFSET = (f"shared_memory_{what}" for what in ("region", "byte_size", "offset"))
FOLDER = "/dev/shm/"  # Where Linux has POSIX shared memory, by its keys
MAX_REGIONS, MAX_NAME = 256, 255


class _Region:
    def __init__(self, name: str, key: str, offset: int, byte_size: int) -> None:
        self.name, self.key, self.offset, self.byte_size = name, key, offset, byte_size
        flags = os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        self.file = os.open(FOLDER + key.removeprefix("/"), flags)
        weakref.finalize(self, os.close, self.file).atexit = False  # once nobody uses it
        found = os.fstat(self.file)
        if not stat.S_ISREG(found.st_mode):
            raise ValueError("it is not a regular file")
        if offset + byte_size > found.st_size:
            raise ValueError(f"it has fewer than {offset + byte_size} bytes")


class SharedTensor(NamedTuple):
    """Where a tensor lies in a region, in bytes."""

    region: _Region
    offset: int
    size: int

    def read(self) -> bytes:
        """Return a copy of the tensor; a WireError if the memory was cut."""
        data = os.pread(self.region.file, self.size, self.region.offset + self.offset)
        if len(data) < self.size:
            raise WireError(f"the shared memory of {brief(self.region.name)} was cut")
        return data

    def write(self, data: bytes) -> None:
        """Write a tensor of an answer; a WireError if there is no room."""
        written, end = 0, self.region.offset + self.offset + len(data)
        if len(data) <= self.size and end <= os.fstat(self.region.file).st_size:
            with suppress(OSError):  # the memory of the machine is full
                written = os.pwrite(self.region.file, data, self.region.offset + self.offset)
        if written < len(data):
            text = f"{len(data)} bytes of an answer do not fit into {brief(self.region.name)}"
            raise WireError(f"{text}, where it has {self.size}", ended=Status.ANSWERED)


class Regions:
    """Shared memory that clients have registered by name; what they do wrong is a WireError."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes  # Of a tensor
        self._regions: dict[str, _Region] = {}

    def register(self, name: str, key: object, offset: object, byte_size: object) -> dict[str, Any]:
        """Open a part of what ``shm_open`` calls ``key``; return the answer, which is empty."""
        if not 0 < len(name) <= MAX_NAME:
            raise WireError(f"the name of a region has at most {MAX_NAME} characters")
        if not (isinstance(key, str) and _is_count(offset) and _is_count(byte_size)):
            raise WireError("a region has a key, an offset and a byte_size")
        if name in self._regions:
            raise WireError(f"{brief(name)} is registered already")
        if len(self._regions) >= MAX_REGIONS:
            raise WireError(f"{MAX_REGIONS} regions are registered, which is the most")
        try:
            if "/" in key[1:]:  # which would lead to other folders
                raise ValueError("its key is not a name")
            self._regions[name] = _Region(name, key, offset, byte_size)
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            raise WireError(f"cannot use shared memory {brief(key)}: {reason}") from None
        return {}

    def unregister(self, name: str = "") -> dict[str, Any]:
        """Forget a region, or all without a name; return the answer, which is empty."""
        for each in [name] if name else list(self._regions):
            self._regions.pop(each, None)
        return {}

    def status(self, name: str = "") -> list[dict[str, Any]]:
        """Return what is registered, by a name or at all."""
        found = [self._named(name)] if name else list(self._regions.values())
        fields = "name", "key", "offset", "byte_size"
        return [{field: getattr(each, field) for field in fields} for each in found]

    def place(self, parameters: Mapping[str, Any], tensor: str) -> SharedTensor | None:
        """Return where a tensor lies by its parameters, None if in no region."""
        if REGION not in parameters:
            return None
        region = self._named(parameters[REGION])
        offset, size = parameters.get(OFFSET, 0), parameters.get(SIZE)
        if not (_is_count(offset) and _is_count(size) and size <= self._max_bytes):
            text = f"{SIZE} and {OFFSET} of {tensor!r} are numbers of bytes, at most"
            raise WireError(f"{text} {self._max_bytes} of a tensor")
        if offset + size > region.byte_size:
            raise WireError(f"{tensor!r} reaches beyond the region {brief(region.name)}")
        return SharedTensor(region, offset, size)

    def _named(self, name: object) -> _Region:
        region = self._regions.get(name) if isinstance(name, str) else None
        if region is None:
            raise WireError(f"there is no region {brief(name)}; register it first", 404)
        return region


def _is_count(value: object) -> TypeGuard[int]:
    return type(value) is int and 0 <= value < 2**62
