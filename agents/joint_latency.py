"""What batches take, learned while serving."""

from __future__ import annotations

import numpy as np

from sponge_env.interfaces import FloatArray, SystemSpec, SystemView

_PRIOR_S = 1.0
"""Service that the first guess is worth."""
_FORGET = 0.998
"""Weight that experience keeps per interval."""
_SAME = 0.1
"""Distance of a mean batch size from a whole number up to which all batches count as equal."""


class Latency:
    """Seconds to plan a batch with: the fit, until experience corrects it cell by cell.

    An interval tells how long replicas were busy and how many batches of which mean size they
    ended. Where these were of one size, that is the latency of one cell of the table. What
    was never seen keeps the first guess.
    """

    def __init__(self, spec: SystemSpec, margin: float, safety: float) -> None:
        """Start from the fit.

        Args:
            spec: The system.
            margin: First guess of how much longer batches take than the fit says.
            safety: Allowance on what is learned, for single batches scatter.
        """
        self._sizes = spec.batch_max
        fit_s = np.ascontiguousarray(spec.latency.table_s(spec.batch_max, spec.cores_max).T)
        self._guess_s = fit_s * (1 + margin)
        self._busy_s = np.zeros(fit_s.shape)
        self._batches = np.zeros(fit_s.shape)
        self._safety = safety

    def observe(self, view: SystemView) -> None:
        """Learn from the last interval."""
        last = view.last
        if last is None or not last.batch_mean > 0:
            return
        size = round(last.batch_mean)
        if abs(last.batch_mean - size) > _SAME or size > self._sizes:
            return
        cell = last.requested_cores - 1, size - 1
        self._busy_s *= _FORGET
        self._batches *= _FORGET
        self._busy_s[cell] += last.utilisation * last.core_seconds / last.requested_cores
        self._batches[cell] += (last.on_time + last.late) / last.batch_mean

    @property
    def service_s(self) -> FloatArray:
        """(cores_max, batch_max) seconds; row ``c - 1``, column ``b - 1``."""
        prior = _PRIOR_S / self._guess_s
        learned_s = (1 + self._safety) * self._busy_s
        table_s: FloatArray = (_PRIOR_S + learned_s) / (prior + self._batches)
        return table_s
