"""Integral of a piecewise-constant quantity over time."""

from __future__ import annotations


class Meter:
    """Integrates a value that changes in steps, such as the cores held."""

    def __init__(self, value: float = 0.0, now_s: float = 0.0) -> None:
        self._value = value
        self._since_s = now_s
        self._total = 0.0

    @property
    def value(self) -> float:
        """Value in force."""
        return self._value

    def set(self, now_s: float, value: float) -> None:
        """Change the value from ``now_s`` on.

        Args:
            now_s: Time of the change, not before the last one.
            value: The new value.
        """
        self._total = self.read(now_s)
        self._since_s = now_s
        self._value = value

    def read(self, now_s: float) -> float:
        """Return the integral up to ``now_s``."""
        return self._total + self._value * max(0.0, now_s - self._since_s)
