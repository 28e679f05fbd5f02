"""Service whose batches take the CPU time that was measured live."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

import numpy as np

from sponge_env.interfaces import Completion, FloatArray


class MeasuredWork:
    """CPU time of batches, handed out again by size, in the order in which it was measured.

    A simulated batch of a size that has run out, or never came up, takes what the profile
    says, times how the live batches compared with it on the whole.
    """

    def __init__(self, completions: Iterable[Completion], usual_s: FloatArray) -> None:
        """Take what was measured.

        Args:
            completions: Batches in the order of their end; those without a CPU time, such as
                those that failed, are left out.
            usual_s: (batch_max,) CPU seconds of a batch by the profile.
        """
        self._usual_s = usual_s
        self._measured_s: dict[int, list[float]] = defaultdict(list)
        measured_s = expected_s = 0.0
        for completion in completions:
            if completion.ok and completion.cpu_s > 0:
                size = completion.batch.size
                self._measured_s[size].append(completion.cpu_s)
                measured_s += completion.cpu_s
                expected_s += float(usual_s[size - 1])
        self.ratio = measured_s / expected_s if expected_s > 0 else 1.0
        """CPU time of all batches, relative to the profile's."""

    def table(self) -> FloatArray:
        """Return what the simulated service reads, see :mod:`sponge_env.core.service`."""
        rows: list[float] = []
        works: list[float] = []
        first = 1 + 2 * len(self._usual_s)
        for size, usual_s in enumerate(self._usual_s.tolist(), start=1):
            begin = first + len(works)
            works += [measured_s / usual_s for measured_s in self._measured_s[size]]
            rows += [begin, first + len(works)]
        return np.array([self.ratio, *rows, *works])
