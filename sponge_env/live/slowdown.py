"""How slow recent real batches were: the pace that the drop rule ``unmeetable`` assumes."""

import math
from typing import Any

from sponge_env.arrays import FloatArray
from sponge_env.core.records import Arrays

MEMORY = 1 / 16  # Weight of the newest batch
FORGOTTEN = 1 / 8  # Share of the estimate that is given up in an interval without a measured batch
MAX_RATIO, MIN_RATIO = 3.0, 0.5  # What lies beyond is no matter of speed but, say, a debugger


class Slowdown:
    """Mean and mean deviation of the batches' time in one stage, relative to the profile."""

    # The profile is of an undisturbed machine. Under a quota only batches on a whole CPU count.

    def __init__(self, model: Any, arrays: Arrays) -> None:
        self._limited = bool(model["limited"])
        # Under a quota it is the CPU time, on however few cores: there is one column then.
        cores = 1 if self._limited else int(model["limits"]["cores"])
        shape = int(model["variants"]), int(model["limits"]["batch"]), cores
        begin = int(model["work_at" if self._limited else "served_at"])
        numbers = arrays.numbers[begin : begin + math.prod(shape)]
        self._table_s: FloatArray = numbers.reshape(shape).copy()  # (variants, batch, cores) time
        self._whole_cores = round(1 / float(model["core_unit"]))
        self._mean, self._deviation = 1.0, 0.0
        self._measured = False

    @property
    def factor(self) -> float:
        """Time of a batch that is slower than most, relative to the profile."""
        return self._mean + self._deviation

    def pass_interval(self) -> None:
        """Give up part of the estimate if no batch was measured since the last call."""
        # Otherwise all requests would be dropped for ever after the machine was slow once.
        if not self._measured:
            self._mean += FORGOTTEN * (1.0 - self._mean)
            self._deviation -= FORGOTTEN * self._deviation
        self._measured = False

    def add(self, variant: int, size: int, cores: int, took_s: float) -> None:
        """Add the measured time of a batch that had this many cores throughout."""
        if self._limited and cores < self._whole_cores:
            return
        self._measured = True
        profile_s = self._table_s[variant, size - 1, 0 if self._limited else cores - 1]
        ratio = min(MAX_RATIO, max(MIN_RATIO, took_s / float(profile_s)))
        self._deviation += MEMORY * (abs(ratio - self._mean) - self._deviation)
        self._mean += MEMORY * (ratio - self._mean)
