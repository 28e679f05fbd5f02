"""What batches take, learned while serving."""

from __future__ import annotations

import numpy as np

from sponge_env.interfaces import FloatArray, SystemSpec, SystemView
from sponge_env.results.schema import IntervalMetrics

_PRIOR_S = 1.0
"""Service that the first guess is worth."""
_FORGET = 0.998
"""Weight that experience keeps per interval."""
_SAME = 0.1
"""Distance of a mean batch size from a whole number up to which all batches count as equal."""
_RANGE = (0.5, 2.0)
"""What was seen is not believed beyond these multiples of the fit."""


class Latency:
    """Seconds to plan a batch with: the fit, until experience corrects it cell by cell.

    An interval tells how long its batches ran, and their mean size. Where all were of one size,
    that is the latency of one cell of the table. What was never seen keeps the first guess.

    Under a CPU quota a lone batch runs at full speed on what the quota has left, and batches
    back to back do not. So a batch counts as long as its cores take to grant what it used,
    should that be longer than it ran.
    """

    def __init__(self, spec: SystemSpec, margin: float, safety: float) -> None:
        """Start from the fit.

        Args:
            spec: The system.
            margin: First guess of how much longer batches take than the fit says.
            safety: Allowance on what is learned, for single batches scatter.
        """
        self._sizes, self._cpu_cores = spec.batch_max, spec.cpu_cores
        self._fit_s = np.ascontiguousarray(spec.latency.table_s(spec.batch_max, spec.cores_max).T)
        self._guess_s = self._fit_s * (1 + margin)
        self._ran_s = np.zeros(self._fit_s.shape)
        self._granted_s = np.zeros(self._fit_s.shape)
        self._batches = np.zeros(self._fit_s.shape)
        self._safety = safety
        self._loading = False

    def observe(self, view: SystemView) -> bool:
        """Take in the interval that has passed; return whether it changed the table."""
        loading, self._loading = self._loading or bool(view.starting_s), bool(view.starting_s)
        last = view.last
        if last is None or not last.service_mean_s > 0 or last.cores > self._cpu_cores:
            return False  # replicas that wait for each other's CPU say nothing of their own
        size = round(last.batch_mean)
        if abs(last.batch_mean - size) > _SAME or size > self._sizes:
            return False
        self._add((last.requested_cores - 1, size - 1), last, loading)
        return True

    def _add(self, cell: tuple[int, int], last: IntervalMetrics, loading: bool) -> None:
        for table in (self._ran_s, self._granted_s, self._batches):
            table *= _FORGET
        batches = (last.on_time + last.late) / last.batch_mean
        ran_s = last.service_mean_s * batches
        self._ran_s[cell] += ran_s
        # A replica that loads its model uses its cores, too.
        used_s = last.utilisation * last.core_seconds / last.requested_cores
        self._granted_s[cell] += ran_s if loading or last.restarts else used_s
        self._batches[cell] += batches

    @property
    def table_s(self) -> FloatArray:
        """(cores_max, batch_max) seconds; row ``c - 1``, column ``b - 1``."""
        low_s, high_s = (factor * self._fit_s * self._batches for factor in _RANGE)
        seen_s = np.clip(np.maximum(self._ran_s, self._granted_s), low_s, high_s)
        prior = _PRIOR_S / self._guess_s
        table_s: FloatArray = (_PRIOR_S + (1 + self._safety) * seen_s) / (prior + self._batches)
        return table_s
