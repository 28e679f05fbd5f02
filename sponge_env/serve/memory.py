"""How much memory the requests of a server hold, HTTP's and gRPC's together."""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from numpy.typing import NDArray

from sponge_env.serve.wire.outcomes import WireError

FULL = "too many bodies at a time"


class Memory:
    """Counts bytes; to be asked in the loop's thread."""

    def __init__(self, most_bytes: int) -> None:
        self.most_bytes = most_bytes
        self.released: deque[int] = deque()
        """Sizes of what nobody uses any more; any thread may be the last to use it."""
        self._held_bytes = 0

    @property
    def held_bytes(self) -> int:
        """Bytes that are held now."""
        while self.released:
            self._held_bytes -= self.released.popleft()
        return self._held_bytes

    def hold(self, size: int) -> bool:
        """Count so many bytes if there is room for them; who does gives them back."""
        if self.held_bytes + size > self.most_bytes:
            return False
        self._held_bytes += size
        return True

    def release_with(self, array: NDArray[Any], size: int) -> None:
        """Give bytes that are held back once nobody uses an array, or a view on it."""
        weakref.finalize(array, self.released.append, size).atexit = False

    def keep(self, array: NDArray[Any]) -> None:
        """Count an array as long as it is used; a WireError if there is no room for it."""
        if not self.hold(array.nbytes):
            raise WireError(FULL, 503)
        self.release_with(array, array.nbytes)

    @contextmanager
    def holding(self, size: int) -> Iterator[None]:
        """Count so many bytes within the context; a WireError if there is no room for them."""
        if size > self.most_bytes:  # to try again would be in vain
            raise WireError("to read this request takes more memory than there is for all", 413)
        if not self.hold(size):
            raise WireError(FULL, 503)
        try:
            yield
        finally:
            self.released.append(size)


class HeldBytes:
    """Bytes that one request holds, more and more; given back once nobody uses this any more."""

    def __init__(self, memory: Memory) -> None:
        self._memory, self._size = memory, 0

    def more(self, size: int) -> bool:
        """Count so many bytes more if there is room for them."""
        held = self._memory.hold(size)
        self._size += size * held
        return held

    def release_with(self, array: NDArray[Any]) -> None:
        """Give all of it back once nobody uses an array, or a view on it."""
        self._memory.release_with(array, self._size)
        self._size = 0

    def __del__(self) -> None:
        """Give all of it back, from whatever thread."""
        self._memory.released.append(self._size)
