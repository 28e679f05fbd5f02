"""Sums that are the same on every Python, and in compiled code."""

from __future__ import annotations

import operator
from collections.abc import Iterable
from functools import reduce


def total(values: Iterable[float]) -> float:
    """Add numbers one after the other.

    :func:`sum` does so only up to Python 3.11; from 3.12 on it compensates for rounding, which
    compiled code does not.
    """
    return reduce(operator.add, values, 0.0)
