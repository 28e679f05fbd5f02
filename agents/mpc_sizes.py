"""Whether all requests are of one size."""

from __future__ import annotations

from sponge_env.interfaces import FloatArray

_SAME = 1e-6
"""Relative deviation that is taken for rounding."""


class Sizes:
    """Finds out whether all requests are of one size, which a view does not say.

    Bandwidth is bytes over transfer time, so the mean delay is ``size / bandwidth + base``. With
    one size, intervals lie on one line over ``1 / bandwidth``, exactly; its base is not negative,
    so that the delay rises by no larger share than ``1 / bandwidth``. Where an interval lies
    elsewhere, sizes differ, and that is never forgotten.
    """

    def __init__(self) -> None:
        """Take all requests to be of one size."""
        self.differ = False
        self._points: list[tuple[float, float]] = []

    def observe(self, bandwidth_bytes_per_s: float, delays_s: FloatArray) -> None:
        """Take in an interval in which requests arrived.

        Args:
            bandwidth_bytes_per_s: What they saw; NaN where no transfer took time.
            delays_s: (arrived,) their delays.
        """
        if self.differ or not bandwidth_bytes_per_s > 0:
            return
        point = 1 / bandwidth_bytes_per_s, float(delays_s.mean())
        # An interval that shows the same bandwidth again may not have measured any.
        if not self._points or point[0] != self._points[-1][0]:
            self._points = [*self._points[-2:], point]
            self.differ = not _on_one_line(self._points)


def _on_one_line(points: list[tuple[float, float]]) -> bool:
    """Return whether up to three points lie on a line whose offset is not negative."""
    x, y = points[0]
    steps = [(after_x / x - 1, after_y / y - 1) for after_x, after_y in points[1:]]
    steeper = any(abs(rise) > abs(run) + _SAME for run, rise in steps)
    if steeper or len(steps) < 2:
        return not steeper
    (run, rise), (other_run, other_rise) = steps
    return abs(run * other_rise - other_run * rise) <= _SAME * max(abs(run), abs(other_run))
