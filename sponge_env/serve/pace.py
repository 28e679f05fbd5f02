"""How fast batches run of late, relative to what the profile says of an undisturbed machine."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from sponge_env.core.records import Arrays
from sponge_env.interfaces import FloatArray

MEMORY = 1 / 16
"""Weight of the newest batch."""
FORGOTTEN = 1 / 8
"""Of what is known, in an interval of which no batch tells anything."""
SLOWEST, FASTEST = 3.0, 0.5
"""Beyond these something else than the machine's speed was measured, such as a debugger."""


class Pace:
    """The pace of one stage: mean and mean deviation of its batches' time over the usual.

    Under a quota only batches that had a whole CPU tell how fast the machine is.
    """

    def __init__(self, model: Any, arrays: Arrays) -> None:
        """Read the tables of a stage."""
        self._limited = bool(model["limited"])
        self._table_s = batch_table_s(model, arrays)
        self._whole_cores = round(1 / float(model["core_unit"]))
        self._mean, self._deviation = 1.0, 0.0
        self._heard = False

    @property
    def cheapest_core_s(self) -> float:
        """Least work of a task, whatever variant, batch and cores it has."""
        _, batch, cores = self._table_s.shape
        core_s = self._table_s * np.arange(1, cores + 1) / np.arange(1, batch + 1)[:, None]
        return float(core_s.min())

    @property
    def slow(self) -> float:
        """How long a batch takes that is slower than most, relative to the usual."""
        return self._mean + self._deviation

    def pass_interval(self) -> None:
        """Forget some of it, if nothing was heard since the last time.

        Otherwise a machine that was slow once, so that all is given up, would stay slow.
        """
        if not self._heard:
            self._mean += FORGOTTEN * (1.0 - self._mean)
            self._deviation -= FORGOTTEN * self._deviation
        self._heard = False

    def note(self, variant: int, size: int, cores: int, took_s: float) -> None:
        """Take in what a batch took that had so many cores throughout."""
        if self._limited and cores < self._whole_cores:
            return
        self._heard = True
        usual_s = self._table_s[variant, size - 1, 0 if self._limited else cores - 1]
        ratio = min(SLOWEST, max(FASTEST, took_s / float(usual_s)))
        self._deviation += MEMORY * (abs(ratio - self._mean) - self._deviation)
        self._mean += MEMORY * (ratio - self._mean)


def batch_table_s(model: Any, arrays: Arrays) -> FloatArray:
    """Return (variants, batch, cores) how long batches of a stage take at least.

    Under a quota that is their CPU time, on however few cores: there is one column then.
    """
    variants, limits = int(model["variants"]), model["limits"]
    cores = 1 if model["limited"] else int(limits["cores"])
    shape = variants, int(limits["batch"]), cores
    begin = int(model["work_at" if model["limited"] else "served_at"])
    numbers: NDArray[np.float64] = arrays.numbers[begin : begin + int(np.prod(shape))]
    return numbers.reshape(shape).copy()
