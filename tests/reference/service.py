"""How long a batch takes on a simulated replica, also when its cores change meanwhile.

Two models. ``ProfileService`` charges the measured l(b, c): right for whole cores, as in
the paper. :class:`~reference.bucket.QuotaBucket` repeats the kernel's CPU bandwidth
control.
"""

from __future__ import annotations

from typing import Protocol

from sponge_env.interfaces import FloatArray


class Service(Protocol):
    """The batch on one replica, and the replica's counters."""

    finish_s: float
    """When the batch, or the loading, ends if nothing changes."""
    used_core_s: float
    """Core unit-seconds used so far."""
    throttled_s: float
    """Time spent stopped by the quota so far."""

    def load(self, now_s: float, cold_start_s: float, crowd: int) -> None:
        """Begin to load the model, as one of ``crowd`` replicas that do so."""

    def start(self, now_s: float, size: int, noise: float) -> None:
        """Begin a batch that takes ``noise`` times the usual work."""

    def advance(self, now_s: float) -> None:
        """Let the batch and the counters progress to ``now_s``."""

    def resize(self, now_s: float, cores: int) -> None:
        """Change the cores; what is left of the batch goes on at the new speed."""

    def share(self, now_s: float, cores: float) -> None:
        """Get no more than so many core units until this is called again, or a resize."""


class ProfileService:
    """Every batch takes l(b, c); a resize rescales the time that is left.

    To load the model takes its time on any cores, and is not counted as use of them.
    """

    def __init__(self, latency_s: FloatArray, cores: int) -> None:
        """Start idle.

        Args:
            latency_s: (batch_max, cores_max) seconds.
            cores: Core units at first.
        """
        self._latency_s = latency_s
        self._cores = cores
        self._size = 0  # 0 while loading
        self._since_s = 0.0
        self.finish_s = 0.0
        self.used_core_s = 0.0
        self.throttled_s = 0.0

    def load(self, now_s: float, cold_start_s: float, crowd: int) -> None:
        """Begin to load the model."""
        self._size, self.finish_s = 0, now_s + cold_start_s

    def start(self, now_s: float, size: int, noise: float) -> None:
        """Begin a batch."""
        self._size, self._since_s = size, now_s
        self.finish_s = now_s + float(self._latency_s[size - 1, self._cores - 1]) * noise

    def advance(self, now_s: float) -> None:
        """Progress to ``now_s``."""
        to_s = min(now_s, self.finish_s)
        if self._size and to_s > self._since_s:
            self.used_core_s += (to_s - self._since_s) * self._cores
            self._since_s = to_s

    def resize(self, now_s: float, cores: int) -> None:
        """Change the cores."""
        self.advance(now_s)
        if self._size and self.finish_s > now_s:
            old, new = self._latency_s[self._size - 1, [self._cores - 1, cores - 1]]
            self.finish_s = now_s + (self.finish_s - now_s) * float(new / old)
        self._cores = cores

    def share(self, now_s: float, cores: float) -> None:
        """Do nothing: whole cores are a replica's own."""
