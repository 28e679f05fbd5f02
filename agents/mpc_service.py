"""Service times, corrected while they are seen: a fit of four numbers misses single cells."""

from __future__ import annotations

from sponge_env.interfaces import FloatArray, SystemView

_TRUST = 2
"""Intervals that the fit counts for against those seen."""
_MEMORY = 20
"""Intervals that what was seen counts for at most."""
_RANGE = (0.5, 2.0)
"""What was seen is not believed beyond these multiples of the fit."""


class ServiceTimes:
    """The table of service times of one episode.

    An interval tells the time of a cell where nothing is mixed: under the same cores as before,
    all its batches full. Full batches follow each other without a gap, for a replica that waits
    takes the first request that comes alone. So the batches that ended took the time from the
    start of the one that ran before to the start of the one that runs now.
    """

    def __init__(self, fit_s: FloatArray) -> None:
        """Start with the fit.

        Args:
            fit_s: (cores_max, batch_max) seconds of a batch.
        """
        self._fit_s = fit_s
        self.table_s = fit_s.copy(order="C")
        """(cores_max, batch_max) seconds of a batch; changes in place."""
        self._seen: dict[tuple[int, int], int] = {}
        self._before: SystemView | None = None

    def observe(self, view: SystemView) -> bool:
        """Take in the interval that has passed; return whether it changed the table."""
        before, self._before = self._before, view
        if before is None or not _all_full(before, view):
            return False
        last, cores, batch = view.last, view.allocation.cores, view.allocation.batch
        assert last is not None
        ended = round((last.on_time + last.late) / batch)
        mean_s = (view.running[0].started_s - before.running[0].started_s) / ended
        self._correct((cores - 1, batch - 1), mean_s)
        return True

    def _correct(self, cell: tuple[int, int], mean_s: float) -> None:
        low, high = (self._fit_s[cell] * factor for factor in _RANGE)
        seen = self._seen[cell] = min(self._seen.get(cell, 0) + 1, _MEMORY)
        step_s = min(max(mean_s, low), high) - self.table_s[cell]
        self.table_s[cell] += step_s / (_TRUST + seen)


def _all_full(before: SystemView, view: SystemView) -> bool:
    """Return whether all batches that ended were full and ran on the same cores throughout."""
    last = view.last
    return (
        last is not None
        and len(before.running) == len(view.running) == 1
        and before.allocation.cores == view.allocation.cores
        and before.running[0].started_s < view.running[0].started_s
        # A lone request is a full batch of one: it says nothing about gaps before it.
        and last.batch_mean == view.allocation.batch > 1
        and last.restarts == 0  # a batch that died is no service time
        and last.on_time + last.late >= view.allocation.batch
    )
