"""A worker on a clock of its own, for tests of the live system without processes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from reference.worker import SimulatedWorker

from sponge_env.interfaces import Allocation, Batch, Completion


class FakeWorker(SimulatedWorker):
    """The reference's replicas, some of which die, and a diary of what was asked for."""

    limiter = "fake"

    def __init__(
        self,
        *args: Any,
        crashes_s: Sequence[float] = (),
        spared: int = -1,
        held_s: float = 0.0,
        watch: Callable[[], None] = lambda: None,
        **settings: Any,
    ) -> None:
        """Start at time 0.

        Args:
            args: Those of the reference's worker, as are further ``settings``.
            crashes_s: When a replica dies, if one serves then; ascending.
            spared: The replica that never dies.
            held_s: What :meth:`release` says.
            watch: Called before every batch and every wait.
        """
        super().__init__(*args, **settings)
        self._crashes_s = list(crashes_s)
        self._spared = spared
        self._held_s = held_s
        self._watch = watch
        self.diary: list[str] = []
        """What was called, waits and looks apart."""
        self.batches: list[Batch] = []

    def start(self, batch: Batch) -> None:
        self._watch()
        self.batches.append(batch)
        super().start(batch)

    def wait(self, until_s: float) -> Sequence[Completion]:
        self._watch()
        crash_s = self._crashes_s[0] if self._crashes_s else float("inf")
        completions = super().wait(min(until_s, crash_s))
        if self.now() < crash_s:
            return completions
        self._crashes_s.pop(0)
        try:
            self.crash(self._spared)
        except RuntimeError:  # none serves
            self.diary.append("spared")
        return completions

    def resize(self, allocation: Allocation) -> None:
        self.diary.append(f"resize {allocation.cores} x {allocation.replicas}")
        super().resize(allocation)

    def hold(self) -> None:
        self.diary.append("hold")

    def release(self) -> float:
        self.diary.append("release")
        return self._held_s

    def close(self) -> None:
        self.diary.append("close")
